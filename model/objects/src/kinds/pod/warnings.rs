//! What a pod's author is warned of: what is taken and yet hardly what was meant. Follows
//! `pkg/api/pod/warnings.go` of Kubernetes, for the fields that are served.

use super::super::column::{items, number, text};
use super::placement::{PREFERRED, REQUIRED};
use crate::quantity::Quantity;
use serde_json::Value;
use std::collections::BTreeSet;

/// Labels of nodes that have other names today, and since when.
const OLD_LABELS: [(&str, &str, &str); 5] = [
    ("beta.kubernetes.io/arch", "v1.14", "kubernetes.io/arch"),
    ("beta.kubernetes.io/os", "v1.14", "kubernetes.io/os"),
    ("beta.kubernetes.io/instance-type", "v1.17", "node.kubernetes.io/instance-type"),
    ("failure-domain.beta.kubernetes.io/region", "v1.17", "topology.kubernetes.io/region"),
    ("failure-domain.beta.kubernetes.io/zone", "v1.17", "topology.kubernetes.io/zone"),
];

/// Annotations that became fields, and the last version that read them.
const OLD_ANNOTATIONS: [(&str, &str, &str); 3] = [
    ("scheduler.alpha.kubernetes.io/critical-pod", "v1.16", "priorityClassName"),
    ("security.alpha.kubernetes.io/sysctls", "v1.11", "sysctls"),
    ("security.alpha.kubernetes.io/unsafe-sysctls", "v1.11", "sysctls"),
];

/// Resources that are counted in whole bytes.
const BYTES: [&str; 2] = ["memory", "ephemeral-storage"];

/// Of a pod. Updates are not looked at: they are the machines' more than people's.
pub(super) fn pod(pod: &Value, old: Option<&Value>) -> Vec<String> {
    if old.is_some() { Vec::new() } else { Warnings::of("", pod) }
}

/// Of a template, when the object is new or its `spec` was changed.
pub(in super::super) fn template(object: &Value, old: Option<&Value>) -> Vec<String> {
    if old.is_some_and(|old| old["spec"] == object["spec"]) {
        return Vec::new();
    }
    Warnings::of("spec.template.", &object["spec"]["template"])
}

/// What was found so far.
#[derive(Default)]
struct Warnings(Vec<String>);

impl Warnings {
    /// Of what stands below `path`, which ends with a dot or is empty.
    fn of(path: &str, pod: &Value) -> Vec<String> {
        let mut this = Self::default();
        let spec = &pod["spec"];
        this.old_names(path, pod, spec);
        let at = format!("{path}spec");
        this.repeated(&format!("{at}.hostAliases"), items(spec, "/hostAliases"), "ip");
        this.repeated(&format!("{at}.imagePullSecrets"), items(spec, "/imagePullSecrets"), "name");
        for (i, secret) in items(spec, "/imagePullSecrets").iter().enumerate() {
            if text(secret, "/name").is_empty() {
                this.say(&format!("{at}.imagePullSecrets[{i}].name"), "invalid empty name \"\"");
            }
        }
        this.whole_bytes(&format!("{at}.overhead"), &spec["overhead"]);
        let mut ports = Vec::new();
        for list in ["initContainers", "containers", "ephemeralContainers"] {
            for (i, container) in items(spec, &format!("/{list}")).iter().enumerate() {
                let at = format!("{at}.{list}[{i}]");
                for kind in ["limits", "requests"] {
                    let resources = &container["resources"][kind];
                    this.whole_bytes(&format!("{at}.resources.{kind}"), resources);
                }
                this.environment(&format!("{at}.env"), items(container, "/env"));
                for (i, port) in items(container, "/ports").iter().enumerate() {
                    this.port(format!("{at}.ports[{i}]"), port, &mut ports);
                }
            }
        }
        if number(spec, "/terminationGracePeriodSeconds") < 0 {
            this.say(
                &format!("{at}.terminationGracePeriodSeconds"),
                "must be >= 0; negative values are invalid and will be treated as 1",
            );
        }
        this.0
    }

    fn say(&mut self, at: &str, what: &str) {
        self.0.push(format!("{at}: {what}"));
    }

    /// Labels and annotations that are known by other names today.
    fn old_names(&mut self, path: &str, pod: &Value, spec: &Value) {
        let at = format!("{path}spec");
        let old = |label: &str| {
            let (_, since, now) = OLD_LABELS.iter().find(|(old, ..)| *old == label)?;
            Some(format!("deprecated since {since}; use \"{now}\" instead"))
        };
        for label in spec["nodeSelector"].as_object().into_iter().flat_map(|labels| labels.keys()) {
            if let Some(what) = old(label) {
                self.say(&format!("{at}.nodeSelector[{label}]"), &what);
            }
        }
        let affinity = format!("{at}.affinity.nodeAffinity");
        let node = &spec["affinity"]["nodeAffinity"];
        let terms = items(&node[REQUIRED], "/nodeSelectorTerms").iter().enumerate();
        let terms = terms.map(|(i, t)| (format!("{REQUIRED}.nodeSelectorTerms[{i}]"), t));
        let wishes = items(node, &format!("/{PREFERRED}")).iter().enumerate();
        let wishes =
            wishes.map(|(i, w)| (format!("{PREFERRED}[{i}].preference"), &w["preference"]));
        for (term, rules) in terms.chain(wishes) {
            for (i, rule) in items(rules, "/matchExpressions").iter().enumerate() {
                let key = text(rule, "/key");
                if let Some(what) = old(key) {
                    let at = format!("{affinity}.{term}.matchExpressions[{i}].key");
                    self.say(&at, &format!("{key} is {what}"));
                }
            }
        }
        for (i, spread) in items(spec, "/topologySpreadConstraints").iter().enumerate() {
            let at = format!("{at}.topologySpreadConstraints[{i}]");
            let key = text(spread, "/topologyKey");
            if let Some(what) = old(key) {
                self.say(&format!("{at}.topologyKey"), &format!("{key} is {what}"));
            }
            if spread["labelSelector"].is_null() {
                let what = "a null labelSelector results in matching no pod";
                self.say(&format!("{at}.labelSelector"), what);
            }
        }
        for (annotation, since, field) in OLD_ANNOTATIONS {
            if pod["metadata"]["annotations"].get(annotation).is_some() {
                let what = format!("non-functional in {since}+; use the \"{field}\" field instead");
                self.say(&format!("{path}metadata.annotations[{annotation}]"), &what);
            }
        }
    }

    /// Items of a list that name the same.
    fn repeated(&mut self, at: &str, items: &[Value], field: &str) {
        let mut seen = BTreeSet::new();
        for (i, item) in items.iter().enumerate() {
            let name = item[field].as_str().unwrap_or_default();
            if !seen.insert(name) {
                self.say(&format!("{at}[{i}].{field}"), &format!("duplicate {field} \"{name}\""));
            }
        }
    }

    fn whole_bytes(&mut self, at: &str, resources: &Value) {
        for name in BYTES {
            let Some(value) = resources.get(name) else { continue };
            if Quantity::from_json(value).is_ok_and(|quantity| quantity.is_fractional()) {
                let text = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
                let what =
                    format!("fractional byte value \"{text}\" is invalid, must be an integer");
                self.say(&format!("{at}[{name}]"), &what);
            }
        }
    }

    /// Variables that replace one of the same name without building on it.
    fn environment(&mut self, at: &str, variables: &[Value]) {
        let mut seen = BTreeSet::new();
        for (i, variable) in variables.iter().enumerate() {
            let (name, value) = (text(variable, "/name"), text(variable, "/value"));
            let before = format!("$({name})");
            let builds_on_it = variable.get("valueFrom").is_none_or(Value::is_null)
                && value != before
                && value.contains(&before);
            if !seen.insert(name) && !builds_on_it {
                let what = format!(
                    "hides previous definition of \"{name}\", which may be dropped when using apply"
                );
                self.say(&format!("{at}[{i}]"), &what);
            }
        }
    }

    /// A port of a container beside those of all containers before.
    fn port<'a>(&mut self, at: String, port: &'a Value, others: &mut Vec<(String, &'a Value)>) {
        let same = |a: &Value, b: &Value, field: &str| text(a, field) == text(b, field);
        let on_host = |port: &Value| number(port, "/hostPort");
        for (place, other) in others.iter() {
            let number_of = |port: &Value| number(port, "/containerPort");
            if number_of(port) != number_of(other) || !same(port, other, "/protocol") {
                continue;
            }
            if on_host(port) == on_host(other) && same(port, other, "/hostIP") {
                self.say(&at, &format!("duplicate port definition with {place}"));
            } else if on_host(port) == 0 || on_host(other) == 0 {
                self.say(&at, &format!("overlapping port definition with {place}"));
            }
        }
        others.push((at, port));
    }
}
