//! What is told, one sentence each.

use super::*;
use crate::pods::observe::{Ended, Failure, Net, Verdict};
use crate::probes::{Kind, ProbeState};
use crate::time::Moment;
use serde_json::json;
use std::collections::BTreeMap;

const NOW: At = At { wall: Duration::from_secs(1_000_000), moment: Moment::after(Duration::ZERO) };
const S: Duration = Duration::from_secs(1);

fn pod(policy: &str) -> Pod {
    serde_json::from_value(json!({
        "metadata": {"name": "p", "namespace": "shop", "uid": "u", "generation": 7},
        "spec": {"restartPolicy": policy, "containers": [{"name": "a", "image": "i"}]},
    }))
    .unwrap()
}

fn run() -> Instance {
    Instance {
        id: "1".into(),
        attempt: 0,
        hash: String::new(),
        image: "i".into(),
        image_id: "sha256:x".into(),
        started_at: NOW,
        ended: None,
        backoff: Duration::ZERO,
        hook: Hook::Done,
        stopping: None,
        condemned: None,
        probes: BTreeMap::new(),
        recorded: true,
        stop_signal: 15,
        resources: None,
    }
}

fn ended(code: i32, reason: &str, message: &str) -> Instance {
    let end = Ended { code, signal: 0, reason: reason.into(), message: message.into(), at: NOW };
    Instance { ended: Some(end), ..run() }
}

fn seen(instances: Vec<Instance>) -> Observed {
    let mut seen = Observed {
        start_time: NOW,
        sandbox: Step::Ready(Net { netns: None, ip: Some([10, 1, 0, 5].into()) }),
        volumes: Step::Ready(()),
        ..Observed::default()
    };
    seen.containers.entry("a".into()).or_default().instances = instances;
    seen
}

fn later(seconds: u64) -> At {
    NOW.of(NOW.wall + Duration::from_secs(seconds))
}

fn told(pod: &Pod, seen: &Observed, now: At) -> PodStatus {
    status(pod, seen, &PodStatus::default(), "192.0.2.1", now)
}

fn holds(status: &PodStatus, kind: &str) -> (String, String) {
    let found = status.conditions.iter().flatten().find(|c| c.type_ == kind).unwrap();
    (found.status.clone(), found.reason.clone().unwrap_or_default())
}

fn first(status: &PodStatus) -> ContainerStatus {
    status.container_statuses.as_ref().unwrap()[0].clone()
}

fn phase(status: &PodStatus) -> &str {
    status.phase.as_deref().unwrap()
}

#[test]
fn a_pod_that_begins_is_pending() {
    let status = told(&pod("Always"), &Observed { start_time: NOW, ..Observed::default() }, NOW);
    assert_eq!(phase(&status), "Pending");
    let waiting = first(&status).state.unwrap().waiting.unwrap();
    assert_eq!(waiting.reason.as_deref(), Some("ContainerCreating"));
    assert_eq!(holds(&status, "PodReadyToStartContainers").0, "False");
    assert_eq!(holds(&status, "Ready"), ("False".into(), "ContainersNotReady".into()));
    assert_eq!(holds(&status, "PodScheduled").0, "True");
    assert_eq!(status.observed_generation, Some(7));
}

#[test]
fn a_running_container_without_probes_is_ready() {
    let status = told(&pod("Always"), &seen(vec![run()]), NOW);
    assert_eq!((phase(&status), status.pod_ip.as_deref()), ("Running", Some("10.1.0.5")));
    for kind in ["Initialized", "Ready", "ContainersReady", "PodReadyToStartContainers"] {
        assert_eq!(holds(&status, kind).0, "True", "{kind}");
    }
    let container = first(&status);
    assert_eq!(container.container_id.as_deref(), Some("dhow://1"));
    assert!(container.ready && container.started == Some(true));
}

#[test]
fn a_readiness_probe_that_has_not_passed_keeps_it_from_being_ready() {
    let mut instance = run();
    let state = ProbeState::new(Kind::Readiness, &Default::default(), NOW.moment);
    instance.probes.insert(Kind::Readiness, state);
    let status = told(&pod("Always"), &seen(vec![instance]), NOW);
    assert_eq!(phase(&status), "Running");
    assert_eq!(holds(&status, "Ready").0, "False");
    assert_eq!(first(&status).started, Some(true));
}

#[test]
fn a_condition_keeps_the_time_of_its_last_change() {
    let pod = pod("Always");
    let before = told(&pod, &seen(vec![run()]), NOW);
    let after = status(&pod, &seen(vec![run()]), &before, "192.0.2.1", later(60));
    assert_eq!(after, before);
}

#[test]
fn phases_at_the_end_follow_codes_and_policies() {
    for (policy, code, expected) in [
        ("Always", 0, "Running"),
        ("OnFailure", 0, "Succeeded"),
        ("OnFailure", 1, "Running"),
        ("Never", 0, "Succeeded"),
        ("Never", 1, "Failed"),
    ] {
        let status = told(&pod(policy), &seen(vec![ended(code, "Error", "")]), NOW);
        assert_eq!(phase(&status), expected, "{policy} {code}");
    }
    for (of_pod, own, code, expected) in [
        ("Always", "Never", 0, "Succeeded"),
        ("Always", "Never", 1, "Failed"),
        ("Never", "OnFailure", 1, "Running"),
        ("Never", "Always", 0, "Running"),
    ] {
        let mut pod = pod(of_pod);
        pod.spec.as_mut().unwrap().containers[0].restart_policy = Some(own.into());
        let status = told(&pod, &seen(vec![ended(code, "Error", "")]), NOW);
        assert_eq!(phase(&status), expected, "{of_pod} {own} {code}");
    }
    let status = told(&pod("Never"), &seen(vec![ended(0, "Completed", "")]), NOW);
    assert_eq!(holds(&status, "Ready"), ("False".into(), "PodCompleted".into()));
    assert_eq!(holds(&status, "Initialized"), ("True".into(), "PodCompleted".into()));
}

#[test]
fn a_final_phase_stays() {
    let before = PodStatus {
        phase: Some("Failed".into()),
        reason: Some("Evicted".into()),
        ..PodStatus::default()
    };
    let after = status(&pod("Always"), &seen(vec![run()]), &before, "", NOW);
    assert_eq!((phase(&after), after.reason.as_deref()), ("Failed", Some("Evicted")));
}

#[test]
fn a_container_that_waits_tells_why_and_how_it_ended_before() {
    let instance = Instance { backoff: 80 * S, attempt: 4, ..ended(1, "Error", "") };
    let status = told(&pod("Always"), &seen(vec![instance]), later(1));
    let container = first(&status);
    let waiting = container.state.unwrap().waiting.unwrap();
    assert_eq!(waiting.reason.as_deref(), Some("CrashLoopBackOff"));
    assert_eq!(
        waiting.message.as_deref(),
        Some("back-off 1m20s restarting failed container=a pod=p_shop(u)")
    );
    assert_eq!(container.last_state.unwrap().terminated.unwrap().exit_code, 1);
    assert_eq!(container.restart_count, 4);
}

#[test]
fn failures_to_start_have_their_reasons() {
    let mut seen_failing = seen(Vec::new());
    let failure =
        Failure { reason: "ErrImagePull".into(), message: "no".into(), ..Failure::default() };
    seen_failing.containers.get_mut("a").unwrap().failure = Some(failure);
    let status = told(&pod("Always"), &seen_failing, NOW);
    let waiting = first(&status).state.unwrap().waiting.unwrap();
    assert_eq!(
        (waiting.reason.as_deref(), waiting.message.as_deref()),
        (Some("ErrImagePull"), Some("no"))
    );
    let bad = ended(128, "StartError", "exec /x: no such file");
    let status = told(&pod("Always"), &seen(vec![bad.clone()]), NOW);
    let waiting = first(&status).state.unwrap().waiting.unwrap();
    assert_eq!(waiting.reason.as_deref(), Some("RunContainerError"));
    let status = told(&pod("Never"), &seen(vec![bad]), NOW);
    let ended = first(&status).state.unwrap().terminated.unwrap();
    assert_eq!((ended.reason.as_deref(), phase(&status)), (Some("StartError"), "Failed"));
}

#[test]
fn readiness_gates_and_foreign_conditions_are_kept() {
    let mut gated = pod("Always");
    gated.spec.as_mut().unwrap().readiness_gates =
        serde_json::from_value(json!([{"conditionType": "example.com/ok"}])).unwrap();
    let status = told(&gated, &seen(vec![run()]), NOW);
    assert_eq!(holds(&status, "Ready"), ("False".into(), "ReadinessGatesNotReady".into()));
    assert_eq!(holds(&status, "ContainersReady").0, "True");
    gated.status = serde_json::from_value(
        json!({"conditions": [{"type": "example.com/ok", "status": "True"}]}),
    )
    .unwrap();
    let status = told(&gated, &seen(vec![run()]), NOW);
    assert_eq!(holds(&status, "Ready").0, "True");
    assert_eq!(holds(&status, "example.com/ok").0, "True");
}

#[test]
fn a_pod_that_has_to_go_is_marked_as_disrupted_once() {
    let mut running = seen(vec![run()]);
    let verdict = Verdict {
        decision: Decision::Evicted,
        reason: "Evicted".into(),
        message: "no room".to_owned(),
    };
    running.verdict = Some(verdict.clone());
    let status = told(&pod("Always"), &running, NOW);
    assert_eq!((phase(&status), &status.reason), ("Running", &None), "it still takes its room");
    assert_eq!(holds(&status, "DisruptionTarget").0, "True");
    let mut seen = seen(vec![ended(137, "Error", "")]);
    seen.verdict = Some(verdict);
    let status = told(&pod("Always"), &seen, NOW);
    assert_eq!((phase(&status), status.reason.as_deref()), ("Failed", Some("Evicted")));
    // As the store has it by then.
    let mut stored = pod("Always");
    stored.status = Some(status);
    let again = told(&stored, &seen, later(1));
    let marks = again.conditions.unwrap();
    assert_eq!(marks.iter().filter(|c| c.type_ == "DisruptionTarget").count(), 1);
}

#[test]
fn a_deadline_is_the_pods_reason() {
    let mut seen = seen(vec![ended(137, "Error", "")]);
    let message = "too long".to_owned();
    let reason = "DeadlineExceeded".into();
    seen.verdict = Some(Verdict { decision: Decision::Expired, reason, message });
    let status = told(&pod("Always"), &seen, NOW);
    assert_eq!((phase(&status), status.reason.as_deref()), ("Failed", Some("DeadlineExceeded")));
}

#[test]
fn a_refused_pod_tells_of_no_container_then_and_later() {
    let verdict = Verdict {
        decision: Decision::Refused,
        reason: "OutOfcpu".into(),
        message: "Pod was rejected: no".to_owned(),
    };
    let refused = Observed { start_time: NOW, verdict: Some(verdict), ..Observed::default() };
    let status = told(&pod("Always"), &refused, NOW);
    assert_eq!((phase(&status), status.reason.as_deref()), ("Failed", Some("OutOfcpu")));
    assert!(status.container_statuses.is_none(), "clients would tell what a container waits for");
    // After a restart of the agent only the stored status knows of it.
    let again = super::status(&pod("Always"), &Observed::default(), &status, "192.0.2.1", later(1));
    assert_eq!(again, status);
}
