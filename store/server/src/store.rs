//! The store's handle: reads, watches, leases, and the way to the writer.

use crate::lease::{self, Lessor};
use crate::queue::{Queue, Request};
use crate::watch::{Hub, StoreWatcher, lock};
use crate::writer::Writer;
use crate::{Introduction, Options, Standing};
use crate::{OpenError, journal};
use bytes::Bytes;
use dhow_clock::disk::{Disk, Real};
use dhow_clock::{BoxFuture, SharedClock};
use dhow_kv::{Backend, Error, Lease, Range, RangeResult, Txn, TxnResult, WatchRequest, Watcher};
use dhow_mvcc::{Command, MAX_TTL, Mvcc, Outcome, check_range, check_txn, is_read_only};
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};
use tokio::sync::oneshot;

/// A read of more keys than this takes the lock several times.
const SCAN: usize = 1024;

/// What the handle, the writer, the watchers and the timer share.
#[derive(Debug)]
pub(crate) struct Shared {
    mvcc: RwLock<Mvcc>,
    pub(crate) hub: Hub,
    pub(crate) lessor: Lessor,
    pub(crate) queue: Queue,
    pub(crate) clock: SharedClock,
    pub(crate) options: Options,
    /// The writer, when it has no thread of its own.
    inline: Option<Mutex<Option<Writer>>>,
}

impl Shared {
    pub(crate) fn read(&self) -> RwLockReadGuard<'_, Mvcc> {
        self.mvcc.read().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn write(&self) -> RwLockWriteGuard<'_, Mvcc> {
        self.mvcc.write().unwrap_or_else(PoisonError::into_inner)
    }

    /// Refuses what comes from now on, and lets go of the disk of a writer without a thread.
    fn close(&self) {
        self.queue.close();
        if let Some(writer) = &self.inline {
            *lock(writer) = None;
        }
    }

    /// Has the writer run a request.
    fn enqueue(&self, request: Request) {
        match &self.inline {
            Some(writer) => {
                let mut writer = lock(writer);
                if let Some(writer) = &mut *writer
                    && !self.queue.is_closed()
                {
                    writer.run_inline(self, request);
                }
            }
            None => self.queue.push(request),
        }
    }

    /// Runs a command and waits until it is durable.
    pub(crate) async fn submit(&self, command: Command, physical: bool) -> Result<Outcome, Error> {
        let (reply, answer) = oneshot::channel();
        self.enqueue(Request::Command { command, physical, reply });
        answer.await.unwrap_or(Err(Error::Stopped))
    }
}

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
    shared: Arc<Shared>,
    thread: Mutex<Option<std::thread::JoinHandle<()>>>,
    timer: Mutex<Option<tokio::task::JoinHandle<()>>>,
}

impl Store {
    /// An empty store without a disk. Everything happens in the caller; leases need a tokio runtime.
    pub fn memory(clock: SharedClock) -> Arc<Self> {
        Self::memory_with(clock, Options::default())
    }

    /// The same with options.
    pub fn memory_with(clock: SharedClock, options: Options) -> Arc<Self> {
        let options = Options { inline: true, ..options };
        Self::assemble(Mvcc::new(), Some(Writer::new(None)), clock, options)
    }

    /// Opens the store in a directory, making it if it is not there. Call it within a tokio
    /// runtime: the timer of the leases is a task.
    ///
    /// # Errors
    /// [`OpenError`]: the directory is in use, of a newer format, damaged, or cannot be read.
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
        let (mvcc, journal) = journal::recover(disk, path, &clock, &options)?;
        let writer = Writer::new(Some(journal));
        if options.inline {
            return Ok(Self::assemble(mvcc, Some(writer), clock, options));
        }
        let store = Self::assemble(mvcc, None, clock, options);
        let shared = store.shared.clone();
        let named = std::thread::Builder::new().name("store-writer".into());
        let thread = named.spawn(move || writer.run(&shared)).map_err(|source| {
            let action = "start the thread that writes";
            OpenError::Disk { action, path: path.to_owned(), source }
        })?;
        *lock(&store.thread) = Some(thread);
        Ok(store)
    }

    /// The handle; the writer is in it (`inline`), or yet to be started.
    fn assemble(
        mvcc: Mvcc,
        inline: Option<Writer>,
        clock: SharedClock,
        options: Options,
    ) -> Arc<Self> {
        let lessor = Lessor::default();
        let now = clock.monotonic();
        for (id, ttl) in mvcc.leases() {
            // After a restart every lease has its whole time again: its owner may be still there.
            lessor.granted(id, ttl, now);
        }
        let shared = Arc::new(Shared {
            hub: Hub::new(mvcc.revision()),
            mvcc: RwLock::new(mvcc),
            lessor,
            queue: Queue::default(),
            clock,
            options,
            inline: inline.map(|writer| Mutex::new(Some(writer))),
        });
        let store = Arc::new(Self { shared, thread: Mutex::new(None), timer: Mutex::new(None) });
        if !store.shared.lessor.ids().is_empty() {
            store.ensure_timer();
        }
        store
    }

    /// Takes a message that the transport has brought from another member.
    pub fn receive(&self, from: u64, message: Bytes) {
        let _ = (from, message);
    }

    /// Tells the store that messages to a member were dropped, so that Raft sends them again sooner.
    pub fn unreachable(&self, to: u64) {
        let _ = to;
    }

    /// What to tell a member that wants to join.
    pub fn introduction(&self) -> Introduction {
        Introduction::default()
    }

    /// What a member is to this one, by its identifier.
    pub fn standing(&self, id: u64) -> Standing {
        let _ = id;
        Standing::Unknown
    }

    /// Tells the store that another member says that it has been removed: it stops.
    pub fn expelled(&self) {}

    /// Completes when this member has been removed from its cluster (or the store has stopped).
    pub async fn removed(&self) {}

    /// Starts the timer of the leases, if it does not run.
    fn ensure_timer(&self) {
        let mut timer = lock(&self.timer);
        if timer.is_none()
            && let Ok(runtime) = tokio::runtime::Handle::try_current()
        {
            *timer = Some(runtime.spawn(lease::expire(self.shared.clone())));
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
        if let Some(timer) = lock(&self.timer).take() {
            timer.abort();
        }
        self.shared.hub.stop();
    }

    /// How the store is, in numbers.
    pub fn status(&self) -> Status {
        let mvcc = self.shared.read();
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
        let selects = !range.select.is_default();
        if range.count_only || selects || (range.limit > 0 && range.limit <= SCAN) {
            return self.shared.read().range(range, self.shared.hub.published());
        }
        loop {
            match self.scan(range) {
                // Compaction passed the revision meanwhile. Only what asked for the newest goes on.
                Err(Error::Compacted) if range.revision <= 0 => {}
                answer => return answer,
            }
        }
    }

    /// A long read, in pieces, so that the writer need not wait for all of it.
    fn scan(&self, range: &Range) -> Result<RangeResult, Error> {
        let mut mvcc = self.shared.read();
        let now = self.shared.hub.published();
        let at = mvcc.check_revision(range.revision, now)?;
        let limit = if range.limit == 0 { usize::MAX } else { range.limit };
        let mut result = RangeResult { revision: now, ..RangeResult::default() };
        loop {
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
            drop(mvcc);
            mvcc = self.shared.read();
            if mvcc.pruned() > at {
                return Err(Error::Compacted);
            }
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
        if let Some(timer) = lock(&self.timer).take() {
            timer.abort();
        }
    }
}

impl Backend for Store {
    fn range(&self, range: Range) -> BoxFuture<'_, Result<RangeResult, Error>> {
        Box::pin(async move { self.read_range(&range) })
    }

    fn txn(&self, txn: Txn) -> BoxFuture<'_, Result<TxnResult, Error>> {
        Box::pin(async move {
            check_txn(&txn, &self.shared.options.limits)?;
            if is_read_only(&txn) {
                return self.shared.read().read_txn(&txn, self.shared.hub.published());
            }
            match self.shared.submit(Command::Txn(txn), false).await? {
                Outcome::Txn(result) => Ok(result),
                _ => Err(Error::Storage("a transaction had no answer".into())),
            }
        })
    }

    fn compact(&self, revision: i64, physical: bool) -> BoxFuture<'_, Result<i64, Error>> {
        Box::pin(
            async move { done(self.shared.submit(Command::Compact(revision), physical).await?) },
        )
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
        Box::pin(async move { done(self.shared.submit(Command::LeaseRevoke { id }, false).await?) })
    }

    fn lease_keep_alive(&self, id: i64) -> BoxFuture<'_, Result<Lease, Error>> {
        Box::pin(async move {
            if self.shared.queue.is_closed() {
                return Err(Error::Stopped);
            }
            let ttl = self.shared.lessor.renew(id, self.shared.clock.monotonic()).unwrap_or(0);
            Ok(Lease { id, granted_ttl: ttl, ttl, keys: Vec::new() })
        })
    }

    fn lease_time_to_live(&self, id: i64, keys: bool) -> BoxFuture<'_, Result<Lease, Error>> {
        Box::pin(async move {
            let now = self.shared.clock.monotonic();
            let Some((granted_ttl, ttl)) = self.shared.lessor.remaining(id, now) else {
                return Ok(Lease { id, granted_ttl: 0, ttl: -1, keys: Vec::new() });
            };
            let mut lease = Lease { id, granted_ttl, ttl, keys: Vec::new() };
            if keys {
                // Asked in the writer's turn, because the newest state may not be durable yet.
                let (reply, answer) = oneshot::channel();
                self.shared.enqueue(Request::LeaseKeys { id, reply });
                lease.keys = answer.await.unwrap_or(Err(Error::Stopped))?;
            }
            Ok(lease)
        })
    }

    fn leases(&self) -> BoxFuture<'_, Result<Vec<i64>, Error>> {
        Box::pin(async move { Ok(self.shared.lessor.ids()) })
    }

    fn revision(&self) -> i64 {
        self.shared.hub.published()
    }
}

fn done(outcome: Outcome) -> Result<i64, Error> {
    match outcome {
        Outcome::Done(revision) | Outcome::Txn(TxnResult { revision, .. }) => Ok(revision),
        _ => Err(Error::Storage("an answer has no revision".into())),
    }
}
