//! Whether the machine takes a pod that is bound to it; asked before anything of the pod is begun.
//! Pure.
//!
//! The scheduler has asked the same, but a pod may name its machine itself, and the machine may have
//! changed since. Reasons and messages are upstream's (`pkg/kubelet/lifecycle/predicate.go`). Other
//! than upstream, a pod waits for others that are about to end: the scheduler may know of it first.

use super::observe::{Decision, Verdict};
use dhow_fit::{Misfit, Usage, named, offered, ports, selected, shortages, tolerates};
use dhow_reason::{Code, Reason};
use k8s_openapi::api::core::v1::{Node, Pod};

/// What the machine says to a pod.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Answer {
    /// It may begin.
    Admitted,
    /// It may begin when others have ended that are about to.
    Later,
    /// It has failed.
    Refused(Box<Refusal>),
}

/// Why the machine does not take a pod.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refusal {
    /// The word of event and status.
    pub word: String,
    /// For people.
    pub message: String,
    /// As data.
    pub reason: Reason,
}

impl Refusal {
    /// The pod's end.
    pub fn verdict(&self) -> Verdict {
        Verdict {
            decision: Decision::Refused,
            reason: self.word.clone().into(),
            message: format!("Pod was rejected: {}", self.message),
        }
    }
}

/// Asks for a pod, where all others take `used` of the machine, and those that stay `staying`.
pub fn ask(pod: &Pod, node: &Node, used: &Usage, staying: &Usage) -> Answer {
    if obstacle(pod, node, used).is_none() {
        return Answer::Admitted;
    }
    match obstacle(pod, node, staying) {
        None => Answer::Later,
        Some(misfit) => Answer::Refused(Box::new(refusal(pod, node, &misfit))),
    }
}

/// What is in the way first, in upstream's order.
fn obstacle(pod: &Pod, node: &Node, used: &Usage) -> Option<Misfit> {
    let (asked, offered) = (Usage::of(pod), offered(node));
    // What vendors name may be something of the whole platform, which no machine knows of.
    let unknown = |misfit: &Misfit| {
        matches!(misfit, Misfit::Insufficient { resource, .. }
            if is_vendors(resource) && !offered.contains_key(resource))
    };
    let short = shortages(&asked, used, &offered).into_iter().find(|misfit| !unknown(misfit));
    let checks = || {
        selected(pod, node)?;
        named(pod, node)?;
        ports(&asked, used)?;
        tolerates(pod, node, &["NoExecute"])
    };
    short.or_else(|| checks().err())
}

fn is_vendors(resource: &str) -> bool {
    resource.contains('/') && !resource.contains("kubernetes.io/")
}

fn refusal(pod: &Pod, node: &Node, misfit: &Misfit) -> Refusal {
    let (word, message) = match misfit {
        Misfit::Insufficient { resource, requested, used, capacity } => (
            format!("OutOf{resource}"),
            format!(
                "Node didn't have enough resource: {resource}, requested: {requested}, used: {used}, capacity: {capacity}"
            ),
        ),
        Misfit::Labels(..) => {
            predicate("NodeAffinity", "node(s) didn't match Pod's node affinity/selector")
        }
        Misfit::Elsewhere(_) => {
            predicate("NodeName", "node(s) didn't match the requested node name")
        }
        Misfit::Port(_) => {
            predicate("NodePorts", "node(s) didn't have free ports for the requested pod ports")
        }
        Misfit::Taint(_) => {
            predicate("TaintToleration", "node(s) had taints that the pod didn't tolerate")
        }
    };
    let name = |text: &Option<String>| text.clone().unwrap_or_default();
    let node = format!("node {}", name(&node.metadata.name));
    let meta = &pod.metadata;
    let pod = format!("pod {}/{}", name(&meta.namespace), name(&meta.name));
    let reason = Reason::new(Code::NotAdmitted, pod).because(misfit.reason(node));
    Refusal { word, message, reason }
}

fn predicate(name: &str, why: &str) -> (String, String) {
    (name.to_owned(), format!("Predicate {name} failed: {why}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn node() -> Node {
        serde_json::from_value(json!({
            "metadata": {"name": "n1", "labels": {"disk": "ssd"}},
            "spec": {"taints": [{"key": "storm", "effect": "NoExecute"},
                                {"key": "fog", "effect": "NoSchedule"}]},
            "status": {"allocatable": {"cpu": "2", "memory": "1Gi", "pods": "3",
                                       "example.com/sail": "1"}},
        }))
        .unwrap()
    }

    /// A pod that tolerates the storm.
    fn pod(spec: Value) -> Pod {
        let mut pod = json!({
            "metadata": {"namespace": "shop", "name": "web"},
            "spec": {"nodeName": "n1", "containers": [{"name": "c"}],
                     "tolerations": [{"key": "storm", "operator": "Exists"}]},
        });
        for (key, value) in spec.as_object().unwrap() {
            pod["spec"][key] = value.clone();
        }
        serde_json::from_value(pod).unwrap()
    }

    fn asks(requests: Value) -> Pod {
        pod(json!({"containers": [{"name": "c", "resources": {"requests": requests}}]}))
    }

    fn refused(pod: &Pod, used: &Usage) -> (String, String) {
        match ask(pod, &node(), used, used) {
            Answer::Refused(refusal) => (refusal.word, refusal.message),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_machine_takes_what_fits() {
        let nothing = Usage::default();
        let answer = ask(&asks(json!({"cpu": "2"})), &node(), &nothing, &nothing);
        assert_eq!(answer, Answer::Admitted, "a taint that only keeps pods from being placed");
    }

    #[test]
    fn each_refusal_has_upstreams_words() {
        let used = Usage::of(&asks(json!({"cpu": "500m"})));
        let short = |name: &str, numbers: &str| {
            let message = format!("Node didn't have enough resource: {name}, {numbers}");
            (format!("OutOf{name}"), message)
        };
        assert_eq!(
            refused(&asks(json!({"cpu": "4", "memory": "2Gi"})), &used),
            short("cpu", "requested: 4000, used: 500, capacity: 2000")
        );
        assert_eq!(
            refused(&asks(json!({"memory": "2Gi"})), &used),
            short("memory", "requested: 2147483648, used: 0, capacity: 1073741824")
        );
        assert_eq!(
            refused(&asks(json!({"ephemeral-storage": "1Ki"})), &used),
            short("ephemeral-storage", "requested: 1024, used: 0, capacity: 0")
        );
        let mut full = Usage::default();
        (0..3).for_each(|_| full.add(&used));
        assert_eq!(
            refused(&asks(json!({})), &full),
            short("pods", "requested: 1, used: 3, capacity: 3")
        );
        let elsewhere = pod(json!({"nodeSelector": {"disk": "hdd"}}));
        assert_eq!(
            refused(&elsewhere, &used).1,
            "Predicate NodeAffinity failed: node(s) didn't match Pod's node affinity/selector"
        );
        let port = pod(json!({"containers": [
            {"name": "c", "ports": [{"containerPort": 80, "hostPort": 80}]},
        ]}));
        assert_eq!(refused(&port, &Usage::of(&port)).0, "NodePorts");
        assert_eq!(refused(&pod(json!({"tolerations": []})), &used).0, "TaintToleration");
    }

    #[test]
    fn what_no_machine_knows_of_is_not_the_machines_to_count() {
        let nothing = Usage::default();
        let cluster_wide = asks(json!({"example.com/licence": "1"}));
        assert_eq!(ask(&cluster_wide, &node(), &nothing, &nothing), Answer::Admitted);
        assert_eq!(
            refused(&asks(json!({"example.com/sail": "2"})), &nothing).0,
            "OutOfexample.com/sail"
        );
        assert_eq!(
            refused(&asks(json!({"hugepages-2Mi": "2Mi"})), &nothing).0,
            "OutOfhugepages-2Mi"
        );
    }

    #[test]
    fn a_pod_waits_for_those_that_are_about_to_end() {
        let asking = asks(json!({"cpu": "2"}));
        let (used, nothing) = (Usage::of(&asking), Usage::default());
        assert_eq!(ask(&asking, &node(), &used, &nothing), Answer::Later);
        let large = asks(json!({"cpu": "3"}));
        assert!(matches!(ask(&large, &node(), &used, &nothing), Answer::Refused(_)));
    }

    #[test]
    fn the_reason_names_pod_and_machine() {
        let nothing = Usage::default();
        let Answer::Refused(refusal) = ask(&asks(json!({"cpu": "3"})), &node(), &nothing, &nothing)
        else {
            panic!()
        };
        assert_eq!(
            refusal.reason.to_string(),
            "NotAdmitted: pod shop/web; because InsufficientCpu: node n1: free 2000m, requested 3000m"
        );
        assert!(refusal.verdict().message.starts_with("Pod was rejected: Node didn't have"));
    }
}
