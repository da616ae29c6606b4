//! Where the platform's data are: in the embedded store, or in an external etcd cluster.
//!
//! An external cluster must hold this platform's data or none. Whose they are is written under
//! [`OWNER`] at the first start: the fingerprint of the platform's authority, which is what makes it
//! the same platform wherever its data directory goes. Two platforms over one set of keys would
//! delete each other's pods, so that the second one is refused.

use crate::member::{self, Member, Place};
use crate::print::quoted;
use anyhow::{Context, Result, bail};
use dhow_clock::SharedClock;
use dhow_kv::{Backend, Compare, Kv, Op, OpResult, Order, Range, Span, Target, Txn};
use dhow_remote::{ConnectError, Remote, Tls};
use serde::{Deserialize, Serialize};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

/// The key that says whose data the cluster holds.
const OWNER: &str = "/dhow/platform";

/// Where objects are kept.
const OBJECTS: &str = "/registry/";

/// An external etcd cluster, as `DATA/config.json` keeps it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct Datastore {
    /// Its members.
    pub endpoints: Vec<String>,
    /// The authority that signs the members' certificates.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ca: Option<PathBuf>,
    /// Our certificate.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cert: Option<PathBuf>,
    /// Its key.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key: Option<PathBuf>,
    /// Our name, when the cluster asks for users.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub user: Option<String>,
    /// The file that holds our password.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub password_file: Option<PathBuf>,
}

/// The flags of an external cluster.
#[derive(Debug, Clone, Default, clap::Args)]
#[group(skip)]
pub struct Flags {
    /// Keep the data in this etcd cluster (3.4 or newer) instead of the embedded store
    #[arg(long, value_name = "URL,...", value_delimiter = ',')]
    pub datastore: Vec<String>,
    /// Authority that signs the certificates of the etcd cluster
    #[arg(long, value_name = "FILE", alias = "datastore-cafile", requires = "datastore")]
    pub datastore_ca: Option<PathBuf>,
    /// Certificate to show to the etcd cluster
    #[arg(long, value_name = "FILE", alias = "datastore-certfile", requires = "datastore_key")]
    pub datastore_cert: Option<PathBuf>,
    /// Key of that certificate
    #[arg(long, value_name = "FILE", alias = "datastore-keyfile", requires = "datastore_cert")]
    pub datastore_key: Option<PathBuf>,
    /// User to be to the etcd cluster
    #[arg(long, value_name = "NAME", requires = "datastore_password_file")]
    pub datastore_user: Option<String>,
    /// File that holds this user's password
    #[arg(long, value_name = "FILE", requires = "datastore_user")]
    pub datastore_password_file: Option<PathBuf>,
}

impl Flags {
    /// What the flags say, with paths that hold wherever the platform is started from next time.
    ///
    /// # Errors
    /// When a path cannot be made absolute.
    pub fn datastore(&self) -> Result<Option<Datastore>> {
        if self.datastore.is_empty() {
            return Ok(None);
        }
        let absolute = |path: &Option<PathBuf>| path.as_ref().map(std::path::absolute).transpose();
        Ok(Some(Datastore {
            endpoints: self.datastore.clone(),
            ca: absolute(&self.datastore_ca)?,
            cert: absolute(&self.datastore_cert)?,
            key: absolute(&self.datastore_key)?,
            user: self.datastore_user.clone(),
            password_file: absolute(&self.datastore_password_file)?,
        }))
    }
}

impl std::fmt::Display for Datastore {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.endpoints.join(","))
    }
}

impl Datastore {
    fn is_secure(&self) -> bool {
        self.ca.is_some()
            || self.cert.is_some()
            || self.endpoints.iter().any(|e| e.starts_with("https://"))
    }

    /// The lines of `DATA/env` that point etcd's clients at the cluster. They know the password of a
    /// user themselves.
    pub fn exports(&self) -> String {
        let scheme = if self.is_secure() { "https" } else { "http" };
        let endpoint = |e: &String| match e.contains("://") {
            true => e.clone(),
            false => format!("{scheme}://{e}"),
        };
        let endpoints: Vec<String> = self.endpoints.iter().map(endpoint).collect();
        let mut lines = format!("export ETCDCTL_ENDPOINTS='{}'\n", endpoints.join(","));
        let files = [("CACERT", &self.ca), ("CERT", &self.cert), ("KEY", &self.key)];
        for (name, path) in files {
            if let Some(path) = path {
                lines += &format!("export ETCDCTL_{name}={}\n", quoted(path));
            }
        }
        lines
    }

    /// How the cluster is reached, with the files read.
    ///
    /// # Errors
    /// When a file cannot be read.
    pub fn options(&self) -> Result<dhow_remote::Options> {
        let read = |path: &Option<PathBuf>| {
            path.as_ref()
                .map(|path| {
                    std::fs::read(path).with_context(|| {
                        format!(
                            "cannot read {}, which the etcd cluster is reached with",
                            path.display()
                        )
                    })
                })
                .transpose()
        };
        let mut options = dhow_remote::Options::new(&self.endpoints);
        let (ca, cert, key) = (read(&self.ca)?, read(&self.cert)?, read(&self.key)?);
        if self.is_secure() {
            options.tls = Some(Tls { ca, identity: cert.zip(key), ..Tls::default() });
        }
        if let Some(user) = &self.user {
            let password = read(&self.password_file)?.unwrap_or_default();
            let password = String::from_utf8_lossy(&password).trim_end().to_owned();
            options.user = Some((user.clone(), password));
        }
        Ok(options)
    }
}

/// An open store.
pub struct Opened {
    /// The handle that everybody uses.
    pub kv: Kv,
    /// The store of this process, unless the data are elsewhere.
    pub member: Option<Member>,
}

/// Opens the store that the configuration names.
///
/// # Errors
/// What is wrong with it, and what to do.
pub async fn open(place: Place<'_>, clock: &SharedClock) -> Result<Opened> {
    let (config, pki) = (place.config, place.pki);
    let Some(datastore) = &config.datastore else {
        let member = member::open(place, clock).await?;
        return Ok(Opened { kv: Kv::new(member.store.clone()), member: Some(member) });
    };
    let remote = Remote::connect(datastore.options()?, clock.clone()).await.map_err(advice)?;
    claim(remote.as_ref(), datastore, &config.name, &pki.fingerprint()?).await?;
    tokio::spawn(compact(remote.clone(), clock.clone()));
    tracing::info!(endpoints = %datastore, cluster = format!("{:x}", remote.cluster_id()), "the data are in an external etcd cluster");
    Ok(Opened { kv: Kv::new(remote), member: None })
}

/// How often old history is looked for. Watches that are interrupted for less find what they missed.
const COMPACTION: Duration = Duration::from_secs(300);

/// How many revisions of history stay, for who looks at what was: a few hundred megabytes.
const HISTORY: i64 = 100_000;

/// Forgets old history, which etcd keeps for ever unless it is told otherwise. Ends with the process.
async fn compact(store: Arc<Remote>, clock: SharedClock) {
    let (mut earlier, mut compacted) = (store.revision(), 0);
    loop {
        clock.sleep(COMPACTION).await;
        let now = store.revision();
        if let Some(target) = due(now, earlier, compacted) {
            match store.compact(target, false).await {
                // Somebody else was faster.
                Ok(_) | Err(dhow_kv::Error::Compacted) => compacted = target,
                Err(error) => tracing::warn!(%error, "the store's history cannot be compacted"),
            }
        }
        earlier = now;
    }
}

/// Up to where history is to be forgotten, when that is worth it.
fn due(now: i64, earlier: i64, compacted: i64) -> Option<i64> {
    let target = (now - HISTORY).min(earlier);
    (target - compacted >= HISTORY / 10).then_some(target)
}

/// What to do about a cluster that cannot be used, in the words of our flags.
fn advice(error: ConnectError) -> anyhow::Error {
    let flag = match &error {
        ConnectError::Untrusted { .. } => "--datastore-ca",
        ConnectError::NotTrusted { .. } => "--datastore-cert and --datastore-key",
        ConnectError::Refused(dhow_kv::Error::UserNameEmpty | dhow_kv::Error::AuthFailed) => {
            "--datastore-user and --datastore-password-file"
        }
        ConnectError::Unreachable { .. } => {
            return anyhow::anyhow!("{error}; start it, or name its members with --datastore");
        }
        ConnectError::Refused(dhow_kv::Error::Unhealthy | dhow_kv::Error::Unreachable(_)) => {
            return anyhow::anyhow!("{error}; it needs a majority of its members");
        }
        _ => "--datastore",
    };
    anyhow::anyhow!("{error} (see {flag})")
}

/// Whose data a cluster holds.
#[derive(Debug, Serialize, Deserialize)]
struct Owner {
    /// Fingerprint of the platform's authority.
    authority: String,
    /// The machine that started it first.
    machine: String,
}

/// Writes that the cluster's data are this platform's, or finds that they are.
async fn claim(store: &dyn Backend, datastore: &Datastore, machine: &str, own: &str) -> Result<()> {
    let absent = |span| Compare { span, order: Order::Equal, target: Target::CreateRevision(0) };
    let owner = Owner { authority: own.to_owned(), machine: machine.to_owned() };
    let claim = Txn {
        compare: vec![absent(Span::Key(OWNER.into())), absent(Span::prefix(OBJECTS))],
        success: vec![Op::put(OWNER, serde_json::to_vec(&owner)?)],
        failure: vec![Op::Range(Range::all(Span::Key(OWNER.into())))],
    };
    let answer = store.txn(claim).await.context("cannot use the etcd cluster")?;
    if answer.succeeded {
        return Ok(());
    }
    let found = match answer.results.first() {
        Some(OpResult::Range(found)) => found.kvs.first(),
        _ => None,
    };
    let Some(found) = found else {
        bail!(
            "the etcd cluster at {datastore} holds objects under {OBJECTS} that are not dhow's, perhaps another Kubernetes': use a cluster of its own"
        );
    };
    let owner: Owner = serde_json::from_slice(&found.value)
        .with_context(|| format!("{OWNER} in the etcd cluster at {datastore} is not understood"))?;
    if owner.authority == own {
        return Ok(());
    }
    bail!(
        "the etcd cluster at {datastore} holds the data of another dhow platform, first started on machine {}: start that one by its own data directory, or use another cluster",
        owner.machine
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        flags: Flags,
    }

    fn parse(line: &str) -> Result<Line, clap::Error> {
        Line::try_parse_from(line.split(' '))
    }

    #[test]
    fn k3s_names_of_flags_are_known() {
        let line = "up --datastore https://a:2379,https://b:2379 --datastore-cafile /ca \
                    --datastore-certfile /c --datastore-keyfile /k";
        let datastore = parse(line).unwrap().flags.datastore().unwrap().unwrap();
        assert_eq!(datastore.endpoints.len(), 2);
        assert_eq!(datastore.key, Some("/k".into()));
        assert_eq!(datastore.to_string(), "https://a:2379,https://b:2379");
        let exports = datastore.exports();
        assert!(exports.contains("ETCDCTL_ENDPOINTS='https://a:2379,https://b:2379'"), "{exports}");
        assert!(exports.contains("ETCDCTL_KEY=/k"), "{exports}");
        // A certificate without its key says nothing, and certificates without a cluster neither.
        assert!(parse("up --datastore a:1 --datastore-cert /c").is_err());
        assert!(parse("up --datastore-ca /c").is_err());
        assert_eq!(parse("up").unwrap().flags.datastore().unwrap(), None);
    }

    #[test]
    fn history_is_kept_for_a_while_and_forgotten_in_large_pieces() {
        assert_eq!(due(HISTORY, 10, 0), None);
        assert_eq!(due(2 * HISTORY, 2 * HISTORY, 0), Some(HISTORY));
        assert_eq!(due(2 * HISTORY + 1, 2 * HISTORY, HISTORY), None);
        // What was written within the last minutes is not forgotten, however much it is.
        assert_eq!(due(9 * HISTORY, 2 * HISTORY, 0), Some(2 * HISTORY));
        assert_eq!(due(9 * HISTORY, 10, 0), None);
    }

    #[test]
    fn files_that_cannot_be_read_are_named() {
        let line = "up --datastore https://a:1 --datastore-ca /none/ca.crt";
        let datastore = parse(line).unwrap().flags.datastore().unwrap().unwrap();
        assert!(datastore.options().unwrap_err().to_string().contains("/none/ca.crt"));
    }
}
