//! Reads: one object, lists with chunks and revisions, watches.

use crate::State;
use crate::cache::range;
use crate::codec;
use crate::model::{self, not_found, shown, stored, stored_kind};
use crate::types::{List, ListOptions, Object, Result, WatchOptions};
use crate::watch::Watch;
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use dhow_kv::{Range, Span};
use dhow_objects::Status;
use dhow_objects::kinds::Kind;
use serde::{Deserialize, Serialize};
use std::sync::Arc;
use std::time::Duration;

/// How long a read waits for a revision that has not happened yet.
const FUTURE: Duration = Duration::from_secs(3);

const INCONSISTENT: &str = "The provided continue parameter is too old to display a consistent list result. You can start a new list without the continue parameter, or use the continue token in this response to retrieve the remainder of the results. Continuing with the provided token results in an inconsistent list - objects that were created, modified, or deleted between the time the first chunk was returned and now may show up in the list.";

/// A continue token, as upstream encodes it.
#[derive(Debug, Serialize, Deserialize)]
struct Continue {
    v: String,
    /// The list's revision; -1 for "go on with what there is now".
    rv: i64,
    /// The first key of the rest, relative to the list's prefix.
    start: String,
}

impl Continue {
    fn decode(token: &str) -> Result<Self> {
        let bytes = URL_SAFE_NO_PAD.decode(token.trim_end_matches('=')).ok();
        let token = bytes.and_then(|b| serde_json::from_slice::<Self>(&b).ok());
        token
            .filter(|t| t.v == "meta.k8s.io/v1" && (t.rv == -1 || t.rv > 0) && !t.start.is_empty())
            .ok_or_else(|| {
                Status::bad_request(
                    "continue key is not valid: it does not come from a list of this server",
                )
            })
    }

    fn encode(revision: u64, last: &str) -> String {
        Self::token(i64::try_from(revision).unwrap_or(-1), format!("{last}\0"))
    }

    fn token(rv: i64, start: String) -> String {
        let token = Self { v: "meta.k8s.io/v1".into(), rv, start };
        URL_SAFE_NO_PAD.encode(serde_json::to_vec(&token).unwrap_or_default())
    }
}

/// 410 for a chunk whose revision is forgotten, with a token for the rest as it is now.
fn too_old(start: &str) -> Status {
    let details = dhow_objects::StatusDetails {
        continue_token: Continue::token(-1, start.to_owned()),
        ..dhow_objects::StatusDetails::default()
    };
    Status { details: Some(Box::new(details)), ..Status::expired(INCONSISTENT) }
}

fn revision_match_forbidden(why: &str) -> Status {
    Status::invalid(
        "meta.k8s.io",
        "ListOptions",
        "",
        vec![dhow_objects::StatusCause {
            reason: "FieldValueForbidden".into(),
            message: format!("Forbidden: {why}"),
            field: "resourceVersionMatch".into(),
        }],
    )
}

impl State {
    /// One object.
    ///
    /// # Errors
    /// 404 when it does not exist.
    pub async fn get(
        &self,
        kind: &'static Kind,
        namespace: &str,
        name: &str,
    ) -> Result<Arc<Object>> {
        self.sync().await?;
        self.cached(kind, namespace, name).ok_or_else(|| not_found(kind, name))
    }

    /// One object as the cache has it now, without waiting for the store: for control loops, which
    /// see the newest state sooner or later anyway.
    pub fn cached(&self, kind: &'static Kind, namespace: &str, name: &str) -> Option<Arc<Object>> {
        let found = self.shared.cache.peek(stored_kind(kind), namespace, name)?;
        Some(shown(kind, &found))
    }

    /// Many objects; `namespace` `None` means all namespaces.
    ///
    /// # Errors
    /// 410 when the revision asked for is forgotten, 504 when it has not happened yet, 400 and 422
    /// for options that contradict each other.
    pub async fn list(
        &self,
        kind: &'static Kind,
        namespace: Option<&str>,
        options: &ListOptions,
    ) -> Result<List> {
        let (revision, start) = self.list_revision(options).await?;
        let source = stored_kind(kind);
        let items =
            self.snapshot(source, namespace, revision).await.map_err(|refusal| match &start {
                Some(start) => too_old(start),
                None => refusal,
            })?;
        let (revision, items) = items;
        let prefix = namespace.map_or(0, |n| n.len() + 1);
        let local = |o: &Object| codec::local_key(&o.namespace, &o.name)[prefix..].to_owned();
        let mut list =
            List { revision, items: Vec::new(), continue_token: String::new(), remaining: None };
        let selective = !options.labels.is_empty() || !options.fields.is_empty();
        let rest = match &start {
            Some(start) => items.partition_point(|o| local(o) < *start),
            None => 0,
        };
        let total = items.len();
        for (at, object) in items.into_iter().enumerate().skip(rest) {
            if options.limit > 0 && list.items.len() == options.limit {
                if let Some(last) = list.items.last() {
                    list.continue_token = Continue::encode(revision, &local(last));
                }
                list.remaining = (!selective).then_some((total - at) as u64);
                break;
            }
            if !selective || model::selects(&options.labels, &options.fields, &object) {
                list.items.push(object);
            }
        }
        list.items = list.items.iter().map(|o| shown(kind, o)).collect();
        Ok(list)
    }

    /// The revision to list at (`None` for the cache's own) and the key to start at.
    async fn list_revision(&self, options: &ListOptions) -> Result<(Option<u64>, Option<String>)> {
        let exact = match options.revision_match.as_str() {
            "" => None,
            "Exact" => Some(true),
            "NotOlderThan" => Some(false),
            other => {
                return Err(revision_match_forbidden(&format!(
                    "unsupported value {other:?}: expected Exact or NotOlderThan"
                )));
            }
        };
        if !options.continue_token.is_empty() {
            if exact.is_some() {
                return Err(revision_match_forbidden(
                    "resourceVersionMatch is forbidden when continue is provided",
                ));
            }
            if options.revision.is_some_and(|r| r != 0) {
                return Err(Status::bad_request(
                    "specifying resource version is not allowed when using continue",
                ));
            }
            let token = Continue::decode(&options.continue_token)?;
            let at = self.sync().await?;
            return Ok((Some(u64::try_from(token.rv).unwrap_or(at)), Some(token.start)));
        }
        match (options.revision, exact) {
            (None, Some(_)) => Err(revision_match_forbidden(
                "resourceVersionMatch is forbidden unless resourceVersion is provided",
            )),
            (Some(0), Some(true)) => Err(revision_match_forbidden(
                "resourceVersionMatch \"exact\" is forbidden for resourceVersion \"0\"",
            )),
            (None, None) => {
                self.sync().await?;
                Ok((None, None))
            }
            (Some(0), _) => Ok((None, None)),
            (Some(revision), exact) => {
                self.await_revision(revision).await?;
                let exact = exact.unwrap_or(options.limit > 0);
                Ok((exact.then_some(revision), None))
            }
        }
    }

    async fn await_revision(&self, revision: u64) -> Result<()> {
        self.sync().await?;
        if self.revision() >= revision {
            return Ok(());
        }
        tokio::select! {
            reached = self.shared.cache.reach(revision) => reached,
            () = self.shared.clock.sleep(FUTURE) => {
                let current = self.revision();
                let message = format!("Too large resource version: {revision}, current: {current}");
                let mut status = Status::new(504, "Timeout", message.clone());
                status.details = Some(Box::new(dhow_objects::StatusDetails {
                    causes: vec![dhow_objects::StatusCause {
                        reason: "ResourceVersionTooLarge".into(),
                        message: "Too large resource version".into(),
                        field: String::new(),
                    }],
                    retry_after_seconds: 1,
                    ..dhow_objects::StatusDetails::default()
                }));
                Err(status)
            }
        }
    }

    /// The objects of a kind at a revision (`None` for now), in key order.
    async fn snapshot(
        &self,
        kind: &'static Kind,
        namespace: Option<&str>,
        revision: Option<u64>,
    ) -> Result<(u64, Vec<Arc<Object>>)> {
        let wanted = {
            let inner = self.shared.cache.read();
            let cache = inner.kind(kind);
            let at = revision.unwrap_or(inner.revision);
            if cache.changed <= at {
                return Ok((
                    at,
                    range(&cache.objects, namespace).map(|(_, o)| o.clone()).collect(),
                ));
            }
            if inner.floor(kind, self.shared.start) <= at {
                // Walk back from now through the remembered changes.
                let mut objects: std::collections::BTreeMap<&String, Arc<Object>> =
                    range(&cache.objects, namespace).map(|(k, o)| (k, o.clone())).collect();
                let prefix = namespace.map(|n| format!("{n}/"));
                for change in cache.history.iter().rev().take_while(|c| c.revision > at) {
                    if prefix.as_ref().is_some_and(|p| !change.key.starts_with(p.as_str())) {
                        continue;
                    }
                    match &change.before {
                        Some(before) => objects.insert(&change.key, before.clone()),
                        None => objects.remove(&change.key),
                    };
                }
                return Ok((at, objects.into_values().collect()));
            }
            at
        };
        let mut prefix = codec::kind_prefix(kind);
        if let Some(namespace) = namespace {
            prefix.push_str(namespace);
            prefix.push('/');
        }
        let request = Range {
            revision: i64::try_from(wanted).unwrap_or(i64::MAX),
            ..Range::all(Span::prefix(prefix))
        };
        let found = match self.shared.kv.range(request).await {
            Err(dhow_kv::Error::Compacted) => {
                let oldest = self.shared.start;
                return Err(Status::expired(format!(
                    "too old resource version: {wanted} ({oldest})"
                )));
            }
            other => stored(other)?,
        };
        let objects = found.kvs.iter().filter_map(|kv| {
            let (_, local) = codec::split_key(&kv.key)?;
            let (namespace, name) = codec::split_local(kind, local);
            let written = u64::try_from(kv.mod_revision).ok()?;
            Some(Arc::new(codec::object(kind, namespace, name, &kv.value, written)))
        });
        Ok((wanted, objects.collect()))
    }

    /// Follows changes.
    ///
    /// # Errors
    /// 410 when the revision to resume from is forgotten.
    pub async fn watch(
        &self,
        kind: &'static Kind,
        namespace: Option<&str>,
        options: WatchOptions,
    ) -> Result<Watch> {
        if options.revision != Some(0) {
            self.sync().await?;
        }
        if options.send_initial_events
            && let Some(revision) = options.revision
        {
            self.await_revision(revision).await?;
        }
        let source = stored_kind(kind);
        let mut watch = self.shared.cache.watch(source, namespace, options, self.shared.start)?;
        watch.shown_as(kind);
        Ok(watch)
    }

    /// Who wrote an object's newest revision, and what they had seen. For an object that is gone:
    /// who deleted it, for about an hour.
    ///
    /// # Errors
    /// 404 when the object does not exist and no deletion is remembered.
    pub async fn cause(
        &self,
        kind: &'static Kind,
        namespace: &str,
        name: &str,
    ) -> Result<Option<codec::Cause>> {
        let key = codec::object_key(kind, namespace, name);
        if let Some(found) = stored(self.shared.kv.get(key.clone()).await)? {
            return Ok(codec::cause_of(&found.value));
        }
        let local = key.strip_prefix(codec::ROOT.as_bytes()).unwrap_or_default();
        let gone = stored(self.shared.kv.get(codec::deletion_key(local)).await)?;
        let gone = gone.ok_or_else(|| not_found(kind, name))?;
        Ok(serde_json::from_slice(&gone.value).ok())
    }
}
