//! Measures what the state takes in memory and how fast it is filled, saved and loaded.
//!
//! ```text
//! measure [KEYS [VALUE_BYTES]]
//! ```

use bytes::Bytes;
use dhow_kv::{Op, Range, Span, Txn};
use dhow_mvcc::{Command, Export, Import, Machine, MachineHeader, MachineLoader, Rows};
use std::time::Duration;

/// How long this thread has run on a processor: other work on the machine does not count.
fn ran() -> Duration {
    let told = std::fs::read_to_string("/proc/thread-self/schedstat").unwrap_or_default();
    let nanos = told.split_whitespace().next().and_then(|nanos| nanos.parse().ok());
    Duration::from_nanos(nanos.unwrap_or_default())
}

/// A stopwatch over [`ran`].
#[derive(Clone, Copy)]
struct Instant(Duration);

impl Instant {
    fn now() -> Self {
        Self(ran())
    }

    fn elapsed(&self) -> Duration {
        ran().saturating_sub(self.0)
    }
}

/// The resident memory of the process, in bytes.
fn resident() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find(|line| line.starts_with("VmRSS:")).unwrap_or_default();
    let kib = line.split_whitespace().nth(1).and_then(|kib| kib.parse::<u64>().ok());
    kib.unwrap_or_default() * 1024
}

fn report(what: &str, began: Instant, before: u64, keys: u64, payload: u64) {
    let grown = resident().saturating_sub(before);
    println!(
        "{what}: {} ms, resident {} MiB, {} bytes a key beyond its {payload}",
        began.elapsed().as_millis(),
        resident() >> 20,
        (grown / keys) as i64 - payload as i64,
    );
}

fn main() {
    let mut args = std::env::args().skip(1).filter_map(|arg| arg.parse::<u64>().ok());
    let keys = args.next().unwrap_or(1_000_000);
    let size = args.next().unwrap_or(256);
    let name = |n: u64| format!("key{:015}", n.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 20);
    let payload = 18 + size;
    let before = resident();

    let began = Instant::now();
    let mut machine = Machine::new();
    for n in 0..keys {
        let op = Op::put(name(n), vec![n as u8; size as usize]);
        let txn = Txn { success: vec![op], ..Txn::default() };
        machine.apply(n + 1, &Command::Txn(txn)).expect("a put works");
    }
    report("apply", began, before, keys, payload);

    let began = Instant::now();
    for n in 0..keys {
        let op = Op::put(name(n), vec![n as u8; size as usize]);
        let txn = Txn { success: vec![op], ..Txn::default() };
        machine.apply(keys + n + 1, &Command::Txn(txn)).expect("a put works");
    }
    report("apply over them", began, before, keys, 2 * payload);
    let began = Instant::now();
    let middle = machine.mvcc.revision();
    machine.apply(2 * keys + 1, &Command::Compact(middle)).expect("now can be compacted at");
    while machine.mvcc.prune(256) {}
    report("compact", began, before, keys, payload);

    let began = Instant::now();
    let all = Range::all(Span::From(Bytes::new()));
    let mut read = 0;
    let mut after: Option<Bytes> = None;
    loop {
        let now = machine.mvcc.revision();
        let (kvs, more) = machine.mvcc.scan(&all.span, after.as_ref(), now, false, 1024);
        read += kvs.len();
        after = kvs.last().map(|kv| kv.key.clone());
        if !more {
            break;
        }
    }
    report(&format!("read {read}"), began, before, keys, payload);

    let began = Instant::now();
    let header = machine.snapshot_header();
    let mut encoded = Vec::new();
    header.encode(&mut encoded);
    let mut chunks = Vec::new();
    let mut after = None;
    loop {
        let mut chunk = Vec::new();
        after = machine.mvcc.snapshot_chunk(&header.mvcc, after.as_ref(), 128 << 10, &mut chunk);
        chunks.push(Bytes::from(chunk));
        if after.is_none() {
            break;
        }
    }
    println!("save: {} ms in {} chunks", began.elapsed().as_millis(), chunks.len());
    drop(machine);

    let before = resident();
    let began = Instant::now();
    let header = MachineHeader::decode(&encoded.into()).expect("it was just written");
    let mut loader = MachineLoader::new(header);
    for chunk in &chunks {
        loader.chunk(chunk).expect("it was just written");
    }
    let machine = loader.finish();
    report("load", began, before, keys, payload);
    drop(chunks);

    let began = Instant::now();
    let mut hash = machine.mvcc.hash_kv(0, machine.mvcc.revision()).expect("now is a revision");
    while hash.step(&machine.mvcc, 1 << 20).is_none() {}
    println!("hash: {} ms", began.elapsed().as_millis());

    let began = Instant::now();
    let header = machine.snapshot_header();
    let mut export = Export::new(&header.mvcc);
    let mut import = Import::new(header.mvcc.compacted, []);
    let mut rows = Rows::default();
    while export.step(&machine.mvcc, 256 << 10, &mut rows) {
        for (key, value) in rows.iter() {
            import.row(key, value).expect("it was just written");
        }
        rows.clear();
    }
    println!("export and import: {} ms", began.elapsed().as_millis());
    drop(import.finish());
}
