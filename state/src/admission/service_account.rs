//! Service accounts: each pod runs as one and finds its token in a volume.
//!
//! Follows `k8s.io/kubernetes/plugin/pkg/admission/serviceaccount`.

use super::{Request, list_mut};
use crate::State;
use crate::builtin::platform;
use crate::codec::text;
use crate::types::Result;
use crate::view::Key;
use dhow_objects::kinds::Kind;
use dhow_objects::{kinds, meta, names};
use serde_json::{Value, json};

const MOUNT: &str = "/var/run/secrets/kubernetes.io/serviceaccount";
/// Life of the token in seconds: upstream's number, by which clients know such tokens.
const TOKEN_SECONDS: i64 = 3607;
const ROOT_CA: &str = "kube-root-ca.crt";
const DESCRIPTION: &str = "Certificates of the authority that signed the API's own certificate: for clients inside of the cluster.";

/// Whether every namespace has an object of this kind and name.
pub(super) fn is_furniture(kind: &'static Kind, name: &str) -> bool {
    (std::ptr::eq(kind, &raw const kinds::SERVICE_ACCOUNT) && name == "default")
        || (std::ptr::eq(kind, &raw const kinds::CONFIG_MAP) && name == ROOT_CA)
}

impl State {
    /// Gives a namespace its default account and the certificate of the authority, or mends them.
    ///
    /// # Errors
    /// As [`State::create`], for example when the namespace is ending.
    pub async fn furnish_namespace(&self, namespace: &str) -> Result<()> {
        let certificate = &self.shared.config.ca_pem;
        let account = json!({"metadata": {"name": "default"}});
        let authority = json!({
            "metadata": {"name": ROOT_CA, "annotations": {"kubernetes.io/description": DESCRIPTION}},
            "data": {"ca.crt": certificate},
        });
        let kind = &kinds::CONFIG_MAP;
        // Boxed: creating an object leads here.
        Box::pin(self.ensure(&kinds::SERVICE_ACCOUNT, namespace, "default", account)).await?;
        Box::pin(self.ensure(kind, namespace, ROOT_CA, authority)).await?;
        let known = self.cached(kind, namespace, ROOT_CA);
        let data = json!({"ca.crt": certificate});
        if known.is_some_and(|c| c.value()["data"] != data) {
            let mend = |old: &Value| {
                let mut new = old.clone();
                new["data"] = data.clone();
                Ok(new)
            };
            let key = Key::new(namespace, ROOT_CA);
            Box::pin(self.modify(&platform(), kind, &key, "", &mend)).await?;
        }
        Ok(())
    }
}

pub(super) async fn mutate(request: &Request<'_>, new: &mut Value) -> Result<()> {
    if meta::annotation(new, "kubernetes.io/config.mirror").is_some() {
        return Ok(());
    }
    let mut name = text(new, "/spec/serviceAccountName").to_owned();
    if name.is_empty() {
        name = text(new, "/spec/serviceAccount").to_owned();
    }
    if name.is_empty() {
        "default".clone_into(&mut name);
    }
    new["spec"]["serviceAccountName"] = json!(name);
    new["spec"]["serviceAccount"] = json!(name);
    let (state, namespace) = (request.state, request.namespace);
    let kind = &kinds::SERVICE_ACCOUNT;
    if name == "default" && state.cached(kind, namespace, &name).is_none() {
        Box::pin(state.furnish_namespace(namespace)).await?;
    }
    let Some(account) = state.cached(kind, namespace, &name) else {
        return Err(request.forbid(&format!(
            "error looking up service account {namespace}/{name}: serviceaccount {name:?} not found"
        )));
    };
    let account = account.value();
    let automount = |v: &Value| v["automountServiceAccountToken"].as_bool();
    if automount(&new["spec"]).or_else(|| automount(account)).unwrap_or(true) {
        mount_token(request, new);
    }
    let secrets = account["imagePullSecrets"].as_array().filter(|s| !s.is_empty());
    if let Some(secrets) = secrets
        && new["spec"]["imagePullSecrets"].as_array().is_none_or(Vec::is_empty)
    {
        new["spec"]["imagePullSecrets"] = json!(secrets);
    }
    Ok(())
}

fn mount_token(request: &Request<'_>, new: &mut Value) {
    let spec = &mut new["spec"];
    let volumes = spec["volumes"].as_array().map_or(&[][..], Vec::as_slice);
    let known = volumes
        .iter()
        .filter_map(|v| v["name"].as_str())
        .find(|n| n.starts_with("kube-api-access-"))
        .map(str::to_owned);
    let fresh = known.is_none();
    let volume = known.unwrap_or_else(|| {
        names::generate("kube-api-access-", request.state.shared.clock.random())
    });
    let mut used = false;
    for part in ["initContainers", "containers"] {
        for container in spec[part].as_array_mut().into_iter().flatten() {
            let Some(mounts) = list_mut(container, "volumeMounts") else { continue };
            if mounts.iter().all(|m| m["mountPath"] != MOUNT) {
                mounts.push(json!({"name": volume, "mountPath": MOUNT, "readOnly": true}));
                used = true;
            }
        }
    }
    if used
        && fresh
        && let Some(volumes) = list_mut(spec, "volumes")
    {
        volumes.push(json!({"name": volume, "projected": {"defaultMode": 420, "sources": [
            {"serviceAccountToken": {"expirationSeconds": TOKEN_SECONDS, "path": "token"}},
            {"configMap": {"name": ROOT_CA, "items": [{"key": "ca.crt", "path": "ca.crt"}]}},
            {"downwardAPI": {"items": [{"path": "namespace", "fieldRef": {"apiVersion": "v1", "fieldPath": "metadata.namespace"}}]}},
        ]}}));
    }
}
