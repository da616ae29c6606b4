//! Named fault points with triggers and deadlines; free when unused.
//!
//! A place where the world can fail calls [`point`] with a name of the form `crate::step`. While no
//! fault is armed in the process that is one relaxed atomic load. Tests and `dhow break` arm a
//! fault with a trigger and a deadline after which it heals by itself.

use std::collections::HashMap;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

/// What an armed point does to the code that reaches it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Effect {
    /// The operation fails with this text.
    Fail(String),
    /// The operation is delayed by this long, then goes on.
    Delay(Duration),
    /// The process ends at once, as by `kill -9`.
    Abort,
}

#[derive(Debug)]
struct Armed {
    effect: Effect,
    /// How many more times the point lets work through before it triggers.
    skip: u32,
    /// How many more times it triggers.
    count: u32,
    deadline: Instant,
}

static ARMED: AtomicUsize = AtomicUsize::new(0);
static POINTS: Mutex<Option<HashMap<String, Armed>>> = Mutex::new(None);

/// The fault that was injected at a named point.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Injected {
    /// The point's name.
    pub point: String,
    /// What the arming said.
    pub message: String,
}

impl std::fmt::Display for Injected {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "fault injected at {}: {}", self.point, self.message)
    }
}

impl std::error::Error for Injected {}

impl From<Injected> for std::io::Error {
    fn from(injected: Injected) -> Self {
        std::io::Error::other(injected)
    }
}

/// Arms `name`: after `skip` passes it has its effect `count` times, until `lifetime` is over.
pub fn arm(name: &str, effect: Effect, skip: u32, count: u32, lifetime: Duration) {
    let mut points = POINTS.lock().unwrap_or_else(|e| e.into_inner());
    let armed = Armed { effect, skip, count, deadline: Instant::now() + lifetime };
    if points.get_or_insert_with(HashMap::new).insert(name.to_owned(), armed).is_none() {
        ARMED.fetch_add(1, Ordering::Relaxed);
    }
}

/// Heals `name`. Returns whether it was armed.
pub fn disarm(name: &str) -> bool {
    let mut points = POINTS.lock().unwrap_or_else(|e| e.into_inner());
    let removed = points.as_mut().is_some_and(|map| map.remove(name).is_some());
    if removed {
        ARMED.fetch_sub(1, Ordering::Relaxed);
    }
    removed
}

/// The place where `name` can fail.
///
/// # Errors
/// [`Injected`] when an armed fault says so.
#[inline]
pub fn point(name: &str) -> Result<(), Injected> {
    if ARMED.load(Ordering::Relaxed) == 0 {
        return Ok(());
    }
    hit(name)
}

#[cold]
fn hit(name: &str) -> Result<(), Injected> {
    let effect = {
        let mut points = POINTS.lock().unwrap_or_else(|e| e.into_inner());
        let Some(map) = points.as_mut() else { return Ok(()) };
        let Some(armed) = map.get_mut(name) else { return Ok(()) };
        if Instant::now() >= armed.deadline || armed.count == 0 {
            map.remove(name);
            ARMED.fetch_sub(1, Ordering::Relaxed);
            return Ok(());
        }
        if armed.skip > 0 {
            armed.skip -= 1;
            return Ok(());
        }
        armed.count -= 1;
        armed.effect.clone()
    };
    match effect {
        Effect::Fail(message) => Err(Injected { point: name.to_owned(), message }),
        Effect::Delay(period) => {
            std::thread::sleep(period);
            Ok(())
        }
        Effect::Abort => std::process::abort(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MINUTE: Duration = Duration::from_secs(60);

    #[test]
    fn an_unarmed_point_lets_work_through() {
        assert_eq!(point("fault::never"), Ok(()));
    }

    #[test]
    fn a_fault_triggers_after_its_skips_and_only_so_often() {
        arm("fault::counted", Effect::Fail("disk on fire".into()), 1, 1, MINUTE);
        assert!(point("fault::counted").is_ok());
        assert_eq!(point("fault::counted").unwrap_err().message, "disk on fire");
        assert!(point("fault::counted").is_ok());
    }

    #[test]
    fn a_fault_heals_at_its_deadline() {
        arm("fault::late", Effect::Fail("x".into()), 0, 9, Duration::ZERO);
        assert!(point("fault::late").is_ok());
    }

    #[test]
    fn a_disarmed_point_is_healed() {
        arm("fault::healed", Effect::Fail("x".into()), 0, 9, MINUTE);
        assert!(disarm("fault::healed"));
        assert!(point("fault::healed").is_ok());
    }
}
