//! The store's handle: reads, watches, leases, and the way to the writer.

use crate::compare::{Comparisons, is_word};
use crate::core::Core;
use crate::journal::{self, Checkpoints, Opened};
use crate::lease::{self, Renewed};
use crate::queue::Request;
use crate::raftlog::RaftLog;
use crate::shared::{Shared, State};
use crate::watch::{StoreWatcher, lock};
use crate::wire::{Ask, Told};
use crate::writer::{self, Writer};
use crate::{Introduction, OpenError, Options, Standing};
use bytes::Bytes;
use dhow_clock::disk::{Disk, Real};
use dhow_clock::{BoxFuture, SharedClock};
use dhow_kv::admin::Identity;
use dhow_kv::{
    Backend, Error, KeyValueRef, Lease, Range, RangeResult, Span, Txn, TxnResult, WatchRequest,
    Watcher,
};
use dhow_mvcc::{Command, MAX_TTL, Outcome, check_range, check_txn, is_read_only};
use std::path::Path;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex};
use std::time::Duration;

/// A read of more keys than this takes the lock several times.
const SCAN: usize = 1024;

/// How a [`Store`] is, in numbers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Status {
    /// The newest durable revision.
    pub revision: i64,
    /// The revision below which history is forgotten.
    pub compacted: i64,
    /// How many keys are alive.
    pub keys: usize,
    /// The quota in use, in bytes.
    pub bytes: u64,
    /// How many leases there are.
    pub leases: usize,
}

/// One durable member, or a volatile one for tests. See the crate.
#[derive(Debug)]
pub struct Store {
    pub(crate) shared: Arc<Shared>,
    pub(crate) comparisons: Arc<Comparisons>,
    thread: Mutex<Option<std::thread::JoinHandle<()>>>,
    /// Tasks: the end of leases, the ticks.
    timer: Mutex<Option<tokio::task::JoinHandle<()>>>,
    ticker: Mutex<Option<tokio::task::JoinHandle<()>>>,
}

impl Store {
    /// An empty store without a disk. Everything happens in the caller; leases need a tokio runtime.
    pub fn memory(clock: SharedClock) -> Arc<Self> {
        Self::memory_with(clock, Options::default())
    }

    /// The same with options. It is always alone.
    pub fn memory_with(clock: SharedClock, options: Options) -> Arc<Self> {
        let options = Options { inline: true, cluster: None, ..options };
        let (state, log) = journal::volatile(&clock);
        let assembled = Self::assemble(state, log, clock.clone(), options.clone());
        let (store, core) = match assembled {
            Ok(assembled) => assembled,
            // Raft takes every log that is as empty as this one.
            Err(error) => unreachable!("an empty log was refused: {error}"),
        };
        let writer = Writer::new(core, Checkpoints::new(options.checkpoint_bytes));
        *lock(&store.shared.writer) = Some(writer);
        store
    }

    /// Opens the store in a directory, making it if it is not there. Call it within a tokio
    /// runtime: the timers are tasks.
    ///
    /// # Errors
    /// [`OpenError`]: the directory is in use, of another format, damaged, of another cluster, or
    /// cannot be read.
    pub fn open(path: &Path, clock: SharedClock, options: Options) -> Result<Arc<Self>, OpenError> {
        Self::open_on(Real::shared(), path, clock, options)
    }

    /// The same on a given disk.
    ///
    /// # Errors
    /// As [`Store::open`].
    pub fn open_on(
        disk: Arc<dyn Disk>,
        path: &Path,
        clock: SharedClock,
        options: Options,
    ) -> Result<Arc<Self>, OpenError> {
        let opened = journal::recover(disk, path, &clock, &options)?;
        let Opened { state, log, checkpoint, limit } = opened;
        let (store, core) =
            Self::assemble(state, log, clock, options.clone()).map_err(|error| {
                let what = format!("its log is refused: {error}");
                OpenError::Refused { path: path.to_owned(), what }
            })?;
        store.shared.numbers.checkpoint_bytes.store(checkpoint, Ordering::Relaxed);
        let writer = Writer::new(core, Checkpoints::new(limit));
        *lock(&store.shared.writer) = Some(writer);
        if !options.inline {
            let shared = store.shared.clone();
            let named = std::thread::Builder::new().name("store-writer".into());
            let thread = named.spawn(move || writer::run(&shared)).map_err(|source| {
                let action = "start the thread that writes";
                OpenError::Disk { action, path: path.to_owned(), source }
            })?;
            *lock(&store.thread) = Some(thread);
        }
        if options.cluster.is_some()
            && let Ok(runtime) = tokio::runtime::Handle::try_current()
        {
            *lock(&store.ticker) = Some(runtime.spawn(tick(store.shared.clone())));
        }
        Ok(store)
    }

    /// The handle and consensus; the writer is yet to be started.
    pub(crate) fn assemble(
        state: State,
        log: RaftLog,
        clock: SharedClock,
        options: Options,
    ) -> Result<(Arc<Self>, Core), raft::Error> {
        let identity = log.identity();
        let directory = log.disk.as_ref().map(|disk| Arc::downgrade(disk.log.directory()));
        let directory = directory.unwrap_or_default();
        let shared = Arc::new(Shared::new(state, identity, directory, clock, options));
        // After a restart every lease has its whole time again, or what was noted of it: its owner may
        // be still there.
        shared.lessor.reset(&shared.read().machine.mvcc, shared.clock.monotonic());
        let core = Core::new(log, &shared)?;
        let store = Arc::new(Self {
            shared,
            comparisons: Arc::default(),
            thread: Mutex::new(None),
            timer: Mutex::new(None),
            ticker: Mutex::new(None),
        });
        // In a cluster others may grant leases that end here.
        if store.shared.options.cluster.is_some() || !store.shared.lessor.ids().is_empty() {
            store.ensure_timer();
        }
        Ok((store, core))
    }

    /// Takes a message that the transport has brought from another member.
    pub fn receive(&self, from: u64, message: Bytes) {
        if is_word(&message) {
            self.receive_word(from, message);
        } else {
            self.shared.enqueue(Request::Message { from, bytes: message });
        }
    }

    /// Tells the store that messages to a member were dropped, so that Raft sends them again sooner.
    pub fn unreachable(&self, to: u64) {
        self.shared.enqueue(Request::Unreachable(to));
    }

    /// What to tell a member that wants to join.
    pub fn introduction(&self) -> Introduction {
        let members = self.shared.read().members.list();
        Introduction { cluster_id: self.shared.identity.cluster_id, members }
    }

    /// Which member this is, of which cluster.
    pub fn identity(&self) -> Identity {
        self.shared.identity
    }

    /// What a member is to this one, by its identifier.
    pub fn standing(&self, id: u64) -> Standing {
        let state = self.shared.read();
        if state.members.get(id).is_some() {
            Standing::Member
        } else if state.members.is_removed(id) {
            Standing::Removed
        } else {
            Standing::Unknown
        }
    }

    /// Tells the store that another member says that it has been removed: it stops.
    pub fn expelled(&self) {
        self.shared.enqueue(Request::Expelled);
    }

    /// Completes when this member has been removed from its cluster (or the store has stopped).
    pub async fn removed(&self) {
        let mut gone = self.shared.gone.subscribe();
        let _ = gone.wait_for(|gone| *gone).await;
    }

    /// Whether this member decides when leases end: one that leads as far as it knows asks the
    /// others first, since it may have been replaced. Then it also knows of all leases that were
    /// granted.
    async fn decides_on_leases(&self) -> Result<bool, Error> {
        let term = self.shared.lessor.term();
        if term != 0 {
            self.shared.catch_up().await?;
        }
        Ok(term != 0 && self.shared.lessor.term() == term)
    }

    /// Renews a lease as the leader that was confirmed after it was asked.
    async fn renew(&self, id: i64, asked: Duration) -> Result<Option<(i64, i64)>, Error> {
        let shared = &self.shared;
        loop {
            match shared.lessor.renew(id, asked, shared.clock.monotonic())? {
                Renewed::Told(told) => return Ok(told),
                Renewed::Noted => {
                    let term = shared.lessor.term();
                    if term == 0 {
                        return Err(Error::LeaderChanged);
                    }
                    match shared.submit_in(term, lease::whole(id)).await {
                        Err(Error::NotLeader) => return Err(Error::LeaderChanged),
                        done => drop(done?),
                    }
                }
            }
        }
    }

    /// Starts the timer of the leases, if it does not run.
    fn ensure_timer(&self) {
        let mut timer = lock(&self.timer);
        if timer.is_none()
            && let Ok(runtime) = tokio::runtime::Handle::try_current()
        {
            *timer = Some(runtime.spawn(lease::expire(self.shared.clone())));
        }
    }

    fn stop_tasks(&self) {
        for task in [&self.timer, &self.ticker] {
            if let Some(task) = lock(task).take() {
                task.abort();
            }
        }
    }

    /// Finishes what was begun, ends all watches, and refuses everything that comes after.
    pub async fn shutdown(&self) {
        self.shared.close();
        let thread = lock(&self.thread).take();
        if let Some(thread) = thread
            && tokio::task::spawn_blocking(move || thread.join()).await.is_err()
        {
            tracing::warn!("the store's writer could not be joined");
        }
        self.stop_tasks();
        self.shared.hub.stop();
    }

    /// How the store is, in numbers.
    pub fn status(&self) -> Status {
        let state = self.shared.read();
        let mvcc = &state.machine.mvcc;
        Status {
            revision: self.shared.hub.published(),
            compacted: mvcc.compacted(),
            keys: mvcc.keys(),
            bytes: mvcc.bytes(),
            leases: self.shared.lessor.ids().len(),
        }
    }

    fn read_range(&self, range: &Range) -> Result<RangeResult, Error> {
        check_range(range)?;
        let whole = range.count_only || !range.select.is_default();
        if whole || is_short(range) {
            let state = self.shared.read();
            state.machine.alarms().check_read()?;
            return state.machine.mvcc.range(range, self.shared.hub.published());
        }
        loop {
            match self.scan(range) {
                // Compaction passed the revision meanwhile. Only what asked for the newest goes on.
                Err(Error::Compacted) if range.revision <= 0 => {}
                answer => return answer,
            }
        }
    }

    fn read_each(
        &self,
        range: &Range,
        each: &mut (dyn FnMut(KeyValueRef<'_>) + Send),
    ) -> Result<RangeResult, Error> {
        if is_short(range) && !range.count_only && range.select.is_default() {
            check_range(range)?;
            let state = self.shared.read();
            state.machine.alarms().check_read()?;
            return state.machine.mvcc.range_each(range, self.shared.hub.published(), each);
        }
        // A long one may have to begin again, or is in another order than the keys'.
        let mut found = self.read_range(range)?;
        std::mem::take(&mut found.kvs).iter().for_each(|kv| each(kv.by_ref()));
        Ok(found)
    }

    /// A long read, in pieces, so that the writer need not wait for all of it.
    fn scan(&self, range: &Range) -> Result<RangeResult, Error> {
        let mut state = self.shared.read();
        state.machine.alarms().check_read()?;
        let now = self.shared.hub.published();
        let at = state.machine.mvcc.check_revision(range.revision, now)?;
        let limit = if range.limit == 0 { usize::MAX } else { range.limit };
        let mut result = RangeResult { revision: now, ..RangeResult::default() };
        loop {
            let mvcc = &state.machine.mvcc;
            let after = result.kvs.last().map(|kv| kv.key.clone());
            let most = SCAN.min(limit - result.kvs.len());
            let (kvs, more) = mvcc.scan(&range.span, after.as_ref(), at, range.keys_only, most);
            if result.kvs.is_empty() {
                result.kvs = kvs;
            } else {
                result.kvs.extend(kvs);
            }
            if !more {
                result.count = result.kvs.len() as i64;
                return Ok(result);
            }
            if result.kvs.len() >= limit {
                result.more = true;
                result.count = mvcc.count_at(&range.span, at) as i64;
                return Ok(result);
            }
            drop(state);
            state = self.shared.read();
            if state.machine.mvcc.pruned() > at {
                return Err(Error::Compacted);
            }
        }
    }

    /// Runs a transaction that [`check_txn`] takes, with the rules that it was allowed by.
    pub(crate) async fn run_txn(
        &self,
        txn: Txn,
        auth_revision: Option<u64>,
    ) -> Result<TxnResult, Error> {
        if is_read_only(&txn) {
            if !reads_serializable(&txn) {
                self.shared.catch_up().await?;
            }
            let state = self.shared.read();
            state.machine.alarms().check_read()?;
            if auth_revision.is_some_and(|known| state.machine.auth().is_newer(known)) {
                return Err(Error::AuthOldRevision);
            }
            return state.machine.mvcc.read_txn(&txn, self.shared.hub.published());
        }
        let command = match auth_revision {
            Some(auth_revision) => Command::TxnAs { txn, auth_revision },
            None => Command::Txn(txn),
        };
        match self.shared.submit(command, false).await? {
            Outcome::Txn(result) => Ok(result),
            _ => Err(Error::Storage("a transaction had no answer".into())),
        }
    }
}

/// Whether a read is done before the writer misses the lock.
fn is_short(range: &Range) -> bool {
    matches!(range.span, Span::Key(_)) || (range.limit > 0 && range.limit <= SCAN)
}

/// Whether a read-only transaction is content with what this member knows: as in etcd, when all its
/// ranges are.
fn reads_serializable(txn: &Txn) -> bool {
    use dhow_kv::Op;
    txn.success.iter().chain(&txn.failure).all(|op| match op {
        Op::Range(range) => range.serializable,
        Op::Txn(inner) => reads_serializable(inner),
        Op::Put { .. } | Op::Delete { .. } => false,
    })
}

/// Gives the member its heartbeats while time matters.
async fn tick(shared: Arc<Shared>) {
    let Some(heartbeat) = shared.options.cluster.as_ref().map(|cluster| cluster.heartbeat) else {
        return;
    };
    while !shared.queue.is_closed() {
        if shared.is_ticking() {
            shared.clock.sleep(heartbeat).await;
            shared.enqueue(Request::Tick);
        } else {
            shared.ticks.notified().await;
        }
    }
}

impl Drop for Store {
    fn drop(&mut self) {
        self.shared.close();
        if let Some(thread) = lock(&self.thread).take() {
            // Short: the writer finishes its batch. Then the directory is free for another.
            let _ = thread.join();
        }
        self.shared.hub.stop();
        self.stop_tasks();
    }
}

impl Backend for Store {
    fn range(&self, range: Range) -> BoxFuture<'_, Result<RangeResult, Error>> {
        Box::pin(async move {
            if !range.serializable {
                self.shared.catch_up().await?;
            }
            self.read_range(&range)
        })
    }

    fn range_each<'a>(
        &'a self,
        range: Range,
        each: &'a mut (dyn FnMut(KeyValueRef<'_>) + Send),
    ) -> BoxFuture<'a, Result<RangeResult, Error>> {
        Box::pin(async move {
            if !range.serializable {
                self.shared.catch_up().await?;
            }
            self.read_each(&range, each)
        })
    }

    fn txn(&self, txn: Txn) -> BoxFuture<'_, Result<TxnResult, Error>> {
        Box::pin(async move {
            check_txn(&txn, &self.shared.options.limits)?;
            self.run_txn(txn, None).await
        })
    }

    fn compact(&self, revision: i64, physical: bool) -> BoxFuture<'_, Result<i64, Error>> {
        Box::pin(async move {
            revision_of(self.shared.submit(Command::Compact(revision), physical).await?)
        })
    }

    fn watch(&self, request: WatchRequest) -> Result<Box<dyn Watcher>, Error> {
        check_range(&Range::all(request.span.clone()))?;
        if self.shared.queue.is_closed() {
            return Err(Error::Stopped);
        }
        Ok(Box::new(StoreWatcher::new(self.shared.clone(), request)))
    }

    fn lease_grant(&self, id: i64, ttl: i64) -> BoxFuture<'_, Result<Lease, Error>> {
        Box::pin(async move {
            if ttl > MAX_TTL {
                return Err(Error::LeaseTtlTooLarge);
            }
            self.ensure_timer();
            let ttl = ttl.max(self.shared.options.min_lease_ttl);
            loop {
                let chosen = match id {
                    0 => (self.shared.clock.random() >> 1).max(1) as i64,
                    id => id,
                };
                let grant = Command::LeaseGrant { id: chosen, ttl };
                match self.shared.submit(grant, false).await {
                    Err(Error::LeaseExists) if id == 0 => {}
                    Err(error) => return Err(error),
                    Ok(_) => {
                        return Ok(Lease { id: chosen, granted_ttl: ttl, ttl, keys: Vec::new() });
                    }
                }
            }
        })
    }

    fn lease_revoke(&self, id: i64) -> BoxFuture<'_, Result<i64, Error>> {
        Box::pin(async move {
            revision_of(self.shared.submit(Command::LeaseRevoke { id }, false).await?)
        })
    }

    fn lease_keep_alive(&self, id: i64) -> BoxFuture<'_, Result<Lease, Error>> {
        Box::pin(async move {
            if self.shared.queue.is_closed() {
                return Err(Error::Stopped);
            }
            let asked = self.shared.clock.monotonic();
            let told = if self.decides_on_leases().await? {
                self.renew(id, asked).await?
            } else {
                lease_told(self.shared.ask(Ask::KeepAlive(id)).await?)
            };
            let (granted_ttl, ttl) = told.unwrap_or_default();
            Ok(Lease { id, granted_ttl, ttl, keys: Vec::new() })
        })
    }

    fn lease_time_to_live(&self, id: i64, keys: bool) -> BoxFuture<'_, Result<Lease, Error>> {
        Box::pin(async move {
            let told = if self.decides_on_leases().await? {
                self.shared.lessor.remaining(id, self.shared.clock.monotonic())
            } else {
                lease_told(self.shared.ask(Ask::TimeToLive(id)).await?)
            };
            let Some((granted_ttl, ttl)) = told else {
                return Ok(Lease { id, granted_ttl: 0, ttl: -1, keys: Vec::new() });
            };
            let mut lease = Lease { id, granted_ttl, ttl, keys: Vec::new() };
            if keys {
                self.shared.catch_up().await?;
                lease.keys = self.shared.read().machine.mvcc.lease_keys(id);
            }
            Ok(lease)
        })
    }

    fn leases(&self) -> BoxFuture<'_, Result<Vec<i64>, Error>> {
        Box::pin(async move {
            self.shared.catch_up().await?;
            Ok(self.shared.lessor.ids())
        })
    }

    fn revision(&self) -> i64 {
        self.shared.hub.published()
    }

    fn newest(&self) -> BoxFuture<'_, Result<i64, Error>> {
        Box::pin(async move {
            self.shared.catch_up().await?;
            Ok(self.shared.hub.published())
        })
    }
}

fn lease_told(told: Told) -> Option<(i64, i64)> {
    match told {
        Told::Lease(lease) => lease,
        Told::Members(..) => None,
    }
}

fn revision_of(outcome: Outcome) -> Result<i64, Error> {
    match outcome {
        Outcome::Done(revision) | Outcome::Txn(TxnResult { revision, .. }) => Ok(revision),
        Outcome::Alarms(_) | Outcome::Token(_) => {
            Err(Error::Storage("a request had another's answer".into()))
        }
    }
}
