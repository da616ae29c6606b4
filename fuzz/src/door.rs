//! The etcd door: protobuf over gRPC, JSON over HTTP. It answers everything, and lives.

use crate::Target;
use crate::mutate::{Random, mutate};
use anyhow::Result;
use bytes::Bytes;
use dhow_clock::System;
use dhow_door_etcd::{Config, Door};
use dhow_kv::Kv;
use dhow_rpc::{Raw, etcdserverpb as pb};
use dhow_server::{Options, Store};
use prost::Message as _;
use std::net::SocketAddr;
use std::sync::Arc;
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

/// Protobuf over gRPC.
pub struct Proto {
    good: Vec<(&'static str, Vec<u8>)>,
    channel: Channel,
    runtime: Arc<tokio::runtime::Runtime>,
}

impl Proto {
    /// A door in this process, and good requests to it.
    ///
    /// # Errors
    /// When no socket can be had.
    pub fn new(runtime: Arc<tokio::runtime::Runtime>) -> Result<Self> {
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
        let range = pb::RangeRequest {
            key: "a".into(),
            range_end: "z".into(),
            limit: 5,
            ..Default::default()
        };
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
        Ok(Self { good, channel, runtime })
    }

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
    fn name(&self) -> &'static str {
        "proto"
    }

    fn run(&mut self, random: &mut Random) -> Result<(), String> {
        let (path, good) = &self.good[random.below(self.good.len())];
        let (_, other) = &self.good[random.below(self.good.len())];
        let bytes = mutate(good, other, random);
        if let Err(status) = self.ask(path, bytes)?
            && status.code() == tonic::Code::Unavailable
        {
            return Err(format!("{path} answers {status}"));
        }
        if random.below(64) == 0 {
            let (path, good) = &self.good[1];
            self.ask(path, good.clone())?.map_err(|status| format!("then {path}: {status}"))?;
        }
        Ok(())
    }
}

/// JSON over HTTP/1.1.
pub struct Gateway {
    good: Vec<(&'static str, Vec<u8>)>,
    address: SocketAddr,
    runtime: Arc<tokio::runtime::Runtime>,
}

impl Gateway {
    /// A door in this process, and good requests to it.
    ///
    /// # Errors
    /// When no socket can be had.
    pub fn new(runtime: Arc<tokio::runtime::Runtime>) -> Result<Self> {
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
        Ok(Self { good, address, runtime })
    }

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
    fn name(&self) -> &'static str {
        "gateway"
    }

    fn run(&mut self, random: &mut Random) -> Result<(), String> {
        let (path, good) = &self.good[random.below(self.good.len())];
        let (_, other) = &self.good[random.below(self.good.len())];
        let body = mutate(good, other, random);
        self.runtime.block_on(async {
            let answer = tokio::time::timeout(PATIENCE, self.post(path, &body)).await;
            match answer {
                Ok(Ok(answer)) if answer.starts_with("HTTP/1.1 ") => Ok(()),
                Ok(Ok(answer)) => Err(format!("{path} answers {answer:?}")),
                Ok(Err(error)) => Err(format!("{path}: {error}")),
                Err(_) => Err(format!("{path} does not answer")),
            }
        })
    }
}
