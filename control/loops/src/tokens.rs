//! Tokens that live in secrets: fills in the secrets of type `kubernetes.io/service-account-token`, and
//! deletes those whose account has gone. Follows upstream's tokens controller.

use crate::Context;
use crate::driver::{Outcome, Queue};
use dhow_objects::kinds;
use dhow_state::{Bound, DeleteOptions, Key, Patch, TokenRequest, View, WriteOptions, unless_gone};
use k8s_openapi::api::core::v1::ServiceAccount;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use serde::Deserialize;
use serde::de::IgnoredAny;
use serde_json::json;
use std::collections::BTreeMap;
use std::time::Duration;

const NAME: &str = "tokens-controller";
const TYPE: &str = "kubernetes.io/service-account-token";
const ACCOUNT: &str = "kubernetes.io/service-account.name";
const ACCOUNT_UID: &str = "kubernetes.io/service-account.uid";
/// The certificate of the authority, in every namespace.
const AUTHORITY: (&str, &str) = ("kube-root-ca.crt", "ca.crt");
/// As long as a token can live: this one dies with its secret.
const LIFE: i64 = 1 << 32;
/// Pause until the namespace has its certificate.
const AGAIN: Duration = Duration::from_secs(1);

/// A secret without what it keeps.
#[derive(Debug, Deserialize)]
struct Outline {
    metadata: ObjectMeta,
    #[serde(rename = "type")]
    kind: Option<String>,
    data: Option<BTreeMap<String, IgnoredAny>>,
}

impl Outline {
    /// The account whose token it holds.
    fn account(&self) -> Option<&str> {
        let annotations = self.metadata.annotations.as_ref()?;
        let holds = self.kind.as_deref() == Some(TYPE);
        annotations.get(ACCOUNT).map(String::as_str).filter(|name| holds && !name.is_empty())
    }

    fn account_uid(&self) -> Option<&String> {
        self.metadata.annotations.as_ref()?.get(ACCOUNT_UID)
    }
}

pub(crate) async fn run(context: Context) {
    let mut secrets: View<Outline> = context.state.view(&kinds::SECRET);
    let mut accounts: View<ServiceAccount> = context.state.view(&kinds::SERVICE_ACCOUNT);
    let mut queue = Queue::new(NAME, context.clock.clone());
    loop {
        tokio::select! {
            keys = secrets.changed() => keys.into_iter().for_each(|key| queue.add(key)),
            keys = accounts.changed() => {
                for key in keys {
                    let own = secrets.list_in(&key.namespace).into_iter();
                    own.filter(|secret| secret.account() == Some(&key.name))
                        .filter_map(|secret| secret.metadata.name.clone())
                        .for_each(|name| queue.add(Key::new(&key.namespace, name)));
                }
            }
            () = queue.moment() => queue.ripen(),
        }
        while let Some(key) = queue.next() {
            let outcome = reconcile(&context, &secrets, &accounts, &key).await;
            queue.done(key, outcome);
        }
    }
}

async fn reconcile(
    context: &Context,
    secrets: &View<Outline>,
    accounts: &View<ServiceAccount>,
    key: &Key,
) -> Outcome {
    let Some(entry) = secrets.entry(key) else { return Ok(None) };
    let secret = entry.object;
    let Some(name) = secret.account() else { return Ok(None) };
    if secret.metadata.deletion_timestamp.is_some() {
        return Ok(None);
    }
    let (state, actor) = (&context.state, Context::actor(NAME, entry.revision));
    let account = accounts.get(&key.namespace, name);
    let uid = account.and_then(|account| account.metadata.uid.clone());
    let Some(uid) = uid.filter(|uid| secret.account_uid().is_none_or(|known| known == uid)) else {
        let (kind, options) = (&kinds::SECRET, DeleteOptions::default());
        unless_gone(state.delete(&actor, kind, &key.namespace, &key.name, &options).await)?;
        tracing::info!(%key, account = name, "secret deleted: its account is gone");
        return Ok(None);
    };
    let lacks = |field: &str| secret.data.as_ref().is_none_or(|data| !data.contains_key(field));
    let mut data = json!({});
    if lacks(AUTHORITY.1) {
        let map = state.cached(&kinds::CONFIG_MAP, &key.namespace, AUTHORITY.0);
        let Some(map) = map else { return Ok(Some(AGAIN)) };
        data[AUTHORITY.1] = map.value()["data"][AUTHORITY.1].clone();
    }
    if lacks("namespace") {
        data["namespace"] = json!(key.namespace);
    }
    if lacks("token") {
        let bound = Bound {
            kind: "Secret".to_owned(),
            name: key.name.clone(),
            uid: secret.metadata.uid.clone().unwrap_or_default(),
        };
        let request =
            TokenRequest { expiration_seconds: LIFE, bound: Some(bound), ..Default::default() };
        data["token"] = json!(state.issue_token(&key.namespace, name, request).await?.token);
    }
    let told = secret.account_uid().is_some();
    if told && data.as_object().is_none_or(serde_json::Map::is_empty) {
        return Ok(None);
    }
    let patch = Patch::Merge(json!({
        "metadata": {"uid": secret.metadata.uid, "annotations": {ACCOUNT_UID: uid}},
        "stringData": data,
    }));
    let options = WriteOptions::default();
    let (namespace, name) = (&key.namespace, &key.name);
    match state.patch(&actor, &kinds::SECRET, namespace, name, "", patch, &options).await {
        // Deleted, or deleted and made again: that one is looked at by itself.
        Err(refusal) if !matches!(refusal.code, 404 | 409) => Err(refusal),
        _ => Ok(None),
    }
}
