//! Random patches and applies, with what Kubernetes 1.37's own libraries make of them.
//!
//! Each line of `data/patches.jsonl` is a case: a strategic merge patch with its result, or the
//! steps of several managers with the object (or the refusal) after each.

use dhow_objects::schema::shape::normalise;
use dhow_objects::schema::{Type, schema};
use dhow_objects::{apply, patch};
use serde_json::{Value, json};

const CASES: &str = include_str!("data/patches.jsonl");
const NOW: &str = "2026-11-22T02:00:00Z";

fn deployment() -> &'static Type {
    schema().kind("apps", "v1", "Deployment").unwrap()
}

fn cases(op: &str) -> impl Iterator<Item = (usize, Value)> {
    let all = CASES.lines().enumerate().map(|(i, l)| (i + 1, serde_json::from_str(l).unwrap()));
    all.filter(move |(_, case): &(usize, Value)| case["op"] == op)
}

/// As Go's structs show it, without what an expected value has as a trace of directives.
fn normal(mut object: Value) -> Value {
    fn clean(value: &mut Value) {
        match value {
            Value::Object(map) => {
                map.retain(|key, _| !key.starts_with('$'));
                map.values_mut().for_each(clean);
            }
            Value::Array(items) => items.iter_mut().for_each(clean),
            _ => {}
        }
    }
    clean(&mut object);
    normalise(&mut object, deployment());
    if let Some(entries) = object.pointer_mut("/metadata/managedFields") {
        for entry in entries.as_array_mut().unwrap() {
            entry.as_object_mut().unwrap().remove("time");
        }
    }
    object
}

#[test]
fn strategic_merge_patches_give_what_upstream_gives() {
    for (line, case) in cases("strategic") {
        let got = patch::strategic(&case["target"], &case["patch"], deployment());
        match case["want"].get("error") {
            Some(error) => assert!(got.is_err(), "line {line}: upstream refuses: {error}"),
            None => {
                assert_eq!(
                    normal(got.unwrap()),
                    normal(case["want"]["result"].clone()),
                    "line {line}"
                );
            }
        }
    }
}

#[test]
fn applies_and_updates_give_what_upstream_gives() {
    for (line, case) in cases("ssa") {
        let mut live: Option<Value> = None;
        let steps = case["steps"].as_array().unwrap().iter();
        for (i, (step, want)) in steps.zip(case["want"].as_array().unwrap()).enumerate() {
            let (object, manager) = (&step["object"], step["manager"].as_str().unwrap());
            let got = if step["op"] == "apply" {
                let force = step["force"] == true;
                apply::apply(live.as_ref(), object, manager, force, "", NOW, deployment())
            } else {
                let mut new = object.clone();
                normalise(&mut new, deployment());
                apply::update(live.as_ref(), &mut new, manager, "", NOW, deployment());
                Ok(new)
            };
            match got {
                Ok(mut object) => {
                    object["metadata"]["uid"] = json!("u");
                    let object = normal(object);
                    assert_eq!(object, normal(want["result"].clone()), "line {line}, step {i}");
                    live = Some(object);
                }
                Err(refusal) => {
                    let mut told: Vec<&str> = refusal.message.lines().collect();
                    let mut want: Vec<&str> = want["error"].as_str().unwrap().lines().collect();
                    // Upstream tells several managers' conflicts in no fixed order.
                    told.sort_unstable();
                    want.sort_unstable();
                    assert_eq!(told, want, "line {line}, step {i}");
                }
            }
        }
    }
}
