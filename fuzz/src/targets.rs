//! The targets that need nobody else: decoders, recovery, snapshots.

use crate::Target;
use crate::mutate::{Random, mutate};
use anyhow::{Context as _, Result};
use bytes::Bytes;
use dhow_clock::System;
use dhow_clock::disk::{Disk, Memory, Open};
use dhow_kv::admin::{Admin as _, Alarm, AlarmKind, AuthChange, Member};
use dhow_kv::{Backend as _, Compare, Op, Order, Range, Span, Target as Aim, Txn};
use dhow_mvcc::{Command, Machine, MachineHeader, MachineLoader};
use dhow_server::{Cluster, Options, Store, Transport};
use std::io::Cursor;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

const HOME: &str = "/data";

/// All targets.
///
/// # Errors
/// When the good bytes that they begin with cannot be made.
pub fn all() -> Result<Vec<Box<dyn Target>>> {
    let runtime = Arc::new(tokio::runtime::Builder::new_current_thread().enable_all().build()?);
    Ok(vec![
        Box::new(Decode { good: commands() }),
        Box::new(State { good: state() }),
        Box::new(Files::new(&runtime)?),
        Box::new(Messages::new(runtime.clone())?),
        Box::new(Bolt::new(&runtime)?),
        Box::new(crate::door::Proto::new(runtime.clone())?),
        Box::new(crate::door::Gateway::new(runtime.clone())?),
        Box::new(crate::frames::Frames::new(runtime)?),
    ])
}

fn pick<'a>(good: &'a [Vec<u8>], random: &mut Random) -> Vec<u8> {
    let one: &'a [u8] = &good[random.below(good.len())];
    let other = &good[random.below(good.len())];
    mutate(one, other, random)
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

fn commands() -> Vec<Vec<u8>> {
    let encode = |command: &Command| {
        let mut out = Vec::new();
        command.encode(&mut out);
        out
    };
    samples().iter().map(encode).collect()
}

/// Commands: what is understood comes out the same again.
struct Decode {
    good: Vec<Vec<u8>>,
}

impl Target for Decode {
    fn name(&self) -> &'static str {
        "command"
    }

    fn run(&mut self, random: &mut Random) -> Result<(), String> {
        let bytes = Bytes::from(pick(&self.good, random));
        let Ok(command) = Command::decode(&bytes) else { return Ok(()) };
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
}

fn state() -> Vec<Vec<u8>> {
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
    vec![first, chunk]
}

/// A checkpoint's header and pieces.
struct State {
    good: Vec<Vec<u8>>,
}

impl Target for State {
    fn name(&self) -> &'static str {
        "state"
    }

    fn run(&mut self, random: &mut Random) -> Result<(), String> {
        let mut parts = self.good.clone();
        let at = random.below(parts.len());
        parts[at] = mutate(&self.good[at], &self.good[1 - at], random);
        let Ok(header) = MachineHeader::decode(&parts[0].clone().into()) else { return Ok(()) };
        // A revision far away makes as long a history: that is what checksums are for.
        if header.mvcc.revision > 100_000 {
            return Ok(());
        }
        let mut loader = MachineLoader::new(header);
        if loader.chunk(&parts[1].clone().into()).is_ok() {
            let machine = loader.finish();
            let all = Range::all(Span::From(Bytes::from_static(&[0])));
            let _ = machine.mvcc.range(&all, machine.mvcc.revision());
        }
        Ok(())
    }
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

/// A store's directory: recovery refuses what is damaged, or what it takes is a store.
struct Files {
    good: Vec<(PathBuf, Vec<u8>)>,
    runtime: Arc<tokio::runtime::Runtime>,
}

impl Files {
    fn new(runtime: &Arc<tokio::runtime::Runtime>) -> Result<Self> {
        let disk = Memory::new();
        {
            let _inside = runtime.enter();
            let shared = Arc::new(disk.clone());
            let store = Store::open_on(shared, Path::new(HOME), System::shared(), small())?;
            fill(&store, runtime, 90)?;
        }
        let mut good = Vec::new();
        for name in disk.list(Path::new(HOME))? {
            let path = Path::new(HOME).join(name);
            let bytes = disk.open(&path, Open::Read)?.read_to_end_at(0, 1 << 24)?;
            good.push((path, bytes));
        }
        Ok(Self { good, runtime: runtime.clone() })
    }
}

impl Target for Files {
    fn name(&self) -> &'static str {
        "recovery"
    }

    fn run(&mut self, random: &mut Random) -> Result<(), String> {
        let disk = Memory::new();
        let broken = random.below(self.good.len());
        let other = &self.good[random.below(self.good.len())].1;
        for (at, (path, bytes)) in self.good.iter().enumerate() {
            let bytes = match at == broken {
                true => mutate(bytes, other, random),
                false => bytes.clone(),
            };
            let file = disk.open(path, Open::Create).map_err(|error| error.to_string())?;
            file.write_all_at(&bytes, 0).map_err(|error| error.to_string())?;
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

/// Messages from other members: garbage, and good ones that are cut short.
struct Messages {
    good: Vec<Vec<u8>>,
    store: Arc<Store>,
    runtime: Arc<tokio::runtime::Runtime>,
}

impl Messages {
    fn new(runtime: Arc<tokio::runtime::Runtime>) -> Result<Self> {
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
        Ok(Self { good, store, runtime })
    }
}

impl Target for Messages {
    fn name(&self) -> &'static str {
        "message"
    }

    fn run(&mut self, random: &mut Random) -> Result<(), String> {
        let _inside = self.runtime.enter();
        let good = &self.good[random.below(self.good.len())];
        let bytes = match random.below(2) {
            0 => good[..random.below(good.len())].to_vec(),
            _ => (0..random.below(80)).map(|_| random.draw() as u8).collect(),
        };
        self.store.receive(random.draw(), bytes.into());
        Ok(())
    }
}

/// A bbolt file, as a snapshot to restore from is.
struct Bolt {
    good: Vec<Vec<u8>>,
}

impl Bolt {
    fn new(runtime: &Arc<tokio::runtime::Runtime>) -> Result<Self> {
        let _inside = runtime.enter();
        let store = Store::memory(System::shared());
        fill(&store, runtime, 300)?;
        let mut bytes = Vec::new();
        runtime.block_on(async {
            let mut reader = store.snapshot().await?;
            while let Some(piece) = reader.next().await {
                bytes.extend_from_slice(&piece?);
            }
            anyhow::Ok(())
        })?;
        dhow_bolt::Reader::open(Cursor::new(&bytes)).context("our own snapshot is not read")?;
        Ok(Self { good: vec![bytes] })
    }
}

impl Target for Bolt {
    fn name(&self) -> &'static str {
        "bolt"
    }

    fn run(&mut self, random: &mut Random) -> Result<(), String> {
        let bytes = pick(&self.good, random);
        let Ok(mut reader) = dhow_bolt::Reader::open(Cursor::new(bytes)) else { return Ok(()) };
        let _ = reader.check();
        let Ok(buckets) = reader.buckets() else { return Ok(()) };
        for (_, bucket) in buckets {
            let Ok(mut walk) = reader.walk(&bucket) else { continue };
            while let Ok(Some(_)) = walk.next() {}
        }
        Ok(())
    }
}
