//! What a checkpoint and a snapshot for another member say beside the state.

use crate::codec::{Reader, put_number};
use crate::members::Members;
use bytes::Bytes;

/// See the module.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Stand {
    /// The newest entry that the state has.
    pub(crate) index: u64,
    /// Its term.
    pub(crate) term: u64,
    /// Of whose state it is.
    pub(crate) cluster_id: u64,
    /// Up to here the log holds nothing that is needed beside the checkpoint, in records.
    pub(crate) records: u64,
    /// The members.
    pub(crate) members: Members,
}

impl Stand {
    pub(crate) fn encode(&self, out: &mut Vec<u8>) {
        for number in [self.index, self.term, self.cluster_id, self.records] {
            put_number(out, number);
        }
        self.members.encode(out);
    }

    pub(crate) fn decode(bytes: Bytes) -> Result<Self, &'static str> {
        let mut reader = Reader::new(bytes);
        let stand = Self {
            index: reader.number()?,
            term: reader.number()?,
            cluster_id: reader.number()?,
            records: reader.number()?,
            members: Members::decode(&mut reader)?,
        };
        reader.end()?;
        Ok(stand)
    }
}
