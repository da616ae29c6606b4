//! A state over a store in memory, and what the tests say often.
#![allow(dead_code)]

use dhow_clock::System;
use dhow_kv::Kv;
use dhow_objects::kinds::Kind;
use dhow_state::{Actor, Config, Object, Result, State, User, Watch, WatchEvent, WriteOptions};
use serde_json::{Value, json};
use std::sync::Arc;
use std::time::Duration;

pub fn kv() -> Kv {
    Kv::new(dhow_server::Store::memory(System::shared()))
}

pub async fn open(kv: Kv) -> State {
    State::open(kv, System::shared(), Config::for_tests()).await.unwrap()
}

pub async fn state() -> State {
    open(kv()).await
}

pub fn me() -> Actor {
    Actor {
        user: User { name: "me".into(), groups: vec!["system:masters".into()], ..User::default() },
        manager: "tests".into(),
        because: 0,
    }
}

pub fn options() -> WriteOptions {
    WriteOptions::default()
}

pub async fn create(state: &State, kind: &'static Kind, value: Value) -> Result<Arc<Object>> {
    let namespace = if kind.namespaced { "default" } else { "" };
    state.create(&me(), kind, namespace, value, &options()).await
}

pub fn pod(name: &str) -> Value {
    json!({
        "metadata": {"name": name, "labels": {"app": name}},
        "spec": {"containers": [{"name": "main", "image": "shop:1"}]},
    })
}

pub fn config_map(name: &str, data: &Value) -> Value {
    json!({"metadata": {"name": name}, "data": data})
}

/// The next event, which must come soon.
pub async fn next(watch: &mut Watch) -> WatchEvent {
    tokio::time::timeout(Duration::from_secs(10), watch.next())
        .await
        .expect("an event")
        .expect("a live watch")
}

/// The event in short: `+name`, `~name`, `-name`, `=` for bookmarks, `!` for errors.
pub fn short(event: &WatchEvent) -> String {
    match event {
        WatchEvent::Added(o) => format!("+{}", o.name),
        WatchEvent::Modified(o) => format!("~{}", o.name),
        WatchEvent::Deleted(o) => format!("-{}", o.name),
        WatchEvent::Bookmark { .. } => "=".into(),
        WatchEvent::Error(e) => format!("!{}", e.reason),
    }
}

/// A clock that stands still until it is moved.
#[derive(Debug)]
pub struct Manual(std::sync::atomic::AtomicU64, System);

impl Manual {
    pub fn shared() -> Arc<Self> {
        Arc::new(Self(1_800_000_000.into(), System::new()))
    }

    pub fn forward(&self, seconds: u64) {
        self.0.fetch_add(seconds, std::sync::atomic::Ordering::SeqCst);
    }
}

impl dhow_clock::Clock for Manual {
    fn now(&self) -> Duration {
        Duration::from_secs(self.0.load(std::sync::atomic::Ordering::SeqCst))
    }

    fn monotonic(&self) -> Duration {
        self.now()
    }

    fn sleep(&self, _period: Duration) -> dhow_clock::BoxFuture<'static, ()> {
        Box::pin(std::future::ready(()))
    }

    fn random(&self) -> u64 {
        self.1.random()
    }
}
