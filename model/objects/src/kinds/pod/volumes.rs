//! Rules of volumes.

use super::super::check::Checks;
use super::super::column::{items, text};
use super::references;
use crate::names;
use serde_json::Value;
use std::collections::BTreeSet;

/// Checks volumes; the names of the good ones.
pub(super) fn all<'a>(checks: &mut Checks, path: &str, spec: &'a Value) -> BTreeSet<&'a str> {
    let mut names_seen = BTreeSet::new();
    for (i, volume) in items(spec, "/volumes").iter().enumerate() {
        let before = checks.len();
        let at = |field: &str| format!("{path}[{i}].{field}");
        let sources: Vec<&String> = volume
            .as_object()
            .into_iter()
            .flatten()
            .filter(|(key, value)| *key != "name" && !value.is_null())
            .map(|(key, _)| key)
            .collect();
        for extra in sources.iter().skip(1) {
            checks.forbidden(&at(extra), "may not specify more than 1 volume type");
        }
        if sources.is_empty() {
            checks.required(&format!("{path}[{i}]"), "must specify a volume type");
        }
        source(checks, &at, volume);
        let name = text(volume, "/name");
        if name.is_empty() {
            checks.required(&at("name"), "");
        } else {
            checks.invalid_all(&at("name"), name, names::dns_label(name));
        }
        if names_seen.contains(name) {
            checks.duplicate(&at("name"), name);
        }
        if checks.len() == before {
            names_seen.insert(name);
        }
    }
    names_seen
}

fn source(checks: &mut Checks, at: &dyn Fn(&str) -> String, volume: &Value) {
    for (kind, name) in [("secret", "secretName"), ("configMap", "name")] {
        let Some(source) = volume.get(kind) else { continue };
        if source.get(name).and_then(Value::as_str).unwrap_or_default().is_empty() {
            checks.required(&at(&format!("{kind}.{name}")), "");
        }
    }
    for kind in ["secret", "configMap", "downwardAPI", "projected"] {
        let Some(source) = volume.get(kind) else { continue };
        file_mode(checks, &at(&format!("{kind}.defaultMode")), source.get("defaultMode"));
        files(checks, &at(kind), kind, source);
    }
    if let Some(projected) = volume.get("projected") {
        projections(checks, &at("projected"), projected);
    }
    if let Some(image) = volume.get("image")
        && text(image, "/reference").is_empty()
    {
        checks.required(&at("image.reference"), "");
    }
    if let Some(path) = volume.get("hostPath") {
        match text(path, "/path") {
            "" => checks.required(&at("hostPath.path"), ""),
            p if p.split('/').any(|part| part == "..") => {
                checks.invalid(&at("hostPath.path"), p, "must not contain '..'");
            }
            _ => {}
        }
        let types = [
            "BlockDevice",
            "CharDevice",
            "Directory",
            "DirectoryOrCreate",
            "File",
            "FileOrCreate",
            "Socket",
        ];
        checks.maybe_one_of(&at("hostPath.type"), path.get("type"), &types);
    }
    if let Some(claim) = volume.get("persistentVolumeClaim")
        && text(claim, "/claimName").is_empty()
    {
        checks.required(&at("persistentVolumeClaim.claimName"), "");
    }
    if let Some(limit) = volume.pointer("/emptyDir/sizeLimit") {
        checks.quantity(&at("emptyDir.sizeLimit"), "storage", limit);
    }
}

fn file_mode(checks: &mut Checks, path: &str, mode: Option<&Value>) {
    if let Some(mode) = mode.and_then(Value::as_i64).filter(|m| !(0..=0o777).contains(m)) {
        checks.invalid(path, mode, "must be a number between 0 and 0777 (octal), both inclusive");
    }
}

/// The files that `items` of a source name.
fn files(checks: &mut Checks, at: &str, kind: &str, source: &Value) {
    for (i, item) in items(source, "/items").iter().enumerate() {
        let at = format!("{at}.items[{i}]");
        if kind == "downwardAPI" {
            match (item.get("fieldRef"), item.get("resourceFieldRef")) {
                (Some(_), Some(_)) => checks.invalid(
                    &at,
                    "resource",
                    "fieldRef and resourceFieldRef can not be specified simultaneously",
                ),
                (Some(field), None) => {
                    references::field(checks, &format!("{at}.fieldRef"), field, FIELDS);
                }
                (None, Some(resource)) => {
                    let at = format!("{at}.resourceFieldRef");
                    if text(resource, "/containerName").is_empty() {
                        checks.required(&format!("{at}.containerName"), "");
                    } else {
                        references::resource(checks, &at, resource);
                    }
                }
                (None, None) => {
                    checks.required(&at, "one of fieldRef and resourceFieldRef is required");
                }
            }
        } else if text(item, "/key").is_empty() {
            checks.required(&format!("{at}.key"), "");
        }
        file_path(checks, &format!("{at}.path"), text(item, "/path"));
        file_mode(checks, &format!("{at}.mode"), item.get("mode"));
    }
}

/// What `fieldRef` of a file may name.
const FIELDS: &[&str] = &[
    "metadata.annotations",
    "metadata.labels",
    "metadata.name",
    "metadata.namespace",
    "metadata.uid",
];

/// A token that lives shorter is hardly worth fetching.
const SHORTEST_TOKEN_SECONDS: i64 = 600;

/// The sources of a projected volume: no two of them make the same file.
fn projections(checks: &mut Checks, at: &str, projected: &Value) {
    let mut paths = BTreeSet::new();
    for (i, source) in items(projected, "/sources").iter().enumerate() {
        let here = format!("{at}.sources[{i}]");
        let mut given = 0;
        for kind in ["secret", "configMap", "downwardAPI", "serviceAccountToken"] {
            let Some(source) = source.get(kind) else { continue };
            let here = format!("{here}.{kind}");
            given += 1;
            if given > 1 {
                checks.forbidden(&here, "may not specify more than 1 volume type");
            }
            if matches!(kind, "secret" | "configMap") && text(source, "/name").is_empty() {
                checks.required(&format!("{here}.name"), "");
            }
            if kind == "serviceAccountToken" {
                let seconds = source.get("expirationSeconds").and_then(Value::as_i64);
                if let Some(seconds) = seconds.filter(|s| *s < SHORTEST_TOKEN_SECONDS) {
                    let detail = "may not specify a duration less than 10 minutes";
                    checks.invalid(&format!("{here}.expirationSeconds"), seconds, detail);
                }
                file_path(checks, &format!("{here}.path"), text(source, "/path"));
            }
            files(checks, &here, kind, source);
            let token = Some(text(source, "/path")).filter(|_| kind == "serviceAccountToken");
            let made = items(source, "/items").iter().map(|item| text(item, "/path")).chain(token);
            for path in made.filter(|path| !path.is_empty()) {
                if !paths.insert(path) {
                    let name = text(source, "/name");
                    let told = if name.is_empty() { path } else { name };
                    checks.invalid(at, told, "conflicting duplicate paths");
                }
            }
        }
    }
}

/// The path of a file within its volume.
fn file_path(checks: &mut Checks, at: &str, path: &str) {
    match path {
        "" => checks.required(at, ""),
        path if path.starts_with('/') => checks.invalid(at, path, "must be a relative path"),
        path if path.split('/').any(|part| part == "..") => {
            checks.invalid(at, path, "must not contain '..'");
        }
        path if path.starts_with("..") => {
            checks.invalid(at, path, "must not start with '..'");
        }
        _ => {}
    }
}
