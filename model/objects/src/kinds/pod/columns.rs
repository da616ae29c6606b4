//! What `kubectl get pods` shows.

use super::super::column::{AGE, Column, NAME, items, number, text, text_or_none};
use crate::{meta, time};
use jiff::Timestamp;
use serde_json::{Value, json};

pub(super) const COLUMNS: &[Column] = &[
    NAME,
    Column::text("Ready", "How many containers are ready, of how many.", |v, _| {
        json!(Shown::of(v).ready())
    }),
    Column::text("Status", "What the pod is doing.", |v, _| json!(Shown::of(v).reason)),
    Column::text("Restarts", "How often containers were started again.", |v, now| {
        json!(Shown::of(v).restarts(now))
    }),
    AGE,
    Column::text("IP", "Address of the pod.", |v, _| pod_ip(v)).wide(),
    Column::text("Node", "Machine that runs the pod.", |v, _| text_or_none(v, "/spec/nodeName"))
        .wide(),
    Column::text("Nominated Node", "Machine that is being cleared for the pod.", |v, _| {
        text_or_none(v, "/status/nominatedNodeName")
    })
    .wide(),
    Column::text("Readiness Gates", "How many readiness gates are open.", |v, _| json!(gates(v)))
        .wide(),
];

fn pod_ip(pod: &Value) -> Value {
    match items(pod, "/status/podIPs").first() {
        Some(ip) => text_or_none(ip, "/ip"),
        None => text_or_none(pod, "/status/podIP"),
    }
}

fn gates(pod: &Value) -> String {
    let gates = items(pod, "/spec/readinessGates");
    if gates.is_empty() {
        return "<none>".to_owned();
    }
    let open = gates
        .iter()
        .filter(|g| condition(pod, text(g, "/conditionType")).is_some_and(is_true))
        .count();
    format!("{open}/{}", gates.len())
}

fn condition<'a>(pod: &'a Value, kind: &str) -> Option<&'a Value> {
    items(pod, "/status/conditions").iter().find(|c| text(c, "/type") == kind)
}

fn is_true(condition: &Value) -> bool {
    text(condition, "/status") == "True"
}

/// What the cells of a pod are made of.
struct Shown {
    total: usize,
    ready: usize,
    reason: String,
    restarts: i64,
    last_restart: Option<Timestamp>,
}

impl Shown {
    fn ready(&self) -> String {
        format!("{}/{}", self.ready, self.total)
    }

    fn restarts(&self, now: Timestamp) -> String {
        match self.last_restart {
            Some(last) if self.restarts > 0 => {
                format!("{} ({} ago)", self.restarts, time::human(now.duration_since(last)))
            }
            _ => self.restarts.to_string(),
        }
    }

    /// Counts one container's restarts.
    fn count(&mut self, status: &Value) {
        self.restarts += number(status, "/restartCount");
        let finished = time::parse(text(status, "/lastState/terminated/finishedAt"));
        self.last_restart = self.last_restart.max(finished);
    }

    fn of(pod: &Value) -> Self {
        let init = items(pod, "/spec/initContainers");
        let sidecar = |name: &str| {
            init.iter().any(|c| text(c, "/name") == name && text(c, "/restartPolicy") == "Always")
        };
        let sidecars = init.iter().filter(|c| text(c, "/restartPolicy") == "Always").count();
        let phase = text(pod, "/status/phase");
        let reason = match text(pod, "/status/reason") {
            "" => phase,
            reason => reason,
        };
        let mut shown = Self {
            total: items(pod, "/spec/containers").len() + sidecars,
            ready: 0,
            reason: reason.to_owned(),
            restarts: 0,
            last_restart: None,
        };
        let gated =
            condition(pod, "PodScheduled").is_some_and(|c| text(c, "/reason") == "SchedulingGated");
        if gated {
            "SchedulingGated".clone_into(&mut shown.reason);
        }

        let initializing = shown.read_init(pod, init.len(), &sidecar);
        if !initializing || condition(pod, "Initialized").is_some_and(is_true) {
            shown.read_main(pod, &sidecar);
        }

        if meta::deletion_timestamp(pod).is_some() {
            if text(pod, "/status/reason") == "NodeLost" {
                "Unknown".clone_into(&mut shown.reason);
            } else if !matches!(phase, "Succeeded" | "Failed") {
                "Terminating".clone_into(&mut shown.reason);
            }
        }
        shown
    }

    /// Reads init containers; true while they hold the pod up.
    fn read_init(&mut self, pod: &Value, total: usize, sidecar: &dyn Fn(&str) -> bool) -> bool {
        for (i, status) in items(pod, "/status/initContainerStatuses").iter().enumerate() {
            self.count(status);
            let name = text(status, "/name");
            let is_sidecar = sidecar(name);
            let terminated = status.pointer("/state/terminated");
            if terminated.is_some_and(|t| number(t, "/exitCode") == 0) {
                continue;
            }
            if is_sidecar && status.get("started") == Some(&json!(true)) {
                if status.get("ready") == Some(&json!(true)) {
                    self.ready += 1;
                }
                continue;
            }
            self.reason = if let Some(t) = terminated {
                match (text(t, "/reason"), number(t, "/signal")) {
                    ("", 0) => format!("Init:ExitCode:{}", number(t, "/exitCode")),
                    ("", signal) => format!("Init:Signal:{signal}"),
                    (reason, _) => format!("Init:{reason}"),
                }
            } else {
                match text(status, "/state/waiting/reason") {
                    "" | "PodInitializing" => format!("Init:{i}/{total}"),
                    reason => format!("Init:{reason}"),
                }
            };
            return true;
        }
        false
    }

    /// Reads the main containers.
    fn read_main(&mut self, pod: &Value, sidecar: &dyn Fn(&str) -> bool) {
        self.restarts = 0;
        self.last_restart = None;
        // Sidecars live on, so their restarts count with the main containers'.
        for status in items(pod, "/status/initContainerStatuses") {
            if sidecar(text(status, "/name")) {
                self.count(status);
            }
        }
        let mut running = false;
        let mut error = None;
        for status in items(pod, "/status/containerStatuses").iter().rev() {
            self.count(status);
            let waiting = text(status, "/state/waiting/reason");
            if !waiting.is_empty() {
                waiting.clone_into(&mut self.reason);
            } else if let Some(t) = status.pointer("/state/terminated") {
                self.reason = match (text(t, "/reason"), number(t, "/signal")) {
                    ("", 0) => format!("ExitCode:{}", number(t, "/exitCode")),
                    ("", signal) => format!("Signal:{signal}"),
                    (reason, _) => reason.to_owned(),
                };
                if number(t, "/exitCode") != 0 {
                    error = Some(self.reason.clone());
                }
            } else if status.get("ready") == Some(&json!(true))
                && status.pointer("/state/running").is_some()
            {
                running = true;
                self.ready += 1;
            }
        }
        // One container is done, but another still runs or has failed: the pod is not completed.
        if self.reason == "Completed" {
            if running && condition(pod, "Ready").is_some_and(is_true) {
                "Running".clone_into(&mut self.reason);
            } else if let Some(error) = error {
                self.reason = error;
            } else if running {
                "NotReady".clone_into(&mut self.reason);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(pod: &Value) -> Vec<String> {
        let now = time::parse("2026-01-01T00:01:00Z").unwrap();
        COLUMNS.iter().map(|c| (c.cell)(pod, now).as_str().unwrap_or_default().to_owned()).collect()
    }

    fn pod(spec: Value, status: Value) -> Value {
        json!({
            "metadata": {"name": "p", "creationTimestamp": "2026-01-01T00:00:00Z"},
            "spec": spec,
            "status": status,
        })
    }

    #[test]
    fn states() {
        let two = json!({"containers": [{"name": "a"}, {"name": "b"}]});
        let one_init = json!({
            "containers": [{"name": "a"}],
            "initContainers": [{"name": "i"}, {"name": "j"}],
        });
        let cases = [
            (&two, json!({"phase": "Pending"}), "0/2", "Pending", "0"),
            (
                &two,
                json!({"phase": "Pending", "containerStatuses": [
                    {"name": "a", "state": {"waiting": {"reason": "ContainerCreating"}}},
                    {"name": "b", "state": {"waiting": {"reason": "ContainerCreating"}}},
                ]}),
                "0/2",
                "ContainerCreating",
                "0",
            ),
            (
                &two,
                json!({"phase": "Running", "containerStatuses": [
                    {"name": "a", "ready": true, "restartCount": 0, "state": {"running": {}}},
                    {"name": "b", "ready": false, "restartCount": 3,
                     "lastState": {"terminated": {"finishedAt": "2026-01-01T00:00:55Z"}},
                     "state": {"waiting": {"reason": "CrashLoopBackOff"}}},
                ]}),
                "1/2",
                "CrashLoopBackOff",
                "3 (5s ago)",
            ),
            (
                &two,
                json!({"phase": "Running", "containerStatuses": [
                    {"name": "a", "ready": true, "state": {"running": {}}},
                    {"name": "b", "state": {"terminated": {"reason": "Completed", "exitCode": 0}}},
                ]}),
                "1/2",
                "NotReady",
                "0",
            ),
            (
                &two,
                json!({"phase": "Failed", "containerStatuses": [
                    {"name": "a", "state": {"terminated": {"reason": "Error", "exitCode": 1}}},
                    {"name": "b", "state": {"terminated": {"exitCode": 137, "signal": 9}}},
                ]}),
                "0/2",
                "Error",
                "0",
            ),
            (&two, json!({"phase": "Failed", "reason": "Evicted"}), "0/2", "Evicted", "0"),
            (
                &one_init,
                json!({"phase": "Pending", "initContainerStatuses": [
                    {"name": "i", "state": {"running": {}}},
                    {"name": "j", "state": {"waiting": {"reason": "PodInitializing"}}},
                ], "containerStatuses": [
                    {"name": "a", "state": {"waiting": {"reason": "PodInitializing"}}}]}),
                "0/1",
                "Init:0/2",
                "0",
            ),
            (
                &one_init,
                json!({"phase": "Pending", "initContainerStatuses": [
                    {"name": "i", "restartCount": 2, "state": {"waiting": {"reason": "CrashLoopBackOff"}}},
                ]}),
                "0/1",
                "Init:CrashLoopBackOff",
                "2",
            ),
        ];
        for (spec, status, ready, reason, restarts) in cases {
            let cells = row(&pod(spec.clone(), status));
            assert_eq!(cells[1..5], [ready, reason, restarts, "60s"]);
        }
    }

    #[test]
    fn deleted_and_wide() {
        let mut object = pod(
            json!({"containers": [{"name": "a"}], "nodeName": "n1",
                   "readinessGates": [{"conditionType": "x"}]}),
            json!({"phase": "Running", "podIPs": [{"ip": "10.0.0.7"}]}),
        );
        object["metadata"]["deletionTimestamp"] = json!("2026-01-01T00:00:30Z");
        assert_eq!(
            row(&object),
            ["p", "0/1", "Terminating", "0", "60s", "10.0.0.7", "n1", "<none>", "0/1"]
        );
    }
}
