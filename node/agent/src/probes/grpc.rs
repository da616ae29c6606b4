//! The gRPC health check (`grpc.health.v1.Health/Check`), with its two small messages by hand.

use super::http::plain;
use http_body_util::{BodyExt, Full};
use hyper::body::Bytes;
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::net::TcpStream;

/// Asks a server for the health of one of its services.
///
/// # Errors
/// Why it is not serving.
pub async fn check(host: &str, port: u16, service: &str) -> Result<(), String> {
    let stream = TcpStream::connect((host, port)).await.map_err(|e| {
        format!("timeout: failed to connect service \"{host}:{port}\": {}", plain(&e))
    })?;
    let handshake =
        hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream));
    let (mut sender, connection) = handshake.await.map_err(|e| e.to_string())?;
    let request = hyper::Request::post(format!("http://{host}:{port}/grpc.health.v1.Health/Check"))
        .header("content-type", "application/grpc")
        .header("te", "trailers")
        .header("user-agent", "kube-probe/1.37")
        .body(Full::new(Bytes::from(encode(service))))
        .map_err(|e| e.to_string())?;
    let exchange = async move {
        let response = sender.send_request(request).await.map_err(|e| e.to_string())?;
        let early = response.headers().get("grpc-status").cloned();
        let collected = response.into_body().collect().await.map_err(|e| e.to_string())?;
        let status = collected.trailers().and_then(|t| t.get("grpc-status").cloned()).or(early);
        let code = status.as_ref().and_then(|s| s.to_str().ok()).unwrap_or("0").to_owned();
        Ok::<_, String>((code, collected.to_bytes()))
    };
    tokio::pin!(exchange);
    let answer = tokio::select! {
        answer = &mut exchange => answer,
        ended = connection => Err(ended.err().map_or_else(|| "EOF".to_owned(), |e| e.to_string())),
    };
    let (code, body) = answer?;
    match code.as_str() {
        "0" => {}
        "12" => return Err("error: this server does not implement the grpc health protocol (grpc.health.v1.Health)".into()),
        code => return Err(format!("error: health rpc failed with status code {code}")),
    }
    match decode(&body) {
        Some(1) => Ok(()),
        Some(status) => {
            let name = ["UNKNOWN", "SERVING", "NOT_SERVING", "SERVICE_UNKNOWN"];
            let name = usize::try_from(status).ok().and_then(|s| name.get(s)).unwrap_or(&"UNKNOWN");
            Err(format!("service unhealthy (responded with {name:?})"))
        }
        None => Err("error: health rpc answered with a malformed message".into()),
    }
}

/// A frame that holds `HealthCheckRequest { service = 1 }`.
fn encode(service: &str) -> Vec<u8> {
    let mut message = Vec::new();
    if !service.is_empty() {
        message.push(0x0a);
        let mut length = service.len();
        while length >= 0x80 {
            message.push((length & 0x7f) as u8 | 0x80);
            length >>= 7;
        }
        message.push((length & 0x7f) as u8);
        message.extend_from_slice(service.as_bytes());
    }
    let size = u32::try_from(message.len()).unwrap_or(u32::MAX);
    let mut frame = vec![0];
    frame.extend_from_slice(&size.to_be_bytes());
    frame.extend(message);
    frame
}

/// The status of a frame that holds `HealthCheckResponse { status = 1 }`.
fn decode(frame: &[u8]) -> Option<u64> {
    let (head, message) = frame.split_at_checked(5)?;
    if head[0] != 0 {
        return None;
    }
    match message {
        // Zero is not sent.
        [] => Some(0),
        [0x08, status, ..] => Some((*status).into()),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_are_framed() {
        assert_eq!(encode(""), [0, 0, 0, 0, 0]);
        assert_eq!(encode("ab"), [0, 0, 0, 0, 4, 0x0a, 2, b'a', b'b']);
        assert_eq!(decode(&[0, 0, 0, 0, 2, 8, 1]), Some(1));
        assert_eq!(decode(&[0, 0, 0, 0, 0]), Some(0));
        assert_eq!(decode(&[0]), None);
    }
}
