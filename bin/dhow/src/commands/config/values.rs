//! `dhow config put|get|ls|rm|watch`.

use super::store::{Store, normal, text};
use crate::print;
use crate::print::Output;
use anyhow::{Context, Result, bail};
use dhow_kv::{Backend, Event, KeyValue, Op, Span, WatchEvent, WatchRequest};
use serde_json::{Value, json};
use std::io::{Read, Write};
use std::path::Path;

/// A key with its history counters, for programs.
pub fn described(store: &Store, kv: &KeyValue) -> Value {
    json!({
        "key": store.path(&kv.key),
        "value": text(&kv.value),
        "revision": kv.mod_revision,
        "createRevision": kv.create_revision,
        "version": kv.version,
    })
}

/// `dhow config put`: `seen` is the revision that the key must have been written last at.
pub async fn put(
    store: &Store,
    path: &str,
    value: Option<String>,
    file: Option<&Path>,
    seen: Option<i64>,
) -> Result<()> {
    let key = store.key(path)?;
    let value = match (value, file) {
        (Some(value), _) => value.into_bytes(),
        (None, Some(file)) => {
            std::fs::read(file).with_context(|| format!("cannot read {}", file.display()))?
        }
        (None, None) => {
            let mut bytes = Vec::new();
            std::io::stdin().read_to_end(&mut bytes).context("cannot read standard input")?;
            bytes
        }
    };
    match store.change(&key, seen, Op::put(key.clone(), value)).await? {
        Some(revision) => println!("{} revision {revision}", normal(path)?),
        None if seen == Some(0) => {
            bail!("{path} is there already: leave --create out to overwrite it")
        }
        None => bail!("{path} was changed by somebody else: 'dhow config log {path}' tells how"),
    }
    Ok(())
}

/// `dhow config get`.
pub async fn get(store: &Store, path: &str, revision: i64, output: Output) -> Result<()> {
    let found = super::history::at(store, path, revision).await?;
    let Some(kv) = found else {
        let (below, _) = store.tree(path, revision).await?;
        if below.is_empty() {
            bail!("there is no {path}: 'dhow config ls' lists what there is");
        }
        bail!("{path} is no key, there are {} below it: 'dhow config ls {path}'", below.len());
    };
    match output {
        Output::Table => {
            let mut out = std::io::stdout();
            out.write_all(&kv.value)?;
            // What is no text may be a file's content, and stays what it is.
            if std::str::from_utf8(&kv.value).is_ok_and(|text| !text.ends_with('\n')) {
                out.write_all(b"\n")?;
            }
        }
        _ => print::value(&described(store, &kv), output)?,
    }
    Ok(())
}

/// The first line of a value, for a table.
pub fn line(value: &[u8]) -> String {
    const WIDTH: usize = 60;
    let text = text(value);
    let mut lines = text.lines();
    let first = lines.next().unwrap_or_default();
    let short: String = first.chars().filter(|c| !c.is_control()).take(WIDTH).collect();
    match lines.next().is_some() || first.chars().count() > WIDTH {
        true => format!("{short}..."),
        false => short,
    }
}

/// `dhow config ls`.
pub async fn ls(store: &Store, path: &str, values: bool, output: Output) -> Result<()> {
    let (found, _) = store.tree(path, 0).await?;
    if output != Output::Table {
        let all = found.iter().map(|kv| {
            let mut told = described(store, kv);
            if !values && let Some(told) = told.as_object_mut() {
                told.remove("value");
            }
            told
        });
        return print::value(&all.collect(), output);
    }
    let mut rows = vec![vec!["KEY".to_owned(), "REVISION".into(), "SIZE".into()]];
    if values {
        rows[0].push("VALUE".into());
    }
    for kv in &found {
        let size = print::bytes(kv.value.len() as u64);
        let mut row = vec![store.path(&kv.key), kv.mod_revision.to_string(), size];
        if values {
            row.push(line(&kv.value));
        }
        rows.push(row);
    }
    print::table(&rows);
    Ok(())
}

/// `dhow config rm`.
pub async fn rm(store: &Store, paths: &[String], recursive: bool) -> Result<()> {
    let mut changes = Vec::new();
    for path in paths {
        let found = match recursive {
            true => store.tree(path, 0).await?.0,
            false => {
                store.key(path)?;
                store.get(path, 0).await?.0.into_iter().collect()
            }
        };
        if found.is_empty() {
            bail!("there is no {path}: nothing was removed");
        }
        changes.extend(found.into_iter().map(|kv| {
            let op = Op::delete(kv.key.clone());
            (kv.key, kv.mod_revision, op)
        }));
    }
    changes.sort_by(|a, b| a.0.cmp(&b.0));
    changes.dedup_by(|a, b| a.0 == b.0);
    let count = changes.len();
    let revision = store.change_all(changes).await?;
    println!("{count} removed, revision {revision}");
    Ok(())
}

/// Whether an event is of the key at `path` or below it.
fn concerns(store: &Store, path: &str, event: &Event) -> bool {
    let key = store.path(&event.kv.key);
    path.is_empty()
        || key == path
        || key.strip_prefix(path).is_some_and(|rest| rest.starts_with('/'))
}

/// `dhow config watch`.
pub async fn watch(
    store: &Store,
    path: &str,
    from: i64,
    exec: Option<&str>,
    output: Output,
) -> Result<()> {
    let path = normal(path)?;
    // One watch for the key and what is below it: they are told in one order.
    let span = match path.as_str() {
        "" => store.below("")?,
        _ => Span::prefix(store.key(&path)?),
    };
    let request = WatchRequest { span, start_revision: from, prev_kv: false };
    let mut watcher = store.remote.watch(request)?;
    loop {
        match watcher.next().await {
            Some(WatchEvent::Events { revision, events }) => {
                for event in events.iter().filter(|e| concerns(store, &path, e)) {
                    tell(store, revision, event, output)?;
                    if let Some(command) = exec {
                        run_for(store, revision, event, command).await;
                    }
                }
            }
            Some(WatchEvent::Progress(_)) => {}
            Some(WatchEvent::Compacted(revision)) => bail!(
                "the changes up to revision {revision} are forgotten: leave --from out, or start after it"
            ),
            None => bail!("the store ended the watch: its log tells why"),
        }
    }
}

fn tell(store: &Store, revision: i64, event: &Event, output: Output) -> Result<()> {
    let (kind, key) = (kind(event), store.path(&event.kv.key));
    let mut out = std::io::stdout().lock();
    match output {
        Output::Table if event.deleted => writeln!(out, "{revision} {kind} {key}")?,
        Output::Table => writeln!(out, "{revision} {kind} {key} {}", line(&event.kv.value))?,
        _ => {
            let mut told = json!({"event": kind, "key": key, "revision": revision});
            if !event.deleted {
                told["value"] = json!(text(&event.kv.value));
            }
            match output {
                // One line each, so that programs can read them as they come.
                Output::Json => writeln!(out, "{told}")?,
                _ => write!(out, "---\n{}", serde_saphyr::to_string(&told)?)?,
            }
        }
    }
    out.flush()?;
    Ok(())
}

fn kind(event: &Event) -> &'static str {
    if event.deleted { "delete" } else { "put" }
}

/// Runs a command for a change. One that fails is told and does not end the watch.
async fn run_for(store: &Store, revision: i64, event: &Event, command: &str) {
    use std::os::unix::ffi::OsStrExt;
    let outcome = tokio::process::Command::new("sh")
        .args(["-c", command])
        .env("DHOW_CONFIG_EVENT", kind(event))
        .env("DHOW_CONFIG_KEY", store.path(&event.kv.key))
        .env("DHOW_CONFIG_VALUE", std::ffi::OsStr::from_bytes(&event.kv.value))
        .env("DHOW_CONFIG_REVISION", revision.to_string())
        .status()
        .await;
    match outcome {
        Ok(status) if status.success() => {}
        Ok(status) => eprintln!("dhow: {command:?} failed at revision {revision}: {status}"),
        Err(error) => eprintln!("dhow: {command:?} cannot be run: {error}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_table_shows_one_line_of_a_value() {
        assert_eq!(line(b"short"), "short");
        assert_eq!(line(b"first\nsecond"), "first...");
        assert_eq!(line("x".repeat(70).as_bytes()).len(), 63);
    }
}
