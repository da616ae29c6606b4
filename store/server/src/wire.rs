//! What members say to each other, in bytes of our own: Raft's messages, and questions that only the
//! leader can answer.

use crate::codec::{Malformed, Reader, put_bytes, put_member, put_number, put_signed, put_texts};
use crate::entry::{put_entry, read_entry};
use bytes::Bytes;
use dhow_kv::Error;
use dhow_kv::admin::Member;
use raft::eraftpb::{Entry, Message as RaftMessage, MessageType};

/// Something that only the leader can do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Ask {
    /// Renew a lease.
    KeepAlive(i64),
    /// Tell what remains of a lease.
    TimeToLive(i64),
    /// Add a member.
    Add { peer_urls: Vec<String>, learner: bool },
    /// Remove one.
    Remove(u64),
    /// Change where one is reached.
    Update { id: u64, peer_urls: Vec<String> },
    /// Make a learner a voter.
    Promote(u64),
}

/// The answer to an [`Ask`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Told {
    /// What the lease was granted and what remains, in seconds; `None` when it does not exist.
    Lease(Option<(i64, i64)>),
    /// The identifier of the member that was meant, and the members now.
    Members(u64, Vec<Member>),
}

/// See the module.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Message {
    /// Raft's own.
    Raft(RaftMessage),
    /// Proposals for the leader, as [`crate::entry::Proposal::encode`] wrote them.
    Propose(Vec<Bytes>),
    /// A proposal was not taken.
    Refused { id: u64, error: Error },
    /// A question to the leader.
    Ask { id: u64, ask: Ask },
    /// Its answer.
    Told { id: u64, answer: Result<Told, Error> },
    /// A piece of a snapshot of the state at `index`; its first has the number 0, and the last
    /// comes with Raft's message about it.
    Piece { index: u64, number: u64, bytes: Bytes, last: Option<Box<RaftMessage>> },
    /// So many pieces have arrived. `None`: begin again later.
    Received { index: u64, pieces: Option<u64> },
    /// The sender is there. For members that have nothing else to say to each other.
    Present,
}

/// The types of Raft's messages that members send. Their places here are their numbers.
const KINDS: [MessageType; 13] = [
    MessageType::MsgAppend,
    MessageType::MsgAppendResponse,
    MessageType::MsgRequestVote,
    MessageType::MsgRequestVoteResponse,
    MessageType::MsgSnapshot,
    MessageType::MsgHeartbeat,
    MessageType::MsgHeartbeatResponse,
    MessageType::MsgTransferLeader,
    MessageType::MsgTimeoutNow,
    MessageType::MsgReadIndex,
    MessageType::MsgReadIndexResp,
    MessageType::MsgRequestPreVote,
    MessageType::MsgRequestPreVoteResponse,
];

fn put_error(out: &mut Vec<u8>, error: &Error) {
    // Numbers end before the mark of a text.
    const { assert!(Error::ALL.len() < u8::MAX as usize) };
    match Error::ALL.iter().position(|known| known == error) {
        Some(at) => out.push(at as u8),
        None => {
            out.push(u8::MAX);
            let text = match error {
                Error::Storage(text) => text.clone(),
                other => other.to_string(),
            };
            put_bytes(out, text.as_bytes());
        }
    }
}

fn read_error(reader: &mut Reader) -> Result<Error, Malformed> {
    match reader.byte()? {
        u8::MAX => Ok(Error::Storage(reader.text()?)),
        at => Error::ALL.get(usize::from(at)).cloned().ok_or("unknown error"),
    }
}

fn put_raft(out: &mut Vec<u8>, message: &RaftMessage) {
    let kind = KINDS.iter().position(|kind| *kind == message.get_msg_type());
    out.push(kind.unwrap_or(usize::from(u8::MAX)) as u8);
    for number in [
        message.to,
        message.from,
        message.term,
        message.log_term,
        message.index,
        message.commit,
        message.commit_term,
        message.request_snapshot,
        message.reject_hint,
    ] {
        put_number(out, number);
    }
    out.push(u8::from(message.reject));
    put_bytes(out, &message.context);
    put_number(out, message.entries.len() as u64);
    for entry in message.entries.iter() {
        put_entry(out, entry);
    }
    let metadata = message.get_snapshot().get_metadata();
    put_number(out, metadata.index);
    put_number(out, metadata.term);
    for ids in [metadata.get_conf_state().get_voters(), metadata.get_conf_state().get_learners()] {
        put_number(out, ids.len() as u64);
        for id in ids {
            put_number(out, *id);
        }
    }
}

fn read_raft(reader: &mut Reader) -> Result<RaftMessage, Malformed> {
    let mut message = RaftMessage::default();
    let kind = KINDS.get(usize::from(reader.byte()?)).ok_or("unknown message")?;
    message.set_msg_type(*kind);
    message.to = reader.number()?;
    message.from = reader.number()?;
    message.term = reader.number()?;
    message.log_term = reader.number()?;
    message.index = reader.number()?;
    message.commit = reader.number()?;
    message.commit_term = reader.number()?;
    message.request_snapshot = reader.number()?;
    message.reject_hint = reader.number()?;
    message.reject = reader.flag()?;
    message.context = reader.bytes()?;
    let mut entries = Vec::new();
    for _ in 0..reader.count()? {
        entries.push(read_entry(reader)?);
    }
    if *kind == MessageType::MsgAppend {
        let follows = |(n, entry): (u64, &Entry)| message.index.checked_add(n) == Some(entry.index);
        if !(1..).zip(&entries).all(follows) {
            return Err("entries do not follow each other");
        }
    }
    message.set_entries(entries.into());
    let (index, term) = (reader.number()?, reader.number()?);
    let mut read_ids = || -> Result<Vec<u64>, Malformed> {
        (0..reader.count()?).map(|_| reader.number()).collect()
    };
    let (voters, learners) = (read_ids()?, read_ids()?);
    if index > 0 {
        let metadata = message.mut_snapshot().mut_metadata();
        (metadata.index, metadata.term) = (index, term);
        metadata.mut_conf_state().set_voters(voters);
        metadata.mut_conf_state().set_learners(learners);
    }
    Ok(message)
}

impl Ask {
    fn encode(&self, out: &mut Vec<u8>) {
        match self {
            Self::KeepAlive(id) => {
                out.push(1);
                put_signed(out, *id);
            }
            Self::TimeToLive(id) => {
                out.push(2);
                put_signed(out, *id);
            }
            Self::Add { peer_urls, learner } => {
                out.push(3);
                put_texts(out, peer_urls);
                out.push(u8::from(*learner));
            }
            Self::Remove(id) => {
                out.push(4);
                put_number(out, *id);
            }
            Self::Update { id, peer_urls } => {
                out.push(5);
                put_number(out, *id);
                put_texts(out, peer_urls);
            }
            Self::Promote(id) => {
                out.push(6);
                put_number(out, *id);
            }
        }
    }

    fn decode(reader: &mut Reader) -> Result<Self, Malformed> {
        Ok(match reader.byte()? {
            1 => Self::KeepAlive(reader.signed()?),
            2 => Self::TimeToLive(reader.signed()?),
            3 => Self::Add { peer_urls: reader.texts()?, learner: reader.flag()? },
            4 => Self::Remove(reader.number()?),
            5 => Self::Update { id: reader.number()?, peer_urls: reader.texts()? },
            6 => Self::Promote(reader.number()?),
            _ => return Err("unknown question"),
        })
    }
}

impl Message {
    pub(crate) fn encode(&self) -> Bytes {
        let mut out = Vec::new();
        match self {
            Self::Raft(message) => {
                let entries = message.entries.iter().map(crate::entry::entry_size).sum::<usize>();
                out.reserve(128 + entries);
                out.push(1);
                put_raft(&mut out, message);
            }
            Self::Propose(proposals) => {
                out.push(2);
                put_number(&mut out, proposals.len() as u64);
                for proposal in proposals {
                    put_bytes(&mut out, proposal);
                }
            }
            Self::Refused { id, error } => {
                out.push(3);
                put_number(&mut out, *id);
                put_error(&mut out, error);
            }
            Self::Ask { id, ask } => {
                out.push(4);
                put_number(&mut out, *id);
                ask.encode(&mut out);
            }
            Self::Told { id, answer } => {
                out.push(5);
                put_number(&mut out, *id);
                match answer {
                    Ok(Told::Lease(None)) => out.push(0),
                    Ok(Told::Lease(Some((granted, left)))) => {
                        out.push(1);
                        put_signed(&mut out, *granted);
                        put_signed(&mut out, *left);
                    }
                    Ok(Told::Members(meant, members)) => {
                        out.push(2);
                        put_number(&mut out, *meant);
                        put_number(&mut out, members.len() as u64);
                        for member in members {
                            put_member(&mut out, member);
                        }
                    }
                    Err(error) => {
                        out.push(3);
                        put_error(&mut out, error);
                    }
                }
            }
            Self::Piece { index, number, bytes, last } => {
                out.reserve(64 + bytes.len());
                out.push(6);
                put_number(&mut out, *index);
                put_number(&mut out, *number);
                put_bytes(&mut out, bytes);
                out.push(u8::from(last.is_some()));
                if let Some(last) = last {
                    put_raft(&mut out, last);
                }
            }
            Self::Received { index, pieces } => {
                out.push(7);
                put_number(&mut out, *index);
                put_number(&mut out, pieces.map_or(0, |pieces| pieces + 1));
            }
            Self::Present => out.push(8),
        }
        out.into()
    }

    pub(crate) fn decode(bytes: Bytes) -> Result<Self, Malformed> {
        let mut reader = Reader::new(bytes);
        let message = match reader.byte()? {
            1 => Self::Raft(read_raft(&mut reader)?),
            2 => {
                let count = reader.count()?;
                Self::Propose((0..count).map(|_| reader.bytes()).collect::<Result<_, _>>()?)
            }
            3 => Self::Refused { id: reader.number()?, error: read_error(&mut reader)? },
            4 => Self::Ask { id: reader.number()?, ask: Ask::decode(&mut reader)? },
            5 => {
                let id = reader.number()?;
                let answer = match reader.byte()? {
                    0 => Ok(Told::Lease(None)),
                    1 => Ok(Told::Lease(Some((reader.signed()?, reader.signed()?)))),
                    2 => {
                        let meant = reader.number()?;
                        let count = reader.count()?;
                        let members = (0..count).map(|_| reader.member());
                        Ok(Told::Members(meant, members.collect::<Result<_, _>>()?))
                    }
                    3 => Err(read_error(&mut reader)?),
                    _ => return Err("unknown answer"),
                };
                Self::Told { id, answer }
            }
            6 => {
                let (index, number) = (reader.number()?, reader.number()?);
                let bytes = reader.bytes()?;
                let last = match reader.flag()? {
                    true => Some(Box::new(read_raft(&mut reader)?)),
                    false => None,
                };
                Self::Piece { index, number, bytes, last }
            }
            7 => {
                let (index, pieces) = (reader.number()?, reader.number()?);
                Self::Received { index, pieces: pieces.checked_sub(1) }
            }
            8 => Self::Present,
            _ => return Err("unknown message: a newer version wrote it"),
        };
        reader.end()?;
        Ok(message)
    }
}

/// What another member says, written anew; `None` when it is not understood. For tests of what
/// reads messages: [`Store::receive`](crate::Store::receive) takes them.
pub fn reencode_message(bytes: Bytes) -> Option<Bytes> {
    Message::decode(bytes).ok().map(|message| message.encode())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn round(message: &Message) {
        let bytes = message.encode();
        assert_eq!(Message::decode(bytes.clone()).as_ref(), Ok(message));
        for cut in 0..bytes.len() {
            assert!(Message::decode(bytes.slice(..cut)).is_err(), "cut at {cut}");
        }
    }

    #[test]
    fn every_message_comes_back() {
        let mut raft = RaftMessage::default();
        raft.set_msg_type(MessageType::MsgAppend);
        (raft.to, raft.from, raft.term, raft.log_term) = (1, u64::MAX, 3, 4);
        (raft.index, raft.commit, raft.commit_term) = (5, 6, 7);
        (raft.request_snapshot, raft.reject_hint, raft.reject) = (8, 9, true);
        raft.context = Bytes::from_static(b"context");
        let entry = Entry { index: 6, term: 3, data: "data".into(), ..Entry::default() };
        raft.set_entries(vec![entry].into());
        round(&Message::Raft(raft.clone()));
        let mut last = RaftMessage::default();
        last.set_msg_type(MessageType::MsgSnapshot);
        last.mut_snapshot().mut_metadata().index = 9;
        last.mut_snapshot().mut_metadata().mut_conf_state().set_voters(vec![1, 2]);
        let last = Some(Box::new(last));
        round(&Message::Piece { index: 9, number: 3, bytes: "piece".into(), last });
        round(&Message::Received { index: 9, pieces: None });
        round(&Message::Received { index: 9, pieces: Some(0) });
        round(&Message::Present);
        round(&Message::Propose(vec!["one".into(), "".into()]));
        for error in Error::ALL.iter().cloned() {
            round(&Message::Refused { id: 1, error });
        }
        round(&Message::Refused { id: 1, error: Error::Storage("broken".into()) });
        let urls = vec!["http://a:1".to_owned()];
        for ask in [
            Ask::KeepAlive(-5),
            Ask::TimeToLive(i64::MAX),
            Ask::Add { peer_urls: urls.clone(), learner: true },
            Ask::Remove(3),
            Ask::Update { id: 3, peer_urls: urls },
            Ask::Promote(u64::MAX),
        ] {
            round(&Message::Ask { id: 4, ask });
        }
        for answer in [
            Ok(Told::Lease(None)),
            Ok(Told::Lease(Some((10, 3)))),
            Ok(Told::Members(1, vec![Member::default()])),
            Err(Error::MemberNotFound),
        ] {
            round(&Message::Told { id: 4, answer });
        }
        raft.entries[0].index = 7;
        assert!(Message::decode(Message::Raft(raft.clone()).encode()).is_err());
        // Nothing follows the last number that there is.
        raft.index = u64::MAX;
        assert!(Message::decode(Message::Raft(raft).encode()).is_err());
    }
}
