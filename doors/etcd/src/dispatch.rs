//! From a method and its message to the service that answers.

use crate::Inner;
use crate::access::Call;
use crate::body::{Answers, Requests};
use crate::error::{Refusal, status};
use crate::method::Method;
use crate::wire;
use bytes::Bytes;
use dhow_kv::Error;
use dhow_rpc::health::{HealthCheckRequest, HealthCheckResponse, health_check_response};
use prost::Message;
use std::sync::Arc;
use tonic::Status;

/// A decoded request.
pub(crate) fn decode<M: Message + Default>(message: Bytes) -> Result<M, Status> {
    M::decode(message)
        .map_err(|error| Status::internal(format!("grpc: error unmarshalling request: {error}")))
}

impl Inner {
    /// What holds for every call before its message is looked at.
    fn begin(&self, method: Method, call: &Call) -> Result<(), Status> {
        let pulse = self.admin.pulse();
        let for_learners = matches!(
            method,
            // Whether a read is serializable is in its message.
            Method::Range | Method::Status | Method::Snapshot | Method::HealthCheck
        );
        if pulse.learner && !for_learners {
            return Err(status(&Error::NotForLearner));
        }
        let version = call.metadata("client-api-version", "grpc-metadata-client-api-version");
        if std::str::from_utf8(version).is_err() {
            return Err(Refusal::ClientVersion.into());
        }
        if pulse.leader == 0 && call.needs_leader() {
            return Err(status(&Error::NoLeader));
        }
        Ok(())
    }

    /// Answers a call of one message with one framed message.
    pub(crate) async fn unary(
        self: &Arc<Self>,
        method: Method,
        call: &Call,
        message: Bytes,
    ) -> Result<Bytes, Status> {
        self.begin(method, call)?;
        match method {
            Method::Range => self.range(call, decode(message)?).await,
            Method::Put => self.put(call, decode(message)?).await,
            Method::Txn => self.txn(call, decode(message)?).await,
            // Boxed, so that the common calls do not carry the rare ones' state.
            _ => Box::pin(self.rare(method, call, message)).await,
        }
    }

    async fn rare(
        self: &Arc<Self>,
        method: Method,
        call: &Call,
        message: Bytes,
    ) -> Result<Bytes, Status> {
        use Method as M;
        match method {
            M::DeleteRange => self.delete_range(call, decode(message)?).await,
            M::Compact => self.compact(call, decode(message)?).await,
            M::LeaseGrant => framed(self.lease_grant(call, decode(message)?).await),
            M::LeaseRevoke => framed(self.lease_revoke(call, decode(message)?).await),
            M::LeaseTimeToLive => framed(self.lease_time_to_live(call, decode(message)?).await),
            M::LeaseLeases => framed(self.lease_leases(call).await),
            M::MemberAdd => framed(self.member_add(call, decode(message)?).await),
            M::MemberRemove => framed(self.member_remove(call, decode(message)?).await),
            M::MemberUpdate => framed(self.member_update(call, decode(message)?).await),
            M::MemberList => framed(self.member_list(call, decode(message)?).await),
            M::MemberPromote => framed(self.member_promote(call, decode(message)?).await),
            M::Alarm => framed(self.alarm(call, decode(message)?).await),
            M::Status => framed(self.status(call)),
            M::Defragment => framed(self.defragment(call).await),
            M::Hash => framed(self.hash(call).await),
            M::HashKv => framed(self.hash_kv(call, decode(message)?).await),
            M::MoveLeader => framed(self.move_leader(call, decode(message)?).await),
            M::Downgrade => framed(self.downgrade(call, decode(message)?).await),
            M::Campaign => framed(recipe(self.campaign(call, decode(message)?).await)),
            M::Proclaim => framed(recipe(self.proclaim(call, decode(message)?).await)),
            M::Leader => framed(recipe(self.leader(call, decode(message)?).await)),
            M::Resign => framed(recipe(self.resign(call, decode(message)?).await)),
            M::Lock => framed(recipe(self.lock(call, decode(message)?).await)),
            M::Unlock => framed(recipe(self.unlock(call, decode(message)?).await)),
            M::HealthCheck => framed(self.health_check(&decode(message)?)),
            _ => self.auth(method, call, message).await,
        }
    }

    /// Begins a stream that one message asks for.
    pub(crate) async fn server_stream(
        self: &Arc<Self>,
        method: Method,
        call: Call,
        message: Bytes,
    ) -> Result<Answers, Status> {
        self.begin(method, &call)?;
        match method {
            Method::RangeStream => self.range_stream(call, decode(message)?).await,
            Method::Snapshot => self.snapshot(&call).await,
            Method::Observe => Ok(self.observe(call, decode(message)?)),
            Method::HealthWatch => Ok(self.health_watch(&decode(message)?)),
            _ => Err(Status::unimplemented("not a stream")),
        }
    }

    /// Begins a stream of messages both ways.
    pub(crate) fn bidi(
        self: &Arc<Self>,
        method: Method,
        call: Call,
        requests: Requests,
    ) -> Result<Answers, Status> {
        self.begin(method, &call)?;
        match method {
            Method::Watch => Ok(Box::pin(crate::watch::Session::new(self.clone(), call, requests))),
            Method::LeaseKeepAlive => Ok(self.lease_keep_alive(call, requests)),
            _ => Err(Status::unimplemented("not a stream")),
        }
    }

    fn health_check(&self, request: &HealthCheckRequest) -> Result<HealthCheckResponse, Status> {
        if !request.service.is_empty() {
            return Err(Status::not_found("unknown service"));
        }
        let serving = health_check_response::ServingStatus::Serving;
        Ok(HealthCheckResponse { status: serving.into() })
    }

    /// The server serves as long as it answers, so nothing follows the first answer.
    fn health_watch(&self, request: &HealthCheckRequest) -> Answers {
        use futures::StreamExt as _;
        use health_check_response::ServingStatus as S;
        let status = if request.service.is_empty() { S::Serving } else { S::ServiceUnknown };
        let answer = wire::message(&HealthCheckResponse { status: status.into() });
        self.metrics.sent(Method::HealthWatch, 1, answer.len());
        Box::pin(futures::stream::iter([Ok(answer)]).chain(futures::stream::pending()))
    }
}

/// Errors of the lock and election services: in etcd they are a client's, whose codes do not survive.
fn recipe<M>(answer: Result<M, Status>) -> Result<M, Status> {
    answer.map_err(|status| Status::unknown(status.message()))
}

/// An answer in its frame.
pub(crate) fn framed(answer: Result<impl Message, Status>) -> Result<Bytes, Status> {
    answer.map(|answer| wire::message(&answer))
}
