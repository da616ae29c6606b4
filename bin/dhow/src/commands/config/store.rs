//! The store that holds configuration: the platform's, or any etcd; and paths as its keys.

use super::args::Place;
use crate::config::Config;
use crate::datastore::Datastore;
use anyhow::{Context, Result, anyhow, bail};
use bytes::Bytes;
use dhow_kv::{
    Backend, Compare, KeyValue, Op, Order, Range, RangeResult, Span, Target, Txn, TxnResult,
};
use dhow_remote::{ConnectError, Remote};
use std::path::Path;
use std::sync::Arc;

/// Steps that one transaction may have, as etcd's `--max-txn-ops` is unless set.
const BATCH_STEPS: usize = 128;

/// Bytes that one transaction may have; etcd takes 1.5 MiB.
const BATCH_BYTES: usize = 1 << 20;

/// The configuration in a store.
#[derive(Debug, Clone)]
pub struct Store {
    pub remote: Arc<Remote>,
    /// What all keys begin with: empty, or ending with a slash.
    prefix: String,
}

/// The settings of a cluster in the environment file that the platform writes.
fn platform(data: &Path) -> Result<Datastore> {
    let config = Config::read(data)?;
    if let Some(datastore) = config.datastore {
        return Ok(datastore);
    }
    let path = data.join("env");
    let text = std::fs::read_to_string(&path).with_context(|| {
        format!("no dhow answers in {}: start it with 'dhow up'", data.display())
    })?;
    let variable = |name: &str| {
        text.lines().find_map(|line| {
            let (key, value) = line.trim().strip_prefix("export ")?.split_once('=')?;
            (key == name).then(|| value.trim_matches(['\'', '"']).to_owned())
        })
    };
    let Some(endpoints) = variable("ETCDCTL_ENDPOINTS") else {
        bail!(
            "{} names no endpoint of the platform's store: start it anew with this version of dhow, or name an etcd with --endpoints",
            path.display()
        );
    };
    let file = |name: &str| variable(name).map(Into::into);
    Ok(Datastore {
        endpoints: endpoints.split(',').map(str::to_owned).collect(),
        ca: file("ETCDCTL_CACERT"),
        cert: file("ETCDCTL_CERT"),
        key: file("ETCDCTL_KEY"),
        user: None,
        password_file: None,
    })
}

impl Store {
    /// Opens the store that the flags name, or the platform's.
    ///
    /// # Errors
    /// When it cannot be reached; what to do.
    pub async fn open(place: &Place) -> Result<Self> {
        let prefix = normal_prefix(&place.prefix)?;
        let asked: Vec<String> =
            place.endpoints.iter().filter(|e| !e.trim().is_empty()).cloned().collect();
        let own = asked.is_empty();
        let datastore = if own {
            platform(&place.data_dir)?
        } else {
            Datastore {
                endpoints: asked,
                ca: place.cacert.clone(),
                cert: place.cert.clone(),
                key: place.key.clone(),
                user: None,
                password_file: None,
            }
        };
        let mut options = datastore.options()?;
        if let Some((name, password)) = place.user.as_deref().and_then(|u| u.split_once(':')) {
            options.user = Some((name.to_owned(), password.to_owned()));
        }
        let remote = Remote::connect(options, dhow_clock::System::shared()).await;
        let remote = remote.map_err(|error| {
            let data = place.data_dir.display();
            match error {
                ConnectError::Unreachable { .. } if own => {
                    anyhow!("no dhow answers in {data} ({error}): start it with 'dhow up --data-dir {data}'")
                }
                ConnectError::Unreachable { .. } => {
                    anyhow!("{error}; name its members with --endpoints or ETCDCTL_ENDPOINTS")
                }
                ConnectError::Untrusted { .. } => anyhow!("{error} with --cacert or ETCDCTL_CACERT"),
                ConnectError::NotTrusted { .. } => anyhow!("{error}, with --cert and --key"),
                error => error.into(),
            }
        })?;
        Ok(Self { remote, prefix })
    }

    /// The key of a path.
    ///
    /// # Errors
    /// When the path is no key's.
    pub fn key(&self, path: &str) -> Result<Bytes> {
        let path = normal(path)?;
        if path.is_empty() {
            bail!("a path is missing: name a key, for example shop/db/host");
        }
        Ok(format!("{}{path}", self.prefix).into())
    }

    /// The keys below a path.
    ///
    /// # Errors
    /// When the path is none.
    pub fn below(&self, path: &str) -> Result<Span> {
        let path = normal(path)?;
        Ok(Span::prefix(match path.as_str() {
            "" => self.prefix.clone(),
            path => format!("{}{path}/", self.prefix),
        }))
    }

    /// The path of a key. Keys that are no text are shown as near as can be.
    pub fn path(&self, key: &[u8]) -> String {
        let own = key.strip_prefix(self.prefix.as_bytes()).unwrap_or(key);
        String::from_utf8_lossy(own).into_owned()
    }

    /// One key, at a revision of the store (0: now), and the store's revision.
    ///
    /// # Errors
    /// As the store's; a forgotten revision is told with what to do.
    pub async fn get(&self, path: &str, revision: i64) -> Result<(Option<KeyValue>, i64)> {
        let range = Range { revision, ..Range::all(Span::Key(self.key(path)?)) };
        let mut found = self.read(range).await?;
        Ok((found.kvs.pop(), found.revision))
    }

    /// The key at a path with everything below it, at a revision (0: now).
    ///
    /// # Errors
    /// As [`Store::get`].
    pub async fn tree(&self, path: &str, revision: i64) -> Result<(Vec<KeyValue>, i64)> {
        let below = Range { revision, ..Range::all(self.below(path)?) };
        let mut found = self.read(below).await?;
        if !normal(path)?.is_empty() {
            // Of the same revision, or a change in between would be half seen.
            let at = if revision == 0 { found.revision } else { revision };
            let (own, _) = self.get(path, at).await?;
            found.kvs.splice(0..0, own);
        }
        Ok((found.kvs, found.revision))
    }

    async fn read(&self, range: Range) -> Result<RangeResult> {
        let revision = range.revision;
        self.remote.range(range).await.map_err(|error| match error {
            dhow_kv::Error::Compacted => {
                anyhow!("revision {revision} is forgotten: the store's history was compacted past it")
            }
            dhow_kv::Error::FutureRevision => {
                anyhow!("revision {revision} is in the future: 'dhow config log KEY' tells those that are")
            }
            error => error.into(),
        })
    }

    /// Runs one change if a key is still as it was seen (0: absent). Returns the revision, or `None`
    /// when it was not.
    ///
    /// # Errors
    /// As the store's.
    pub async fn change(&self, key: &Bytes, seen: Option<i64>, op: Op) -> Result<Option<i64>> {
        let compare = seen.map(|revision| guard(key.clone(), revision)).into_iter().collect();
        let txn = Txn { compare, success: vec![op], failure: Vec::new() };
        let answer = self.write(txn).await?;
        Ok(answer.succeeded.then_some(answer.revision))
    }

    /// Runs changes in as few transactions as the store's limits allow. Every key must still be as it
    /// was seen (0: absent), or its transaction and all later ones are left out.
    ///
    /// # Errors
    /// When a key was changed meanwhile, or the store refuses.
    pub async fn change_all(&self, changes: Vec<(Bytes, i64, Op)>) -> Result<i64> {
        let (all, mut done, mut revision) = (changes.len(), 0, 0);
        let mut changes = changes.into_iter().peekable();
        while changes.peek().is_some() {
            let (mut txn, mut bytes) = (Txn::default(), 0);
            while let Some((key, _, op)) = changes.peek() {
                let size =
                    key.len() * 2 + if let Op::Put { value, .. } = op { value.len() } else { 0 };
                let full = txn.success.len() == BATCH_STEPS || bytes + size > BATCH_BYTES;
                if full && !txn.success.is_empty() {
                    break;
                }
                bytes += size;
                if let Some((key, seen, op)) = changes.next() {
                    txn.compare.push(guard(key, seen));
                    txn.success.push(op);
                }
            }
            let steps = txn.success.len();
            let answer = self.write(txn).await?;
            if !answer.succeeded {
                bail!(
                    "somebody else has changed keys meanwhile: {done} of {all} changes are written; look and do it again"
                );
            }
            done += steps;
            revision = answer.revision;
        }
        Ok(revision)
    }

    /// Runs a transaction; what hinders it is told with the key.
    async fn write(&self, txn: Txn) -> Result<TxnResult> {
        let sizes = txn.success.iter().filter_map(|op| match op {
            Op::Put { key, value, .. } => Some((self.path(key), value.len())),
            Op::Delete { span: Span::Key(key), .. } => Some((self.path(key), 0)),
            _ => None,
        });
        let (path, size) = sizes.max_by_key(|(_, size)| *size).unwrap_or_default();
        self.remote.txn(txn).await.map_err(|error| match error {
            dhow_kv::Error::TooLarge => anyhow!(
                "{path} cannot be written: its value has {size} bytes and the store takes 1.5 MiB in one request (etcd's --max-request-bytes): split it, or keep a reference to where it lies"
            ),
            error => anyhow!("{path} cannot be written: {error}"),
        })
    }
}

/// The key must have been written last at `revision`, 0 for absent.
fn guard(key: Bytes, revision: i64) -> Compare {
    Compare { span: Span::Key(key), order: Order::Equal, target: Target::ModRevision(revision) }
}

/// A path without slashes at its ends.
///
/// # Errors
/// When a part of it is empty, `.` or `..`.
pub fn normal(path: &str) -> Result<String> {
    let path = path.strip_prefix('/').unwrap_or(path);
    let path = path.strip_suffix('/').unwrap_or(path);
    if path.is_empty() {
        return Ok(String::new());
    }
    if path.split('/').any(|part| matches!(part, "" | "." | "..")) {
        bail!("{path:?} is no path: between slashes must be a name, and not '.' or '..'");
    }
    Ok(path.to_owned())
}

/// What all keys begin with.
fn normal_prefix(text: &str) -> Result<String> {
    if text.starts_with("/registry") || text.starts_with("/dhow") {
        bail!("{text} is where the platform keeps its own data: choose another --prefix");
    }
    match text {
        "" | "/" => Ok(text.to_owned()),
        text if text.ends_with('/') => Ok(text.to_owned()),
        text => Ok(format!("{text}/")),
    }
}

/// A value as text, or as near as can be.
pub fn text(value: &[u8]) -> String {
    String::from_utf8_lossy(value).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_the_same_with_and_without_slashes_at_the_ends() {
        for path in ["shop/db", "/shop/db", "shop/db/", "/shop/db/"] {
            assert_eq!(normal(path).unwrap(), "shop/db");
        }
        assert_eq!(normal("/").unwrap(), "");
        for path in ["a//b", "../b", "a/./b", "///"] {
            assert!(normal(path).is_err(), "{path}");
        }
    }

    #[test]
    fn the_platforms_own_keys_are_out_of_reach() {
        assert!(normal_prefix("/registry/").is_err());
        assert!(normal_prefix("/dhow/claims").is_err());
        assert_eq!(normal_prefix("/settings").unwrap(), "/settings/");
    }

    #[test]
    fn the_platforms_door_is_found_in_its_environment() {
        let dir = tempfile::tempdir().unwrap();
        let machine = crate::config::Machine { name: Some("n1".into()), ..Default::default() };
        let flags = crate::config::Flags { machine, ..Default::default() };
        Config::load(dir.path(), &flags).unwrap().keep(dir.path()).unwrap();
        std::fs::write(dir.path().join("env"), "export KUBECONFIG='/k'\n").unwrap();
        assert!(platform(dir.path()).unwrap_err().to_string().contains("--endpoints"));
        let env =
            "export ETCDCTL_ENDPOINTS='https://127.0.0.1:2379'\nexport ETCDCTL_CACERT='/ca'\n";
        std::fs::write(dir.path().join("env"), env).unwrap();
        let found = platform(dir.path()).unwrap();
        assert_eq!(found.endpoints, ["https://127.0.0.1:2379"]);
        assert_eq!(found.ca, Some("/ca".into()));
    }
}
