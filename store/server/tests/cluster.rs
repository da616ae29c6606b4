//! Several members: elections, replication, partitions, restarts, leases.

mod common;

use common::net::Nodes;
use common::*;
use dhow_clock::disk::{Fault, Operation};
use dhow_kv::admin::{Admin, Alarm, AlarmKind};
use dhow_kv::{Backend, Error, Op, Range, Span};
use dhow_server::Options;
use std::sync::atomic::Ordering;
use std::time::Duration;

fn all() -> Range {
    Range::all(Span::From("".into()))
}

async fn serializable(store: &dyn Backend) -> i64 {
    store.range(Range { serializable: true, ..all() }).await.unwrap().count
}

#[tokio::test(start_paused = true)]
async fn three_members_elect_a_leader_and_see_what_any_of_them_writes() {
    let nodes = Nodes::start(3, &Options::default());
    let leader = nodes.leader().await;
    let identity = nodes.store(0).identity();
    assert!(identity.cluster_id != 0 && identity.member_id != 0);
    for (at, node) in nodes.nodes.iter().enumerate() {
        let store = nodes.store(at);
        assert_eq!(store.identity().cluster_id, identity.cluster_id);
        assert_eq!(store.identity().member_id, node.id);
        let revision = put(&**store, &node.name, "here").await;
        assert_eq!(revision, at as i64 + 2);
        for reader in 0..3 {
            assert_eq!(value(&**nodes.store(reader), &node.name).await.unwrap(), "here");
        }
    }
    // Whoever is asked knows how far a read must see.
    let newest = put(&**nodes.store(leader), "last", "one").await;
    for at in 0..3 {
        let store: &dyn Backend = &**nodes.store(at);
        assert!(store.newest().await.unwrap() >= newest);
    }
    let status = Admin::status(&**nodes.store(leader));
    assert_eq!(status.leader, nodes.nodes[leader].id);
    assert!(status.term >= 2 && status.applied_index == status.raft_index);
    tokio::time::sleep(Duration::from_secs(2)).await;
    for at in 0..3 {
        let members = nodes.store(at).members(true).await.unwrap();
        let urls = |n: usize| vec![format!("http://m{n}:2379")];
        let mut named: Vec<_> = members.iter().map(|m| (&*m.name, m.client_urls.clone())).collect();
        named.sort();
        assert_eq!(named, [("m1", urls(1)), ("m2", urls(2)), ("m3", urls(3))]);
    }
}

#[tokio::test(start_paused = true)]
async fn many_writers_on_all_members_make_one_history() {
    let nodes = Nodes::start(3, &Options::default());
    nodes.leader().await;
    let writers = (0..30).map(|writer| {
        let store = nodes.store(writer % 3).clone();
        tokio::spawn(async move {
            let mut revisions = Vec::new();
            for n in 0..20 {
                revisions.push(put(&*store, &format!("k{writer}/{n}"), "v").await);
            }
            revisions
        })
    });
    let mut revisions: Vec<i64> = Vec::new();
    for writer in futures::future::join_all(writers).await {
        revisions.extend(writer.unwrap());
    }
    revisions.sort_unstable();
    assert_eq!(revisions, (2..602).collect::<Vec<i64>>());
    let first = nodes.store(0).range(all()).await.unwrap();
    for at in 1..3 {
        assert_eq!(nodes.store(at).range(all()).await.unwrap(), first);
    }
}

#[tokio::test(start_paused = true)]
async fn a_minority_neither_writes_nor_reads_the_newest_and_catches_up_later() {
    let nodes = Nodes::start(3, &Options::default());
    let old = nodes.leader().await;
    put(&**nodes.store(old), "a", "1").await;
    nodes.net.cut(nodes.nodes[old].id, true);
    let alone = nodes.store(old).clone();
    let refused = tokio::spawn(async move {
        let written = run(&*alone, vec![Op::put("lost", "1")]).await;
        let read = alone.range(all()).await;
        (written, read.map(|found| found.count))
    });
    let new = nodes.leader().await;
    assert_ne!(new, old);
    assert!(nodes.store(new).pulse().term > 2);
    put(&**nodes.store(new), "a", "2").await;
    let (written, read) = refused.await.unwrap();
    assert!(matches!(written, Err(Error::Timeout | Error::LeaderChanged)), "{written:?}");
    assert_eq!(read, Err(Error::Timeout));
    assert_eq!(nodes.store(old).pulse().leader, 0);
    // What it knows it still tells whoever is content with that.
    assert_eq!(serializable(&**nodes.store(old)).await, 1);
    nodes.net.cut(nodes.nodes[old].id, false);
    nodes.leader().await;
    assert_eq!(value(&**nodes.store(old), "a").await.unwrap(), "2");
    assert_eq!(get(&**nodes.store(old), "lost").await, None);
    assert_eq!(put(&**nodes.store(old), "b", "1").await, 4);
}

#[tokio::test(start_paused = true)]
async fn a_read_at_a_leader_that_was_replaced_sees_the_newer_write() {
    let nodes = Nodes::start(3, &Options::default());
    let old = nodes.leader().await;
    put(&**nodes.store(old), "a", "1").await;
    nodes.net.cut(nodes.nodes[old].id, true);
    let store = nodes.store(old).clone();
    let reading = tokio::spawn(async move { value(&*store, "a").await });
    let new = nodes.leader().await;
    put(&**nodes.store(new), "a", "2").await;
    nodes.net.cut(nodes.nodes[old].id, false);
    assert_eq!(reading.await.unwrap().unwrap(), "2");
}

#[tokio::test(start_paused = true)]
async fn crashed_members_come_back_with_all_that_was_acknowledged() {
    let small = Options { segment_bytes: 4096, checkpoint_bytes: 6000, ..Options::default() };
    let mut nodes = Nodes::start(3, &small);
    let mut written = 0;
    for round in 0..6 {
        let leader = nodes.leader().await;
        for n in 0..20 {
            let at = n % 3;
            put(&**nodes.store(at), &format!("k{round}/{n}"), &"v".repeat(200)).await;
            written += 1;
        }
        // The leader, a follower, and all of them.
        match round % 3 {
            0 => nodes.crash(leader),
            1 => nodes.crash(nodes.other(&[leader])),
            _ => (0..3).for_each(|at| nodes.crash(at)),
        }
        for at in 0..3 {
            if nodes.nodes[at].store.is_none() {
                nodes.restart(at);
            }
        }
    }
    nodes.leader().await;
    for at in 0..3 {
        assert_eq!(keys(&**nodes.store(at), "k").await.len(), written);
        assert_eq!(nodes.store(at).revision(), written as i64 + 1);
    }
}

#[tokio::test(start_paused = true)]
async fn the_leadership_is_handed_over_on_demand() {
    let nodes = Nodes::start(3, &Options::default());
    let old = nodes.leader().await;
    let new = nodes.other(&[old]);
    let target = nodes.nodes[new].id;
    assert_eq!(nodes.store(new).move_leader(target).await, Err(Error::NotLeader));
    assert_eq!(nodes.store(old).move_leader(7).await, Err(Error::BadTransferee));
    let term = nodes.store(old).pulse().term;
    let watching = nodes.store(old).leader_changed(nodes.nodes[old].id);
    nodes.store(old).move_leader(target).await.unwrap();
    assert_ne!(watching.await, nodes.nodes[old].id);
    assert_eq!(nodes.leader().await, new);
    assert_eq!(nodes.store(new).pulse().term, term + 1);
    put(&**nodes.store(old), "a", "1").await;
}

#[tokio::test(start_paused = true)]
async fn leases_are_renewed_through_any_member_and_end_at_the_leader() {
    let nodes = Nodes::start(3, &Options::default());
    let leader = nodes.leader().await;
    let follower = nodes.other(&[leader]);
    let store = nodes.store(follower);
    store.lease_grant(5, 10).await.unwrap();
    store.lease_grant(6, 10).await.unwrap();
    put_leased(&**store, "kept", 5).await.unwrap();
    put_leased(&**store, "lost", 6).await.unwrap();
    for _ in 0..4 {
        tokio::time::sleep(Duration::from_secs(4)).await;
        assert_eq!(store.lease_keep_alive(5).await.unwrap().ttl, 10);
    }
    assert_eq!(store.lease_keep_alive(6).await.unwrap().ttl, 0);
    assert_eq!(keys(&**store, "").await, ["kept"]);
    assert_eq!(store.leases().await.unwrap(), [5]);
    let lease = store.lease_time_to_live(5, true).await.unwrap();
    assert_eq!((lease.granted_ttl, lease.keys.len()), (10, 1));
    assert_eq!(store.lease_time_to_live(6, true).await.unwrap().ttl, -1);
}

#[tokio::test(start_paused = true)]
async fn a_new_leader_gives_leases_their_whole_time_and_the_old_one_ends_none() {
    let nodes = Nodes::start(3, &Options::default());
    let old = nodes.leader().await;
    nodes.store(old).lease_grant(5, 10).await.unwrap();
    put_leased(&**nodes.store(old), "leased", 5).await.unwrap();
    tokio::time::sleep(Duration::from_secs(7)).await;
    nodes.net.cut(nodes.nodes[old].id, true);
    let new = nodes.leader().await;
    let left = nodes.store(new).lease_time_to_live(5, false).await.unwrap().ttl;
    assert!(left >= 8, "{left}");
    // By now it would be over for the old one.
    tokio::time::sleep(Duration::from_secs(6)).await;
    assert_eq!(serializable(&**nodes.store(old)).await, 1);
    assert_eq!(serializable(&**nodes.store(new)).await, 1);
    nodes.net.cut(nodes.nodes[old].id, false);
    tokio::time::sleep(Duration::from_secs(6)).await;
    assert_eq!(keys(&**nodes.store(old), "").await.len(), 0);
}

#[tokio::test(start_paused = true)]
async fn a_watch_on_a_follower_sees_every_event_once_and_in_order() {
    let nodes = Nodes::start(3, &Options::default());
    let leader = nodes.leader().await;
    let follower = nodes.other(&[leader]);
    let mut watcher = watch(&**nodes.store(follower), "k", 0);
    for n in 0..50 {
        put(&**nodes.store(leader), &format!("k{n}"), "v").await;
    }
    for n in 0..50 {
        assert_eq!(events(&mut *watcher).await.0, n + 2);
    }
}

#[tokio::test(start_paused = true)]
async fn a_resting_cluster_writes_nothing_and_a_single_member_says_nothing() {
    let nodes = Nodes::start(3, &Options::default());
    nodes.leader().await;
    tokio::time::sleep(Duration::from_secs(30)).await;
    let syncs: Vec<usize> = nodes.nodes.iter().map(|node| node.disk.syncs()).collect();
    tokio::time::sleep(Duration::from_secs(600)).await;
    let after: Vec<usize> = nodes.nodes.iter().map(|node| node.disk.syncs()).collect();
    assert_eq!(syncs, after);
    let one = Nodes::start(1, &Options::default());
    assert_eq!(one.leader().await, 0);
    put(&**one.store(0), "a", "1").await;
    tokio::time::sleep(Duration::from_secs(600)).await;
    assert_eq!(one.net.delivered.load(Ordering::Relaxed), 0);
}

#[tokio::test(start_paused = true)]
async fn a_leader_whose_disk_fails_is_replaced_and_says_why() {
    let mut nodes = Nodes::start(3, &Options::default());
    let old = nodes.leader().await;
    put(&**nodes.store(old), "a", "1").await;
    nodes.nodes[old].disk.fail(Fault {
        operation: Operation::Sync,
        after: 0,
        kind: std::io::ErrorKind::Other,
    });
    let error = run(&**nodes.store(old), vec![Op::put("b", "1")]).await.unwrap_err();
    assert!(matches!(error, Error::Storage(_)), "{error:?}");
    assert_eq!(nodes.store(old).pulse().leader, 0);
    assert_eq!(nodes.store(old).range(all()).await.map(|found| found.count), Err(error.clone()));
    assert_eq!(serializable(&**nodes.store(old)).await, 1);
    let failed = nodes.nodes[old].id;
    nodes.net.cut(failed, true);
    let new = nodes.leader().await;
    put(&**nodes.store(new), "c", "1").await;
    nodes.net.cut(failed, false);
    // It never writes again, not even when the disk is well.
    tokio::time::sleep(Duration::from_secs(10)).await;
    assert_eq!(run(&**nodes.store(old), vec![Op::put("b", "2")]).await, Err(error));
    nodes.crash(old);
    nodes.restart(old);
    nodes.leader().await;
    nodes.reaches(old, nodes.store(new).revision()).await;
    assert_eq!(value(&**nodes.store(old), "c").await.unwrap(), "1");
}

#[tokio::test(start_paused = true)]
async fn a_full_disk_at_one_member_stops_nobody_else_and_heals() {
    let small = Options { segment_bytes: 20_000, ..Options::default() };
    let nodes = Nodes::start(3, &small);
    let leader = nodes.leader().await;
    let full = nodes.other(&[leader]);
    nodes.nodes[full].disk.set_capacity(Some(1));
    for n in 0..200 {
        put(&**nodes.store(leader), &format!("k{n}"), &"v".repeat(1000)).await;
    }
    assert!(nodes.store(full).revision() < 100);
    nodes.nodes[full].disk.set_capacity(None);
    nodes.reaches(full, nodes.store(leader).revision()).await;
    // At the leader, writes are refused and nothing else.
    nodes.nodes[leader].disk.set_capacity(Some(1));
    let mut refused = Ok(());
    for n in 0..200 {
        let op = Op::put(format!("l{n}"), "v".repeat(1000));
        refused = run(&**nodes.store(leader), vec![op]).await.map(drop);
        if refused.is_err() {
            break;
        }
    }
    assert_eq!(refused, Err(Error::NoSpace));
    // It says so, and the others do not: they could write.
    let alarm = Alarm { member: nodes.nodes[leader].id, kind: AlarmKind::NoSpace };
    let alarms = |at: usize| Admin::status(&**nodes.store(at)).alarms;
    assert_eq!((alarms(leader), alarms(full)), (vec![alarm], vec![]));
    tokio::time::sleep(Duration::from_secs(10)).await;
    assert_eq!(alarms(leader), [alarm]);
    assert_eq!(nodes.leader().await, leader);
    assert_eq!(value(&**nodes.store(leader), "k7").await.unwrap().len(), 1000);
    assert_eq!(value(&**nodes.store(full), "k7").await.unwrap().len(), 1000);
    nodes.nodes[leader].disk.set_capacity(None);
    // It is looked for when somebody asks.
    let _ = alarms(leader);
    assert_eq!(alarms(leader), []);
    put(&**nodes.store(leader), "again", "1").await;
}

#[tokio::test(start_paused = true)]
async fn a_member_that_lost_its_data_is_told_so_and_harms_nobody() {
    let mut nodes = Nodes::start(3, &Options::default());
    let leader = nodes.leader().await;
    for n in 0..20 {
        put(&**nodes.store(leader), &format!("k{n}"), "v").await;
    }
    let lost = nodes.other(&[leader]);
    nodes.crash(lost);
    nodes.nodes[lost].disk = dhow_clock::disk::Memory::new();
    nodes.restart(lost);
    tokio::time::sleep(Duration::from_secs(3)).await;
    put(&**nodes.store(leader), "on", "1").await;
    let error = run(&**nodes.store(lost), vec![Op::put("a", "1")]).await;
    match error {
        Err(Error::Storage(text)) => assert!(text.contains("has lost entries"), "{text}"),
        // The leader may find out first that it has nothing, and send everything again.
        Ok(_) => nodes.reaches(lost, nodes.store(leader).revision()).await,
        other => panic!("{other:?}"),
    }
}

#[tokio::test(start_paused = true)]
async fn five_members_go_on_without_two() {
    let mut nodes = Nodes::start(5, &Options::default());
    let leader = nodes.leader().await;
    put(&**nodes.store(leader), "a", "1").await;
    let other = nodes.other(&[leader]);
    nodes.crash(leader);
    nodes.crash(other);
    let new = nodes.leader().await;
    put(&**nodes.store(new), "b", "1").await;
    let third = nodes.other(&[leader, other, new]);
    nodes.crash(third);
    let refused = run(&**nodes.store(new), vec![Op::put("c", "1")]).await;
    assert_eq!(refused, Err(Error::Timeout));
    nodes.restart(third);
    nodes.leader().await;
    put(&**nodes.store(third), "d", "1").await;
}

#[tokio::test(start_paused = true)]
async fn a_leader_that_is_cut_off_renews_no_lease() {
    let nodes = Nodes::start(3, &Options::default());
    let leader = nodes.leader().await;
    let store = nodes.store(leader);
    store.lease_grant(5, 60).await.unwrap();
    assert_eq!(store.lease_keep_alive(5).await.unwrap().ttl, 60);
    nodes.net.cut(nodes.nodes[leader].id, true);
    // It does not know yet that another may lead.
    assert_eq!(store.lease_keep_alive(5).await, Err(Error::Timeout));
    nodes.net.cut(nodes.nodes[leader].id, false);
    nodes.leader().await;
    assert_eq!(store.lease_keep_alive(5).await.unwrap().ttl, 60);
}

#[tokio::test(start_paused = true)]
async fn a_leader_that_is_cut_off_renews_no_lease_for_a_follower_that_is_with_it() {
    let nodes = Nodes::start(5, &Options::default());
    let leader = nodes.leader().await;
    let follower = nodes.other(&[leader]);
    let store = nodes.store(follower).clone();
    store.lease_grant(5, 60).await.unwrap();
    assert_eq!(store.lease_keep_alive(5).await.unwrap().ttl, 60);
    let id = |at: usize| nodes.nodes[at].id;
    let rest: Vec<u64> = (0..5).filter(|at| ![leader, follower].contains(at)).map(id).collect();
    nodes.net.part(&[id(leader), id(follower)], &rest);
    // Neither knows yet that another may lead.
    assert_eq!(store.lease_keep_alive(5).await, Err(Error::Timeout));
    assert_eq!(store.lease_time_to_live(5, false).await, Err(Error::Timeout));
    nodes.net.heal();
    nodes.leader().await;
    assert_eq!(store.lease_keep_alive(5).await.unwrap().ttl, 60);
}
