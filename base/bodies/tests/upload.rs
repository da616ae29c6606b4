//! A server that refuses whatever is sent, without a look at it.

use dhow_bodies::{MOST, Upload};
use http_body_util::{BodyExt as _, Full};
use hyper::body::{Bytes, Incoming};
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use std::convert::Infallible;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, DuplexStream};

async fn refuse(request: Request<Incoming>) -> Result<Response<Full<Bytes>>, Infallible> {
    drop(Upload::of(request));
    let mut answer = Response::new(Full::new(Bytes::from_static(b"no")));
    *answer.status_mut() = StatusCode::FORBIDDEN;
    Ok(answer)
}

/// The client's end of a connection to it.
fn connect() -> DuplexStream {
    let (client, server) = tokio::io::duplex(64 << 10);
    tokio::spawn(async move {
        let service = hyper::service::service_fn(refuse);
        let connection = hyper::server::conn::http1::Builder::new();
        let _ = connection.serve_connection(TokioIo::new(server), service).await;
    });
    client
}

/// Reads one answer and nothing more.
async fn answer(client: &mut DuplexStream) -> String {
    let mut text = Vec::new();
    while !text.ends_with(b"no") {
        text.push(client.read_u8().await.unwrap());
    }
    String::from_utf8(text).unwrap()
}

fn head(length: usize, more: &str) -> Vec<u8> {
    format!("POST / HTTP/1.1\r\nhost: h\r\ncontent-length: {length}\r\n{more}\r\n").into_bytes()
}

#[tokio::test]
async fn the_rest_is_sent_after_the_answer_and_the_connection_goes_on() {
    let mut client = connect();
    for _ in 0..3 {
        client.write_all(&head(MOST, "")).await.unwrap();
        assert!(answer(&mut client).await.starts_with("HTTP/1.1 403"));
        client.write_all(&vec![b'x'; MOST]).await.unwrap();
    }
}

#[tokio::test]
async fn chunks_are_read_to_their_end() {
    let mut client = connect();
    for _ in 0..2 {
        let head = b"POST / HTTP/1.1\r\nhost: h\r\ntransfer-encoding: chunked\r\n\r\n";
        client.write_all(head).await.unwrap();
        assert!(answer(&mut client).await.starts_with("HTTP/1.1 403"));
        client.write_all(b"3\r\nabc\r\n0\r\n\r\n").await.unwrap();
    }
}

#[tokio::test]
async fn who_sends_without_end_is_cut_off() {
    let mut client = connect();
    client.write_all(&head(usize::MAX / 2, "")).await.unwrap();
    assert!(answer(&mut client).await.starts_with("HTTP/1.1 403"));
    let mut sent = 0;
    while client.write_all(&[b'x'; 4096]).await.is_ok() {
        sent += 4096;
        assert!(sent < MOST + (1 << 20), "{sent}");
    }
    assert!(sent >= MOST, "{sent}");
}

#[tokio::test(start_paused = true)]
async fn who_sends_nothing_holds_no_connection() {
    let mut client = connect();
    client.write_all(&head(1, "")).await.unwrap();
    assert!(answer(&mut client).await.starts_with("HTTP/1.1 403"));
    assert_eq!(client.read(&mut [0]).await.unwrap(), 0);
}

#[tokio::test]
async fn a_stream_of_http_2_is_sent_to_its_end_as_well() {
    let (client, server) = tokio::io::duplex(64 << 10);
    let executor = hyper_util::rt::TokioExecutor::new();
    tokio::spawn(
        hyper::server::conn::http2::Builder::new(executor.clone())
            .serve_connection(TokioIo::new(server), hyper::service::service_fn(refuse)),
    );
    let (mut sender, connection) =
        hyper::client::conn::http2::handshake(executor, TokioIo::new(client)).await.unwrap();
    tokio::spawn(connection);
    let (mut pieces, body) = http_body_util::channel::Channel::<Bytes>::new(1);
    let request = Request::post("http://h/").body(body).unwrap();
    let answer = sender.send_request(request).await.unwrap();
    assert_eq!(answer.status(), StatusCode::FORBIDDEN);
    assert_eq!(answer.into_body().collect().await.unwrap().to_bytes(), "no");
    // A stream that was reset takes nothing more.
    for _ in 0..64 {
        pieces.send_data(vec![b'x'; 64 << 10].into()).await.unwrap();
    }
}

#[tokio::test]
async fn who_waits_for_leave_gets_none() {
    let mut client = connect();
    client.write_all(&head(1, "expect: 100-continue\r\n")).await.unwrap();
    assert!(answer(&mut client).await.starts_with("HTTP/1.1 403"));
    assert_eq!(client.read(&mut [0]).await.unwrap(), 0);
}
