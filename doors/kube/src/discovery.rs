//! Discovery: which groups, versions and resources are served.
//!
//! Both forms: aggregated (`apidiscovery.k8s.io/v2`), one document each for `/api` and `/apis`, and
//! the older one, a document per group and version. All are made once, because kinds are rows.

use crate::catalog::{self, REVIEWS};
use crate::codec::api_version;
use crate::negotiate;
use crate::respond::{self, Reply};
use bytes::Bytes;
use dhow_objects::Status;
use dhow_objects::kinds::{self, Kind};
use http::header::{self, HeaderMap, HeaderValue};
use serde_json::{Value, json};
use std::collections::HashMap;
use std::hash::{DefaultHasher, Hash, Hasher};

const AGGREGATED: &str = "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList";

/// A document with its entity tag.
#[derive(Debug, Clone)]
struct Document {
    bytes: Bytes,
    etag: HeaderValue,
}

impl Document {
    fn new(value: &Value) -> Self {
        let text = value.to_string();
        let mut hasher = DefaultHasher::new();
        text.hash(&mut hasher);
        let etag = HeaderValue::from_str(&format!("\"{:016X}\"", hasher.finish()))
            // Quotes and hexadecimal digits are always valid in a header.
            .unwrap_or_else(|_| HeaderValue::from_static("\"0\""));
        Self { bytes: text.into(), etag }
    }
}

/// Every discovery document.
#[derive(Debug)]
pub struct Documents {
    legacy_aggregated: Document,
    groups_aggregated: Document,
    legacy: Document,
    groups: Document,
    group: HashMap<String, Document>,
    version: HashMap<(String, String), Document>,
    root: Document,
}

impl Documents {
    /// Makes the documents. `service_host` is where `/api` says that the server is.
    pub fn new(service_host: &str) -> Self {
        let all = catalog::groups();
        let (legacy, named): (Vec<_>, Vec<_>) = all.iter().partition(|(name, _)| name.is_empty());
        let list = |groups: &[&(&'static str, Vec<&'static str>)]| {
            let items: Vec<Value> = groups.iter().map(|(g, v)| aggregated_group(g, v)).collect();
            Document::new(&json!({
                "kind": "APIGroupDiscoveryList",
                "apiVersion": "apidiscovery.k8s.io/v2",
                "metadata": {},
                "items": items,
            }))
        };
        let mut version = HashMap::new();
        for (name, versions) in &all {
            for v in versions {
                let document = Document::new(&resource_list(name, v));
                version.insert(((*name).to_owned(), (*v).to_owned()), document);
            }
        }
        let group = named
            .iter()
            .map(|(name, versions)| {
                let mut one = group_object(name, versions);
                one["kind"] = "APIGroup".into();
                one["apiVersion"] = "v1".into();
                ((*name).to_owned(), Document::new(&one))
            })
            .collect();
        let mut paths = vec!["/api".to_owned(), "/api/v1".to_owned(), "/apis".to_owned()];
        for (name, versions) in &named {
            paths.push(format!("/apis/{name}"));
            paths.extend(versions.iter().map(|v| format!("/apis/{name}/{v}")));
        }
        let fixed = [
            "/healthz",
            "/livez",
            "/metrics",
            "/openapi/v3",
            "/openid/v1/jwks",
            "/readyz",
            "/version",
        ];
        paths.extend(fixed.map(str::to_owned));
        Self {
            legacy_aggregated: list(&legacy),
            groups_aggregated: list(&named),
            legacy: Document::new(&json!({
                "kind": "APIVersions",
                "versions": ["v1"],
                "serverAddressByClientCIDRs":
                    [{"clientCIDR": "0.0.0.0/0", "serverAddress": service_host}],
            })),
            groups: Document::new(&json!({
                "kind": "APIGroupList",
                "apiVersion": "v1",
                "groups": named.iter().map(|(g, v)| group_object(g, v)).collect::<Vec<_>>(),
            })),
            group,
            version,
            root: Document::new(&json!({ "paths": paths })),
        }
    }

    /// `/`.
    pub fn root(&self, headers: &HeaderMap) -> Reply {
        Ok(serve(headers, &self.root, "application/json"))
    }

    /// `/api`.
    pub fn legacy(&self, headers: &HeaderMap) -> Reply {
        choose(headers, &self.legacy_aggregated, &self.legacy)
    }

    /// `/apis`.
    pub fn groups(&self, headers: &HeaderMap) -> Reply {
        choose(headers, &self.groups_aggregated, &self.groups)
    }

    /// `/apis/GROUP`.
    pub fn group(&self, headers: &HeaderMap, group: &str) -> Reply {
        let document = self.group.get(group).ok_or_else(catalog::no_such_resource)?;
        Ok(serve(headers, document, "application/json"))
    }

    /// `/api/v1` and `/apis/GROUP/VERSION`.
    pub fn version(&self, headers: &HeaderMap, group: &str, version: &str) -> Reply {
        let key = (group.to_owned(), version.to_owned());
        let document = self.version.get(&key).ok_or_else(catalog::no_such_resource)?;
        Ok(serve(headers, document, "application/json"))
    }
}

/// The aggregated form when asked for, else the older one.
fn choose(headers: &HeaderMap, aggregated: &Document, plain: &Document) -> Reply {
    for clause in negotiate::clauses(headers) {
        match clause.media.as_str() {
            "application/json" if clause.parameter("as") == "APIGroupDiscoveryList" => {
                let known = clause.parameter("g") == "apidiscovery.k8s.io";
                if known && clause.parameter("v") == "v2" {
                    let mut response = serve(headers, aggregated, AGGREGATED);
                    response.headers_mut().insert(header::VARY, HeaderValue::from_static("Accept"));
                    return Ok(response);
                }
            }
            "application/json" | "application/*" | "*/*" => {
                let mut response = serve(headers, plain, "application/json");
                response.headers_mut().insert(header::VARY, HeaderValue::from_static("Accept"));
                return Ok(response);
            }
            _ => {}
        }
    }
    Err(Status::not_acceptable("only the following media types are accepted: application/json"))
}

fn serve(
    headers: &HeaderMap,
    document: &Document,
    media_type: &'static str,
) -> http::Response<respond::Body> {
    let known = headers.get(header::IF_NONE_MATCH).is_some_and(|tag| tag == document.etag);
    let mut response = respond::reply(if known { 304 } else { 200 }, media_type, Bytes::new());
    response.headers_mut().insert(header::ETAG, document.etag.clone());
    let cache = HeaderValue::from_static("public");
    response.headers_mut().insert(header::CACHE_CONTROL, cache);
    if known {
        return response;
    }
    respond::maybe_compressed(headers, response, document.bytes.clone())
}

fn group_object(group: &str, versions: &[&'static str]) -> Value {
    let named = |v: &&str| json!({"groupVersion": api_version(group, v), "version": v});
    json!({
        "name": group,
        "versions": versions.iter().map(named).collect::<Vec<_>>(),
        "preferredVersion": versions.first().map(named),
    })
}

fn kinds_of(group: &str, version: &str) -> Vec<&'static Kind> {
    let mut found: Vec<_> = kinds::all()
        .iter()
        .copied()
        .filter(|kind| kind.group == group && kind.version == version)
        .collect();
    found.sort_by_key(|kind| kind.plural);
    found
}

fn aggregated_group(group: &str, versions: &[&'static str]) -> Value {
    let versions: Vec<Value> = versions
        .iter()
        .map(|version| {
            json!({
                "version": version,
                "resources": aggregated_resources(group, version),
                "freshness": "Current",
            })
        })
        .collect();
    json!({"metadata": {"name": group, "creationTimestamp": null}, "versions": versions})
}

fn scope(namespaced: bool) -> &'static str {
    if namespaced { "Namespaced" } else { "Cluster" }
}

fn aggregated_resources(group: &str, version: &str) -> Vec<Value> {
    let stored = kinds_of(group, version).into_iter().map(|kind| {
        let mut one = json!({
            "resource": kind.plural,
            "responseKind": {"group": kind.group, "version": kind.version, "kind": kind.kind},
            "scope": scope(kind.namespaced),
            "singularResource": kind.singular,
            "verbs": kind.verbs,
        });
        if !kind.short_names.is_empty() {
            one["shortNames"] = json!(kind.short_names);
        }
        if !kind.categories.is_empty() {
            one["categories"] = json!(kind.categories);
        }
        let below: Vec<Value> = kind
            .subresources
            .iter()
            .map(|sub| {
                json!({
                    "subresource": sub.name,
                    "responseKind":
                        {"group": sub.group, "version": sub.version, "kind": sub.kind},
                    "verbs": sub.verbs,
                })
            })
            .collect();
        if !below.is_empty() {
            one["subresources"] = below.into();
        }
        one
    });
    let asked = REVIEWS.iter().filter(|r| r.group == group && r.version == version).map(|review| {
        json!({
            "resource": review.plural,
            "responseKind":
                {"group": review.group, "version": review.version, "kind": review.kind},
            "scope": scope(review.namespaced),
            "singularResource": review.kind.to_ascii_lowercase(),
            "verbs": ["create"],
        })
    });
    stored.chain(asked).collect()
}

fn resource_list(group: &str, version: &str) -> Value {
    let mut resources = Vec::new();
    for kind in kinds_of(group, version) {
        let mut one = json!({
            "name": kind.plural,
            "singularName": kind.singular,
            "namespaced": kind.namespaced,
            "kind": kind.kind,
            "verbs": kind.verbs,
        });
        if !kind.short_names.is_empty() {
            one["shortNames"] = json!(kind.short_names);
        }
        if !kind.categories.is_empty() {
            one["categories"] = json!(kind.categories);
        }
        resources.push(one);
        for sub in kind.subresources {
            let mut one = json!({
                "name": format!("{}/{}", kind.plural, sub.name),
                "singularName": "",
                "namespaced": kind.namespaced,
                "kind": sub.kind,
                "verbs": sub.verbs,
            });
            if (sub.group, sub.version) != (group, version) {
                one["group"] = sub.group.into();
                one["version"] = sub.version.into();
            }
            resources.push(one);
        }
    }
    for review in REVIEWS.iter().filter(|r| r.group == group && r.version == version) {
        resources.push(json!({
            "name": review.plural,
            "singularName": review.kind.to_ascii_lowercase(),
            "namespaced": review.namespaced,
            "kind": review.kind,
            "verbs": ["create"],
        }));
    }
    json!({
        "kind": "APIResourceList",
        "apiVersion": "v1",
        "groupVersion": api_version(group, version),
        "resources": resources,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn accept(text: &'static str) -> HeaderMap {
        let mut headers = HeaderMap::new();
        headers.insert(header::ACCEPT, HeaderValue::from_static(text));
        headers
    }

    #[test]
    fn kubectls_accept_header_gets_the_aggregated_form() {
        let documents = Documents::new("127.0.0.1:6443");
        let headers = accept(concat!(
            "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList,",
            "application/json"
        ));
        let reply = documents.groups(&headers).unwrap();
        assert_eq!(reply.headers()[header::CONTENT_TYPE], AGGREGATED);
        let plain = documents.groups(&accept("application/json")).unwrap();
        assert_eq!(plain.headers()[header::CONTENT_TYPE], "application/json");
    }

    #[test]
    fn a_known_tag_needs_no_body() {
        let documents = Documents::new("127.0.0.1:6443");
        let first = documents.legacy(&HeaderMap::new()).unwrap();
        let mut headers = HeaderMap::new();
        headers.insert(header::IF_NONE_MATCH, first.headers()[header::ETAG].clone());
        assert_eq!(documents.legacy(&headers).unwrap().status(), 304);
    }

    #[test]
    fn subresources_tell_their_own_kind() {
        let list = resource_list("apps", "v1");
        let scale = list["resources"]
            .as_array()
            .and_then(|all| all.iter().find(|one| one["name"] == "deployments/scale"))
            .cloned()
            .unwrap();
        assert_eq!((&scale["group"], &scale["kind"]), (&json!("autoscaling"), &json!("Scale")));
    }
}
