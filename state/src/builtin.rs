//! Objects that exist from the first start.

use crate::State;
use crate::types::{Actor, Result, User, WriteOptions};
use dhow_objects::kinds::{self, Kind};
use serde_json::{Value, json};

const NAMESPACES: [&str; 4] = ["default", "kube-system", "kube-public", "kube-node-lease"];

/// The platform itself, as it writes.
pub fn platform() -> Actor {
    Actor {
        user: User {
            name: "system:dhow".into(),
            groups: vec!["system:masters".into(), "system:authenticated".into()],
            ..User::default()
        },
        manager: "dhow".into(),
        because: 0,
    }
}

impl State {
    /// Makes an object unless one of its name exists.
    ///
    /// # Errors
    /// As [`State::create`], but for a name that is taken.
    pub async fn ensure(
        &self,
        kind: &'static Kind,
        namespace: &str,
        name: &str,
        value: Value,
    ) -> Result<()> {
        if self.cached(kind, namespace, name).is_some() {
            return Ok(());
        }
        let made = self.create(&platform(), kind, namespace, value, &WriteOptions::default()).await;
        match made {
            Err(refusal) if refusal.reason != "AlreadyExists" => Err(refusal),
            _ => Ok(()),
        }
    }

    pub(crate) async fn ensure_builtins(&self) -> Result<()> {
        for name in NAMESPACES {
            let value = json!({"metadata": {"name": name}});
            self.ensure(&kinds::NAMESPACE, "", name, value).await?;
        }
        for namespace in self.shared.cache.peek_all(&kinds::NAMESPACE, None) {
            if dhow_objects::meta::deletion_timestamp(namespace.value()).is_none() {
                self.furnish_namespace(&namespace.name).await?;
            }
        }
        self.ensure_roles().await
    }
}
