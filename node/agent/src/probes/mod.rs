//! Probes: whether a container has started, lives, and takes traffic.

pub mod diff;
pub mod grpc;
pub mod http;
pub mod observe;

pub use diff::{Kind, Outcome, ProbeState, Verdict};
