//! What a live stream leads to: the pod, its container, and the machine that runs it.

use crate::call::Call;
use dhow_intents::{PodRef, StreamError, Streams};
use dhow_objects::{Status, kinds};
use serde_json::Value;
use std::sync::Arc;

/// A pod that a stream was asked for.
pub struct Target {
    /// The pod, by uid, so that a pod of the same name that comes later is not mistaken for it.
    pub pod: PodRef,
    /// The pod's object.
    pub object: Arc<dhow_state::Object>,
    /// The machine it is bound to; empty when it is not.
    pub node: String,
}

impl Target {
    /// Finds the pod of a call.
    ///
    /// # Errors
    /// 404 when there is none.
    pub async fn find(call: &Call) -> Result<Self, Status> {
        let name = call.name()?;
        let object = call.door.state.get(&kinds::POD, call.namespace(), name).await?;
        let text = |pointer: &str| {
            object.value().pointer(pointer).and_then(Value::as_str).unwrap_or("").to_owned()
        };
        let pod = PodRef {
            namespace: call.namespace().to_owned(),
            name: name.to_owned(),
            uid: text("/metadata/uid"),
        };
        let node = text("/spec/nodeName");
        Ok(Self { pod, node, object })
    }

    /// The live streams of the pod's machine.
    ///
    /// # Errors
    /// 400 when the pod is not bound yet, 503 when the machine is not connected.
    pub fn streams(&self, call: &Call) -> Result<Arc<dyn Streams>, Status> {
        if self.node.is_empty() {
            return Err(Status::bad_request(format!(
                "pod {} does not have a host assigned",
                self.pod.name
            )));
        }
        (call.door.config.streams)(&self.node).ok_or_else(|| {
            Status::unavailable(format!(
                "node {:?} is not connected: its logs and containers cannot be reached now; see kubectl get node {}",
                self.node, self.node
            ))
        })
    }

    /// Chooses the container: the one asked for, or the only one.
    ///
    /// # Errors
    /// 400 when it does not exist, or when there are several and none was named.
    pub fn container(&self, asked: Option<&str>) -> Result<String, Status> {
        let names = |list: &str| -> Vec<&str> {
            let containers = self.object.value()["spec"][list].as_array();
            containers.into_iter().flatten().filter_map(|one| one["name"].as_str()).collect()
        };
        let (main, init) = (names("containers"), names("initContainers"));
        let name = &self.pod.name;
        match asked {
            Some(asked) => {
                let known = main.contains(&asked)
                    || init.contains(&asked)
                    || names("ephemeralContainers").contains(&asked);
                known.then(|| asked.to_owned()).ok_or_else(|| {
                    Status::bad_request(format!("container {asked} is not valid for pod {name}"))
                })
            }
            None => match main.as_slice() {
                [only] => Ok((*only).to_owned()),
                several => {
                    let mut told = format!(
                        "a container name must be specified for pod {name}, choose one of: [{}]",
                        several.join(" ")
                    );
                    if !init.is_empty() {
                        told.push_str(" or one of the init containers: [");
                        told.push_str(&init.join(" "));
                        told.push(']');
                    }
                    Err(Status::bad_request(told))
                }
            },
        }
    }

    /// Whether a container runs on a terminal, and whether it has a standard input.
    pub fn terminal(&self, container: &str) -> (bool, bool) {
        let spec = &self.object.value()["spec"];
        let found = ["containers", "initContainers", "ephemeralContainers"]
            .iter()
            .filter_map(|list| spec[list].as_array())
            .flatten()
            .find(|one| one["name"] == container);
        let flag = |name: &str| found.and_then(|one| one[name].as_bool()).unwrap_or(false);
        (flag("tty"), flag("stdin"))
    }
}

/// The refusal that a stream's failure becomes.
pub fn refusal(error: StreamError) -> Status {
    match error {
        StreamError::NotFound(why) => Status::new(404, "NotFound", why),
        StreamError::BadRequest(why) => Status::bad_request(why),
        StreamError::Failed(why) => Status::internal(why),
    }
}
