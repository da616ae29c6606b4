//! Events about pods and the node, delivered in order in the background.

use crate::time;
use dhow_clock::SharedClock;
use dhow_intents::Feed;
use dhow_reason::Reason;
use k8s_openapi::api::core::v1::{Event, EventSource, ObjectReference, Pod};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use tokio::sync::mpsc;

/// Events wait this long before they are stored: nobody waits for them, but pods that are being
/// started or ended do, for the same disk and the same cores.
const PATIENCE: Duration = Duration::from_millis(100);

/// How serious an event is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Level {
    /// Something went as it should.
    Normal,
    /// Somebody may want to look.
    Warning,
}

/// Takes events; never blocks the caller. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Recorder {
    sender: mpsc::UnboundedSender<Event>,
    clock: SharedClock,
    node: Arc<str>,
    /// When the last event was, in nanoseconds.
    last: Arc<AtomicU64>,
}

impl Recorder {
    /// A recorder for the node, and the task that delivers what it takes.
    pub fn new(
        feed: Arc<dyn Feed>,
        clock: SharedClock,
        node: &str,
    ) -> (Self, impl Future<Output = ()> + Send + use<>) {
        let (sender, mut receiver) = mpsc::unbounded_channel::<Event>();
        let patience = clock.clone();
        let deliver = async move {
            let mut batch = Vec::new();
            while let Some(first) = receiver.recv().await {
                patience.sleep(PATIENCE).await;
                batch.push(first);
                while let Ok(next) = receiver.try_recv() {
                    batch.push(next);
                }
                for event in batch.drain(..) {
                    let reason = event.reason.clone();
                    if let Err(error) = feed.record(event).await {
                        tracing::debug!(reason = reason.as_deref(), %error, "event not recorded");
                    }
                }
            }
        };
        (Self { sender, clock, node: node.into(), last: Arc::default() }, deliver)
    }

    /// Says something about a pod; `field` is the path of the container it is about, or empty. What
    /// is refused, waits or has failed carries its reason as data.
    pub fn pod(
        &self,
        pod: &Pod,
        field: &str,
        level: Level,
        reason: &str,
        message: impl Into<String>,
        because: Option<&Reason>,
    ) {
        let meta = &pod.metadata;
        let about = ObjectReference {
            api_version: Some("v1".into()),
            kind: Some("Pod".into()),
            name: meta.name.clone(),
            namespace: meta.namespace.clone(),
            uid: meta.uid.clone(),
            resource_version: meta.resource_version.clone(),
            field_path: (!field.is_empty()).then(|| field.to_owned()),
        };
        self.send(about, level, reason, message.into(), because);
    }

    /// Says something about this node.
    pub fn node(
        &self,
        level: Level,
        reason: &str,
        message: impl Into<String>,
        because: Option<&Reason>,
    ) {
        let about = ObjectReference {
            kind: Some("Node".into()),
            name: Some(self.node.to_string()),
            uid: Some(self.node.to_string()),
            ..ObjectReference::default()
        };
        self.send(about, level, reason, message.into(), because);
    }

    fn send(
        &self,
        about: ObjectReference,
        level: Level,
        reason: &str,
        mut message: String,
        because: Option<&Reason>,
    ) {
        let now = self.clock.now();
        // Names end with the moment, each with one of its own: clients list events by name and sort
        // them by whole seconds, and so show those of one second as they happened.
        let moment = u64::try_from(now.as_nanos()).unwrap_or(u64::MAX);
        let after = |last| Some(moment.max(u64::saturating_add(last, 1)));
        let last = self.last.fetch_update(Ordering::Relaxed, Ordering::Relaxed, after);
        let moment = moment.max(last.unwrap_or_default().saturating_add(1));
        let level = match level {
            Level::Normal => "Normal",
            Level::Warning => "Warning",
        };
        // Upstream's limit; a longer message is refused by validation.
        if message.len() > 1024 {
            let cut = (0..=1021).rev().find(|&i| message.is_char_boundary(i)).unwrap_or(0);
            message.truncate(cut);
            message.push_str("...");
        }
        tracing::debug!(
            namespace = about.namespace.as_deref().unwrap_or(""),
            name = about.name.as_deref().unwrap_or(""),
            level,
            reason,
            message,
            "event"
        );
        let event = Event {
            metadata: ObjectMeta {
                name: Some(format!("{}.{moment:x}", about.name.as_deref().unwrap_or("node"))),
                namespace: Some(about.namespace.clone().unwrap_or_else(|| "default".into())),
                annotations: because
                    .map(|reason| [(dhow_reason::ANNOTATION.to_owned(), reason.to_json())].into()),
                ..ObjectMeta::default()
            },
            involved_object: about,
            type_: Some(level.into()),
            reason: Some(reason.into()),
            message: Some(message),
            first_timestamp: Some(time::time(now)),
            last_timestamp: Some(time::time(now)),
            count: Some(1),
            source: Some(EventSource {
                component: Some("kubelet".into()),
                host: Some(self.node.to_string()),
            }),
            reporting_component: Some("kubelet".into()),
            reporting_instance: Some(self.node.to_string()),
            ..Event::default()
        };
        // Fails only at shutdown, when nobody listens any more.
        let _ = self.sender.send(event);
    }
}
