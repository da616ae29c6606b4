//! `dhow config import|export`: trees of values as JSON, YAML or lines NAME=value.
//!
//! A folder is an object, a key is a text. A key that is a folder as well has its own value under the
//! empty name. Numbers and truth values are taken as they are written and lists as their JSON, since
//! a store's values have no types. Values that are no text are written as `{"$base64": "..."}`.

use super::args::Format;
use super::store::{Store, normal};
use super::written::{self, Node};
use anyhow::{Context, Result, bail};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use dhow_kv::Op;
use serde_json::{Map, Value, json};
use std::collections::BTreeMap;
use std::io::Read;
use std::path::Path;

/// Stands for a value that is no text.
const BINARY: &str = "$base64";

/// `dhow config import`.
pub async fn import(
    store: &Store,
    file: &Path,
    to: &str,
    format: Option<Format>,
    prune: bool,
    dry_run: bool,
) -> Result<()> {
    let name = file.display();
    let text = if file == Path::new("-") {
        let mut text = String::new();
        std::io::stdin().read_to_string(&mut text).context("cannot read standard input")?;
        text
    } else {
        std::fs::read_to_string(file).with_context(|| format!("cannot read {name}"))?
    };
    let format = match format {
        Some(format) => format,
        None => guess(file).with_context(|| {
            format!("the name {name} does not tell how it is written: say so with --format")
        })?,
    };
    let wanted = parse(&text, format).with_context(|| format!("{name} is not understood"))?;
    let to = normal(to)?;
    let path = |below: &str| match (to.as_str(), below) {
        ("", below) => below.to_owned(),
        (to, "") => to.to_owned(),
        (to, below) => format!("{to}/{below}"),
    };
    let (found, _) = store.tree(&to, 0).await?;
    let found: BTreeMap<Bytes, _> = found.into_iter().map(|kv| (kv.key.clone(), kv)).collect();
    let mut changes = Vec::new();
    let mut named = Vec::new();
    for (below, value) in wanted {
        let key = store.key(&path(&below))?;
        let old = found.get(&key);
        if old.is_none_or(|kv| kv.value != value) {
            let sign = if old.is_some() { '~' } else { '+' };
            changes.push((sign, key.clone(), old.map_or(0, |kv| kv.mod_revision), Some(value)));
        }
        named.push(key);
    }
    if prune {
        for (key, kv) in found.iter().filter(|(key, _)| !named.contains(key)) {
            changes.push(('-', key.clone(), kv.mod_revision, None));
        }
    }
    if changes.is_empty() {
        println!("nothing to change");
        return Ok(());
    }
    if dry_run {
        for (sign, key, ..) in &changes {
            println!("{sign} {}", store.path(key));
        }
        return Ok(());
    }
    let count = |wanted: char| changes.iter().filter(|(sign, ..)| *sign == wanted).count();
    let (added, changed, removed) = (count('+'), count('~'), count('-'));
    let changes = changes.into_iter().map(|(_, key, seen, value)| {
        let op = match value {
            Some(value) => Op::put(key.clone(), value),
            None => Op::delete(key.clone()),
        };
        (key, seen, op)
    });
    let revision = store.change_all(changes.collect()).await?;
    println!("{added} added, {changed} changed, {removed} removed, revision {revision}");
    Ok(())
}

/// `dhow config export`.
pub async fn export(store: &Store, path: &str, format: Format, revision: i64) -> Result<()> {
    let (found, _) = store.tree(path, revision).await?;
    let path = normal(path)?;
    let mut values = BTreeMap::new();
    for kv in found {
        let own = store.path(&kv.key);
        let below = own.strip_prefix(path.as_str()).unwrap_or(&own).trim_start_matches('/');
        values.insert(below.to_owned(), kv.value);
    }
    print!("{}", write(&values, format)?);
    Ok(())
}

fn guess(file: &Path) -> Option<Format> {
    let name = file.file_name()?.to_str()?;
    match name.rsplit_once('.').map_or(name, |(_, ending)| ending) {
        "json" => Some(Format::Json),
        "yaml" | "yml" => Some(Format::Yaml),
        "env" => Some(Format::Env),
        _ => None,
    }
}

/// The values of a text by path.
pub fn parse(text: &str, format: Format) -> Result<BTreeMap<String, Bytes>> {
    let tree = match format {
        Format::Json => written::json(text)?,
        Format::Yaml => written::yaml(text)?,
        Format::Env => return parse_env(text),
    };
    let mut values = BTreeMap::new();
    if !matches!(tree, Node::Folder(_)) {
        bail!("it must be an object: names and what they stand for");
    }
    flatten("", tree, &mut values)?;
    Ok(values)
}

fn flatten(path: &str, node: Node, values: &mut BTreeMap<String, Bytes>) -> Result<()> {
    let all = match node {
        Node::Folder(all) => all,
        Node::Text(text) => return insert(path, text.into_bytes(), values),
        Node::Empty => bail!("{path} has no value: give it one, or leave it out"),
    };
    if let [(name, Node::Text(encoded))] = all.as_slice()
        && name == BINARY
    {
        let decoded = STANDARD.decode(encoded);
        return insert(path, decoded.with_context(|| format!("{path} is no base64"))?, values);
    }
    for (name, node) in all {
        let below = match (path, name.as_str()) {
            (path, "") if !path.is_empty() => path.to_owned(),
            ("", name) => normal(name)?,
            (path, name) => format!("{path}/{}", normal(name)?),
        };
        // Only a value can be a folder's own, or it would hide in the tree.
        let binary = |all: &[(String, Node)]| all.len() == 1 && all[0].0 == BINARY;
        if name.is_empty() && matches!(&node, Node::Folder(all) if !binary(all)) {
            bail!("the empty name at {path:?} must stand for a value");
        }
        flatten(&below, node, values)?;
    }
    Ok(())
}

fn insert(path: &str, value: Vec<u8>, values: &mut BTreeMap<String, Bytes>) -> Result<()> {
    if path.is_empty() {
        bail!("a value has no name");
    }
    if values.insert(path.to_owned(), value.into()).is_some() {
        bail!("{path} is given twice");
    }
    Ok(())
}

/// Lines `NAME=value`, as shells and Docker read them: comments, `export`, and quotes around a value.
fn parse_env(text: &str) -> Result<BTreeMap<String, Bytes>> {
    let mut values = BTreeMap::new();
    for (number, line) in text.lines().enumerate() {
        let line = line.trim();
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        let line = line.strip_prefix("export ").unwrap_or(line);
        let wrong = || format!("line {}: NAME=value is expected", number + 1);
        let (name, value) = line.split_once('=').with_context(wrong)?;
        let name = name.trim();
        if name.is_empty() || name.contains(char::is_whitespace) {
            bail!("{}", wrong());
        }
        let value = value.trim();
        let value = match value.chars().next() {
            Some('\'') => {
                let inner = value[1..].strip_suffix('\'');
                // The way in which shells write a quote between quotes.
                inner
                    .with_context(|| format!("line {}: a quote is not closed", number + 1))?
                    .replace("'\\''", "'")
            }
            Some('"') => {
                let inner = value[1..].strip_suffix('"');
                unescape(
                    inner.with_context(|| format!("line {}: a quote is not closed", number + 1))?,
                )
            }
            _ => value.split(" #").next().unwrap_or_default().trim_end().to_owned(),
        };
        insert(&normal(name)?, value.into_bytes(), &mut values)?;
    }
    Ok(values)
}

fn unescape(text: &str) -> String {
    let mut out = String::new();
    let mut chars = text.chars();
    while let Some(c) = chars.next() {
        match (c, c == '\\') {
            (_, true) => match chars.next() {
                Some('n') => out.push('\n'),
                Some('t') => out.push('\t'),
                Some(other) => out.push(other),
                None => out.push('\\'),
            },
            (c, _) => out.push(c),
        }
    }
    out
}

/// The values as a text.
pub fn write(values: &BTreeMap<String, Bytes>, format: Format) -> Result<String> {
    if format == Format::Env {
        return write_env(values);
    }
    let mut tree = Map::new();
    for (path, value) in values {
        let value = match std::str::from_utf8(value) {
            Ok(text) => json!(text),
            Err(_) => json!({BINARY: STANDARD.encode(value)}),
        };
        place(&mut tree, path, value)?;
    }
    let tree = Value::Object(tree);
    Ok(match format {
        Format::Yaml => serde_saphyr::to_string(&tree)?,
        _ => serde_json::to_string_pretty(&tree)? + "\n",
    })
}

/// Puts a value into a tree. Keys come in order, so that a folder's own value comes before the folder.
fn place(tree: &mut Map<String, Value>, path: &str, value: Value) -> Result<()> {
    let Some((name, below)) = path.split_once('/') else {
        match tree.get_mut(path) {
            Some(Value::Object(folder)) => folder.insert(String::new(), value),
            _ => tree.insert(path.to_owned(), value),
        };
        return Ok(());
    };
    let slot = tree.entry(name).or_insert_with(|| Value::Object(Map::new()));
    if !slot.is_object() || slot[BINARY].is_string() {
        let own = slot.take();
        *slot = json!({"": own});
    }
    match slot {
        Value::Object(folder) => place(folder, below, value),
        _ => Ok(()),
    }
}

fn write_env(values: &BTreeMap<String, Bytes>) -> Result<String> {
    let mut names = BTreeMap::new();
    for (path, value) in values {
        let name: String = path
            .chars()
            .map(|c| if c.is_ascii_alphanumeric() { c.to_ascii_uppercase() } else { '_' })
            .collect();
        let name =
            if name.starts_with(|c: char| c.is_ascii_digit()) { format!("_{name}") } else { name };
        let value = std::str::from_utf8(value)
            .with_context(|| format!("{path} is no text: a variable cannot hold it"))?;
        if let Some((other, _)) = names.insert(name.clone(), (path, value)) {
            bail!("{other} and {path} would both be {name}: export them as json or yaml");
        }
    }
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_./:@%+,".contains(c);
    let mut text = String::new();
    for (name, (path, value)) in names {
        if value.contains('\n') {
            bail!("{path} has several lines: export it as json or yaml");
        }
        match value.chars().all(plain) {
            true => text += &format!("{name}={value}\n"),
            false => text += &format!("{name}='{}'\n", value.replace('\'', "'\\''")),
        }
    }
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(text: &str, format: Format) -> Vec<(String, String)> {
        let all = parse(text, format).unwrap();
        all.into_iter().map(|(k, v)| (k, super::super::store::text(&v))).collect()
    }

    fn pair(key: &str, value: &str) -> (String, String) {
        (key.to_owned(), value.to_owned())
    }

    #[test]
    fn trees_become_paths_and_values_text() {
        let yaml = "shop:\n  db: {host: a, port: 5432, tls: yes}\n  tags: [x, y]\nname/of: z\n";
        assert_eq!(
            parsed(yaml, Format::Yaml),
            [
                pair("name/of", "z"),
                pair("shop/db/host", "a"),
                pair("shop/db/port", "5432"),
                pair("shop/db/tls", "yes"),
                pair("shop/tags", r#"["x","y"]"#),
            ]
        );
        for wrong in
            ["[1]", "{\"a\": null}", "{\"../a\": \"x\"}", "{\"\": \"x\"}", "{\"a\": {\"\": {}}}"]
        {
            assert!(parse(wrong, Format::Json).is_err(), "{wrong}");
        }
        assert!(parse(r#"{"a/b": "1", "a": {"b": "2"}}"#, Format::Json).is_err(), "twice");
    }

    #[test]
    fn what_is_exported_is_imported_as_it_was() {
        let values: BTreeMap<String, Bytes> = [
            ("a", "own"),
            ("a/b", "x: y\n# no comment\n"),
            ("a-b", "007"),
            ("a/b/c", "true"),
            ("list", "[1, 2]"),
            ("empty", ""),
            ("text", "ship's \"log\" ✓ "),
        ]
        .into_iter()
        .map(|(k, v)| (k.to_owned(), Bytes::from(v)))
        .chain([
            ("binary".to_owned(), Bytes::from_static(&[0xff, 0])),
            ("binary/x".into(), "1".into()),
        ])
        .collect();
        for format in [Format::Json, Format::Yaml] {
            let text = write(&values, format).unwrap();
            assert_eq!(parse(&text, format).unwrap(), values, "{text}");
        }
    }

    #[test]
    fn variables_are_read_as_shells_write_them() {
        let text = "# settings\nexport HOST=a.b \nPORT=80 # web\nGREETING='it'\\''s'\nTWO=\"a\\nb\"\nNONE=\n";
        assert_eq!(
            parsed(text, Format::Env),
            [
                pair("GREETING", "it's"),
                pair("HOST", "a.b"),
                pair("NONE", ""),
                pair("PORT", "80"),
                pair("TWO", "a\nb"),
            ]
        );
        assert!(parse("A B=1", Format::Env).unwrap_err().to_string().contains("line 1"));
        assert!(parse("A='x", Format::Env).is_err());
        let values = [("db/host", "a b"), ("db/port", "1")]
            .map(|(k, v)| (k.to_owned(), Bytes::from(v)))
            .into();
        assert_eq!(write(&values, Format::Env).unwrap(), "DB_HOST='a b'\nDB_PORT=1\n");
        let clash = ["a/b", "a-b"].map(|k| (k.to_owned(), Bytes::new())).into();
        assert!(write(&clash, Format::Env).unwrap_err().to_string().contains("A_B"));
    }
}
