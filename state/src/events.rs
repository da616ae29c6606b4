//! Events: equal ones are counted, and all of them expire.

use crate::State;
use crate::model::stored;
use crate::types::Result;
use std::time::Duration;

/// How long an event lives after its last write, in seconds.
const LIFE: i64 = 3600;
/// Events of so long a time share a lease.
const SHARED: Duration = Duration::from_secs(300);

/// The lease that events hang on at the moment.
#[derive(Debug, Default)]
pub(crate) struct EventLease {
    id: i64,
    granted: Duration,
}

impl State {
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
}
