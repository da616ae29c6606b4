//! Why the door refuses, and how gRPC and HTTP say it.

use dhow_kv::Error;
use tonic::{Code, Status};

/// The status of the store's error: etcd's text and etcd's code.
pub(crate) fn status(error: &Error) -> Status {
    Status::new(code(error), error.to_string())
}

/// The code that etcd gives each error (`api/v3rpc/rpctypes/error.go`).
fn code(error: &Error) -> Code {
    match error {
        Error::EmptyKey
        | Error::KeyNotFound
        | Error::ValueProvided
        | Error::LeaseProvided
        | Error::TooManyOps
        | Error::DuplicateKey
        | Error::TooLarge
        | Error::BadMemberUrls
        | Error::UserNameEmpty
        | Error::RoleNameEmpty
        | Error::AuthFailed
        | Error::PermissionNotGiven
        | Error::InvalidAuthManagement
        | Error::AuthOldRevision => Code::InvalidArgument,
        Error::Compacted | Error::FutureRevision | Error::LeaseTtlTooLarge => Code::OutOfRange,
        Error::LeaseNotFound | Error::MemberNotFound => Code::NotFound,
        Error::NoSpace | Error::TooManyRequests => Code::ResourceExhausted,
        Error::NoLeader
        | Error::LeaderChanged
        | Error::Stopped
        | Error::Timeout
        | Error::Unhealthy
        | Error::Unreachable(_) => Code::Unavailable,
        Error::Corrupt => Code::DataLoss,
        Error::PermissionDenied => Code::PermissionDenied,
        Error::InvalidToken => Code::Unauthenticated,
        Error::LeaseExists
        | Error::NotLeader
        | Error::NotForLearner
        | Error::MemberExists
        | Error::PeerUrlExists
        | Error::NotEnoughStarted
        | Error::NotLearner
        | Error::LearnerNotReady
        | Error::TooManyLearners
        | Error::ClusterIdMismatch
        | Error::BadTransferee
        | Error::NoRootUser
        | Error::NoRootRole
        | Error::UserExists
        | Error::UserNotFound
        | Error::RoleExists
        | Error::RoleNotFound
        | Error::RoleNotGranted
        | Error::PermissionNotGranted
        | Error::AuthNotEnabled
        | Error::DowngradeInProcess => Code::FailedPrecondition,
        Error::NoPasswordUser | Error::Storage(_) | Error::Other(_) => Code::Unknown,
    }
}

/// The errors that the door finds itself.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Refusal {
    #[error("etcdserver: invalid sort option")]
    SortOption,
    #[error("etcdserver: invalid client api version")]
    ClientVersion,
    #[error("etcdserver: wrong downgrade target version format")]
    DowngradeFormat,
    #[error("etcdserver: invalid downgrade target version")]
    DowngradeTarget,
    #[error("election: no leader")]
    NoElected,
    #[error("election: not leader")]
    NotElected,
    #[error("\"leader\" field must be provided")]
    NoLeaderKey,
    #[error("mutex: session is expired")]
    SessionExpired,
    #[error("lost watcher waiting for delete")]
    LostWatcher,
    #[error("bcrypt: password length exceeds 72 bytes")]
    LongPassword,
}

impl From<Refusal> for Status {
    fn from(refusal: Refusal) -> Self {
        let code = match refusal {
            Refusal::SortOption
            | Refusal::ClientVersion
            | Refusal::DowngradeFormat
            | Refusal::DowngradeTarget => Code::InvalidArgument,
            _ => Code::Unknown,
        };
        Status::new(code, refusal.to_string())
    }
}

/// The HTTP status that the gateway gives a code, as grpc-gateway does.
pub(crate) fn http_status(code: Code) -> http::StatusCode {
    use http::StatusCode as S;
    match code {
        Code::Ok => S::OK,
        Code::Cancelled => S::from_u16(499).unwrap_or(S::REQUEST_TIMEOUT),
        Code::InvalidArgument | Code::FailedPrecondition | Code::OutOfRange => S::BAD_REQUEST,
        Code::DeadlineExceeded => S::GATEWAY_TIMEOUT,
        Code::NotFound => S::NOT_FOUND,
        Code::AlreadyExists | Code::Aborted => S::CONFLICT,
        Code::PermissionDenied => S::FORBIDDEN,
        Code::Unauthenticated => S::UNAUTHORIZED,
        Code::ResourceExhausted => S::TOO_MANY_REQUESTS,
        Code::Unimplemented => S::NOT_IMPLEMENTED,
        Code::Unavailable => S::SERVICE_UNAVAILABLE,
        Code::Unknown | Code::Internal | Code::DataLoss => S::INTERNAL_SERVER_ERROR,
    }
}
