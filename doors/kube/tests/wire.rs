//! The door's wire behaviour that kubectl does not show: plain HTTP over the local socket and TLS.

mod common;

use bytes::Bytes;
use common::Platform;
use http::{Method, Request, Response};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::client::conn::http1::SendRequest;
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use std::sync::Arc;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpStream, UnixStream};

type Client = SendRequest<Full<Bytes>>;
/// Method, path, headers, body, expected code.
type Case = (Method, &'static str, &'static [(&'static str, &'static str)], Vec<u8>, u16);

async fn local(platform: &Platform) -> Client {
    let path = platform.directory.path().join("kube.sock");
    let socket = UnixStream::connect(path).await.unwrap();
    let (client, connection) =
        hyper::client::conn::http1::handshake(TokioIo::new(socket)).await.unwrap();
    tokio::spawn(connection);
    client
}

async fn send(
    client: &mut Client,
    method: Method,
    path: &str,
    headers: &[(&str, &str)],
    body: impl Into<Bytes>,
) -> Response<Incoming> {
    let mut request = Request::builder().method(method).uri(path).header("host", "dhow");
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    client.ready().await.unwrap();
    client.send_request(request.body(Full::new(body.into())).unwrap()).await.unwrap()
}

async fn value(response: Response<Incoming>) -> Value {
    let bytes = response.into_body().collect().await.unwrap().to_bytes();
    serde_json::from_slice(&bytes).unwrap_or_else(|error| panic!("{error}: {bytes:?}"))
}

async fn get(client: &mut Client, path: &str) -> (u16, Value) {
    let response = send(client, Method::GET, path, &[], "").await;
    (response.status().as_u16(), value(response).await)
}

async fn next_frame(body: &mut Incoming, buffer: &mut Vec<u8>) -> Value {
    loop {
        if let Some(end) = buffer.iter().position(|byte| *byte == b'\n') {
            let line: Vec<u8> = buffer.drain(..=end).collect();
            return serde_json::from_slice(&line).unwrap();
        }
        let frame = body.frame().await.expect("the watch goes on").unwrap();
        buffer.extend_from_slice(&frame.into_data().unwrap());
    }
}

fn config_map(name: &str) -> String {
    json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name}}).to_string()
}

const MAPS: &str = "/api/v1/namespaces/default/configmaps";

#[tokio::test(flavor = "multi_thread")]
async fn the_local_socket_is_roots() {
    let platform = Platform::start().await;
    let mut client = local(&platform).await;
    let review = json!({"apiVersion": "authentication.k8s.io/v1", "kind": "SelfSubjectReview"});
    let path = "/apis/authentication.k8s.io/v1/selfsubjectreviews";
    let response = send(&mut client, Method::POST, path, &[], review.to_string()).await;
    assert_eq!(response.status(), 201);
    let told = value(response).await;
    assert_eq!(told["status"]["userInfo"]["username"], "kubernetes-admin");
}

/// A TLS connection of somebody without credentials, who speaks HTTP/1.1.
async fn stranger(platform: &Platform) -> tokio_rustls::client::TlsStream<TcpStream> {
    let pem = std::fs::read(platform.directory.path().join("ca.pem")).unwrap();
    let mut roots = rustls::RootCertStore::empty();
    roots.add(rustls::pki_types::pem::PemObject::from_pem_slice(&pem).unwrap()).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let tls = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    let connector = tokio_rustls::TlsConnector::from(Arc::new(tls));
    let socket = TcpStream::connect(&platform.address).await.unwrap();
    let name = rustls::pki_types::ServerName::try_from("127.0.0.1").unwrap();
    connector.connect(name, socket).await.unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn refused_requests_get_their_answers_however_much_they_send() {
    let platform = Arc::new(Platform::start().await);
    let mut clients = tokio::task::JoinSet::new();
    for path in [MAPS, "/api/v1/namespaces/default/pods/p/exec", "/nothing", "/version"] {
        for turn in 0..16 {
            let platform = platform.clone();
            clients.spawn(async move {
                let path = if turn % 2 == 0 { path } else { "/apis/apps/v1/deployments" };
                let (length, code) = (4 << 20, if path == "/version" { " 405" } else { " 401" });
                let head =
                    format!("POST {path} HTTP/1.1\r\nhost: h\r\ncontent-length: {length}\r\n\r\n");
                let mut stream = stranger(&platform).await;
                for _ in 0..2 {
                    stream.write_all(head.as_bytes()).await.unwrap();
                    stream.write_all(&vec![b'x'; length]).await.unwrap();
                    stream.flush().await.unwrap();
                    let mut answer = Vec::new();
                    while !answer.ends_with(b"\r\n\r\n") {
                        answer.push(stream.read_u8().await.unwrap());
                    }
                    let answer = String::from_utf8(answer).unwrap().to_ascii_lowercase();
                    assert!(answer.starts_with(&format!("http/1.1{code}")), "{path}: {answer}");
                    let length = answer.lines().find_map(|l| l.strip_prefix("content-length: "));
                    let mut rest = vec![0; length.unwrap().parse().unwrap()];
                    stream.read_exact(&mut rest).await.unwrap();
                }
            });
        }
    }
    clients.join_all().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn without_credentials_only_health_and_version_are_told() {
    let platform = Platform::start().await;
    let stream = stranger(&platform).await;
    let (mut client, connection) =
        hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.unwrap();
    tokio::spawn(connection);
    for path in ["/api", "/apis", "/api/v1/pods", "/metrics", "/openapi/v3", "/nothing"] {
        let (code, status) = get(&mut client, path).await;
        assert_eq!((code, &status["reason"]), (401, &json!("Unauthorized")), "{path}");
        assert_eq!(status["kind"], "Status");
    }
    for path in ["/livez", "/readyz", "/healthz", "/version", "/openid/v1/jwks"] {
        let response = send(&mut client, Method::GET, path, &[], "").await;
        assert_eq!(response.status(), 200, "{path}");
        let _ = response.into_body().collect().await.unwrap();
    }
    let (_, openid) = get(&mut client, "/.well-known/openid-configuration").await;
    assert_eq!(openid["issuer"], "https://kubernetes.default.svc.cluster.local");
}

#[tokio::test(flavor = "multi_thread")]
async fn streaming_lists_end_with_a_bookmark() {
    let platform = Platform::start().await;
    let mut client = local(&platform).await;
    for name in ["a", "b"] {
        let made = send(&mut client, Method::POST, MAPS, &[], config_map(name)).await;
        assert_eq!(made.status(), 201);
        let _ = value(made).await;
    }
    let query = "watch=true&sendInitialEvents=true&resourceVersionMatch=NotOlderThan&allowWatchBookmarks=true&fieldSelector=metadata.name%3Db";
    let mut watching = local(&platform).await;
    let response = send(&mut watching, Method::GET, &format!("{MAPS}?{query}"), &[], "").await;
    assert_eq!(response.status(), 200);
    let (mut body, mut buffer) = (response.into_body(), Vec::new());
    let first = next_frame(&mut body, &mut buffer).await;
    assert_eq!(
        (&first["type"], &first["object"]["metadata"]["name"]),
        (&json!("ADDED"), &json!("b"))
    );
    let end = next_frame(&mut body, &mut buffer).await;
    assert_eq!(end["type"], "BOOKMARK");
    assert_eq!(end["object"]["kind"], "ConfigMap");
    let marks = &end["object"]["metadata"]["annotations"];
    assert_eq!(marks["k8s.io/initial-events-end"], "true");
    let path = format!("{MAPS}/b");
    let gone = send(&mut client, Method::DELETE, &path, &[], "").await;
    let gone = value(gone).await;
    assert_eq!((&gone["status"], &gone["details"]["name"]), (&json!("Success"), &json!("b")));
    assert_eq!(next_frame(&mut body, &mut buffer).await["type"], "DELETED");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_watch_ends_in_time_and_with_its_client() {
    let platform = Platform::start().await;
    let mut client = local(&platform).await;
    let path = format!("{MAPS}?watch=true&timeoutSeconds=1");
    let response = send(&mut client, Method::GET, &path, &[], "").await;
    response.into_body().collect().await.unwrap();
    let mut gone = local(&platform).await;
    let path = format!("{MAPS}?watch=true");
    let response = send(&mut gone, Method::GET, &path, &[], "").await;
    let count = async |client: &mut Client| {
        let response = send(client, Method::GET, "/metrics", &[], "").await;
        let text = response.into_body().collect().await.unwrap().to_bytes();
        let text = String::from_utf8(text.to_vec()).unwrap();
        let line = text.lines().find(|line| line.starts_with("apiserver_registered_watchers "));
        line.unwrap().rsplit(' ').next().unwrap().to_owned()
    };
    assert_eq!(count(&mut client).await, "1");
    drop(response);
    drop(gone);
    let limit = std::time::Duration::from_secs(10);
    let ended = async { while count(&mut client).await != "0" {} };
    tokio::time::timeout(limit, ended).await.expect("the watch ends with its client");
}

#[tokio::test(flavor = "multi_thread")]
async fn shutting_down_ends_watches() {
    let platform = Platform::start().await;
    let mut client = local(&platform).await;
    let path = format!("{MAPS}?watch=true");
    let response = send(&mut client, Method::GET, &path, &[], "").await;
    platform.shutdown.cancel();
    let limit = std::time::Duration::from_secs(10);
    let body = response.into_body().collect();
    tokio::time::timeout(limit, body).await.expect("the watch ends").unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn forms_are_negotiated() {
    let platform = Platform::start().await;
    let mut client = local(&platform).await;
    let table = "application/json;as=Table;v=v1;g=meta.k8s.io";
    let shown =
        send(&mut client, Method::GET, "/api/v1/namespaces", &[("accept", table)], "").await;
    let shown = value(shown).await;
    assert_eq!(shown["kind"], "Table");
    assert_eq!(shown["columnDefinitions"][0]["name"], "Name");
    assert_eq!(shown["rows"][0]["object"]["kind"], "PartialObjectMetadata");
    let none = "/api/v1/namespaces?includeObject=None";
    let shown = send(&mut client, Method::GET, none, &[("accept", table)], "").await;
    assert!(value(shown).await["rows"][0].get("object").is_none());
    let metadata = "application/json;as=PartialObjectMetadataList;v=v1;g=meta.k8s.io";
    let path = "/api/v1/namespaces";
    let shown = send(&mut client, Method::GET, path, &[("accept", metadata)], "").await;
    assert_eq!(value(shown).await["kind"], "PartialObjectMetadataList");
    let yaml = [("accept", "application/yaml")];
    let shown = send(&mut client, Method::GET, "/api/v1/namespaces/default", &yaml, "").await;
    assert_eq!(shown.headers()["content-type"], "application/yaml");
    let bytes = shown.into_body().collect().await.unwrap().to_bytes();
    assert!(bytes.windows(15).any(|part| part == b"kind: Namespace"));
    let xml = send(&mut client, Method::GET, path, &[("accept", "text/xml")], "").await;
    assert_eq!(xml.status(), 406);
    let _ = value(xml).await;
    let odd = [("content-type", "text/xml")];
    let refused = send(&mut client, Method::POST, MAPS, &odd, "<x/>").await;
    assert_eq!(refused.status(), 415);
    let _ = value(refused).await;
    let yaml = [("content-type", "application/yaml")];
    let made = "apiVersion: v1\nkind: ConfigMap\nmetadata:\n  name: yaml\n";
    let made = send(&mut client, Method::POST, MAPS, &yaml, made).await;
    let (code, made) = (made.status(), value(made).await);
    assert_eq!(code, 201, "{made}");
    let packed = [("accept-encoding", "gzip")];
    let document = send(&mut client, Method::GET, "/openapi/v3/api/v1", &packed, "").await;
    assert_eq!(document.headers()["content-encoding"], "gzip");
    let _ = document.into_body().collect().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn bad_requests_are_statuses() {
    let platform = Platform::start().await;
    let mut client = local(&platform).await;
    let large = vec![b' '; 3 * 1024 * 1024 + 1];
    let cases: Vec<Case> = vec![
        (Method::POST, MAPS, &[], b"{".to_vec(), 400),
        (Method::POST, MAPS, &[], b"[]".to_vec(), 400),
        (Method::POST, MAPS, &[], large, 413),
        (
            Method::POST,
            MAPS,
            &[("content-type", "application/vnd.kubernetes.protobuf")],
            b"k8s\0\xff".to_vec(),
            400,
        ),
        (Method::GET, "/api/v1/configmaps?limit=x", &[], vec![], 400),
        (Method::GET, "/api/v1/configmaps?resourceVersion=x", &[], vec![], 422),
        (Method::GET, "/api/v1/configmaps?labelSelector=%3D%3D", &[], vec![], 400),
        (Method::GET, "/api/v1/configmaps?fieldSelector=spec.x%3D1", &[], vec![], 400),
        (Method::GET, "/api/v1/configmaps?watch=1&sendInitialEvents=true", &[], vec![], 422),
        (Method::POST, "/api/v1/configmaps", &[], b"{}".to_vec(), 404),
        (Method::PUT, "/api/v1/namespaces/default/configmaps", &[], b"{}".to_vec(), 405),
        (Method::OPTIONS, MAPS, &[], vec![], 405),
        (Method::GET, "/apis/apps/v9/deployments", &[], vec![], 404),
        (Method::GET, "/openapi/v2", &[], vec![], 406),
        (Method::GET, "/%zz", &[], vec![], 404),
        (
            Method::PATCH,
            "/api/v1/namespaces/default",
            &[("content-type", "application/json")],
            b"{}".to_vec(),
            415,
        ),
        (
            Method::PATCH,
            "/api/v1/namespaces/default",
            &[("content-type", "application/json-patch+json")],
            b"{}".to_vec(),
            400,
        ),
        (
            Method::PATCH,
            "/api/v1/namespaces/default",
            &[("content-type", "application/apply-patch+yaml")],
            b"{}".to_vec(),
            400,
        ),
        (Method::GET, "/api/v1/namespaces/default/pods/x/exec", &[], vec![], 400),
        (
            Method::POST,
            "/api/v1/namespaces/default/configmaps?dryRun=Some",
            &[],
            b"{}".to_vec(),
            422,
        ),
        (Method::DELETE, "/api/v1/namespaces/default/configmaps/none", &[], vec![], 404),
        (
            Method::GET,
            "/api/v1/namespaces/default/configmaps/kube-root-ca.crt/status",
            &[],
            vec![],
            404,
        ),
    ];
    for (method, path, headers, body, code) in cases {
        let response = send(&mut client, method.clone(), path, headers, body).await;
        assert_eq!(response.status(), code, "{method} {path}");
        let status = value(response).await;
        assert_eq!((&status["kind"], &status["code"]), (&json!("Status"), &json!(code)), "{path}");
        // A refused body may leave the connection unusable.
        if code == 413 {
            client = local(&platform).await;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn heads_have_no_body_and_prefixes_watch() {
    let platform = Platform::start().await;
    let mut client = local(&platform).await;
    let head = send(&mut client, Method::HEAD, "/api/v1/namespaces/default", &[], "").await;
    assert_eq!(head.status(), 200);
    assert!(head.into_body().collect().await.unwrap().to_bytes().is_empty());
    let old = "/api/v1/watch/namespaces/default?timeoutSeconds=1";
    let response = send(&mut client, Method::GET, old, &[], "").await;
    let bytes = response.into_body().collect().await.unwrap().to_bytes();
    assert!(bytes.starts_with(b"{\"type\":\"ADDED\""));
}

#[tokio::test(flavor = "multi_thread")]
async fn lists_are_paged_and_emptied() {
    let platform = Platform::start().await;
    let mut client = local(&platform).await;
    for name in ["p1", "p2", "p3"] {
        let body = json!({"metadata": {"name": name, "labels": {"p": "1"}}}).to_string();
        let _ = value(send(&mut client, Method::POST, MAPS, &[], body).await).await;
    }
    let (_, first) = get(&mut client, &format!("{MAPS}?labelSelector=p&limit=2")).await;
    assert_eq!(first["items"].as_array().unwrap().len(), 2);
    let token = first["metadata"]["continue"].as_str().unwrap();
    let (_, rest) =
        get(&mut client, &format!("{MAPS}?labelSelector=p&limit=2&continue={token}")).await;
    assert_eq!(rest["items"][0]["metadata"]["name"], "p3");
    let path = format!("{MAPS}?labelSelector=p");
    let emptied = value(send(&mut client, Method::DELETE, &path, &[], "").await).await;
    assert_eq!(emptied["items"].as_array().unwrap().len(), 3);
    let (_, none) = get(&mut client, &path).await;
    assert_eq!(none["items"], json!([]));
}

#[tokio::test(flavor = "multi_thread")]
async fn nodes_bind_and_pods_are_evicted() {
    let platform = Platform::start().await;
    platform.running_pod("web", &["main"]).await;
    let mut client = local(&platform).await;
    let pods = "/api/v1/namespaces/default/pods";
    let pod = json!({
        "metadata": {"name": "new"},
        "spec": {"containers": [{"name": "main", "image": "x"}]},
    });
    let made = send(&mut client, Method::POST, pods, &[], pod.to_string()).await;
    assert_eq!(made.status(), 201);
    let _ = value(made).await;
    let binding = json!({"target": {"kind": "Node", "name": "n1"}}).to_string();
    let path = format!("{pods}/new/binding");
    for code in [201, 409] {
        let bound = send(&mut client, Method::POST, &path, &[], binding.clone()).await;
        assert_eq!(bound.status(), code);
        let _ = value(bound).await;
    }
    let (_, bound) = get(&mut client, &format!("{pods}/new")).await;
    assert_eq!(bound["spec"]["nodeName"], "n1");
    let eviction = json!({"metadata": {"name": "web"}, "deleteOptions": {"gracePeriodSeconds": 0}});
    let path = format!("{pods}/web/eviction");
    let evicted = send(&mut client, Method::POST, &path, &[], eviction.to_string()).await;
    assert_eq!(evicted.status(), 201);
    let _ = value(evicted).await;
    assert_eq!(get(&mut client, &format!("{pods}/web")).await.0, 404);
}

#[tokio::test]
async fn servers_join_by_a_token_and_are_listed_for_who_may() {
    let platform = Platform::start().await;
    let mut client = local(&platform).await;
    let join = "/dhow/v1/join";
    // Root's socket is no token.
    for bearer in ["", "Bearer wrong", "open sesame"] {
        let headers = [("authorization", bearer)];
        let refused = send(&mut client, Method::POST, join, &headers, "{}").await;
        assert_eq!(refused.status(), 401, "{bearer}");
    }
    let shown = [("authorization", "Bearer open sesame")];
    let joined = send(&mut client, Method::POST, join, &shown, r#"{"name": "n2"}"#).await;
    assert_eq!(value(joined).await, json!({"joined": {"name": "n2"}}));
    let withdrawn = send(&mut client, Method::DELETE, join, &shown, r#"{"name": "n2"}"#).await;
    assert_eq!(value(withdrawn).await, json!({"withdrawn": {"name": "n2"}}));
    for (method, body, code) in [(Method::GET, "{}", 405), (Method::POST, "x", 400)] {
        assert_eq!(send(&mut client, method, join, &shown, body).await.status(), code);
    }
    let list = "/dhow/v1/servers";
    assert_eq!(get(&mut client, list).await, (200, json!({"items": ["n1"]})));
    let removed = send(&mut client, Method::DELETE, "/dhow/v1/servers/n1", &[], "").await;
    assert_eq!(value(removed).await, json!({"removed": "n1"}));
    assert_eq!(send(&mut client, Method::DELETE, list, &[], "").await.status(), 405);
    // The API's rules hold for these.
    let guest = [("impersonate-user", "guest")];
    let refused = send(&mut client, Method::GET, list, &guest, "").await;
    assert_eq!(refused.status(), 403);
}
