//! Three members with threads, real time and real files.

mod common;

use bytes::Bytes;
use common::*;
use dhow_clock::System;
use dhow_kv::admin::{Admin, Member};
use dhow_kv::{Backend, Range, Span};
use dhow_server::{Cluster, Options, Store, Transport};
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::sync::mpsc;

type Packet = (u64, u64, Bytes);

#[derive(Debug)]
struct Way(u64, mpsc::UnboundedSender<Packet>);

impl Transport for Way {
    fn send(&self, to: u64, message: Bytes) {
        let _ = self.1.send((self.0, to, message));
    }

    fn members(&self, _: &[Member]) {}
}

type Stores = Arc<Mutex<BTreeMap<u64, Arc<Store>>>>;

fn open(home: &Path, name: &str, way: mpsc::UnboundedSender<Packet>) -> Arc<Store> {
    let names = ["m1", "m2", "m3"];
    let initial: Vec<_> =
        names.iter().map(|name| (name.to_string(), common::net::urls(name))).collect();
    let mut cluster = Cluster::new(name, initial, Arc::new(Way(0, way.clone())));
    let own = cluster.first_members().into_iter().find(|member| member.name == name).unwrap();
    cluster.transport = Arc::new(Way(own.id, way));
    cluster.heartbeat = Duration::from_millis(20);
    cluster.election = Duration::from_millis(300);
    let options = Options {
        segment_bytes: 256 << 10,
        checkpoint_bytes: 300_000,
        cluster: Some(cluster),
        ..Options::default()
    };
    Store::open(&home.join(name), System::shared(), options).unwrap()
}

async fn leader(stores: &Stores) -> u64 {
    loop {
        let all: Vec<Arc<Store>> = stores.lock().unwrap().values().cloned().collect();
        let leader = all[0].pulse().leader;
        let known = all.iter().any(|store| store.identity().member_id == leader);
        if known && all.iter().all(|store| store.pulse().leader == leader) {
            return leader;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn writers_on_all_members_go_on_while_members_stop_and_come_back() {
    let home = tempfile::tempdir().unwrap();
    let stores: Stores = Arc::default();
    let (way, mut packets) = mpsc::unbounded_channel::<Packet>();
    let arriving = stores.clone();
    let net = tokio::spawn(async move {
        while let Some((from, to, message)) = packets.recv().await {
            let store = arriving.lock().unwrap().get(&to).cloned();
            if let Some(store) = store {
                store.receive(from, message);
            }
        }
    });
    for name in ["m1", "m2", "m3"] {
        let store = open(home.path(), name, way.clone());
        stores.lock().unwrap().insert(store.identity().member_id, store);
    }
    leader(&stores).await;
    let mut acknowledged = 0;
    for round in 0..3 {
        let all: Vec<Arc<Store>> = stores.lock().unwrap().values().cloned().collect();
        let writers = (0..12).map(|writer| {
            let store = all[writer % 3].clone();
            tokio::spawn(async move {
                let mut done = 0;
                for n in 0..100 {
                    let op = dhow_kv::Op::put(format!("k{round}/{writer}/{n}"), vec![7; 100]);
                    done += usize::from(run(&*store, vec![op]).await.is_ok());
                }
                done
            })
        });
        let writers = futures::future::join_all(writers);
        let gone = if round == 1 { 0 } else { leader(&stores).await };
        let stopping = async {
            tokio::time::sleep(Duration::from_millis(50)).await;
            let store = stores.lock().unwrap().remove(&gone);
            if let Some(store) = store {
                store.shutdown().await;
            }
        };
        let (written, ()) = futures::future::join(writers, stopping).await;
        acknowledged += written.into_iter().map(Result::unwrap).sum::<usize>();
        drop(all);
        if gone != 0 {
            leader(&stores).await;
            let names = ["m1", "m2", "m3"];
            let missing = names.iter().find(|name| {
                let stores = stores.lock().unwrap();
                !stores.values().any(|store| {
                    let members = store.introduction().members;
                    let own = store.identity().member_id;
                    members.iter().any(|member| member.id == own && member.name == **name)
                })
            });
            let store = open(home.path(), missing.unwrap(), way.clone());
            assert_eq!(store.identity().member_id, gone);
            stores.lock().unwrap().insert(gone, store);
        }
        leader(&stores).await;
    }
    let all: Vec<Arc<Store>> = stores.lock().unwrap().values().cloned().collect();
    let mut counts = Vec::new();
    for store in &all {
        let range = Range { count_only: true, ..Range::all(Span::prefix("k")) };
        counts.push(store.range(range).await.unwrap().count as usize);
    }
    assert!(acknowledged > 1200, "{acknowledged}");
    assert!(counts[0] >= acknowledged, "{counts:?} of {acknowledged}");
    assert!(counts.iter().all(|count| *count == counts[0]), "{counts:?}");
    let revision = all[0].revision();
    let first = all[0].hash_kv(revision).await.unwrap();
    for store in &all {
        assert_eq!(store.hash_kv(revision).await.unwrap(), first);
    }
    for store in &all {
        store.shutdown().await;
    }
    net.abort();
}
