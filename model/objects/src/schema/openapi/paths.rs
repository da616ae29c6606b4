//! The paths of documents: what may be done with kinds, and with what parameters.

use std::collections::HashMap;

use serde_json::{Map, Value, json};

use super::{KindInfo, gvk_value, types::META};
use crate::kinds::Subresource;
use crate::schema::{Docs, FieldType, Gvk, Type, schema};

/// Options that upstream knows and that no part of this platform serves.
const NOT_SERVED: [&str; 2] = ["shardSelector", "ignoreStoreReadErrorWithClusterBreakingPotential"];

const PATCHES: [&str; 4] = [
    "application/apply-patch+yaml",
    "application/json-patch+json",
    "application/merge-patch+json",
    "application/strategic-merge-patch+json",
];

const LIST_MEDIA: [&str; 2] = ["application/json", "application/json;stream=watch"];
const MEDIA: [&str; 1] = ["application/json"];

/// Whether a subresource carries a stream (exec, attach, port-forward, log...) and no object.
pub fn is_stream(sub: &Subresource) -> bool {
    sub.name == "log" || sub.kind.ends_with("Options")
}

/// Makes the path items of one group version.
pub struct Paths<'d> {
    group: &'d str,
    version: &'d str,
    docs: &'d mut Docs,
    /// Parameters by the name of the options type.
    known: HashMap<String, Vec<Value>>,
}

/// One operation in the making.
struct Operation<'a> {
    /// HTTP method, lower case.
    method: &'static str,
    /// First word of the operation's id: `list`, `read`...
    id: &'static str,
    /// `x-kubernetes-action`.
    action: &'static str,
    description: String,
    /// Go types whose fields are the parameters.
    options: &'a [&'a str],
    /// Full name of the type that is sent.
    body: Option<Body>,
    /// Full name of the type that is answered; a string when there is none.
    answer: Option<&'static str>,
    /// What may be answered besides 200.
    also: &'a [(&'a str, &'a str)],
    media: &'a [&'a str],
}

enum Body {
    Required(&'static str),
    Optional(&'static str),
    Patch,
}

impl<'d> Paths<'d> {
    pub fn new(group: &'d str, version: &'d str, docs: &'d mut Docs) -> Self {
        Paths { group, version, docs, known: HashMap::new() }
    }

    fn root(&self) -> String {
        format!("/{}", super::path_of(self.group, self.version))
    }

    /// `rbacAuthorization` of `rbac.authorization.k8s.io`; `core` of the legacy group.
    fn short_group(&self) -> String {
        if self.group.is_empty() {
            return "core".to_owned();
        }
        let mut parts = self.group.trim_end_matches(".k8s.io").split('.');
        let first = parts.next().unwrap_or_default().to_owned();
        parts.fold(first, |all, part| all + &capital(part))
    }

    /// Every path with its item, sorted.
    pub fn all(&mut self, kinds: &[KindInfo<'_>]) -> Vec<(String, Value)> {
        let list = schema().type_named(&format!("{META}APIResourceList")).map(|ty| ty.name);
        let discovery = json!({"get": {
            "description": "get available resources",
            "operationId": format!(
                "get{}{}APIResources", capital(&self.short_group()), capital(self.version)
            ),
            "tags": [format!("{}_{}", self.short_group(), self.version)],
            "responses": responses(list, &[], &MEDIA),
        }});
        let mut all = vec![(format!("{}/", self.root()), discovery)];
        for info in kinds {
            self.kind(info, &mut all);
        }
        all.sort_by(|a, b| a.0.cmp(&b.0));
        all
    }

    fn kind(&mut self, info: &KindInfo<'_>, all: &mut Vec<(String, Value)>) {
        let Some(ty) = schema().kind(self.group, self.version, info.kind) else {
            return;
        };
        let Some(gvk) = ty.gvks.iter().find(|g| (g.group, g.version) == (self.group, self.version))
        else {
            return;
        };
        let list = schema().kind(self.group, self.version, &format!("{}List", info.kind));
        let has = |verb: &str| info.verbs.contains(&verb);
        let kind = info.kind;
        let scope = if info.namespaced { "Namespaced" } else { "" };
        let root = self.root();
        let place =
            if info.namespaced { format!("{root}/namespaces/{{namespace}}") } else { root.clone() };

        let listing = |description: String| Operation {
            method: "get",
            id: "list",
            action: "list",
            description,
            options: &["ListOptions"],
            body: None,
            answer: list.map(|ty| ty.name),
            also: &[],
            media: &LIST_MEDIA,
        };
        let list_text = format!("list or watch objects of kind {kind}");
        if info.namespaced && has("list") {
            let item = self.item(
                &[],
                vec![(listing(list_text.clone()), format!("{kind}ForAllNamespaces"), gvk)],
            );
            all.push((format!("{root}/{}", info.plural), item));
        }

        let mut operations = Vec::new();
        if has("deletecollection") {
            operations.push((
                Operation {
                    method: "delete",
                    id: "delete",
                    action: "deletecollection",
                    description: format!("delete collection of {kind}"),
                    options: &["DeleteOptions", "ListOptions"],
                    body: Some(Body::Optional("DeleteOptions")),
                    answer: meta("Status"),
                    also: &[],
                    media: &MEDIA,
                },
                format!("Collection{scope}{kind}"),
                gvk,
            ));
        }
        if has("list") {
            operations.push((listing(list_text), format!("{scope}{kind}"), gvk));
        }
        if has("create") {
            operations.push((
                create(format!("create a {kind}"), ty),
                format!("{scope}{kind}"),
                gvk,
            ));
        }
        let place_parameters: &[&str] = if info.namespaced { &["namespace"] } else { &[] };
        let collection = format!("{place}/{}", info.plural);
        if !operations.is_empty() {
            all.push((collection.clone(), self.item(place_parameters, operations)));
        }

        let name_parameters: &[&str] =
            if info.namespaced { &["name", "namespace"] } else { &["name"] };
        let mut operations: Vec<_> =
            object_operations(info.verbs, "the specified", kind, ty).into_iter().collect();
        if has("delete") {
            operations.push(Operation {
                method: "delete",
                id: "delete",
                action: "delete",
                description: format!("delete a {kind}"),
                options: &["DeleteOptions"],
                body: Some(Body::Optional("DeleteOptions")),
                answer: meta("Status"),
                also: &[("202", "Accepted")],
                media: &MEDIA,
            });
        }
        if !operations.is_empty() {
            let operations =
                operations.into_iter().map(|op| (op, format!("{scope}{kind}"), gvk)).collect();
            let item = self.item(name_parameters, operations);
            all.push((format!("{collection}/{{name}}"), item));
        }
        for sub in info.subresources {
            self.subresource(info, sub, &collection, name_parameters, all);
        }
    }

    fn subresource(
        &mut self,
        info: &KindInfo<'_>,
        sub: &Subresource,
        collection: &str,
        parameters: &[&str],
        all: &mut Vec<(String, Value)>,
    ) {
        let Some(ty) = schema().kind(sub.group, sub.version, sub.kind) else {
            return;
        };
        let gvk = &Gvk { group: sub.group, version: sub.version, kind: sub.kind };
        let scope = if info.namespaced { "Namespaced" } else { "" };
        let target = format!("{scope}{}{}", info.kind, capital(sub.name));
        let path = format!("{collection}/{{name}}/{}", sub.name);
        let mut operations: Vec<(Operation<'_>, String, &Gvk)> = Vec::new();
        let own_options = [sub.kind];
        if sub.name == "log" {
            operations.push((
                Operation {
                    method: "get",
                    id: "read",
                    action: "get",
                    description: format!("read log of the specified {}", info.kind),
                    options: &["PodLogOptions"],
                    body: None,
                    answer: None,
                    also: &[],
                    media: &["text/plain"],
                },
                target,
                gvk,
            ));
        } else if is_stream(sub) {
            for (verb, method, id) in
                [("get", "get", "connectGet"), ("create", "post", "connectPost")]
            {
                if sub.verbs.contains(&verb) {
                    let operation = Operation {
                        method,
                        id,
                        action: "connect",
                        description: format!(
                            "connect {} requests to {} of {}",
                            method.to_uppercase(),
                            sub.name,
                            info.kind
                        ),
                        options: &own_options,
                        body: None,
                        answer: None,
                        also: &[],
                        media: &["*/*"],
                    };
                    operations.push((operation, target.clone(), gvk));
                }
            }
        } else {
            let of = format!("{} of the specified", sub.name);
            for operation in object_operations(sub.verbs, &of, info.kind, ty) {
                operations.push((operation, target.clone(), gvk));
            }
            if sub.verbs.contains(&"create") {
                let text = format!("create {} of a {}", sub.name, info.kind);
                operations.push((create(text, ty), target, gvk));
            }
        }
        if !operations.is_empty() {
            let item = self.item(parameters, operations);
            all.push((path, item));
        }
    }

    /// A path item; parameters that all operations share stand at the path.
    fn item(&mut self, path: &[&str], operations: Vec<(Operation<'_>, String, &Gvk)>) -> Value {
        let mut shared: Option<Vec<Value>> = None;
        let mut parameters = Vec::new();
        for (operation, _, _) in &operations {
            let mut own: Vec<Value> = path.iter().map(|name| path_parameter(name)).collect();
            if operation.action != "connect" {
                own.push(json!({
                    "name": "pretty",
                    "in": "query",
                    "description": "If 'true', the output is printed with indentation.",
                    "schema": {"type": "string", "uniqueItems": true},
                }));
            }
            for options in operation.options {
                for parameter in self.options(options) {
                    let watching = ["watch", "allowWatchBookmarks"]
                        .iter()
                        .any(|name| parameter["name"] == *name);
                    let known = own.iter().any(|p| p["name"] == parameter["name"]);
                    let meaningless = watching && operation.method == "delete";
                    if !known && !meaningless {
                        own.push(parameter);
                    }
                }
            }
            own.sort_by(|a, b| a["name"].as_str().cmp(&b["name"].as_str()));
            shared = Some(match shared {
                None => own.clone(),
                Some(all) => all.into_iter().filter(|p| own.contains(p)).collect(),
            });
            parameters.push(own);
        }
        let shared = shared.unwrap_or_default();
        let mut item = Map::new();
        for ((operation, target, gvk), own) in operations.into_iter().zip(parameters) {
            let own: Vec<Value> = own.into_iter().filter(|p| !shared.contains(p)).collect();
            let title = format!("{}{}", capital(&self.short_group()), capital(self.version));
            // `connectGet` splits around the group: connectCoreV1GetNamespacedPodExec.
            let id = match operation.id.strip_prefix("connect") {
                Some(method) => format!("connect{title}{method}{target}"),
                None => format!("{}{title}{target}", operation.id),
            };
            let mut value = json!({
                "description": operation.description,
                "operationId": id,
                "tags": [format!("{}_{}", self.short_group(), self.version)],
                "responses": responses(operation.answer, operation.also, operation.media),
                "x-kubernetes-action": operation.action,
                "x-kubernetes-group-version-kind": gvk_value(gvk),
            });
            if !own.is_empty() {
                value["parameters"] = own.into();
            }
            if let Some(body) = &operation.body {
                value["requestBody"] = request(body);
            }
            item.insert(operation.method.to_owned(), value);
        }
        if !shared.is_empty() {
            item.insert("parameters".to_owned(), shared.into());
        }
        item.into()
    }

    /// The fields of an options type as query parameters.
    fn options(&mut self, name: &str) -> Vec<Value> {
        if let Some(known) = self.known.get(name) {
            return known.clone();
        }
        let made = self.make_options(name);
        self.known.insert(name.to_owned(), made.clone());
        made
    }

    fn make_options(&mut self, name: &str) -> Vec<Value> {
        let ty = schema()
            .type_named(&format!("{META}{name}"))
            .or_else(|| schema().type_named(&format!("io.k8s.api.core.v1.{name}")));
        let Some(ty) = ty else {
            return Vec::new();
        };
        let texts = self.docs.of_fields(ty);
        let mut out = Vec::new();
        for (field, text) in ty.fields().iter().zip(texts) {
            let inner = match field.ty {
                FieldType::List(item) => item,
                ref plain => plain,
            };
            let type_name = match inner {
                FieldType::Bool => "boolean",
                FieldType::Int32 | FieldType::Int64 => "integer",
                FieldType::String | FieldType::Time => "string",
                _ => continue,
            };
            if field.number == 0 || NOT_SERVED.contains(&field.json) {
                continue;
            }
            out.push(json!({
                "name": field.json,
                "in": "query",
                "description": text,
                "schema": {"type": type_name, "uniqueItems": true},
            }));
        }
        out
    }
}

fn meta(name: &str) -> Option<&'static str> {
    schema().type_named(&format!("{META}{name}")).map(|ty| ty.name)
}

fn create(description: String, ty: &'static Type) -> Operation<'static> {
    Operation {
        method: "post",
        id: "create",
        action: "post",
        description,
        options: &["CreateOptions"],
        body: Some(Body::Required(ty.name)),
        answer: Some(ty.name),
        also: &[("201", "Created"), ("202", "Accepted")],
        media: &MEDIA,
    }
}

/// Get, put and patch of an object, or of a part of it.
fn object_operations(
    verbs: &[&str],
    what: &str,
    kind: &str,
    ty: &'static Type,
) -> Vec<Operation<'static>> {
    let mut out = Vec::new();
    let operation = |method, id, text: &str, options, body, also| Operation {
        method,
        id,
        action: method,
        description: format!("{text} {what} {kind}"),
        options,
        body,
        answer: Some(ty.name),
        also,
        media: &MEDIA,
    };
    if verbs.contains(&"get") {
        out.push(operation("get", "read", "read", &[], None, &[]));
    }
    if verbs.contains(&"patch") {
        let created: &[_] = &[("201", "Created")];
        let body = Some(Body::Patch);
        let options: &[_] = &["PatchOptions"];
        out.push(operation("patch", "patch", "partially update", options, body, created));
    }
    if verbs.contains(&"update") {
        let created: &[_] = &[("201", "Created")];
        let body = Some(Body::Required(ty.name));
        let options: &[_] = &["UpdateOptions"];
        out.push(operation("put", "replace", "replace", options, body, created));
    }
    out
}

fn reference(name: &str) -> Value {
    json!({"$ref": format!("#/components/schemas/{name}")})
}

fn request(body: &Body) -> Value {
    match body {
        Body::Required(name) => {
            json!({"content": {"*/*": {"schema": reference(name)}}, "required": true})
        }
        Body::Optional(name) => {
            json!({"content": {"*/*": {"schema": reference(&format!("{META}{name}"))}}})
        }
        Body::Patch => {
            let schema = json!({"schema": reference(&format!("{META}Patch"))});
            let content: Map<String, Value> =
                PATCHES.iter().map(|media| ((*media).to_owned(), schema.clone())).collect();
            json!({"content": content, "required": true})
        }
    }
}

fn responses(answer: Option<&str>, also: &[(&str, &str)], media: &[&str]) -> Value {
    let schema = match answer {
        Some(name) => json!({"schema": reference(name)}),
        None => json!({"schema": {"type": "string"}}),
    };
    let content: Map<String, Value> =
        media.iter().map(|media| ((*media).to_owned(), schema.clone())).collect();
    let mut out = json!({
        "200": {"description": "OK", "content": content},
        "401": {"description": "Unauthorized"},
    });
    for (code, description) in also {
        out[*code] = json!({"description": description, "content": content});
    }
    out
}

fn path_parameter(name: &str) -> Value {
    let description = match name {
        "namespace" => "object name and auth scope, such as for teams and projects",
        _ => "name of the object",
    };
    json!({
        "name": name,
        "in": "path",
        "description": description,
        "required": true,
        "schema": {"type": "string", "uniqueItems": true},
    })
}

fn capital(word: &str) -> String {
    let mut chars = word.chars();
    chars.next().map_or_else(String::new, |first| first.to_uppercase().chain(chars).collect())
}
