//! Questions about identity and access, answered and never stored.

use crate::catalog::Review;
use crate::codec;
use crate::handle::{Call, Verb};
use crate::respond::Reply;
use dhow_objects::Status;
use dhow_objects::kinds::Kind;
use hyper::body::Incoming;

/// Answers a review.
pub async fn answer(call: Call, review: &'static Review, body: Incoming) -> Reply {
    if call.verb != Verb::Create {
        return Err(Status::method_not_allowed());
    }
    let bytes = codec::read(body).await?;
    let _ = codec::object(&call.head.headers, &bytes, review.group, review.version, review.kind)?;
    Err(Status::not_implemented(format!("{} is not built yet", review.plural)))
}

/// `serviceaccounts/NAME/token`.
pub async fn token(_call: &Call, _kind: &'static Kind, _body: Incoming) -> Reply {
    Err(Status::not_implemented("tokens are not built yet"))
}
