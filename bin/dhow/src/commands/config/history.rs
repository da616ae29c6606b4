//! `dhow config log|diff|undo`: what a key was, as far as the store remembers.

use super::store::{Store, normal, text};
use super::values::line;
use crate::chronicle;
use crate::print;
use crate::print::Output;
use anyhow::{Context, Result, bail};
use bytes::Bytes;
use dhow_kv::{Backend, KeyValue, Op, Span, WatchEvent, WatchRequest};
use serde_json::json;

/// One state of a key.
#[derive(Debug)]
struct State {
    revision: i64,
    /// Of which the first is 1; 0 when the key was deleted.
    version: i64,
    /// `None` when the key was deleted.
    value: Option<Bytes>,
}

/// What is known of a key.
#[derive(Debug)]
struct History {
    /// From the oldest to the newest.
    states: Vec<State>,
    /// What was before this revision is forgotten; 0 when nothing is.
    forgotten: i64,
}

/// A key's history: what the store remembers, and before that what the platform wrote down.
async fn history(store: &Store, path: &str) -> Result<History> {
    let mut history = remembered(store, path).await?;
    let first = history.states.first().map_or(i64::MAX, |state| state.revision);
    let past = chronicle::past(store.remote.as_ref(), &store.key(path)?).await?;
    let older = past.into_iter().filter(|past| past.revision < first);
    let older: Vec<State> = older
        .map(|past| State { revision: past.revision, version: past.version, value: past.value })
        .collect();
    if let Some(oldest) = older.first() {
        // Whether there was more before is known only of what was not the first of its life.
        history.forgotten = if oldest.version > 1 { oldest.revision } else { 0 };
        history.states.splice(0..0, older);
    }
    Ok(history)
}

/// A key at a revision, also at one that the store has forgotten.
///
/// # Errors
/// As [`Store::get`].
pub async fn at(store: &Store, path: &str, revision: i64) -> Result<Option<KeyValue>> {
    match store.get(path, revision).await {
        Ok((found, _)) => Ok(found),
        Err(error) if revision > 0 => {
            let history = history(store, path).await?;
            let Some(state) = history.states.iter().rev().find(|s| s.revision <= revision) else {
                return Err(error);
            };
            let key = store.key(path)?;
            Ok(state.value.clone().map(|value| KeyValue {
                key,
                value,
                // Not written down.
                create_revision: 0,
                mod_revision: state.revision,
                version: state.version,
                lease: 0,
            }))
        }
        Err(error) => Err(error),
    }
}

/// Reads what the store itself remembers by a watch that starts at the beginning.
async fn remembered(store: &Store, path: &str) -> Result<History> {
    let key = store.key(path)?;
    let (_, now) = store.get(path, 0).await?;
    let mut history = History { states: Vec::new(), forgotten: 0 };
    let mut start = 1;
    'watch: loop {
        let request =
            WatchRequest { span: Span::Key(key.clone()), start_revision: start, prev_kv: false };
        let mut watcher = store.remote.watch(request)?;
        watcher.request_progress();
        loop {
            match watcher.next().await {
                Some(WatchEvent::Events { events, .. }) => {
                    for event in events.iter().filter(|e| e.kv.mod_revision <= now) {
                        history.states.push(State {
                            revision: event.kv.mod_revision,
                            version: event.kv.version,
                            value: (!event.deleted).then(|| event.kv.value.clone()),
                        });
                    }
                }
                Some(WatchEvent::Progress(told)) if told >= now => return Ok(history),
                Some(WatchEvent::Progress(_)) => watcher.request_progress(),
                Some(WatchEvent::Compacted(revision)) => {
                    history.states.clear();
                    history.forgotten = revision;
                    // What it was at that moment is still known.
                    if let Some(kv) = store.get(path, revision).await?.0 {
                        history.states.push(State {
                            revision: kv.mod_revision,
                            version: kv.version,
                            value: Some(kv.value),
                        });
                    }
                    start = revision + 1;
                    continue 'watch;
                }
                None => bail!("the store ended the watch: its log tells why"),
            }
        }
    }
}

/// `dhow config log`.
pub async fn log(store: &Store, path: &str, output: Output) -> Result<()> {
    let History { states, forgotten } = history(store, path).await?;
    let path = normal(path)?;
    if states.is_empty() {
        let why = match forgotten {
            0 => String::new(),
            _ => format!(" since revision {forgotten}; what was before is forgotten"),
        };
        bail!("there was never a {path}{why}");
    }
    if output != Output::Table {
        let states = states.iter().rev().map(|state| {
            let value = state.value.as_ref().map(|v| text(v));
            json!({"revision": state.revision, "version": state.version, "value": value})
        });
        let told = json!({
            "key": path, "forgottenBefore": forgotten, "history": states.collect::<Vec<_>>(),
        });
        return print::value(&told, output);
    }
    let mut rows = vec![["REVISION", "VERSION", "CHANGE", "VALUE"].map(str::to_owned).to_vec()];
    for state in states.iter().rev() {
        let (change, value) = match &state.value {
            None => ("deleted", String::new()),
            Some(value) if state.version == 1 => ("created", line(value)),
            Some(value) => ("written", line(value)),
        };
        rows.push(vec![
            state.revision.to_string(),
            state.version.to_string(),
            change.to_owned(),
            value,
        ]);
    }
    print::table(&rows);
    if forgotten > 0 {
        eprintln!("what was before revision {forgotten} is forgotten");
    }
    Ok(())
}

/// `dhow config diff`.
pub async fn diff(store: &Store, path: &str, from: Option<i64>, to: Option<i64>) -> Result<()> {
    let (newest, now) = store.get(path, 0).await?;
    let (new, until) = match to {
        Some(revision) => (at(store, path, revision).await?, revision),
        None => (newest, now),
    };
    let old = match from {
        Some(revision) => (at(store, path, revision).await?, revision),
        None => {
            let last = match &new {
                Some(kv) => kv.mod_revision,
                None => last_change(store, path).await?,
            };
            (before(store, path, last).await?, last - 1)
        }
    };
    if old.0.is_none() && new.is_none() {
        bail!(
            "there was no {path} at either revision: 'dhow config log {path}' tells those that are"
        );
    }
    let value = |kv: &Option<KeyValue>| kv.as_ref().map(|kv| text(&kv.value));
    let name = |kv: &Option<KeyValue>, at: i64| match kv {
        Some(kv) => format!("{path} revision {}", kv.mod_revision),
        None => format!("{path} revision {at} (absent)"),
    };
    let (old_name, new_name) = (name(&old.0, old.1), name(&new, until));
    print!("{}", unified(value(&old.0), value(&new), &old_name, &new_name));
    Ok(())
}

/// A unified diff; an absent side is empty.
fn unified(old: Option<String>, new: Option<String>, old_name: &str, new_name: &str) -> String {
    let (old, new) = (old.unwrap_or_default(), new.unwrap_or_default());
    let diff = similar::TextDiff::from_lines(&old, &new);
    diff.unified_diff().context_radius(3).header(old_name, new_name).to_string()
}

/// The revision of a deleted key's last change.
async fn last_change(store: &Store, path: &str) -> Result<i64> {
    let history = history(store, path).await?;
    let last = history.states.last();
    Ok(last
        .with_context(|| format!("there was never a {path}, as far as the store remembers"))?
        .revision)
}

/// A key as it was before a change at `revision`.
async fn before(store: &Store, path: &str, revision: i64) -> Result<Option<KeyValue>> {
    // The store's first revision is 1, and it is empty.
    match revision {
        ..=2 => Ok(None),
        revision => at(store, path, revision - 1).await,
    }
}

/// `dhow config undo`.
pub async fn undo(store: &Store, path: &str, to: Option<i64>) -> Result<()> {
    let key = store.key(path)?;
    let (now, _) = store.get(path, 0).await?;
    let old = match to {
        Some(revision) => at(store, path, revision).await?,
        None => {
            let last = match &now {
                Some(kv) => kv.mod_revision,
                None => last_change(store, path).await?,
            };
            before(store, path, last).await?
        }
    };
    let seen = now.as_ref().map_or(0, |kv| kv.mod_revision);
    let path = normal(path)?;
    let (op, told) = match (&old, &now) {
        (None, None) => bail!("there was no {path} then, and there is none now"),
        (Some(old), Some(now)) if old.value == now.value => {
            println!("{path} has this value already");
            return Ok(());
        }
        (Some(old), _) => {
            let op = Op::put(key.clone(), old.value.clone());
            (op, format!("{path} has its value of revision {} again", old.mod_revision))
        }
        (None, Some(_)) => (Op::delete(key.clone()), format!("{path} is removed, as it was")),
    };
    match store.change(&key, Some(seen), op).await? {
        Some(revision) => println!("{told}, revision {revision}"),
        None => bail!(
            "{path} was changed by somebody else just now, and was left alone: 'dhow config log {path}' tells how"
        ),
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn differences_are_told_as_diff_tells_them() {
        let (old, new) = ("a\nb\nc\n".to_owned(), "a\nB\nc\n".to_owned());
        let told = unified(Some(old), Some(new), "k revision 2", "k revision 5");
        assert_eq!(told, "--- k revision 2\n+++ k revision 5\n@@ -1,3 +1,3 @@\n a\n-b\n+B\n c\n");
        let told = unified(None, Some("x".into()), "old", "new");
        assert!(told.contains("+x\n\\ No newline at end of file"), "{told}");
    }
}
