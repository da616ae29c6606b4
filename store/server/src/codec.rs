//! Numbers, bytes and texts as the log, checkpoints and the members' messages have them.

use bytes::Bytes;
use dhow_kv::admin::Member;
pub(crate) use dhow_mvcc::{put_bytes, put_number, put_signed};

/// Bytes that are not what this version writes.
pub(crate) type Malformed = &'static str;

pub(crate) fn put_texts(out: &mut Vec<u8>, texts: &[String]) {
    put_number(out, texts.len() as u64);
    for text in texts {
        put_bytes(out, text.as_bytes());
    }
}

pub(crate) fn put_member(out: &mut Vec<u8>, member: &Member) {
    put_number(out, member.id);
    put_bytes(out, member.name.as_bytes());
    put_texts(out, &member.peer_urls);
    put_texts(out, &member.client_urls);
    out.push(u8::from(member.learner));
}

/// Reads what the functions above wrote. What it returns are slices of the whole.
pub(crate) struct Reader {
    rest: Bytes,
}

impl Reader {
    pub(crate) fn new(whole: Bytes) -> Self {
        Self { rest: whole }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.rest.is_empty()
    }

    pub(crate) fn end(&self) -> Result<(), Malformed> {
        if self.is_empty() { Ok(()) } else { Err("bytes left over") }
    }

    pub(crate) fn rest(&mut self) -> Bytes {
        std::mem::take(&mut self.rest)
    }

    pub(crate) fn take(&mut self, length: usize) -> Result<Bytes, Malformed> {
        if length > self.rest.len() {
            return Err("cut short");
        }
        Ok(self.rest.split_to(length))
    }

    pub(crate) fn byte(&mut self) -> Result<u8, Malformed> {
        Ok(self.take(1)?[0])
    }

    pub(crate) fn flag(&mut self) -> Result<bool, Malformed> {
        match self.byte()? {
            0 => Ok(false),
            1 => Ok(true),
            _ => Err("not a flag"),
        }
    }

    pub(crate) fn number(&mut self) -> Result<u64, Malformed> {
        let mut n = 0;
        for (at, shift) in (0..64).step_by(7).enumerate() {
            let byte = *self.rest.get(at).ok_or("cut short")?;
            n |= u64::from(byte & 0x7f) << shift;
            if byte < 0x80 {
                self.take(at + 1)?;
                return Ok(n);
            }
        }
        Err("number too long")
    }

    pub(crate) fn signed(&mut self) -> Result<i64, Malformed> {
        let n = self.number()?;
        Ok((n >> 1) as i64 ^ -((n & 1) as i64))
    }

    /// A count of things of at least one byte each.
    pub(crate) fn count(&mut self) -> Result<usize, Malformed> {
        let count = self.number()?;
        usize::try_from(count).ok().filter(|count| *count <= self.rest.len()).ok_or("count")
    }

    pub(crate) fn bytes(&mut self) -> Result<Bytes, Malformed> {
        let length = self.count()?;
        self.take(length)
    }

    pub(crate) fn text(&mut self) -> Result<String, Malformed> {
        String::from_utf8(self.bytes()?.into()).map_err(|_| "not UTF-8")
    }

    pub(crate) fn texts(&mut self) -> Result<Vec<String>, Malformed> {
        (0..self.count()?).map(|_| self.text()).collect()
    }

    pub(crate) fn member(&mut self) -> Result<Member, Malformed> {
        Ok(Member {
            id: self.number()?,
            name: self.text()?,
            peer_urls: self.texts()?,
            client_urls: self.texts()?,
            learner: self.flag()?,
        })
    }
}
