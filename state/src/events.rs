//! Events: equal ones are counted, and all of them expire.

use crate::State;
use crate::codec::text;
use crate::model::stored;
use crate::types::{Actor, Result, WriteOptions};
use crate::write::Aim;
use dhow_objects::{kinds, meta, time};
use k8s_openapi::api::core::v1::Event;
use serde_json::{Value, json};
use std::collections::{HashMap, VecDeque};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

/// How long an event lives after its last write, in seconds.
const LIFE: i64 = 3600;
/// Events of so long a time share a lease.
const SHARED: Duration = Duration::from_secs(300);
/// How many different events are remembered for counting.
const REMEMBERED: usize = 1024;

/// The lease that events hang on at the moment.
#[derive(Debug, Default)]
pub(crate) struct EventLease {
    id: i64,
    granted: Duration,
}

/// Names of the events that were recorded last, by what makes events equal.
#[derive(Debug, Default)]
pub(crate) struct Recorded(Mutex<(HashMap<Equal, String>, VecDeque<Equal>)>);

/// What equal events have in common.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Equal(Vec<String>);

impl Equal {
    fn of(event: &Value) -> Self {
        let fields = [
            "/involvedObject/kind",
            "/involvedObject/namespace",
            "/involvedObject/name",
            "/involvedObject/uid",
            "/involvedObject/fieldPath",
            "/source/component",
            "/source/host",
            "/type",
            "/reason",
            "/message",
        ];
        Self(fields.iter().map(|f| text(event, f).to_owned()).collect())
    }
}

impl Recorded {
    fn name(&self, equal: &Equal) -> Option<String> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).0.get(equal).cloned()
    }

    fn remember(&self, equal: Equal, name: String) {
        let mut inner = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let (names, order) = &mut *inner;
        if names.insert(equal.clone(), name).is_none() {
            order.push_back(equal);
        }
        if order.len() > REMEMBERED
            && let Some(oldest) = order.pop_front()
        {
            names.remove(&oldest);
        }
    }
}

impl State {
    /// The lease for events that are written now.
    pub(crate) async fn event_lease(&self) -> Result<i64> {
        let mut lease = self.shared.event_lease.lock().await;
        let now = self.shared.clock.monotonic();
        if lease.id == 0 || lease.granted + SHARED < now {
            let life = LIFE + i64::try_from(SHARED.as_secs()).unwrap_or(0);
            lease.id = stored(self.shared.kv.lease_grant(0, life).await)?.id;
            lease.granted = now;
        }
        Ok(lease.id)
    }

    /// Records an event about `involved_object`. An equal one that still exists is counted
    /// instead of repeated. Name, namespace and times are filled in when missing.
    ///
    /// # Errors
    /// As [`State::create`]; an event in a namespace that ends is refused, which callers may ignore.
    pub async fn record_event(&self, actor: &Actor, event: Event) -> Result<()> {
        let mut event = serde_json::to_value(event).map_err(crate::Status::internal)?;
        let equal = Equal::of(&event);
        let now = time::format(self.now());
        let mut namespace = meta::namespace(&event).to_owned();
        if namespace.is_empty() {
            text(&event, "/involvedObject/namespace").clone_into(&mut namespace);
        }
        if namespace.is_empty() {
            "default".clone_into(&mut namespace);
        }
        let options = WriteOptions::default();
        if let Some(name) = self.shared.recorded.name(&equal) {
            let again = |old: &Value| {
                let mut new = old.clone();
                new["count"] = json!(old["count"].as_i64().unwrap_or(1) + 1);
                new["lastTimestamp"] = json!(now);
                Ok(new)
            };
            let (kind, namespace, name) = (&kinds::EVENT, namespace.as_str(), name.as_str());
            let options = &options;
            let aim = Aim { actor, kind, namespace, name, subresource: "", options };
            match self.replace(aim, &again).await {
                // Expired meanwhile.
                Err(refusal) if refusal.code == 404 => {}
                done => return done.map(|_| ()),
            }
        }
        if meta::name(&event).is_empty() {
            let about = text(&event, "/involvedObject/name");
            let name = format!("{about}.{:x}", self.shared.clock.now().as_nanos());
            event["metadata"]["name"] = json!(name);
        }
        event["metadata"]["namespace"] = json!(namespace);
        for field in ["firstTimestamp", "lastTimestamp"] {
            if event[field].is_null() {
                event[field] = json!(now);
            }
        }
        if event["count"].is_null() {
            event["count"] = json!(1);
        }
        let made = self.create(actor, &kinds::EVENT, &namespace, event, &options).await?;
        self.shared.recorded.remember(equal, made.name.clone());
        Ok(())
    }
}
