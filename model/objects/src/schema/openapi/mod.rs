//! OpenAPI v3 documents of the served kinds, as `kubectl explain`, `apply` and `diff` read them.
//!
//! A document is written piece by piece and never held parsed: compress it while it is written (or
//! keep the compressed bytes), and a document costs only what one type needs at a time. Follows the
//! documents of Kubernetes' own API server (`/openapi/v3/...`).

mod paths;
mod types;

use std::collections::BTreeSet;
use std::hash::Hasher;
use std::io::{self, Write};

use serde_json::{Map, Value, json};

use super::{Docs, Gvk, Type, schema};
use crate::hash::Stable;
use crate::kinds::{Kind, Subresource};

/// What a document tells of one kind.
#[derive(Debug, Clone, Copy)]
pub struct KindInfo<'a> {
    /// Kind, for example `Deployment`.
    pub kind: &'a str,
    /// Plural resource name.
    pub plural: &'a str,
    /// Whether objects live in namespaces.
    pub namespaced: bool,
    /// Verbs, as discovery tells them.
    pub verbs: &'a [&'a str],
    /// What lies below an object.
    pub subresources: &'a [Subresource],
}

impl From<&'static Kind> for KindInfo<'static> {
    fn from(kind: &'static Kind) -> Self {
        KindInfo {
            kind: kind.kind,
            plural: kind.plural,
            namespaced: kind.namespaced,
            verbs: kind.verbs,
            subresources: kind.subresources,
        }
    }
}

/// The name of a group version in the index: `api/v1`, `apis/apps/v1`.
pub fn path_of(group: &str, version: &str) -> String {
    if group.is_empty() { format!("api/{version}") } else { format!("apis/{group}/{version}") }
}

/// The index at `/openapi/v3`. Each document has a path ([`path_of`]) and a hash ([`hash`]), by
/// which clients keep it for good.
pub fn v3_index<'a>(documents: impl IntoIterator<Item = (&'a str, &'a str)>) -> Value {
    let paths: Map<String, Value> = documents
        .into_iter()
        .map(|(path, hash)| {
            (
                path.to_owned(),
                json!({"serverRelativeURL": format!("/openapi/v3/{path}?hash={hash}")}),
            )
        })
        .collect();
    json!({"paths": paths})
}

/// Sixteen hexadecimal digits that change when the document would change.
pub fn hash(group: &str, version: &str, kinds: &[KindInfo<'_>]) -> String {
    // Short and stable; nobody attacks an index of one's own kinds.
    let mut state = Stable::default();
    let mut feed = |text: &str| {
        state.write(text.as_bytes());
        state.write_u8(0);
    };
    feed(env!("CARGO_PKG_VERSION"));
    feed(&super::table_mark());
    feed(group);
    feed(version);
    for kind in kinds {
        feed(kind.kind);
        feed(kind.plural);
        feed(if kind.namespaced { "namespaced" } else { "cluster" });
        kind.verbs.iter().for_each(|verb| feed(verb));
        for sub in kind.subresources {
            feed(sub.name);
            feed(sub.kind);
            sub.verbs.iter().for_each(|verb| feed(verb));
        }
    }
    format!("{:016X}", state.finish())
}

/// The document of a group version as JSON text. See [`write_v3_document`] to compress it at once.
pub fn v3_document(group: &str, version: &str, kinds: &[KindInfo<'_>]) -> Vec<u8> {
    let mut out = Vec::new();
    // Writing to memory does not fail.
    let _ = write_v3_document(&mut out, group, version, kinds);
    out
}

/// Writes the document of a group version as JSON text.
///
/// # Errors
/// Only those of the writer.
pub fn write_v3_document(
    out: &mut impl Write,
    group: &str,
    version: &str,
    kinds: &[KindInfo<'_>],
) -> io::Result<()> {
    let mut docs = Docs::new();
    out.write_all(br#"{"components":{"schemas":"#)?;
    let mut entries = Entries::open(&mut *out)?;
    for ty in types_of(group, version, kinds) {
        entries.add(ty.name, &types::schema_of(ty, &mut docs))?;
    }
    entries.close()?;
    write!(
        out,
        r#","securitySchemes":{}}},"info":{},"openapi":"3.0.0","paths":"#,
        json!({"BearerToken": {
            "description": "Bearer Token authentication",
            "in": "header",
            "name": "authorization",
            "type": "apiKey",
        }}),
        json!({"title": "Kubernetes", "version": "unversioned"}),
    )?;
    let mut entries = Entries::open(&mut *out)?;
    let mut writer = paths::Paths::new(group, version, &mut docs);
    for (path, item) in writer.all(kinds) {
        entries.add(&path, &item)?;
    }
    entries.close()?;
    out.write_all(b"}")
}

/// Writes an object entry by entry.
struct Entries<'a, W: Write> {
    out: &'a mut W,
    first: bool,
}

impl<'a, W: Write> Entries<'a, W> {
    fn open(out: &'a mut W) -> io::Result<Self> {
        out.write_all(b"{")?;
        Ok(Entries { out, first: true })
    }

    fn add(&mut self, key: &str, value: &Value) -> io::Result<()> {
        if !self.first {
            self.out.write_all(b",")?;
        }
        self.first = false;
        serde_json::to_writer(&mut *self.out, key)?;
        self.out.write_all(b":")?;
        serde_json::to_writer(&mut *self.out, value)?;
        Ok(())
    }

    fn close(self) -> io::Result<()> {
        self.out.write_all(b"}")
    }
}

/// Every type that the document's operations need, with all that they refer to, sorted by name.
fn types_of(group: &str, version: &str, kinds: &[KindInfo<'_>]) -> Vec<&'static Type> {
    let meta = |name: &str| schema().type_named(&format!("{}{name}", types::META));
    let mut wanted: Vec<&'static Type> = meta("APIResourceList").into_iter().collect();
    for info in kinds {
        wanted.extend(schema().kind(group, version, info.kind));
        if info.verbs.contains(&"list") {
            wanted.extend(schema().kind(group, version, &format!("{}List", info.kind)));
        }
        for (verb, name) in [
            ("patch", "Patch"),
            ("delete", "DeleteOptions"),
            ("delete", "Status"),
            ("watch", "WatchEvent"),
        ] {
            if info.verbs.contains(&verb) {
                wanted.extend(meta(name));
            }
        }
        let below = info.subresources.iter().filter(|sub| !paths::is_stream(sub));
        wanted.extend(below.filter_map(|sub| schema().kind(sub.group, sub.version, sub.kind)));
    }
    let mut names = BTreeSet::new();
    let mut found = Vec::new();
    while let Some(ty) = wanted.pop() {
        if names.insert(ty.name) {
            found.push(ty);
            wanted.extend(types::refers_to(ty));
        }
    }
    found.sort_unstable_by_key(|ty| ty.name);
    found
}

/// A group, version and kind as documents name it.
fn gvk_value(gvk: &Gvk) -> Value {
    json!({"group": gvk.group, "version": gvk.version, "kind": gvk.kind})
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kinds;

    fn document(group: &str, version: &str) -> Value {
        let infos: Vec<KindInfo<'_>> = kinds::all()
            .iter()
            .filter(|k| (k.group, k.version) == (group, version))
            .map(|k| KindInfo::from(*k))
            .collect();
        serde_json::from_slice(&v3_document(group, version, &infos)).unwrap()
    }

    #[test]
    fn every_reference_leads_somewhere() {
        fn references<'v>(value: &'v Value, found: &mut BTreeSet<&'v str>) {
            match value {
                Value::Object(map) => {
                    found.extend(map.get("$ref").and_then(Value::as_str));
                    map.values().for_each(|v| references(v, found));
                }
                Value::Array(list) => list.iter().for_each(|v| references(v, found)),
                _ => {}
            }
        }
        for (group, version) in [("", "v1"), ("apps", "v1"), ("coordination.k8s.io", "v1")] {
            let document = document(group, version);
            let mut found = BTreeSet::new();
            references(&document, &mut found);
            assert!(found.len() > 10);
            for reference in found {
                let name = reference.strip_prefix("#/components/schemas/").unwrap();
                assert!(document["components"]["schemas"].get(name).is_some(), "{name}");
            }
        }
    }

    #[test]
    fn what_kubectl_looks_for_is_there() {
        let document = document("apps", "v1");
        let schemas = &document["components"]["schemas"];
        let kind = &schemas["io.k8s.api.apps.v1.Deployment"];
        assert_eq!(
            kind["x-kubernetes-group-version-kind"],
            json!([{"group": "apps", "version": "v1", "kind": "Deployment"}])
        );
        assert_eq!(
            kind["properties"]["spec"]["allOf"][0]["$ref"],
            "#/components/schemas/io.k8s.api.apps.v1.DeploymentSpec"
        );
        let containers = &schemas["io.k8s.api.core.v1.PodSpec"]["properties"]["containers"];
        assert_eq!(containers["x-kubernetes-patch-merge-key"], "name");
        assert_eq!(containers["x-kubernetes-patch-strategy"], "merge");
        assert_eq!(containers["x-kubernetes-list-type"], "map");
        assert_eq!(containers["x-kubernetes-list-map-keys"], json!(["name"]));

        let item = &document["paths"]["/apis/apps/v1/namespaces/{namespace}/deployments/{name}"];
        assert_eq!(item["patch"]["x-kubernetes-action"], "patch");
        assert_eq!(item["patch"]["x-kubernetes-group-version-kind"]["kind"], "Deployment");
        let names: Vec<&str> = item["patch"]["parameters"]
            .as_array()
            .unwrap()
            .iter()
            .filter_map(|p| p["name"].as_str())
            .collect();
        assert_eq!(names, ["dryRun", "fieldManager", "fieldValidation", "force"]);
    }

    #[test]
    fn the_hash_follows_the_kinds() {
        let all: Vec<KindInfo<'_>> = kinds::all().iter().map(|k| KindInfo::from(*k)).collect();
        assert_eq!(hash("", "v1", &all), hash("", "v1", &all));
        assert_ne!(hash("", "v1", &all), hash("", "v1", &all[1..]));
        assert_eq!(
            v3_index([("api/v1", "AB")]),
            json!({"paths": {"api/v1": {"serverRelativeURL": "/openapi/v3/api/v1?hash=AB"}}})
        );
    }
}
