//! Another member: its lanes.

use crate::Shared;
use crate::address::Address;
use crate::hello::Purpose;
use crate::lane::{Lane, Limits, Queue, Target};
use bytes::Bytes;
use std::sync::Arc;
use tokio::sync::watch;

/// A member that does not take its messages misses the oldest beyond this. Raft repeats what
/// matters, and what it repeats is newer.
const MESSAGES: Limits = Limits { messages: 4096, bytes: 64 << 20 };

/// Pieces of snapshots that wait; whoever sends them sends no more than a few at a time.
const BULK: Limits = Limits { messages: 256, bytes: 64 << 20 };

/// One other member and the ways to it.
#[derive(Debug)]
pub(crate) struct Peer {
    messages: Arc<Queue>,
    bulk: Arc<Queue>,
    target: watch::Sender<Target>,
    /// Not among the members that this one knows; it called.
    pub stranger: bool,
}

impl Peer {
    /// Starts the lanes; they connect when there is something to send.
    pub fn start(
        shared: &Arc<Shared>,
        member: u64,
        addresses: Vec<Address>,
        stranger: bool,
    ) -> Self {
        let (messages, bulk) = (Arc::new(Queue::new(MESSAGES)), Arc::new(Queue::new(BULK)));
        let target = watch::Sender::new(Target { addresses, gone: false });
        for (purpose, queue) in [(Purpose::Messages, &messages), (Purpose::Bulk, &bulk)] {
            let (queue, target) = (queue.clone(), target.subscribe());
            let lane = Lane { shared: shared.clone(), member, purpose, queue, target };
            shared.spawn(lane.run());
        }
        Self { messages, bulk, target, stranger }
    }

    pub fn send(&self, message: Bytes) {
        self.messages.push(message);
    }

    pub fn send_bulk(&self, message: Bytes) {
        self.bulk.push(message);
    }

    /// Tells where the member is now. A connection to another place ends.
    pub fn moved(&self, addresses: Vec<Address>) {
        self.target.send_if_modified(|target| {
            let changed = target.addresses != addresses;
            target.addresses = addresses;
            changed
        });
    }

    /// The member is none any more: what waits is still sent.
    pub fn gone(&self) {
        self.target.send_modify(|target| target.gone = true);
    }
}
