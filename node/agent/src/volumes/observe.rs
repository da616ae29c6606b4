//! Reading what payload volumes show: ConfigMaps, Secrets, tokens, and the pod itself.

use super::diff::{self, DEFAULT_MODE, Payload, Selection};
use super::group;
use crate::env::Trouble;
use crate::env::downward::PodFacts;
use crate::time::{self, Moment};
use crate::world::World;
use k8s_openapi::api::core::v1::{
    ConfigMapProjection, KeyToPath, Pod, SecretProjection, ServiceAccountTokenProjection, Volume,
};
use std::time::Duration;

/// A volume's files, and when the first token among them has to be renewed.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Content {
    /// The files.
    pub payload: Payload,
    /// Since the epoch.
    pub refresh_at: Option<Moment>,
}

struct Reader<'a> {
    world: &'a World,
    pod: &'a Pod,
    mode: i32,
    content: Content,
}

/// What a payload volume shows now; `None` for volumes of other types.
///
/// # Errors
/// What is missing or unreachable.
pub async fn content(
    world: &World,
    pod: &Pod,
    volume: &Volume,
) -> Result<Option<Content>, Trouble> {
    let mut reader = Reader { world, pod, mode: DEFAULT_MODE, content: Content::default() };
    if let Some(map) = &volume.config_map {
        reader.mode = map.default_mode.unwrap_or(DEFAULT_MODE);
        reader.config_map(&map.name, map.items.as_deref(), map.optional).await?;
    } else if let Some(secret) = &volume.secret {
        reader.mode = secret.default_mode.unwrap_or(DEFAULT_MODE);
        let name = secret.secret_name.as_deref().unwrap_or("");
        reader.secret(name, secret.items.as_deref(), secret.optional).await?;
    } else if let Some(downward) = &volume.downward_api {
        let mode = downward.default_mode.unwrap_or(DEFAULT_MODE);
        let items = downward.items.as_deref().unwrap_or_default();
        diff::downward(items, mode, &reader.facts(), &mut reader.content.payload)
            .map_err(Trouble::Config)?;
    } else if let Some(projected) = &volume.projected {
        reader.mode = projected.default_mode.unwrap_or(DEFAULT_MODE);
        for source in projected.sources.iter().flatten() {
            if let Some(ConfigMapProjection { name, items, optional }) = &source.config_map {
                reader.config_map(name, items.as_deref(), *optional).await?;
            }
            if let Some(SecretProjection { name, items, optional }) = &source.secret {
                reader.secret(name, items.as_deref(), *optional).await?;
            }
            if let Some(downward) = &source.downward_api {
                let items = downward.items.as_deref().unwrap_or_default();
                let mode = reader.mode;
                let facts = PodFacts { ..reader.facts() };
                let mut found = Payload::new();
                diff::downward(items, mode, &facts, &mut found).map_err(Trouble::Config)?;
                reader.content.payload.extend(found);
            }
            if let Some(token) = &source.service_account_token {
                reader.token(token).await?;
            }
            if source.cluster_trust_bundle.is_some() || source.pod_certificate.is_some() {
                let why = "projected clusterTrustBundle and podCertificate are not implemented by this version of dhow";
                return Err(Trouble::Config(why.into()));
            }
        }
    } else {
        return Ok(None);
    }
    Ok(Some(reader.content))
}

impl<'a> Reader<'a> {
    fn facts(&self) -> PodFacts<'a> {
        self.world.pod_facts(self.pod, "")
    }

    fn namespace(&self) -> &'a str {
        self.pod.metadata.namespace.as_deref().unwrap_or("default")
    }

    async fn config_map(
        &mut self,
        name: &str,
        items: Option<&[KeyToPath]>,
        optional: Option<bool>,
    ) -> Result<(), Trouble> {
        let optional = optional.unwrap_or(false);
        let selection = Selection { word: "config", items, optional, mode: self.mode };
        match self.world.feed.config_map(self.namespace(), name).await? {
            Some(map) => diff::config_map(&map, selection, &mut self.content.payload)
                .map_err(Trouble::Config),
            None if optional => Ok(()),
            None => Err(Trouble::Missing(format!("configmap {name:?} not found"))),
        }
    }

    async fn secret(
        &mut self,
        name: &str,
        items: Option<&[KeyToPath]>,
        optional: Option<bool>,
    ) -> Result<(), Trouble> {
        let optional = optional.unwrap_or(false);
        let selection = Selection { word: "secret", items, optional, mode: self.mode };
        match self.world.feed.secret(self.namespace(), name).await? {
            Some(secret) => {
                diff::secret(&secret, selection, &mut self.content.payload).map_err(Trouble::Config)
            }
            None if optional => Ok(()),
            None => Err(Trouble::Missing(format!("secret {name:?} not found"))),
        }
    }

    async fn token(&mut self, token: &ServiceAccountTokenProjection) -> Result<(), Trouble> {
        let lifetime = token.expiration_seconds.unwrap_or(3600);
        let audiences = token.audience.iter().filter(|a| !a.is_empty()).cloned().collect();
        let (text, expires) =
            self.world.feed.service_account_token(self.pod, audiences, lifetime).await?;
        let now = self.world.now();
        // Renewed at 80 % of its life, and at least once a day.
        let left = time::seconds(expires).saturating_sub(now.wall);
        let at = now.moment
            + (left * 4 / 5).min(Duration::from_secs(24 * 3600)).max(Duration::from_secs(1));
        self.content.refresh_at = Some(self.content.refresh_at.map_or(at, |d| d.min(at)));
        let user = token.user.and_then(|u| u32::try_from(u).ok()).or_else(|| common_user(self.pod));
        // As upstream: a token that has an owner is for the owner only.
        let mode = if user.is_some() || group(self.pod).is_some() { 0o600 } else { self.mode };
        diff::single(&token.path, text.into_bytes(), mode, user, &mut self.content.payload)
            .map_err(Trouble::Config)
    }
}

/// The user that all containers of the pod run as, if it is one and named in the pod.
fn common_user(pod: &Pod) -> Option<u32> {
    let spec = pod.spec.as_ref()?;
    let of_pod = spec.security_context.as_ref().and_then(|c| c.run_as_user);
    let mut users = spec
        .init_containers
        .iter()
        .flatten()
        .chain(&spec.containers)
        .map(|c| c.security_context.as_ref().and_then(|s| s.run_as_user).or(of_pod));
    let first = users.next()??;
    users.all(|u| u == Some(first)).then(|| u32::try_from(first).ok()).flatten()
}
