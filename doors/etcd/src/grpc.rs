//! gRPC over HTTP/2: which method, one message or many, deadlines, and the status at the end.
//! See <https://github.com/grpc/grpc/blob/master/doc/PROTOCOL-HTTP2.md>.

use crate::Inner;
use crate::access::{Call, Connection};
use crate::body::{Answers, Body, Frames, Requests, next_data, too_large};
use crate::method::{self, Kind, Method};
use crate::wire::PREFIX;
use bytes::{Bytes, BytesMut};
use dhow_bodies::Upload;
use futures::Stream;
use http::header::CONTENT_TYPE;
use http::{HeaderMap, HeaderValue, Request, Response, StatusCode};
use hyper::body::Body as _;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};
use tokio_util::sync::WaitForCancellationFutureOwned;
use tonic::{Code, Status};

const GRPC: HeaderValue = HeaderValue::from_static("application/grpc");

/// The largest answer, in bytes: etcd's.
const LARGEST_ANSWER: usize = i32::MAX as usize;

/// Whether a request is gRPC's, by its content type.
pub(crate) fn is_grpc(headers: &HeaderMap) -> bool {
    headers.get(CONTENT_TYPE).is_some_and(|value| {
        value
            .as_bytes()
            .strip_prefix(b"application/grpc")
            .is_some_and(|rest| matches!(rest.first(), None | Some(b'+' | b';')))
    })
}

/// Answers one gRPC request.
pub(crate) async fn answer(
    inner: Arc<Inner>,
    request: Request<Upload>,
    connection: Arc<Connection>,
) -> Response<Body> {
    let (parts, mut body) = request.into_parts();
    let Some(method) = Method::find(parts.uri.path()) else {
        return refuse(&Status::unimplemented(method::unknown(parts.uri.path())));
    };
    let began = inner.metrics.started(method);
    if parts.method != http::Method::POST {
        let mut response = refuse(&Status::internal(format!(
            "http2Server.operateHeaders parsed a :method field: {} which should be POST",
            parts.method
        )));
        *response.status_mut() = StatusCode::METHOD_NOT_ALLOWED;
        return response;
    }
    let call = Call { headers: parts.headers, connection, gateway: false };
    if let Err(status) = plain(&call.headers) {
        return failed(&inner, method, &status, began);
    }
    if method.row().kind != Kind::Unary {
        return Box::pin(stream(&inner, method, call, body)).await;
    }
    let run = async {
        let message = message(&inner, method, &mut body).await?;
        inner.unary(method, &call, message).await
    };
    // In place, so that a deadline does not move it.
    let mut run = std::pin::pin!(run);
    let done = match timeout(&call.headers) {
        None => run.await,
        Some(limit) => tokio::time::timeout(limit, run.as_mut())
            .await
            .unwrap_or_else(|_| Err(Status::deadline_exceeded("context deadline exceeded"))),
    };
    let spent = began.elapsed();
    if inner.config.slow.is_some_and(|limit| spent >= limit) && !method.waits() {
        tell_slow(method, spent, &done);
    }
    match done {
        Ok(frame) if frame.len() > LARGEST_ANSWER => {
            let status = Status::resource_exhausted(format!(
                "grpc: trying to send message larger than max ({} vs. {LARGEST_ANSWER})",
                frame.len()
            ));
            failed(&inner, method, &status, began)
        }
        Ok(frame) => {
            inner.metrics.handled(method, Code::Ok, began);
            inner.metrics.sent(method, 1, frame.len());
            respond(Body::Unary(frame))
        }
        Err(status) => failed(&inner, method, &status, began),
    }
}

/// What etcd says of a request that took long.
fn tell_slow(method: Method, spent: Duration, done: &Result<Bytes, Status>) {
    let row = method.row();
    tracing::warn!(
        time_spent = ?spent,
        method = format!("/{}/{}", row.service, row.name),
        response_size = done.as_ref().map_or(0, Bytes::len),
        error = done.as_ref().err().map(|status| tracing::field::display(status.message())),
        "request stats"
    );
}

fn respond(body: Body) -> Response<Body> {
    let mut response = Response::new(body);
    response.headers_mut().insert(CONTENT_TYPE, GRPC);
    response
}

/// An answer of a status alone.
fn refuse(status: &Status) -> Response<Body> {
    let mut response = respond(Body::Full(Bytes::new().into()));
    if status.add_header(response.headers_mut()).is_err() {
        response.headers_mut().insert(Status::GRPC_STATUS, HeaderValue::from(status.code() as i32));
    }
    response
}

fn failed(inner: &Inner, method: Method, status: &Status, began: Instant) -> Response<Body> {
    inner.metrics.handled(method, status.code(), began);
    refuse(status)
}

/// Refuses compressed messages: no codec is installed, as in etcd.
fn plain(headers: &HeaderMap) -> Result<(), Status> {
    match headers.get("grpc-encoding").map(HeaderValue::as_bytes) {
        None | Some(b"identity") => Ok(()),
        Some(other) => Err(Status::unimplemented(format!(
            "grpc: Decompressor is not installed for grpc-encoding \"{}\"",
            String::from_utf8_lossy(other)
        ))),
    }
}

/// The client's deadline, from now.
fn timeout(headers: &HeaderMap) -> Option<Duration> {
    let value = headers.get("grpc-timeout")?.to_str().ok()?;
    let (digits, unit) = value.split_at_checked(value.len().checked_sub(1)?)?;
    let n: u64 = digits.parse().ok()?;
    Some(match unit {
        "H" => Duration::from_secs(n.saturating_mul(3600)),
        "M" => Duration::from_secs(n.saturating_mul(60)),
        "S" => Duration::from_secs(n),
        "m" => Duration::from_millis(n),
        "u" => Duration::from_micros(n),
        "n" => Duration::from_nanos(n),
        _ => return None,
    })
}

/// The one message of a request.
async fn message(inner: &Inner, method: Method, body: &mut Upload) -> Result<Bytes, Status> {
    let canceled = |_| Status::cancelled("context canceled");
    let Some(first) = next_data(body).await else {
        return Err(Status::internal("grpc: the request has no message: EOF"));
    };
    let first = first.map_err(canceled)?;
    // Nearly always the whole message comes in one piece.
    let whole = match crate::wire::frame_len(&first) {
        Some(len) if first.len() == PREFIX + len && first[0] == 0 => {
            if method.keeps_bytes() {
                Bytes::copy_from_slice(&first[PREFIX..])
            } else {
                first.slice(PREFIX..)
            }
        }
        _ => Box::pin(gather(inner.max_message(), first, body)).await?,
    };
    if whole.len() > inner.max_message() {
        return Err(too_large(whole.len(), inner.max_message()));
    }
    // The end of the stream comes with the message or right after it.
    while !body.is_end_stream() {
        match next_data(body).await {
            None => break,
            Some(data) => drop(data.map_err(canceled)?),
        }
    }
    inner.metrics.received(method, PREFIX + whole.len());
    Ok(whole)
}

/// A message that came in several pieces.
async fn gather(most: usize, first: Bytes, body: &mut Upload) -> Result<Bytes, Status> {
    use crate::body::Cut as _;
    let mut frames = Frames { most };
    let mut buffer = BytesMut::from(first);
    loop {
        if let Some(message) = frames.cut(&mut buffer, false)? {
            return Ok(message);
        }
        if let Some(len) = crate::wire::frame_len(&buffer) {
            buffer.reserve(PREFIX + len - buffer.len());
        }
        match next_data(body).await {
            Some(Ok(data)) => buffer.extend_from_slice(&data),
            Some(Err(_)) => return Err(Status::cancelled("context canceled")),
            None => return Err(Status::internal("grpc: the message is cut short: unexpected EOF")),
        }
    }
}

/// Begins a stream.
async fn stream(
    inner: &Arc<Inner>,
    method: Method,
    call: Call,
    mut body: Upload,
) -> Response<Body> {
    let ends = Ends::new(inner.clone(), method, &call);
    let answers = if method.row().kind == Kind::BidiStream {
        let requests = Requests::new(body, Box::new(Frames { most: inner.max_message() }));
        inner.bidi(method, call, requests)
    } else {
        match message(inner, method, &mut body).await {
            Ok(message) => inner.server_stream(method, call, message).await,
            Err(status) => Err(status),
        }
    };
    match answers {
        Ok(answers) => respond(Body::Grpc(Box::pin(Running { answers, ends }), Bytes::new())),
        Err(status) => {
            ends.refused(status.code());
            refuse(&status)
        }
    }
}

/// A stream under way: it ends by itself, at its deadline, for want of a leader, or with the server.
struct Running {
    answers: Answers,
    ends: Ends,
}

/// Has a stream end with the server and for want of a leader, and counts its end.
pub(crate) fn running(
    inner: &Arc<Inner>,
    method: Method,
    call: &Call,
    answers: Answers,
) -> Answers {
    Box::pin(Running { answers, ends: Ends::new(inner.clone(), method, call) })
}

/// What ends a stream from outside, and the count of how streams end.
struct Ends {
    inner: Arc<Inner>,
    method: Method,
    began: Instant,
    stop: Pin<Box<WaitForCancellationFutureOwned>>,
    leaderless: Option<Pin<Box<WaitForCancellationFutureOwned>>>,
    deadline: Option<Pin<Box<tokio::time::Sleep>>>,
    ended: Option<Code>,
}

impl Ends {
    fn new(inner: Arc<Inner>, method: Method, call: &Call) -> Self {
        let limit = timeout(&call.headers);
        let leaderless = call.needs_leader().then(|| inner.leaderless());
        Self {
            stop: Box::pin(call.connection.stop.clone().cancelled_owned()),
            leaderless: leaderless.map(|token| Box::pin(token.cancelled_owned())),
            deadline: limit.map(|limit| Box::pin(tokio::time::sleep(limit))),
            inner,
            method,
            began: Instant::now(),
            ended: None,
        }
    }

    /// Why the stream must end now.
    fn poll(&mut self, context: &mut Context<'_>) -> Poll<Status> {
        if self.stop.as_mut().poll(context).is_ready() {
            return Poll::Ready(crate::error::status(&dhow_kv::Error::Stopped));
        }
        if let Some(leaderless) = &mut self.leaderless
            && leaderless.as_mut().poll(context).is_ready()
        {
            return Poll::Ready(crate::error::status(&dhow_kv::Error::NoLeader));
        }
        if let Some(deadline) = &mut self.deadline
            && deadline.as_mut().poll(context).is_ready()
        {
            return Poll::Ready(Status::deadline_exceeded("context deadline exceeded"));
        }
        Poll::Pending
    }

    /// It did not begin.
    fn refused(mut self, code: Code) {
        self.ended = Some(code);
    }
}

impl Drop for Ends {
    fn drop(&mut self) {
        // A client that has enough cancels.
        let code = self.ended.unwrap_or(Code::Cancelled);
        self.inner.metrics.handled(self.method, code, self.began);
    }
}

impl Stream for Running {
    type Item = Result<Bytes, Status>;

    fn poll_next(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Bytes, Status>>> {
        let this = &mut *self;
        if let Poll::Ready(status) = this.ends.poll(context) {
            this.ends.ended = Some(status.code());
            return Poll::Ready(Some(Err(status)));
        }
        let item = std::task::ready!(this.answers.as_mut().poll_next(context));
        match &item {
            Some(Ok(_)) => {}
            Some(Err(status)) => this.ends.ended = Some(status.code()),
            None => this.ends.ended = Some(Code::Ok),
        }
        Poll::Ready(item)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(name: &'static str, value: &'static str) -> HeaderMap {
        let mut headers = HeaderMap::new();
        headers.insert(name, HeaderValue::from_static(value));
        headers
    }

    #[test]
    fn content_types_of_grpc_are_known() {
        for yes in ["application/grpc", "application/grpc+proto", "application/grpc;charset=utf-8"]
        {
            assert!(is_grpc(&headers("content-type", yes)), "{yes}");
        }
        for no in ["application/grpc-web", "application/json", "application/grp"] {
            assert!(!is_grpc(&headers("content-type", no)), "{no}");
        }
    }

    #[test]
    fn timeouts_have_units() {
        assert_eq!(timeout(&headers("grpc-timeout", "5S")), Some(Duration::from_secs(5)));
        assert_eq!(timeout(&headers("grpc-timeout", "200m")), Some(Duration::from_millis(200)));
        assert_eq!(timeout(&headers("grpc-timeout", "x")), None);
        assert_eq!(timeout(&headers("grpc-timeout", "")), None);
    }
}
