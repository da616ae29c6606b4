//! The plan's decisions, one sentence each.

use super::*;
use crate::pods::observe::{BACKOFF_FIRST, Decision, Ended, Net, Stopping, Verdict, adopt};
use crate::probes::ProbeState;
use crate::time::At;
use serde_json::json;
use std::collections::BTreeMap;

const NOW: Moment = Moment::after(Duration::from_secs(1_000_000));
/// What the machine's clock says then.
const WALL: Duration = Duration::from_secs(1_700_000_000);
const S: Duration = Duration::from_secs(1);

fn pod(spec: serde_json::Value) -> Pod {
    let meta = json!({"name": "p", "namespace": "shop", "uid": "u"});
    serde_json::from_value(json!({"metadata": meta, "spec": spec})).unwrap()
}

fn one(policy: &str) -> Pod {
    pod(json!({"restartPolicy": policy, "containers": [{"name": "a", "image": "i"}]}))
}

fn now() -> At {
    At { wall: WALL, moment: NOW }
}

fn before(by: Duration) -> At {
    now().of(WALL - by)
}

/// What is seen of a pod whose sandbox and volumes are ready.
fn ready() -> Observed {
    Observed {
        sandbox: Step::Ready(Net { netns: None, ip: None }),
        volumes: Step::Ready(()),
        start_time: now(),
        ..Observed::default()
    }
}

fn run(attempt: u32) -> Instance {
    Instance {
        id: format!("id-{attempt}"),
        attempt,
        hash: String::new(),
        image: "i".into(),
        image_id: String::new(),
        started_at: before(5 * S),
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

fn ended(attempt: u32, code: i32, backoff: Duration) -> Instance {
    let end = Ended { code, signal: 0, reason: "Error".into(), message: String::new(), at: now() };
    Instance { ended: Some(end), backoff, ..run(attempt) }
}

fn with(mut seen: Observed, name: &str, instances: Vec<Instance>) -> Observed {
    seen.containers.entry(name.into()).or_default().instances = instances;
    seen
}

fn start(name: &str, attempt: u32, backoff: Duration) -> Action {
    Action::Start { name: name.into(), attempt, backoff }
}

/// Deletes a pod with so much of its grace period left; when the agent counts it as over.
fn delete(pod: &mut Pod, left: Duration) -> Option<Moment> {
    pod.metadata.deletion_timestamp = Some(time::time(WALL + left));
    pod.metadata.deletion_grace_period_seconds = Some(5);
    adopt(pod, None, Vec::new(), now()).deadline
}

#[test]
fn a_new_pod_gets_its_sandbox_and_volumes_at_once() {
    let plan = plan(&one("Always"), &Observed::default(), NOW);
    assert_eq!(
        plan,
        Plan { actions: vec![Action::MakeSandbox, Action::PrepareVolumes], due: None }
    );
}

#[test]
fn nothing_is_begun_twice() {
    let mut seen = Observed::default();
    seen.sandbox.begin();
    seen.volumes.begin();
    assert_eq!(plan(&one("Always"), &seen, NOW), Plan::default());
    let mut seen = ready();
    seen.containers.entry("a".into()).or_default().starting = true;
    assert_eq!(plan(&one("Always"), &seen, NOW), Plan::default());
}

#[test]
fn a_failed_sandbox_is_tried_again_later_and_later() {
    let mut seen = Observed { volumes: Step::Ready(()), ..Observed::default() };
    seen.sandbox.fail("X", "no".into(), NOW);
    assert_eq!(plan(&one("Always"), &seen, NOW), Plan { actions: vec![], due: Some(NOW + 10 * S) });
    assert_eq!(plan(&one("Always"), &seen, NOW + 10 * S).actions, [Action::MakeSandbox]);
    seen.sandbox.begin();
    seen.sandbox.fail("X", "no".into(), NOW);
    assert_eq!(plan(&one("Always"), &seen, NOW).due, Some(NOW + 20 * S));
}

#[test]
fn containers_start_one_after_the_other() {
    let pod = pod(json!({"containers": [{"name": "a"}, {"name": "b"}]}));
    assert_eq!(plan(&pod, &ready(), NOW).actions, [start("a", 0, Duration::ZERO)]);
    let mut hooked = run(0);
    hooked.hook = Hook::Running;
    let seen = with(ready(), "a", vec![hooked]);
    assert_eq!(plan(&pod, &seen, NOW).actions, []);
    let seen = with(ready(), "a", vec![run(0)]);
    assert_eq!(plan(&pod, &seen, NOW).actions, [start("b", 0, Duration::ZERO)]);
}

#[test]
fn one_that_cannot_start_does_not_hold_up_the_others() {
    let pod = pod(json!({"containers": [{"name": "a"}, {"name": "b"}]}));
    let mut seen = ready();
    let failure = crate::pods::observe::Failure { retry_at: NOW + S, ..Default::default() };
    seen.containers.entry("a".into()).or_default().failure = Some(failure);
    let plan = plan(&pod, &seen, NOW);
    assert_eq!((plan.actions, plan.due), (vec![start("b", 0, Duration::ZERO)], Some(NOW + S)));
}

#[test]
fn restart_policies_decide_who_comes_again() {
    for (policy, code, again) in [
        ("Always", 0, true),
        ("Always", 1, true),
        ("OnFailure", 0, false),
        ("OnFailure", 1, true),
        ("Never", 0, false),
        ("Never", 1, false),
    ] {
        let pod = one(policy);
        let seen = with(ready(), "a", vec![ended(0, code, Duration::ZERO)]);
        let actions = plan(&pod, &seen, NOW).actions;
        assert_eq!(actions == [start("a", 1, BACKOFF_FIRST)], again, "{policy} {code}");
    }
}

#[test]
fn a_container_may_have_a_policy_of_its_own() {
    for (of_pod, own, code, again) in [
        ("Always", "Never", 1, false),
        ("Always", "OnFailure", 0, false),
        ("Never", "OnFailure", 1, true),
        ("Never", "Always", 0, true),
    ] {
        let spec =
            json!({"restartPolicy": of_pod, "containers": [{"name": "a", "restartPolicy": own}]});
        let pod = pod(spec);
        let seen = with(ready(), "a", vec![ended(0, code, Duration::ZERO)]);
        assert_eq!(ending(&pod, &seen).is_none(), again, "{of_pod} {own} {code}");
    }
    // One of initialization: a rule that lists success does not begin it anew.
    let rule = json!({"action": "Restart", "exitCodes": {"operator": "In", "values": [0, 3]}});
    let pod = pod(json!({"containers": [{"name": "a"}], "initContainers": [
        {"name": "i", "restartPolicy": "Never", "restartPolicyRules": [rule]}]}));
    for (code, next) in
        [(0, vec![start("a", 0, Duration::ZERO)]), (3, vec![start("i", 1, BACKOFF_FIRST)])]
    {
        let seen = with(ready(), "i", vec![ended(0, code, Duration::ZERO)]);
        assert_eq!(plan(&pod, &seen, NOW).actions, next);
    }
    let seen = with(ready(), "i", vec![ended(0, 1, Duration::ZERO)]);
    assert_eq!(ending(&pod, &seen), Some(Ending::Completed));
}

#[test]
fn a_rule_of_the_container_wins_over_the_policy() {
    let pod =
        pod(json!({"restartPolicy": "Never", "containers": [{"name": "a", "restartPolicyRules": [
        {"action": "Restart", "exitCodes": {"operator": "In", "values": [42]}}]}]}));
    let seen = with(ready(), "a", vec![ended(0, 42, Duration::ZERO)]);
    assert_eq!(plan(&pod, &seen, NOW).actions.len(), 1);
    let seen = with(ready(), "a", vec![ended(0, 1, Duration::ZERO)]);
    assert_eq!(plan(&pod, &seen, NOW).actions, []);
}

#[test]
fn the_pause_between_restarts_doubles_and_is_told_once() {
    let pod = one("Always");
    let mut seen = with(ready(), "a", vec![ended(1, 1, 10 * S)]);
    let waits = plan(&pod, &seen, NOW + S);
    assert_eq!(waits.due, Some(NOW + 10 * S));
    assert_eq!(waits.actions, [Action::TellBackOff { name: "a".into(), backoff: 10 * S }]);
    seen.containers.get_mut("a").unwrap().told = 2;
    assert_eq!(plan(&pod, &seen, NOW + S).actions, []);
    assert_eq!(plan(&pod, &seen, NOW + 10 * S).actions, [start("a", 2, 20 * S)]);
    let seen = with(ready(), "a", vec![ended(9, 1, 300 * S)]);
    assert_eq!(plan(&pod, &seen, NOW + 300 * S).actions, [start("a", 10, 300 * S)]);
}

#[test]
fn one_that_ran_for_long_starts_with_a_clean_slate() {
    let mut long = ended(5, 1, 160 * S);
    long.started_at = before(601 * S);
    let seen = with(ready(), "a", vec![long]);
    assert_eq!(plan(&one("Always"), &seen, NOW).actions, [start("a", 6, BACKOFF_FIRST)]);
}

#[test]
fn init_containers_go_first_and_sidecars_have_to_be_started() {
    let pod = pod(json!({
        "initContainers": [{"name": "i"}, {"name": "s", "restartPolicy": "Always"}],
        "containers": [{"name": "a"}],
    }));
    assert_eq!(plan(&pod, &ready(), NOW).actions, [start("i", 0, Duration::ZERO)]);
    let seen = with(ready(), "i", vec![run(0)]);
    assert_eq!(plan(&pod, &seen, NOW).actions, []);
    let seen = with(ready(), "i", vec![ended(0, 0, Duration::ZERO)]);
    assert_eq!(plan(&pod, &seen, NOW).actions, [start("s", 0, Duration::ZERO)]);
    let mut starting = run(0);
    let probe = Default::default();
    starting.probes.insert(Kind::Startup, ProbeState::new(Kind::Startup, &probe, NOW + S));
    let waiting = with(seen.clone(), "s", vec![starting]);
    assert_eq!(plan(&pod, &waiting, NOW), Plan { actions: vec![], due: Some(NOW + S) });
    let seen = with(seen, "s", vec![run(0)]);
    assert_eq!(plan(&pod, &seen, NOW).actions, [start("a", 0, Duration::ZERO)]);
}

#[test]
fn a_failed_init_container_ends_a_pod_that_never_restarts() {
    let pod = pod(json!({"restartPolicy": "Never",
        "initContainers": [{"name": "i"}], "containers": [{"name": "a"}]}));
    let seen = with(ready(), "i", vec![ended(0, 1, Duration::ZERO)]);
    assert_eq!(ending(&pod, &seen), Some(Ending::Completed));
    // Nothing is removed until the store knows how it ended.
    assert_eq!(plan(&pod, &seen, NOW).actions, []);
    let seen = Observed { reported: true, ..seen };
    assert_eq!(plan(&pod, &seen, NOW).actions, [Action::TearDown]);
}

#[test]
fn a_container_is_kept_for_a_while_for_the_one_client_of_its_streams() {
    let mut pod = pod(json!({"restartPolicy": "Never",
        "containers": [{"name": "a", "stdin": true, "stdinOnce": true}]}));
    let seen = with(ready(), "a", vec![ended(0, 0, Duration::ZERO)]);
    let seen = Observed { reported: true, ..seen };
    assert_eq!(plan(&pod, &seen, NOW), Plan { actions: vec![], due: Some(NOW + 5 * S) });
    assert_eq!(plan(&pod, &seen, NOW + 5 * S).actions, [Action::TearDown]);
    // Nobody comes for one that is deleted.
    let seen = Observed { deadline: delete(&mut pod, Duration::ZERO), ..seen };
    assert_eq!(plan(&pod, &seen, NOW).actions, [Action::TearDown]);
}

#[test]
fn a_deleted_pod_is_stopped_killed_removed_and_finished() {
    let mut pod = one("Always");
    let deadline = delete(&mut pod, 5 * S);
    let mut seen = with(Observed { deadline, ..ready() }, "a", vec![run(0)]);
    let message = "Stopping container a".to_owned();
    assert_eq!(
        plan(&pod, &seen, NOW).actions,
        [Action::Stop { name: "a".into(), grace: 6 * S, message }]
    );
    let stopping = Some(Stopping { deadline: NOW + 6 * S, killed: false });
    seen.containers.get_mut("a").unwrap().instances[0].stopping = stopping;
    assert_eq!(plan(&pod, &seen, NOW), Plan { actions: vec![], due: Some(NOW + 6 * S) });
    assert_eq!(plan(&pod, &seen, NOW + 6 * S).actions, [Action::Kill { name: "a".into() }]);
    let seen = with(seen, "a", vec![ended(0, 137, Duration::ZERO)]);
    assert_eq!(plan(&pod, &seen, NOW).actions, [Action::TearDown]);
    let seen = Observed { torn: true, ..seen };
    assert_eq!(plan(&pod, &seen, NOW).actions, [Action::Finish]);
    let seen = Observed { finished: true, ..seen };
    assert_eq!(plan(&pod, &seen, NOW), Plan::default());
}

#[test]
fn a_shorter_grace_period_holds_for_a_stop_that_was_begun() {
    let mut pod = one("Always");
    let deadline = delete(&mut pod, Duration::ZERO);
    let mut stopped = run(0);
    stopped.stopping = Some(Stopping { deadline: NOW + 30 * S, killed: false });
    let seen = with(Observed { deadline, ..ready() }, "a", vec![stopped]);
    assert_eq!(plan(&pod, &seen, NOW).due, Some(NOW + 3 * S));
}

#[test]
fn a_sandbox_under_way_is_waited_for_before_it_is_removed() {
    let mut pod = one("Always");
    let deadline = delete(&mut pod, S);
    let mut seen = Observed { deadline, ..Observed::default() };
    seen.sandbox.begin();
    assert_eq!(plan(&pod, &seen, NOW), Plan::default());
    let seen = Observed { deadline, ..Observed::default() };
    assert_eq!(plan(&pod, &seen, NOW).actions, [Action::TearDown]);
}

#[test]
fn sidecars_end_after_the_others_and_last_to_first() {
    let mut pod = pod(json!({
        "initContainers": [{"name": "s", "restartPolicy": "Always"}, {"name": "t", "restartPolicy": "Always"}],
        "containers": [{"name": "a"}],
    }));
    let deadline = delete(&mut pod, 5 * S);
    let names = |plan: Plan| -> Vec<String> {
        let stops = plan.actions.into_iter();
        stops
            .filter_map(|a| if let Action::Stop { name, .. } = a { Some(name) } else { None })
            .collect()
    };
    let seen = Observed { deadline, ..ready() };
    let seen = with(with(seen, "s", vec![run(0)]), "t", vec![run(0)]);
    let all = with(seen.clone(), "a", vec![run(0)]);
    assert_eq!(names(plan(&pod, &all, NOW)), ["a"]);
    let over = with(seen.clone(), "a", vec![ended(0, 0, Duration::ZERO)]);
    assert_eq!(names(plan(&pod, &over, NOW)), ["t"]);
    let one = with(over, "t", vec![ended(0, 0, Duration::ZERO)]);
    assert_eq!(names(plan(&pod, &one, NOW)), ["s"]);
}

#[test]
fn a_deadline_ends_a_pod() {
    let mut pod = one("Always");
    pod.spec.as_mut().unwrap().active_deadline_seconds = Some(60);
    let seen = with(ready(), "a", vec![run(0)]);
    assert_eq!(plan(&pod, &seen, NOW), Plan { actions: vec![], due: Some(NOW + 60 * S) });
    assert_eq!(plan(&pod, &seen, NOW + 60 * S).actions, [Action::Expire]);
}

#[test]
fn a_pod_that_has_to_go_has_no_grace_period() {
    let mut seen = with(ready(), "a", vec![run(0)]);
    let message = "no room".to_owned();
    let decision = Decision::Evicted;
    seen.verdict = Some(Verdict { decision, reason: "Evicted".into(), message });
    let Some(Action::Stop { grace, .. }) = plan(&one("Always"), &seen, NOW).actions.pop() else {
        panic!("it is not stopped")
    };
    assert_eq!(grace, Duration::ZERO);
    // Nor is its room kept until the store has taken its status: it may have none.
    let seen = Observed { reported: false, ..with(seen, "a", vec![ended(137, 0, S)]) };
    assert_eq!(plan(&one("Always"), &seen, NOW).actions, [Action::TearDown]);
}

#[test]
fn a_changed_image_and_a_failed_probe_stop_a_container() {
    let pod = one("Always");
    let mut other = run(0);
    other.hash = "something else".into();
    let stops = |instance: Instance| {
        let seen = with(ready(), "a", vec![instance]);
        matches!(&plan(&pod, &seen, NOW).actions[..], [Action::Stop { .. }])
    };
    assert!(stops(other));
    let mut condemned = run(0);
    condemned.condemned = Some(("failed".into(), Some(S)));
    assert!(stops(condemned));
    let mut same = run(0);
    same.hash = hash(&pod.spec.as_ref().unwrap().containers[0]);
    assert!(!matches!(
        &plan(&pod, &with(ready(), "a", vec![same]), NOW).actions[..],
        [Action::Stop { .. }]
    ));
}

#[test]
fn probes_are_asked_when_due_and_the_startup_probe_first() {
    let pod = one("Always");
    let mut instance = run(0);
    let probe = Default::default();
    for (kind, at) in [(Kind::Startup, NOW), (Kind::Readiness, NOW), (Kind::Liveness, NOW + S)] {
        instance.probes.insert(kind, ProbeState::new(kind, &probe, at));
    }
    let ask = |kind| Action::Probe { name: "a".into(), kind };
    let seen = with(ready(), "a", vec![instance.clone()]);
    assert_eq!(plan(&pod, &seen, NOW), Plan { actions: vec![ask(Kind::Startup)], due: None });
    instance.probes.get_mut(&Kind::Startup).unwrap().passed = true;
    let seen = with(ready(), "a", vec![instance.clone()]);
    assert_eq!(
        plan(&pod, &seen, NOW),
        Plan { actions: vec![ask(Kind::Readiness)], due: Some(NOW + S) }
    );
    instance.probes.get_mut(&Kind::Readiness).unwrap().running = true;
    let seen = with(ready(), "a", vec![instance]);
    assert_eq!(plan(&pod, &seen, NOW), Plan { actions: vec![], due: Some(NOW + S) });
}

#[test]
fn only_the_newest_two_runs_are_kept() {
    let old = |n| ended(n, 1, Duration::ZERO);
    let seen = with(ready(), "a", vec![old(0), old(1), run(2)]);
    let forget = Action::Forget { name: "a".into(), id: "id-0".into() };
    assert_eq!(plan(&one("Always"), &seen, NOW).actions, [forget]);
}

#[test]
fn a_restart_of_the_agent_keeps_what_probes_found() {
    let probe = json!({"tcpSocket": {"port": 80}, "initialDelaySeconds": 30});
    let mut pod = pod(json!({"containers": [{"name": "a", "image": "i",
        "startupProbe": probe, "readinessProbe": probe, "livenessProbe": probe}]}));
    let status = |id: &str| {
        serde_json::from_value(json!({"phase": "Running", "containerStatuses": [{
            "name": "a", "image": "i", "imageID": "x", "containerID": format!("dhow://{id}"),
            "ready": true, "started": true, "restartCount": 0,
            "state": {"running": {"startedAt": "2023-11-14T00:00:00Z"}},
        }]}))
        .unwrap()
    };
    let record = |id: &str| -> dhow_runtime::ContainerState {
        let labels = json!({crate::pods::observe::label::CONTAINER: "a"});
        serde_json::from_value(json!({
            "spec": {
                "id": id, "sandbox": null, "rootfs": {"Directory": "/"}, "read_only_rootfs": false,
                "process": dhow_runtime::ProcessSpec::default(), "hostname": "", "mounts": [],
                "limits": dhow_runtime::Limits::default(), "oom_score_adj": 0, "privileged": false,
                "host_pid": false, "pid_of": null, "sandbox_pid": false, "stdin": false, "stdin_once": false,
                "log": null, "labels": labels, "wait_for_attach": false,
            },
            "phase": "Running", "pid": 1, "started_at": 0, "exit": null,
        }))
        .unwrap()
    };
    pod.status = status("1");
    let seen = adopt(&pod, None, vec![record("1")], now());
    let last = seen.track("a").unwrap().last().unwrap();
    assert!(last.ready());
    // It runs for longer than the initial delay: the next attempt is due now.
    assert!(last.probes.values().all(|p| p.due == NOW));
    // What was found of another run says nothing about this one.
    pod.status = status("0");
    let seen = adopt(&pod, None, vec![record("1")], now());
    assert!(!seen.track("a").unwrap().last().unwrap().started());
}

#[test]
fn after_a_reboot_the_store_tells_how_often_a_container_was_restarted() {
    let mut pod = one("Always");
    pod.status = serde_json::from_value(json!({"phase": "Running", "containerStatuses": [{
        "name": "a", "image": "i", "imageID": "x", "containerID": "dhow://1", "ready": true,
        "restartCount": 3, "state": {"running": {"startedAt": "2023-11-14T00:00:00Z"}},
    }]}))
    .unwrap();
    let seen = adopt(&pod, None, Vec::new(), now());
    let last = seen.track("a").unwrap().last().unwrap();
    assert_eq!(last.ended.as_ref().unwrap().reason, "ContainerStatusUnknown");
    let seen = Observed { containers: seen.containers, ..ready() };
    assert_eq!(plan(&pod, &seen, NOW).actions, [start("a", 4, BACKOFF_FIRST)]);
}

#[test]
fn a_pod_whose_phase_is_final_is_not_started_again() {
    let mut pod = one("Always");
    pod.status = serde_json::from_value(json!({"phase": "Succeeded"})).unwrap();
    let seen = Observed { reported: true, ..Observed::default() };
    assert_eq!(plan(&pod, &seen, NOW).actions, [Action::TearDown]);
    let seen = Observed { torn: true, ..seen };
    assert_eq!(plan(&pod, &seen, NOW), Plan::default());
}

#[test]
fn a_clock_that_is_set_ends_nothing_early_or_late() {
    let pod = one("Always");
    for ahead in [WALL - S, Duration::ZERO] {
        // The machine's clock is set back or on, by decades, while a container waits.
        let end = At { wall: ahead, ..now() };
        let mut waiting = ended(1, 1, 10 * S);
        if let Some(ended) = &mut waiting.ended {
            ended.at = end;
        }
        let seen = with(ready(), "a", vec![waiting]);
        assert_eq!(plan(&pod, &seen, NOW + S).due, Some(NOW + 10 * S));
        assert_eq!(plan(&pod, &seen, NOW + 10 * S).actions, [start("a", 2, 20 * S)]);
    }
    // What a restarted agent hears of a time that is ahead has just been.
    let mut pod = one("Always");
    pod.status = serde_json::from_value(json!({"startTime": "2099-01-01T00:00:00Z"})).unwrap();
    let seen = adopt(&pod, None, Vec::new(), now());
    assert_eq!(seen.start_time.moment, NOW);
}
