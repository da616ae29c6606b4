//! The JSON gateway: `POST /v3/...` with the messages in proto3's JSON
//! (<https://protobuf.dev/programming-guides/json/>).
//!
//! Messages are translated by their descriptors, which are read at the first request: one piece of
//! code serves all methods, instead of thousands of generated lines. The answers have the fields'
//! original names, numbers of 64 bits as strings, and no empty fields; requests may use either kind
//! of name and either kind of number.

use crate::Inner;
use crate::access::Call;
use crate::body::{Answers, Body, Cut, Requests, next_data, too_large};
use crate::error::http_status;
use crate::grpc;
use crate::method::{Kind, Method};
use crate::wire;
use bytes::{Buf as _, Bytes, BytesMut};
use dhow_bodies::{Pieces, Upload};
use futures::{StreamExt as _, stream};
use http::header::{CONTENT_TYPE, HeaderValue};
use http::{Request, Response};
use prost::Message as _;
use prost_reflect::{
    DescriptorPool, DeserializeOptions, DynamicMessage, MessageDescriptor, SerializeOptions,
};
use std::collections::VecDeque;
use std::sync::{Arc, OnceLock};
use std::time::Instant;
use tonic::{Code, Status};

const JSON: HeaderValue = HeaderValue::from_static("application/json");

/// The descriptors of all methods' messages: requests and answers.
#[derive(Debug, Default)]
pub(crate) struct Gateway {
    types: OnceLock<Vec<(MessageDescriptor, MessageDescriptor)>>,
}

impl Gateway {
    fn types(&self, method: Method) -> Option<&(MessageDescriptor, MessageDescriptor)> {
        let all = self.types.get_or_init(|| {
            // The descriptors were written by our own build.
            let pool = DescriptorPool::decode(dhow_rpc::DESCRIPTORS).unwrap_or_default();
            let types = Method::ALL.iter().filter_map(|method| {
                let row = method.row();
                Some((
                    pool.get_message_by_name(row.request)?,
                    pool.get_message_by_name(row.response)?,
                ))
            });
            types.collect()
        });
        all.get(method as usize)
    }
}

/// A message from JSON.
fn from_json(kind: &MessageDescriptor, json: &[u8]) -> Result<Bytes, Status> {
    if json.iter().all(u8::is_ascii_whitespace) {
        return Ok(Bytes::new());
    }
    let mut json = serde_json::Deserializer::from_slice(json);
    let options = DeserializeOptions::new().deny_unknown_fields(false);
    DynamicMessage::deserialize_with_options(kind.clone(), &mut json, &options)
        .map(|message| message.encode_to_vec().into())
        .map_err(|error| Status::invalid_argument(error.to_string()))
}

/// A message as JSON.
fn to_json(kind: &MessageDescriptor, message: Bytes, out: &mut Vec<u8>) -> Result<(), Status> {
    let options = SerializeOptions::new().use_proto_field_name(true);
    let message = DynamicMessage::decode(kind.clone(), message)
        .map_err(|error| Status::internal(error.to_string()))?;
    message
        .serialize_with_options(&mut serde_json::Serializer::new(out), &options)
        .map_err(|error| Status::internal(error.to_string()))
}

/// Cuts a request's body into JSON values.
struct Values {
    kind: MessageDescriptor,
    most: usize,
}

impl Cut for Values {
    fn cut(&mut self, buffer: &mut BytesMut, ended: bool) -> Result<Option<Bytes>, Status> {
        if buffer.len() > self.most {
            return Err(too_large(buffer.len(), self.most));
        }
        let mut values =
            serde_json::Deserializer::from_slice(buffer).into_iter::<serde::de::IgnoredAny>();
        match values.next() {
            None => {
                buffer.clear();
                Ok(None)
            }
            Some(Ok(_)) => {
                let end = values.byte_offset();
                let message = from_json(&self.kind, &buffer[..end])?;
                buffer.advance(end);
                Ok(Some(message))
            }
            Some(Err(error)) if error.is_eof() && !ended => Ok(None),
            Some(Err(error)) => Err(Status::invalid_argument(error.to_string())),
        }
    }
}

/// An answer with a body in JSON.
fn json(status: http::StatusCode, body: impl Into<Bytes>) -> Response<Body> {
    let mut response = Response::new(Body::Full(Pieces::from(body.into())));
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, JSON);
    response
}

/// The answer of an error.
fn refuse(status: &Status) -> Response<Body> {
    // `error` is what servers before 3.6 had and their clients read.
    let text = serde_json::Value::from(status.message());
    let body = format!("{{\"error\":{text},\"code\":{},\"message\":{text}}}", status.code() as i32);
    json(http_status(status.code()), body)
}

/// Answers a request below `/v3/`.
pub(crate) async fn answer(
    inner: Arc<Inner>,
    path: &str,
    request: Request<Upload>,
    call: Call,
) -> Response<Body> {
    let Some(method) = Method::find_gateway(path) else {
        return refuse(&Status::not_found("Not Found"));
    };
    if request.method() != http::Method::POST {
        return refuse(&Status::unimplemented("Method Not Allowed"));
    }
    let Some((asks, answers)) = inner.gateway.types(method).cloned() else {
        return refuse(&Status::internal("the messages of this method are not described"));
    };
    let began = inner.metrics.started(method);
    // Base64 and names make JSON longer than the message.
    let most = inner.max_message() * 2;
    let mut body = request.into_body();
    let kind = method.row().kind;
    if kind == Kind::BidiStream {
        let requests = Requests::new(body, Box::new(Values { kind: asks, most }));
        return match inner.bidi(method, call.clone(), requests) {
            Ok(frames) => stream_json(&inner, method, &call, frames, answers),
            Err(status) => failed(&inner, method, &status, began),
        };
    }
    let message = match gather(&mut body, most).await {
        Ok(text) => from_json(&asks, &text),
        Err(status) => Err(status),
    };
    let message = match message {
        Ok(message) => message,
        Err(status) => return failed(&inner, method, &status, began),
    };
    inner.metrics.received(method, message.len());
    if kind == Kind::ServerStream {
        return match inner.server_stream(method, call.clone(), message).await {
            Ok(frames) => stream_json(&inner, method, &call, frames, answers),
            Err(status) => failed(&inner, method, &status, began),
        };
    }
    let done = match inner.unary(method, &call, message).await {
        Ok(frame) => {
            inner.metrics.sent(method, 1, frame.len());
            let mut text = Vec::new();
            to_json(&answers, frame.slice(wire::PREFIX..), &mut text).map(|()| text)
        }
        Err(status) => Err(status),
    };
    match done {
        Ok(text) => {
            inner.metrics.handled(method, Code::Ok, began);
            json(http::StatusCode::OK, text)
        }
        Err(status) => failed(&inner, method, &status, began),
    }
}

fn failed(inner: &Inner, method: Method, status: &Status, began: Instant) -> Response<Body> {
    inner.metrics.handled(method, status.code(), began);
    refuse(status)
}

/// The whole body of a request.
async fn gather(body: &mut Upload, most: usize) -> Result<BytesMut, Status> {
    let mut text = BytesMut::new();
    while let Some(data) = next_data(body).await {
        text.extend_from_slice(&data.map_err(|_| Status::cancelled("context canceled"))?);
        if text.len() > most {
            return Err(too_large(text.len(), most));
        }
    }
    Ok(text)
}

/// Answers of a stream, one JSON value a line.
fn stream_json(
    inner: &Arc<Inner>,
    method: Method,
    call: &Call,
    frames: Answers,
    kind: MessageDescriptor,
) -> Response<Body> {
    let frames = grpc::running(inner, method, call, frames);
    let state = (frames, BytesMut::new(), VecDeque::new(), false);
    let lines = stream::unfold(state, move |(mut frames, mut buffer, mut lines, mut ended)| {
        let kind = kind.clone();
        async move {
            loop {
                if let Some(line) = lines.pop_front() {
                    return Some((line, (frames, buffer, lines, ended)));
                }
                if ended {
                    return None;
                }
                match frames.next().await {
                    None => return None,
                    Some(Err(status)) => {
                        ended = true;
                        lines.push_back(error_line(&status));
                    }
                    Some(Ok(piece)) => {
                        buffer.extend_from_slice(&piece);
                        while let Some(message) = wire::split_frame(&mut buffer) {
                            lines.push_back(line(&kind, message));
                        }
                    }
                }
            }
        }
    });
    let mut response = Response::new(Body::Chunks(Box::pin(lines)));
    response.headers_mut().insert(CONTENT_TYPE, JSON);
    response
}

fn line(kind: &MessageDescriptor, message: Bytes) -> Bytes {
    let mut text = b"{\"result\":".to_vec();
    match to_json(kind, message, &mut text) {
        Ok(()) => text.extend_from_slice(b"}\n"),
        Err(status) => return error_line(&status),
    }
    text.into()
}

fn error_line(status: &Status) -> Bytes {
    let http = http_status(status.code());
    let body = serde_json::json!({ "error": {
        "grpc_code": status.code() as i32,
        "http_code": http.as_u16(),
        "message": status.message(),
        "http_status": http.canonical_reason().unwrap_or_default(),
        "code": status.code() as i32,
    }});
    format!("{body}\n").into()
}

#[cfg(test)]
mod tests {
    use super::*;
    use dhow_rpc::etcdserverpb as pb;

    fn translate(method: Method, json: &str) -> Result<Bytes, Status> {
        let gateway = Gateway::default();
        from_json(&gateway.types(method).unwrap().0, json.as_bytes())
    }

    #[test]
    fn every_method_is_described() {
        let gateway = Gateway::default();
        for method in Method::ALL {
            let (request, response) = gateway.types(*method).unwrap();
            assert_eq!(request.full_name(), method.row().request);
            assert_eq!(response.full_name(), method.row().response);
        }
    }

    #[test]
    fn requests_take_both_kinds_of_names_and_numbers() {
        for json in [
            r#"{"key":"Zm9v","range_end":"AA==","limit":"5","sort_order":"DESCEND"}"#,
            r#"{"key":"Zm9v","rangeEnd":"AA==","limit":5,"sortOrder":2,"nobody":"knows"}"#,
        ] {
            let request =
                pb::RangeRequest::decode(translate(Method::Range, json).unwrap()).unwrap();
            assert_eq!(request.key, "foo");
            assert_eq!(request.range_end.as_ref(), [0]);
            assert_eq!((request.limit, request.sort_order), (5, 2));
        }
        assert!(translate(Method::Range, "").unwrap().is_empty());
        assert_eq!(translate(Method::Range, "{").unwrap_err().code(), Code::InvalidArgument);
    }

    #[test]
    fn answers_have_original_names_strings_and_no_empty_fields() {
        let gateway = Gateway::default();
        let answer = pb::RangeResponse {
            header: Some(pb::ResponseHeader {
                cluster_id: u64::MAX,
                revision: 3,
                ..Default::default()
            }),
            kvs: vec![dhow_rpc::mvccpb::KeyValue {
                key: "foo".into(),
                mod_revision: 3,
                ..Default::default()
            }],
            count: 1,
            ..Default::default()
        };
        let mut text = Vec::new();
        let kind = &gateway.types(Method::Range).unwrap().1;
        to_json(kind, answer.encode_to_vec().into(), &mut text).unwrap();
        assert_eq!(
            String::from_utf8(text).unwrap(),
            r#"{"header":{"cluster_id":"18446744073709551615","revision":"3"},"kvs":[{"key":"Zm9v","mod_revision":"3"}],"count":"1"}"#
        );
    }
}
