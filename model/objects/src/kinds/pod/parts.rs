//! What of a pod is changed by paths of their own: ephemeral containers, and the resources of the
//! containers that run.
//!
//! Follows upstream's `pkg/registry/core/pod/strategy.go` and `ValidatePodResize` and
//! `ValidatePodEphemeralContainersUpdate` of `pkg/apis/core/validation`.

use super::super::Part;
use super::super::check::Checks;
use super::super::column::{items, text};
use super::{qos_class, validate};
use crate::status::StatusCause;
use serde_json::{Value, json};

/// `pods/ephemeralcontainers`: containers are added, never changed or taken away.
pub(super) static EPHEMERAL_CONTAINERS: Part =
    Part { keep: keep_but_ephemeral, validate: ephemeral };

/// `pods/resize`: requests and limits of cpu and memory.
pub(super) static RESIZE: Part = Part { keep: keep_but_resources, validate: resize };

const ONLY_CPU_AND_MEMORY: &str = "only cpu and memory resources are mutable";

/// Labels and the like are not this path's to change.
fn keep_metadata(new: &mut Value, old: &Value) {
    for field in ["labels", "annotations", "finalizers", "ownerReferences"] {
        put(&mut new["metadata"], field, old["metadata"].get(field));
    }
}

fn put(object: &mut Value, field: &str, value: Option<&Value>) {
    let Some(object) = object.as_object_mut() else { return };
    match value {
        Some(value) => object.insert(field.to_owned(), value.clone()),
        None => object.remove(field),
    };
}

fn keep_but_ephemeral(new: &mut Value, old: &Value) {
    keep_metadata(new, old);
    let given = new.pointer("/spec/ephemeralContainers").cloned();
    new["spec"] = old["spec"].clone();
    put(&mut new["spec"], "ephemeralContainers", given.as_ref());
}

fn ephemeral(new: &Value, old: &Value) -> Vec<StatusCause> {
    let mut checks = Checks::default();
    validate::whole(&mut checks, new, &new["spec"]);
    let path = "spec.ephemeralContainers";
    let given = items(new, "/spec/ephemeralContainers");
    for before in items(old, "/spec/ephemeralContainers") {
        let name = text(before, "/name");
        match given.iter().find(|c| text(c, "/name") == name) {
            None => checks.forbidden(
                path,
                &format!("existing ephemeral containers {name:?} may not be removed\n"),
            ),
            Some(now) if now != before => {
                let mut changed = Vec::new();
                validate::differences("", now, before, &mut changed);
                checks.forbidden(
                    path,
                    &format!(
                        "existing ephemeral containers {name:?} may not be changed\n{}",
                        changed.join("\n")
                    ),
                );
            }
            Some(_) => {}
        }
    }
    checks.causes()
}

/// Takes over only resources and the policies for their change. When containers were added,
/// removed or renamed everything stays as it was sent: the rules name what is wrong.
fn keep_but_resources(new: &mut Value, old: &Value) {
    keep_metadata(new, old);
    let mut kept = old["spec"].clone();
    for list in ["containers", "initContainers"] {
        let pointer = format!("/spec/{list}");
        let (given, before) = (items(new, &pointer), items(old, &pointer));
        let names = |list: &[Value]| list.iter().map(|c| c["name"].clone()).collect::<Vec<_>>();
        if names(given) != names(before) {
            return;
        }
        let kept = kept.get_mut(list).and_then(Value::as_array_mut);
        for (container, given) in kept.into_iter().flatten().zip(given) {
            put(container, "resources", given.get("resources"));
            put(container, "resizePolicy", given.get("resizePolicy"));
        }
    }
    new["spec"] = kept;
}

fn resize(new: &Value, old: &Value) -> Vec<StatusCause> {
    let mut checks = Checks::default();
    validate::whole(&mut checks, new, &new["spec"]);
    if qos_class(old) != qos_class(new) {
        let class = qos_class(new);
        checks.invalid("spec", class, "Pod QOS Class may not change as a result of resizing");
    }
    if new.pointer("/spec/resources") != old.pointer("/spec/resources") {
        checks.forbidden("", "resize of pods with pod-level resources is not supported");
    }
    if !same_containers(&mut checks, new, old) {
        return checks.causes();
    }
    for list in ["initContainers", "containers"] {
        let pointer = format!("/spec/{list}");
        for (i, (now, before)) in items(new, &pointer).iter().zip(items(old, &pointer)).enumerate()
        {
            let at = format!("spec.{list}[{i}]");
            one(&mut checks, list == "initContainers", &at, now, before);
        }
    }
    checks.causes()
}

/// The rules of one container's change.
fn one(checks: &mut Checks, init: bool, at: &str, now: &Value, before: &Value) {
    if now == before {
        return;
    }
    if init && text(before, "/restartPolicy") != "Always" {
        checks.forbidden("spec", "resources for non-sidecar init containers are immutable");
        return;
    }
    for kind in ["requests", "limits"] {
        let pointer = format!("/resources/{kind}");
        let names = |c: &Value| {
            let map = c.pointer(&pointer).and_then(Value::as_object);
            map.into_iter().flatten().map(|(name, _)| name.clone()).collect::<Vec<_>>()
        };
        let kept = names(now);
        if names(before).iter().any(|name| !kept.contains(name)) {
            let detail = format!("resource {kind} cannot be removed");
            checks.forbidden(&format!("{at}.resources.{kind}"), &detail);
        }
    }
    if without_cpu_and_memory(now) != without_cpu_and_memory(before) {
        checks.forbidden("spec", ONLY_CPU_AND_MEMORY);
    }
}

/// A container but for what may be changed.
fn without_cpu_and_memory(container: &Value) -> Value {
    let mut rest = container.clone();
    for kind in ["requests", "limits"] {
        let map = rest.pointer_mut(&format!("/resources/{kind}"));
        if let Some(map) = map.and_then(Value::as_object_mut) {
            map.remove("cpu");
            map.remove("memory");
        }
    }
    // An empty map is none.
    if let Some(resources) = rest.get_mut("resources").and_then(Value::as_object_mut) {
        resources.retain(|_, map| *map != json!({}));
    }
    rest
}

/// Whether the containers are the same and in the same order.
fn same_containers(checks: &mut Checks, new: &Value, old: &Value) -> bool {
    let before = checks.len();
    for list in ["containers", "initContainers"] {
        let pointer = format!("/spec/{list}");
        let (now, before) = (items(new, &pointer), items(old, &pointer));
        if now.len() != before.len() {
            let detail = format!("{list} may not be added or removed on resize");
            checks.forbidden(&format!("spec.{list}"), &detail);
            continue;
        }
        for (i, (now, before)) in now.iter().zip(before).enumerate() {
            if now["name"] != before["name"] {
                let detail = format!("{list} may not be renamed or reordered on resize");
                checks.forbidden(&format!("spec.{list}[{i}].name"), &detail);
            }
        }
    }
    checks.len() == before
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kinds::POD;

    fn pod() -> Value {
        let mut pod = json!({
            "apiVersion": "v1", "kind": "Pod",
            "metadata": {"name": "p", "namespace": "n", "uid": "u", "resourceVersion": "1",
                         "creationTimestamp": "2026-01-01T00:00:00Z"},
            "spec": {
                "containers": [{"name": "main", "image": "a:1", "resources": {
                    "requests": {"cpu": "100m"}, "limits": {"cpu": "200m", "memory": "64Mi"}}}],
                "initContainers": [{"name": "first", "image": "a:1"}],
            },
        });
        POD.complete(&mut pod);
        pod
    }

    fn changed(part: &str, change: impl FnOnce(&mut Value)) -> (Value, Vec<String>) {
        let old = pod();
        let mut new = old.clone();
        change(&mut new);
        let part = POD.subresource(part).and_then(|s| s.part).expect("the part is there");
        POD.complete(&mut new);
        (part.keep)(&mut new, &old);
        let causes = POD.validate_part(part, &new, &old);
        (new, causes.into_iter().map(|c| format!("{}: {}", c.field, c.message)).collect())
    }

    #[test]
    fn ephemeral_containers_are_added_and_nothing_else_is_taken() {
        let (new, causes) = changed("ephemeralcontainers", |pod| {
            pod["spec"]["ephemeralContainers"] =
                json!([{"name": "look", "image": "b:1", "targetContainerName": "main"}]);
            pod["spec"]["containers"][0]["image"] = json!("other");
            pod["metadata"]["labels"] = json!({"x": "y"});
        });
        assert_eq!(causes, Vec::<String>::new());
        assert_eq!(new["spec"]["containers"][0]["image"], "a:1");
        assert!(new["metadata"].get("labels").is_none());
        assert_eq!(new["spec"]["ephemeralContainers"][0]["terminationMessagePolicy"], "File");
    }

    #[test]
    fn ephemeral_containers_have_no_ports_probes_or_resources() {
        let (_, causes) = changed("ephemeralcontainers", |pod| {
            pod["spec"]["ephemeralContainers"] = json!([
                {"name": "main", "image": "b:1", "targetContainerName": "nobody",
                 "ports": [{"containerPort": 1}], "resources": {"limits": {"cpu": "1"}}},
            ]);
        });
        assert_eq!(
            causes,
            [
                "spec.ephemeralContainers[0].name: Duplicate value: \"main\"",
                "spec.ephemeralContainers[0].targetContainerName: Not found: \"nobody\"",
                "spec.ephemeralContainers[0].ports: Forbidden: cannot be set for an Ephemeral Container",
                "spec.ephemeralContainers[0].resources: Forbidden: cannot be set for an Ephemeral Container",
            ]
        );
    }

    #[test]
    fn what_was_added_stays() {
        let mut old = pod();
        old["spec"]["ephemeralContainers"] = json!([{"name": "look", "image": "b:1"}]);
        POD.complete(&mut old);
        let causes = |new: Value| {
            let mut new = new;
            POD.complete(&mut new);
            POD.validate_part(&EPHEMERAL_CONTAINERS, &new, &old)
                .into_iter()
                .map(|c| c.message)
                .collect::<Vec<_>>()
        };
        assert_eq!(
            causes(pod()),
            ["Forbidden: existing ephemeral containers \"look\" may not be removed\n"]
        );
        let mut other = old.clone();
        other["spec"]["ephemeralContainers"][0]["image"] = json!("c:1");
        let found = causes(other);
        assert!(found[0].contains("\"look\" may not be changed"), "{found:?}");
        assert_eq!(
            POD.validate_all(&old, None).into_iter().map(|c| c.message).collect::<Vec<_>>(),
            ["Forbidden: cannot be set on create"]
        );
    }

    #[test]
    fn resources_change_by_resize_alone() {
        let (new, causes) = changed("resize", |pod| {
            pod["spec"]["containers"][0]["resources"]["limits"]["cpu"] = json!("500m");
            pod["spec"]["containers"][0]["image"] = json!("other");
        });
        assert_eq!(causes, Vec::<String>::new());
        let container = &new["spec"]["containers"][0];
        assert_eq!(container["resources"]["limits"]["cpu"], "500m");
        assert_eq!(container["image"], "a:1");
        let mut direct = pod();
        direct["spec"]["containers"][0]["resources"]["limits"]["cpu"] = json!("500m");
        assert_eq!(POD.validate_all(&direct, Some(&pod())).len(), 1);
    }

    #[test]
    fn a_resize_keeps_class_names_and_kinds_of_resources() {
        let (_, causes) = changed("resize", |pod| {
            pod["spec"]["containers"][0]["resources"] = json!({"requests": {"cpu": "100m"}});
        });
        assert_eq!(
            causes,
            [
                "spec.containers[0].resources.requests: Forbidden: resource requests cannot be removed",
                "spec.containers[0].resources.limits: Forbidden: resource limits cannot be removed"
            ]
        );
        let (_, causes) = changed("resize", |pod| {
            pod["spec"]["containers"][0]["resources"] = json!({});
        });
        assert!(causes[0].contains("Pod QOS Class may not change"), "{causes:?}");
        let (_, causes) = changed("resize", |pod| {
            pod["spec"]["containers"][0]["resources"]["requests"]["ephemeral-storage"] = json!("1");
        });
        assert_eq!(causes, ["spec: Forbidden: only cpu and memory resources are mutable"]);
        let (_, causes) = changed("resize", |pod| {
            pod["spec"]["containers"][0]["name"] = json!("other");
        });
        assert!(causes[0].contains("may not be renamed or reordered"), "{causes:?}");
        let (_, causes) = changed("resize", |pod| {
            pod["spec"]["initContainers"][0]["resources"] = json!({"requests": {"cpu": "1"}});
        });
        assert_eq!(
            causes,
            ["spec: Forbidden: resources for non-sidecar init containers are immutable"]
        );
    }
}
