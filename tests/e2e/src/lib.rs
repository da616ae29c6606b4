//! End-to-end tests: a real `dhow` on a machine of its own (a network namespace and a data
//! directory), driven by real clients.
//!
//! The tests need root, `ip` and `nsenter`, `script`, a static busybox, and kubectl (environment
//! `KUBECTL`, or the one in `PATH`). They fail, not skip, when one is missing. `DHOW_BIN` names the
//! program under test; without it the one of this workspace is built. `E2E_ONLY` runs only the
//! checks whose name contains it, and `E2E_KEEP=1` leaves the machine standing after a failure.

mod checks;
mod image;
mod lan;
mod machine;
mod shell;

pub use checks::{Check, run, run_one_by_one};
pub use lan::{Lan, address};
pub use machine::Machine;
pub use shell::{Background, Output, Shell};

use std::time::{Duration, Instant};

/// Asks again and again until `condition` holds.
///
/// # Panics
/// When it does not hold within `timeout`; the message says `what` was waited for.
pub fn wait_for(mut condition: impl FnMut() -> bool, timeout: Duration, what: &str) {
    let until = Instant::now() + timeout;
    while !condition() {
        assert!(Instant::now() < until, "waited {timeout:?} in vain for {what}");
        std::thread::sleep(Duration::from_millis(50));
    }
}
