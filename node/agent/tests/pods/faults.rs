//! Each step of a pod fails; the laboratory proves that nothing is left.

use crate::lab::{FOREVER, Lab, shell};
use dhow_fault::Effect;
use std::sync::Arc;
use std::time::Duration;

crate::tests![
    a_pod_that_is_deleted_while_a_step_fails_leaves_nothing,
    a_start_whose_answer_is_lost_does_not_run_twice,
    an_end_that_is_refused_is_told_again,
    a_worker_that_fails_is_replaced_and_a_silent_runtime_is_asked_again,
    a_container_that_the_runtime_forgot_is_started_again,
];

/// A step's point, and the event that tells of its failure (or, of the last, that it is reached).
const STEPS: [(&str, &str); 6] = [
    ("agent::sandbox", "FailedCreatePodSandBox"),
    ("agent::network", "FailedCreatePodSandBox"),
    ("agent::volumes", "FailedMount"),
    ("agent::start", "Failed"),
    ("agent::started", "Failed"),
    ("agent::status", "Started"),
];

fn fail(point: &str, times: u32) {
    let effect = Effect::Fail("the disk is on fire".into());
    dhow_fault::arm(point, effect, 0, times, Duration::from_secs(120));
}

async fn a_pod_that_is_deleted_while_a_step_fails_leaves_nothing(lab: Arc<Lab>) {
    for (point, event) in STEPS {
        fail(point, u32::MAX);
        let name = point.replace("::", "-");
        lab.feed.create(shell(&name, FOREVER));
        let told = if point == "agent::status" { "" } else { "on fire" };
        lab.feed.until_event(event, told).await;
        lab.feed.delete(&name, 1);
        lab.feed.until("its end", |s| s.finished.contains(&name)).await;
        dhow_fault::disarm(point);
        lab.feed.lock().events.clear();
        assert!(lab.runtime.containers().await.unwrap().is_empty(), "{point}");
        assert!(lab.runtime.sandboxes().await.unwrap().is_empty(), "{point}");
    }
}

async fn a_start_whose_answer_is_lost_does_not_run_twice(lab: Arc<Lab>) {
    fail("agent::started", 1);
    lab.feed.create(shell("web", FOREVER));
    lab.feed.until_ready("web").await;
    assert_eq!(lab.runtime.containers().await.unwrap().len(), 1);
    fail("agent::tear_down", 1);
    lab.feed.delete("web", 1);
    lab.feed.until_event("FailedKillPod", "on fire").await;
    lab.feed.until("its end", |s| s.finished == ["web"]).await;
}

async fn an_end_that_is_refused_is_told_again(lab: Arc<Lab>) {
    lab.feed.create(shell("web", FOREVER));
    lab.feed.until_ready("web").await;
    lab.feed.lock().refuse = 2;
    lab.feed.delete("web", 1);
    lab.feed.until("its end", |s| s.finished == ["web"]).await;
}

async fn a_worker_that_fails_is_replaced_and_a_silent_runtime_is_asked_again(lab: Arc<Lab>) {
    fail("agent::worker", 1);
    fail("agent::look", 2);
    lab.feed.create(shell("web", FOREVER));
    // Nothing else is told of the pod: the failure itself is noticed.
    lab.feed.until_ready("web").await;
    assert_eq!(lab.runtime.containers().await.unwrap().len(), 1);
}

async fn a_container_that_the_runtime_forgot_is_started_again(lab: Arc<Lab>) {
    lab.feed.create(shell("web", FOREVER));
    lab.feed.until_ready("web").await;
    let state = lab.runtime.containers().await.unwrap().remove(0);
    lab.lose_launcher(&state.spec.id);
    lab.feed
        .until_pod("web", "restart", |s| {
            let main = crate::lifecycle::container(s, "main");
            main.restart_count == 1 && main.ready
        })
        .await;
    let status = lab.feed.pod("web").unwrap().status.unwrap();
    let last = crate::lifecycle::container(&status, "main").last_state.unwrap().terminated.unwrap();
    assert_eq!(last.reason.as_deref(), Some("ContainerStatusUnknown"));
}
