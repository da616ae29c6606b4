//! Many checks on one machine, each in a namespace of its own, some at a time.

use crate::machine::Machine;
use crate::shell::Shell;
use std::collections::VecDeque;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Mutex;
use std::time::Instant;

/// A named check.
pub type Check = (&'static str, fn(&Shell));

/// How many checks run at a time: most of their time they wait.
const AT_A_TIME: usize = 5;

/// Runs `checks` on `machine`; each gets an own namespace, which is deleted when it has passed.
///
/// # Panics
/// When one of them failed, after all have run.
pub fn run(machine: &Machine, checks: &[Check]) {
    some_at_a_time(machine, checks, AT_A_TIME);
}

/// As [`run`], for checks that disturb each other.
///
/// # Panics
/// When one of them failed, after all have run.
pub fn run_one_by_one(machine: &Machine, checks: &[Check]) {
    some_at_a_time(machine, checks, 1);
}

fn some_at_a_time(machine: &Machine, checks: &[Check], at_a_time: usize) {
    let only = std::env::var("E2E_ONLY").unwrap_or_default();
    let waiting: VecDeque<&Check> = checks.iter().filter(|c| c.0.contains(&only)).collect();
    let (waiting, failed) = (Mutex::new(waiting), Mutex::new(Vec::new()));
    std::thread::scope(|scope| {
        for _ in 0..at_a_time {
            scope.spawn(|| {
                loop {
                    let Some((name, check)) = waiting.lock().expect("no panic inside").pop_front()
                    else {
                        return;
                    };
                    let began = Instant::now();
                    let outcome = catch_unwind(AssertUnwindSafe(|| {
                        let shell = machine.shell(name);
                        check(&shell);
                        shell.ok("kubectl delete namespace $NS --wait=false");
                    }));
                    let seconds = began.elapsed().as_secs_f32();
                    if outcome.is_ok() {
                        println!("ok     {name} ({seconds:.1} s)");
                    } else {
                        println!("FAILED {name} ({seconds:.1} s)");
                        failed.lock().expect("no panic inside").push(*name);
                    }
                }
            });
        }
    });
    let failed = failed.into_inner().expect("no panic inside");
    assert!(failed.is_empty(), "failed: {failed:?}");
}
