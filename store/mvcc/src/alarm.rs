//! What members are alarmed about, and what is refused meanwhile.

use crate::codec::{Malformed, Reader, put_number};
use dhow_kv::Error;
use dhow_kv::admin::{Alarm, AlarmKind};
use std::collections::BTreeSet;

/// The raised alarms. Equal on all members.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Alarms {
    raised: BTreeSet<Alarm>,
}

impl Alarms {
    /// The raised alarms, in order.
    pub fn raised(&self) -> impl Iterator<Item = Alarm> + '_ {
        self.raised.iter().copied()
    }

    /// Whether an alarm of this kind is raised by anybody.
    pub fn is_raised(&self, kind: AlarmKind) -> bool {
        self.raised.iter().any(|alarm| alarm.kind == kind)
    }

    /// Whether nothing may be read because members differ.
    ///
    /// # Errors
    /// [`Error::Corrupt`].
    pub fn check_read(&self) -> Result<(), Error> {
        if self.is_raised(AlarmKind::Corrupt) { Err(Error::Corrupt) } else { Ok(()) }
    }

    /// Whether nothing may be changed (`grows`: made larger).
    ///
    /// # Errors
    /// [`Error::Corrupt`], [`Error::NoSpace`].
    pub fn check_write(&self, grows: bool) -> Result<(), Error> {
        self.check_read()?;
        if grows && self.is_raised(AlarmKind::NoSpace) { Err(Error::NoSpace) } else { Ok(()) }
    }

    /// Raises an alarm. Returns whether it was not raised before.
    pub(crate) fn raise(&mut self, alarm: Alarm) -> bool {
        self.raised.insert(alarm)
    }

    /// Ends the alarms of a member (0 for all) and a kind, and returns them.
    pub(crate) fn disarm(&mut self, member: u64, kind: Option<AlarmKind>) -> Vec<Alarm> {
        let meant = |alarm: &Alarm| {
            (member == 0 || alarm.member == member) && kind.is_none_or(|kind| alarm.kind == kind)
        };
        self.raised.extract_if(.., meant).collect()
    }

    pub(crate) fn encode(&self, out: &mut Vec<u8>) {
        put_number(out, self.raised.len() as u64);
        for alarm in &self.raised {
            put_alarm(out, alarm);
        }
    }

    pub(crate) fn decode(reader: &mut Reader<'_>) -> Result<Self, Malformed> {
        let mut raised = BTreeSet::new();
        for _ in 0..reader.count()? {
            raised.insert(read_alarm(reader)?);
        }
        Ok(Self { raised })
    }
}

impl FromIterator<Alarm> for Alarms {
    fn from_iter<I: IntoIterator<Item = Alarm>>(alarms: I) -> Self {
        Self { raised: alarms.into_iter().collect() }
    }
}

/// Appends a kind's byte; 0 stands for any.
pub(crate) fn put_kind(out: &mut Vec<u8>, kind: Option<AlarmKind>) {
    out.push(match kind {
        None => 0,
        Some(AlarmKind::NoSpace) => 1,
        Some(AlarmKind::Corrupt) => 2,
    });
}

pub(crate) fn read_kind(reader: &mut Reader<'_>) -> Result<Option<AlarmKind>, Malformed> {
    Ok(match reader.byte()? {
        0 => None,
        1 => Some(AlarmKind::NoSpace),
        2 => Some(AlarmKind::Corrupt),
        _ => return Err(Malformed("unknown alarm")),
    })
}

pub(crate) fn put_alarm(out: &mut Vec<u8>, alarm: &Alarm) {
    put_kind(out, Some(alarm.kind));
    put_number(out, alarm.member);
}

pub(crate) fn read_alarm(reader: &mut Reader<'_>) -> Result<Alarm, Malformed> {
    let kind = read_kind(reader)?.ok_or(Malformed("an alarm about nothing"))?;
    Ok(Alarm { member: reader.number()?, kind })
}
