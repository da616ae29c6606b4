//! A client that sends requests of one kind.

use super::{Dice, KEYS_END, Test, key, put, value};
use anyhow::{Context as _, Result, ensure};
use bytes::Bytes;
use dhow_rpc::etcdserverpb::compare::{CompareResult, CompareTarget, TargetUnion};
use dhow_rpc::etcdserverpb::kv_client::KvClient;
use dhow_rpc::etcdserverpb::lease_client::LeaseClient;
use dhow_rpc::etcdserverpb::{
    Compare, LeaseGrantRequest, LeaseKeepAliveRequest, LeaseKeepAliveResponse, LeaseRevokeRequest,
    RangeRequest, RequestOp, TxnRequest, request_op,
};
use tokio::sync::mpsc;
use tonic::Streaming;
use tonic::transport::Channel;

/// Seconds that leases live: longer than any run.
const TTL: i64 = 600;

/// One client.
pub struct Client {
    test: Test,
    kv: KvClient<Channel>,
    lease: LeaseClient<Channel>,
    dice: Dice,
    keys: u64,
    value: Bytes,
    /// Of `cas`: the client's own key, and the revision of its last write.
    own: (Bytes, i64),
    /// Of `keep-alive`: the lease and both directions of the stream.
    alive: Option<Alive>,
}

struct Alive {
    id: i64,
    requests: mpsc::Sender<LeaseKeepAliveRequest>,
    answers: Streaming<LeaseKeepAliveResponse>,
}

impl Client {
    /// A client, ready to send.
    ///
    /// # Errors
    /// When its lease cannot be made.
    pub async fn new(test: Test, channel: Channel, nth: u64, keys: u64) -> Result<Self> {
        // etcd sends up to 2 GiB; the library's own limit of 4 MiB would cut large ranges.
        let kv = KvClient::new(channel.clone()).max_decoding_message_size(usize::MAX);
        let mut client = Self {
            test,
            kv,
            lease: LeaseClient::new(channel),
            dice: Dice::new(nth),
            keys,
            value: value(nth),
            own: (key(nth % keys), 0),
            alive: None,
        };
        match test {
            Test::KeepAlive => client.alive = Some(client.alive().await?),
            Test::Cas => {
                let own = put(client.own.0.clone(), &client.value);
                let done = client.kv.put(own).await?.into_inner();
                client.own.1 = done.header.context("the put's answer has no header")?.revision;
            }
            _ => {}
        }
        Ok(client)
    }

    async fn alive(&mut self) -> Result<Alive> {
        let grant = LeaseGrantRequest { ttl: TTL, id: 0 };
        let id = self.lease.lease_grant(grant).await?.into_inner().id;
        let (requests, queue) = mpsc::channel(4);
        // Some servers answer a stream's headers only with its first message.
        requests.send(LeaseKeepAliveRequest { id }).await?;
        let queue = super::outgoing(queue);
        let answers = self.lease.lease_keep_alive(queue).await?.into_inner();
        let mut alive = Alive { id, requests, answers };
        alive.answer().await?;
        Ok(alive)
    }

    /// Sends one request and waits for its answer.
    ///
    /// # Errors
    /// When the answer is an error, or not what it must be.
    pub async fn send(&mut self) -> Result<()> {
        match self.test {
            Test::Put | Test::Watch => self.put().await,
            Test::Get => self.get(false).await,
            Test::GetSerializable => self.get(true).await,
            Test::Mixed if self.dice.below(5) == 0 => self.put().await,
            Test::Mixed => self.get(false).await,
            Test::Range => self.range().await,
            Test::Cas => self.cas().await,
            Test::Lease => {
                let grant = LeaseGrantRequest { ttl: TTL, id: 0 };
                let id = self.lease.lease_grant(grant).await?.into_inner().id;
                self.lease.lease_revoke(LeaseRevokeRequest { id }).await?;
                Ok(())
            }
            Test::KeepAlive => {
                let alive = self.alive.as_mut().context("no lease")?;
                alive.requests.send(LeaseKeepAliveRequest { id: alive.id }).await?;
                alive.answer().await
            }
        }
    }

    async fn put(&mut self) -> Result<()> {
        let key = key(self.dice.below(self.keys));
        self.kv.put(put(key, &self.value)).await?;
        Ok(())
    }

    async fn get(&mut self, serializable: bool) -> Result<()> {
        let key = key(self.dice.below(self.keys));
        let range = RangeRequest { key, serializable, ..RangeRequest::default() };
        let found = self.kv.range(range).await?.into_inner();
        ensure!(found.kvs.len() == 1, "a key is missing: fill the server first");
        Ok(())
    }

    async fn range(&mut self) -> Result<()> {
        let range = RangeRequest {
            key: key(self.dice.below(self.keys.saturating_sub(500).max(1))),
            range_end: Bytes::from_static(KEYS_END),
            limit: 500,
            ..RangeRequest::default()
        };
        let found = self.kv.range(range).await?.into_inner();
        ensure!(found.kvs.len() == 500, "{} keys of 500: fill the server first", found.kvs.len());
        Ok(())
    }

    async fn cas(&mut self) -> Result<()> {
        let (key, revision) = self.own.clone();
        let txn = TxnRequest {
            compare: vec![Compare {
                result: CompareResult::Equal.into(),
                target: CompareTarget::Mod.into(),
                key: key.clone(),
                range_end: Bytes::new(),
                target_union: Some(TargetUnion::ModRevision(revision)),
            }],
            success: vec![RequestOp {
                request: Some(request_op::Request::RequestPut(put(key.clone(), &self.value))),
            }],
            failure: vec![RequestOp {
                request: Some(request_op::Request::RequestRange(RangeRequest {
                    key,
                    ..RangeRequest::default()
                })),
            }],
        };
        let done = self.kv.txn(txn).await?.into_inner();
        ensure!(done.succeeded, "somebody else wrote this client's key");
        self.own.1 = done.header.context("the answer has no header")?.revision;
        Ok(())
    }
}

impl Alive {
    async fn answer(&mut self) -> Result<()> {
        let answer = self.answers.message().await?.context("the server ended the stream")?;
        ensure!(answer.ttl > 0, "the lease is gone");
        Ok(())
    }
}
