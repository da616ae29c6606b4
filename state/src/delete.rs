//! Deletion: preconditions, finalizers, graceful ends, propagation.
//!
//! Follows `k8s.io/apiserver/pkg/registry/rest/delete.go`. Dependents are not deleted here: the
//! garbage collector, a control loop, does that by what this writes (finalizers, gone owners).

use crate::State;
use crate::admission::{self, Claims};
use crate::codec::{self, text};
use crate::model::{not_found, shown, stored_kind};
use crate::types::{Actor, DeleteOptions, Deleted, List, ListOptions, Object, Result, unless_gone};
use crate::write::{Commit, Committed};
use dhow_objects::kinds::{self, Kind};
use dhow_objects::{Status, meta, time};
use serde_json::{Value, json};
use std::sync::Arc;

const ORPHAN: &str = "orphan";
const FOREGROUND: &str = "foregroundDeletion";
const TRIES: usize = 16;

fn is(kind: &'static Kind, other: &'static Kind) -> bool {
    std::ptr::eq(kind, other)
}

fn is_empty_list(value: Option<&Value>) -> bool {
    value.and_then(Value::as_array).is_none_or(Vec::is_empty)
}

/// Whether a marked object waits for nobody any more.
pub(crate) fn is_over(kind: &'static Kind, object: &Value) -> bool {
    meta::deletion_timestamp(object).is_some()
        && meta::finalizers(object).next().is_none()
        && object["metadata"]["deletionGracePeriodSeconds"].as_i64().unwrap_or(0) == 0
        && (!is(kind, &kinds::NAMESPACE) || is_empty_list(object.pointer("/spec/finalizers")))
}

/// What to do about an object that somebody wants deleted.
enum Step {
    /// It goes now.
    Remove,
    /// It gets this state.
    Mark(Value),
    /// It is on its way already.
    Leave,
}

impl State {
    /// Deletes an object.
    ///
    /// # Errors
    /// 404 when it does not exist, 409 when a precondition does not hold, 403 for objects that must stay.
    pub async fn delete(
        &self,
        actor: &Actor,
        kind: &'static Kind,
        namespace: &str,
        name: &str,
        options: &DeleteOptions,
    ) -> Result<Deleted> {
        let target = stored_kind(kind);
        if is(target, &kinds::NAMESPACE)
            && matches!(name, "default" | "kube-system" | "kube-public")
        {
            return Err(Status::forbidden(
                "",
                "namespaces",
                name,
                "this namespace may not be deleted",
            ));
        }
        for _ in 0..TRIES {
            self.sync().await?;
            let current = self
                .shared
                .cache
                .peek(target, namespace, name)
                .ok_or_else(|| not_found(kind, name))?;
            let old = current.to_value();
            check_preconditions(kind, name, &old, options)?;
            let stamp = self.cause_stamp(actor);
            let (value, claims) = match self.next_step(target, &old, options)? {
                Step::Leave => return Ok(Deleted::Marked(shown(kind, &current))),
                Step::Remove => (None, admission::release(target, &old)),
                Step::Mark(new) => {
                    (Some(codec::encode(target, &new, Some(&stamp))), Claims::default())
                }
            };
            let result = |revision: u64| match &value {
                Some(bytes) => {
                    let marked = Self::written(target, namespace, name, bytes, revision);
                    Deleted::Marked(shown(kind, &marked))
                }
                None => {
                    let last = codec::with_revision(&current, revision);
                    Deleted::Gone(shown(kind, &last))
                }
            };
            if options.dry_run {
                return Ok(result(current.revision));
            }
            let commit = Commit {
                kind: target,
                key: codec::object_key(target, namespace, name),
                based_on: current.revision,
                value: value.clone(),
                stamp: &stamp,
                guards: Vec::new(),
                claims: &claims,
            };
            match self.commit(commit).await? {
                Committed::At(revision) => {
                    if value.is_none() {
                        admission::removed(self, target, namespace, name).await;
                    }
                    return Ok(result(revision));
                }
                Committed::Refused(refusal) => return Err(refusal),
                Committed::Lost => {}
            }
        }
        Err(Status::modified(kind.group, kind.plural, name))
    }

    /// Deletes what a list would show.
    ///
    /// # Errors
    /// As [`State::list`] and [`State::delete`]; objects that vanish meanwhile are fine.
    pub async fn delete_collection(
        &self,
        actor: &Actor,
        kind: &'static Kind,
        namespace: Option<&str>,
        list: &ListOptions,
        options: &DeleteOptions,
    ) -> Result<List> {
        let found = self.list(kind, namespace, list).await?;
        for object in &found.items {
            let Object { namespace, name, .. } = &**object;
            unless_gone(self.delete(actor, kind, namespace, name, options).await)?;
        }
        Ok(found)
    }

    fn next_step(&self, kind: &'static Kind, old: &Value, options: &DeleteOptions) -> Result<Step> {
        let finalizers = finalizers_for(old, options)?;
        let mut new = old.clone();
        if let Some(metadata) = meta::metadata_mut(&mut new) {
            if finalizers.is_empty() {
                metadata.remove("finalizers");
            } else {
                metadata.insert("finalizers".into(), json!(finalizers));
            }
        }
        let changed = !old["metadata"]["finalizers"].eq(&new["metadata"]["finalizers"]);
        let grace = grace(kind, old, options);
        let now = self.now();
        if let Some(since) = meta::deletion_timestamp(old) {
            let before = old["metadata"]["deletionGracePeriodSeconds"].as_i64().unwrap_or(0);
            let asked = options.grace_period_seconds.map(|_| grace);
            let shorter = kind.graceful.is_some() && asked.is_some_and(|asked| asked < before);
            if shorter {
                let start = time::parse(since).unwrap_or(now);
                let end = start
                    .checked_add(jiff::SignedDuration::from_secs(grace - before))
                    .unwrap_or(now);
                new["metadata"]["deletionTimestamp"] = json!(time::format(end));
                new["metadata"]["deletionGracePeriodSeconds"] = json!(grace);
            }
            return Ok(if is_over(kind, &new) {
                Step::Remove
            } else if shorter || changed {
                Step::Mark(new)
            } else {
                Step::Leave
            });
        }
        let end = now.checked_add(jiff::SignedDuration::from_secs(grace)).unwrap_or(now);
        new["metadata"]["deletionTimestamp"] = json!(time::format(end));
        new["metadata"]["deletionGracePeriodSeconds"] = json!(grace);
        kind.prepare_delete(&mut new);
        if is(kind, &kinds::NAMESPACE) {
            new["status"]["phase"] = json!("Terminating");
        }
        Ok(if is_over(kind, &new) { Step::Remove } else { Step::Mark(new) })
    }
}

/// Seconds until the object must be gone: 0 means at once.
fn grace(kind: &'static Kind, old: &Value, options: &DeleteOptions) -> i64 {
    if kind.graceful.is_none() {
        return 0;
    }
    if is(kind, &kinds::POD) {
        // Nobody runs it: there is nothing to wait for.
        let finished = matches!(text(old, "/status/phase"), "Failed" | "Succeeded");
        if text(old, "/spec/nodeName").is_empty() || finished {
            return 0;
        }
    }
    match options.grace_period_seconds {
        Some(asked) if asked < 0 => 1,
        Some(asked) => asked,
        None => kind.grace_seconds(old),
    }
}

/// The finalizers after the propagation policy was written into them.
fn finalizers_for(old: &Value, options: &DeleteOptions) -> Result<Vec<String>> {
    let mut finalizers: Vec<String> = meta::finalizers(old).map(str::to_owned).collect();
    let want = match options.propagation.as_str() {
        // Without a word, a wish that was written earlier stands.
        "" => return Ok(finalizers),
        "Background" => None,
        "Orphan" => Some(ORPHAN),
        "Foreground" => Some(FOREGROUND),
        other => {
            return Err(Status::invalid(
                "meta.k8s.io",
                "DeleteOptions",
                "",
                vec![dhow_objects::StatusCause {
                    reason: "FieldValueNotSupported".into(),
                    message: format!(
                        "Unsupported value: {other:?}: supported values: \"Foreground\", \"Background\", \"Orphan\", \"nil\""
                    ),
                    field: "propagationPolicy".into(),
                }],
            ));
        }
    };
    finalizers.retain(|f| f != ORPHAN && f != FOREGROUND);
    finalizers.extend(want.map(str::to_owned));
    Ok(finalizers)
}

fn check_preconditions(
    kind: &Kind,
    name: &str,
    old: &Value,
    options: &DeleteOptions,
) -> Result<()> {
    let conflict = |why: String| Err(Status::conflict(kind.group, kind.plural, name, &why));
    if let Some(uid) = &options.uid
        && uid != meta::uid(old)
    {
        return conflict(format!(
            "the UID in the precondition ({uid}) does not match the UID in record ({}). The object might have been deleted and then recreated",
            meta::uid(old)
        ));
    }
    if let Some(version) = &options.resource_version
        && version != meta::resource_version(old)
    {
        return conflict(format!(
            "the ResourceVersion in the precondition ({version}) does not match the ResourceVersion in record ({}). The object might have been modified",
            meta::resource_version(old)
        ));
    }
    Ok(())
}

/// The object inside, however the deletion went.
impl Deleted {
    /// The last state, or the marked one.
    pub fn object(&self) -> &Arc<Object> {
        match self {
            Self::Gone(object) | Self::Marked(object) => object,
        }
    }
}
