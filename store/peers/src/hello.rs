//! The first words on a connection: who calls, in which cluster, what for; and the answer.

use crate::frame::invalid;
use bytes::{Buf, BufMut, Bytes, BytesMut};
use dhow_kv::admin::Member;
use std::io;

/// What every connection begins with, before the first frame.
pub(crate) const PREFACE: &[u8; 8] = b"dhowpeer";

/// The version of what follows. A member refuses versions that it does not know.
pub(crate) const VERSION: u16 = 1;

/// First words are never longer.
pub(crate) const MOST: usize = 1 << 20;

/// What a connection is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Purpose {
    /// Messages of Raft.
    Messages,
    /// Pieces of snapshots.
    Bulk,
    /// One question: which cluster is this, and who are its members?
    Ask,
}

/// What the caller says first.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Hello {
    /// The caller's version of the protocol.
    pub version: u16,
    /// What the connection is for.
    pub purpose: Purpose,
    /// The caller's cluster; 0 when it asks for it.
    pub cluster: u64,
    /// The caller; 0 when it has no identifier yet.
    pub from: u64,
    /// Whom it means to reach; 0 for whoever answers.
    pub to: u64,
    /// Where the caller itself is reached.
    pub urls: Vec<String>,
}

/// What is answered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Answer {
    /// Go on. To a question: the cluster and its members.
    Welcome {
        /// The answering member's version of the protocol.
        version: u16,
        /// Its cluster.
        cluster: u64,
        /// Itself.
        member: u64,
        /// To a question: all members.
        members: Vec<Member>,
    },
    /// No.
    Refused(Refusal),
}

/// Why a member refuses another.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// The protocol's version is not known.
    #[error(
        "it speaks version {theirs} of the members' protocol and not {VERSION}: run the same release on all members"
    )]
    Version {
        /// What the refusing member speaks.
        theirs: u16,
    },
    /// Another cluster.
    #[error(
        "it belongs to another cluster ({theirs:x}): check the member addresses and the initial cluster token"
    )]
    Cluster {
        /// The refusing member's cluster.
        theirs: u64,
    },
    /// Another member than the one that was meant.
    #[error(
        "another member ({theirs:x}) answers at this address: check the peer URLs of both with member list"
    )]
    Member {
        /// The refusing member.
        theirs: u64,
    },
    /// The calling member was removed from the cluster.
    #[error(
        "this member was removed from the cluster: delete its data directory and add it anew with member add"
    )]
    Removed,
    /// The refusing member has not opened its store yet.
    #[error("it is still starting")]
    Starting,
}

impl Hello {
    /// The bytes of a frame.
    pub fn encode(&self) -> Bytes {
        let mut out = BytesMut::new();
        out.put_u16_le(self.version);
        out.put_u8(match self.purpose {
            Purpose::Messages => 0,
            Purpose::Bulk => 1,
            Purpose::Ask => 2,
        });
        out.put_u64_le(self.cluster);
        out.put_u64_le(self.from);
        out.put_u64_le(self.to);
        put_texts(&mut out, &self.urls);
        out.freeze()
    }

    /// Reads what [`Hello::encode`] wrote. Of another version only the version is looked at.
    ///
    /// # Errors
    /// `InvalidData`: cut short, or with a purpose that is not known.
    pub fn decode(mut bytes: Bytes) -> io::Result<Self> {
        let bytes = &mut bytes;
        let version = bytes.try_get_u16_le().map_err(short)?;
        if version != VERSION {
            let (purpose, urls) = (Purpose::Messages, Vec::new());
            return Ok(Self { version, purpose, cluster: 0, from: 0, to: 0, urls });
        }
        let purpose = match bytes.try_get_u8().map_err(short)? {
            0 => Purpose::Messages,
            1 => Purpose::Bulk,
            2 => Purpose::Ask,
            other => return Err(invalid(format!("a connection of unknown purpose {other}"))),
        };
        Ok(Self {
            version,
            purpose,
            cluster: bytes.try_get_u64_le().map_err(short)?,
            from: bytes.try_get_u64_le().map_err(short)?,
            to: bytes.try_get_u64_le().map_err(short)?,
            urls: texts(bytes)?,
        })
    }
}

impl Answer {
    /// The bytes of a frame.
    pub fn encode(&self) -> Bytes {
        let mut out = BytesMut::new();
        match self {
            Self::Welcome { version, cluster, member, members } => {
                out.put_u8(0);
                out.put_u16_le(*version);
                out.put_u64_le(*cluster);
                out.put_u64_le(*member);
                out.put_u32_le(members.len() as u32);
                for member in members {
                    out.put_u64_le(member.id);
                    out.put_u8(u8::from(member.learner));
                    put_text(&mut out, &member.name);
                    put_texts(&mut out, &member.peer_urls);
                    put_texts(&mut out, &member.client_urls);
                }
            }
            Self::Refused(why) => {
                out.put_u8(1);
                let (code, value) = match why {
                    Refusal::Version { theirs } => (1, u64::from(*theirs)),
                    Refusal::Cluster { theirs } => (2, *theirs),
                    Refusal::Member { theirs } => (3, *theirs),
                    Refusal::Removed => (4, 0),
                    Refusal::Starting => (5, 0),
                };
                out.put_u8(code);
                out.put_u64_le(value);
            }
        }
        out.freeze()
    }

    /// Reads what [`Answer::encode`] wrote.
    ///
    /// # Errors
    /// `InvalidData`: cut short, or of a kind that is not known.
    pub fn decode(mut bytes: Bytes) -> io::Result<Self> {
        let bytes = &mut bytes;
        match bytes.try_get_u8().map_err(short)? {
            0 => {
                let version = bytes.try_get_u16_le().map_err(short)?;
                let cluster = bytes.try_get_u64_le().map_err(short)?;
                let member = bytes.try_get_u64_le().map_err(short)?;
                let count = bytes.try_get_u32_le().map_err(short)?;
                let mut members = Vec::new();
                for _ in 0..count {
                    members.push(Member {
                        id: bytes.try_get_u64_le().map_err(short)?,
                        learner: bytes.try_get_u8().map_err(short)? != 0,
                        name: text(bytes)?,
                        peer_urls: texts(bytes)?,
                        client_urls: texts(bytes)?,
                    });
                }
                Ok(Self::Welcome { version, cluster, member, members })
            }
            1 => {
                let code = bytes.try_get_u8().map_err(short)?;
                let value = bytes.try_get_u64_le().map_err(short)?;
                Ok(Self::Refused(match code {
                    1 => Refusal::Version { theirs: value as u16 },
                    2 => Refusal::Cluster { theirs: value },
                    3 => Refusal::Member { theirs: value },
                    4 => Refusal::Removed,
                    5 => Refusal::Starting,
                    other => return Err(invalid(format!("a refusal of unknown kind {other}"))),
                }))
            }
            other => Err(invalid(format!("an answer of unknown kind {other}"))),
        }
    }
}

fn short(_: bytes::TryGetError) -> io::Error {
    invalid("first words that end too soon".into())
}

fn put_text(out: &mut BytesMut, text: &str) {
    out.put_u32_le(text.len() as u32);
    out.put_slice(text.as_bytes());
}

fn put_texts(out: &mut BytesMut, texts: &[String]) {
    out.put_u32_le(texts.len() as u32);
    for text in texts {
        put_text(out, text);
    }
}

fn text(bytes: &mut Bytes) -> io::Result<String> {
    let length = bytes.try_get_u32_le().map_err(short)? as usize;
    if length > bytes.len() {
        return Err(invalid("first words that end too soon".into()));
    }
    String::from_utf8(bytes.split_to(length).to_vec())
        .map_err(|_| invalid("first words that are no UTF-8".into()))
}

fn texts(bytes: &mut Bytes) -> io::Result<Vec<String>> {
    let count = bytes.try_get_u32_le().map_err(short)?;
    (0..count).map(|_| text(bytes)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hello() -> Hello {
        Hello {
            version: VERSION,
            purpose: Purpose::Bulk,
            cluster: 1 << 60,
            from: 2,
            to: 3,
            urls: vec!["https://a:2380".into(), String::new()],
        }
    }

    fn welcome() -> Answer {
        let member = |id| Member {
            id,
            name: format!("m{id}"),
            peer_urls: vec!["http://a:2380".into()],
            client_urls: vec!["http://a:2379".into(), "unix:///x".into()],
            learner: id == 2,
        };
        Answer::Welcome {
            version: VERSION,
            cluster: 7,
            member: 1,
            members: vec![member(1), member(2)],
        }
    }

    #[test]
    fn what_was_said_is_understood() {
        assert_eq!(Hello::decode(hello().encode()).unwrap(), hello());
        assert_eq!(Answer::decode(welcome().encode()).unwrap(), welcome());
        for refusal in [
            Refusal::Version { theirs: 9 },
            Refusal::Cluster { theirs: 9 },
            Refusal::Member { theirs: 9 },
            Refusal::Removed,
            Refusal::Starting,
        ] {
            let answer = Answer::Refused(refusal);
            assert_eq!(Answer::decode(answer.encode()).unwrap(), answer);
        }
    }

    #[test]
    fn words_cut_short_are_errors() {
        for whole in [hello().encode(), welcome().encode()] {
            for length in 0..whole.len() {
                let cut = whole.slice(..length);
                assert!(Hello::decode(cut.clone()).is_err() || Answer::decode(cut).is_err());
            }
        }
    }

    #[test]
    fn a_later_version_is_told_whatever_follows() {
        let said = Hello::decode(Bytes::from_static(&[9, 0, 1, 2, 3])).unwrap();
        assert_eq!(said.version, 9);
    }
}
