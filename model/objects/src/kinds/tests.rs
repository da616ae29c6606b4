//! Tests of the rows: what users send, what comes of it, and what they are told.

use super::*;
use crate::names;
use serde_json::json;

#[test]
fn rows_are_found() {
    assert_eq!(find("", "v1", "pods").unwrap().kind, "Pod");
    assert_eq!(by_kind("apps", "v1", "Deployment").unwrap().plural, "deployments");
    assert_eq!(by_kind("", "v1", "Event").unwrap().group, "");
    assert_eq!(by_kind("events.k8s.io", "v1", "Event").unwrap().storage, "core/events");
    assert!(find("apps", "v1beta1", "deployments").is_none());
}

#[test]
fn rows_are_whole() {
    for kind in all() {
        assert!(!kind.plural.is_empty() && !kind.singular.is_empty(), "{}", kind.kind);
        assert!(!kind.storage.is_empty(), "{}", kind.kind);
        assert!(kind.columns.iter().any(|c| c.format == "name"), "{}", kind.kind);
        assert_eq!(kind.from_storage.is_some(), kind.to_storage.is_some());
        let ty = kind.schema_type().expect("every row has a type in the schema");
        assert_eq!(kind.has_status(), ty.field("status").is_some(), "{}", kind.kind);
    }
}

fn pod() -> Value {
    json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {"name": "web", "namespace": "shop"},
        "spec": {
            "containers": [{"name": "app", "image": "app:1",
                "volumeMounts": [{"name": "data", "mountPath": "/data"}]}],
            "volumes": [{"name": "data", "emptyDir": {}}],
        },
    })
}

fn deployment() -> Value {
    json!({
        "apiVersion": "apps/v1", "kind": "Deployment",
        "metadata": {"name": "web", "namespace": "shop"},
        "spec": {
            "selector": {"matchLabels": {"app": "web"}},
            "template": {
                "metadata": {"labels": {"app": "web"}},
                "spec": {"containers": [{"name": "app", "image": "app:1"}]},
            },
        },
    })
}

fn service() -> Value {
    json!({
        "apiVersion": "v1", "kind": "Service",
        "metadata": {"name": "web", "namespace": "shop"},
        "spec": {"selector": {"app": "web"}, "ports": [{"port": 80, "targetPort": "http"}]},
    })
}

fn complete(kind: &Kind, mut object: Value) -> Value {
    kind.complete(&mut object);
    object
}

/// What is said about an object that is like `base`, but for one value.
fn told(kind: &Kind, base: &Value, pointer: &str, value: Value) -> Vec<String> {
    let mut object = base.clone();
    let (parent, field) = pointer.rsplit_once('/').unwrap();
    let parent = object.pointer_mut(parent).unwrap();
    match (parent, value) {
        (Value::Object(map), Value::Null) => {
            map.remove(field);
        }
        (Value::Array(items), value) => items[field.parse::<usize>().unwrap()] = value,
        (parent, value) => parent[field] = value,
    }
    let object = complete(kind, object);
    texts(kind.validate_all(&object, None))
}

fn texts(causes: Vec<StatusCause>) -> Vec<String> {
    causes.into_iter().map(|c| format!("{}: {}", c.field, c.message)).collect()
}

#[test]
fn good_objects_are_accepted() {
    for (kind, object) in [(&POD, pod()), (&DEPLOYMENT, deployment()), (&SERVICE, service())] {
        let object = complete(kind, object);
        assert_eq!(kind.validate_all(&object, None), []);
        assert_eq!(kind.validate_all(&object, Some(&object)), []);
        assert_eq!(complete(kind, object.clone()), object, "completing twice changes nothing");
    }
}

#[test]
fn what_is_wrong_with_pods() {
    let label = names::dns_label("Web_1").remove(0);
    let subdomain = names::dns_subdomain("Web_1").remove(0);
    let cases = [
        ("/metadata/name", json!("Web_1"), format!("metadata.name: Invalid value: \"Web_1\": {subdomain}")),
        ("/spec/containers", json!([]), "spec.containers: Required value".into()),
        ("/spec/containers/0/image", Value::Null, "spec.containers[0].image: Required value".into()),
        (
            "/spec/containers/0/name",
            json!("Web_1"),
            format!("spec.containers[0].name: Invalid value: \"Web_1\": {label}"),
        ),
        (
            "/spec/containers/0/volumeMounts/0/name",
            json!("nowhere"),
            "spec.containers[0].volumeMounts[0].name: Not found: \"nowhere\"".into(),
        ),
        (
            "/spec/restartPolicy",
            json!("Sometimes"),
            "spec.restartPolicy: Unsupported value: \"Sometimes\": supported values: \"Always\", \"OnFailure\", \"Never\"".into(),
        ),
        (
            "/spec/containers/0/imagePullPolicy",
            json!("never"),
            "spec.containers[0].imagePullPolicy: Unsupported value: \"never\": supported values: \"Always\", \"IfNotPresent\", \"Never\"".into(),
        ),
        (
            "/spec/containers/0/ports",
            json!([{"containerPort": 70000}]),
            "spec.containers[0].ports[0].containerPort: Invalid value: 70000: must be between 1 and 65535, inclusive".into(),
        ),
        (
            "/spec/containers/0/resources",
            json!({"requests": {"memory": "2Gi"}, "limits": {"memory": "1Gi"}}),
            "spec.containers[0].resources.requests: Invalid value: \"2Gi\": must be less than or equal to memory limit of 1Gi".into(),
        ),
        (
            "/spec/containers/0/env",
            json!([{"name": "A=B"}]),
            "spec.containers[0].env[0].name: Invalid value: \"A=B\": a valid environment variable name must consist only of printable ASCII characters other than '='".into(),
        ),
        (
            "/spec/containers/0/livenessProbe",
            json!({"periodSeconds": 5}),
            "spec.containers[0].livenessProbe: Required value: must specify a handler type".into(),
        ),
        (
            "/spec/volumes/0",
            json!({"name": "data", "emptyDir": {}, "hostPath": {"path": "/x"}}),
            "spec.volumes[0].hostPath: Forbidden: may not specify more than 1 volume type".into(),
        ),
        (
            "/metadata/labels",
            json!({"a b": "c"}),
            format!("metadata.labels: Invalid value: \"a b\": {}", names::qualified("a b").remove(0)),
        ),
        (
            "/spec/tolerations",
            json!([{"key": "a", "operator": "Exists", "value": "b"}]),
            "spec.tolerations[0].operator: Invalid value: \"b\": value must be empty when `operator` is 'Exists'".into(),
        ),
    ];
    for (pointer, value, want) in cases {
        let told = told(&POD, &pod(), pointer, value);
        assert_eq!(told.first(), Some(&want), "{pointer}: {told:#?}");
    }
    let twice = json!([{"name": "a", "image": "x"}, {"name": "a", "image": "y"}]);
    assert_eq!(
        told(&POD, &pod(), "/spec/containers", twice),
        ["spec.containers[1].name: Duplicate value: \"a\""]
    );
}

#[test]
fn what_is_wrong_with_workloads() {
    let cases = [
        ("/spec/selector", Value::Null, "spec.selector: Required value"),
        (
            "/spec/template/metadata/labels",
            json!({"app": "api"}),
            "spec.template.metadata.labels: Invalid value: {\"app\":\"api\"}: `selector` does not match template `labels`",
        ),
        (
            "/spec/replicas",
            json!(-1),
            "spec.replicas: Invalid value: -1: must be greater than or equal to 0",
        ),
        (
            "/spec/template/spec/restartPolicy",
            json!("Never"),
            "spec.template.spec.restartPolicy: Unsupported value: \"Never\": supported values: \"Always\"",
        ),
        (
            "/spec/strategy",
            json!({"type": "Recreate", "rollingUpdate": {"maxSurge": 1}}),
            "spec.strategy.rollingUpdate: Forbidden: may not be specified when strategy `type` is 'Recreate'",
        ),
        (
            "/spec/strategy",
            json!({"rollingUpdate": {"maxSurge": 0, "maxUnavailable": 0}}),
            "spec.strategy.rollingUpdate.maxUnavailable: Invalid value: 0: may not be 0 when `maxSurge` is 0",
        ),
        (
            "/spec/template/spec/containers/0/image",
            Value::Null,
            "spec.template.spec.containers[0].image: Required value",
        ),
    ];
    for (pointer, value, want) in cases {
        let told = told(&DEPLOYMENT, &deployment(), pointer, value);
        assert_eq!(told.first().map(String::as_str), Some(want), "{pointer}: {told:#?}");
    }
}

#[test]
fn what_is_wrong_with_services() {
    let cases = [
        ("/spec/ports", Value::Null, "spec.ports: Required value"),
        (
            "/spec/ports/0/port",
            json!(0),
            "spec.ports[0].port: Invalid value: 0: must be between 1 and 65535, inclusive",
        ),
        ("/spec/ports", json!([{"port": 1}, {"port": 2}]), "spec.ports[0].name: Required value"),
        (
            "/spec/type",
            json!("Nodeport"),
            "spec.type: Unsupported value: \"Nodeport\": supported values: \"ClusterIP\", \"ExternalName\", \"LoadBalancer\", \"NodePort\"",
        ),
        (
            "/spec/ports/0/nodePort",
            json!(30000),
            "spec.ports[0].nodePort: Forbidden: may not be used when `type` is 'ClusterIP'",
        ),
        ("/spec/type", json!("ExternalName"), "spec.externalName: Required value"),
    ];
    for (pointer, value, want) in cases {
        let told = told(&SERVICE, &service(), pointer, value);
        assert_eq!(told.first().map(String::as_str), Some(want), "{pointer}: {told:#?}");
    }
}

#[test]
fn what_may_not_change() {
    let old = complete(&POD, pod());
    let change = |pointer: &str, value: Value| {
        let mut new = old.clone();
        let (parent, field) = pointer.rsplit_once('/').unwrap();
        new.pointer_mut(parent).unwrap()[field] = value;
        texts(POD.validate_all(&complete(&POD, new), Some(&old)))
    };
    assert_eq!(change("/spec/containers/0/image", json!("app:2")), [""; 0]);
    assert_eq!(change("/metadata/labels", json!({"a": "b"})), [""; 0]);
    assert_eq!(change("/spec/tolerations", json!([{"key": "a", "operator": "Exists"}])), [""; 0]);
    let told = change("/spec/nodeName", json!("n1"));
    assert!(
        told[0].starts_with("spec: Forbidden: pod updates may not change fields other than `spec.containers[*].image`"),
        "{told:?}"
    );
    assert!(told[0].contains("spec.nodeName: null -> \"n1\""), "{told:?}");
    assert_eq!(
        change("/spec/containers", json!([])).last().unwrap(),
        "spec.containers: Forbidden: pod updates may not add or remove containers"
    );

    let old = complete(&DEPLOYMENT, deployment());
    let mut new = old.clone();
    new["spec"]["selector"] = json!({"matchLabels": {"app": "web", "v": "2"}});
    new["spec"]["template"]["metadata"]["labels"] = json!({"app": "web", "v": "2"});
    assert_eq!(
        texts(DEPLOYMENT.validate_all(&new, Some(&old))),
        [
            "spec.selector: Invalid value: {\"matchLabels\":{\"app\":\"web\",\"v\":\"2\"}}: field is immutable"
        ]
    );

    let map = |data: &str| {
        json!({"apiVersion": "v1", "kind": "ConfigMap",
               "metadata": {"name": "c", "namespace": "shop"},
               "immutable": true, "data": {"a": data}})
    };
    assert_eq!(
        texts(CONFIG_MAP.validate_all(&map("2"), Some(&map("1")))),
        ["data: Forbidden: field is immutable when `immutable` is set"]
    );
}

#[test]
fn refusals_read_like_upstreams() {
    let mut object = deployment();
    object["spec"]["replicas"] = json!(-1);
    let refusal = DEPLOYMENT.check(&complete(&DEPLOYMENT, object), None).unwrap_err();
    assert_eq!(
        refusal.message,
        "Deployment.apps \"web\" is invalid: spec.replicas: Invalid value: -1: must be greater than or equal to 0"
    );
}

#[test]
fn secrets_are_completed() {
    let secret = complete(
        &SECRET,
        json!({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "s", "namespace": "n"},
               "data": {"a": "MQ=="}, "stringData": {"b": "2"}}),
    );
    assert_eq!(secret["data"], json!({"a": "MQ==", "b": "Mg=="}));
    assert_eq!((secret.get("stringData"), &secret["type"]), (None, &json!("Opaque")));
    assert_eq!(SECRET.validate_all(&secret, None), []);
    let mut bad = secret.clone();
    bad["type"] = json!("kubernetes.io/tls");
    assert_eq!(
        texts(SECRET.validate_all(&bad, None)),
        ["data[tls.crt]: Required value", "data[tls.key]: Required value"]
    );
}

#[test]
fn services_and_namespaces_are_completed() {
    let service = complete(&SERVICE, service());
    assert_eq!(
        service["spec"],
        json!({
            "type": "ClusterIP", "sessionAffinity": "None", "internalTrafficPolicy": "Cluster",
            "selector": {"app": "web"},
            "ports": [{"port": 80, "protocol": "TCP", "targetPort": "http"}],
        })
    );
    let namespace = complete(
        &NAMESPACE,
        json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "shop"}}),
    );
    assert_eq!(namespace["metadata"]["labels"], json!({"kubernetes.io/metadata.name": "shop"}));
    assert_eq!(namespace["spec"], json!({"finalizers": ["kubernetes"]}));
}

#[test]
fn clients_cannot_set_what_is_not_theirs() {
    let mut new = deployment();
    new["status"] = json!({"replicas": 7});
    new["metadata"]["generation"] = json!(9);
    DEPLOYMENT.prepare_create(&mut new);
    assert_eq!((&new["status"], &new["metadata"]["generation"]), (&json!({}), &json!(1)));

    let old = complete(&DEPLOYMENT, new);
    let mut same = old.clone();
    same["metadata"]["annotations"] = json!({"a": "b"});
    same["status"] = json!({"replicas": 7});
    DEPLOYMENT.prepare_update(&mut same, &old);
    assert_eq!(same["metadata"]["generation"], 1);
    assert_eq!(same["status"], json!({}));
    let mut scaled = old.clone();
    scaled["spec"]["replicas"] = json!(3);
    DEPLOYMENT.prepare_update(&mut scaled, &old);
    assert_eq!(scaled["metadata"]["generation"], 2);

    let mut status = old.clone();
    status["spec"]["replicas"] = json!(5);
    status["metadata"]["labels"] = json!({"x": "y"});
    status["status"] = json!({"replicas": 2});
    DEPLOYMENT.prepare_status_update(&mut status, &old);
    let mut want = old.clone();
    want["status"] = json!({"replicas": 2});
    assert_eq!(status, want);

    let mut pod = pod();
    POD.prepare_create(&mut pod);
    assert_eq!(pod["status"], json!({"phase": "Pending", "qosClass": "BestEffort"}));
    assert_eq!(POD.grace_seconds(&pod), 30);
}

#[test]
fn where_a_pod_may_go_has_rules() {
    let term = json!({"labelSelector": {"matchExpressions": [{"key": "a", "operator": "Gt"}]}});
    let required = "requiredDuringSchedulingIgnoredDuringExecution";
    let preferred = "preferredDuringSchedulingIgnoredDuringExecution";
    let rule = |operator: &str, values: Value| {
        let rule = json!({"key": "disk", "operator": operator, "values": values});
        json!({required: {"nodeSelectorTerms": [{"matchExpressions": [rule]}]}})
    };
    let spread = json!({"maxSkew": 1, "topologyKey": "zone", "whenUnsatisfiable": "ScheduleAnyway",
        "minDomains": 2, "nodeTaintsPolicy": "Maybe"});
    let cases = [
        (
            json!({"podAntiAffinity": {required: [term]}}),
            json!([]),
            vec![
                (
                    "podAntiAffinity.required...[0].labelSelector.matchExpressions[0].operator",
                    "Invalid",
                ),
                ("podAntiAffinity.required...[0].topologyKey", "Required"),
            ],
        ),
        (
            json!({"podAffinity": {preferred: [{"weight": 101, "podAffinityTerm": {"topologyKey": "a b"}}]}}),
            json!([]),
            vec![
                ("podAffinity.preferred...[0].weight", "Invalid"),
                ("podAffinity.preferred...[0].podAffinityTerm.topologyKey", "Invalid"),
            ],
        ),
        (
            json!({"nodeAffinity": {required: {"nodeSelectorTerms": []}}}),
            json!([]),
            vec![("nodeAffinity.required....nodeSelectorTerms", "Required")],
        ),
        (
            json!({"nodeAffinity": rule("Foo", json!([]))}),
            json!([]),
            vec![(
                "nodeAffinity.required....nodeSelectorTerms[0].matchExpressions[0].operator",
                "Invalid",
            )],
        ),
        (
            json!({"nodeAffinity": rule("In", json!([]))}),
            json!([]),
            vec![(
                "nodeAffinity.required....nodeSelectorTerms[0].matchExpressions[0].values",
                "Required",
            )],
        ),
        (json!({"nodeAffinity": rule("Gt", json!(["1"]))}), json!([]), vec![]),
        (
            json!({}),
            json!([spread]),
            vec![
                ("topologySpreadConstraints[0].minDomains", "Invalid"),
                ("topologySpreadConstraints[0].nodeTaintsPolicy", "NotSupported"),
            ],
        ),
    ];
    for (affinity, constraints, wanted) in cases {
        let mut pod = pod();
        pod["spec"]["affinity"] = affinity;
        pod["spec"]["topologySpreadConstraints"] = constraints;
        let pod = complete(&POD, pod);
        let causes = POD.validate_all(&pod, None);
        let told: Vec<(String, &str)> = causes
            .iter()
            .map(|cause| {
                let field =
                    cause.field.replace(required, "required...").replace(preferred, "preferred...");
                let field = field.trim_start_matches("spec.").trim_start_matches("affinity.");
                (field.to_owned(), cause.reason.trim_start_matches("FieldValue"))
            })
            .collect();
        let wanted: Vec<(String, &str)> =
            wanted.into_iter().map(|(field, reason)| (field.to_owned(), reason)).collect();
        assert_eq!(told, wanted);
    }
}

#[test]
fn a_container_says_nothing_that_nobody_understands() {
    let cases = [
        ("image", json!(" busybox"), "image"),
        (
            "resizePolicy",
            json!([{"resourceName": "disk", "restartPolicy": "NotRequired"}]),
            "resizePolicy[0].resourceName",
        ),
        (
            "env",
            json!([{"name": "A", "valueFrom": {"resourceFieldRef": {"resource": "limits.gold"}}}]),
            "env[0].valueFrom.resourceFieldRef.resource",
        ),
        (
            "volumeMounts",
            json!([{"name": "v", "mountPath": "/v", "mountPropagation": "Both"}]),
            "volumeMounts[0].mountPropagation",
        ),
        ("securityContext", json!({"procMount": "Half"}), "securityContext.procMount"),
        ("securityContext", json!({"procMount": "Unmasked"}), "securityContext.procMount"),
        (
            "securityContext",
            json!({"capabilities": {"add": ["CAP_SYS_ADMIN"]}, "allowPrivilegeEscalation": false}),
            "securityContext",
        ),
        (
            "resizePolicy",
            json!([{"resourceName": "cpu", "restartPolicy": "NotRequired"},
                   {"resourceName": "cpu", "restartPolicy": "NotRequired"}]),
            "resizePolicy[1]",
        ),
        (
            "volumeMounts",
            json!([{"name": "v", "mountPath": "/v", "mountPropagation": "Bidirectional"}]),
            "volumeMounts[0].mountPropagation",
        ),
        (
            "volumeMounts",
            json!([{"name": "v", "mountPath": "/v", "recursiveReadOnly": "Enabled"}]),
            "volumeMounts[0].recursiveReadOnly",
        ),
        (
            "env",
            json!([{"name": "A", "valueFrom": {"fieldRef": {"fieldPath": "metadata.labels['a b']"}}}]),
            "env[0].valueFrom.fieldRef",
        ),
        (
            "env",
            json!([{"name": "A", "valueFrom": {"resourceFieldRef":
                {"resource": "limits.cpu", "divisor": "3"}}}]),
            "env[0].valueFrom.resourceFieldRef.divisor",
        ),
        (
            "livenessProbe",
            json!({"httpGet": {"port": 80, "httpHeaders": [{"name": "a b", "value": "c"}]}}),
            "livenessProbe.httpGet.httpHeaders",
        ),
        ("lifecycle", json!({"preStop": {"sleep": {"seconds": 31}}}), "lifecycle.preStop.sleep"),
        ("resources", json!({"claims": [{"name": "gpu"}]}), "resources.claims[0]"),
        (
            "volumeDevices",
            json!([{"name": "nowhere", "devicePath": "/dev/x"}]),
            "volumeDevices[0].name",
        ),
        (
            "securityContext",
            json!({"seccompProfile": {"type": "Loose"}}),
            "securityContext.seccompProfile.type",
        ),
        (
            "securityContext",
            json!({"seccompProfile": {"type": "Localhost"}}),
            "securityContext.seccompProfile.localhostProfile",
        ),
    ];
    for (field, value, wanted) in cases {
        let mut pod = pod();
        let volume = json!({"name": "v", "emptyDir": {}});
        pod["spec"]["volumes"].as_array_mut().unwrap().push(volume);
        pod["spec"]["containers"][0][field] = value;
        let causes = POD.validate_all(&complete(&POD, pod), None);
        let told: Vec<&str> = causes.iter().map(|cause| cause.field.as_str()).collect();
        assert_eq!(told, [format!("spec.containers[0].{wanted}")]);
    }
}

/// The fields at fault of an object that is like `base`, but for one value.
fn at_fault(kind: &Kind, base: &Value, pointer: &str, value: Value) -> Vec<String> {
    let mut told = told(kind, base, pointer, value);
    for line in &mut told {
        line.truncate(line.find(": ").unwrap());
    }
    told
}

#[test]
fn a_pod_says_nothing_that_nobody_could_carry_out() {
    let volume = |source: Value| {
        let mut volume = json!({"name": "data"});
        volume.as_object_mut().unwrap().extend(source.as_object().unwrap().clone());
        json!([volume])
    };
    let down = |item: Value| volume(json!({"downwardAPI": {"items": [item]}}));
    let cases = [
        (
            "/spec/dnsConfig",
            json!({"nameservers": ["1.1.1.1", "1.1.1.2", "1.1.1.3", "1.1.1.4"]}),
            "spec.dnsConfig.nameservers",
        ),
        (
            "/spec/dnsConfig",
            json!({"searches": ["a_b.", ".", "x".repeat(300)]}),
            "spec.dnsConfig.searches[2]",
        ),
        ("/spec/dnsConfig", json!({"options": [{"value": "2"}]}), "spec.dnsConfig.options[0]"),
        ("/spec/dnsPolicy", json!("None"), "spec.dnsConfig"),
        ("/spec/os", json!({"name": "plan9"}), "spec.os.name"),
        ("/spec/preemptionPolicy", json!("Sometimes"), "spec.preemptionPolicy"),
        ("/spec/schedulingGates", json!([{"name": "a"}, {"name": "a"}]), "spec.schedulingGates[1]"),
        (
            "/spec/securityContext",
            json!({"supplementalGroupsPolicy": "Some"}),
            "spec.securityContext.supplementalGroupsPolicy",
        ),
        (
            "/spec/securityContext",
            json!({"fsGroupChangePolicy": "Never"}),
            "spec.securityContext.fsGroupChangePolicy",
        ),
        (
            "/spec/securityContext",
            json!({"seLinuxChangePolicy": "Never"}),
            "spec.securityContext.seLinuxChangePolicy",
        ),
        (
            "/spec/securityContext",
            json!({"appArmorProfile": {"type": "Half"}}),
            "spec.securityContext.appArmorProfile.type",
        ),
        (
            "/spec/securityContext",
            json!({"sysctls": [{"name": "a b", "value": "1"}]}),
            "spec.securityContext.sysctls[0].name",
        ),
        (
            "/spec/securityContext",
            json!({"sysctls": [{"name": "a.b", "value": "1"}, {"name": "a.b", "value": "2"}]}),
            "spec.securityContext.sysctls[1].name",
        ),
        ("/spec/volumes", down(json!({"path": "x"})), "spec.volumes[0].downwardAPI.items[0]"),
        (
            "/spec/volumes",
            down(json!({"path": "x", "fieldRef": {"fieldPath": "status.podIP"}})),
            "spec.volumes[0].downwardAPI.items[0].fieldRef.fieldPath",
        ),
        (
            "/spec/volumes",
            down(json!({"path": "x", "resourceFieldRef": {"resource": "limits.cpu"}})),
            "spec.volumes[0].downwardAPI.items[0].resourceFieldRef.containerName",
        ),
        (
            "/spec/volumes",
            volume(json!({"configMap": {"name": "c", "items": [{"key": "k", "path": "..data"}]}})),
            "spec.volumes[0].configMap.items[0].path",
        ),
        (
            "/spec/volumes",
            volume(
                json!({"projected": {"sources": [{"serviceAccountToken": {"path": "t", "expirationSeconds": 5}}]}}),
            ),
            "spec.volumes[0].projected.sources[0].serviceAccountToken.expirationSeconds",
        ),
        (
            "/spec/volumes",
            volume(json!({"projected": {"sources": [
            {"configMap": {"name": "a", "items": [{"key": "k", "path": "p"}]}},
            {"secret": {"name": "b", "items": [{"key": "k", "path": "p"}]}}]}})),
            "spec.volumes[0].projected",
        ),
        (
            "/spec/volumes",
            volume(json!({"image": {"reference": ""}})),
            "spec.volumes[0].image.reference",
        ),
    ];
    for (pointer, value, wanted) in cases {
        let told = at_fault(&POD, &pod(), pointer, value.clone());
        assert_eq!(told.first().map(String::as_str), Some(wanted), "{pointer}: {value} {told:?}");
    }
    let good = json!({"nameservers": ["1.1.1.1"], "searches": ["a_b.", "."], "options": [{"name": "edns0"}]});
    assert_eq!(at_fault(&POD, &pod(), "/spec/dnsConfig", good), [""; 0]);
    assert_eq!(
        at_fault(&POD, &pod(), "/spec/imagePullSecrets", json!([{}])),
        [""; 0],
        "as upstream"
    );
}

#[test]
fn a_service_says_nothing_that_nobody_could_carry_out() {
    for (field, value, wanted) in [
        ("externalIPs", json!(["127.0.0.1"]), "spec.externalIPs[0]"),
        ("healthCheckNodePort", json!(30_001), "spec.healthCheckNodePort"),
        ("ipFamilies", json!(["IPv4", "IPv4"]), "spec.ipFamilies[1]"),
        ("loadBalancerClass", json!("a.b/c"), "spec.loadBalancerClass"),
        ("loadBalancerSourceRanges", json!(["1.2.3.0/24"]), "spec.loadBalancerSourceRanges"),
        ("trafficDistribution", json!("Nearby"), "spec.trafficDistribution"),
        ("ports", json!([{"port": 80, "appProtocol": "a b"}]), "spec.ports[0].appProtocol"),
    ] {
        let told = at_fault(&SERVICE, &service(), &format!("/spec/{field}"), value);
        assert_eq!(told, [wanted]);
    }
    let mut sticky = service();
    sticky["spec"]["sessionAffinity"] = json!("ClientIP");
    let never = json!({"clientIP": {"timeoutSeconds": 0}});
    assert_eq!(
        at_fault(&SERVICE, &sticky, "/spec/sessionAffinityConfig", never),
        ["spec.sessionAffinityConfig.clientIP.timeoutSeconds"]
    );
}

#[test]
fn endpoints_are_where_traffic_can_go() {
    let endpoints = json!({"metadata": {"name": "a", "namespace": "b"}, "subsets": []});
    for (subset, wanted) in [
        (json!({"addresses": [{"ip": "127.0.0.1"}]}), "subsets[0].addresses[0].ip"),
        (
            json!({"addresses": [{"ip": "1.2.3.4"}], "ports": [{"port": 1}, {"port": 2, "name": "b"}]}),
            "subsets[0].ports[0].name",
        ),
        (
            json!({"addresses": [{"ip": "1.2.3.4"}], "ports": [{"port": 1, "name": "A"}]}),
            "subsets[0].ports[0].name",
        ),
    ] {
        assert_eq!(at_fault(&ENDPOINTS, &endpoints, "/subsets", json!([subset])), [wanted]);
    }
    let own = json!({"metadata": {"name": "kubernetes", "namespace": "default"}});
    let loopback = json!([{"addresses": [{"ip": "127.0.0.1"}]}]);
    assert_eq!(at_fault(&ENDPOINTS, &own, "/subsets", loopback), [""; 0], "the API may be there");
    let slice = json!({"metadata": {"name": "a", "namespace": "b"}, "addressType": "IPv4"});
    for (endpoint, wanted) in [
        (json!({"addresses": ["169.254.1.1"]}), "endpoints[0].addresses[0]"),
        (json!({"addresses": ["1.2.3.4"], "hostname": "A_"}), "endpoints[0].hostname"),
        (json!({"addresses": ["1.2.3.4"], "nodeName": "a b"}), "endpoints[0].nodeName"),
    ] {
        assert_eq!(at_fault(&ENDPOINT_SLICE, &slice, "/endpoints", json!([endpoint])), [wanted]);
    }
}

#[test]
fn what_is_to_log_in_to_a_registry_is_json() {
    let secret = json!({"metadata": {"name": "a", "namespace": "b"}, "type": "kubernetes.io/dockerconfigjson"});
    let data = |text: &str| json!({".dockerconfigjson": text});
    assert_eq!(at_fault(&SECRET, &secret, "/data", data("e30=")), [""; 0]);
    assert_eq!(at_fault(&SECRET, &secret, "/data", data("YQ==")), ["data[.dockerconfigjson]"]);
}

#[test]
fn a_gated_pod_says_so_from_the_first_moment() {
    let mut pod = pod();
    pod["spec"]["schedulingGates"] = json!([{"name": "quota.example/checked"}]);
    POD.prepare_create(&mut pod);
    let scheduled = &pod["status"]["conditions"][0];
    assert_eq!(scheduled["reason"], "SchedulingGated");
    let now = crate::time::parse("2026-01-01T01:00:00Z").unwrap();
    assert!(POD.columns.iter().any(|c| (c.cell)(&pod, now) == "SchedulingGated"));
}

#[test]
fn tables_show_what_kubectl_shows() {
    let now = crate::time::parse("2026-01-01T01:00:00Z").unwrap();
    let meta = json!({"name": "x", "namespace": "n", "creationTimestamp": "2026-01-01T00:00:00Z"});
    let row = |kind: &Kind, mut object: Value| -> Vec<Value> {
        object["metadata"] = meta.clone();
        kind.columns.iter().map(|c| (c.cell)(&object, now)).collect()
    };
    assert_eq!(
        row(&DEPLOYMENT, {
            let mut d = complete(&DEPLOYMENT, deployment());
            d["status"] = json!({"readyReplicas": 1, "updatedReplicas": 1, "availableReplicas": 0});
            d
        }),
        [
            json!("x"),
            json!("1/1"),
            json!(1),
            json!(0),
            json!("60m"),
            json!("app"),
            json!("app:1"),
            json!("app=web")
        ]
    );
    assert_eq!(
        row(
            &SERVICE,
            json!({"spec": {
                "type": "NodePort", "clusterIPs": ["10.96.0.1"], "selector": {"app": "web", "a": "b"},
                "ports": [{"port": 80, "nodePort": 30080, "protocol": "TCP"}, {"port": 53, "protocol": "UDP"}],
            }})
        ),
        [
            json!("x"),
            json!("NodePort"),
            json!("10.96.0.1"),
            json!("<none>"),
            json!("80:30080/TCP,53/UDP"),
            json!("60m"),
            json!("a=b,app=web"),
        ]
    );
    assert_eq!(
        row(
            &NODE,
            json!({
                "spec": {"unschedulable": true},
                "status": {
                    "conditions": [{"type": "Ready", "status": "True"}],
                    "addresses": [{"type": "InternalIP", "address": "10.0.0.1"}],
                    "nodeInfo": {"kubeletVersion": "v1.37.1", "kernelVersion": "6.18", "architecture": "amd64",
                                 "osImage": "Debian", "containerRuntimeVersion": "dhow://0.1.0"},
                },
            })
        ),
        [
            json!("x"),
            json!("Ready,SchedulingDisabled"),
            json!("<none>"),
            json!("60m"),
            json!("v1.37.1"),
            json!("10.0.0.1"),
            json!("<none>"),
            json!("Debian"),
            json!("6.18 (amd64)"),
            json!("dhow://0.1.0"),
        ]
    );
    assert_eq!(
        row(
            &ENDPOINT_SLICE,
            json!({
                "addressType": "IPv4", "ports": [{"port": 80}],
                "endpoints": [{"addresses": ["1.1.1.1"]}, {"addresses": ["1.1.1.2"]},
                              {"addresses": ["1.1.1.3"]}, {"addresses": ["1.1.1.4"]}],
            })
        ),
        [
            json!("x"),
            json!("IPv4"),
            json!("80"),
            json!("1.1.1.1,1.1.1.2,1.1.1.3 + 1 more..."),
            json!("60m"),
        ]
    );
    let event = json!({
        "involvedObject": {"kind": "Pod", "name": "web"}, "type": "Normal", "reason": "Pulled",
        "message": "Image is there\n", "count": 3, "source": {"component": "kubelet", "host": "n1"},
        "firstTimestamp": "2026-01-01T00:50:00Z", "lastTimestamp": "2026-01-01T00:59:50Z",
    });
    let want = [
        json!("10s"),
        json!("Normal"),
        json!("Pulled"),
        json!("pod/web"),
        json!(""),
        json!("kubelet, n1"),
        json!("Image is there"),
        json!("10m"),
        json!(3),
        json!("x"),
    ];
    assert_eq!(row(&EVENT, event.clone()), want);
    let mut new_form = event;
    EVENTS_EVENT.from_storage.unwrap()(&mut new_form);
    assert_eq!(new_form["regarding"]["name"], "web");
    assert_eq!(row(&EVENTS_EVENT, new_form), want);
}

#[test]
fn authors_are_warned_of_what_is_hardly_meant() {
    let mut pod = pod();
    let spec = json!({
        "nodeSelector": {"beta.kubernetes.io/os": "linux"},
        "imagePullSecrets": [{"name": "a"}, {"name": "a"}, {}],
        "terminationGracePeriodSeconds": -1,
        "containers": [{
            "name": "app", "image": "app:1",
            "resources": {"limits": {"memory": "1500m"}, "requests": {"memory": "1k"}},
            "env": [
                {"name": "PATHS", "value": "/a"}, {"name": "PATHS", "value": "$(PATHS):/b"},
                {"name": "A", "value": "1"}, {"name": "A", "value": "2"},
            ],
            "ports": [
                {"name": "one", "containerPort": 80, "protocol": "TCP"},
                {"name": "two", "containerPort": 80, "protocol": "TCP"},
                {"name": "udp", "containerPort": 80, "protocol": "UDP"},
            ],
        }],
    });
    pod["spec"] = spec.clone();
    let told = [
        "spec.nodeSelector[beta.kubernetes.io/os]: deprecated since v1.14; use \"kubernetes.io/os\" instead",
        "spec.imagePullSecrets[1].name: duplicate name \"a\"",
        "spec.imagePullSecrets[2].name: invalid empty name \"\"",
        "spec.containers[0].resources.limits[memory]: fractional byte value \"1500m\" is invalid, must be an integer",
        "spec.containers[0].env[3]: hides previous definition of \"A\", which may be dropped when using apply",
        "spec.containers[0].ports[1]: duplicate port definition with spec.containers[0].ports[0]",
        "spec.terminationGracePeriodSeconds: must be >= 0; negative values are invalid and will be treated as 1",
    ];
    assert_eq!((POD.warnings)(&pod, None), told);
    assert!((POD.warnings)(&pod, Some(&pod)).is_empty());

    let mut deployment = deployment();
    assert!((DEPLOYMENT.warnings)(&deployment, None).is_empty());
    let old = deployment.clone();
    deployment["spec"]["template"]["spec"] = spec;
    let below: Vec<String> =
        told.iter().map(|told| told.replace("spec.", "spec.template.spec.")).collect();
    assert_eq!((DEPLOYMENT.warnings)(&deployment, Some(&old)), below);
    assert!((DEPLOYMENT.warnings)(&deployment, Some(&deployment)).is_empty());
}
