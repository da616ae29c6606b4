//! An external etcd cluster as the store.
//!
//! [`Remote`] is a [`Backend`] over etcd v3's gRPC API (<https://etcd.io/docs/latest/learning/api/>):
//! several members with failover, TLS, users, and watches that outlive connections.
//!
//! - A call goes to one member until that fails. Reads are then repeated at the next one; a write only
//!   when it is certain that it was not carried out. A write whose fate is not known ends with
//!   [`Error::Timeout`] or [`Error::LeaderChanged`], and it is the caller's to look.
//! - All watches share one stream. When it breaks, it is opened at another member and every watch goes
//!   on behind the last revision that it was told: in order, without loss, without repetition.
//! - [`Backend::revision`] is the newest revision that any answer has told; it never goes back.

mod convert;
mod errors;
mod options;
mod pool;
mod watch;

pub use options::{ConnectError, Options, Tls};

use dhow_clock::{BoxFuture, SharedClock};
use dhow_kv::{Backend, Error, Lease, Range, RangeResult, Txn, TxnResult, WatchRequest, Watcher};
use dhow_rpc::etcdserverpb as pb;
use futures::FutureExt;
use pb::kv_client::KvClient;
use pb::lease_client::LeaseClient;
use pool::{ANY_SIZE, Pool};
use std::sync::Arc;
use tonic::transport::Channel;

/// A client of an external etcd cluster.
pub struct Remote {
    pool: Arc<Pool>,
    watches: watch::Watches,
}

impl std::fmt::Debug for Remote {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Remote(cluster {:x}, revision {})", self.pool.cluster(), self.pool.revision())
    }
}

fn kv(channel: Channel) -> KvClient<Channel> {
    KvClient::new(channel).max_decoding_message_size(ANY_SIZE).max_encoding_message_size(ANY_SIZE)
}

fn lease(channel: Channel) -> LeaseClient<Channel> {
    LeaseClient::new(channel).max_decoding_message_size(ANY_SIZE)
}

impl Remote {
    /// Connects: finds the members, checks that they are one cluster of etcd 3.4 or newer that lets us
    /// in and has a leader. Starts one task on the current runtime, which ends with the last handle.
    ///
    /// # Errors
    /// Which endpoint, what is wrong with it and what to do.
    pub async fn connect(options: Options, clock: SharedClock) -> Result<Arc<Self>, ConnectError> {
        let pool = Arc::new(Pool::open(options, clock).await?);
        let remote = Arc::new(Self { watches: watch::Watches::start(pool.clone()), pool });
        // A read that needs a quorum: it tells the revision as well.
        let probe = Range {
            count_only: true,
            ..Range::all(dhow_kv::Span::Key(bytes::Bytes::from_static(b"/dhow/probe")))
        };
        match remote.range(probe).await {
            // A user who may read less than everything is still a user.
            Ok(_) | Err(Error::PermissionDenied) => Ok(remote),
            Err(error) => Err(ConnectError::Refused(error)),
        }
    }

    /// The etcd cluster's identifier.
    pub fn cluster_id(&self) -> u64 {
        self.pool.cluster()
    }
}

impl Backend for Remote {
    fn range(&self, range: Range) -> BoxFuture<'_, Result<RangeResult, Error>> {
        let message = convert::range(range);
        async move {
            let ask = |channel, request| async move { kv(channel).range(request).await };
            Ok(convert::range_result(self.pool.call(true, message, ask).await?))
        }
        .boxed()
    }

    fn txn(&self, txn: Txn) -> BoxFuture<'_, Result<TxnResult, Error>> {
        let repeated = convert::reads_only(&txn);
        let message = convert::txn(txn);
        async move {
            let ask = |channel, request| async move { kv(channel).txn(request).await };
            Ok(convert::txn_result(self.pool.call(repeated, message, ask).await?))
        }
        .boxed()
    }

    fn compact(&self, revision: i64, physical: bool) -> BoxFuture<'_, Result<i64, Error>> {
        async move {
            let message = pb::CompactionRequest { revision, physical };
            let ask = |channel, request| async move { kv(channel).compact(request).await };
            let answer = self.pool.call(false, message, ask).await?;
            Ok(answer.header.map_or(0, |h| h.revision))
        }
        .boxed()
    }

    fn watch(&self, request: WatchRequest) -> Result<Box<dyn Watcher>, Error> {
        Ok(Box::new(self.watches.add(request, &self.pool)?))
    }

    fn lease_grant(&self, id: i64, ttl: i64) -> BoxFuture<'_, Result<Lease, Error>> {
        async move {
            let message = pb::LeaseGrantRequest { id, ttl };
            let ask = |channel, request| async move { lease(channel).lease_grant(request).await };
            let granted: pb::LeaseGrantResponse = self.pool.call(false, message, ask).await?;
            if !granted.error.is_empty() {
                return Err(errors::of_text(&granted.error).unwrap_or(Error::Other(granted.error)));
            }
            let (id, ttl) = (granted.id, granted.ttl);
            Ok(Lease { id, granted_ttl: ttl, ttl, keys: Vec::new() })
        }
        .boxed()
    }

    fn lease_revoke(&self, id: i64) -> BoxFuture<'_, Result<i64, Error>> {
        async move {
            let message = pb::LeaseRevokeRequest { id };
            let ask = |channel, request| async move { lease(channel).lease_revoke(request).await };
            let answer = self.pool.call(false, message, ask).await?;
            Ok(answer.header.map_or(0, |h| h.revision))
        }
        .boxed()
    }

    fn lease_keep_alive(&self, id: i64) -> BoxFuture<'_, Result<Lease, Error>> {
        async move {
            let message = pb::LeaseKeepAliveRequest { id };
            // A stream of one: whoever keeps a lease alive asks every few seconds at most.
            let ask = |channel, request: tonic::Request<pb::LeaseKeepAliveRequest>| async move {
                let request = request.map(|one| futures::stream::iter([one]));
                let mut answers = lease(channel).lease_keep_alive(request).await?.into_inner();
                let answer = answers.message().await?;
                let ended = || tonic::Status::unavailable("the member ended the stream");
                answer.map(tonic::Response::new).ok_or_else(ended)
            };
            let kept: pb::LeaseKeepAliveResponse = self.pool.call(true, message, ask).await?;
            Ok(Lease { id, granted_ttl: kept.ttl, ttl: kept.ttl, keys: Vec::new() })
        }
        .boxed()
    }

    fn lease_time_to_live(&self, id: i64, keys: bool) -> BoxFuture<'_, Result<Lease, Error>> {
        async move {
            let message = pb::LeaseTimeToLiveRequest { id, keys };
            let ask =
                |channel, request| async move { lease(channel).lease_time_to_live(request).await };
            let told: pb::LeaseTimeToLiveResponse = self.pool.call(true, message, ask).await?;
            Ok(Lease { id, granted_ttl: told.granted_ttl, ttl: told.ttl, keys: told.keys })
        }
        .boxed()
    }

    fn leases(&self) -> BoxFuture<'_, Result<Vec<i64>, Error>> {
        async move {
            let ask = |channel, request| async move { lease(channel).lease_leases(request).await };
            let told: pb::LeaseLeasesResponse =
                self.pool.call(true, pb::LeaseLeasesRequest {}, ask).await?;
            Ok(told.leases.into_iter().map(|l| l.id).collect())
        }
        .boxed()
    }

    fn revision(&self) -> i64 {
        self.pool.revision()
    }
}
