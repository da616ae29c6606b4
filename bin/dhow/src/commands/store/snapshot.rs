//! The ways in: `dhow store snapshot restore`, and a data directory that etcd has left.

use super::flags::Values;
use super::settings::Settings;
use super::{log, serve};
use crate::print;
use anyhow::{Context, Result, anyhow, bail};
use dhow_bolt::etcd::{Entry, Snapshot, Wal};
use dhow_clock::disk::Real;
use dhow_kv::admin::Member;
use dhow_server::{Cluster, Options, Start, Transport, restore};
use rustix::fs::{FlockOperation, flock};
use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;

const HELP: &str = "\
Makes a data directory from a snapshot that etcdctl or dhow has saved.

Usage: PROGRAM snapshot restore FILE [FLAGS]

  --data-dir DIR                     Where the data will lie (default: NAME.etcd); it must not hold any
  --name NAME                        This member's name (default: default)
  --initial-cluster NAME=URL,...     All members of the new cluster (default: this one)
  --initial-cluster-token TEXT       Tells clusters with equal addresses apart (default: etcd-cluster)
  --initial-advertise-peer-urls URL  Where other members reach this one (default: http://localhost:2380)
  --skip-hash-check                  The file is a copy of member/snap/db, without a checksum at its end
  --bump-revision N                  Go on so many revisions higher, so that none comes twice that a client
                                     may have seen after the snapshot; needs --mark-compacted
  --mark-compacted                   Forget all history: clients that watch begin anew

Several members: restore the same file once for each, with the same --initial-cluster.

Example: PROGRAM snapshot restore backup.db --data-dir /var/lib/store
";

/// Runs `snapshot ARGUMENTS`.
pub fn main(program: &str, arguments: &[String]) -> ExitCode {
    let help = arguments.iter().any(|a| matches!(a.as_str(), "-h" | "-help" | "--help"));
    match arguments.split_first() {
        Some((command, rest)) if command == "restore" && !help => match run(program, rest) {
            Ok(()) => ExitCode::SUCCESS,
            Err(error) => {
                eprintln!("{program}: {}", print::error(&error));
                ExitCode::FAILURE
            }
        },
        _ if help => {
            print!("{}", HELP.replace("PROGRAM", program));
            ExitCode::SUCCESS
        }
        _ => {
            eprintln!(
                "{program}: snapshot knows only restore; save snapshots with etcdctl snapshot save"
            );
            ExitCode::from(2)
        }
    }
}

fn run(program: &str, arguments: &[String]) -> Result<()> {
    let (mut file, mut flags, mut unchecked) = (None, Vec::new(), false);
    let (mut raise, mut compacted) = (0, false);
    let mut arguments = arguments.iter();
    while let Some(argument) = arguments.next() {
        match argument.as_str() {
            "--skip-hash-check" | "--skip-hash-check=true" => unchecked = true,
            "--mark-compacted" | "--mark-compacted=true" => compacted = true,
            "--mark-compacted=false" => compacted = false,
            flag if flag.starts_with("--bump-revision") => {
                let value = match flag.strip_prefix("--bump-revision=") {
                    Some(value) => value,
                    None => arguments.next().context("flag needs an argument: --bump-revision")?,
                };
                raise = value.parse::<u32>().with_context(|| {
                    format!("--bump-revision {value} must be 0 to {}", u32::MAX)
                })?;
            }
            flag if flag.starts_with('-') => {
                flags.push(flag.to_owned());
                // All flags that a restore takes have values.
                if !flag.contains('=') {
                    flags.extend(arguments.next().cloned());
                }
            }
            path if file.is_none() => file = Some(PathBuf::from(path)),
            more => bail!("{more:?} is one file too many: name one snapshot"),
        }
    }
    let file = file.context("no snapshot is named: give the file that was saved")?;
    if (raise > 0) != compacted {
        bail!("--mark-compacted required if --bump-revision > 0, and means nothing without it");
    }
    let values = Values::parse(&flags)?;
    log::start(program, &values)?;
    let settings = Settings::new(&values)?;
    settings.check_first()?;
    let directory = serve::directory(&settings.data_dir);
    if serve::has_store(&directory) || has_etcd(&settings.data_dir) {
        bail!(
            "data-dir {} is not empty: name another, or remove it if its data are not needed",
            settings.data_dir.display()
        );
    }
    serve::private(&settings.data_dir)?;
    let mut snapshot = open(&file, unchecked)?;
    take(&settings, &directory, &mut snapshot, &file, raise.into())
}

fn open(file: &Path, unchecked: bool) -> Result<Snapshot<File>> {
    let source = File::open(file).with_context(|| format!("cannot open {}", file.display()))?;
    let opened = if unchecked { Snapshot::open_unchecked(source) } else { Snapshot::open(source) };
    opened.with_context(|| format!("cannot read the snapshot {}", file.display()))
}

fn take(
    settings: &Settings,
    directory: &Path,
    snapshot: &mut Snapshot<File>,
    file: &Path,
    raise: i64,
) -> Result<()> {
    let options = alone(settings, settings.initial.clone());
    let clock = dhow_clock::System::shared();
    let restored = restore(Real::shared(), directory, &clock, &options, snapshot, raise)
        .with_context(|| format!("cannot restore {}", file.display()))?;
    tracing::info!(
        path = %file.display(),
        data_dir = %settings.data_dir.display(),
        revision = restored.revision,
        keys = restored.keys,
        member = format!("{:x}", restored.identity.member_id),
        "restored snapshot"
    );
    Ok(())
}

/// What makes a new cluster of `initial`.
fn alone(settings: &Settings, initial: Vec<(String, Vec<String>)>) -> Options {
    let cluster = Cluster {
        peer_urls: settings.advertise_peers.clone(),
        token: settings.token.clone(),
        start: Start::New,
        ..Cluster::new(settings.name.clone(), initial, Arc::new(Nobody))
    };
    Options { cluster: Some(cluster), log_dir: settings.wal_dir.clone(), ..Options::default() }
}

/// Makes a cluster of its own of a member that has lost the others.
///
/// # Errors
/// When its data cannot be read or written.
pub fn force_new(settings: &Settings, directory: &Path) -> Result<()> {
    let own = vec![(settings.name.clone(), settings.advertise_peers.clone())];
    let options = alone(settings, own);
    let clock = dhow_clock::System::shared();
    let restored = dhow_server::force_new(Real::shared(), directory, &clock, &options)
        .context("cannot make a cluster of its own of this member")?;
    tracing::warn!(
        revision = restored.revision,
        keys = restored.keys,
        member = format!("{:x}", restored.identity.member_id),
        "forced a new cluster of this member alone; start it without --force-new-cluster from now on"
    );
    Ok(())
}

/// Nothing is sent while a snapshot is restored.
#[derive(Debug)]
struct Nobody;

impl Transport for Nobody {
    fn send(&self, _: u64, _: bytes::Bytes) {}
    fn members(&self, _: &[Member]) {}
}

fn database(data: &Path) -> PathBuf {
    data.join("member").join("snap").join("db")
}

/// Whether etcd has left its data in a directory.
pub fn has_etcd(data: &Path) -> bool {
    database(data).exists()
}

/// Where etcd has the log that belongs to a database.
fn log_of(settings: &Settings) -> PathBuf {
    let own = || settings.data_dir.join("member").join("wal");
    settings.wal_dir.clone().unwrap_or_else(own)
}

/// Takes over what etcd, or its `snapshot restore`, has left in the data directory: the database, and
/// what the log has behind it. Its files stay as they are. The members are those that it knows, if
/// this one is among them.
///
/// # Errors
/// When etcd still runs there, a file cannot be read, the log does not say what was acknowledged, or
/// the store cannot be written.
pub fn take_over(settings: &Settings, directory: &Path) -> Result<()> {
    let file = database(&settings.data_dir);
    let lock = File::open(&file).with_context(|| format!("cannot open {}", file.display()))?;
    // etcd holds the same lock as long as it runs.
    flock(&lock, FlockOperation::NonBlockingLockExclusive).map_err(|_| {
        anyhow!("an etcd still runs in {}: stop it first", settings.data_dir.display())
    })?;
    let mut snapshot = open(&file, true)?;
    let (log, commit) = read_log(&log_of(settings), snapshot.state().meta.consistent_index)?;
    let mut known = snapshot.state().clone();
    for entry in &log {
        known.follow(entry).with_context(|| format!("entry {} of etcd's log", entry.index))?;
    }
    let committed = log.partition_point(|entry| entry.index <= commit);
    let voters = known.members.iter().filter(|member| !member.learner).count();
    let log = match log.len() - committed {
        // With --force-new-cluster what no quorum is known to have goes, as in etcd.
        _ if settings.force_new => &log[..committed],
        // What a lone member has, its quorum has.
        _ if voters <= 1 => &log[..],
        0 => &log[..],
        left => bail!(
            "only the other members of {} can tell whether what comes last in its log was acknowledged (entries: {left}): start all etcds once more and stop them in order; if the others are lost, --force-new-cluster goes on alone without it",
            settings.data_dir.display()
        ),
    };
    let members: Vec<(String, Vec<String>)> =
        known.members.into_iter().map(|member| (member.name, member.peer_urls)).collect();
    let mut own = settings.clone();
    if let Some((_, urls)) = members.iter().find(|(name, _)| *name == settings.name) {
        own.advertise_peers.clone_from(urls);
        own.initial = members;
    }
    own.check_first()?;
    let cost = settings.bcrypt_cost;
    let hash = |password: &str| bcrypt::hash(password, cost).ok();
    let restored = dhow_server::take_over(
        Real::shared(),
        directory,
        &dhow_clock::System::shared(),
        &alone(&own, own.initial.clone()),
        &mut snapshot,
        log,
        &hash,
    )
    .with_context(|| format!("cannot take over {}", settings.data_dir.display()))?;
    tracing::info!(
        data_dir = %settings.data_dir.display(),
        entries = log.len(),
        revision = restored.revision,
        keys = restored.keys,
        member = format!("{:x}", restored.identity.member_id),
        "took over the data of an etcd; its files stay as they are"
    );
    Ok(())
}

/// The entries of etcd's log behind the index that its database has, and how far they are known to
/// be committed.
fn read_log(folder: &Path, applied: u64) -> Result<(Vec<Entry>, u64)> {
    let mut files = Vec::new();
    match std::fs::read_dir(folder) {
        Ok(entries) => {
            for entry in entries {
                files.push(entry?.path());
            }
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => bail!("cannot list {}: {error}", folder.display()),
    }
    // Others are being prepared or were put aside.
    files.retain(|path| path.extension().is_some_and(|end| end == "wal"));
    files.sort();
    let mut wal = Wal::behind(applied);
    for (n, path) in files.iter().enumerate() {
        let bytes =
            std::fs::read(path).with_context(|| format!("cannot read {}", path.display()))?;
        wal.file(&bytes, n + 1 == files.len()).with_context(|| {
            let path = path.display();
            format!("etcd's log {path} is damaged: restore a snapshot, or take another copy of it")
        })?;
    }
    let commit = wal.commit();
    let entries = wal.entries().with_context(|| {
        let folder = folder.display();
        format!("etcd's log in {folder} does not belong to its database: name the one it has with --wal-dir")
    })?;
    Ok((entries, commit))
}
