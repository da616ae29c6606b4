//! Members come, learn, vote, move and go; who is too far behind gets a snapshot.

mod common;

use common::net::{Nodes, urls};
use common::*;
use dhow_kv::admin::{Admin, Alarm, AlarmKind, AuthChange};
use dhow_kv::{Backend, Error, Op, WatchEvent};
use dhow_server::{Options, Retention, Standing};
use std::time::Duration;

/// Little logs, so that followers fall behind them soon.
fn small() -> Options {
    Options { segment_bytes: 64 << 10, checkpoint_bytes: 100_000, ..Options::default() }
}

async fn fill(nodes: &Nodes, at: usize, count: usize) {
    for n in 0..count / 100 {
        let puts = (0..100).map(|m| Op::put(format!("k{:04}", (n * 100 + m) % 3000), vec![7; 100]));
        run(&**nodes.store(at), puts.collect()).await.unwrap();
    }
}

#[tokio::test(start_paused = true)]
async fn a_single_member_grows_to_three_and_shrinks_again() {
    let mut nodes = Nodes::start(1, &small());
    nodes.leader().await;
    nodes.store(0).lease_grant(5, 600).await.unwrap();
    put_leased(&**nodes.store(0), "leased", 5).await.unwrap();
    fill(&nodes, 0, 5000).await;
    for name in ["m2", "m3"] {
        let (added, all) = nodes.store(0).member_add(urls(name), false).await.unwrap();
        assert!(all.contains(&added) && added.name.is_empty());
        let at = nodes.join(name, added.id);
        nodes.reaches(at, nodes.store(0).revision()).await;
        assert_eq!(keys(&**nodes.store(at), "").await, keys(&**nodes.store(0), "").await);
        assert_eq!(nodes.store(at).lease_time_to_live(5, true).await.unwrap().keys, ["leased"]);
        tokio::time::sleep(Duration::from_secs(3)).await;
        let all = nodes.store(0).members(true).await.unwrap();
        assert!(all.iter().all(|member| !member.name.is_empty()), "{all:?}");
    }
    // The one from the beginning goes, although it leads.
    let leader = nodes.leader().await;
    let id = nodes.nodes[leader].id;
    let by = nodes.other(&[leader]);
    let left = nodes.store(by).member_remove(id).await.unwrap();
    assert_eq!(left.len(), 2);
    nodes.store(leader).removed().await;
    assert_eq!(run(&**nodes.store(leader), vec![Op::put("a", "1")]).await, Err(Error::Stopped));
    nodes.crash(leader);
    nodes.leader().await;
    assert_eq!(nodes.store(by).standing(id), Standing::Removed);
    put(&**nodes.store(by), "after", "1").await;
    let other = nodes.other(&[leader, by]);
    let its = nodes.nodes[other].id;
    tokio::time::sleep(Duration::from_secs(3)).await;
    let leads = nodes.leader().await;
    if leads == other {
        let to = nodes.nodes[by].id;
        nodes.store(other).move_leader(to).await.unwrap();
        nodes.leader().await;
    }
    nodes.store(by).member_remove(its).await.unwrap();
    nodes.crash(other);
    put(&**nodes.store(by), "alone", "1").await;
    assert!(nodes.store(by).member_remove(nodes.nodes[by].id).await.is_err());
    // What it knows, it knows after a restart.
    nodes.crash(by);
    nodes.restart(by);
    assert_eq!(nodes.leader().await, by);
    assert_eq!(value(&**nodes.store(by), "alone").await.unwrap(), "1");
    assert_eq!(nodes.store(by).standing(id), Standing::Removed);
}

#[tokio::test(start_paused = true)]
async fn a_leader_that_is_removed_hands_over_first() {
    for by_itself in [true, false] {
        let nodes = Nodes::start(3, &small());
        let leader = nodes.leader().await;
        let gone = nodes.nodes[leader].id;
        let other = nodes.store(nodes.other(&[leader]));
        let asked = if by_itself { nodes.store(leader) } else { other };
        let start = tokio::time::Instant::now();
        let left = asked.member_remove(gone).await.unwrap();
        assert!(left.iter().all(|member| member.id != gone));
        // Nobody waits for an election, and nothing is sent to one that has gone.
        put(&**other, "after", "1").await;
        let took = start.elapsed();
        assert!(took < Duration::from_millis(700), "{took:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_leader_can_be_removed_once_all_have_been_heard_of_for_long_enough() {
    let settled = Duration::from_secs(5);
    let mut nodes = Nodes::start(3, &small());
    for at in 0..3 {
        nodes.nodes[at].options.cluster.as_mut().unwrap().settled = settled;
        nodes.crash(at);
    }
    (0..3).for_each(|at| nodes.restart(at));
    let leader = nodes.leader().await;
    let gone = nodes.nodes[leader].id;
    assert_eq!(nodes.store(leader).member_remove(gone).await, Err(Error::Unhealthy));
    tokio::time::sleep(settled + Duration::from_secs(1)).await;
    // Whoever leads next has heard of the others all the time.
    let left = nodes.store(leader).member_remove(gone).await.unwrap();
    assert!(left.iter().all(|member| member.id != gone));
    let other = nodes.other(&[leader]);
    let (added, _) = nodes.store(other).member_add(urls("m4"), false).await.unwrap();
    // The new one counts as down: only when it is there another may come.
    assert_eq!(
        nodes.store(other).member_add(urls("m5"), false).await,
        Err(Error::NotEnoughStarted)
    );
    let at = nodes.join("m4", added.id);
    nodes.reaches(at, nodes.store(other).revision()).await;
}

#[tokio::test(start_paused = true)]
async fn a_learner_follows_does_not_vote_and_is_promoted_when_it_has_caught_up() {
    let mut nodes = Nodes::start(3, &small());
    let leader = nodes.leader().await;
    fill(&nodes, leader, 3000).await;
    tokio::time::sleep(Duration::from_secs(2)).await;
    let (learner, _) = nodes.store(leader).member_add(urls("m4"), true).await.unwrap();
    assert!(learner.learner);
    let again = nodes.store(leader).member_add(urls("m5"), true).await;
    assert_eq!(again, Err(Error::TooManyLearners));
    let taken = nodes.store(leader).member_add(urls("m4"), false).await;
    assert_eq!(taken, Err(Error::PeerUrlExists));
    let bad = nodes.store(leader).member_add(vec!["m5".into()], false).await;
    assert_eq!(bad, Err(Error::BadMemberUrls));
    let unready = nodes.store(leader).member_promote(learner.id).await;
    assert_eq!(unready, Err(Error::LearnerNotReady));
    let voter = nodes.nodes[leader].id;
    assert_eq!(nodes.store(leader).member_promote(voter).await, Err(Error::NotLearner));
    assert_eq!(nodes.store(leader).member_promote(7).await, Err(Error::MemberNotFound));
    let at = nodes.join("m4", learner.id);
    nodes.reaches(at, nodes.store(leader).revision()).await;
    assert!(nodes.store(at).pulse().learner);
    let refused = nodes.store(leader).move_leader(learner.id).await;
    assert_eq!(refused, Err(Error::BadTransferee));
    tokio::time::sleep(Duration::from_secs(1)).await;
    // Through a follower, as clients may.
    let follower = nodes.other(&[leader, at]);
    let all = nodes.store(follower).member_promote(learner.id).await.unwrap();
    assert!(all.iter().all(|member| !member.learner));
    let moved = vec!["http://elsewhere:2380".to_owned()];
    let all = nodes.store(at).member_update(learner.id, moved.clone()).await.unwrap();
    assert!(all.iter().any(|member| member.peer_urls == moved));
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert!(!nodes.store(at).pulse().learner);
    // Now three of four are needed, and it is one of them.
    nodes.crash(nodes.other(&[at, leader]));
    nodes.leader().await;
    put(&**nodes.store(at), "a", "1").await;
}

#[tokio::test(start_paused = true)]
async fn a_member_that_was_away_too_long_gets_a_snapshot_while_writes_go_on() {
    let retention = Retention { newest: 500, age: Duration::ZERO, most: 1000 };
    let mut nodes = Nodes::start(3, &Options { retention: Some(retention), ..small() });
    let leader = nodes.leader().await;
    let slow = nodes.other(&[leader]);
    let mut watcher = watch(&**nodes.store(slow), "k", 0);
    nodes.net.cut(nodes.nodes[slow].id, true);
    nodes.store(leader).auth_change(AuthChange::RoleAdd("own".into())).await.unwrap();
    for n in 0..12_000 {
        let key = format!("k{:04}", n % 3000);
        run(&**nodes.store(leader), vec![Op::put(key, vec![n as u8; 100])]).await.unwrap();
    }
    let name = |names: Vec<String>| names.iter().any(|name| name == "log-0000000000000001");
    let names = dhow_clock::disk::Disk::list(&nodes.nodes[leader].disk, "/data".as_ref());
    assert!(!name(names.unwrap()), "the old log should be gone");
    nodes.net.cut(nodes.nodes[slow].id, false);
    let store = nodes.store(leader).clone();
    let writing = tokio::spawn(async move {
        for n in 0..300 {
            put(&*store, &format!("new{n}"), "v").await;
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    });
    writing.await.unwrap();
    nodes.reaches(slow, nodes.store(leader).revision()).await;
    let (one, other) = (nodes.store(slow), nodes.store(leader));
    assert_eq!(keys(&**one, "").await, keys(&**other, "").await);
    assert_eq!((one.auth_status().revision, other.auth_status().revision), (2, 2));
    let compacted = match watcher.next().await {
        Some(WatchEvent::Compacted(revision)) => revision,
        // It may have seen some of what came before it was cut off.
        other => panic!("{other:?}"),
    };
    assert!(compacted > 2);
    // A restart finds what the snapshot brought.
    let revision = nodes.store(leader).revision();
    nodes.crash(slow);
    nodes.restart(slow);
    assert!(nodes.store(slow).revision() >= compacted);
    nodes.leader().await;
    nodes.reaches(slow, revision).await;
    assert_eq!(put(&**nodes.store(slow), "last", "1").await, revision + 1);
}

#[tokio::test(start_paused = true)]
async fn the_strict_check_protects_the_quorum() {
    let mut nodes = Nodes::start(3, &small());
    let leader = nodes.leader().await;
    let down = nodes.other(&[leader]);
    nodes.crash(down);
    tokio::time::sleep(Duration::from_secs(3)).await;
    // Two of four would be up, which is less than a quorum: so no fourth, learner or not.
    for learner in [false, true] {
        let fourth = nodes.store(leader).member_add(urls("m4"), learner).await;
        assert_eq!(fourth, Err(Error::Unhealthy));
    }
    nodes.restart(down);
    let leader = nodes.leader().await;
    tokio::time::sleep(Duration::from_secs(2)).await;
    let (added, _) = nodes.store(leader).member_add(urls("m4"), false).await.unwrap();
    let down = nodes.other(&[leader]);
    nodes.crash(down);
    tokio::time::sleep(Duration::from_secs(3)).await;
    // Two of four are up, which is less than a quorum: nothing goes.
    let third = nodes.store(leader).member_remove(added.id).await;
    assert!(third.is_err(), "{third:?}");
    nodes.restart(down);
    let leader = nodes.leader().await;
    nodes.store(leader).member_remove(added.id).await.unwrap();
    assert_eq!(nodes.store(leader).member_remove(added.id).await, Err(Error::MemberNotFound));
    assert_eq!(nodes.store(leader).members(true).await.unwrap().len(), 3);
}

#[tokio::test(start_paused = true)]
async fn an_alarm_stops_puts_on_all_members_until_it_is_ended() {
    let options = Options { quota_bytes: 100_000, quota_alarm: true, ..Options::default() };
    let nodes = Nodes::start(3, &options);
    nodes.leader().await;
    let mut n = 0;
    while run(&**nodes.store(0), vec![Op::put(format!("k{n}"), vec![7; 1000])]).await.is_ok() {
        n += 1;
    }
    assert!(n > 50);
    let alarms = loop {
        let alarms = Admin::status(&**nodes.store(1)).alarms;
        if !alarms.is_empty() {
            break alarms;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    };
    assert_eq!(alarms, [Alarm { member: nodes.nodes[0].id, kind: AlarmKind::NoSpace }]);
    for at in 0..3 {
        let put = run(&**nodes.store(at), vec![Op::put("a", "1")]).await;
        assert_eq!(put, Err(Error::NoSpace));
        assert_eq!(nodes.store(at).lease_grant(0, 60).await.unwrap_err(), Error::NoSpace);
    }
    let prefix = dhow_kv::Span::prefix("k");
    run(&**nodes.store(2), vec![Op::Delete { span: prefix, prev_kv: false }]).await.unwrap();
    let revision = nodes.store(2).revision();
    nodes.store(2).compact(revision, true).await.unwrap();
    let put_again = run(&**nodes.store(1), vec![Op::put("a", "1")]).await;
    assert_eq!(put_again, Err(Error::NoSpace), "deleting alone does not end it");
    let ended = nodes.store(1).alarm_disarm(0, None).await.unwrap();
    assert_eq!(ended, alarms);
    put(&**nodes.store(0), "a", "1").await;
}

#[tokio::test(start_paused = true)]
async fn a_store_that_was_alone_becomes_the_first_of_several_with_its_data() {
    let mut nodes = Nodes::start(1, &small());
    nodes.crash(0);
    // The same directory as one that was never told of others.
    let disk = dhow_clock::disk::Memory::new();
    let clock = common::net::Virtual::shared(9);
    let options = Options { inline: true, ..small() };
    let open = std::sync::Arc::new(disk.clone());
    let store = dhow_server::Store::open_on(open, "/data".as_ref(), clock, options).unwrap();
    put(&*store, "old", "1").await;
    let identity = store.identity();
    drop(store);
    nodes.nodes[0].disk = disk;
    nodes.adopt(0, identity.member_id);
    nodes.restart(0);
    assert_eq!(nodes.store(0).identity(), identity);
    nodes.leader().await;
    let own = &nodes.store(0).members(true).await.unwrap()[0];
    assert_eq!((own.id, &*own.name, own.peer_urls.clone()), (identity.member_id, "m1", urls("m1")));
    let (added, _) = nodes.store(0).member_add(urls("m2"), false).await.unwrap();
    let at = nodes.join("m2", added.id);
    // It comes back before it has heard anything.
    nodes.crash(at);
    nodes.restart(at);
    nodes.reaches(at, nodes.store(0).revision()).await;
    assert_eq!(value(&**nodes.store(at), "old").await.unwrap(), "1");
    assert_eq!(put(&**nodes.store(at), "new", "1").await, 3);
}

#[tokio::test(start_paused = true)]
async fn a_directory_opens_only_as_what_it_is() {
    let mut nodes = Nodes::start(3, &small());
    nodes.leader().await;
    nodes.crash(0);
    let open = |disk: &dhow_clock::disk::Memory, options: Options| {
        let disk = std::sync::Arc::new(disk.clone());
        let clock = common::net::Virtual::shared(7);
        dhow_server::Store::open_on(disk, "/data".as_ref(), clock, options).map(drop)
    };
    let alone = open(&nodes.nodes[0].disk, small()).unwrap_err().to_string();
    assert!(alone.contains("/data") && alone.contains("several members"), "{alone}");
    let mut options = nodes.nodes[0].options.clone();
    if let Some(cluster) = &mut options.cluster {
        cluster.start = dhow_server::Start::Existing(None);
    }
    let nobody = open(&dhow_clock::disk::Memory::new(), options.clone()).unwrap_err().to_string();
    assert!(nobody.contains("no member"), "{nobody}");
    // It knows already, so it needs no introduction.
    open(&nodes.nodes[0].disk, options.clone()).unwrap();
    if let Some(cluster) = &mut options.cluster {
        let mut introduction = nodes.some().introduction();
        introduction.members.retain(|member| member.name != "m1");
        cluster.start = dhow_server::Start::Existing(Some(introduction));
    }
    let missing = open(&dhow_clock::disk::Memory::new(), options.clone()).unwrap_err().to_string();
    assert!(missing.contains("add it first"), "{missing}");
    if let Some(cluster) = &mut options.cluster {
        cluster.start = dhow_server::Start::New;
        cluster.peer_urls = urls("elsewhere");
    }
    let stranger = open(&dhow_clock::disk::Memory::new(), options).unwrap_err().to_string();
    assert!(stranger.contains("not among the initial members"), "{stranger}");
}
