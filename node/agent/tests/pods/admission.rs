//! Which pods the machine takes that are bound to it.

use crate::feed::condition;
use crate::lab::{FOREVER, Lab, shell};
use k8s_openapi::api::core::v1::PodStatus;
use serde_json::{Value, json};
use std::sync::Arc;

crate::tests![
    a_pod_that_does_not_fit_fails_and_says_why,
    what_does_not_match_the_machine_is_refused,
    what_runs_is_not_refused_after_a_restart,
    a_refusal_outlives_the_agent,
    a_pod_waits_for_room_that_is_about_to_be_made,
];

fn asking(name: &str, script: &str, requests: &Value) -> Value {
    let mut pod = shell(name, script);
    pod["spec"]["containers"][0]["resources"] = json!({"requests": requests});
    pod
}

fn refused(status: &PodStatus, word: &str) -> bool {
    status.phase.as_deref() == Some("Failed") && status.reason.as_deref() == Some(word)
}

/// Processor time of the whole machine.
fn whole(lab: &Lab) -> Value {
    let node = lab.feed.lock().node.clone().unwrap();
    json!({"cpu": node.status.as_ref().unwrap().allocatable.as_ref().unwrap()["cpu"].0})
}

async fn a_pod_that_does_not_fit_fails_and_says_why(lab: Arc<Lab>) {
    lab.feed.create(asking("web", FOREVER, &json!({"memory": "1Mi"})));
    lab.feed.until_ready("web").await;
    lab.feed.create(asking("huge", FOREVER, &json!({"cpu": "1000"})));
    lab.feed.until_pod("huge", "refusal", |s| refused(s, "OutOfcpu")).await;
    let status = lab.feed.pod("huge").unwrap().status.unwrap();
    let message = status.message.unwrap();
    let begin =
        "Pod was rejected: Node didn't have enough resource: cpu, requested: 1000000, used: 0";
    assert!(message.starts_with(begin), "{message}");
    assert!(status.container_statuses.is_none());
    lab.feed.until_event("OutOfcpu", "Node didn't have enough resource: cpu").await;
    lab.feed.until_reason("InsufficientCpu").await;
    assert_eq!(lab.runtime.sandboxes().await.unwrap().len(), 1, "nothing of it was begun");
    // What counts is what is asked for, not what runs: one of the same size as the machine fits once.
    lab.feed.create(asking("first", FOREVER, &whole(&lab)));
    lab.feed.create(asking("second", FOREVER, &whole(&lab)));
    lab.feed.until_ready("first").await;
    lab.feed.until_pod("second", "refusal", |s| refused(s, "OutOfcpu")).await;
    lab.feed.delete("huge", 5);
    lab.feed.until("its end", |s| s.finished == ["huge"]).await;
}

async fn what_does_not_match_the_machine_is_refused(lab: Arc<Lab>) {
    lab.feed.until("the node", |s| s.node.is_some()).await;
    let mut picky = shell("picky", FOREVER);
    picky["spec"]["nodeSelector"] = json!({"deck": "upper"});
    lab.feed.create(picky);
    lab.feed.until_pod("picky", "refusal", |s| refused(s, "NodeAffinity")).await;
    let port = |name| {
        let mut pod = shell(name, FOREVER);
        pod["spec"]["containers"][0]["ports"] = json!([{"containerPort": 80, "hostPort": 7080}]);
        pod
    };
    lab.feed.create(port("one"));
    lab.feed.create(port("other"));
    lab.feed.until_ready("one").await;
    lab.feed.until_pod("other", "refusal", |s| refused(s, "NodePorts")).await;
    lab.feed.taint("fog", "NoSchedule");
    lab.feed.create(shell("brave", FOREVER));
    lab.feed.until_ready("brave").await;
    lab.feed.taint("storm", "NoExecute");
    lab.feed.create(shell("late", FOREVER));
    lab.feed.until_pod("late", "refusal", |s| refused(s, "TaintToleration")).await;
    let brave = lab.feed.pod("brave").unwrap().status.unwrap();
    assert_eq!(condition(&brave, "Ready"), "True", "who runs is not asked again");
}

async fn what_runs_is_not_refused_after_a_restart(lab: Arc<Lab>) {
    lab.feed.until("the node", |s| s.node.is_some()).await;
    // Of a lower name than what comes meanwhile: it is told of first.
    lab.feed.create(asking("web", FOREVER, &whole(&lab)));
    lab.feed.until_ready("web").await;
    lab.stop().await;
    lab.feed.taint("storm", "NoExecute");
    let mut tolerant = asking("ahead", FOREVER, &whole(&lab));
    tolerant["spec"]["tolerations"] = json!([{"operator": "Exists"}]);
    lab.feed.create(tolerant);
    lab.start().await;
    lab.feed.until_pod("ahead", "refusal", |s| refused(s, "OutOfcpu")).await;
    let web = lab.feed.pod("web").unwrap().status.unwrap();
    assert_eq!((web.phase.as_deref(), condition(&web, "Ready")), (Some("Running"), "True".into()));
    assert_eq!(lab.exec("web", "", "echo still here").await.1, "still here\n");
}

async fn a_refusal_outlives_the_agent(lab: Arc<Lab>) {
    lab.feed.create(asking("huge", FOREVER, &json!({"memory": "1Ei"})));
    lab.feed.until_pod("huge", "refusal", |s| refused(s, "OutOfmemory")).await;
    let before = lab.feed.pod("huge").unwrap().status;
    lab.stop().await;
    lab.start().await;
    lab.feed.create(shell("next", FOREVER));
    lab.feed.until_ready("next").await;
    assert_eq!(lab.feed.pod("huge").unwrap().status, before);
}

async fn a_pod_waits_for_room_that_is_about_to_be_made(lab: Arc<Lab>) {
    lab.feed.until("the node", |s| s.node.is_some()).await;
    let stubborn = "trap 'echo asked' TERM; while :; do sleep 0.1; done";
    lab.feed.create(asking("old", stubborn, &whole(&lab)));
    lab.feed.until_ready("old").await;
    // By force: the store forgets it before the machine has ended it.
    lab.feed.delete("old", 0);
    lab.feed.create(asking("new", FOREVER, &whole(&lab)));
    lab.feed.until_ready("new").await;
    let news = |e: &k8s_openapi::api::core::v1::Event| e.reason.as_deref() == Some("OutOfcpu");
    assert!(!lab.feed.lock().events.iter().any(news));
}
