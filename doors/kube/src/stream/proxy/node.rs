//! `nodes/proxy`: what people ask a kubelet for, answered from what the platform knows.

use crate::call::{Call, Verb};
use crate::respond::{self, Reply};
use crate::stream::logs;
use dhow_objects::selectors::FieldSelector;
use dhow_objects::{Status, kinds};
use dhow_state::ListOptions;
use serde_json::{Value, json};

/// Paths that are answered.
const KNOWN: &str = "healthz, pods, containerLogs/NAMESPACE/POD/CONTAINER";

/// Answers a request to a node.
pub async fn serve(mut call: Call, rest: &str) -> Reply {
    let text = call.name()?.to_owned();
    let node = text.split(':').find(|part| !matches!(*part, "http" | "https")).unwrap_or(&text);
    call.door.state.get(&kinds::NODE, "", node).await?;
    if call.verb != Verb::Get {
        return Err(Status::method_not_allowed());
    }
    let words: Vec<String> =
        rest.split('/').filter(|word| !word.is_empty()).map(str::to_owned).collect();
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    match words.as_slice() {
        ["healthz"] => match (call.door.config.streams)(node) {
            Some(_) => Ok(respond::text(200, "ok")),
            None => Err(Status::unavailable(format!("node {node:?} is not connected"))),
        },
        ["pods" | "runningpods"] => pods(&call, node).await,
        ["containerLogs", namespace, pod, container] => {
            call.path.namespace = Some((*namespace).to_owned());
            call.path.name = Some((*pod).to_owned());
            logs::of_container(call, container).await
        }
        _ => Err(Status::new(
            404,
            "NotFound",
            format!("a node of this platform does not serve {rest:?}; it serves {KNOWN}"),
        )),
    }
}

async fn pods(call: &Call, node: &str) -> Reply {
    let field = FieldSelector::parse(&format!("spec.nodeName={node}"));
    let options = ListOptions {
        fields: field.map_err(|error| Status::internal(error.to_string()))?,
        ..ListOptions::default()
    };
    let list = call.door.state.list(&kinds::POD, None, &options).await?;
    let items: Vec<Value> = list.items.iter().map(|pod| pod.to_value()).collect();
    respond::json(
        200,
        &json!({"kind": "PodList", "apiVersion": "v1", "metadata": {}, "items": items}),
    )
}
