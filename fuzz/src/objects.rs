//! Objects: bodies in every form, patches on them, selectors of them.

use crate::{Pure, Target};
use anyhow::{Context as _, Result};
use dhow_door_kube::codec;
use dhow_objects::patch;
use dhow_objects::schema::{protobuf, schema, shape, strict};
use dhow_objects::selectors::{FieldSelector, LabelSelector};
use serde_json::{Value, json};

fn pod() -> Value {
    json!({
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {
            "name": "web",
            "labels": { "app": "web" },
            "creationTimestamp": "2026-01-02T03:04:05Z",
        },
        "spec": {
            "containers": [{
                "name": "c",
                "image": "shop/web:v1",
                "ports": [{ "containerPort": 80, "name": "http" }],
                "resources": { "limits": { "cpu": "500m", "memory": "64Mi" } },
                "env": [{ "name": "A", "value": "b" }],
            }],
            "tolerations": [{ "key": "k", "operator": "Exists", "tolerationSeconds": 5 }],
        },
    })
}

/// Bodies: JSON, YAML and protobuf, the first byte says which.
pub(crate) fn object() -> Result<Box<dyn Target>> {
    let pod = pod();
    let ty = schema().kind("", "v1", "Pod").context("no type Pod")?;
    let yaml = codec::to_yaml(&pod).map_err(|status| anyhow::anyhow!("{status:?}"))?;
    let aliases = "a: &a [1, 2]\nb: [*a, *a]\n---\nc: |\n  text\n";
    let good = [
        (b'j', pod.to_string().into_bytes()),
        (b'y', yaml.into_bytes()),
        (b'y', aliases.as_bytes().to_vec()),
        (b'p', protobuf::encode(&pod, ty).context("protobuf")?),
    ];
    let good = good.iter().map(|(form, bytes)| [&[*form], bytes.as_slice()].concat()).collect();
    Ok(Box::new(Pure { good, take: take_object }))
}

fn take_object(bytes: &[u8]) -> Result<(), String> {
    let Some((form, body)) = bytes.split_first() else { return Ok(()) };
    let decoded = match form {
        b'j' => codec::json(body).ok().map(|decoded| decoded.value),
        b'y' => codec::yaml(body).ok().map(|decoded| decoded.value),
        _ => protobuf::decode(body).ok().map(|(_, _, value)| value),
    };
    let Some(value) = decoded else { return Ok(()) };
    let text = |name: &str| value.get(name).and_then(Value::as_str).unwrap_or_default();
    let Some(ty) = schema().kind_of(text("apiVersion"), text("kind")) else { return Ok(()) };
    // What another server would do with it: compare it with its type, write it anew.
    let text = value.to_string();
    if let Ok(read) = strict::read(text.as_bytes(), ty) {
        let _ = read;
    }
    let mut formed = value.clone();
    shape::normalise(&mut formed, ty);
    let Ok(written) = protobuf::encode(&value, ty) else { return Ok(()) };
    protobuf::decode(&written)
        .map(drop)
        .map_err(|error| format!("our own protobuf of {value} is not read: {error}"))
}

/// Patches: a letter for the kind of the patch, the object, a zero byte, the patch.
pub(crate) fn patch() -> Result<Box<dyn Target>> {
    let patches = [
        (
            b'j',
            json!([
                { "op": "test", "path": "/metadata/name", "value": "web" },
                { "op": "add", "path": "/spec/containers/-", "value": { "name": "d" } },
                { "op": "move", "from": "/metadata/labels/app", "path": "/metadata/labels/b" },
                { "op": "copy", "from": "/spec", "path": "/status" },
                { "op": "remove", "path": "/spec/containers/0" },
            ]),
        ),
        (b'm', json!({ "metadata": { "labels": null }, "spec": { "containers": [] } })),
        (
            b's',
            json!({
                "spec": {
                    "containers": [
                        { "name": "c", "ports": [{ "$patch": "delete", "containerPort": 80 }] },
                        { "name": "d" },
                    ],
                    "$setElementOrder/containers": [{ "name": "d" }, { "name": "c" }],
                    "$retainKeys": ["containers"],
                },
                "metadata": { "$deleteFromPrimitiveList/finalizers": ["x"], "labels": null },
            }),
        ),
    ];
    let target = pod().to_string();
    let good = patches
        .iter()
        .map(|(kind, patch)| {
            [&[*kind], target.as_bytes(), &[0], patch.to_string().as_bytes()].concat()
        })
        .collect();
    Ok(Box::new(Pure { good, take: take_patch }))
}

fn take_patch(bytes: &[u8]) -> Result<(), String> {
    let Some((kind, rest)) = bytes.split_first() else { return Ok(()) };
    let mut parts = rest.splitn(2, |byte| *byte == 0);
    let mut next = || parts.next().and_then(|part| serde_json::from_slice::<Value>(part).ok());
    let (Some(target), Some(patch)) = (next(), next()) else { return Ok(()) };
    match kind {
        b'j' => drop(patch::json(&target, &patch)),
        b'm' => {
            let once = patch::merge(&target, &patch);
            if patch::merge(&once, &patch) != once {
                return Err(format!("{patch} changes {once} again"));
            }
        }
        _ => {
            let ty = schema().kind("", "v1", "Pod").ok_or("no type Pod")?;
            drop(patch::strategic(&target, &patch, ty));
        }
    }
    Ok(())
}

/// Selectors of labels and fields, as texts.
pub(crate) fn selector() -> Result<Box<dyn Target>> {
    let good = [
        "app=web,tier!=db,!old,new,zone in (a,b),rack notin (c)",
        "metadata.name=web,status.phase!=Running",
        "example.org/size>3,example.org/size<9",
    ];
    Ok(Pure::of_texts(&good, take_selector))
}

fn take_selector(bytes: &[u8]) -> Result<(), String> {
    let Ok(text) = std::str::from_utf8(bytes) else { return Ok(()) };
    if let Ok(selector) = LabelSelector::parse(text) {
        let _ = selector.matches_with(|label| (label == "app").then_some("web"));
    }
    if let Ok(selector) = FieldSelector::parse(text) {
        let _ = selector.exact("status.phase");
    }
    Ok(())
}
