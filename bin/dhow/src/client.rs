//! The command line's own client: the Kubernetes API over the platform's local socket.

use anyhow::{Context, Result, anyhow, bail};
use bytes::Bytes;
use http::{Method, Request, StatusCode};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper_util::rt::TokioIo;
use serde_json::Value;
use std::path::{Path, PathBuf};
use tokio::net::UnixStream;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::client::IntoClientRequest;
use tokio_tungstenite::tungstenite::http::HeaderValue;

/// A platform's local socket.
#[derive(Debug, Clone)]
pub struct Client {
    socket: PathBuf,
}

/// A refusal of the API, as its `Status` object tells it.
#[derive(Debug, thiserror::Error)]
#[error("{message}")]
pub struct Refused {
    /// HTTP status.
    pub code: StatusCode,
    /// One line.
    pub message: String,
}

/// Where the platform of `data` listens for this machine's root.
pub fn socket(data: &Path) -> PathBuf {
    data.join("dhow.sock")
}

impl Client {
    /// A client of the platform in `data`.
    pub fn new(data: &Path) -> Self {
        Self { socket: socket(data) }
    }

    async fn connect(&self) -> Result<UnixStream> {
        UnixStream::connect(&self.socket).await.map_err(|e| {
            let data = self.socket.parent().unwrap_or(Path::new("/"));
            match e.kind() {
                std::io::ErrorKind::PermissionDenied => {
                    anyhow!("cannot reach dhow in {}: only root may; use sudo", data.display())
                }
                _ => anyhow!(
                    "no dhow answers in {} ({e}); start it with 'dhow up --data-dir {}'",
                    data.display(),
                    data.display()
                ),
            }
        })
    }

    /// Sends a request; the answer's body has not been read.
    ///
    /// # Errors
    /// When nobody answers, or [`Refused`].
    pub async fn send(
        &self,
        method: Method,
        path: &str,
        content_type: &str,
        body: Bytes,
    ) -> Result<http::Response<Incoming>> {
        let stream = self.connect().await?;
        let (mut sender, connection) =
            hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
        // Ends by itself when the sender and the answer's body are gone.
        tokio::spawn(connection);
        let request = Request::builder()
            .method(method)
            .uri(path)
            .header("host", "localhost")
            .header("accept", "application/json")
            .header("content-type", content_type)
            .header("user-agent", concat!("dhow/", env!("CARGO_PKG_VERSION")))
            .body(Full::new(body))?;
        let response =
            sender.send_request(request).await.context("the platform closed the connection")?;
        if response.status().is_success() {
            return Ok(response);
        }
        let code = response.status();
        let body = response.into_body().collect().await?.to_bytes();
        let message = serde_json::from_slice::<Value>(&body)
            .ok()
            .and_then(|v| v["message"].as_str().map(str::to_owned))
            .unwrap_or_else(|| String::from_utf8_lossy(&body).trim().to_owned());
        Err(Refused { code, message }.into())
    }

    async fn json(
        &self,
        method: Method,
        path: &str,
        content_type: &str,
        body: Bytes,
    ) -> Result<Value> {
        let response = self.send(method, path, content_type, body).await?;
        let body = response.into_body().collect().await?.to_bytes();
        serde_json::from_slice(&body).with_context(|| format!("the answer to {path} is no JSON"))
    }

    /// Reads an object or a list.
    ///
    /// # Errors
    /// As [`Client::send`].
    pub async fn get(&self, path: &str) -> Result<Value> {
        self.json(Method::GET, path, "application/json", Bytes::new()).await
    }

    /// Makes an object.
    ///
    /// # Errors
    /// As [`Client::send`].
    pub async fn post(&self, path: &str, object: &Value) -> Result<Value> {
        self.json(Method::POST, path, "application/json", serde_json::to_vec(object)?.into()).await
    }

    /// Applies an object (server-side).
    ///
    /// # Errors
    /// As [`Client::send`].
    pub async fn apply(&self, path: &str, object: &Value) -> Result<Value> {
        let path = format!("{path}?fieldManager=dhow&force=true&fieldValidation=Strict");
        let body = serde_json::to_vec(object)?.into();
        self.json(Method::PATCH, &path, "application/apply-patch+yaml", body).await
    }

    /// Deletes an object.
    ///
    /// # Errors
    /// As [`Client::send`].
    pub async fn delete(&self, path: &str, options: &Value) -> Result<Value> {
        self.json(Method::DELETE, path, "application/json", serde_json::to_vec(options)?.into())
            .await
    }

    /// A table, as the API prints it for people.
    ///
    /// # Errors
    /// As [`Client::send`].
    pub async fn table(&self, path: &str) -> Result<Value> {
        let stream = self.connect().await?;
        let (mut sender, connection) =
            hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
        tokio::spawn(connection);
        let request = Request::get(path)
            .header("host", "localhost")
            .header("accept", "application/json;as=Table;v=v1;g=meta.k8s.io,application/json")
            .body(Full::new(Bytes::new()))?;
        let response = sender.send_request(request).await?;
        let code = response.status();
        let value: Value =
            serde_json::from_slice(&response.into_body().collect().await?.to_bytes())?;
        if !code.is_success() {
            let message = value["message"].as_str().unwrap_or("refused").to_owned();
            return Err(Refused { code, message }.into());
        }
        Ok(value)
    }

    /// Follows a watch.
    ///
    /// # Errors
    /// As [`Client::send`].
    pub async fn watch(&self, path: &str) -> Result<Watch> {
        let response = self.send(Method::GET, path, "application/json", Bytes::new()).await?;
        Ok(Watch { body: response.into_body(), pending: Vec::new() })
    }

    /// Opens a stream of channels (exec, attach) with the newest remote-command protocol.
    ///
    /// # Errors
    /// When nobody answers or the API refuses.
    pub async fn channels(&self, path: &str) -> Result<WebSocketStream<UnixStream>> {
        let stream = self.connect().await?;
        let mut request = format!("ws://localhost{path}").into_client_request()?;
        request
            .headers_mut()
            .insert("sec-websocket-protocol", HeaderValue::from_static("v5.channel.k8s.io"));
        match tokio_tungstenite::client_async(request, stream).await {
            Ok((socket, _)) => Ok(socket),
            Err(tokio_tungstenite::tungstenite::Error::Http(response)) => {
                let message = response
                    .body()
                    .as_deref()
                    .and_then(|b| serde_json::from_slice::<Value>(b).ok())
                    .and_then(|v| v["message"].as_str().map(str::to_owned))
                    .unwrap_or_else(|| format!("the platform answered {}", response.status()));
                bail!("{message}")
            }
            Err(e) => Err(e).context("cannot open the stream"),
        }
    }
}

/// A watch that is followed event by event.
pub struct Watch {
    body: Incoming,
    pending: Vec<u8>,
}

impl Watch {
    /// The type and the object of the next event.
    ///
    /// # Errors
    /// When the watch fails or the platform ends it.
    pub async fn next(&mut self) -> Result<(String, Value)> {
        loop {
            if let Some(end) = self.pending.iter().position(|b| *b == b'\n') {
                let line: Vec<u8> = self.pending.drain(..=end).collect();
                let mut event: Value = serde_json::from_slice(&line)?;
                let kind = event["type"].as_str().unwrap_or_default().to_owned();
                if kind == "ERROR" {
                    bail!("{}", event["object"]["message"].as_str().unwrap_or("the watch failed"));
                }
                return Ok((kind, event["object"].take()));
            }
            let Some(frame) = self.body.frame().await else {
                bail!("the platform ended the watch; it may be stopping")
            };
            if let Ok(data) = frame?.into_data() {
                self.pending.extend_from_slice(&data);
            }
        }
    }
}

/// Whether an error is the API's 404.
pub fn is_not_found(error: &anyhow::Error) -> bool {
    error.downcast_ref::<Refused>().is_some_and(|r| r.code == StatusCode::NOT_FOUND)
}
