//! Serves each machine its own intents; carries live streams.
//!
//! [`NodeDoor`] is a [`dhow_intents::Feed`] over the state for one machine in the same process: it
//! merges what the machine must know into one stream of changes, and writes what the machine observed.
//! [`StreamRegistry`] is the way back: live streams of a machine, found by its name.

mod door;
mod registry;
mod report;
mod subscription;

pub use door::{Compilers, NodeDoor};
pub use registry::StreamRegistry;
