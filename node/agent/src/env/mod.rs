//! The environment, command and arguments of a container.

pub mod downward;
pub mod expand;
pub mod services;

use crate::world::World;
use dhow_intents::FeedError;
use expand::expand;
use k8s_openapi::api::core::v1::{ConfigMap, Container, EnvVarSource, Pod, Secret};
use std::collections::BTreeMap;
use std::sync::Arc;

/// Why an environment cannot be made.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Trouble {
    /// The pod refers to something that does not exist or does not make sense; it helps to change
    /// that.
    #[error("{0}")]
    Config(String),
    /// The pod refers to a ConfigMap, a Secret or a key that does not exist.
    #[error("{0}")]
    Missing(String),
    /// The control plane could not be asked.
    #[error("{0}")]
    Unreachable(String),
}

impl From<FeedError> for Trouble {
    fn from(error: FeedError) -> Self {
        match error {
            FeedError::Refused(status) => Self::Config(status.message),
            FeedError::Unreachable(why) => Self::Unreachable(why),
        }
    }
}

/// The objects that a container's environment refers to, as they are now.
#[derive(Debug, Clone, Default)]
pub struct Sources {
    /// By name; `None` when it does not exist.
    pub config_maps: BTreeMap<String, Option<Arc<ConfigMap>>>,
    /// By name; `None` when it does not exist.
    pub secrets: BTreeMap<String, Option<Arc<Secret>>>,
    /// Variables that tell of services.
    pub services: BTreeMap<String, String>,
}

impl Sources {
    /// Reads what the container refers to.
    pub async fn gather(world: &World, pod: &Pod, container: &Container) -> Result<Self, Trouble> {
        let namespace = pod.metadata.namespace.as_deref().unwrap_or("default");
        let mut sources = Self::default();
        let (maps, secrets) = references(container);
        for name in maps {
            let found = world.feed.config_map(namespace, &name).await?;
            sources.config_maps.insert(name, found);
        }
        for name in secrets {
            let found = world.feed.secret(namespace, &name).await?;
            sources.secrets.insert(name, found);
        }
        let links = pod.spec.as_ref().and_then(|s| s.enable_service_links).unwrap_or(true);
        if links {
            sources.services = services::variables(&world.feed.services(namespace).await?);
        }
        let config = &world.config;
        if !config.api_host.is_empty() {
            sources.services.extend(services::api(&config.api_host, config.api_port));
        }
        Ok(sources)
    }

    fn config_map(&self, name: &str, optional: bool) -> Result<Option<&ConfigMap>, Trouble> {
        match self.config_maps.get(name) {
            Some(Some(found)) => Ok(Some(found)),
            _ if optional => Ok(None),
            _ => Err(Trouble::Missing(format!("configmap {name:?} not found"))),
        }
    }

    fn secret(&self, name: &str, optional: bool) -> Result<Option<&Secret>, Trouble> {
        match self.secrets.get(name) {
            Some(Some(found)) => Ok(Some(found)),
            _ if optional => Ok(None),
            _ => Err(Trouble::Missing(format!("secret {name:?} not found"))),
        }
    }
}

/// Names of the ConfigMaps and Secrets that a container's environment refers to.
pub fn references(container: &Container) -> (Vec<String>, Vec<String>) {
    let mut maps = Vec::new();
    let mut secrets = Vec::new();
    for from in container.env_from.iter().flatten() {
        maps.extend(from.config_map_ref.as_ref().map(|r| r.name.clone()));
        secrets.extend(from.secret_ref.as_ref().map(|r| r.name.clone()));
    }
    for from in container.env.iter().flatten().filter_map(|e| e.value_from.as_ref()) {
        maps.extend(from.config_map_key_ref.as_ref().map(|r| r.name.clone()));
        secrets.extend(from.secret_key_ref.as_ref().map(|r| r.name.clone()));
    }
    for list in [&mut maps, &mut secrets] {
        list.sort();
        list.dedup();
    }
    (maps, secrets)
}

/// The variables that the pod gives a container, in order, each name once.
pub fn variables(
    facts: &downward::PodFacts<'_>,
    container: &Container,
    sources: &Sources,
) -> Result<Vec<(String, String)>, Trouble> {
    let mut list: Vec<(String, String)> = Vec::new();
    let mut known: BTreeMap<String, String> = BTreeMap::new();
    let mut set = |known: &mut BTreeMap<String, String>, name: String, value: String| {
        if known.insert(name.clone(), value.clone()).is_some() {
            list.retain(|(n, _)| *n != name);
        }
        list.push((name, value));
    };
    for from in container.env_from.iter().flatten() {
        let prefix = from.prefix.as_deref().unwrap_or("");
        if let Some(reference) = &from.config_map_ref {
            let found = sources.config_map(&reference.name, reference.optional.unwrap_or(false))?;
            for (key, value) in found.and_then(|m| m.data.as_ref()).into_iter().flatten() {
                set(&mut known, format!("{prefix}{key}"), value.clone());
            }
        }
        if let Some(reference) = &from.secret_ref {
            let found = sources.secret(&reference.name, reference.optional.unwrap_or(false))?;
            for (key, value) in found.and_then(|m| m.data.as_ref()).into_iter().flatten() {
                set(
                    &mut known,
                    format!("{prefix}{key}"),
                    String::from_utf8_lossy(&value.0).into_owned(),
                );
            }
        }
    }
    for variable in container.env.iter().flatten() {
        let value = match (&variable.value_from, &variable.value) {
            (Some(from), _) => match from_source(facts, container, sources, from)? {
                Some(value) => value,
                None => continue,
            },
            (None, Some(text)) => {
                expand(text, |name| known.get(name).or_else(|| sources.services.get(name)).cloned())
            }
            (None, None) => String::new(),
        };
        set(&mut known, variable.name.clone(), value);
    }
    for (name, value) in &sources.services {
        if !known.contains_key(name) {
            list.push((name.clone(), value.clone()));
        }
    }
    Ok(list)
}

fn from_source(
    facts: &downward::PodFacts<'_>,
    container: &Container,
    sources: &Sources,
    from: &EnvVarSource,
) -> Result<Option<String>, Trouble> {
    let namespace = facts.namespace();
    if let Some(field) = &from.field_ref {
        return facts.field(&field.field_path).map(Some).map_err(Trouble::Config);
    }
    if let Some(resource) = &from.resource_field_ref {
        return facts.resource(resource, Some(container)).map(Some).map_err(Trouble::Config);
    }
    if let Some(key) = &from.config_map_key_ref {
        let optional = key.optional.unwrap_or(false);
        let found = sources.config_map(&key.name, optional)?;
        let value = found.and_then(|m| m.data.as_ref()).and_then(|d| d.get(&key.key));
        return match value {
            Some(value) => Ok(Some(value.clone())),
            None if optional => Ok(None),
            None => Err(Trouble::Missing(format!(
                "couldn't find key {} in ConfigMap {namespace}/{}",
                key.key, key.name
            ))),
        };
    }
    if let Some(key) = &from.secret_key_ref {
        let optional = key.optional.unwrap_or(false);
        let found = sources.secret(&key.name, optional)?;
        let value = found.and_then(|m| m.data.as_ref()).and_then(|d| d.get(&key.key));
        return match value {
            Some(value) => Ok(Some(String::from_utf8_lossy(&value.0).into_owned())),
            None if optional => Ok(None),
            None => Err(Trouble::Missing(format!(
                "couldn't find key {} in Secret {namespace}/{}",
                key.key, key.name
            ))),
        };
    }
    Err(Trouble::Config("env valueFrom names a source that is not implemented (fileKeyRef)".into()))
}

/// The argument vector: the container's command and arguments over the image's entry point and
/// command, with `$(NAME)` expanded.
pub fn arguments(
    container: &Container,
    entrypoint: &[String],
    cmd: &[String],
    environment: &[(String, String)],
) -> Result<Vec<String>, Trouble> {
    let lookup = |name: &str| environment.iter().find(|(n, _)| n == name).map(|(_, v)| v.clone());
    let expanded = |list: &[String]| list.iter().map(|t| expand(t, lookup)).collect::<Vec<_>>();
    let command = container.command.as_deref().unwrap_or_default();
    let args = container.args.as_deref().unwrap_or_default();
    let mut all = match (command.is_empty(), args.is_empty()) {
        (true, true) => [entrypoint, cmd].concat(),
        (true, false) => entrypoint.to_vec(),
        (false, _) => expanded(command),
    };
    all.extend(expanded(args));
    if all.is_empty() {
        return Err(Trouble::Config(format!(
            "no command specified: container {} has no command and its image has no entry point",
            container.name
        )));
    }
    Ok(all)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn render(
        container: serde_json::Value,
        sources: &Sources,
    ) -> Result<Vec<(String, String)>, Trouble> {
        let pod: Pod = serde_json::from_value(json!({
            "metadata": {"name": "p", "namespace": "shop", "labels": {"app": "cart"}},
            "spec": {"nodeName": "n1", "containers": [container]},
        }))
        .unwrap();
        let facts = downward::PodFacts {
            pod: &pod,
            pod_ip: "10.1.0.5",
            host_ip: "10.0.0.1",
            cpu_millis: 4000,
            memory: 1 << 30,
            storage: 1 << 32,
        };
        variables(&facts, &pod.spec.as_ref().unwrap().containers[0], sources)
    }

    fn sources() -> Sources {
        let map: ConfigMap =
            serde_json::from_value(json!({"metadata": {}, "data": {"mode": "fast"}})).unwrap();
        let secret: Secret =
            serde_json::from_value(json!({"metadata": {}, "data": {"key": "c2VzYW1l"}})).unwrap();
        Sources {
            config_maps: [("settings".to_owned(), Some(Arc::new(map)))].into(),
            secrets: [("vault".to_owned(), Some(Arc::new(secret)))].into(),
            services: [("CART_SERVICE_HOST".to_owned(), "10.2.0.9".to_owned())].into(),
        }
    }

    #[test]
    fn values_come_from_every_source_and_expand_what_stands_before() {
        let env = render(
            json!({"name": "c", "resources": {"limits": {"cpu": "1500m"}},
                "envFrom": [{"prefix": "S_", "configMapRef": {"name": "settings"}}],
                "env": [
                    {"name": "POD", "valueFrom": {"fieldRef": {"fieldPath": "metadata.labels['app']"}}},
                    {"name": "CPU", "valueFrom": {"resourceFieldRef": {"resource": "limits.cpu"}}},
                    {"name": "KEY", "valueFrom": {"secretKeyRef": {"name": "vault", "key": "key"}}},
                    {"name": "URL", "value": "http://$(CART_SERVICE_HOST)/$(POD)/$(NONE)/$$(POD)"},
                    {"name": "GONE", "valueFrom": {"configMapKeyRef": {"name": "no", "key": "x", "optional": true}}},
                ]}),
            &sources(),
        )
        .unwrap();
        let expected = [
            ("S_mode", "fast"),
            ("POD", "cart"),
            ("CPU", "2"),
            ("KEY", "sesame"),
            ("URL", "http://10.2.0.9/cart/$(NONE)/$(POD)"),
            ("CART_SERVICE_HOST", "10.2.0.9"),
        ];
        let env: Vec<(&str, &str)> = env.iter().map(|(n, v)| (n.as_str(), v.as_str())).collect();
        assert_eq!(env, expected);
    }

    #[test]
    fn what_is_missing_is_named() {
        let refer = |source: serde_json::Value| {
            render(json!({"name": "c", "env": [{"name": "X", "valueFrom": source}]}), &sources())
                .unwrap_err()
                .to_string()
        };
        assert_eq!(
            refer(json!({"configMapKeyRef": {"name": "settings", "key": "zzz"}})),
            "couldn't find key zzz in ConfigMap shop/settings"
        );
        assert_eq!(
            refer(json!({"secretKeyRef": {"name": "none", "key": "k"}})),
            "secret \"none\" not found"
        );
    }

    #[test]
    fn command_replaces_the_entry_point_and_args_replace_the_command() {
        let entry = ["/app".to_owned()];
        let cmd = ["serve".to_owned()];
        let env = [("N".to_owned(), "1".to_owned())];
        let run = |value: serde_json::Value| {
            let container: Container = serde_json::from_value(value).unwrap();
            arguments(&container, &entry, &cmd, &env).unwrap().join(" ")
        };
        assert_eq!(run(json!({"name": "c"})), "/app serve");
        assert_eq!(run(json!({"name": "c", "args": ["x$(N)"]})), "/app x1");
        assert_eq!(run(json!({"name": "c", "command": ["sh"]})), "sh");
        assert_eq!(run(json!({"name": "c", "command": ["sh"], "args": ["-c"]})), "sh -c");
        assert!(arguments(&Container::default(), &[], &[], &[]).is_err());
    }
}
