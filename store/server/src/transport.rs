//! How members reach each other: the store says what to send, somebody else owns the sockets.

use bytes::Bytes;
use dhow_kv::admin::Member;

/// Carries messages between members. The other direction is
/// [`Store::receive`](crate::Store::receive).
///
/// Messages may be lost, and Raft repeats what matters; between two members they keep their order
/// while a connection lasts, and none arrives twice or damaged. A transport must know for certain
/// who a message comes from, and hand over none from another cluster.
pub trait Transport: Send + Sync + std::fmt::Debug + 'static {
    /// Queues a message for a member. Never blocks, and does not deliver within the call; drops the
    /// message when the member is not reached or its queue is full.
    fn send(&self, to: u64, message: Bytes);
    /// As [`Transport::send`], for pieces of snapshots: they may travel beside the other messages
    /// and keep their order only among themselves, so that heartbeats do not wait behind them.
    fn send_bulk(&self, to: u64, message: Bytes) {
        self.send(to, message);
    }
    /// Tells who the members are now and where; called at start and with each change.
    fn members(&self, members: &[Member]);
}
