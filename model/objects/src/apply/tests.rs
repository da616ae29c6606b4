//! Tests of apply and of ownership, with what kubectl and controllers send.

use super::*;
use crate::kinds;
use crate::schema::schema;

const T1: &str = "2026-11-22T01:00:00Z";
const T2: &str = "2026-11-22T02:00:00Z";

fn ty() -> &'static Type {
    schema().kind("apps", "v1", "Deployment").unwrap()
}

fn config() -> Value {
    json!({
        "apiVersion": "apps/v1", "kind": "Deployment",
        "metadata": {"name": "web", "namespace": "shop", "labels": {"app": "web"}},
        "spec": {
            "replicas": 2,
            "selector": {"matchLabels": {"app": "web"}},
            "template": {
                "metadata": {"labels": {"app": "web"}},
                "spec": {"containers": [{"name": "app", "image": "app:1",
                    "ports": [{"containerPort": 80}]}]},
            },
        },
    })
}

fn applied(live: Option<&Value>, config: &Value, manager: &str, now: &str) -> Value {
    let mut value = apply(live, config, manager, false, "", now, ty()).unwrap();
    kinds::DEPLOYMENT.complete(&mut value);
    value
}

fn fields<'a>(object: &'a Value, manager: &str, operation: &str) -> &'a Value {
    object["metadata"]["managedFields"]
        .as_array()
        .unwrap()
        .iter()
        .find(|e| e["manager"] == manager && e["operation"] == operation)
        .map(|e| &e["fieldsV1"])
        .unwrap_or(&Value::Null)
}

#[test]
fn the_first_apply_owns_what_it_names() {
    let live = applied(None, &config(), "kubectl", T1);
    assert_eq!(live["spec"]["strategy"]["type"], "RollingUpdate");
    assert_eq!(
        live["metadata"]["managedFields"],
        json!([{
            "manager": "kubectl", "operation": "Apply", "apiVersion": "apps/v1", "time": T1,
            "fieldsType": "FieldsV1",
            "fieldsV1": {
                "f:metadata": {"f:labels": {"f:app": {}}},
                "f:spec": {
                    "f:replicas": {},
                    "f:selector": {},
                    "f:template": {
                        "f:metadata": {"f:labels": {"f:app": {}}},
                        "f:spec": {"f:containers": {"k:{\"name\":\"app\"}": {
                            ".": {}, "f:image": {}, "f:name": {},
                            "f:ports": {"k:{\"containerPort\":80,\"protocol\":\"TCP\"}": {
                                ".": {}, "f:containerPort": {}}},
                        }}},
                    },
                },
            },
        }])
    );
}

#[test]
fn applying_the_same_again_changes_nothing() {
    let live = applied(None, &config(), "kubectl", T1);
    let again = applied(Some(&live), &config(), "kubectl", T2);
    assert_eq!(live, again);
    assert!(same(&live, &again));
}

#[test]
fn what_is_no_longer_applied_is_removed() {
    let mut first = config();
    first["metadata"]["labels"]["tier"] = json!("front");
    first["spec"]["template"]["spec"]["containers"][0]["env"] =
        json!([{"name": "A", "value": "1"}, {"name": "B", "value": "2"}]);
    let live = applied(None, &first, "kubectl", T1);
    let mut second = config();
    second["spec"]["template"]["spec"]["containers"][0]["env"] =
        json!([{"name": "B", "value": "3"}]);
    let live = applied(Some(&live), &second, "kubectl", T2);
    assert_eq!(live["metadata"]["labels"], json!({"app": "web"}));
    let container = &live["spec"]["template"]["spec"]["containers"][0];
    assert_eq!(container["env"], json!([{"name": "B", "value": "3"}]));
    assert_eq!(container["imagePullPolicy"], "IfNotPresent");
}

#[test]
fn what_others_own_stays() {
    let live = applied(None, &config(), "kubectl", T1);
    let other = json!({
        "apiVersion": "apps/v1", "kind": "Deployment",
        "metadata": {"name": "web", "namespace": "shop", "labels": {"app": "web", "team": "a"}},
    });
    let live = applied(Some(&live), &other, "robot", T2);
    let mut without_label = config();
    without_label["metadata"].as_object_mut().unwrap().remove("labels");
    let live = applied(Some(&live), &without_label, "kubectl", T2);
    assert_eq!(live["metadata"]["labels"], json!({"app": "web", "team": "a"}));
    let nothing = json!({"apiVersion": "apps/v1", "kind": "Deployment",
        "metadata": {"name": "web", "namespace": "shop"}});
    let live = applied(Some(&live), &nothing, "robot", T2);
    assert_eq!(live["metadata"].get("labels"), None);
    assert_eq!(fields(&live, "robot", "Apply"), &Value::Null);
}

#[test]
fn conflicts_are_told_and_force_takes() {
    let live = applied(None, &config(), "kubectl", T1);
    let mut scaled = live.clone();
    scaled["spec"]["replicas"] = json!(5);
    update(Some(&live), &mut scaled, "kubectl-scale", "", T2, ty());
    assert_eq!(fields(&scaled, "kubectl-scale", "Update"), &json!({"f:spec": {"f:replicas": {}}}));
    assert_eq!(fields(&scaled, "kubectl", "Apply").pointer("/f:spec/f:replicas"), None);

    let refusal = apply(Some(&scaled), &config(), "kubectl", false, "", T2, ty()).unwrap_err();
    assert_eq!((refusal.code, refusal.reason), (409, "Conflict"));
    assert_eq!(
        refusal.message,
        "Apply failed with 1 conflict: conflict with \"kubectl-scale\" using apps/v1: .spec.replicas"
    );
    let causes = refusal.details.unwrap().causes;
    assert_eq!(causes[0].reason, "FieldManagerConflict");
    assert_eq!(causes[0].field, ".spec.replicas");

    let forced = apply(Some(&scaled), &config(), "kubectl", true, "", T2, ty()).unwrap();
    assert_eq!(forced["spec"]["replicas"], 2);
    assert_eq!(fields(&forced, "kubectl-scale", "Update"), &Value::Null);

    let mut both = config();
    both["spec"]["replicas"] = json!(9);
    both["spec"]["template"]["spec"]["containers"][0]["image"] = json!("app:9");
    let refusal = apply(Some(&live), &both, "robot", false, "", T2, ty()).unwrap_err();
    assert_eq!(
        refusal.message,
        "Apply failed with 2 conflicts: conflicts with \"kubectl\":\n- .spec.replicas\n- .spec.template.spec.containers[name=\"app\"].image"
    );
    let refusal = apply(
        Some(&scaled),
        &json!({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "web"},
                "spec": {"replicas": 5}}),
        "agrees",
        false,
        "",
        T2,
        ty(),
    );
    assert!(refusal.is_ok(), "the same value is no conflict");
}

#[test]
fn creates_and_updates_are_tracked() {
    let mut live = config();
    kinds::DEPLOYMENT.complete(&mut live);
    update(None, &mut live, "kubectl-create", "", T1, ty());
    let entry = fields(&live, "kubectl-create", "Update");
    assert_eq!(entry.pointer("/f:metadata/f:labels"), Some(&json!({".": {}, "f:app": {}})));
    assert_eq!(entry.pointer("/f:metadata/f:name"), None);
    assert_eq!(
        entry.pointer("/f:spec/f:strategy"),
        Some(&json!({
            "f:rollingUpdate": {".": {}, "f:maxSurge": {}, "f:maxUnavailable": {}},
            "f:type": {},
        }))
    );
    let mut status = live.clone();
    status["status"] =
        json!({"replicas": 2, "conditions": [{"type": "Available", "status": "True"}]});
    update(Some(&live), &mut status, "dhow", "status", T2, ty());
    assert_eq!(
        fields(&status, "dhow", "Update"),
        &json!({"f:status": {
            "f:conditions": {".": {}, "k:{\"type\":\"Available\"}": {
                ".": {}, "f:status": {}, "f:type": {}}},
            "f:replicas": {},
        }})
    );
    let entries = status["metadata"]["managedFields"].as_array().unwrap();
    assert_eq!(entries[1]["subresource"], "status");
    assert_eq!(fields(&status, "kubectl-create", "Update"), entry, "others keep what is theirs");

    let mut same_again = status.clone();
    update(Some(&status), &mut same_again, "kubectl-edit", "", T2, ty());
    assert_eq!(status, same_again);
}

#[test]
fn entries_can_be_reset_and_come_back_with_an_apply() {
    let live = applied(None, &config(), "kubectl", T1);
    let mut reset = live.clone();
    reset["metadata"]["managedFields"] = json!([{}]);
    update(Some(&live), &mut reset, "kubectl-edit", "", T2, ty());
    assert_eq!(reset["metadata"].get("managedFields"), None);
    let again = applied(Some(&reset), &config(), "robot", T2);
    assert_ne!(fields(&again, "before-first-apply", "Update"), &Value::Null);
    assert_ne!(fields(&again, "robot", "Apply"), &Value::Null);
}

#[test]
fn clients_that_forget_the_entries_do_not_lose_them() {
    let live = applied(None, &config(), "kubectl", T1);
    let mut put = live.clone();
    put["metadata"].as_object_mut().unwrap().remove("managedFields");
    update(Some(&live), &mut put, "kubectl-replace", "", T2, ty());
    assert_eq!(put, live);
}

#[test]
fn old_updaters_are_thrown_together() {
    let mut live = config();
    kinds::DEPLOYMENT.complete(&mut live);
    update(None, &mut live, "m0", "", T1, ty());
    for i in 1..15 {
        let mut next = live.clone();
        next["metadata"]["annotations"][format!("a{i:02}")] = json!("x");
        let now = format!("2026-11-22T03:{i:02}:00Z");
        update(Some(&live), &mut next, &format!("m{i:02}"), "", &now, ty());
        live = next;
    }
    let entries = live["metadata"]["managedFields"].as_array().unwrap();
    assert_eq!(entries.len(), 10);
    assert_eq!(entries[0]["manager"], "ancient-changes");
}

#[test]
fn lists_keep_the_order_of_the_configuration() {
    let with = |names: &[&str]| {
        let mut c = config();
        let list: Vec<Value> = names.iter().map(|n| json!({"name": n, "image": "x:1"})).collect();
        c["spec"]["template"]["spec"]["containers"] = list.into();
        c
    };
    let names = |object: &Value| -> Vec<String> {
        let list = object.pointer("/spec/template/spec/containers").unwrap().as_array().unwrap();
        list.iter().map(|c| c["name"].as_str().unwrap().to_owned()).collect()
    };
    let live = applied(None, &with(&["a", "b", "c"]), "kubectl", T1);
    let mut more = live.clone();
    let list = more.pointer_mut("/spec/template/spec/containers").unwrap().as_array_mut().unwrap();
    list.insert(1, json!({"name": "injected", "image": "i:1"}));
    update(Some(&live), &mut more, "injector", "", T1, ty());
    let live = applied(Some(&more), &with(&["c", "a", "d"]), "kubectl", T2);
    assert_eq!(names(&live), ["injected", "c", "a", "d"]);
}

#[test]
fn refusals() {
    let bad = |change: &dyn Fn(&mut Value)| {
        let mut c = config();
        change(&mut c);
        apply(None, &c, "kubectl", false, "", T1, ty()).unwrap_err().message
    };
    assert_eq!(
        bad(&|c| c["spec"]["nonsense"] = json!(1)),
        "failed to create typed patch object (shop/web; apps/v1, Kind=Deployment): .spec.nonsense: field not declared in schema"
    );
    assert!(
        bad(&|c| {
            let list = &mut c["spec"]["template"]["spec"]["containers"];
            let first = list[0].clone();
            list.as_array_mut().unwrap().push(first);
        })
        .contains(".spec.template.spec.containers: duplicate entries for key {\"name\":\"app\"}")
    );
    assert!(
        bad(&|c| c["spec"]["template"]["spec"]["containers"] = json!(["app"]))
            .contains("may not have non-map elements")
    );
    assert_eq!(
        bad(&|c| c["metadata"]["managedFields"] = json!([])),
        "metadata.managedFields must be nil"
    );
}

#[test]
fn kubectl_takes_over_from_its_client_side_apply() {
    let mut live = config();
    live["metadata"]["annotations"] = json!({LAST_APPLIED: config().to_string()});
    kinds::DEPLOYMENT.complete(&mut live);
    update(None, &mut live, "kubectl-client-side-apply", "", T1, ty());
    let mut next = config();
    next["spec"]["template"]["spec"]["containers"][0]["image"] = json!("app:2");
    let after = applied(Some(&live), &next, "kubectl", T2);
    assert_eq!(after["spec"]["template"]["spec"]["containers"][0]["image"], "app:2");
    let told: Value =
        serde_json::from_str(after["metadata"]["annotations"][LAST_APPLIED].as_str().unwrap())
            .unwrap();
    assert_eq!(told, next);
}

#[test]
fn a_field_that_is_marked_as_granular_has_many_owners_although_its_type_is_atomic() {
    let ty = schema().kind("", "v1", "PersistentVolume").unwrap();
    let config = json!({
        "apiVersion": "v1", "kind": "PersistentVolume", "metadata": {"name": "disk"},
        "spec": {"claimRef": {"namespace": "shop", "name": "cart"}},
    });
    let volume = apply(None, &config, "kubectl", false, "", T1, ty).unwrap();
    let owned = &fields(&volume, "kubectl", "Apply")["f:spec"]["f:claimRef"];
    assert_eq!(*owned, json!({"f:name": {}, "f:namespace": {}}));
}
