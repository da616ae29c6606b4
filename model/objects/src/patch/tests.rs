//! Tests with the patches that kubectl really sends.

use super::*;
use crate::schema::{Type, schema};
use serde_json::json;

fn ty(kind: &str) -> &'static Type {
    let (group, kind) = kind.split_once('/').unwrap_or(("", kind));
    schema().kind(group, "v1", kind).unwrap()
}

fn deployment() -> Value {
    json!({
        "apiVersion": "apps/v1", "kind": "Deployment",
        "metadata": {"name": "web", "labels": {"app": "web", "tier": "front"}, "finalizers": ["a", "b"]},
        "spec": {
            "replicas": 2,
            "strategy": {"type": "RollingUpdate",
                "rollingUpdate": {"maxSurge": "25%", "maxUnavailable": "25%"}},
            "template": {
                "metadata": {"labels": {"app": "web"}},
                "spec": {
                    "containers": [
                        {"name": "app", "image": "app:1", "args": ["-v", "1"],
                         "env": [{"name": "A", "value": "1"}, {"name": "B", "value": "2"}],
                         "ports": [{"containerPort": 80, "protocol": "TCP"}]},
                        {"name": "side", "image": "side:1"},
                    ],
                    "volumes": [{"name": "v", "emptyDir": {}}],
                },
            },
        },
    })
}

fn patched(patch: Value) -> Value {
    strategic(&deployment(), &patch, ty("apps/Deployment")).unwrap()
}

#[test]
fn set_image_changes_one_container() {
    let new = patched(json!({"spec": {"template": {"spec": {
        "$setElementOrder/containers": [{"name": "app"}, {"name": "side"}],
        "containers": [{"name": "app", "image": "app:2"}],
    }}}}));
    let containers = new.pointer("/spec/template/spec/containers").unwrap();
    assert_eq!(containers[0]["image"], "app:2");
    assert_eq!(containers[0]["args"], json!(["-v", "1"]));
    assert_eq!(containers[1]["image"], "side:1");
}

#[test]
fn rollout_restart_adds_an_annotation() {
    let new = patched(json!({"spec": {"template": {"metadata": {"annotations": {
        "kubectl.kubernetes.io/restartedAt": "2026-11-22T02:00:00Z"}}}}}));
    assert_eq!(
        new.pointer("/spec/template/metadata"),
        Some(&json!({
            "labels": {"app": "web"},
            "annotations": {"kubectl.kubernetes.io/restartedAt": "2026-11-22T02:00:00Z"},
        }))
    );
}

#[test]
fn strategy_is_exchanged_with_retain_keys() {
    let new = patched(json!({"spec": {"strategy": {
        "$retainKeys": ["type"], "rollingUpdate": null, "type": "Recreate"}}}));
    assert_eq!(new.pointer("/spec/strategy"), Some(&json!({"type": "Recreate"})));
    let new = patched(json!({"spec": {"template": {"spec": {
        "$setElementOrder/volumes": [{"name": "v"}],
        "volumes": [{"$retainKeys": ["name", "configMap"], "name": "v", "configMap": {"name": "c"},
                     "emptyDir": null}],
    }}}}));
    assert_eq!(
        new.pointer("/spec/template/spec/volumes"),
        Some(&json!([{"name": "v", "configMap": {"name": "c"}}]))
    );
}

#[test]
fn items_are_deleted_added_and_ordered() {
    let new = patched(json!({"spec": {"template": {"spec": {
        "$setElementOrder/containers": [{"name": "new"}, {"name": "app"}],
        "containers": [
            {"name": "new", "image": "new:1", "env": [{"name": "X", "value": "y"}]},
            {"$setElementOrder/env": [{"name": "B"}, {"name": "C"}],
             "name": "app",
             "env": [{"name": "C", "value": "3"}, {"name": "A", "$patch": "delete"}]},
            {"name": "side", "$patch": "delete"},
        ],
    }}}}));
    let containers = new.pointer("/spec/template/spec/containers").unwrap();
    let names: Vec<_> = containers.as_array().unwrap().iter().map(|c| &c["name"]).collect();
    assert_eq!(names, ["new", "app"]);
    assert_eq!(
        containers[1]["env"],
        json!([{"name": "B", "value": "2"}, {"name": "C", "value": "3"}])
    );
}

#[test]
fn new_items_without_an_order_come_first() {
    let new = patched(json!({"spec": {"template": {"spec": {
        "containers": [{"name": "debug", "image": "busybox"}]}}}}));
    let containers = new.pointer("/spec/template/spec/containers").unwrap();
    let names: Vec<_> = containers.as_array().unwrap().iter().map(|c| &c["name"]).collect();
    assert_eq!(names, ["debug", "app", "side"]);
}

#[test]
fn lists_without_a_key_are_replaced_and_sets_of_scalars_merged() {
    let new = patched(json!({"spec": {"template": {"spec": {
        "containers": [{"name": "app", "args": ["-q"]}]}}}}));
    assert_eq!(new.pointer("/spec/template/spec/containers/0/args"), Some(&json!(["-q"])));
    let new = patched(json!({"metadata": {"finalizers": ["c"]}}));
    assert_eq!(new.pointer("/metadata/finalizers"), Some(&json!(["c", "a", "b"])));
    let new = patched(json!({"metadata": {
        "$setElementOrder/finalizers": ["b", "c"],
        "$deleteFromPrimitiveList/finalizers": ["a"],
        "finalizers": ["c"]}}));
    assert_eq!(new.pointer("/metadata/finalizers"), Some(&json!(["b", "c"])));
    let new = patched(json!({"metadata": {"$deleteFromPrimitiveList/finalizers": ["a"]}}));
    assert_eq!(new.pointer("/metadata/finalizers"), Some(&json!(["b"])));
}

#[test]
fn directives_on_objects_and_lists() {
    let new = patched(json!({"metadata": {"labels": {"$patch": "replace", "x": "y"}}}));
    assert_eq!(new.pointer("/metadata/labels"), Some(&json!({"x": "y"})));
    let new = patched(json!({"metadata": {"labels": {"tier": null, "z": null}}}));
    assert_eq!(new.pointer("/metadata/labels"), Some(&json!({"app": "web"})));
    let new = patched(json!({"metadata": {"annotations": {"a": "b", "z": null}}}));
    assert_eq!(new.pointer("/metadata/annotations"), Some(&json!({"a": "b"})));
    let new = patched(json!({"spec": {"template": {"spec": {
        "containers": [{"name": "only", "image": "x"}, {"$patch": "replace"}]}}}}));
    assert_eq!(
        new.pointer("/spec/template/spec/containers"),
        Some(&json!([{"name": "only", "image": "x"}]))
    );
}

#[test]
fn rollout_undo_replaces_the_template_by_json_patch() {
    let template = json!({"metadata": {"labels": {"app": "web"}}, "spec": {"containers": [
        {"name": "app", "image": "app:0"}]}});
    let new = json(
        &deployment(),
        &json!([
            {"op": "replace", "path": "/spec/template", "value": template},
            {"op": "add", "path": "/metadata/annotations", "value": {"a": "b"}},
        ]),
    )
    .unwrap();
    assert_eq!(new["spec"]["template"], template);
    assert_eq!(new["metadata"]["annotations"], json!({"a": "b"}));
}

/// As upstream: a real API server was asked the same.
#[test]
fn json_patches_are_as_lenient_as_upstreams() {
    let before = json!({"labels": {"app": "web"}, "list": ["a", "b"]});
    let patched = |operation: Value| json(&before, &json!([operation]));
    for (operation, pointer, wanted) in [
        (
            json!({"op": "replace", "path": "/labels/tier", "value": "x"}),
            "/labels/tier",
            json!("x"),
        ),
        (
            json!({"op": "copy", "from": "/labels/tier", "path": "/labels/two"}),
            "/labels/two",
            json!(null),
        ),
        (json!({"op": "add", "path": "/labels/two"}), "/labels/two", json!(null)),
        (json!({"op": "test", "path": "/labels/tier", "value": null}), "/list/0", json!("a")),
        (json!({"op": "test", "path": "/labels/tier"}), "/list/0", json!("a")),
        (json!({"op": "add", "path": "/list/-1", "value": "c"}), "/list", json!(["a", "b", "c"])),
        (json!({"op": "add", "path": "/list/01", "value": "c"}), "/list", json!(["a", "c", "b"])),
        (json!({"op": "add", "path": "/list/-", "value": "c"}), "/list", json!(["a", "b", "c"])),
        (json!({"op": "remove", "path": "/list/-1"}), "/list", json!(["a"])),
        (json!({"op": "replace", "path": "/list/-2", "value": "c"}), "/list", json!(["c", "b"])),
        (json!({"op": "move", "from": "/list/0", "path": "/list/1"}), "/list", json!(["b", "a"])),
        (
            json!({"op": "add", "path": "/labels/a~1b~0c", "value": "x"}),
            "/labels",
            json!({"app": "web", "a/b~c": "x"}),
        ),
    ] {
        let after = patched(operation.clone()).unwrap();
        assert_eq!(after.pointer(pointer), Some(&wanted), "{operation}");
    }
    for operation in [
        json!({"op": "remove", "path": "/labels/tier"}),
        json!({"op": "move", "from": "/labels/tier", "path": "/labels/two"}),
        json!({"op": "replace", "path": "/nope/tier", "value": "x"}),
        json!({"op": "test", "path": "/labels/app", "value": "db"}),
        json!({"op": "test", "path": "/list/2", "value": null}),
        json!({"op": "add", "path": "/list/3", "value": "c"}),
        json!({"op": "add", "path": "/list/-4", "value": "c"}),
        json!({"op": "replace", "path": "/list/-", "value": "c"}),
        json!({"op": "add", "path": "labels/x", "value": "c"}),
        json!({"op": "remove", "path": ""}),
    ] {
        let refusal = patched(operation.clone()).unwrap_err();
        assert_eq!(refusal.code, 422, "{operation}");
        assert!(refusal.message.contains("operation '/0' failed at path"), "{}", refusal.message);
    }
    for operation in [json!({"op": "twist", "path": "/a"}), json!({"op": "add"}), json!(5)] {
        assert_eq!(patched(operation.clone()).unwrap_err().code, 400, "{operation}");
    }
}

#[test]
fn copies_that_double_an_object_come_to_an_end() {
    let before = json!({"a": {"text": "x".repeat(1000)}});
    let double = |n: usize| json!({"op": "copy", "from": "/a", "path": format!("/a/{n}")});
    let refusal = json(&before, &(0..64).map(double).collect()).unwrap_err();
    assert_eq!(refusal.code, 413);
}

#[test]
fn refusals() {
    let fails = |patch: Value| strategic(&deployment(), &patch, ty("apps/Deployment")).unwrap_err();
    let no_key = fails(json!({"spec": {"template": {"spec": {"containers": [{"image": "x"}]}}}}));
    assert_eq!(no_key.code, 400);
    assert!(no_key.message.ends_with("does not contain declared merge key: name"));
    let odd = fails(json!({"metadata": {"labels": {"$patch": "twist"}}}));
    assert_eq!(odd.code, 422);
    let order = fails(json!({"spec": {"template": {"spec": {
        "$setElementOrder/containers": [{"name": "side"}, {"name": "app"}],
        "containers": [{"name": "app"}, {"name": "side"}]}}}}));
    assert!(order.message.contains("doesn't match"));
    let keys = fails(json!({"spec": {"strategy": {"$retainKeys": ["type"], "rollingUpdate": {}}}}));
    assert_eq!(keys.message, "invalid patch format of retainKeys");
    let test = json(&deployment(), &json!([{"op": "test", "path": "/spec/replicas", "value": 9}]));
    assert_eq!(test.unwrap_err().code, 422);
    assert_eq!(json(&deployment(), &json!({"op": "add"})).unwrap_err().code, 400);
}

#[test]
fn merge_patch_is_rfc_7386() {
    let cases = [
        (json!({"a": "b"}), json!({"a": "c"}), json!({"a": "c"})),
        (json!({"a": "b", "b": 1}), json!({"a": null}), json!({"b": 1})),
        (json!({"a": ["b"]}), json!({"a": "c"}), json!({"a": "c"})),
        (json!({"a": {"b": "c"}}), json!({"a": {"b": "d", "c": null}}), json!({"a": {"b": "d"}})),
        (json!({"a": "foo"}), json!({"a": {"bb": {"ccc": null}}}), json!({"a": {"bb": {}}})),
        (json!([1]), json!({"a": 1}), json!({"a": 1})),
    ];
    for (target, patch, want) in cases {
        assert_eq!(merge(&target, &patch), want);
    }
}
