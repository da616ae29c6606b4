//! The store: what its log, its checkpoints, its members and files from elsewhere say.

use crate::{Pure, Target, picked};
use anyhow::{Context as _, Result};
use bytes::Bytes;
use dhow_bolt::etcd::proto::{put_bytes, put_message, put_number};
use dhow_bolt::etcd::wal::put_record;
use dhow_bolt::etcd::{Snapshot, State, Wal};
use dhow_clock::System;
use dhow_clock::disk::{Disk, Memory, Open};
use dhow_kv::admin::{Admin as _, Alarm, AlarmKind, AuthChange, Member};
use dhow_kv::{Backend as _, Compare, Op, Order, Range, Span, Target as Aim, Txn};
use dhow_mvcc::{Command, Machine, MachineHeader, MachineLoader};
use dhow_peers::{Answer, Hello, Purpose, Refusal};
use dhow_server::{Cluster, Options, Store, Transport, reencode_message};
use std::io::Cursor;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

const HOME: &str = "/data";

fn runtime() -> Result<tokio::runtime::Runtime> {
    Ok(tokio::runtime::Builder::new_current_thread().enable_all().build()?)
}

/// Two parts in one input, the first with its length before it.
fn pair(first: &[u8], second: &[u8]) -> Vec<u8> {
    [&(first.len() as u32).to_le_bytes(), first, second].concat()
}

fn split_pair(bytes: &[u8]) -> Option<(&[u8], &[u8])> {
    let (length, rest) = bytes.split_first_chunk()?;
    rest.split_at_checked(u32::from_le_bytes(*length) as usize)
}

fn txn() -> Txn {
    let inner = Txn { success: vec![Op::put("in", "ner")], ..Txn::default() };
    Txn {
        compare: vec![
            Compare {
                span: Span::prefix("k"),
                order: Order::Less,
                target: Aim::ModRevision(1 << 40),
            },
            Compare {
                span: Span::Key("k".into()),
                order: Order::Equal,
                target: Aim::Value("v".into()),
            },
        ],
        success: vec![Op::put("key", "value"), Op::Txn(inner), Op::delete("gone")],
        failure: vec![Op::Range(Range { limit: 9, ..Range::all(Span::From("a".into())) })],
    }
}

fn samples() -> Vec<Command> {
    vec![
        Command::Txn(txn()),
        Command::Txn(Txn { success: vec![Op::put("k", "v")], ..Txn::default() }),
        Command::Compact(77),
        Command::LeaseGrant { id: 7, ttl: 60 },
        Command::LeaseRevoke { id: 7 },
        Command::LeaseGrant { id: 8, ttl: 600 },
        Command::LeaseCheckpoint(vec![(8, 300), (9, 0)]),
        Command::AlarmRaise(Alarm { member: 1 << 60, kind: AlarmKind::NoSpace }),
        Command::Auth(AuthChange::RoleAdd("role".into())),
    ]
}

/// Commands: what is understood comes out the same again.
pub(crate) fn command() -> Result<Box<dyn Target>> {
    let encode = |command: &Command| {
        let mut out = Vec::new();
        command.encode(&mut out);
        out
    };
    let good = samples().iter().map(encode).collect();
    Ok(Box::new(Pure { good, take: take_command }))
}

fn take_command(bytes: &[u8]) -> Result<(), String> {
    let Ok(command) = Command::decode(&Bytes::copy_from_slice(bytes)) else { return Ok(()) };
    let mut out = Vec::new();
    command.encode(&mut out);
    if out.len() > command.size_bound() {
        return Err(format!("{command:?} is larger than its bound"));
    }
    match Command::decode(&out.into()) {
        Ok(again) if again == command => {}
        other => return Err(format!("{command:?} comes back as {other:?}")),
    }
    // Whatever it asks for, a state takes or refuses it.
    let mut machine = Machine::new();
    let _ = machine.apply(1, &command);
    let _ = machine.apply(2, &command);
    Ok(())
}

/// A checkpoint's header and a piece of its keys.
pub(crate) fn state() -> Result<Box<dyn Target>> {
    let mut machine = Machine::new();
    for (index, command) in samples().iter().enumerate() {
        // Some are refused; the others fill the state.
        let _ = machine.apply(index as u64 + 1, command);
    }
    let header = machine.snapshot_header();
    let mut first = Vec::new();
    header.encode(&mut first);
    let mut chunk = Vec::new();
    machine.mvcc.snapshot_chunk(&header.mvcc, None, 1 << 20, &mut chunk);
    Ok(Box::new(Pure { good: vec![pair(&first, &chunk)], take: take_state }))
}

fn take_state(bytes: &[u8]) -> Result<(), String> {
    let Some((header, chunk)) = split_pair(bytes) else { return Ok(()) };
    let Ok(header) = MachineHeader::decode(&Bytes::copy_from_slice(header)) else { return Ok(()) };
    // A revision far away makes as long a history: that is what checksums are for.
    if header.mvcc.revision > 100_000 {
        return Ok(());
    }
    let mut loader = MachineLoader::new(header);
    if loader.chunk(&Bytes::copy_from_slice(chunk)).is_ok() {
        let machine = loader.finish();
        let all = Range::all(Span::From(Bytes::from_static(&[0])));
        let _ = machine.mvcc.range(&all, machine.mvcc.revision());
    }
    Ok(())
}

fn small() -> Options {
    Options {
        segment_bytes: 4096,
        checkpoint_bytes: 6000,
        inline: true,
        retention: None,
        ..Options::default()
    }
}

fn fill(store: &Store, runtime: &tokio::runtime::Runtime, puts: usize) -> Result<()> {
    runtime.block_on(async {
        store.lease_grant(5, 1000).await?;
        for n in 0..puts {
            let put = Op::put(format!("k{}", n % 9), vec![n as u8; 40 + n * 13 % 300]);
            store.txn(Txn { success: vec![put], ..Txn::default() }).await?;
        }
        Ok(())
    })
}

/// A store's directory with one file that is not what it was; recovery refuses what is damaged, or
/// what it takes is a store.
struct Recovery {
    files: Vec<(PathBuf, Vec<u8>)>,
    good: Vec<Vec<u8>>,
    runtime: tokio::runtime::Runtime,
}

/// See [`Recovery`].
pub(crate) fn recovery() -> Result<Box<dyn Target>> {
    let runtime = runtime()?;
    let disk = Memory::new();
    {
        let _inside = runtime.enter();
        let shared = Arc::new(disk.clone());
        let store = Store::open_on(shared, Path::new(HOME), System::shared(), small())?;
        fill(&store, &runtime, 90)?;
    }
    let mut files = Vec::new();
    let mut good = Vec::new();
    for (n, name) in disk.list(Path::new(HOME))?.into_iter().enumerate() {
        let path = Path::new(HOME).join(name);
        let bytes = disk.open(&path, Open::Read)?.read_to_end_at(0, 1 << 24)?;
        good.push([&[n as u8], bytes.as_slice()].concat());
        files.push((path, bytes));
    }
    Ok(Box::new(Recovery { files, good, runtime }))
}

impl Target for Recovery {
    fn good(&self) -> &[Vec<u8>] {
        &self.good
    }

    fn take(&mut self, bytes: &[u8]) -> Result<(), String> {
        let Some(((broken, _), instead)) = picked(&self.files, bytes) else { return Ok(()) };
        let disk = Memory::new();
        for (path, bytes) in &self.files {
            let bytes = if path == broken { instead } else { bytes };
            let file = disk.open(path, Open::Create).map_err(|error| error.to_string())?;
            file.write_all_at(bytes, 0).map_err(|error| error.to_string())?;
        }
        let _inside = self.runtime.enter();
        let opened = Store::open_on(Arc::new(disk), Path::new(HOME), System::shared(), small());
        let Ok(store) = opened else { return Ok(()) };
        let put = Txn { success: vec![Op::put("after", "all")], ..Txn::default() };
        self.runtime.block_on(async {
            let all = Range::all(Span::From(Bytes::from_static(&[0])));
            store.range(all).await.map_err(|error| format!("no read: {error}"))?;
            store.txn(put).await.map_err(|error| format!("no write: {error}"))
        })?;
        Ok(())
    }
}

/// Keeps what a member sends.
#[derive(Debug, Default)]
struct Tap(Mutex<Vec<Vec<u8>>>);

impl Transport for Tap {
    fn send(&self, _: u64, message: Bytes) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).push(message.to_vec());
    }
    fn members(&self, _: &[Member]) {}
}

/// Messages from other members. Those that are understood are only read: members trust each other to
/// keep to Raft.
struct Messages {
    good: Vec<Vec<u8>>,
    store: Arc<Store>,
    runtime: tokio::runtime::Runtime,
}

/// See [`Messages`].
pub(crate) fn message() -> Result<Box<dyn Target>> {
    let runtime = runtime()?;
    let tap = Arc::new(Tap::default());
    let member = |n: usize| (format!("m{n}"), vec![format!("http://m{n}:1")]);
    let mut cluster = Cluster::new("m0", (0..3).map(member).collect(), tap.clone());
    cluster.heartbeat = Duration::from_millis(1);
    cluster.election = Duration::from_millis(5);
    let options = Options { cluster: Some(cluster), ..small() };
    let disk = Arc::new(Memory::new());
    let store = runtime
        .block_on(async { Store::open_on(disk, Path::new(HOME), System::shared(), options) })?;
    // It asks the others for their votes.
    runtime.block_on(async { tokio::time::sleep(Duration::from_millis(100)).await });
    let good = tap.0.lock().unwrap_or_else(PoisonError::into_inner).clone();
    anyhow::ensure!(!good.is_empty(), "a member alone said nothing to the others");
    Ok(Box::new(Messages { good, store, runtime }))
}

impl Target for Messages {
    fn good(&self) -> &[Vec<u8>] {
        &self.good
    }

    fn take(&mut self, bytes: &[u8]) -> Result<(), String> {
        let bytes = Bytes::copy_from_slice(bytes);
        match reencode_message(bytes.clone()) {
            None => {
                let _inside = self.runtime.enter();
                self.store.receive(7, bytes);
                Ok(())
            }
            Some(again) if reencode_message(again.clone()).as_ref() == Some(&again) => Ok(()),
            Some(again) => {
                Err(format!("{bytes:?} is not the same when it is read twice: {again:?}"))
            }
        }
    }
}

/// The first words between members.
pub(crate) fn hello() -> Result<Box<dyn Target>> {
    let texts = || vec!["http://a:1".to_owned(), "http://b:2".to_owned()];
    let asks =
        Hello { version: 1, purpose: Purpose::Bulk, cluster: 7, from: 8, to: 9, urls: texts() };
    let member = Member {
        id: 1 << 60,
        name: "m".into(),
        peer_urls: texts(),
        client_urls: texts(),
        learner: true,
    };
    let told = Answer::Welcome { version: 1, cluster: 7, member: 9, members: vec![member] };
    let refused = Answer::Refused(Refusal::Cluster { theirs: 8 });
    let good = [(0, asks.encode()), (1, told.encode()), (1, refused.encode())];
    let good = good.iter().map(|(kind, bytes)| [&[*kind], &bytes[..]].concat()).collect();
    Ok(Box::new(Pure { good, take: take_hello }))
}

fn take_hello(bytes: &[u8]) -> Result<(), String> {
    let Some((asks, rest)) = picked(&[true, false], bytes) else { return Ok(()) };
    let bytes = Bytes::copy_from_slice(rest);
    let same = if *asks {
        let Ok(hello) = Hello::decode(bytes) else { return Ok(()) };
        // Of another version only that is read.
        hello.version != 1 || Hello::decode(hello.encode()).is_ok_and(|again| again == hello)
    } else {
        let Ok(answer) = Answer::decode(bytes) else { return Ok(()) };
        Answer::decode(answer.encode()).is_ok_and(|again| again == answer)
    };
    same.then_some(()).ok_or_else(|| "what is read twice is not the same".to_owned())
}

/// A snapshot of a small store.
fn small_snapshot() -> Result<Vec<u8>> {
    let runtime = runtime()?;
    let _inside = runtime.enter();
    let store = Store::memory(System::shared());
    fill(&store, &runtime, 40)?;
    let mut bytes = Vec::new();
    runtime.block_on(async {
        let mut reader = store.snapshot().await?;
        while let Some(piece) = reader.next().await {
            bytes.extend_from_slice(&piece?);
        }
        anyhow::Ok(())
    })?;
    Ok(bytes)
}

/// A bbolt file.
pub(crate) fn bolt() -> Result<Box<dyn Target>> {
    let bytes = small_snapshot()?;
    dhow_bolt::Reader::open(Cursor::new(&bytes)).context("our own snapshot is not read")?;
    Ok(Box::new(Pure { good: vec![bytes], take: take_bolt }))
}

fn take_bolt(bytes: &[u8]) -> Result<(), String> {
    let Ok(mut reader) = dhow_bolt::Reader::open(Cursor::new(bytes)) else { return Ok(()) };
    let _ = reader.check();
    let Ok(buckets) = reader.buckets() else { return Ok(()) };
    for (_, bucket) in buckets {
        let Ok(mut walk) = reader.walk(&bucket) else { continue };
        while let Ok(Some(_)) = walk.next() {}
    }
    Ok(())
}

/// What etcd keeps in a bbolt file: its tables become a state, or are refused.
pub(crate) fn snapshot() -> Result<Box<dyn Target>> {
    let bytes = small_snapshot()?;
    let file = &bytes[..bytes.len() - dhow_bolt::etcd::TAIL];
    Ok(Box::new(Pure { good: vec![file.to_vec()], take: take_snapshot }))
}

fn take_snapshot(bytes: &[u8]) -> Result<(), String> {
    // Its checksum would keep everything else out.
    let Ok(mut snapshot) = Snapshot::open_unchecked(Cursor::new(bytes)) else { return Ok(()) };
    let Ok(machine) = Machine::from_etcd(&mut snapshot) else { return Ok(()) };
    let all = Range::all(Span::From(Bytes::from_static(&[0])));
    let _ = machine.mvcc.range(&all, machine.mvcc.revision());
    Ok(())
}

/// The log of an etcd. The first byte says whether a file follows as it is, or the records of one,
/// each behind its kind and length: checksums would keep everything else out.
pub(crate) fn wal() -> Result<Box<dyn Target>> {
    let message = |fields: &[(u32, &[u8])]| {
        let mut out = Vec::new();
        fields.iter().for_each(|(field, bytes)| put_bytes(&mut out, *field, bytes));
        out
    };
    let entry = |index: u64, kind: u64, data: &[u8]| {
        let mut out = Vec::new();
        put_number(&mut out, 1, kind);
        put_number(&mut out, 2, 1);
        put_number(&mut out, 3, index);
        put_message(&mut out, 4, data);
        out
    };
    let member = br#"{"id":7,"peerURLs":["http://a:1"],"name":"a"}"#;
    let change = [&[0x10, 0, 0x18, 7, 0x22, member.len() as u8], &member[..]].concat();
    let put = message(&[(1, b"k"), (2, b"v")]);
    let step = message(&[(2, &put)]);
    let txn = message(&[(1, &[0x08, 1, 0x1a, 1, b'k', 0x20, 0]), (2, &step), (3, &step)]);
    let user = message(&[(1, b"eve"), (4, b"aGFzaA==")]);
    let header = [&[0x12, 4][..], b"root", &[0x18, 2]].concat();
    let records: Vec<(u8, Vec<u8>)> = vec![
        (4, Vec::new()),
        (1, b"metadata".to_vec()),
        (2, entry(1, 1, &change)),
        (2, entry(2, 0, &message(&[(4, &put)]))),
        (2, entry(3, 0, &message(&[(6, &txn)]))),
        (2, entry(4, 0, &message(&[(1100, &user), (100, &header)]))),
        (2, entry(5, 0, &message(&[(8, &[0x08, 60, 0x10, 5])]))),
        (2, entry(6, 0, &message(&[(10, &[0x08, 1, 0x10, 7, 0x18, 1])]))),
        (3, vec![0x08, 1, 0x18, 6]),
    ];
    let mut file = vec![0];
    let mut parts = vec![1];
    let mut crc = 0;
    for (kind, data) in &records {
        put_record(&mut file, &mut crc, u64::from(*kind), data);
        parts.push(*kind);
        parts.extend((data.len() as u16).to_le_bytes());
        parts.extend(data);
    }
    Ok(Box::new(Pure { good: vec![file, parts], take: take_wal }))
}

fn take_wal(bytes: &[u8]) -> Result<(), String> {
    let Some((form, mut rest)) = bytes.split_first() else { return Ok(()) };
    let mut file = Vec::new();
    let mut crc = 0;
    if *form == 0 {
        file.extend_from_slice(rest);
    }
    while *form != 0
        && let Some(([kind, low, high], after)) = rest.split_first_chunk()
    {
        let length = usize::from(u16::from_le_bytes([*low, *high])).min(after.len());
        put_record(&mut file, &mut crc, u64::from(*kind), &after[..length]);
        rest = &after[length..];
    }
    let mut wal = Wal::behind(0);
    if wal.file(&file, true).is_err() {
        return Ok(());
    }
    let Ok(entries) = wal.entries() else { return Ok(()) };
    let (mut machine, mut known) = (Machine::new(), State::default());
    for entry in &entries {
        let _ = known.follow(entry);
        let _ = machine.replay(entry.index, &entry.data, &|clear| Some(clear.to_owned()));
    }
    Ok(())
}
