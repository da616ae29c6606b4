//! The floor: a server of etcd's protocol that only answers, or only makes writes durable.
//!
//! It keeps nothing. What it costs is what the protocol and the disk cost: no store behind the same
//! library can be faster.

use anyhow::{Context as _, Result};
use bytes::Bytes;
use dhow_rpc::etcdserverpb::kv_server::{Kv, KvServer};
use dhow_rpc::etcdserverpb::lease_server::{Lease, LeaseServer};
use dhow_rpc::etcdserverpb::{
    CompactionRequest, CompactionResponse, DeleteRangeRequest, DeleteRangeResponse,
    LeaseGrantRequest, LeaseGrantResponse, LeaseKeepAliveRequest, LeaseKeepAliveResponse,
    LeaseLeasesRequest, LeaseLeasesResponse, LeaseRevokeRequest, LeaseRevokeResponse,
    LeaseTimeToLiveRequest, LeaseTimeToLiveResponse, PutRequest, PutResponse, RangeRequest,
    RangeResponse, RangeStreamResponse, ResponseHeader, ResponseOp, TxnRequest, TxnResponse,
    response_op,
};
use dhow_rpc::mvccpb::KeyValue;
use futures::StreamExt as _;
use futures::stream::{BoxStream, Empty};
use prost::Message;
use std::fs::File;
use std::net::SocketAddr;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use tokio::sync::oneshot;
use tonic::{Request, Response, Status, Streaming};

/// Bytes of the log file; when it is full, it starts again.
const LOG: usize = 64 << 20;

/// What to serve.
#[derive(Debug, clap::Args)]
pub struct Options {
    /// Where to listen
    #[arg(long)]
    listen: SocketAddr,
    /// Make writes durable in a log in this directory; without it, answer at once
    #[arg(long)]
    dir: Option<PathBuf>,
}

/// Serves until it is killed.
///
/// # Errors
/// When it cannot listen or make the log.
pub async fn run(options: &Options) -> Result<()> {
    let log = options.dir.as_deref().map(Log::open).transpose()?;
    let floor =
        Floor(Arc::new(Shared { log, revision: AtomicI64::new(1), value: crate::load::value(0) }));
    tonic::transport::Server::builder()
        .add_service(KvServer::new(floor.clone()))
        .add_service(LeaseServer::new(floor))
        .serve(options.listen)
        .await
        .with_context(|| format!("cannot listen on {}", options.listen))
}

/// A log that is written and synced for all that wait at once.
struct Log {
    queue: Mutex<Queue>,
    filled: Condvar,
}

#[derive(Default)]
struct Queue {
    bytes: Vec<u8>,
    waiting: Vec<oneshot::Sender<()>>,
}

impl Log {
    fn open(dir: &Path) -> Result<Arc<Self>> {
        let path = dir.join("log");
        let file =
            File::create(&path).with_context(|| format!("cannot make {}", path.display()))?;
        // Written through once, so that later syncs carry data and no sizes.
        file.write_all_at(&vec![0; LOG], 0)?;
        file.sync_all()?;
        let log = Arc::new(Self { queue: Mutex::default(), filled: Condvar::new() });
        let writer = Arc::clone(&log);
        std::thread::Builder::new().name("log".into()).spawn(move || {
            if let Err(error) = writer.write(&file) {
                eprintln!("error: cannot write {}: {error}", path.display());
                std::process::exit(1);
            }
        })?;
        Ok(log)
    }

    /// Writes for ever: all that has come in while the last batch was on its way is the next one.
    fn write(&self, file: &File) -> std::io::Result<()> {
        let mut at = 0;
        let mut batch = Queue::default();
        loop {
            let mut queue = self.queue.lock().unwrap_or_else(PoisonError::into_inner);
            while queue.waiting.is_empty() {
                queue = self.filled.wait(queue).unwrap_or_else(PoisonError::into_inner);
            }
            std::mem::swap(&mut *queue, &mut batch);
            drop(queue);
            if at + batch.bytes.len() > LOG {
                at = 0;
            }
            file.write_all_at(&batch.bytes, at as u64)?;
            file.sync_data()?;
            at += batch.bytes.len();
            batch.bytes.clear();
            for waiting in batch.waiting.drain(..) {
                // Whoever has gone does not need to know.
                let _ = waiting.send(());
            }
        }
    }

    async fn append(&self, message: &impl Message) -> Result<(), Status> {
        let (done, durable) = oneshot::channel();
        let first = {
            let mut queue = self.queue.lock().unwrap_or_else(PoisonError::into_inner);
            message
                .encode_length_delimited(&mut queue.bytes)
                .map_err(|error| Status::internal(error.to_string()))?;
            queue.waiting.push(done);
            queue.waiting.len() == 1
        };
        if first {
            self.filled.notify_one();
        }
        durable.await.map_err(|_| Status::internal("the log has ended"))
    }
}

#[derive(Clone)]
struct Floor(Arc<Shared>);

struct Shared {
    log: Option<Arc<Log>>,
    revision: AtomicI64,
    value: Bytes,
}

impl Floor {
    /// The header of an answer to a write, once that is durable.
    async fn written(&self, message: &impl Message) -> Result<ResponseHeader, Status> {
        if let Some(log) = &self.0.log {
            log.append(message).await?;
        }
        Ok(header(self.0.revision.fetch_add(1, Ordering::Relaxed) + 1))
    }

    fn key(&self, key: Bytes) -> KeyValue {
        KeyValue { key, value: self.0.value.clone(), version: 1, ..KeyValue::default() }
    }
}

fn header(revision: i64) -> ResponseHeader {
    ResponseHeader { cluster_id: 1, member_id: 1, revision, raft_term: 1 }
}

/// What is behind a request that the floor does not know.
fn none<T>() -> Result<T, Status> {
    Err(Status::unimplemented("the floor has no such request"))
}

#[tonic::async_trait]
impl Kv for Floor {
    async fn range(
        &self,
        request: Request<RangeRequest>,
    ) -> Result<Response<RangeResponse>, Status> {
        let RangeRequest { key, limit, count_only, .. } = request.into_inner();
        // As many as asked for, all the same.
        let count = if count_only { 0 } else { limit.clamp(1, 10_000) };
        let kvs = (0..count).map(|_| self.key(key.clone())).collect();
        let revision = self.0.revision.load(Ordering::Relaxed);
        let header = Some(header(revision));
        Ok(Response::new(RangeResponse { header, kvs, more: count > 1, count }))
    }

    type RangeStreamStream = Empty<Result<RangeStreamResponse, Status>>;

    async fn range_stream(
        &self,
        _: Request<RangeRequest>,
    ) -> Result<Response<Self::RangeStreamStream>, Status> {
        none()
    }

    async fn put(&self, request: Request<PutRequest>) -> Result<Response<PutResponse>, Status> {
        let header = Some(self.written(&request.into_inner()).await?);
        Ok(Response::new(PutResponse { header, prev_kv: None }))
    }

    async fn delete_range(
        &self,
        request: Request<DeleteRangeRequest>,
    ) -> Result<Response<DeleteRangeResponse>, Status> {
        let header = Some(self.written(&request.into_inner()).await?);
        Ok(Response::new(DeleteRangeResponse { header, deleted: 1, prev_kvs: Vec::new() }))
    }

    async fn txn(&self, request: Request<TxnRequest>) -> Result<Response<TxnResponse>, Status> {
        let request = request.into_inner();
        let header = self.written(&request).await?;
        let answer = PutResponse {
            header: Some(ResponseHeader { revision: header.revision, ..ResponseHeader::default() }),
            prev_kv: None,
        };
        let responses = request.success.iter().map(|_| ResponseOp {
            response: Some(response_op::Response::ResponsePut(answer.clone())),
        });
        let responses = responses.collect();
        Ok(Response::new(TxnResponse { header: Some(header), succeeded: true, responses }))
    }

    async fn compact(
        &self,
        _: Request<CompactionRequest>,
    ) -> Result<Response<CompactionResponse>, Status> {
        none()
    }
}

#[tonic::async_trait]
impl Lease for Floor {
    async fn lease_grant(
        &self,
        request: Request<LeaseGrantRequest>,
    ) -> Result<Response<LeaseGrantResponse>, Status> {
        let request = request.into_inner();
        let header = self.written(&request).await?;
        let (id, ttl) = (header.revision, request.ttl);
        let header = Some(header);
        Ok(Response::new(LeaseGrantResponse { header, id, ttl, error: String::new() }))
    }

    async fn lease_revoke(
        &self,
        request: Request<LeaseRevokeRequest>,
    ) -> Result<Response<LeaseRevokeResponse>, Status> {
        let header = Some(self.written(&request.into_inner()).await?);
        Ok(Response::new(LeaseRevokeResponse { header }))
    }

    type LeaseKeepAliveStream = BoxStream<'static, Result<LeaseKeepAliveResponse, Status>>;

    async fn lease_keep_alive(
        &self,
        request: Request<Streaming<LeaseKeepAliveRequest>>,
    ) -> Result<Response<Self::LeaseKeepAliveStream>, Status> {
        let answers = request.into_inner().map(|request| {
            request.map(|LeaseKeepAliveRequest { id }| LeaseKeepAliveResponse {
                header: Some(header(1)),
                id,
                ttl: 60,
            })
        });
        Ok(Response::new(answers.boxed()))
    }

    async fn lease_time_to_live(
        &self,
        _: Request<LeaseTimeToLiveRequest>,
    ) -> Result<Response<LeaseTimeToLiveResponse>, Status> {
        none()
    }

    async fn lease_leases(
        &self,
        _: Request<LeaseLeasesRequest>,
    ) -> Result<Response<LeaseLeasesResponse>, Status> {
        none()
    }
}
