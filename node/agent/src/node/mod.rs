//! The node itself: registered at the start, then every ten seconds its lease is renewed and its
//! status told, of which only news is written.

pub mod eviction;
pub mod observe;
pub mod status;

pub use eviction::Eviction;
pub use observe::Facts;

use crate::events::Level;
use crate::images;
use crate::time::time;
use crate::world::World;
use k8s_openapi::api::core::v1::Node;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{Notify, mpsc};

/// How often the lease is renewed.
const RENEW: Duration = Duration::from_secs(10);
/// How often the images are listed although nobody said that they changed.
const LOOK: Duration = Duration::from_secs(300);
/// Pause after the control plane could not be reached, doubled up to [`RENEW`].
const AGAIN: Duration = Duration::from_millis(200);

/// Further than this no clock drifts between two looks: it was set.
const DRIFT: Duration = Duration::from_secs(1);

/// What pods have to hear of their machine.
#[derive(Debug)]
pub enum Notice {
    /// One of them has to go: it takes more of the disk than it may, or the disk is nearly full.
    Evict(Box<Eviction>),
    /// The machine's clock was set: what is dated may be out of date.
    ClockSet,
}

/// Registers the node and keeps its status and lease true. `images_changed` asks for a new look.
/// What pods have to hear goes to `pods`.
pub async fn run(
    world: Arc<World>,
    images_changed: Arc<Notify>,
    pods: mpsc::UnboundedSender<Notice>,
) {
    let mut stored = register(&world).await;
    world.events.node(Level::Normal, "Starting", "Starting dhow's agent.", None);
    world.events.node(
        Level::Normal,
        "NodeReady",
        format!("Node {} status is now: NodeReady", world.config.node_name),
        None,
    );
    let mut before = world.now();
    let mut looked_at = before.moment;
    loop {
        let lease = status::lease(&world.config, Some(&stored), world.clock.now());
        if let Err(error) = world.feed.renew_lease(lease).await {
            tracing::warn!(%error, "lease not renewed");
        }
        let look = tokio::select! {
            () = world.clock.sleep(RENEW) => false,
            () = images_changed.notified() => true,
        };
        let now = world.now();
        let awaited = before.wall + now.moment.since(before.moment);
        if now.wall.abs_diff(awaited) > DRIFT {
            tracing::warn!(before = %time(awaited).0, now = %time(now.wall).0, "the machine's clock was set");
            // Fails only at shutdown.
            let _ = pods.send(Notice::ClockSet);
        }
        before = now;
        let due = now.moment.since(looked_at) >= LOOK;
        if look || due {
            looked_at = now.moment;
        }
        // Told at every renewal: somebody may have changed or deleted the node meanwhile. What
        // says nothing new is not written.
        let node = current(&world, Some(&stored), look || due).await;
        if is_short_of_disk(&node) {
            make_room(&world, &pods).await;
        }
        end_overdrawn(&world, &pods).await;
        match world.feed.report_node(node).await {
            Ok(node) => stored = node,
            Err(error) => tracing::warn!(%error, "node status not told"),
        }
    }
}

fn is_short_of_disk(node: &Node) -> bool {
    let conditions = node.status.iter().flat_map(|s| s.conditions.iter().flatten());
    conditions.into_iter().any(|c| c.type_ == "DiskPressure" && c.status == "True")
}

/// Sends one pod away.
async fn make_room(world: &Arc<World>, pods: &mpsc::UnboundedSender<Notice>) {
    let shared = world.clone();
    let chosen = tokio::task::spawn_blocking(move || eviction::choose(&shared)).await;
    let Ok(Some(eviction)) = chosen else { return };
    let message = "Attempting to reclaim ephemeral-storage";
    let because = eviction.reason.causes.first();
    world.events.node(Level::Warning, "EvictionThresholdMet", message, because);
    tracing::warn!(node = world.config.node_name, reason = %eviction.reason, "the disk is nearly full");
    // Fails only at shutdown.
    let _ = pods.send(Notice::Evict(Box::new(eviction)));
}

/// Sends away the pods that take more of the disk than they may.
async fn end_overdrawn(world: &Arc<World>, pods: &mpsc::UnboundedSender<Notice>) {
    let shared = world.clone();
    let found = tokio::task::spawn_blocking(move || eviction::overdrawn(&shared)).await;
    for eviction in found.unwrap_or_default() {
        tracing::warn!(reason = %eviction.reason, "a pod takes more of the disk than it may");
        // Fails only at shutdown.
        let _ = pods.send(Notice::Evict(Box::new(eviction)));
    }
}

async fn register(world: &Arc<World>) -> Arc<Node> {
    let mut pause = AGAIN;
    loop {
        let node = current(world, None, true).await;
        match world.feed.report_node(node).await {
            Ok(stored) => {
                tracing::info!(node = world.config.node_name, "node registered");
                return stored;
            }
            Err(error) => tracing::warn!(%error, "node not registered yet"),
        }
        world.clock.sleep(pause).await;
        pause = (pause * 2).min(RENEW);
    }
}

/// The node as it is now. Listing images reads the disk, so without `look` they are as before.
async fn current(world: &Arc<World>, before: Option<&Node>, look: bool) -> Node {
    let known = before.and_then(|n| n.status.as_ref()).and_then(|s| s.images.clone());
    let known = known.filter(|_| !look);
    let shared = world.clone();
    let seen = tokio::task::spawn_blocking(move || {
        let images = known.unwrap_or_else(|| images::listed(&shared.images));
        (observe::pressure(&shared.config.data_dir), images)
    });
    let (pressure, images) = seen.await.unwrap_or_default();
    status::node(&world.config, &world.facts, pressure, images, before, world.clock.now())
}
