//! Snapshots to members that are too far behind: the state in pieces, read while the leader goes on,
//! and taken over as a checkpoint.

use crate::core::Core;
use crate::shared::Shared;
use crate::stand::Stand;
use crate::wire::Message;
use bytes::Bytes;
use dhow_log::{Checkpoint, CheckpointWriter};
use dhow_mvcc::MachineHeader;
use raft::SnapshotStatus;
use raft::eraftpb::{Message as RaftMessage, SnapshotMetadata};
use std::sync::atomic::Ordering;
use std::time::Duration;

/// About how many bytes a piece has.
const PIECE: usize = 128 << 10;
/// So many pieces are under way to a member.
const AHEAD: u64 = 8;
/// Without a word from the member for so long, the snapshot begins again.
const PATIENCE: Duration = Duration::from_secs(5);

/// A snapshot on its way to a member.
pub(crate) struct Outgoing {
    /// Raft's message, sent with the last piece.
    message: RaftMessage,
    stand: Stand,
    header: MachineHeader,
    /// The last key that was sent.
    after: Option<Bytes>,
    sent: u64,
    received: u64,
    complete: bool,
    heard: Duration,
}

/// A snapshot that is being received.
pub(crate) struct Incoming {
    from: u64,
    index: u64,
    next: u64,
    writer: CheckpointWriter,
    heard: Duration,
}

impl Core {
    /// No entries behind this may be dropped from the log: members will ask for them.
    pub(crate) fn oldest_transfer(&self) -> u64 {
        if self.incoming.is_some() {
            return 0;
        }
        self.outgoing.values().map(|transfer| transfer.stand.index).min().unwrap_or(u64::MAX)
    }

    /// Begins to send the state that Raft wants a member to have.
    pub(crate) fn begin_transfer(&mut self, shared: &Shared, mut message: RaftMessage) {
        let to = message.to;
        let mut state = shared.write();
        let stand = self.stand(&state);
        let header = state.machine.snapshot_header();
        state.hold(to, Some(header.mvcc.compacted));
        let metadata = message.mut_snapshot().mut_metadata();
        (metadata.index, metadata.term) = (stand.index, stand.term);
        metadata.set_conf_state(state.members.conf_state());
        drop(state);
        tracing::info!(
            member = %format!("{to:x}"),
            index = stand.index,
            revision = header.mvcc.revision,
            "sending a snapshot"
        );
        let heard = shared.clock.monotonic();
        let transfer = Outgoing {
            message,
            stand,
            header,
            after: None,
            sent: 0,
            received: 0,
            complete: false,
            heard,
        };
        self.outgoing.insert(to, transfer);
        self.send_pieces(shared, to);
    }

    fn send_pieces(&mut self, shared: &Shared, to: u64) {
        let Some(transport) = self.transport().cloned() else { return };
        let Some(transfer) = self.outgoing.get_mut(&to) else { return };
        while !transfer.complete && transfer.sent < transfer.received + AHEAD {
            let mut bytes = Vec::new();
            match transfer.sent {
                0 => transfer.stand.encode(&mut bytes),
                1 => transfer.header.encode(&mut bytes),
                _ => {
                    let state = shared.read();
                    let mvcc = &state.machine.mvcc;
                    let header = &transfer.header.mvcc;
                    transfer.after =
                        mvcc.snapshot_chunk(header, transfer.after.as_ref(), PIECE, &mut bytes);
                    transfer.complete = transfer.after.is_none();
                }
            }
            let last = transfer.complete.then(|| Box::new(transfer.message.clone()));
            let (index, number) = (transfer.stand.index, transfer.sent);
            transfer.sent += 1;
            let piece = Message::Piece { index, number, bytes: bytes.into(), last };
            transport.send_bulk(to, piece.encode());
        }
        if transfer.complete {
            shared.write().hold(to, None);
        }
    }

    /// A member has told how many pieces it has.
    pub(crate) fn pieces_received(
        &mut self,
        shared: &Shared,
        from: u64,
        index: u64,
        pieces: Option<u64>,
    ) {
        let Some(transfer) = self.outgoing.get_mut(&from) else { return };
        if transfer.stand.index != index {
            return;
        }
        let Some(pieces) = pieces else {
            self.end_transfer(shared, from, SnapshotStatus::Failure);
            return;
        };
        transfer.received = transfer.received.max(pieces.min(transfer.sent));
        transfer.heard = shared.clock.monotonic();
        if transfer.complete && transfer.received == transfer.sent {
            self.end_transfer(shared, from, SnapshotStatus::Finish);
        } else {
            self.send_pieces(shared, from);
        }
    }

    fn end_transfer(&mut self, shared: &Shared, to: u64, status: SnapshotStatus) {
        if self.outgoing.remove(&to).is_some() {
            shared.write().hold(to, None);
            self.node.report_snapshot(to, status);
        }
    }

    /// Gives up snapshots whose members say nothing; Raft begins them again.
    pub(crate) fn retry_transfers(&mut self, shared: &Shared) {
        let now = shared.clock.monotonic();
        let silent = self.outgoing.iter().filter(|(_, transfer)| transfer.heard + PATIENCE < now);
        for to in silent.map(|(to, _)| *to).collect::<Vec<u64>>() {
            tracing::warn!(member = %format!("{to:x}"), "a snapshot was not answered");
            self.end_transfer(shared, to, SnapshotStatus::Failure);
        }
        // One that was not finished must not keep the log from being trimmed for ever.
        self.incoming.take_if(|incoming| incoming.heard + 2 * PATIENCE < now);
    }

    /// This member leads no more: what it sends is not wanted.
    pub(crate) fn outgoing_end(&mut self, shared: &Shared) {
        for to in std::mem::take(&mut self.outgoing).into_keys() {
            shared.write().hold(to, None);
        }
    }

    /// Takes a piece of a snapshot.
    pub(crate) fn take_piece(
        &mut self,
        shared: &Shared,
        from: u64,
        index: u64,
        number: u64,
        bytes: &Bytes,
        last: Option<Box<RaftMessage>>,
    ) {
        let now = shared.clock.monotonic();
        match self.keep_piece(now, from, index, number, bytes) {
            Ok(true) => {}
            Ok(false) => return,
            Err(what) => {
                tracing::warn!(from = %format!("{from:x}"), what, "a snapshot was not taken");
                self.incoming = None;
                self.say(from, &Message::Received { index, pieces: None });
                return;
            }
        }
        self.say(from, &Message::Received { index, pieces: Some(number + 1) });
        let Some(message) = last else { return };
        let fits = message.from == from
            && message.to == self.own
            && message.get_msg_type() == raft::eraftpb::MessageType::MsgSnapshot
            && message.get_snapshot().get_metadata().index == index;
        if fits && self.reserve(0, 1).is_ok() {
            // What Raft wrote before must be safe before it forgets it.
            self.drive(shared);
            if let Err(error) = self.node.step(*message) {
                tracing::debug!(%error, "Raft does not take a snapshot");
            }
        }
        if self.node.snap().is_some() {
            // At once: the next message may be about another snapshot.
            self.drive(shared);
        } else {
            // It was not needed any more.
            self.incoming = None;
        }
    }

    /// Puts a piece to those before it. Returns whether it was one of a snapshot that is wanted.
    fn keep_piece(
        &mut self,
        now: Duration,
        from: u64,
        index: u64,
        number: u64,
        bytes: &Bytes,
    ) -> Result<bool, String> {
        if number == 0 {
            self.incoming = None;
            let cluster_id = self.node.store().identity().cluster_id;
            let mut stand = Stand::decode(bytes.clone())?;
            if stand.cluster_id != cluster_id || stand.index != index || index <= self.applied {
                return Err("it is of another cluster or too old".into());
            }
            let Some(disk) = &self.node.store().disk else {
                return Err("this store keeps nothing".into());
            };
            // All that this member's log holds now will be void.
            stand.records = disk.log.last_index();
            let directory = disk.log.directory().clone();
            let mut writer = CheckpointWriter::begin_received(directory, index)
                .map_err(|error| error.to_string())?;
            writer.chunk(|out| stand.encode(out)).map_err(|error| error.to_string())?;
            self.incoming = Some(Incoming { from, index, next: 1, writer, heard: now });
            return Ok(true);
        }
        let Some(incoming) = &mut self.incoming else { return Ok(false) };
        if incoming.from != from || incoming.index != index {
            return Ok(false);
        }
        if incoming.next != number {
            return Err(format!("piece {number} came where {} belongs", incoming.next));
        }
        incoming.next += 1;
        incoming.heard = now;
        let kept = incoming.writer.chunk(|out| out.extend_from_slice(bytes));
        kept.map_err(|error| error.to_string())?;
        Ok(true)
    }

    /// Takes over the snapshot that Raft has accepted.
    pub(crate) fn install(
        &mut self,
        shared: &Shared,
        metadata: &SnapshotMetadata,
    ) -> Result<(), dhow_log::Error> {
        let (index, term) = (metadata.index, metadata.term);
        let directory = self.node.store().disk.as_ref().map(|disk| disk.log.directory().clone());
        let incoming = self.incoming.take().filter(|incoming| incoming.index == index);
        let (Some(directory), Some(incoming)) = (directory, incoming) else {
            let path = std::path::PathBuf::from("snapshot");
            let what = "it was not received whole".to_owned();
            return Err(dhow_log::Error::Refused { path, what });
        };
        let size = incoming.writer.finish()?;
        let Some(mut checkpoint) = Checkpoint::newest(&directory)? else {
            return Err(dhow_log::Error::damaged(directory.path(), 0, "the snapshot is missing"));
        };
        let (machine, stand, _) = crate::journal::load(&mut checkpoint)?;
        if (stand.index, stand.term) != (index, term) {
            return Err(checkpoint.damage("it is not the snapshot that was announced"));
        }
        let mut hard = self.node.raft.hard_state();
        hard.commit = hard.commit.max(index);
        self.log_mut().append_restart(index, term, hard, None)?;
        self.applied = index;
        let conf = stand.members.conf_state();
        let revision = machine.mvcc.revision();
        {
            let mut state = shared.write();
            state.replace(machine, stand.members);
            shared.numbers.note_rules(&state.machine);
            shared.hub.restart(revision);
        }
        shared.lessor.reset(&shared.read().machine.mvcc, shared.clock.monotonic());
        shared.numbers.checkpoint_bytes.store(size, Ordering::Relaxed);
        self.doubt();
        self.meet(shared);
        let alone = self.alone;
        self.log_mut().applied(index, Some(conf), alone);
        tracing::info!(index, revision, "took over the leader's snapshot");
        Ok(())
    }
}
