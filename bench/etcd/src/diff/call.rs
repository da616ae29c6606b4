//! A request as bytes, sent to any method, and its answer in words that can be compared.

use anyhow::Result;
use bytes::Bytes;
use dhow_rpc::etcdserverpb::{self as pb, ResponseHeader};
use dhow_rpc::{Raw, v3electionpb, v3lockpb};
use prost::Message;
use std::fmt::Debug;
use std::time::Duration;
use tonic::codegen::http::uri::PathAndQuery;
use tonic::transport::Channel;
use tonic::{Code, Status};

/// How long an answer may take.
const PATIENCE: Duration = Duration::from_secs(20);

/// A request and how to read its answer.
#[derive(Debug, Clone)]
pub struct Call {
    /// `/package.Service/Method`.
    pub path: &'static str,
    /// The encoded request.
    pub body: Bytes,
    /// The request in words.
    pub words: String,
    /// Whether the bytes may be no request.
    pub raw: bool,
    show: fn(Bytes) -> Result<String, prost::DecodeError>,
}

impl Call {
    /// A request whose answer is an `A`.
    pub fn new<A: Scrub>(path: &'static str, request: &(impl Message + Debug)) -> Self {
        let mut words = format!("{request:?}");
        if words.len() > 2_000 {
            words.truncate(words.floor_char_boundary(2_000));
        }
        Self { path, body: request.encode_to_vec().into(), words, raw: false, show: show::<A> }
    }

    /// Bytes that may be no request at all.
    pub fn raw<A: Scrub>(path: &'static str, body: Bytes) -> Self {
        Self { path, words: format!("{body:?}"), body, raw: true, show: show::<A> }
    }
}

/// What a server answered.
#[derive(Debug, Clone)]
pub struct Answer {
    /// In words, without what differs from server to server.
    pub words: String,
    /// The code; `Ok` of an answer without error.
    pub code: Code,
    /// The store's revision, if the answer tells it.
    pub revision: Option<i64>,
    /// The answer itself.
    pub body: Bytes,
}

/// Sends a request; with a user's token where there is one.
pub async fn send(channel: &Channel, call: &Call, token: Option<&str>) -> Answer {
    let mut client = tonic::client::Grpc::new(channel.clone())
        .max_decoding_message_size(usize::MAX)
        .max_encoding_message_size(usize::MAX);
    let work = async {
        client.ready().await.map_err(|error| Status::unknown(error.to_string()))?;
        let mut request = tonic::Request::new(call.body.clone());
        if let Some(token) = token.and_then(|token| token.parse().ok()) {
            request.metadata_mut().insert("token", token);
        }
        let path = PathAndQuery::from_static(call.path);
        // Each of these methods answers once, or its first answer is what counts.
        let streams = call.path.ends_with("KeepAlive") || call.path.ends_with("Snapshot");
        if streams {
            let request = request.map(|body| futures::stream::iter([body]));
            let mut answers = client.streaming(request, path, Raw).await?.into_inner();
            return answers.message().await?.ok_or_else(|| Status::unknown("no answer"));
        }
        Ok(client.unary(request, path, Raw).await?.into_inner())
    };
    let done = tokio::time::timeout(PATIENCE, work).await;
    match done.unwrap_or_else(|_| Err(Status::unknown("the server does not answer"))) {
        Ok(body) => Answer {
            words: (call.show)(body.clone())
                .unwrap_or_else(|error| format!("undecodable: {error}")),
            code: Code::Ok,
            revision: revision(&body),
            body,
        },
        Err(status) => Answer {
            words: format!("{:?}: {}", status.code(), status.message()),
            code: status.code(),
            revision: None,
            body: Bytes::new(),
        },
    }
}

/// What every answer begins with.
#[derive(Clone, PartialEq, Message)]
struct Head {
    #[prost(message, optional, tag = "1")]
    header: Option<ResponseHeader>,
}

fn revision(body: &Bytes) -> Option<i64> {
    Some(Head::decode(body.clone()).ok()?.header?.revision).filter(|revision| *revision > 0)
}

fn show<A: Scrub>(body: Bytes) -> Result<String, prost::DecodeError> {
    let mut answer = A::decode(body)?;
    answer.scrub();
    Ok(format!("{answer:?}"))
}

/// Takes away what differs between two servers that do the same.
pub trait Scrub: Message + Default + Debug {
    /// Takes it away.
    fn scrub(&mut self);
}

/// Identifiers and the term: each server has its own.
pub fn header(header: &mut Option<ResponseHeader>) {
    if let Some(header) = header {
        header.cluster_id = u64::from(header.cluster_id != 0);
        header.member_id = u64::from(header.member_id != 0);
        header.raft_term = u64::from(header.raft_term != 0);
    }
}

macro_rules! headed {
    ($($answer:ty $(: |$own:ident| $more:expr)?;)*) => {$(
        impl Scrub for $answer {
            fn scrub(&mut self) {
                header(&mut self.header);
                $(let $own = self; $more)?
            }
        }
    )*};
}

headed! {
    pb::RangeResponse;
    pb::PutResponse;
    pb::DeleteRangeResponse;
    pb::TxnResponse;
    pb::CompactionResponse;
    pb::LeaseGrantResponse;
    pb::LeaseRevokeResponse;
    pb::LeaseKeepAliveResponse;
    pb::LeaseTimeToLiveResponse: |own| {
        // Seconds pass between two servers; a lease that is gone tells -1.
        if own.ttl > 0 {
            own.ttl = 1;
        }
        own.keys.sort();
    };
    pb::LeaseLeasesResponse: |own| own.leases.sort_by_key(|lease| lease.id);
    pb::MemberAddResponse;
    pb::MemberRemoveResponse;
    pb::MemberUpdateResponse;
    pb::MemberPromoteResponse;
    pb::MemberListResponse: |own| for member in &mut own.members {
        member.id = u64::from(member.id != 0);
        member.peer_ur_ls.iter_mut().chain(&mut member.client_ur_ls).for_each(String::clear);
    };
    pb::AlarmResponse;
    pb::DefragmentResponse;
    pb::MoveLeaderResponse;
    pb::HashKvResponse;
    pb::DowngradeResponse;
    pb::StatusResponse: |own| {
        own.leader = u64::from(own.leader != 0);
        (own.db_size, own.db_size_in_use, own.db_size_quota) = (0, 0, 0);
        (own.raft_index, own.raft_applied_index, own.raft_term) = (0, 0, 0);
        own.version.clear();
        own.storage_version.clear();
    };
    pb::AuthEnableResponse;
    pb::AuthDisableResponse;
    pb::AuthStatusResponse;
    pb::AuthenticateResponse: |own| own.token = own.token.is_empty().to_string();
    pb::AuthUserAddResponse;
    pb::AuthUserGetResponse;
    pb::AuthUserDeleteResponse;
    pb::AuthUserChangePasswordResponse;
    pb::AuthUserGrantRoleResponse;
    pb::AuthUserRevokeRoleResponse;
    pb::AuthRoleAddResponse;
    pb::AuthRoleGetResponse;
    pb::AuthRoleListResponse;
    pb::AuthUserListResponse;
    pb::AuthRoleDeleteResponse;
    pb::AuthRoleGrantPermissionResponse;
    pb::AuthRoleRevokePermissionResponse;
    v3electionpb::CampaignResponse;
    v3electionpb::LeaderResponse;
    v3electionpb::ResignResponse;
    v3electionpb::ProclaimResponse;
    v3lockpb::LockResponse;
    v3lockpb::UnlockResponse;
}
