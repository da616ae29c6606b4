//! Start, end, signals, removal, restarts.

use crate::harness::{World, exit_of, new_config, within};
use dhow_runtime::{Error, Phase, Runtime};
use std::path::Path;
use std::rc::Rc;

crate::tests![
    it_starts_logs_and_ends,
];

async fn it_starts_logs_and_ends(world: Rc<World>) {
    let (code, text) = world.output(world.shell("one", "echo hello; echo oops >&2; exit 3")).await;
    assert_eq!((code, text.as_str()), (3, "hello\noops\n"));
    let states = world.runtime.containers().await.unwrap();
    assert_eq!(states.len(), 1);
    assert_eq!(states[0].phase, Phase::Exited);
    assert_eq!(states[0].exit.as_ref().unwrap().code, 3);
    world.runtime.remove("one").await.unwrap();
    assert!(world.runtime.containers().await.unwrap().is_empty());
    world.runtime.remove("one").await.unwrap();
}

pub fn client_that_is_killed(_dir: &str) {}
