//! What upstream fills into pods and pod templates.

use super::super::fill::{each, object_at, set, set_number};
use super::level;
use serde_json::{Map, Value, json};

/// Fills in a pod.
pub(super) fn pod(pod: &mut Value) {
    if pod
        .pointer("/spec/terminationGracePeriodSeconds")
        .and_then(Value::as_i64)
        .is_some_and(|s| s < 0)
    {
        pod["spec"]["terminationGracePeriodSeconds"] = json!(1);
    }
    spec(pod, &["spec"]);
    let Some(spec) = object_at(pod, &["spec"]) else { return };
    set(spec, "enableServiceLinks", json!(true));
    let host_network = spec.get("hostNetwork") == Some(&json!(true));
    for list in ["initContainers", "containers"] {
        for container in each(spec, list) {
            requests_from_limits(container);
            if host_network {
                for port in each(container, "ports") {
                    if let Some(number) = port.get("containerPort").and_then(Value::as_i64) {
                        set_number(port, "hostPort", number);
                    }
                }
            }
        }
    }
    level::default(spec);
}

/// Requests that are not given equal the limits.
fn requests_from_limits(container: &mut Map<String, Value>) {
    let Some(resources) = container.get_mut("resources").and_then(Value::as_object_mut) else {
        return;
    };
    let Some(limits) = resources.get("limits").and_then(Value::as_object).cloned() else { return };
    let requests = resources.entry("requests").or_insert_with(|| json!({}));
    if let Some(requests) = requests.as_object_mut() {
        for (name, amount) in limits {
            requests.entry(name).or_insert(amount);
        }
    }
}

/// Fills in the pod spec at a path: that of a pod or of a template.
pub(in super::super) fn spec(object: &mut Value, path: &[&str]) {
    let Some(spec) = object_at(object, path) else { return };
    let account = match spec.get("serviceAccountName").and_then(Value::as_str) {
        Some(name) if !name.is_empty() => Some(name.to_owned()),
        _ => spec.get("serviceAccount").and_then(Value::as_str).map(str::to_owned),
    };
    if let Some(account) = account.filter(|a| !a.is_empty()) {
        spec.insert("serviceAccount".into(), json!(account));
        spec.insert("serviceAccountName".into(), json!(account));
    }
    set(spec, "dnsPolicy", json!("ClusterFirst"));
    set(spec, "restartPolicy", json!("Always"));
    set(spec, "securityContext", json!({}));
    set(spec, "terminationGracePeriodSeconds", json!(30));
    set(spec, "schedulerName", json!("default-scheduler"));
    for list in ["initContainers", "containers", "ephemeralContainers"] {
        for c in each(spec, list) {
            container(c);
        }
    }
    for v in each(spec, "volumes") {
        volume(v);
    }
    for constraint in each(spec, "topologySpreadConstraints") {
        set(constraint, "whenUnsatisfiable", json!("DoNotSchedule"));
    }
}

/// `Always` for `latest` or no tag, unless the image is named by digest.
fn pull_policy(image: &str) -> &'static str {
    let last = image.rsplit('/').next().unwrap_or(image);
    let by_digest = last.contains('@');
    let named = last.split('@').next().unwrap_or(last);
    match named.split_once(':') {
        Some((_, "latest")) => "Always",
        None if !by_digest => "Always",
        _ => "IfNotPresent",
    }
}

fn container(container: &mut Map<String, Value>) {
    let image = container.get("image").and_then(Value::as_str).unwrap_or_default();
    let policy = pull_policy(image);
    set(container, "imagePullPolicy", json!(policy));
    set(container, "terminationMessagePath", json!("/dev/termination-log"));
    set(container, "terminationMessagePolicy", json!("File"));
    set(container, "resources", json!({}));
    for port in each(container, "ports") {
        set(port, "protocol", json!("TCP"));
    }
    for env in each(container, "env") {
        let from = env.get_mut("valueFrom").and_then(Value::as_object_mut);
        if let Some(from) = from {
            field_reference(from);
        }
    }
    for probe in ["livenessProbe", "readinessProbe", "startupProbe"] {
        let Some(probe) = container.get_mut(probe).and_then(Value::as_object_mut) else { continue };
        for (field, default) in [
            ("timeoutSeconds", 1),
            ("periodSeconds", 10),
            ("successThreshold", 1),
            ("failureThreshold", 3),
        ] {
            set_number(probe, field, default);
        }
        action(probe);
    }
    if let Some(lifecycle) = container.get_mut("lifecycle").and_then(Value::as_object_mut) {
        for hook in ["postStart", "preStop"] {
            if let Some(hook) = lifecycle.get_mut(hook).and_then(Value::as_object_mut) {
                action(hook);
            }
        }
    }
}

/// Fills in the request of a probe or a hook.
fn action(action: &mut Map<String, Value>) {
    if let Some(get) = action.get_mut("httpGet").and_then(Value::as_object_mut) {
        set(get, "path", json!("/"));
        set(get, "scheme", json!("HTTP"));
    }
    if let Some(grpc) = action.get_mut("grpc").and_then(Value::as_object_mut) {
        set(grpc, "service", json!(""));
    }
}

fn field_reference(from: &mut Map<String, Value>) {
    if let Some(field) = from.get_mut("fieldRef").and_then(Value::as_object_mut) {
        set(field, "apiVersion", json!("v1"));
    }
    if let Some(field) = from.get_mut("resourceFieldRef").and_then(Value::as_object_mut) {
        set(field, "divisor", json!("0"));
    }
}

/// 0644.
const MODE: i64 = 0o644;

fn volume(volume: &mut Map<String, Value>) {
    if volume.iter().all(|(key, value)| key == "name" || value.is_null()) {
        volume.insert("emptyDir".into(), json!({}));
    }
    for kind in ["secret", "configMap", "downwardAPI", "projected"] {
        let Some(source) = volume.get_mut(kind).and_then(Value::as_object_mut) else { continue };
        set(source, "defaultMode", json!(MODE));
        for item in each(source, "items") {
            field_reference(item);
        }
        for projection in each(source, "sources") {
            if let Some(token) =
                projection.get_mut("serviceAccountToken").and_then(Value::as_object_mut)
            {
                set(token, "expirationSeconds", json!(3600));
            }
            if let Some(down) = projection.get_mut("downwardAPI").and_then(Value::as_object_mut) {
                for item in each(down, "items") {
                    field_reference(item);
                }
            }
        }
    }
    if let Some(source) = volume.get_mut("hostPath").and_then(Value::as_object_mut)
        && !source.contains_key("type")
    {
        source.insert("type".into(), json!(""));
    }
    if let Some(ephemeral) = volume.get_mut("ephemeral").and_then(Value::as_object_mut) {
        let template = ephemeral.get_mut("volumeClaimTemplate").and_then(Value::as_object_mut);
        if let Some(spec) = template.and_then(|t| t.get_mut("spec")).and_then(Value::as_object_mut)
        {
            set(spec, "volumeMode", json!("Filesystem"));
        }
    }
    if let Some(image) = volume.get_mut("image").and_then(Value::as_object_mut) {
        let reference = image.get("reference").and_then(Value::as_str).unwrap_or_default();
        let policy = pull_policy(reference);
        set(image, "pullPolicy", json!(policy));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pods_are_filled_in() {
        let mut value = json!({"metadata": {"name": "p"}, "spec": {
            "hostNetwork": true,
            "containers": [{
                "name": "a", "image": "nginx",
                "ports": [{"containerPort": 80}],
                "resources": {"limits": {"cpu": "1"}, "requests": {"memory": "1Mi"}},
                "readinessProbe": {"httpGet": {"port": 80}, "periodSeconds": 2},
                "env": [{"name": "IP", "valueFrom": {"fieldRef": {"fieldPath": "status.podIP"}}}],
            }],
            "volumes": [{"name": "e"}, {"name": "c", "configMap": {"name": "c"}}],
        }});
        pod(&mut value);
        let spec = &value["spec"];
        assert_eq!(spec["restartPolicy"], "Always");
        assert_eq!(spec["securityContext"], json!({}));
        assert_eq!(spec["terminationGracePeriodSeconds"], 30);
        assert_eq!(spec["enableServiceLinks"], true);
        let a = &spec["containers"][0];
        assert_eq!(a["imagePullPolicy"], "Always");
        assert_eq!(a["ports"], json!([{"containerPort": 80, "protocol": "TCP", "hostPort": 80}]));
        assert_eq!(a["resources"]["requests"], json!({"cpu": "1", "memory": "1Mi"}));
        assert_eq!(
            a["readinessProbe"],
            json!({"httpGet": {"port": 80, "path": "/", "scheme": "HTTP"}, "periodSeconds": 2,
                   "timeoutSeconds": 1, "successThreshold": 1, "failureThreshold": 3})
        );
        assert_eq!(a["env"][0]["valueFrom"]["fieldRef"]["apiVersion"], "v1");
        assert_eq!(spec["volumes"][0], json!({"name": "e", "emptyDir": {}}));
        assert_eq!(spec["volumes"][1]["configMap"]["defaultMode"], 420);
        let once = value.clone();
        pod(&mut value);
        assert_eq!(once, value, "defaults are idempotent");
    }

    #[test]
    fn a_grpc_probe_names_a_service_even_if_it_is_none() {
        let mut value = json!({"spec": {"containers": [{"livenessProbe": {"grpc": {"port": 5}}}]}});
        super::super::POD.complete(&mut value);
        let grpc = value.pointer("/spec/containers/0/livenessProbe/grpc").unwrap();
        assert_eq!(*grpc, json!({"port": 5, "service": ""}));
    }

    #[test]
    fn pull_policies() {
        for image in ["nginx", "nginx:latest", "host:5000/a/b"] {
            assert_eq!(pull_policy(image), "Always", "{image}");
        }
        for image in ["nginx:1", "host:5000/a/b:v2", "a@sha256:00", "a:1@sha256:00"] {
            assert_eq!(pull_policy(image), "IfNotPresent", "{image}");
        }
    }
}
