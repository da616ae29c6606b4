//! Runs consensus, log and mvcc: one durable member, alone or of several.
//!
//! [`Store`] is a [`dhow_kv::Backend`] and a [`dhow_kv::admin::Admin`] in the process. Writes pass
//! through one writer: it gives what has arrived to Raft as one batch, which is appended to the log
//! with one sync, sent to the other members, and applied, made visible and answered when it is on a
//! quorum. A member that is alone is its own quorum: it sends nothing, needs no ticks, and its
//! readers look at the newest durable revision and wait for nobody. Where there are several, reads
//! ask the leader how far they must see, and the leader asks a quorum whether it still leads.
//!
//! The parts, from the outside in: `store` and `admin` (the handle), `queue` and `writer` (what
//! arrives, in batches), `requests` (who waits for what), `core` (Raft's decisions carried out),
//! `membership` and `transfer` (members, snapshots to them), `compare` (do all have the same?), `raftlog` and `journal` (the log and
//! checkpoints on the disk), `wire` (what members say to each other, carried by a [`Transport`]).

mod admin;
mod checksums;
mod cluster;
mod codec;
mod compare;
mod core;
mod entry;
mod journal;
mod lease;
mod maintenance;
mod members;
mod membership;
mod queue;
mod raftlog;
mod requests;
mod restore;
mod shared;
mod stand;
mod store;
mod transfer;
mod transport;
mod watch;
mod wire;
mod writer;

pub use cluster::{Cluster, Introduction, Standing, Start, member_id};
pub use dhow_log::Error as OpenError;
pub use restore::{RestoreError, Restored, force_new, restore, take_over};
pub use store::{Status, Store};
pub use transport::Transport;
pub use wire::reencode_message;

use dhow_mvcc::Limits;
use std::path::PathBuf;
use std::time::Duration;

/// How much history is kept for watches and reads of the past. A revision is forgotten when it is
/// neither among the newest nor young, or when there are too many.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Retention {
    /// The newest revisions, always kept.
    pub newest: i64,
    /// Younger revisions are kept...
    pub age: Duration,
    /// ...but never more than this many.
    pub most: i64,
}

impl Default for Retention {
    fn default() -> Self {
        Self { newest: 2_000, age: Duration::from_secs(300), most: 50_000 }
    }
}

/// How a [`Store`] behaves.
#[derive(Debug, Clone)]
pub struct Options {
    /// How large a request may be.
    pub limits: Limits,
    /// Puts and grants are refused beyond this many bytes, by [`dhow_mvcc::Mvcc::bytes`]; 0 for no
    /// quota. It heals by itself when deletes and compaction have made room.
    pub quota_bytes: u64,
    /// Shorter leases are granted for this long, in seconds.
    pub min_lease_ttl: i64,
    /// What remains of a longer lease is noted in the log each time when so much of it has passed, so
    /// that it does not begin anew with another leader or a restart; `None` for never.
    pub lease_checkpoint: Option<Duration>,
    /// What history is kept; `None` for all.
    pub retention: Option<Retention>,
    /// Where the log lies, if not with the checkpoints: an absolute path, for example on a disk of its
    /// own.
    pub log_dir: Option<PathBuf>,
    /// The size of one file of the log. The space is taken when the file is begun.
    pub segment_bytes: u64,
    /// A checkpoint is written when the log since the last one is this long, in bytes.
    pub checkpoint_bytes: u64,
    /// Commit in the caller instead of in a thread: nothing runs concurrently, for simulations.
    pub inline: bool,
    /// Raise an alarm when the quota is used up, which stays until somebody ends it, as etcd does.
    /// Otherwise writes are refused only as long as there is no space.
    pub quota_alarm: bool,
    /// What tokens are made with: random bytes of the system's, the same for no two members. Without
    /// it whoever sees this store's other random numbers could guess them: set it where users are
    /// asked for.
    pub secret: Option<[u8; 32]>,
    /// Compute a checksum over what each compaction finds, and tell that one for its revision afterwards,
    /// as etcd does. It reads the whole state once for each.
    pub compaction_checksums: bool,
    /// How long a token lasts without being used, in seconds.
    pub token_ttl: u64,
    /// The other members; `None` for a store that is alone.
    pub cluster: Option<Cluster>,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            limits: Limits::default(),
            quota_bytes: 2 << 30,
            min_lease_ttl: 2,
            lease_checkpoint: Some(Duration::from_secs(300)),
            retention: Some(Retention::default()),
            log_dir: None,
            segment_bytes: 8 << 20,
            checkpoint_bytes: 32 << 20,
            inline: false,
            quota_alarm: false,
            compaction_checksums: false,
            secret: None,
            token_ttl: 300,
            cluster: None,
        }
    }
}
