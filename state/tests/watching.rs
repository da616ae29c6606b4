//! Lists and watches: revisions, chunks, selectors, resumption.

mod common;

use common::{config_map, create, kv, me, next, open, options, short, state};
use dhow_objects::kinds;
use dhow_objects::selectors::{FieldSelector, LabelSelector};
use dhow_state::{DeleteOptions, ListOptions, Patch, State, WatchEvent, WatchOptions};
use serde_json::json;

async fn make(state: &State, name: &str) -> u64 {
    create(state, &kinds::SECRET, json!({"metadata": {"name": name}})).await.unwrap().revision
}

async fn label(state: &State, name: &str, value: &str) -> u64 {
    let patch = Patch::Merge(json!({"metadata": {"labels": {"x": value}}}));
    let done = state.patch(&me(), &kinds::SECRET, "default", name, "", patch, &options()).await;
    done.unwrap().0.revision
}

async fn drop_it(state: &State, name: &str) {
    let options = DeleteOptions::default();
    state.delete(&me(), &kinds::SECRET, "default", name, &options).await.unwrap();
}

async fn names(state: &State, options: &ListOptions) -> (Vec<String>, dhow_state::List) {
    let list = state.list(&kinds::SECRET, None, options).await.unwrap();
    (list.items.iter().map(|o| o.name.clone()).collect(), list)
}

#[tokio::test]
async fn a_watch_tells_what_is_and_then_what_happens() {
    let state = state().await;
    make(&state, "a").await;
    let mut watch =
        state.watch(&kinds::SECRET, Some("default"), WatchOptions::default()).await.unwrap();
    make(&state, "b").await;
    label(&state, "a", "1").await;
    drop_it(&state, "b").await;
    let mut told = Vec::new();
    for _ in 0..4 {
        told.push(next(&mut watch).await);
    }
    assert_eq!(told.iter().map(short).collect::<Vec<_>>(), ["+a", "+b", "~a", "-b"]);
    let WatchEvent::Deleted(gone) = &told[3] else { panic!("a deletion") };
    assert_eq!(gone.value()["metadata"]["resourceVersion"], state.revision().to_string());
}

#[tokio::test]
async fn a_watch_resumes_after_a_revision_and_expires_before_the_history() {
    let kv = kv();
    let first = open(kv.clone()).await;
    let old = make(&first, "a").await;
    drop(first);
    let state = open(kv).await;
    let from = make(&state, "b").await;
    label(&state, "b", "1").await;
    let resume = |revision| WatchOptions { revision: Some(revision), ..WatchOptions::default() };
    let mut watch = state.watch(&kinds::SECRET, None, resume(from)).await.unwrap();
    assert_eq!(short(&next(&mut watch).await), "~b");
    let refusal = state.watch(&kinds::SECRET, None, resume(old - 1)).await.unwrap_err();
    assert_eq!((refusal.code, refusal.reason), (410, "Expired"));
    assert!(refusal.message.starts_with("too old resource version: "), "{}", refusal.message);
}

#[tokio::test]
async fn an_object_that_ceases_to_match_is_deleted_for_the_watcher() {
    let state = state().await;
    make(&state, "a").await;
    let labels = LabelSelector::parse("x=1").unwrap();
    let options = WatchOptions { labels, ..WatchOptions::default() };
    let mut watch = state.watch(&kinds::SECRET, None, options).await.unwrap();
    label(&state, "a", "1").await;
    label(&state, "a", "2").await;
    label(&state, "a", "1").await;
    let told = [next(&mut watch).await, next(&mut watch).await, next(&mut watch).await];
    assert_eq!(told.iter().map(short).collect::<Vec<_>>(), ["+a", "-a", "+a"]);
}

#[tokio::test]
async fn a_field_selector_narrows_to_one_name() {
    let state = state().await;
    let fields = FieldSelector::parse("metadata.name=b").unwrap().for_kind(&kinds::SECRET).unwrap();
    let options = WatchOptions { fields: fields.clone(), ..WatchOptions::default() };
    let mut watch = state.watch(&kinds::SECRET, None, options).await.unwrap();
    make(&state, "a").await;
    make(&state, "b").await;
    assert_eq!(short(&next(&mut watch).await), "+b");
    let list = ListOptions { fields, ..ListOptions::default() };
    assert_eq!(names(&state, &list).await.0, ["b"]);
}

#[tokio::test]
async fn a_streaming_list_ends_its_first_part_with_a_bookmark() {
    let state = state().await;
    make(&state, "a").await;
    let options =
        WatchOptions { send_initial_events: true, bookmarks: true, ..WatchOptions::default() };
    let mut watch = state.watch(&kinds::SECRET, None, options).await.unwrap();
    assert_eq!(short(&next(&mut watch).await), "+a");
    let WatchEvent::Bookmark { revision, initial_end: true } = next(&mut watch).await else {
        panic!("a bookmark that ends the list");
    };
    assert_eq!(revision, state.revision());
}

#[tokio::test]
async fn a_watcher_that_does_not_keep_up_is_ended_and_delays_nobody() {
    let state = state().await;
    make(&state, "a").await;
    let mut slow = state.watch(&kinds::SECRET, None, WatchOptions::default()).await.unwrap();
    for n in 0..2100 {
        label(&state, "a", &n.to_string()).await;
    }
    let mut events = 0;
    loop {
        match slow.next().await {
            Some(WatchEvent::Error(refusal)) => {
                assert_eq!(refusal.code, 410);
                break;
            }
            Some(_) => events += 1,
            None => panic!("an error before the end"),
        }
    }
    assert!((2000..2101).contains(&events), "{events}");
    assert!(slow.next().await.is_none());
}

#[tokio::test]
async fn chunks_of_a_list_show_one_revision() {
    let state = state().await;
    for name in ["a", "b", "c", "d"] {
        make(&state, name).await;
    }
    let page = ListOptions { limit: 2, ..ListOptions::default() };
    let (first, list) = names(&state, &page).await;
    assert_eq!(first, ["a", "b"]);
    assert_eq!(list.remaining, Some(2));
    drop_it(&state, "c").await;
    make(&state, "bb").await;
    let rest =
        ListOptions { continue_token: list.continue_token, limit: 5, ..ListOptions::default() };
    let (second, rest) = names(&state, &rest).await;
    assert_eq!(second, ["c", "d"]);
    assert_eq!((rest.revision, rest.continue_token.as_str()), (list.revision, ""));
}

#[tokio::test]
async fn a_list_at_an_exact_revision_comes_from_history_and_from_the_store() {
    let kv = kv();
    let state = open(kv.clone()).await;
    let then = make(&state, "a").await;
    make(&state, "b").await;
    drop_it(&state, "a").await;
    let exact = ListOptions {
        revision: Some(then),
        revision_match: "Exact".into(),
        ..ListOptions::default()
    };
    assert_eq!(names(&state, &exact).await.0, ["a"]);
    // After a restart the cache has no history of that time; the store has.
    drop(state);
    let state = open(kv.clone()).await;
    make(&state, "c").await;
    assert_eq!(names(&state, &exact).await.0, ["a"]);
    kv.compact(i64::try_from(state.revision()).unwrap(), true).await.unwrap();
    make(&state, "d").await;
    let refusal = state.list(&kinds::SECRET, None, &exact).await.unwrap_err();
    assert_eq!(refusal.code, 410);
}

#[tokio::test]
async fn options_that_contradict_each_other_are_refused() {
    let state = state().await;
    let alone = ListOptions { revision_match: "Exact".into(), ..ListOptions::default() };
    assert_eq!(state.list(&kinds::SECRET, None, &alone).await.unwrap_err().code, 422);
    let token = ListOptions { continue_token: "rubbish".into(), ..ListOptions::default() };
    assert_eq!(state.list(&kinds::SECRET, None, &token).await.unwrap_err().code, 400);
}

#[tokio::test]
async fn reads_do_not_wait_for_ever_when_others_write_to_the_store() {
    let kv = kv();
    let state = open(kv.clone()).await;
    let put = dhow_kv::Op::put("/somebody/else", "1");
    kv.txn(dhow_kv::Txn { success: vec![put], ..dhow_kv::Txn::default() }).await.unwrap();
    create(&state, &kinds::CONFIG_MAP, config_map("a", &json!({}))).await.unwrap();
    kv.txn(dhow_kv::Txn {
        success: vec![dhow_kv::Op::put("/somebody/else", "2")],
        ..dhow_kv::Txn::default()
    })
    .await
    .unwrap();
    let list = state.list(&kinds::CONFIG_MAP, None, &ListOptions::default()).await.unwrap();
    assert_eq!(list.revision, u64::try_from(kv.revision()).unwrap());
}

#[tokio::test]
async fn events_are_one_kind_in_two_groups() {
    let state = state().await;
    let event = json!({
        "metadata": {"name": "e"},
        "involvedObject": {"kind": "Pod", "namespace": "default", "name": "a"},
        "reason": "Started", "message": "went well", "type": "Normal",
    });
    create(&state, &kinds::EVENT, event).await.unwrap();
    let other = state.get(&kinds::EVENTS_EVENT, "default", "e").await.unwrap();
    assert_eq!(other.value()["apiVersion"], "events.k8s.io/v1");
    assert_eq!(other.value()["regarding"]["name"], "a");
    assert_eq!(other.value()["note"], "went well");
}

#[tokio::test]
async fn an_idle_watch_gets_a_bookmark_about_once_a_minute_when_something_moved() {
    let clock = common::Manual::shared();
    let state = State::open(kv(), clock.clone(), dhow_state::Config::for_tests()).await.unwrap();
    let asks = WatchOptions { bookmarks: true, ..WatchOptions::default() };
    let mut watch = state.watch(&kinds::SECRET, None, asks).await.unwrap();
    let mut silent = state.watch(&kinds::SECRET, None, WatchOptions::default()).await.unwrap();
    create(&state, &kinds::CONFIG_MAP, config_map("a", &json!({}))).await.unwrap();
    clock.forward(61);
    let moved = create(&state, &kinds::CONFIG_MAP, config_map("b", &json!({}))).await.unwrap();
    create(&state, &kinds::CONFIG_MAP, config_map("c", &json!({}))).await.unwrap();
    let WatchEvent::Bookmark { revision, initial_end: false } = next(&mut watch).await else {
        panic!("a bookmark");
    };
    assert_eq!(revision, moved.revision);
    make(&state, "s").await;
    assert_eq!(short(&next(&mut watch).await), "+s");
    assert_eq!(short(&next(&mut silent).await), "+s");
}

#[tokio::test]
async fn a_revision_that_has_not_happened_is_waited_for_and_then_refused() {
    let clock = common::Manual::shared();
    let state = State::open(kv(), clock, dhow_state::Config::for_tests()).await.unwrap();
    let options = ListOptions { revision: Some(1_000_000), ..ListOptions::default() };
    let refusal = state.list(&kinds::SECRET, None, &options).await.unwrap_err();
    assert_eq!((refusal.code, refusal.reason), (504, "Timeout"));
    assert!(refusal.message.starts_with("Too large resource version: 1000000, current: "));
}

#[tokio::test]
async fn all_watchers_see_the_same_order() {
    let state = state().await;
    let mut watches = Vec::new();
    for _ in 0..4 {
        watches.push(state.watch(&kinds::SECRET, None, WatchOptions::default()).await.unwrap());
    }
    let writers: Vec<_> = (0..4)
        .map(|w| {
            let state = state.clone();
            tokio::spawn(async move {
                for n in 0..20 {
                    make(&state, &format!("s{w}-{n}")).await;
                }
            })
        })
        .collect();
    let mut orders = Vec::new();
    for watch in &mut watches {
        let mut order = Vec::new();
        for _ in 0..80 {
            order.push(short(&next(watch).await));
        }
        orders.push(order);
    }
    for writer in writers {
        writer.await.unwrap();
    }
    assert!(orders.windows(2).all(|w| w[0] == w[1]));
}
