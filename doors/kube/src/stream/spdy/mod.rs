//! SPDY/3.1: what kubectl falls back to for exec, attach and port-forward, and what its
//! port-forward carries inside a WebSocket.

mod connection;
mod dictionary;
pub mod frame;

pub use connection::{Connection, Reader, Stream, Writer};
