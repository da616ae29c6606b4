//! Objects that own pods: which of them a pod concerns, and the pods that they make and delete.

use crate::Context;
use dhow_objects::Status;
use dhow_objects::kinds::{self, Kind};
use dhow_reason::{Code, Reason};
use dhow_state::{DeleteOptions, Key, Patch, View};
use dhow_workloads::{Note, controller_of, replicaset};
use futures::future::join_all;
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference};
use serde_json::json;
use std::collections::HashMap;

/// Pods of one owner that are made or deleted at the same time; the store commits them together.
const ABREAST: usize = 16;

/// Which owner a pod was last seen with: a deleted pod's own words are gone.
#[derive(Default)]
pub(crate) struct Owners(HashMap<Key, Key>);

impl Owners {
    /// The owners of this kind that a pod's change concerns: its old and its new one, or all that
    /// select it.
    pub(crate) fn concerned(
        &mut self,
        kind: &Kind,
        pods: &View<Pod>,
        key: &Key,
        selecting: impl FnOnce(&Pod) -> Vec<Key>,
    ) -> Vec<Key> {
        let mut found: Vec<Key> = self.0.remove(key).into_iter().collect();
        let Some(pod) = pods.get(&key.namespace, &key.name) else { return found };
        match controller_of(&pod.metadata) {
            Some(owner) if owner.kind == kind.kind => {
                let owner = Key::new(&key.namespace, &owner.name);
                self.0.insert(key.clone(), owner.clone());
                found.push(owner);
            }
            Some(_) => {}
            None => found.extend(selecting(&pod)),
        }
        found
    }
}

/// An owner at work.
pub(crate) struct Owner<'a> {
    /// The loop that works for it.
    pub(crate) name: &'static str,
    pub(crate) kind: &'static Kind,
    pub(crate) metadata: &'a ObjectMeta,
    /// The revision that made the loop act.
    pub(crate) because: u64,
}

impl Owner<'_> {
    /// The reference that its dependents carry.
    pub(crate) fn reference(&self) -> OwnerReference {
        OwnerReference {
            api_version: self.kind.api_version(),
            kind: self.kind.kind.to_owned(),
            name: self.metadata.name.clone().unwrap_or_default(),
            uid: self.metadata.uid.clone().unwrap_or_default(),
            controller: Some(true),
            block_owner_deletion: Some(true),
        }
    }

    fn namespace(&self) -> &str {
        self.metadata.namespace.as_deref().unwrap_or_default()
    }

    /// Takes pods (by name) that nobody controls, and lets others go.
    pub(crate) async fn adopt_and_release(
        &self,
        context: &Context,
        adopt: &[String],
        release: &[String],
    ) -> Result<(), Status> {
        let owner = self.reference();
        let taken = adopt.iter().map(|name| (name, json!(owner)));
        let freed =
            release.iter().map(|name| (name, json!({"$patch": "delete", "uid": owner.uid})));
        for (name, reference) in taken.chain(freed) {
            let patch = json!({"metadata": {"ownerReferences": [reference]}});
            let pod = Key::new(self.namespace(), name);
            let actor = Context::actor(self.name, self.because);
            context
                .state
                .patch_typed::<Pod>(&actor, &kinds::POD, &pod, "", Patch::Strategic(patch))
                .await?;
        }
        Ok(())
    }

    fn refused(&self, refusal: &Status) -> Reason {
        let kind = self.kind.kind.to_lowercase();
        let name = self.metadata.name.as_deref().unwrap_or_default();
        Reason::new(Code::Refused, format!("{kind} {}/{name}", self.namespace()))
            .with("code", refusal.code)
            .with("said", &refusal.message)
    }

    /// Makes pods and deletes others (by name); tells of each.
    pub(crate) async fn write_pods(
        &self,
        context: &Context,
        create: &[Pod],
        delete: &[String],
    ) -> Result<(), Status> {
        let actor = &Context::actor(self.name, self.because);
        let mut made = Vec::with_capacity(create.len());
        for pods in create.chunks(ABREAST) {
            let batch = pods.iter().map(|pod| context.state.create_typed(actor, &kinds::POD, pod));
            made.extend(join_all(batch.collect::<Vec<_>>()).await);
            if made.iter().any(Result::is_err) {
                // What refuses one refuses the others; they are tried again with a pause.
                break;
            }
        }
        let mut failed = None;
        for outcome in made {
            let note = match outcome {
                Ok(pod) => replicaset::created(pod.metadata.name.as_deref().unwrap_or_default()),
                Err(refusal) => {
                    let message = format!("Error creating: {refusal}");
                    let because = Some(self.refused(&refusal));
                    failed = Some(refusal);
                    Note { kind: "Warning", reason: "FailedCreate", message, because }
                }
            };
            context.note(self.name, self.kind, self.metadata, &note).await;
        }
        let options = &DeleteOptions::default();
        let mut gone = Vec::with_capacity(delete.len());
        for names in delete.chunks(ABREAST) {
            let mut batch = Vec::with_capacity(names.len());
            for name in names {
                let namespace = self.namespace();
                batch.push(context.state.delete(actor, &kinds::POD, namespace, name, options));
            }
            gone.extend(names.iter().zip(join_all(batch).await));
        }
        for (name, outcome) in gone {
            match outcome {
                Ok(_) => {
                    let note = replicaset::deleted(name);
                    context.note(self.name, self.kind, self.metadata, &note).await;
                }
                Err(refusal) if refusal.code == 404 => {}
                Err(refusal) => failed = Some(refusal),
            }
        }
        failed.map_or(Ok(()), Err)
    }
}
