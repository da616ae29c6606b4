//! A pod's volumes: prepared before its containers start, kept true while it lives, removed at its
//! end.

pub mod apply;
pub mod diff;
pub mod observe;

use crate::env::Trouble;
use crate::quantity;
use crate::time::Moment;
use crate::world::World;
use k8s_openapi::api::core::v1::{Pod, Volume};
use std::path::PathBuf;
use std::sync::Arc;

/// What was prepared.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Prepared {
    /// When a token in a volume has to be renewed, since the epoch.
    pub refresh_at: Option<Moment>,
}

fn uid(pod: &Pod) -> &str {
    pod.metadata.uid.as_deref().unwrap_or("")
}

fn group(pod: &Pod) -> Option<u32> {
    let context = pod.spec.as_ref().and_then(|s| s.security_context.as_ref());
    context.and_then(|c| c.fs_group).and_then(|g| u32::try_from(g).ok())
}

/// Where a volume is on the machine.
pub fn path(world: &World, pod: &Pod, volume: &Volume) -> PathBuf {
    if let Some(host) = &volume.host_path {
        return PathBuf::from(&host.path);
    }
    if volume.empty_dir.is_some() {
        return world.volume_dir(uid(pod), &volume.name);
    }
    world.memory_dir(uid(pod), &volume.name)
}

/// Makes all volumes of a pod, or brings them up to date.
///
/// # Errors
/// The first volume that cannot be made, by name.
pub async fn prepare(world: &Arc<World>, pod: &Arc<Pod>) -> Result<Prepared, Trouble> {
    dhow_fault::point("agent::volumes").map_err(|e| Trouble::Unreachable(e.to_string()))?;
    let mut prepared = Prepared::default();
    let volumes = pod.spec.as_ref().and_then(|s| s.volumes.as_ref());
    for volume in volumes.into_iter().flatten() {
        let named =
            |why: String| format!("MountVolume.SetUp failed for volume {:?} : {why}", volume.name);
        let named = |error: Trouble| match error {
            Trouble::Config(why) => Trouble::Config(named(why)),
            Trouble::Missing(why) => Trouble::Missing(named(why)),
            other => other,
        };
        let at = one(world, pod, volume).await.map_err(named)?;
        prepared.refresh_at = [prepared.refresh_at, at].into_iter().flatten().min();
    }
    Ok(prepared)
}

async fn one(
    world: &Arc<World>,
    pod: &Arc<Pod>,
    volume: &Volume,
) -> Result<Option<Moment>, Trouble> {
    let group = group(pod);
    let dir = path(world, pod, volume);
    if let Some(empty) = &volume.empty_dir {
        let mode = empty.mode.and_then(|m| u32::try_from(m).ok()).unwrap_or(0o777);
        let limit = empty.size_limit.as_ref().and_then(|q| quantity::units(&q.0));
        let size = limit.and_then(|s| u64::try_from(s).ok()).unwrap_or(0);
        let medium = empty.medium.clone().unwrap_or_default();
        return blocking(move || {
            let made = match medium.as_str() {
                "" => apply::empty_dir(&dir, mode, group),
                "Memory" => apply::mount_memory(&dir, size, mode, group),
                other => {
                    return Err(format!(
                        "emptyDir medium {other:?} is not supported; use \"\" or Memory"
                    ));
                }
            };
            made.map(|()| None).map_err(|e| e.to_string())
        })
        .await;
    }
    if let Some(host) = &volume.host_path {
        let kind = host.type_.clone().unwrap_or_default();
        return blocking(move || apply::host_path(&dir, &kind).map(|()| None)).await;
    }
    let Some(content) = observe::content(world, pod, volume).await? else {
        return Err(Trouble::Config(not_supported(volume)));
    };
    let now = world.clock.now();
    let token_at = content.refresh_at;
    blocking(move || {
        apply::write_payload(&dir, &content.payload, group, now).map_err(|e| e.to_string())?;
        Ok(token_at)
    })
    .await
}

fn not_supported(volume: &Volume) -> String {
    let kind = match volume {
        v if v.persistent_volume_claim.is_some() => "persistentVolumeClaim",
        v if v.ephemeral.is_some() => "ephemeral",
        v if v.csi.is_some() => "csi",
        v if v.nfs.is_some() => "nfs",
        v if v.iscsi.is_some() => "iscsi",
        v if v.image.is_some() => "image",
        _ => "this type of volume",
    };
    format!(
        "{kind} is not supported by this version of dhow; use emptyDir, hostPath, configMap, secret, downwardAPI or projected"
    )
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, String> + Send + 'static,
) -> Result<T, Trouble> {
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => result.map_err(Trouble::Config),
        Err(error) => Err(Trouble::Unreachable(error.to_string())),
    }
}

/// Whether a volume of the pod shows this ConfigMap (or, with `secret`, Secret).
pub fn shows(pod: &Pod, secret: bool, name: &str) -> bool {
    let volumes = pod.spec.as_ref().and_then(|s| s.volumes.as_ref());
    volumes.into_iter().flatten().any(|volume| {
        let sources = volume.projected.iter().flat_map(|p| p.sources.iter().flatten());
        if secret {
            volume.secret.as_ref().and_then(|s| s.secret_name.as_deref()) == Some(name)
                || sources.into_iter().any(|s| s.secret.as_ref().is_some_and(|s| s.name == name))
        } else {
            volume.config_map.as_ref().is_some_and(|m| m.name == name)
                || sources
                    .into_iter()
                    .any(|s| s.config_map.as_ref().is_some_and(|m| m.name == name))
        }
    })
}

/// Whether a volume of the pod tells of its own labels or annotations.
pub fn tells_of_itself(pod: &Pod) -> bool {
    let volumes = pod.spec.as_ref().and_then(|s| s.volumes.as_ref());
    volumes.into_iter().flatten().any(|volume| {
        let mut sources = volume.projected.iter().flat_map(|p| p.sources.iter().flatten());
        volume.downward_api.is_some() || sources.any(|s| s.downward_api.is_some())
    })
}

/// Removes everything of a pod's volumes: mounts, memory and disk. Fine if there is nothing.
///
/// # Errors
/// What could not be unmounted or removed.
pub async fn release(world: &Arc<World>, uid: &str) -> std::io::Result<()> {
    let pod_dir = world.pod_dir(uid);
    let memory = world.memory_root().join(uid);
    let work = move || {
        if pod_dir.join("volumes").exists() {
            dhow_kernel::mount::unmount_below(&pod_dir)?;
        }
        apply::remove_dir(&memory)?;
        apply::remove_dir(&pod_dir)
    };
    tokio::task::spawn_blocking(work).await.map_err(std::io::Error::other)?
}
