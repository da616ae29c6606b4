//! Writes a large snapshot for etcd's own tools to read, or tells what is in one that etcd wrote.
//!
//! ```text
//! etcd_snapshot write FILE [KEYS]   a state with big values, deletes, leases, users, a compaction
//! etcd_snapshot read FILE           a snapshot that etcdctl saved, or member/snap/db
//! etcd_snapshot copy FROM TO         reads one and writes it anew
//! etcd_snapshot hash FILE REVISION  the checksum of its history up to a revision
//! ```
//! `write` prints the revision and the checksum that `etcdctl endpoint hashkv` must show after
//! `etcdutl snapshot restore`.

use dhow_bolt::etcd::{Snapshot, SnapshotWriter, sum};
use dhow_kv::admin::{Access, AuthChange, HashKv, Permission};
use dhow_kv::{Op, Span, Txn};
use dhow_mvcc::{Command, Export, Machine, Mvcc, Rows};
use std::error::Error;
use std::fs::File;
use std::io::{BufReader, Seek as _, SeekFrom, Write as _};
use std::time::Instant;

fn main() -> Result<(), Box<dyn Error>> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    match args[..] {
        ["write", file] => write(file, &made(100_000)?),
        ["write", file, keys] => write(file, &made(keys.parse()?)?),
        ["copy", from, to] => {
            let mut snapshot = Snapshot::open(File::open(from)?)?;
            write(to, &Machine::from_etcd(&mut snapshot)?)
        }
        ["read", file] => read(file),
        ["hash", file, revision] => {
            let machine = Machine::from_etcd(&mut Snapshot::open(File::open(file)?)?)?;
            println!("{}", hash(&machine.mvcc, revision.parse()?)?.hash);
            Ok(())
        }
        _ => Err("usage: etcd_snapshot write FILE [KEYS] | read FILE | copy FROM TO | hash FILE REVISION".into()),
    }
}

fn made(keys: u64) -> Result<Machine, dhow_kv::Error> {
    let mut machine = Machine::new();
    let mut index = 0;
    let mut apply = |command: Command| {
        index += 1;
        machine.apply(index, &command).map(drop)
    };
    let txn = |op: Op| Command::Txn(Txn { success: vec![op], ..Txn::default() });
    let put = |key: String, value: Vec<u8>, lease| Op::Put {
        key: key.into(),
        value: value.into(),
        lease,
        prev_kv: false,
        ignore_value: false,
        ignore_lease: false,
    };
    let name = |n: u64| format!("/registry/things/{n:010}");
    for id in 1..=50 {
        apply(Command::LeaseGrant { id, ttl: 3600 })?;
    }
    for n in 0..keys {
        // Not in the order of the keys, and some values longer than a page.
        let n = n * 7919 % keys;
        let size = if n.is_multiple_of(1000) { 100_000 } else { 256 };
        let lease = if n % 100 == 1 { 1 + (n / 100 % 50) as i64 } else { 0 };
        apply(txn(put(name(n), vec![n as u8; size], lease)))?;
    }
    for n in (0..keys).step_by(3) {
        apply(txn(put(name(n), b"again".to_vec(), 0)))?;
    }
    let several = (0..20).map(|n| put(format!("/several/{n}"), vec![n; 10], 0)).collect();
    apply(Command::Txn(Txn { success: several, ..Txn::default() }))?;
    let all = Span::prefix("/several/");
    apply(txn(Op::Delete { span: all, prev_kv: false }))?;
    for n in (0..keys).step_by(10) {
        apply(txn(Op::delete(name(n))))?;
    }
    apply(Command::Compact((keys + keys / 5) as i64))?;
    apply(Command::LeaseRevoke { id: 50 })?;
    let (user, role) = ("ann".to_owned(), "reader".to_owned());
    for change in [
        AuthChange::UserAdd { name: user.clone(), hash: "none".into(), no_password: false },
        AuthChange::RoleAdd(role.clone()),
        AuthChange::RoleGrant {
            role: role.clone(),
            permission: Permission { access: Access::Read, span: Span::prefix("/registry/") },
        },
        AuthChange::UserGrantRole { user, role },
    ] {
        apply(Command::Auth(change))?;
    }
    Ok(machine)
}

fn hash(mvcc: &Mvcc, revision: i64) -> Result<HashKv, dhow_kv::Error> {
    let mut run = mvcc.hash_kv(revision, mvcc.revision())?;
    loop {
        if let Some(hash) = run.step(mvcc, 1 << 20) {
            return Ok(hash);
        }
    }
}

fn write(file: &str, machine: &Machine) -> Result<(), Box<dyn Error>> {
    let began = Instant::now();
    let header = machine.snapshot_header();
    let mut state = header.to_etcd();
    state.meta.term = 2;
    state.meta.storage_version = "3.6.0".into();
    state.cluster_version = "3.6.0".into();
    let out = File::options().read(true).write(true).create(true).truncate(true).open(file)?;
    let mut writer = SnapshotWriter::new(out, &state)?;
    let mut bucket = writer.rows();
    let mut export = Export::new(&header.mvcc);
    let mut rows = Rows::default();
    let mut count = 0;
    loop {
        let more = export.step(&machine.mvcc, 256 << 10, &mut rows);
        for (key, value) in rows.iter() {
            bucket.put(key, value)?;
        }
        count += rows.len();
        rows.clear();
        if !more {
            break;
        }
    }
    bucket.finish()?;
    let written = writer.finish()?;
    let mut out = written.out;
    out.seek(SeekFrom::Start(0))?;
    let tail = sum(&mut BufReader::new(&mut out))?;
    out.seek(SeekFrom::Start(written.size))?;
    out.write_all(&tail)?;
    let elapsed = began.elapsed();
    println!("rows {count} bytes {} elapsed_ms {}", written.size, elapsed.as_millis());
    tell(machine)
}

fn read(file: &str) -> Result<(), Box<dyn Error>> {
    let began = Instant::now();
    let mut snapshot = Snapshot::open(File::open(file)?)?;
    let counts = snapshot.reader().check()?;
    println!("{counts:?}");
    println!("{:?}", snapshot.state().meta);
    println!("{:?}", snapshot.state().members);
    let machine = Machine::from_etcd(&mut snapshot)?;
    println!("elapsed_ms {}", began.elapsed().as_millis());
    tell(&machine)
}

fn tell(machine: &Machine) -> Result<(), Box<dyn Error>> {
    let mvcc = &machine.mvcc;
    let hash = hash(mvcc, 0)?;
    println!(
        "revision {} compacted {} keys {} leases {} hash {} compact_revision {}",
        mvcc.revision(),
        mvcc.compacted(),
        mvcc.keys(),
        mvcc.leases().count(),
        hash.hash,
        hash.compact_revision
    );
    Ok(())
}
