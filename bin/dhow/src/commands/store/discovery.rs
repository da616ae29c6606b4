//! Members that find each other at another etcd, as with etcd's own discovery over v3.
//!
//! Whoever begins a cluster writes how many members it has under `/_etcd/registry/TOKEN/_config/size`
//! of that etcd. Each member puts `NAME=URL,NAME=URL` under `/_etcd/registry/TOKEN/members/ID` and waits
//! until that many have. Those that came first are the cluster; another one is told that it is full.

use super::flags::Values;
use super::settings::parse_cluster;
use anyhow::{Context as _, Result, bail};
use dhow_clock::SharedClock;
use dhow_kv::{Backend, Error, KeyValue, Op, Range, Span, Txn, WatchRequest};
use dhow_remote::{ConnectError, Remote, Tls};
use std::time::Duration;

/// The first pause before the other etcd is asked again; each is twice the one before.
const PAUSE: Duration = Duration::from_secs(2);
/// The longest.
const LONGEST_PAUSE: Duration = Duration::from_secs(256);
/// Go's gRPC asks no more often whether a connection is alive.
const LEAST_KEEP_ALIVE: Duration = Duration::from_secs(10);

/// Where members find each other.
#[derive(Debug, Clone)]
pub struct Discovery {
    /// Which of the clusters that are registered there.
    token: String,
    /// How the other etcd is reached.
    options: dhow_remote::Options,
}

/// Why the others were not found.
#[derive(Debug, thiserror::Error)]
enum Failure {
    /// Asking again may help.
    #[error("{0}")]
    Passing(String),
    /// It will not.
    #[error("{0}")]
    Lasting(String),
}

impl From<ConnectError> for Failure {
    fn from(error: ConnectError) -> Self {
        match error {
            ConnectError::Unreachable { .. } => Self::Passing(error.to_string()),
            ConnectError::Refused(refusal) => refusal.into(),
            lasting => Self::Lasting(lasting.to_string()),
        }
    }
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        match error {
            Error::PermissionDenied | Error::AuthFailed | Error::UserNameEmpty => {
                Self::Lasting(error.to_string())
            }
            passing => Self::Passing(passing.to_string()),
        }
    }
}

impl Discovery {
    /// What the flags say; `None` when they say nothing of discovery.
    ///
    /// # Errors
    /// When they contradict each other, or a file cannot be read.
    pub fn new(values: &Values) -> Result<Option<Self>> {
        let (token, endpoints) =
            (values.text("discovery-token"), values.list("discovery-endpoints"));
        if token.is_empty() != endpoints.is_empty() {
            bail!("both --discovery-token and --discovery-endpoints must be set");
        }
        if endpoints.is_empty() {
            return Ok(None);
        }
        let read = |flag: &str| match values.text(flag) {
            "" => Ok(None),
            path => std::fs::read(path)
                .map(Some)
                .with_context(|| format!("cannot read {path}, which --{flag} names")),
        };
        let (ca, cert, key) =
            (read("discovery-cacert")?, read("discovery-cert")?, read("discovery-key")?);
        if cert.is_some() != key.is_some() {
            bail!("--discovery-cert and --discovery-key go together: one of them is missing");
        }
        let mut options = dhow_remote::Options::new(&endpoints);
        let secure = ca.is_some()
            || cert.is_some()
            || !values.bool("discovery-insecure-transport")
            || endpoints.iter().any(|endpoint| endpoint.starts_with("https://"));
        if secure {
            options.tls = Some(Tls {
                ca,
                identity: cert.zip(key),
                server_name: None,
                any_server: values.bool("discovery-insecure-skip-tls-verify"),
            });
        }
        options.user = user(values.text("discovery-user"), values.text("discovery-password"))?;
        options.connect = values.duration("discovery-dial-timeout");
        options.timeout = values.duration("discovery-request-timeout");
        options.keep_alive = values.duration("discovery-keepalive-time").max(LEAST_KEEP_ALIVE);
        options.keep_alive_timeout = values.duration("discovery-keepalive-timeout");
        Ok(Some(Self { token: token.to_owned(), options }))
    }

    /// Which of the clusters that are registered there.
    pub fn token(&self) -> &str {
        &self.token
    }

    /// Registers a member, and waits for the others: the first members of the cluster.
    ///
    /// # Errors
    /// When the cluster is not announced there, or has enough members already.
    pub async fn join(
        &self,
        id: u64,
        name: &str,
        urls: &[String],
        clock: &SharedClock,
    ) -> Result<Vec<(String, Vec<String>)>> {
        let entry: Vec<String> = urls.iter().map(|url| format!("{name}={url}")).collect();
        let own = Entry { key: self.key(&format!("members/{id:x}")), value: entry.join(",") };
        tracing::info!(discovery_token = self.token, "Bootstrapping cluster using v3 discovery.");
        let mut pause = PAUSE;
        loop {
            match self.attempt(&own, clock).await {
                Ok(cluster) => {
                    tracing::info!(cluster, "discovery joined cluster successfully");
                    return parse_cluster(&cluster).context("what other members registered");
                }
                Err(Failure::Lasting(why)) => bail!(
                    "cannot join the cluster {} by discovery at {}: {why}",
                    self.token,
                    self.options.endpoints.join(",")
                ),
                Err(Failure::Passing(why)) => {
                    tracing::warn!(%why, backoff = ?pause, "retry connecting to discovery service");
                    clock.sleep(pause).await;
                    pause = (pause * 2).min(LONGEST_PAUSE);
                }
            }
        }
    }

    fn key(&self, rest: &str) -> String {
        format!("/_etcd/registry/{}/{rest}", self.token)
    }

    async fn attempt(&self, own: &Entry, clock: &SharedClock) -> Result<String, Failure> {
        let store = Remote::connect(self.options.clone(), clock.clone()).await?;
        let store: &dyn Backend = store.as_ref();
        let size = self.size(store).await?;
        let mut registered = false;
        loop {
            let (revision, members) = self.members(store).await?;
            let first = &members[..members.len().min(size)];
            let is_first = first.iter().any(|member| member.key == own.key.as_bytes());
            if first.len() == size && !is_first {
                return Err(Failure::Lasting("discovery: cluster is full".to_owned()));
            }
            if !registered {
                let put = Op::put(own.key.clone(), own.value.clone());
                store.txn(Txn { success: vec![put], ..Txn::default() }).await?;
                registered = true;
                continue;
            }
            if first.len() == size {
                let values = first.iter().map(|member| String::from_utf8_lossy(&member.value));
                return Ok(values.collect::<Vec<_>>().join(","));
            }
            tracing::info!(size, found = first.len(), "waiting for peers from discovery service");
            let span = Span::prefix(self.key("members/"));
            let (start_revision, prev_kv) = (revision + 1, false);
            let mut watch = store.watch(WatchRequest { span, start_revision, prev_kv })?;
            // Whatever it was: what there is now is read again.
            watch.next().await;
        }
    }

    /// How many members the cluster is to have.
    async fn size(&self, store: &dyn Backend) -> Result<usize, Failure> {
        let key = self.key("_config/size");
        let found = store.range(Range::all(Span::Key(key.clone().into()))).await?;
        let lasting = |what| Failure::Lasting(format!("discovery: size key {what} ({key})"));
        let size = found.kvs.first().ok_or_else(|| lasting("not found"))?;
        let size = std::str::from_utf8(&size.value).ok().and_then(|text| text.parse().ok());
        size.filter(|size| *size > 0).ok_or_else(|| lasting("is bad"))
    }

    /// The revision, and who has registered, in the order in which they did.
    async fn members(&self, store: &dyn Backend) -> Result<(i64, Vec<KeyValue>), Failure> {
        let found = store.range(Range::all(Span::prefix(self.key("members/")))).await?;
        let mut members = found.kvs;
        // What is no member is not counted, as in etcd.
        members.retain(|member| member.value.contains(&b'='));
        members.sort_by_key(|member| member.create_revision);
        Ok((found.revision, members))
    }
}

/// What a member registers.
struct Entry {
    key: String,
    value: String,
}

/// A name and its password, which may stand behind the name.
fn user(name: &str, password: &str) -> Result<Option<(String, String)>> {
    match (name.split_once(':'), password) {
        _ if name.is_empty() => Ok(None),
        (Some((name, password)), "") => Ok(Some((name.to_owned(), password.to_owned()))),
        (None, "") => bail!("--discovery-user {name} needs a password: give --discovery-password"),
        (None, password) => Ok(Some((name.to_owned(), password.to_owned()))),
        (Some(_), _) => {
            bail!("--discovery-user has a password already: leave out --discovery-password")
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use dhow_clock::System;
    use dhow_door_etcd::Door;
    use dhow_kv::Kv;
    use dhow_server::Store;
    use std::sync::Arc;
    use tokio_util::sync::CancellationToken;

    fn discovery(line: &str) -> Result<Option<Discovery>> {
        let words: Vec<String> = line.split_whitespace().map(str::to_owned).collect();
        Discovery::new(&Values::parse(&words)?)
    }

    fn refused(line: &str) -> String {
        discovery(line).unwrap_err().to_string()
    }

    /// Another etcd, and how members find each other there.
    async fn other() -> (Arc<Store>, Discovery) {
        let store = Store::memory(System::shared());
        let door = Door::new(Kv::new(store.clone()), store.clone(), Default::default());
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        tokio::spawn(door.serve(listener, None, CancellationToken::new()));
        let line = format!("--discovery-token t --discovery-endpoints http://{address}");
        (store, discovery(&line).unwrap().unwrap())
    }

    async fn announce(store: &Store, size: &'static str) {
        let put = Op::put("/_etcd/registry/t/_config/size", size);
        store.txn(Txn { success: vec![put], ..Txn::default() }).await.unwrap();
    }

    async fn join(discovery: &Discovery, id: u64) -> Result<Vec<(String, Vec<String>)>> {
        let urls = [format!("http://m{id}:1"), format!("http://m{id}:2")];
        discovery.join(id, &format!("m{id}"), &urls, &System::shared()).await
    }

    #[tokio::test]
    async fn members_wait_for_each_other_and_agree_who_they_are() {
        let (store, discovery) = other().await;
        announce(&store, "3").await;
        let one = {
            let discovery = discovery.clone();
            tokio::spawn(async move { join(&discovery, 10).await })
        };
        let two = {
            let discovery = discovery.clone();
            tokio::spawn(async move { join(&discovery, 11).await })
        };
        let found = join(&discovery, 12).await.unwrap();
        assert_eq!(one.await.unwrap().unwrap(), found);
        assert_eq!(two.await.unwrap().unwrap(), found);
        let all: Vec<_> = found.iter().map(|(name, urls)| (name.as_str(), urls.len())).collect();
        assert_eq!(all, [("m10", 2), ("m11", 2), ("m12", 2)]);
        // As etcd's members would find them.
        let key = Span::Key("/_etcd/registry/t/members/a".into());
        let own = store.range(Range::all(key)).await.unwrap();
        assert_eq!(own.kvs[0].value, "m10=http://m10:1,m10=http://m10:2");
        // Whoever asks again is still one of them; another one comes too late.
        assert_eq!(join(&discovery, 11).await.unwrap(), found);
        let late = join(&discovery, 13).await.unwrap_err().to_string();
        assert!(late.contains("cluster is full"), "{late}");
    }

    #[tokio::test]
    async fn a_cluster_must_be_announced() {
        let (store, discovery) = other().await;
        let missing = join(&discovery, 1).await.unwrap_err().to_string();
        assert!(
            missing.contains("size key not found (/_etcd/registry/t/_config/size)"),
            "{missing}"
        );
        for bad in ["0", "three"] {
            announce(&store, bad).await;
            let bad = join(&discovery, 1).await.unwrap_err().to_string();
            assert!(bad.contains("size key is bad"), "{bad}");
        }
    }

    #[test]
    fn flags_that_contradict_each_other_are_refused() {
        assert!(discovery("").unwrap().is_none());
        assert!(refused("--discovery-token t").contains("must be set"));
        assert!(refused("--discovery-endpoints a:1").contains("must be set"));
        let some = "--discovery-token t --discovery-endpoints a:1,b:1";
        assert!(refused(&format!("{some} --discovery-cert c")).contains("cannot read c"));
        assert!(refused(&format!("{some} --discovery-user u")).contains("--discovery-password"));
        let of = |line: &str| discovery(&format!("{some} {line}")).unwrap().unwrap().options;
        assert!(of("").tls.is_none());
        assert!(!of("--discovery-insecure-transport=false").tls.unwrap().any_server);
        let user = of("--discovery-user u:p").user;
        assert_eq!(user, of("--discovery-user u --discovery-password p").user);
        // Go's own least.
        assert_eq!(of("").keep_alive, Duration::from_secs(10));
    }
}
