//! What one machine must do and what it observed: the only words that control and node share.
//!
//! A machine's agent takes a [`Feed`]: it lists and follows what the machine must do, and takes
//! what the machine observed. The agent offers [`Streams`]: the live connections into containers
//! that logs, exec, attach and port-forward need.

pub mod feed;
pub mod net;
pub mod streams;

pub use feed::{Change, Feed, FeedError};
pub use net::{
    Backend, MachineIntent, NameIntent, NameRecord, Owner, Protocol, ServiceIntent, ServicePort,
};
pub use streams::{
    AttachRequest, ExecRequest, LogRequest, PodRef, Session, SessionExit, StreamError, Streams,
};
