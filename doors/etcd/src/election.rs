//! The service Election: the oldest candidate of a name leads.

use crate::Inner;
use crate::access::Call;
use crate::body::Answers;
use crate::error::{Refusal, status};
use crate::lock::{Waiting, candidate_key, candidates, created, first, oldest, put};
use crate::method::Method;
use crate::{convert, wire};
use bytes::Bytes;
use dhow_kv::{KeyValue, Op, Range, Span, Txn, WatchEvent, Watcher};
use dhow_rpc::v3electionpb as pb;
use futures::stream;
use std::sync::Arc;
use tonic::Status;

impl Inner {
    pub(crate) async fn campaign(
        self: &Arc<Self>,
        call: &Call,
        request: pb::CampaignRequest,
    ) -> Result<pb::CampaignResponse, Status> {
        let lease = self.session(call, request.lease).await?;
        let key = candidate_key(&request.name, lease);
        let txn = Txn {
            compare: vec![created(&key, 0)],
            success: vec![put(&key, request.value.clone(), lease)],
            failure: vec![Op::Range(Range::all(Span::Key(key.clone())))],
        };
        let done = self.commit(call, txn).await?;
        let mut mine = done.revision;
        if !done.succeeded
            && let Some(kv) = first(&done, 0)
        {
            mine = kv.create_revision;
            if kv.value != request.value {
                self.proclaim_as(call, &key, mine, request.value, lease).await?;
            }
        }
        let waiting = Waiting { inner: self.clone(), key: Some((key.clone(), mine)) };
        self.wait_for_older(call, &request.name, mine - 1).await?;
        waiting.done();
        Ok(pb::CampaignResponse {
            header: Some(self.header_at(done.revision)),
            leader: Some(pb::LeaderKey { name: request.name, key, rev: mine, lease }),
        })
    }

    /// Writes a candidate's value if it still is one. Returns the revision.
    async fn proclaim_as(
        &self,
        call: &Call,
        key: &Bytes,
        created_at: i64,
        value: Bytes,
        lease: i64,
    ) -> Result<i64, Status> {
        let txn = Txn {
            compare: vec![created(key, created_at)],
            success: vec![put(key, value, lease)],
            failure: Vec::new(),
        };
        let done = self.commit(call, txn).await?;
        if done.succeeded { Ok(done.revision) } else { Err(Refusal::NotElected.into()) }
    }

    pub(crate) async fn proclaim(
        &self,
        call: &Call,
        request: pb::ProclaimRequest,
    ) -> Result<pb::ProclaimResponse, Status> {
        let leader = request.leader.ok_or(Refusal::NoLeaderKey)?;
        let revision =
            self.proclaim_as(call, &leader.key, leader.rev, request.value, leader.lease).await?;
        Ok(pb::ProclaimResponse { header: Some(self.header_at(revision)) })
    }

    pub(crate) async fn leader(
        &self,
        call: &Call,
        request: pb::LeaderRequest,
    ) -> Result<pb::LeaderResponse, Status> {
        let range = oldest(candidates(&request.name));
        let found = self.read(call, range).await.map_err(|e| status(&e))?;
        let kv = found.kvs.into_iter().next().ok_or(Refusal::NoElected)?;
        Ok(self.led_by(found.revision, kv))
    }

    fn led_by(&self, revision: i64, kv: KeyValue) -> pb::LeaderResponse {
        pb::LeaderResponse {
            header: Some(self.header_at(revision)),
            kv: Some(convert::key_value(kv)),
        }
    }

    pub(crate) async fn resign(
        &self,
        call: &Call,
        request: pb::ResignRequest,
    ) -> Result<pb::ResignResponse, Status> {
        let leader = request.leader.ok_or(Refusal::NoLeaderKey)?;
        let txn = Txn {
            compare: vec![created(&leader.key, leader.rev)],
            success: vec![Op::delete(leader.key)],
            failure: Vec::new(),
        };
        let done = self.commit(call, txn).await?;
        Ok(pb::ResignResponse { header: Some(self.header_at(done.revision)) })
    }

    /// The leader, its later values, and every later leader.
    pub(crate) fn observe(self: &Arc<Self>, call: Call, request: pb::LeaderRequest) -> Answers {
        let observer = Observer {
            inner: self.clone(),
            call,
            span: candidates(&request.name),
            follows: None,
            pending: Default::default(),
            failed: false,
        };
        Box::pin(stream::unfold(observer, |mut observer| async move {
            if observer.failed {
                return None;
            }
            let item = observer.next().await;
            observer.failed = item.is_err();
            match item {
                Ok(None) => None,
                Ok(Some(answer)) => Some((Ok(answer), observer)),
                // As with the other methods of this service.
                Err(status) => Some((Err(Status::unknown(status.message())), observer)),
            }
        }))
    }
}

/// Somebody who looks on.
struct Observer {
    inner: Arc<Inner>,
    call: Call,
    span: Span,
    /// The watch of the leader's key.
    follows: Option<Box<dyn Watcher>>,
    /// Values of one revision that were not told yet.
    pending: std::collections::VecDeque<(i64, KeyValue)>,
    failed: bool,
}

impl Observer {
    async fn next(&mut self) -> Result<Option<Bytes>, Status> {
        loop {
            if let Some((revision, kv)) = self.pending.pop_front() {
                let frame = wire::message(&self.inner.led_by(revision, kv));
                self.inner.metrics.sent(Method::Observe, 1, frame.len());
                return Ok(Some(frame));
            }
            let Some(watch) = &mut self.follows else {
                if !self.find().await? {
                    return Ok(None);
                }
                continue;
            };
            match watch.next().await {
                Some(WatchEvent::Events { revision, events }) => {
                    for event in events.iter() {
                        if event.deleted {
                            self.follows = None;
                            break;
                        }
                        self.pending.push_back((revision, event.kv.clone()));
                    }
                }
                Some(WatchEvent::Progress(_)) => {}
                Some(WatchEvent::Compacted(_)) => self.follows = None,
                None => return Ok(None),
            }
        }
    }

    /// Finds the leader, or waits for the first candidate. False when the store has ended.
    async fn find(&mut self) -> Result<bool, Status> {
        let range = oldest(self.span.clone());
        let found = self.inner.read(&self.call, range).await.map_err(|e| status(&e))?;
        let (revision, kv) = match found.kvs.into_iter().next() {
            Some(kv) => (found.revision, kv),
            None => match self.first_candidate(found.revision).await? {
                Some(kv) => (kv.mod_revision, kv),
                None => return Ok(false),
            },
        };
        let key = Span::Key(kv.key.clone());
        self.follows = Some(self.inner.follow(&self.call, key, revision + 1)?);
        self.pending.push_back((revision, kv));
        Ok(true)
    }

    async fn first_candidate(&mut self, revision: i64) -> Result<Option<KeyValue>, Status> {
        let mut watch = self.inner.follow(&self.call, self.span.clone(), revision + 1)?;
        loop {
            match watch.next().await {
                Some(WatchEvent::Events { events, .. }) => {
                    if let Some(event) = events.iter().find(|e| !e.deleted) {
                        return Ok(Some(event.kv.clone()));
                    }
                }
                Some(WatchEvent::Progress(_)) => {}
                Some(WatchEvent::Compacted(_)) => {
                    let revision = self.inner.kv.revision();
                    watch = self.inner.follow(&self.call, self.span.clone(), revision + 1)?;
                }
                None => return Ok(None),
            }
        }
    }
}
