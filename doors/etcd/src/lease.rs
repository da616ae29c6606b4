//! The service Lease.

use crate::Inner;
use crate::access::{Access, Call};
use crate::body::{Answers, Requests};
use crate::dispatch::decode;
use crate::error::status;
use crate::method::Method;
use crate::wire;
use bytes::Bytes;
use dhow_kv::admin::Need;
use dhow_kv::{Error, Span};
use dhow_rpc::etcdserverpb as pb;
use futures::stream;
use std::sync::Arc;
use tonic::Status;

impl Inner {
    pub(crate) async fn lease_grant(
        &self,
        call: &Call,
        request: pb::LeaseGrantRequest,
    ) -> Result<pb::LeaseGrantResponse, Status> {
        self.allow_anybody(call)?;
        let lease = self.kv.lease_grant(request.id, request.ttl).await.map_err(|e| status(&e))?;
        Ok(pb::LeaseGrantResponse {
            header: Some(self.header()),
            id: lease.id,
            ttl: lease.granted_ttl,
            error: String::new(),
        })
    }

    pub(crate) async fn lease_revoke(
        &self,
        call: &Call,
        request: pb::LeaseRevokeRequest,
    ) -> Result<pb::LeaseRevokeResponse, Status> {
        self.revoke(call, request.id).await.map_err(|e| status(&e))
    }

    async fn revoke(&self, call: &Call, id: i64) -> Result<pb::LeaseRevokeResponse, Error> {
        let access = self.access(call)?;
        self.allow(&access, &[Need::Anybody])?;
        if matches!(access, Access::As { .. }) {
            self.allow_lease(&access, id).await?;
        }
        if !self.config.protected.is_empty() {
            for key in self.lease_keys(id).await? {
                self.spare_key(&key)?;
            }
        }
        let revision = self.kv.lease_revoke(id).await?;
        Ok(pb::LeaseRevokeResponse { header: Some(self.header_at(revision)) })
    }

    pub(crate) async fn lease_time_to_live(
        &self,
        call: &Call,
        request: pb::LeaseTimeToLiveRequest,
    ) -> Result<pb::LeaseTimeToLiveResponse, Status> {
        let found = self.time_to_live(call, &request).await;
        let gone = dhow_kv::Lease { id: request.id, granted_ttl: 0, ttl: -1, keys: Vec::new() };
        let lease = match found {
            Ok(lease) => lease,
            Err(Error::LeaseNotFound) => gone,
            Err(error) => return Err(status(&error)),
        };
        Ok(pb::LeaseTimeToLiveResponse {
            header: Some(self.header()),
            id: lease.id,
            ttl: lease.ttl,
            granted_ttl: lease.granted_ttl,
            keys: lease.keys,
        })
    }

    async fn time_to_live(
        &self,
        call: &Call,
        request: &pb::LeaseTimeToLiveRequest,
    ) -> Result<dhow_kv::Lease, Error> {
        let access = self.access(call)?;
        self.allow(&access, &[Need::Anybody])?;
        let lease = self.kv.lease_time_to_live(request.id, request.keys).await?;
        if request.keys && self.allow(&access, &[Need::Root]).is_err() {
            let needs: Vec<_> =
                lease.keys.iter().map(|k| Need::Read(Span::Key(k.clone()))).collect();
            self.allow(&access, &needs)?;
        }
        self.unchanged(&access)?;
        Ok(lease)
    }

    pub(crate) async fn lease_leases(
        &self,
        call: &Call,
    ) -> Result<pb::LeaseLeasesResponse, Status> {
        let leases = self.leases(call).await.map_err(|e| status(&e))?;
        Ok(pb::LeaseLeasesResponse {
            header: Some(self.header()),
            leases: leases.into_iter().map(|id| pb::LeaseStatus { id }).collect(),
        })
    }

    async fn leases(&self, call: &Call) -> Result<Vec<i64>, Error> {
        let access = self.access(call)?;
        self.allow(&access, &[Need::Anybody])?;
        let leases = self.kv.leases().await?;
        if matches!(access, Access::As { .. }) && self.allow(&access, &[Need::Root]).is_err() {
            for lease in &leases {
                let keys = self.lease_keys(*lease).await?;
                let needs: Vec<_> = keys.into_iter().map(|k| Need::Read(Span::Key(k))).collect();
                self.allow(&access, &needs)?;
            }
            self.unchanged(&access)?;
        }
        Ok(leases)
    }

    /// Renews leases one after the other, in the order of the requests.
    pub(crate) fn lease_keep_alive(self: &Arc<Self>, call: Call, requests: Requests) -> Answers {
        let state = Some((self.clone(), call, requests));
        Box::pin(stream::unfold(state, |state| async move {
            let (inner, call, mut requests) = state?;
            let answer = match requests.next().await? {
                Ok(message) => inner.renew(&call, message).await,
                Err(status) => Err(status),
            };
            match answer {
                Ok(answer) => Some((Ok(answer), Some((inner, call, requests)))),
                Err(status) => Some((Err(status), None)),
            }
        }))
    }

    async fn renew(&self, call: &Call, message: Bytes) -> Result<Bytes, Status> {
        self.metrics.received(Method::LeaseKeepAlive, wire::PREFIX + message.len());
        let request: pb::LeaseKeepAliveRequest = decode(message)?;
        // Before the renewal: a client that learns of it at a revision must not miss an expiry
        // that happened below it.
        let header = Some(self.header());
        let ttl = match self.renewed(call, request.id).await {
            Ok(lease) => lease.ttl,
            Err(Error::LeaseNotFound) => 0,
            Err(error) => return Err(status(&error)),
        };
        let answer = wire::message(&pb::LeaseKeepAliveResponse { header, id: request.id, ttl });
        self.metrics.sent(Method::LeaseKeepAlive, 1, answer.len());
        Ok(answer)
    }

    async fn renewed(&self, call: &Call, id: i64) -> Result<dhow_kv::Lease, Error> {
        let access = self.access(call)?;
        self.allow(&access, &[Need::Anybody])?;
        if matches!(access, Access::As { .. }) {
            self.allow_lease(&access, id).await?;
            self.unchanged(&access)?;
        }
        self.kv.lease_keep_alive(id).await
    }
}
