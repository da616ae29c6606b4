//! Objects: get, list, create, update, patch, delete, and what lies below an object.

use crate::call::{Call, Verb};
use crate::catalog;
use crate::codec;
use crate::negotiate::{self, Form, View};
use crate::respond::{self, Body, Reply};
use crate::table::{Partial, Partials, Table};
use crate::{authorize, components, options, reviews, watch};
use bytes::{BufMut, Bytes, BytesMut};
use dhow_bodies::Upload;
use dhow_objects::Status;
use dhow_objects::kinds::Kind;
use dhow_state::{Deleted, List, Object, Patch, WriteOptions};
use http::Response;
use serde::Serialize;
use serde_json::{Value, json};

/// Answers a request for objects of a kind.
pub async fn serve(call: Call, kind: &'static Kind, body: Upload) -> Reply {
    if !call.path.subresource.is_empty() {
        return subresource(call, kind, body).await;
    }
    if !kind.verbs.contains(&call.verb.name()) {
        return Err(Status::method_not_allowed());
    }
    if kind.observed {
        return components::serve(&call, kind).await;
    }
    match call.verb {
        Verb::Get => get(&call, kind).await,
        Verb::List => list(&call, kind).await,
        Verb::Watch => watch::serve(&call, kind).await,
        Verb::Create => create(&call, kind, body).await,
        Verb::Update => update(&call, kind, body).await,
        Verb::Patch => patch(&call, kind, body).await,
        Verb::Delete => delete(&call, kind, body).await,
        Verb::DeleteCollection => delete_collection(&call, kind, body).await,
    }
}

/// The reply that shows one object in the form that was asked for.
pub fn show(call: &Call, form: Form, code: u16, object: &Object) -> Reply {
    match form.view {
        View::Object if form.yaml => yaml(code, object.value()),
        View::Object => Ok(sent(call, code, object.bytes.clone())),
        View::Table => shown(call, form, code, &Table::one(call, form, object)),
        View::Metadata => shown(call, form, code, &Partial::of(object, form.beta)),
    }
}

/// The reply that shows what is made of objects.
fn shown(call: &Call, form: Form, code: u16, what: &impl Serialize) -> Reply {
    if form.yaml {
        return yaml(code, &serde_json::to_value(what).map_err(Status::internal)?);
    }
    Ok(sent(call, code, respond::to_bytes(what)?))
}

/// The reply of bytes that are JSON, compressed where that pays.
fn sent(call: &Call, code: u16, bytes: Bytes) -> Response<Body> {
    respond::maybe_compressed(&call.head.headers, respond::json_bytes(code, Bytes::new()), bytes)
}

/// The reply that shows a value that is not a stored object.
pub fn show_value(form: Form, code: u16, value: &Value) -> Reply {
    if form.yaml { yaml(code, value) } else { respond::json(code, value) }
}

fn yaml(code: u16, value: &Value) -> Reply {
    Ok(respond::reply(code, "application/yaml", codec::to_yaml(value)?))
}

async fn get(call: &Call, kind: &'static Kind) -> Reply {
    let form = negotiate::objects(&call.head.headers)?;
    let object = call.door.state.get(kind, call.namespace(), call.name()?).await?;
    show(call, form, 200, &object)
}

/// `metadata` of a list.
pub fn list_meta(list: &List) -> Value {
    let mut meta = json!({ "resourceVersion": list.revision.to_string() });
    if !list.continue_token.is_empty() {
        meta["continue"] = list.continue_token.as_str().into();
        if let Some(remaining) = list.remaining {
            meta["remainingItemCount"] = remaining.into();
        }
    }
    meta
}

/// A list as JSON; the objects' bytes are copied.
fn list_bytes(kind: &Kind, list: &List) -> Bytes {
    let size: usize = list.items.iter().map(|object| object.bytes.len() + 1).sum();
    let mut out = BytesMut::with_capacity(size + 256);
    let head = format!(
        "{{\"kind\":\"{}List\",\"apiVersion\":\"{}\",\"metadata\":{},\"items\":[",
        kind.kind,
        kind.api_version(),
        list_meta(list)
    );
    out.put_slice(head.as_bytes());
    for (index, object) in list.items.iter().enumerate() {
        if index > 0 {
            out.put_u8(b',');
        }
        out.put_slice(&object.bytes);
    }
    out.put_slice(b"]}");
    out.freeze()
}

/// The reply that shows a list in the form that was asked for.
pub fn show_list(call: &Call, form: Form, kind: &Kind, list: &List) -> Reply {
    match form.view {
        View::Object if form.yaml => {
            let value =
                serde_json::from_slice(&list_bytes(kind, list)).map_err(Status::internal)?;
            yaml(200, &value)
        }
        View::Object => Ok(sent(call, 200, list_bytes(kind, list))),
        View::Table => shown(call, form, 200, &Table::many(call, form, kind, list)),
        View::Metadata => shown(call, form, 200, &Partials::of(list, form.beta)),
    }
}

async fn list(call: &Call, kind: &'static Kind) -> Reply {
    let form = negotiate::objects(&call.head.headers)?;
    let options = options::list(call, kind)?;
    let list = call.door.state.list(kind, call.path.namespace.as_deref(), &options).await?;
    show_list(call, form, kind, &list)
}

/// Adds the warnings that were gathered on the way.
fn warned(reply: Reply, options: &WriteOptions) -> Reply {
    let mut response = reply?;
    if let Ok(warnings) = options.warnings.lock() {
        respond::warn(&mut response, &warnings);
    }
    Ok(response)
}

async fn create(call: &Call, kind: &'static Kind, body: Upload) -> Reply {
    if call.path.name.is_some() {
        return Err(Status::method_not_allowed());
    }
    let form = negotiate::objects(&call.head.headers)?;
    let options = options::write(call, "CreateOptions")?;
    let bytes = codec::read(body).await?;
    let decoded = codec::object(&call.head.headers, &bytes, kind.group, kind.version, kind.kind)?;
    let value = codec::accept(decoded, kind.group, kind.version, kind.kind, &options)?;
    let object =
        call.door.state.create(&call.actor(), kind, call.namespace(), value, &options).await?;
    warned(show(call, form, 201, &object), &options)
}

async fn update(call: &Call, kind: &'static Kind, body: Upload) -> Reply {
    let form = negotiate::objects(&call.head.headers)?;
    let options = options::write(call, "UpdateOptions")?;
    let bytes = codec::read(body).await?;
    let decoded = codec::object(&call.head.headers, &bytes, kind.group, kind.version, kind.kind)?;
    let value = codec::accept(decoded, kind.group, kind.version, kind.kind, &options)?;
    let name = call.name()?;
    let (state, actor, namespace) = (&call.door.state, call.actor(), call.namespace());
    if kind.create_on_update && state.cached(kind, namespace, name).is_none() {
        // Whoever may only change objects must not make them this way.
        authorize::resource(state, &call.user, Verb::Create, &call.path)?;
        match state.create_named(&actor, kind, namespace, name, value.clone(), &options).await {
            // The cache was behind, or somebody was faster.
            Err(refusal) if refusal.reason == "AlreadyExists" => {}
            made => {
                let object = made?;
                return warned(show(call, form, 201, &object), &options);
            }
        }
    }
    let object = state.update(&actor, kind, namespace, name, "", value, &options).await?;
    warned(show(call, form, 200, &object), &options)
}

/// Reads a patch.
async fn read_patch(call: &Call, body: Upload, options: &WriteOptions) -> Result<Patch, Status> {
    let media = codec::media_type(&call.head.headers);
    let known = matches!(
        media.as_str(),
        "application/json-patch+json"
            | "application/merge-patch+json"
            | "application/strategic-merge-patch+json"
            | "application/apply-patch+yaml"
    );
    if !known {
        return Err(Status::unsupported_media_type(format!(
            "the body of the request was in an unknown format ({media}) - accepted media types include: application/json-patch+json, application/merge-patch+json, application/strategic-merge-patch+json, application/apply-patch+yaml"
        )));
    }
    let apply = media == "application/apply-patch+yaml";
    let force = call.query.flag("force");
    if apply && call.query.get("fieldManager").is_none() {
        return Err(Status::bad_request(
            "PatchOptions.meta.k8s.io \"\" is invalid: fieldManager: Required value: is required for apply patch",
        ));
    }
    if force && !apply {
        return Err(Status::bad_request(
            "PatchOptions.meta.k8s.io \"\" is invalid: force: Forbidden: may not be specified for non-apply patch",
        ));
    }
    let bytes = codec::read(body).await?;
    let decoded = if apply { codec::yaml(&bytes)? } else { codec::json(&bytes)? };
    let value = codec::accept_patch(decoded, options)?;
    let patch = match media.as_str() {
        "application/json-patch+json" => Patch::Json(value),
        "application/merge-patch+json" => Patch::Merge(value),
        "application/strategic-merge-patch+json" => Patch::Strategic(value),
        _ => Patch::Apply { value, force },
    };
    match &patch {
        Patch::Json(value) if !value.is_array() => {
            Err(Status::bad_request("error decoding patch: a JSON patch is an array of operations"))
        }
        Patch::Merge(value) | Patch::Strategic(value) | Patch::Apply { value, .. }
            if !value.is_object() =>
        {
            Err(Status::bad_request("error decoding patch: the patch is not an object"))
        }
        _ => Ok(patch),
    }
}

async fn patch(call: &Call, kind: &'static Kind, body: Upload) -> Reply {
    let form = negotiate::objects(&call.head.headers)?;
    let options = options::write(call, "PatchOptions")?;
    let patch = read_patch(call, body, &options).await?;
    let name = call.name()?;
    let (object, created) = call
        .door
        .state
        .patch(&call.actor(), kind, call.namespace(), name, "", patch, &options)
        .await?;
    warned(show(call, form, if created { 201 } else { 200 }, &object), &options)
}

/// The Status that tells that an object is gone.
fn gone(kind: &Kind, object: &Object) -> Value {
    let uid = object.uid();
    let mut details = json!({ "name": object.name, "kind": kind.plural, "uid": uid });
    if !kind.group.is_empty() {
        details["group"] = kind.group.into();
    }
    json!({
        "kind": "Status",
        "apiVersion": "v1",
        "metadata": {},
        "status": "Success",
        "details": details,
    })
}

async fn delete(call: &Call, kind: &'static Kind, body: Upload) -> Reply {
    let form = negotiate::objects(&call.head.headers)?;
    let bytes = codec::read(body).await?;
    let options = options::delete(call, &bytes)?;
    let name = call.name()?;
    let deleted =
        call.door.state.delete(&call.actor(), kind, call.namespace(), name, &options).await?;
    match deleted {
        // Pods are returned in their last state, as upstream does: clients read it.
        Deleted::Gone(object) if kind.graceful.is_some() => show(call, form, 200, &object),
        Deleted::Gone(object) => show_value(form, 200, &gone(kind, &object)),
        Deleted::Marked(object) => show(call, form, 200, &object),
    }
}

async fn delete_collection(call: &Call, kind: &'static Kind, body: Upload) -> Reply {
    let form = negotiate::objects(&call.head.headers)?;
    let bytes = codec::read(body).await?;
    let options = options::delete(call, &bytes)?;
    let selection = options::list(call, kind)?;
    let namespace = call.path.namespace.as_deref();
    let list = call
        .door
        .state
        .delete_collection(&call.actor(), kind, namespace, &selection, &options)
        .await?;
    show_list(call, form, kind, &list)
}

async fn subresource(call: Call, kind: &'static Kind, body: Upload) -> Reply {
    let below = kind.subresource(&call.path.subresource).ok_or_else(catalog::no_such_resource)?;
    if !below.verbs.contains(&call.verb.name()) {
        return Err(Status::method_not_allowed());
    }
    match (below.name, call.verb) {
        ("token", _) => return reviews::token(&call, kind, body).await,
        ("eviction", _) => return evict(&call, body).await,
        ("binding", _) => return bind(&call, body).await,
        _ => {}
    }
    let form = negotiate::objects(&call.head.headers)?;
    let show = |code: u16, object: &Object| {
        if below.kind == "Scale" && form.view == View::Table {
            return shown(&call, form, code, &Table::scale(&call, form, object));
        }
        show(&call, form, code, object)
    };
    let name = call.name()?;
    let state = &call.door.state;
    match call.verb {
        Verb::Get => {
            let object = state.get_subresource(kind, call.namespace(), name, below.name).await?;
            show(200, &object)
        }
        Verb::Update => {
            let options = options::write(&call, "UpdateOptions")?;
            let bytes = codec::read(body).await?;
            let decoded =
                codec::object(&call.head.headers, &bytes, below.group, below.version, below.kind)?;
            let value = codec::accept(decoded, below.group, below.version, below.kind, &options)?;
            let (actor, namespace) = (call.actor(), call.namespace());
            let object = match below.name {
                "finalize" => state.finalize_namespace(&actor, name, &value, &options).await?,
                below => {
                    state.update(&actor, kind, namespace, name, below, value, &options).await?
                }
            };
            warned(show(200, &object), &options)
        }
        Verb::Patch => {
            let options = options::write(&call, "PatchOptions")?;
            let patch = read_patch(&call, body, &options).await?;
            let (object, _) = state
                .patch(&call.actor(), kind, call.namespace(), name, below.name, patch, &options)
                .await?;
            warned(show(200, &object), &options)
        }
        _ => Err(Status::not_implemented(format!(
            "{}/{} is known but {} on it is not built yet",
            kind.plural,
            below.name,
            call.verb.name()
        ))),
    }
}

/// The Status that answers bindings and evictions.
fn done(code: u16) -> Reply {
    respond::json(
        code,
        &json!({
            "kind": "Status",
            "apiVersion": "v1",
            "metadata": {},
            "status": "Success",
            "code": code,
        }),
    )
}

async fn evict(call: &Call, body: Upload) -> Reply {
    let options = options::write(call, "CreateOptions")?;
    let bytes = codec::read(body).await?;
    let decoded = codec::object(&call.head.headers, &bytes, "policy", "v1", "Eviction")?;
    let eviction = codec::accept(decoded, "policy", "v1", "Eviction", &options)?;
    let name = call.name()?;
    let named = eviction.pointer("/metadata/name").and_then(Value::as_str).unwrap_or(name);
    if named != name {
        return Err(Status::bad_request(format!(
            "name in URL does not match name in Eviction object: {name} is not {named}"
        )));
    }
    let mut delete = options::from_value(eviction.get("deleteOptions").unwrap_or(&Value::Null))?;
    delete.dry_run |= options.dry_run;
    call.door.state.evict(&call.actor(), call.namespace(), name, &delete).await?;
    done(201)
}

async fn bind(call: &Call, body: Upload) -> Reply {
    let options = options::write(call, "CreateOptions")?;
    let bytes = codec::read(body).await?;
    let decoded = codec::object(&call.head.headers, &bytes, "", "v1", "Binding")?;
    let binding = codec::accept(decoded, "", "v1", "Binding", &options)?;
    let name = call.name()?;
    call.door.state.bind(&call.actor(), call.namespace(), name, &binding, &options).await?;
    done(201)
}
