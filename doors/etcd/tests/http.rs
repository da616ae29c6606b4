//! The gateway, the pages, TLS and malformed input, byte by byte.

mod common;

use common::Served;
use dhow_door_etcd::{Config, Security};
use dhow_kv::admin::{Alarm, AlarmKind};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use std::net::SocketAddr;
use std::sync::Arc;
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::TcpStream;

/// One request over HTTP/1.1: the status and the body.
async fn ask(address: SocketAddr, method: &str, path: &str, body: &str) -> (u16, String) {
    let mut socket = TcpStream::connect(address).await.unwrap();
    let request = format!(
        "{method} {path} HTTP/1.1\r\nhost: h\r\nconnection: close\r\ncontent-length: {}\r\n\r\n{body}",
        body.len()
    );
    socket.write_all(request.as_bytes()).await.unwrap();
    let mut answer = String::new();
    socket.read_to_string(&mut answer).await.unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    (head.split(' ').nth(1).unwrap().parse().unwrap(), body.to_owned())
}

#[tokio::test]
async fn keys_can_be_used_over_json() {
    let served = Served::local(Config::default()).await;
    let post = async |path: &str, body: &str| ask(served.address, "POST", path, body).await;
    let (status, body) = post("/v3/kv/put", r#"{"key":"Zm9v","value":"YmFy"}"#).await;
    assert_eq!(status, 200);
    assert!(body.contains(r#""revision":"2""#), "{body}");
    let (_, body) = post("/v3beta/kv/range", r#"{"key":"Zm9v"}"#).await;
    assert!(body.contains(r#""kvs":[{"key":"Zm9v","create_revision":"2","mod_revision":"2","version":"1","value":"YmFy"}],"count":"1""#), "{body}");
    let text = "etcdserver: key is not provided";
    let refused = format!(r#"{{"error":"{text}","code":3,"message":"{text}"}}"#);
    assert_eq!(post("/v3/kv/range", "{}").await, (400, refused));
    assert_eq!(post("/v3/lease/revoke", r#"{"ID":"7"}"#).await.0, 404);
    assert_eq!(post("/v3/lease/timetolive", r#"{"ID":"7"}"#).await.0, 200);
    assert_eq!(post("/v3/kv/lease/timetolive", r#"{"ID":7}"#).await.0, 200);
    assert_eq!(post("/v3/kv/range", "{nonsense").await.0, 400);
    assert_eq!(post("/v3/nothing", "{}").await.0, 404);
    assert_eq!(ask(served.address, "GET", "/v3/kv/range", "").await.0, 501);
    let (_, body) = post("/v3/lease/keepalive", r#"{"ID":"7"} {"ID":"8"}"#).await;
    assert_eq!(body.matches(r#"{"result":{"header":{"#).count(), 2, "{body}");
    let (_, body) = post("/v3/maintenance/snapshot", "").await;
    assert_eq!(body.matches(r#"{"result":{"#).count(), 4);
}

#[tokio::test]
async fn a_watch_over_json_is_a_line_for_each_answer() {
    let served = Served::new(Config::default()).await;
    let socket = TcpStream::connect(served.address).await.unwrap();
    let mut socket = BufReader::new(socket);
    let body = r#"{"create_request":{"key":"Zm9v"}}"#;
    let request = format!(
        "POST /v3/watch HTTP/1.1\r\nhost: h\r\ncontent-length: {}\r\n\r\n{body}",
        body.len()
    );
    socket.write_all(request.as_bytes()).await.unwrap();
    let mut seen = String::new();
    while !seen.contains(r#""created":true}"#) {
        socket.read_line(&mut seen).await.unwrap();
    }
    served.put("foo", "bar").await;
    while !seen.contains(r#""events":[{"kv":{"key":"Zm9v","#) {
        socket.read_line(&mut seen).await.unwrap();
    }
    assert!(seen.contains(r#"{"result":{"header":{"#), "{seen}");
    served.stop.cancel();
    while !seen.contains(r#"{"error":{"#) {
        socket.read_line(&mut seen).await.unwrap();
    }
    assert!(seen.contains(r#""http_code":503"#) && seen.contains("server stopped"), "{seen}");
}

#[tokio::test]
async fn pages_tell_how_the_member_is() {
    let served = Served::local(Config::default()).await;
    let get = async |path: &str| ask(served.address, "GET", path, "").await;
    let healthy = r#"{"health":"true","reason":""}"#.to_owned();
    assert_eq!(get("/health").await, (200, healthy.clone()));
    assert_eq!(get("/livez").await, (200, "ok\n".to_owned()));
    let (status, body) = get("/readyz?verbose").await;
    assert_eq!(status, 200);
    assert_eq!(body.matches("[+]").count(), 4, "{body}");
    assert_eq!(get("/readyz/linearizable_read").await.0, 200);
    assert_eq!(get("/readyz/nothing").await.0, 404);
    assert_eq!(get("/").await, (404, "404 page not found\n".to_owned()));
    assert_eq!(ask(served.address, "POST", "/health", "").await.0, 405);
    let (_, version) = get("/version").await;
    assert!(version.starts_with(r#"{"etcdserver":"3."#), "{version}");
    assert!(get("/debug/vars").await.1.contains(r#""raft.status""#));
    served.put("k", "v").await;
    let (_, metrics) = get("/metrics").await;
    for line in [
        "etcd_server_has_leader 1",
        "etcd_server_is_leader 1",
        "grpc_server_handled_total{grpc_code=\"OK\",grpc_method=\"Put\",grpc_service=\"etcdserverpb.KV\",grpc_type=\"unary\"} 1",
        "grpc_server_msg_sent_total{grpc_method=\"Put\",grpc_service=\"etcdserverpb.KV\",grpc_type=\"unary\"} 1",
        "etcd_mvcc_db_total_size_in_bytes 20480",
    ] {
        assert!(metrics.lines().any(|l| l == line), "{line} is missing in\n{metrics}");
    }
    assert!(metrics.contains("process_resident_memory_bytes "));
    let alarm = Alarm { member: 1, kind: AlarmKind::NoSpace };
    served.admin.alarm_raise(alarm).await.unwrap();
    let ill = "{\"health\":\"false\",\"reason\":\"ALARM NOSPACE\"}\n".to_owned();
    assert_eq!(get("/health").await, (503, ill));
    assert_eq!(get("/health?exclude=NOSPACE").await, (200, healthy.clone()));
    assert_eq!(get("/readyz").await.0, 200);
    served.lead(0);
    assert_eq!(get("/health?exclude=NOSPACE").await.0, 503);
    assert_eq!(get("/health?exclude=NOSPACE&serializable=true").await, (200, healthy));
    served.admin.alarm_raise(Alarm { kind: AlarmKind::Corrupt, ..alarm }).await.unwrap();
    let (status, body) = get("/readyz").await;
    assert_eq!(status, 503);
    assert!(body.contains("[-]data_corruption failed: alarm activated: CORRUPT"), "{body}");
}

#[tokio::test]
async fn garbage_ends_its_connection_and_nothing_else() {
    let served = Served::new(Config::default()).await;
    let preface = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".as_slice();
    let inputs: [Vec<u8>; 6] = [
        b"\0\0\0\0\0\0\0\0\0\0\0\0".to_vec(),
        b"GET / HTTP/9.9\r\n\r\n".to_vec(),
        [preface, &[0xff; 64]].concat(),
        [preface, b"\0\0\x04\x01\x05\0\0\0\x01\xff\xff\xff\xff"].concat(),
        [preface, b"\0\0\0\x04\0\0\0\0\0", b"\0\0\x04\x08\0\0\0\0\0\0\0\0\0"].concat(),
        vec![b'x'; 1 << 20],
    ];
    for input in inputs {
        let mut socket = TcpStream::connect(served.address).await.unwrap();
        // The server may hang up while we write.
        let _ = socket.write_all(&input).await;
        let _ = socket.shutdown().await;
        let mut answer = Vec::new();
        let _ = socket.read_to_end(&mut answer).await;
        served.put("k", "v").await;
    }
}

/// One call over HTTP/2, byte by byte: its stream, and where its authority stands.
fn status_call(stream: u8, authority: &[u8]) -> Vec<u8> {
    let path = b"/etcdserverpb.Maintenance/Status";
    // POST, http, :path, :authority, content-type, te; `\x5f` and such name rows of the static table.
    let block = [
        &[0x83, 0x86, 0x44, path.len() as u8][..],
        path,
        authority,
        b"\x5f\x10application/grpc\x40\x02te\x08trailers",
    ]
    .concat();
    let headers = [&[0, 0, block.len() as u8, 1, 4, 0, 0, 0, stream], &block[..]].concat();
    let data = [0, 0, 5, 0, 1, 0, 0, 0, stream, 0, 0, 0, 0, 0];
    [headers, data.to_vec()].concat()
}

#[tokio::test]
async fn a_client_may_send_a_url_as_authority() {
    // `http://127.0.0.1:2379` as etcdctl 3.4 sends it.
    let url = b"\x41\x8f\x9d\x29\xae\xe3\x0c\x04\x4e\xae\x05\xc0\xb8\x6e\x09\x97\x5f";
    answered_with_authority(url).await;
}

#[tokio::test]
async fn a_client_may_send_what_it_connects_to_as_authority() {
    // `#initially=[127.0.0.1:43181]` and `#initially=[http://127.0.0.1:43181;http://127.0.0.1:43179]` as
    // Go's client 3.5.0 sends them.
    let one = b"\x41\x97\xff\xa3Td\x98tQ\xea\x0f\xfd\x84N\xae\x05\xc0\xb8n4\xc8^\x0f\xff?";
    answered_with_authority(one).await;
    let two = b"\x41\xad\xff\xa3Td\x98tQ\xea\x0f\xfd\xce\x94\xd7q\x86\x02'W\x02\xe0\\7\x1ad/\x07\xeet\xa6\
        \xbb\x8c0\x11:\xb8\x17\x02\xe1\xb8\xd3!u\xff\xfe\x7f";
    answered_with_authority(two).await;
}

/// Calls twice with an authority: as it is written, and then from the table of headers.
async fn answered_with_authority(literal: &[u8]) {
    let served = Served::new(Config::default()).await;
    let mut socket = TcpStream::connect(served.address).await.unwrap();
    let calls = [status_call(1, literal), status_call(3, b"\xc1")].concat();
    let preface = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0";
    socket.write_all(&[preface, &calls[..]].concat()).await.unwrap();
    let mut ended = Vec::new();
    while ended.len() < 2 {
        let mut head = [0; 9];
        socket.read_exact(&mut head).await.unwrap();
        let [_, a, b, kind, flags, _, _, _, stream] = head;
        let mut payload = vec![0; usize::from(u16::from_be_bytes([a, b]))];
        socket.read_exact(&mut payload).await.unwrap();
        assert_ne!(kind, 3, "stream {stream} was reset");
        // Its last headers, with the status of gRPC.
        if kind == 1 && flags & 1 == 1 {
            ended.push(stream);
        }
    }
    ended.sort_unstable();
    assert_eq!(ended, [1, 3]);
}

/// What a call of bytes is answered with: HTTP status, then code and message of gRPC.
async fn call(
    address: SocketAddr,
    path: &str,
    headers: &[(&'static str, &'static str)],
    body: Vec<u8>,
) -> (u16, Option<tonic::Status>) {
    use http_body_util::{BodyExt as _, Full};
    use hyper_util::rt::{TokioExecutor, TokioIo};
    let socket = TcpStream::connect(address).await.unwrap();
    let (mut sender, connection) =
        hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(socket))
            .await
            .unwrap();
    tokio::spawn(connection);
    let mut request = http::Request::post(format!("http://{address}{path}"))
        .header("content-type", "application/grpc")
        .body(Full::new(bytes::Bytes::from(body)))
        .unwrap();
    for (name, value) in headers {
        request.headers_mut().insert(*name, http::HeaderValue::from_static(value));
    }
    let response = sender.send_request(request).await.unwrap();
    let status = response.status().as_u16();
    let in_head = tonic::Status::from_header_map(response.headers());
    let rest = response.into_body().collect().await.unwrap();
    let in_trailers = rest.trailers().and_then(tonic::Status::from_header_map);
    (status, in_head.or(in_trailers))
}

/// Path, headers, body; code and how the text begins.
type Malformed = (
    &'static str,
    &'static [(&'static str, &'static str)],
    &'static [u8],
    tonic::Code,
    &'static str,
);

#[tokio::test]
async fn malformed_calls_get_a_status_of_grpc() {
    let served = Served::new(Config::default()).await;
    let range = "/etcdserverpb.KV/Range";
    let cases: [Malformed; 7] = [
        ("/a.B/C", &[], &[0; 5], tonic::Code::Unimplemented, "unknown service a.B"),
        (
            "/etcdserverpb.KV/No",
            &[],
            &[0; 5],
            tonic::Code::Unimplemented,
            "unknown method No for service etcdserverpb.KV",
        ),
        (
            range,
            &[],
            &[0, 0, 0, 0, 2, 0xff, 0xff],
            tonic::Code::Internal,
            "grpc: error unmarshalling request",
        ),
        (range, &[], &[0, 0, 0, 0, 9, 1], tonic::Code::Internal, "grpc: the message is cut short"),
        (range, &[], &[], tonic::Code::Internal, "grpc: the request has no message"),
        (
            range,
            &[("grpc-encoding", "gzip")],
            &[1, 0, 0, 0, 1, 0],
            tonic::Code::Unimplemented,
            "grpc: Decompressor is not installed for grpc-encoding \"gzip\"",
        ),
        (
            range,
            &[],
            &[0, 0xff, 0xff, 0xff, 0xff],
            tonic::Code::ResourceExhausted,
            "grpc: received message larger than max (4294967295 vs. 2097152)",
        ),
    ];
    for (path, headers, body, code, text) in cases {
        let (http, status) = call(served.address, path, headers, body.to_vec()).await;
        let status = status.unwrap();
        assert_eq!((http, status.code()), (200, code), "{path} {body:?}");
        assert!(status.message().starts_with(text), "{}", status.message());
    }
    // In several frames of HTTP/2, and with nothing after.
    let put = [
        vec![0, 0, 1, 0x11, 0x76],
        vec![0x0a, 1, b'k', 0x12, 0xf0, 0xa2, 0x04],
        vec![b'v'; 70_000],
    ];
    let (_, status) = call(served.address, "/etcdserverpb.KV/Put", &[], put.concat()).await;
    assert_eq!(status.unwrap().code(), tonic::Code::Internal);
}

/// Bytes that look random and are the same in every run.
struct Noise(u64);

impl Noise {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    /// A message that is sometimes close to a real one: small fields with small lengths.
    fn message(&mut self) -> Vec<u8> {
        let len = self.next() % 40;
        let byte = |noise: &mut Self| match noise.next() % 4 {
            0 => noise.next() as u8,
            1 => 0x0a + ((noise.next() % 4) as u8) * 8,
            _ => (noise.next() % 6) as u8,
        };
        (0..len).map(|_| byte(self)).collect()
    }
}

#[tokio::test]
async fn every_method_survives_noise() {
    use http_body_util::{BodyExt as _, Full};
    use hyper_util::rt::{TokioExecutor, TokioIo};
    let served = Served::new(Config { bcrypt_cost: 4, ..Config::default() }).await;
    let pool = prost_reflect::DescriptorPool::decode(dhow_rpc::DESCRIPTORS).unwrap();
    let socket = TcpStream::connect(served.address).await.unwrap();
    socket.set_nodelay(true).unwrap();
    let (mut sender, connection) =
        hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(socket))
            .await
            .unwrap();
    tokio::spawn(connection);
    let mut noise = Noise(0x9e37_79b9_7f4a_7c15);
    for method in pool.services().flat_map(|s| s.methods().collect::<Vec<_>>()) {
        // A lock that is held would be waited for, and these say nothing until they end.
        let waits = ["Lock", "Campaign", "Observe", "Watch"].contains(&method.name());
        for _ in 0..30 {
            let message = noise.message();
            let mut body = vec![0];
            body.extend_from_slice(&(message.len() as u32).to_be_bytes());
            body.extend_from_slice(&message);
            let path = format!("/{}/{}", method.parent_service().full_name(), method.name());
            let request = http::Request::post(format!("http://{}{path}", served.address))
                .header("content-type", "application/grpc")
                .body(Full::new(bytes::Bytes::from(body)))
                .unwrap();
            let answer = sender.send_request(request);
            if waits {
                let wait = std::time::Duration::from_millis(2);
                let _ = tokio::time::timeout(wait, answer).await;
            } else {
                let answer = answer.await.unwrap();
                assert_eq!(answer.status(), 200);
                answer.into_body().collect().await.unwrap();
            }
        }
    }
    for path in ["/v3/kv/range", "/v3/kv/txn", "/v3/auth/user/add", "/v3/lease/keepalive"] {
        for _ in 0..30 {
            let text: String = noise
                .message()
                .into_iter()
                .map(|b| char::from(b"{}[]\",:0aE. tn"[usize::from(b) % 14]))
                .collect();
            let (status, _) = ask(served.address, "POST", path, &text).await;
            assert!(matches!(status, 200 | 400 | 404), "{path} {text} {status}");
        }
    }
    served.put("k", "v").await;
}

#[tokio::test]
async fn how_long_calls_take_is_measured_when_much_is() {
    for extensive in [false, true] {
        let served = Served::new(Config { extensive, ..Config::default() }).await;
        served.put("k", "v").await;
        served.put("k", "v").await;
        let (_, metrics) = ask(served.address, "GET", "/metrics", "").await;
        let labels = r#"grpc_method="Put",grpc_service="etcdserverpb.KV",grpc_type="unary""#;
        for line in [
            format!(r#"grpc_server_handling_seconds_bucket{{{labels},le="+Inf"}} 2"#),
            format!("grpc_server_handling_seconds_count{{{labels}}} 2"),
        ] {
            assert_eq!(metrics.lines().any(|l| l == line), extensive, "{line}\n{metrics}");
        }
        assert!(metrics.lines().any(|l| l == "etcd_mvcc_put_total 2"), "{metrics}");
        assert!(metrics.lines().any(|l| l == "etcd_debugging_mvcc_keys_total 1"), "{metrics}");
    }
}

/// A certificate for `name` by `authority`, and its key.
fn issue(
    name: &str,
    authority: Option<&rcgen::CertifiedIssuer<'_, rcgen::KeyPair>>,
) -> (CertificateDer<'static>, PrivateKeyDer<'static>) {
    let key = rcgen::KeyPair::generate().unwrap();
    let mut params = rcgen::CertificateParams::new(vec!["localhost".to_owned()]).unwrap();
    params.distinguished_name = rcgen::DistinguishedName::new();
    params.distinguished_name.push(rcgen::DnType::CommonName, name);
    let certificate = match authority {
        Some(authority) => params.signed_by(&key, authority).unwrap(),
        None => params.self_signed(&key).unwrap(),
    };
    (certificate.der().clone(), PrivatePkcs8KeyDer::from(key.serialize_der()).into())
}

#[tokio::test]
async fn a_verified_certificate_names_the_user() {
    use dhow_kv::admin::AuthChange as C;
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut params = rcgen::CertificateParams::new(Vec::new()).unwrap();
    params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    let key = rcgen::KeyPair::generate().unwrap();
    let authority = rcgen::CertifiedIssuer::self_signed(params, key).unwrap();
    let mut roots = rustls::RootCertStore::empty();
    roots.add(authority.der().clone()).unwrap();
    let roots = Arc::new(roots);
    let verifier = rustls::server::WebPkiClientVerifier::builder_with_provider(
        roots.clone(),
        provider.clone(),
    );
    let (chain, key) = issue("server", Some(&authority));
    let server = rustls::ServerConfig::builder_with_provider(provider.clone())
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_client_cert_verifier(verifier.build().unwrap())
        .with_single_cert(vec![chain], key)
        .unwrap();
    let server = Arc::new(server);
    let both = [Security::Tls(server.clone()), Security::Either(server)];
    for (either, security) in [false, true].into_iter().zip(both) {
        let config = Config { client_cert_auth: true, ..Config::default() };
        let served = Served::over_tls(config, security).await;
        let add = |name: &str| C::UserAdd {
            name: name.to_owned(),
            hash: String::new(),
            no_password: true,
        };
        let grant =
            |user: &str, role: &str| C::UserGrantRole { user: user.into(), role: role.into() };
        for change in [
            add("root"),
            add("reader"),
            C::RoleAdd("root".into()),
            grant("root", "root"),
            C::Enable,
        ] {
            served.admin.auth_change(change).await.unwrap();
        }
        let tls = |name: &str| {
            let (chain, key) = issue(name, Some(&authority));
            let mut client = rustls::ClientConfig::builder_with_provider(provider.clone())
                .with_safe_default_protocol_versions()
                .unwrap()
                .with_root_certificates(roots.clone())
                .with_client_auth_cert(vec![chain], key)
                .unwrap();
            client.alpn_protocols = vec![b"h2".to_vec()];
            tokio_rustls::TlsConnector::from(Arc::new(client))
        };
        for (name, code) in [("root", tonic::Code::Ok), ("reader", tonic::Code::PermissionDenied)] {
            let connector = Connector(served.address, tls(name));
            let channel = tonic::transport::Endpoint::from_static("http://localhost")
                .connect_with_connector(connector)
                .await
                .unwrap();
            let mut client = dhow_rpc::etcdserverpb::kv_client::KvClient::new(channel);
            let request =
                dhow_rpc::etcdserverpb::RangeRequest { key: "k".into(), ..Default::default() };
            let answer = client.range(request).await;
            assert_eq!(answer.map_or_else(|s| s.code(), |_| tonic::Code::Ok), code, "{name}");
        }
        // Without TLS there is no answer where it is asked for, and the server lives.
        let mut socket = TcpStream::connect(served.address).await.unwrap();
        let plain = b"GET /health HTTP/1.1\r\nhost: h\r\nconnection: close\r\n\r\n";
        socket.write_all(plain).await.unwrap();
        let mut answer = Vec::new();
        let _ = socket.read_to_end(&mut answer).await;
        assert_eq!(answer.starts_with(b"HTTP/1.1 200"), either, "{answer:?}");
    }
}

/// Connects with a TLS configuration of our own.
#[derive(Clone)]
struct Connector(SocketAddr, tokio_rustls::TlsConnector);

impl tonic::codegen::Service<http::Uri> for Connector {
    type Response = hyper_util::rt::TokioIo<tokio_rustls::client::TlsStream<TcpStream>>;
    type Error = std::io::Error;
    type Future = futures::future::BoxFuture<'static, Result<Self::Response, Self::Error>>;

    fn poll_ready(
        &mut self,
        _: &mut std::task::Context<'_>,
    ) -> std::task::Poll<Result<(), Self::Error>> {
        std::task::Poll::Ready(Ok(()))
    }

    fn call(&mut self, _: http::Uri) -> Self::Future {
        let Self(address, tls) = self.clone();
        Box::pin(async move {
            let socket = TcpStream::connect(address).await?;
            let stream = tls.connect("localhost".try_into().unwrap(), socket).await?;
            Ok(hyper_util::rt::TokioIo::new(stream))
        })
    }
}
