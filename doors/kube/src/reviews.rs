//! Questions about identity and access, answered and never stored, and service account tokens.
//!
//! Follows `authentication.k8s.io/v1` and `authorization.k8s.io/v1`.

use crate::call::{Call, Verb};
use crate::catalog::Review;
use crate::codec;
use crate::negotiate::{self, View};
use crate::respond::Reply;
use crate::{options, resources};
use dhow_bodies::Upload;
use dhow_objects::kinds::Kind;
use dhow_objects::{Status, StatusCause};
use dhow_state::{Attributes, Bound, State, TokenRequest, User};
use serde_json::{Map, Value, json};

/// Answers a review.
pub async fn answer(call: Call, review: &'static Review, body: Upload) -> Reply {
    if call.verb != Verb::Create || call.path.name.is_some() {
        return Err(Status::method_not_allowed());
    }
    if review.namespaced != call.path.namespace.is_some() {
        return Err(crate::catalog::no_such_resource());
    }
    let mut form = negotiate::objects(&call.head.headers)?;
    form.view = View::Object;
    let options = options::write(&call, "CreateOptions")?;
    let bytes = codec::read(body).await?;
    let decoded =
        codec::object(&call.head.headers, &bytes, review.group, review.version, review.kind)?;
    let mut value = codec::accept(decoded, review.group, review.version, review.kind, &options)?;
    let state = &call.door.state;
    let status = match review.kind {
        "SelfSubjectReview" => json!({ "userInfo": user_info(&call.user) }),
        "TokenReview" => token_review(state, &value).await,
        "SelfSubjectAccessReview" => access(state, &call.user, &value["spec"])?,
        "SubjectAccessReview" => access(state, &subject(&value["spec"])?, &value["spec"])?,
        "LocalSubjectAccessReview" => {
            let namespace = call.namespace();
            let asked = text(&value["spec"]["resourceAttributes"], "namespace");
            if asked != namespace {
                return Err(invalid(
                    review.group,
                    review.kind,
                    "spec.resourceAttributes.namespace",
                    format!("Invalid value: {asked:?}: must match metadata.namespace"),
                ));
            }
            access(state, &subject(&value["spec"])?, &value["spec"])?
        }
        _ => rules(state, &call.user, text(&value["spec"], "namespace"))?,
    };
    if let Some(map) = value.as_object_mut() {
        map.insert("status".to_owned(), status);
        map.entry("metadata").or_insert_with(|| json!({ "creationTimestamp": null }));
    }
    resources::show_value(form, 201, &value)
}

fn text<'a>(value: &'a Value, name: &str) -> &'a str {
    value.get(name).and_then(Value::as_str).unwrap_or("")
}

fn texts(value: &Value, name: &str) -> Vec<String> {
    let all = value.get(name).and_then(Value::as_array).into_iter().flatten();
    all.filter_map(Value::as_str).map(str::to_owned).collect()
}

fn invalid(group: &str, kind: &str, field: &str, message: String) -> Status {
    let cause =
        StatusCause { reason: "FieldValueInvalid".to_owned(), message, field: field.to_owned() };
    Status::invalid(group, kind, "", vec![cause])
}

/// `authentication.k8s.io/v1.UserInfo`.
fn user_info(user: &User) -> Value {
    let mut info = json!({ "username": user.name, "groups": user.groups });
    if !user.uid.is_empty() {
        info["uid"] = user.uid.as_str().into();
    }
    if !user.extra.is_empty() {
        let extra: Map<String, Value> =
            user.extra.iter().map(|(name, values)| (name.clone(), json!(values))).collect();
        info["extra"] = extra.into();
    }
    info
}

async fn token_review(state: &State, value: &Value) -> Value {
    let spec = &value["spec"];
    let audiences = texts(spec, "audiences");
    match state.authenticate_token(text(spec, "token"), &audiences).await {
        Ok(user) => {
            let mut status = json!({ "authenticated": true, "user": user_info(&user) });
            if !audiences.is_empty() {
                status["audiences"] = json!(audiences);
            }
            status
        }
        Err(_) => json!({
            "user": {},
            "error": "[invalid bearer token, the token is not ours or not valid any more]",
        }),
    }
}

/// Whom a review asks about.
fn subject(spec: &Value) -> Result<User, Status> {
    let user = User {
        name: text(spec, "user").to_owned(),
        uid: text(spec, "uid").to_owned(),
        groups: texts(spec, "groups"),
        extra: Vec::new(),
    };
    if user.name.is_empty() && user.groups.is_empty() {
        let told = "Invalid value: \"\": at least one of user or group must be specified";
        return Err(invalid(
            "authorization.k8s.io",
            "SubjectAccessReview",
            "spec.user",
            told.into(),
        ));
    }
    Ok(user)
}

/// `status` of the access reviews.
fn access(state: &State, user: &User, spec: &Value) -> Result<Value, Status> {
    let (resource, path) = (spec.get("resourceAttributes"), spec.get("nonResourceAttributes"));
    let attributes = match (resource, path) {
        (Some(asked), None) => Attributes {
            verb: text(asked, "verb"),
            group: text(asked, "group"),
            resource: text(asked, "resource"),
            subresource: text(asked, "subresource"),
            namespace: text(asked, "namespace"),
            name: text(asked, "name"),
            path: "",
        },
        (None, Some(asked)) => Attributes {
            verb: text(asked, "verb"),
            path: text(asked, "path"),
            ..Attributes::default()
        },
        _ => {
            let told = "Invalid value: exactly one of nonResourceAttributes or resourceAttributes must be specified";
            return Err(invalid(
                "authorization.k8s.io",
                "SubjectAccessReview",
                "spec.resourceAttributes",
                told.into(),
            ));
        }
    };
    Ok(match state.authorize(user, &attributes) {
        Ok(()) => json!({ "allowed": true }),
        Err(refusal) if refusal.code == 403 => json!({ "allowed": false }),
        Err(other) => return Err(other),
    })
}

/// `status` of a rules review.
fn rules(state: &State, user: &User, namespace: &str) -> Result<Value, Status> {
    if namespace.is_empty() {
        return Err(Status::bad_request("no namespace on request"));
    }
    let (mut resource, mut other) = (Vec::new(), Vec::new());
    for rule in state.rules_of(user, namespace) {
        if rule.non_resource_urls.is_empty() {
            let mut one = json!({
                "verbs": rule.verbs,
                "apiGroups": rule.api_groups,
                "resources": rule.resources,
            });
            if !rule.resource_names.is_empty() {
                one["resourceNames"] = json!(rule.resource_names);
            }
            resource.push(one);
        } else {
            other.push(json!({ "verbs": rule.verbs, "nonResourceURLs": rule.non_resource_urls }));
        }
    }
    Ok(json!({ "resourceRules": resource, "nonResourceRules": other, "incomplete": false }))
}

/// `serviceaccounts/NAME/token`.
pub async fn token(call: &Call, kind: &'static Kind, body: Upload) -> Reply {
    let mut form = negotiate::objects(&call.head.headers)?;
    form.view = View::Object;
    let options = options::write(call, "CreateOptions")?;
    let bytes = codec::read(body).await?;
    let (group, version, wanted) = ("authentication.k8s.io", "v1", "TokenRequest");
    let decoded = codec::object(&call.head.headers, &bytes, group, version, wanted)?;
    let mut value = codec::accept(decoded, group, version, wanted, &options)?;
    let spec = &value["spec"];
    let bound = spec.get("boundObjectRef").filter(|bound| bound.is_object()).map(|bound| Bound {
        kind: text(bound, "kind").to_owned(),
        name: text(bound, "name").to_owned(),
        uid: text(bound, "uid").to_owned(),
    });
    let request = TokenRequest {
        audiences: texts(spec, "audiences"),
        expiration_seconds: spec["expirationSeconds"].as_i64().unwrap_or(0),
        bound,
    };
    let (namespace, name) = (call.namespace(), call.name()?);
    // A dry run still finds out whether it could be issued; the token is then kept back.
    let account = call.door.state.get(kind, namespace, name).await?;
    let issued = call.door.state.issue_token(namespace, &account.name, request).await?;
    let expires = jiff::Timestamp::from_second(issued.expires).map_err(Status::internal)?;
    let secret = if options.dry_run { String::new() } else { issued.token };
    value["metadata"] = json!({ "name": name, "namespace": namespace, "creationTimestamp": null });
    value["spec"]["audiences"] = json!(issued.audiences);
    value["status"] = json!({ "token": secret, "expirationTimestamp": expires.to_string() });
    resources::show_value(form, 201, &value)
}
