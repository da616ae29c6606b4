//! The doors: etcd's protobuf over gRPC and JSON over HTTP, its signed tokens, and what the
//! Kubernetes API reads besides objects. They answer everything, and live.

use crate::{Pure, Target, picked};
use anyhow::Result;
use bytes::{Bytes, BytesMut};
use dhow_clock::System;
use dhow_door_etcd::{Config, Door, Jwt};
use dhow_door_kube::path::{self, Query};
use dhow_door_kube::stream::spdy::frame::{
    Decoder as FrameDecoder, Encoder as FrameEncoder, Frame,
};
use dhow_kv::Kv;
use dhow_rpc::{Raw, etcdserverpb as pb};
use dhow_server::{Options, Store};
use prost::Message as _;
use std::net::SocketAddr;
use std::sync::OnceLock;
use std::time::Duration;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio_util::sync::CancellationToken;
use tonic::Status;
use tonic::transport::Channel;

/// No answer takes longer.
pub(crate) const PATIENCE: Duration = Duration::from_secs(20);

/// A door in this process.
pub(crate) async fn serve() -> Result<SocketAddr> {
    let options = Options { retention: None, ..Options::default() };
    let store = Store::memory_with(System::shared(), options);
    let door = Door::new(Kv::new(store.clone()), store, Config::default());
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let address = listener.local_addr()?;
    tokio::spawn(door.serve(listener, None, CancellationToken::new()));
    Ok(address)
}

/// Where everything of a door runs, on the thread of who asks.
pub(crate) fn runtime() -> Result<tokio::runtime::Runtime> {
    Ok(tokio::runtime::Builder::new_current_thread().enable_all().build()?)
}

/// Good requests, each behind the number of its path.
fn numbered(requests: &[(&'static str, Vec<u8>)]) -> (Vec<&'static str>, Vec<Vec<u8>>) {
    let input = |(n, (_, body)): (usize, &(_, Vec<u8>))| [&[n as u8], body.as_slice()].concat();
    (
        requests.iter().map(|(path, _)| *path).collect(),
        requests.iter().enumerate().map(input).collect(),
    )
}

/// Protobuf over gRPC, to a door in this process.
struct Proto {
    paths: Vec<&'static str>,
    good: Vec<Vec<u8>>,
    channel: Channel,
    asked: u64,
    runtime: tokio::runtime::Runtime,
}

/// See [`Proto`].
pub(crate) fn proto() -> Result<Box<dyn Target>> {
    let runtime = runtime()?;
    let channel = runtime.block_on(async {
        let address = serve().await?;
        anyhow::Ok(Channel::from_shared(format!("http://{address}"))?.connect().await?)
    })?;
    let put = pb::PutRequest {
        key: "key".into(),
        value: "value".into(),
        prev_kv: true,
        ..Default::default()
    };
    let range =
        pb::RangeRequest { key: "a".into(), range_end: "z".into(), limit: 5, ..Default::default() };
    let delete = pb::DeleteRangeRequest { key: "key".into(), ..Default::default() };
    let compare = pb::Compare {
        key: "key".into(),
        target_union: Some(pb::compare::TargetUnion::Version(1)),
        ..Default::default()
    };
    let op = |request| pb::RequestOp { request: Some(request) };
    let txn = pb::TxnRequest {
        compare: vec![compare],
        success: vec![op(pb::request_op::Request::RequestPut(put.clone()))],
        failure: vec![op(pb::request_op::Request::RequestRange(range.clone()))],
    };
    let good = vec![
        ("/etcdserverpb.KV/Put", put.encode_to_vec()),
        ("/etcdserverpb.KV/Range", range.encode_to_vec()),
        ("/etcdserverpb.KV/DeleteRange", delete.encode_to_vec()),
        ("/etcdserverpb.KV/Txn", txn.encode_to_vec()),
        ("/etcdserverpb.Lease/LeaseGrant", vec![8, 60, 16, 7]),
        ("/etcdserverpb.Lease/LeaseRevoke", vec![8, 7]),
        ("/etcdserverpb.Lease/LeaseTimeToLive", vec![8, 7, 16, 1]),
        ("/etcdserverpb.KV/Compact", vec![8, 3, 16, 1]),
    ];
    let (paths, good) = numbered(&good);
    Ok(Box::new(Proto { paths, good, channel, asked: 0, runtime }))
}

impl Proto {
    fn ask(&self, path: &'static str, bytes: Vec<u8>) -> Result<Result<Bytes, Status>, String> {
        let mut grpc = tonic::client::Grpc::new(self.channel.clone());
        let path_of = http_path(path);
        self.runtime.block_on(async {
            let asked = async {
                grpc.ready().await.map_err(|error| format!("the connection is gone: {error}"))?;
                let request = tonic::Request::new(Bytes::from(bytes));
                Ok(grpc.unary(request, path_of, Raw).await.map(tonic::Response::into_inner))
            };
            match tokio::time::timeout(PATIENCE, asked).await {
                Ok(answer) => answer,
                Err(_) => Err(format!("{path} does not answer")),
            }
        })
    }
}

fn http_path(path: &'static str) -> tonic::codegen::http::uri::PathAndQuery {
    tonic::codegen::http::uri::PathAndQuery::from_static(path)
}

impl Target for Proto {
    fn good(&self) -> &[Vec<u8>] {
        &self.good
    }

    fn take(&mut self, bytes: &[u8]) -> Result<(), String> {
        let Some((path, body)) = picked(&self.paths, bytes) else { return Ok(()) };
        if let Err(status) = self.ask(path, body.to_vec())?
            && status.code() == tonic::Code::Unavailable
        {
            return Err(format!("{path} answers {status}"));
        }
        self.asked += 1;
        if self.asked.is_multiple_of(64) {
            let path = "/etcdserverpb.KV/Range";
            let all = pb::RangeRequest { key: "a".into(), limit: 1, ..Default::default() };
            self.ask(path, all.encode_to_vec())?
                .map_err(|status| format!("then {path}: {status}"))?;
        }
        Ok(())
    }
}

/// JSON over HTTP/1.1, to a door in this process.
struct Gateway {
    paths: Vec<&'static str>,
    good: Vec<Vec<u8>>,
    address: SocketAddr,
    runtime: tokio::runtime::Runtime,
}

/// See [`Gateway`].
pub(crate) fn gateway() -> Result<Box<dyn Target>> {
    let runtime = runtime()?;
    let address = runtime.block_on(serve())?;
    let txn = br#"{"compare":[{"key":"Zm9v","target":"CREATE","create_revision":"0"}],"success":[{"requestPut":{"key":"Zm9v","value":"YmFy"}}],"failure":[{"request_range":{"key":"Zm9v"}}]}"#;
    let range = br#"{"key":"AA==","range_end":"AA==","limit":"3","sort_order":"DESCEND","sort_target":"MOD"}"#;
    let good: Vec<(&'static str, Vec<u8>)> = vec![
        ("/v3/kv/put", br#"{"key":"Zm9v","value":"YmFy","lease":0,"prev_kv":true}"#.to_vec()),
        ("/v3/kv/range", range.to_vec()),
        ("/v3/kv/txn", txn.to_vec()),
        ("/v3/kv/deleterange", br#"{"key":"Zm9v"}"#.to_vec()),
        ("/v3/lease/grant", br#"{"TTL":"60","ID":7}"#.to_vec()),
        ("/v3/lease/timetolive", br#"{"ID":"7","keys":true}"#.to_vec()),
        ("/v3/maintenance/status", b"{}".to_vec()),
    ];
    let (paths, good) = numbered(&good);
    Ok(Box::new(Gateway { paths, good, address, runtime }))
}

impl Gateway {
    async fn post(&self, path: &str, body: &[u8]) -> std::io::Result<String> {
        let mut socket = TcpStream::connect(self.address).await?;
        let head = format!(
            "POST {path} HTTP/1.1\r\nhost: h\r\nconnection: close\r\ncontent-length: {}\r\n\r\n",
            body.len()
        );
        socket.write_all(&[head.as_bytes(), body].concat()).await?;
        let mut answer = Vec::new();
        socket.read_to_end(&mut answer).await?;
        Ok(String::from_utf8_lossy(&answer).into_owned())
    }
}

impl Target for Gateway {
    fn good(&self) -> &[Vec<u8>] {
        &self.good
    }

    fn take(&mut self, bytes: &[u8]) -> Result<(), String> {
        let Some((path, body)) = picked(&self.paths, bytes) else { return Ok(()) };
        self.runtime.block_on(async {
            let answer = tokio::time::timeout(PATIENCE, self.post(path, body)).await;
            match answer {
                Ok(Ok(answer)) if answer.starts_with("HTTP/1.1 ") => Ok(()),
                Ok(Ok(answer)) => Err(format!("{path} answers {answer:?}")),
                Ok(Err(error)) => Err(format!("{path}: {error}")),
                Err(_) => Err(format!("{path} does not answer")),
            }
        })
    }
}

/// Keys of the tokens that [`jwt`] reads.
fn keys() -> &'static Jwt {
    static KEYS: OnceLock<Jwt> = OnceLock::new();
    KEYS.get_or_init(|| {
        Jwt::new("HS256", b"secret", b"", Duration::from_secs(600), System::shared())
            .expect("any bytes are a secret")
    })
}

/// Signed tokens: nobody is somebody without a good signature.
pub(crate) fn jwt() -> Result<Box<dyn Target>> {
    let token = keys().issue("root", 7).map_err(anyhow::Error::msg)?;
    Ok(Box::new(Pure { good: vec![token.into_bytes()], take: take_jwt }))
}

fn take_jwt(bytes: &[u8]) -> Result<(), String> {
    let Ok(token) = std::str::from_utf8(bytes) else { return Ok(()) };
    match keys().caller(token) {
        None => Ok(()),
        Some(caller) if caller.user.as_deref() == Some("root") => Ok(()),
        Some(caller) => Err(format!("{token} is taken for {caller:?}")),
    }
}

/// Frames of SPDY, as `kubectl exec` may send them.
pub(crate) fn spdy() -> Result<Box<dyn Target>> {
    let headers = vec![("streamtype".to_owned(), "stdin".to_owned())];
    let mut encoder = FrameEncoder::default();
    let mut all = Vec::new();
    let frames = [
        Frame::SynStream { stream: 1, headers: headers.clone(), fin: false, unidirectional: false },
        Frame::SynReply { stream: 1, headers, fin: false },
        Frame::Data { stream: 1, bytes: "data".into(), fin: true },
        Frame::Ping(3),
        Frame::Reset { stream: 1, status: 5 },
        Frame::WindowUpdate { stream: 0, delta: 9 },
        Frame::GoAway,
    ];
    for frame in &frames {
        all.extend_from_slice(&encoder.encode(frame));
    }
    Ok(Box::new(Pure { good: vec![all], take: take_spdy }))
}

fn take_spdy(bytes: &[u8]) -> Result<(), String> {
    let mut buffer = BytesMut::from(bytes);
    let mut decoder = FrameDecoder::default();
    while let Ok(Some(_)) = decoder.next(&mut buffer) {}
    Ok(())
}

/// Addresses of the Kubernetes API with their queries.
pub(crate) fn path() -> Result<Box<dyn Target>> {
    let good = [
        "/apis/apps/v1/namespaces/default/deployments/web/scale?dryRun=All&fieldManager=a%20b",
        "/api/v1/watch/pods?labelSelector=a%3Db,c+in+(d)&resourceVersion=5&watch=1",
        "/api/v1/namespaces/a/services/https:web:443/proxy/some/%2Fpath",
        "/openapi/v3/apis/apps/v1?hash=1",
    ];
    Ok(Pure::of_texts(&good, take_path))
}

fn take_path(bytes: &[u8]) -> Result<(), String> {
    let Ok(text) = std::str::from_utf8(bytes) else { return Ok(()) };
    let (path, query) = text.split_once('?').unwrap_or((text, ""));
    let _ = path::parse(path);
    let query = Query::parse(query);
    let _ = (query.flag("watch"), query.get("labelSelector"), query.all("dryRun").count());
    Ok(())
}
