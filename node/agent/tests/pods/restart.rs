//! The agent ends and comes back; the control plane goes away and comes back.

use crate::feed::condition;
use crate::lab::{FOREVER, Lab, shell, within};
use crate::lifecycle::container;
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

crate::tests![
    what_runs_is_taken_up_and_not_restarted,
    what_ended_meanwhile_is_restarted,
    what_was_removed_meanwhile_ends,
    a_lost_subscription_is_made_anew,
    a_pod_of_the_same_name_is_another_pod,
    what_another_program_takes_of_the_network_comes_back,
];

async fn what_runs_is_taken_up_and_not_restarted(lab: Arc<Lab>) {
    lab.feed.create(shell("web", FOREVER));
    lab.feed.until_ready("web").await;
    let before = lab.runtime.containers().await.unwrap();
    let ip = lab.feed.pod("web").unwrap().status.unwrap().pod_ip;
    lab.stop().await;
    lab.start().await;
    // A change that is seen proves that the new agent looked at the pod.
    lab.feed.create(shell("next", FOREVER));
    lab.feed.until_ready("next").await;
    let after = lab.runtime.containers().await.unwrap();
    assert!(after.iter().any(|c| c.spec.id == before[0].spec.id && c.pid == before[0].pid));
    let status = lab.feed.pod("web").unwrap().status.unwrap();
    assert_eq!((status.pod_ip.clone(), container(&status, "main").restart_count), (ip, 0));
    assert_eq!(condition(&status, "Ready"), "True");
    assert_eq!(lab.exec("web", "", "echo still here").await.1, "still here\n");
}

async fn what_ended_meanwhile_is_restarted(lab: Arc<Lab>) {
    lab.feed.create(shell("web", FOREVER));
    lab.feed.until_ready("web").await;
    lab.stop().await;
    let mut exits = lab.runtime.exits();
    let id = lab.runtime.containers().await.unwrap()[0].spec.id.clone();
    lab.runtime.kill(&id, 9, true).await.unwrap();
    exits.recv().await.unwrap();
    lab.start().await;
    lab.feed
        .until_pod("web", "restart", |s| {
            container(s, "main").restart_count == 1 && condition(s, "Ready") == "True"
        })
        .await;
}

async fn what_was_removed_meanwhile_ends(lab: Arc<Lab>) {
    lab.feed.create(shell("web", FOREVER));
    lab.feed.create(shell("soon", FOREVER));
    lab.feed.until_ready("web").await;
    lab.feed.until_ready("soon").await;
    lab.stop().await;
    lab.feed.delete("web", 0);
    lab.feed.delete("soon", 2);
    lab.start().await;
    lab.feed.until("the end of the one that was to end", |s| s.finished == ["soon"]).await;
    // The end of the other is what the laboratory checks when it closes.
}

async fn a_lost_subscription_is_made_anew(lab: Arc<Lab>) {
    lab.feed.create(shell("web", FOREVER));
    lab.feed.until_ready("web").await;
    lab.feed.disconnect();
    lab.feed.delete("web", 0);
    lab.feed.create(shell("next", FOREVER));
    lab.feed.until_ready("next").await;
}

async fn a_pod_of_the_same_name_is_another_pod(lab: Arc<Lab>) {
    lab.feed.create(shell("web", "trap '' TERM; while true; do sleep 1; done"));
    lab.feed.until_ready("web").await;
    lab.feed.delete("web", 0);
    lab.feed.create(shell("web", FOREVER));
    lab.feed.until_ready("web").await;
    assert_eq!(lab.exec("web", "", "echo new").await.1, "new\n");
}

async fn what_another_program_takes_of_the_network_comes_back(lab: Arc<Lab>) {
    lab.feed.create(shell("web", FOREVER));
    lab.feed.until_ready("web").await;
    let run = |program: &str, arguments: &[&str]| {
        let done = Command::new(program).args(arguments).output().unwrap();
        String::from_utf8(done.stdout).unwrap()
    };
    let tables = || run("nft", &["list", "tables"]);
    assert_eq!(tables(), "table ip dhowt\n");
    let links = run("ip", &["-o", "link"]);
    let line = links.lines().find(|line| line.contains("alias pod:shop/web@")).unwrap();
    let link = line.split([' ', '@']).nth(1).unwrap();
    run("nft", &["flush", "ruleset"]);
    let back = async |is_back: &dyn Fn() -> bool| {
        while !is_back() {
            // News that come meanwhile hide nothing.
            lab.feed.no_other_machines();
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    within("the table is back", back(&|| tables().contains("dhowt"))).await;
    run("ip", &["link", "delete", link]);
    within("the link is back", back(&|| run("ip", &["-o", "link"]).contains(link))).await;
}
