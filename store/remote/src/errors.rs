//! What a failed call means: etcd's texts as the store's errors, and whether the call was carried out.

use dhow_kv::Error;
use std::error::Error as StdError;
use tonic::{Code, Status};

/// What a failed call tells about itself.
#[derive(Debug)]
pub(crate) enum Failure {
    /// The store has refused: asking again would bring the same.
    Refused(Error),
    /// The token is not known any more: the call was not carried out, a fresh one may do.
    Token(Error),
    /// It never reached a member that could carry it out: another member may.
    NotSent(String),
    /// It may have been carried out.
    Unknown(Error, String),
}

/// The error that a text of etcd stands for.
pub(crate) fn of_text(text: &str) -> Option<Error> {
    // Watches are told with gRPC's own prefix, or with none.
    let text = text.split_once(" desc = ").map_or(text, |(_, text)| text);
    let bare = |text: &str| text.strip_prefix("etcdserver: ").unwrap_or(text).to_owned();
    let wanted = bare(text);
    if let Some(known) = Error::ALL.iter().find(|e| bare(&e.to_string()) == wanted) {
        return Some(known.clone());
    }
    // "request timed out, possibly due to ..." and the like.
    wanted.starts_with("request timed out").then_some(Error::Timeout)
}

/// The first error of type `T` among the causes of a status.
fn cause<T: StdError + 'static>(status: &Status) -> Option<&T> {
    let mut next = status.source();
    while let Some(error) = next {
        if let Some(found) = error.downcast_ref::<T>() {
            return Some(found);
        }
        next = error.source();
    }
    None
}

/// A status and its causes in one line, without repeating what a cause has said.
pub(crate) fn line(status: &Status) -> String {
    let mut parts = vec![status.message().to_owned()];
    let mut next = status.source();
    while let Some(error) = next {
        let text = error.to_string();
        if !text.is_empty() && !parts.iter().any(|p| p.contains(&text)) {
            parts.push(text);
        }
        next = error.source();
    }
    parts.retain(|p| !p.is_empty() && p != "transport error" && p != "tcp connect error");
    if parts.is_empty() {
        return format!("{:?}", status.code());
    }
    parts.join(": ")
}

/// Whether the call failed because no connection came about.
pub(crate) fn never_connected(status: &Status) -> bool {
    cause::<tonic::ConnectError>(status).is_some()
}

/// What a failed call means.
pub(crate) fn classify(status: &Status) -> Failure {
    if let Some(error) = of_text(status.message()) {
        return match error {
            Error::InvalidToken | Error::AuthOldRevision => Failure::Token(error),
            // Asked of every call by its metadata: refused before it is proposed.
            Error::NoLeader | Error::NotForLearner => Failure::NotSent(error.to_string()),
            Error::Stopped => Failure::Unknown(Error::Timeout, error.to_string()),
            Error::LeaderChanged | Error::Timeout => {
                let why = error.to_string();
                Failure::Unknown(error, why)
            }
            // The member is overloaded; it has not proposed it.
            Error::TooManyRequests => Failure::NotSent(error.to_string()),
            other => Failure::Refused(other),
        };
    }
    if never_connected(status)
        || cause::<hyper::Error>(status).is_some_and(hyper::Error::is_canceled)
    {
        return Failure::NotSent(line(status));
    }
    match status.code() {
        Code::Unavailable
        | Code::Unknown
        | Code::Internal
        | Code::Cancelled
        | Code::DeadlineExceeded
        | Code::Aborted => Failure::Unknown(Error::Timeout, line(status)),
        // A request that is larger still does not get past the member's gRPC library.
        Code::ResourceExhausted if status.message().contains("larger than max") => {
            Failure::Refused(Error::TooLarge)
        }
        _ => Failure::Refused(Error::Other(status.message().to_owned())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_text_finds_its_error() {
        for known in Error::ALL {
            assert_eq!(of_text(&known.to_string()).as_ref(), Some(known));
        }
        assert_eq!(
            of_text("etcdserver: request timed out, possibly due to previous leader failure"),
            Some(Error::Timeout)
        );
        assert_eq!(of_text("permission denied"), Some(Error::PermissionDenied));
        let wrapped = "rpc error: code = Unauthenticated desc = etcdserver: invalid auth token";
        assert_eq!(of_text(wrapped), Some(Error::InvalidToken));
        assert_eq!(of_text("something new"), None);
    }

    #[test]
    fn what_may_have_happened_is_told_apart_from_what_did_not() {
        let refused = Status::failed_precondition("etcdserver: lease already exists");
        assert!(matches!(classify(&refused), Failure::Refused(Error::LeaseExists)));
        let cut = Status::unavailable("error reading a body from connection");
        assert!(matches!(classify(&cut), Failure::Unknown(Error::Timeout, _)));
        let waiting = Status::unavailable("etcdserver: no leader");
        assert!(matches!(classify(&waiting), Failure::NotSent(_)));
        let unknown = Status::invalid_argument("etcdserver: a rule of tomorrow");
        let Failure::Refused(Error::Other(text)) = classify(&unknown) else { panic!("refused") };
        assert_eq!(text, "etcdserver: a rule of tomorrow");
    }
}
