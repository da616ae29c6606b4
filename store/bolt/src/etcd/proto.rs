//! The wire format of protobuf, as far as etcd's small messages need it.

/// Appends a field that is a number; nothing for zero.
pub fn put_number(out: &mut Vec<u8>, field: u32, n: u64) {
    if n != 0 {
        put_varint(out, u64::from(field) << 3);
        put_varint(out, n);
    }
}

/// Appends a field that is bytes; nothing for none.
pub fn put_bytes(out: &mut Vec<u8>, field: u32, bytes: &[u8]) {
    if !bytes.is_empty() {
        put_message(out, field, bytes);
    }
}

/// Appends a field that is a message or an element of a list, which may be empty.
pub fn put_message(out: &mut Vec<u8>, field: u32, bytes: &[u8]) {
    put_varint(out, u64::from(field) << 3 | 2);
    put_varint(out, bytes.len() as u64);
    out.extend_from_slice(bytes);
}

fn put_varint(out: &mut Vec<u8>, mut n: u64) {
    while n >= 0x80 {
        out.push(n as u8 | 0x80);
        n >>= 7;
    }
    out.push(n as u8);
}

/// A field's content.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Field<'a> {
    /// A number, of whatever type.
    Number(u64),
    /// Bytes, a text or a message.
    Bytes(&'a [u8]),
}

impl<'a> Field<'a> {
    /// The number; 0 when it is none.
    pub fn number(self) -> u64 {
        if let Self::Number(n) = self { n } else { 0 }
    }

    /// The bytes; none when it is a number.
    pub fn bytes(self) -> &'a [u8] {
        if let Self::Bytes(bytes) = self { bytes } else { &[] }
    }

    /// The text, with marks for what is none.
    pub fn text(self) -> String {
        String::from_utf8_lossy(self.bytes()).into_owned()
    }
}

/// Gives each field of a message to `take`. Returns whether the bytes are a message.
pub fn fields<'a>(mut rest: &'a [u8], mut take: impl FnMut(u64, Field<'a>)) -> bool {
    let mut read = || -> Option<()> {
        while !rest.is_empty() {
            let tag = varint(&mut rest)?;
            match tag & 7 {
                0 => take(tag >> 3, Field::Number(varint(&mut rest)?)),
                2 => {
                    let length = usize::try_from(varint(&mut rest)?).ok()?;
                    let (body, after) = rest.split_at_checked(length)?;
                    take(tag >> 3, Field::Bytes(body));
                    rest = after;
                }
                1 => rest = rest.get(8..)?,
                5 => rest = rest.get(4..)?,
                _ => return None,
            }
        }
        Some(())
    };
    read().is_some()
}

fn varint(rest: &mut &[u8]) -> Option<u64> {
    let mut n = 0;
    for shift in (0..64).step_by(7) {
        let (byte, after) = rest.split_first()?;
        *rest = after;
        n |= u64::from(byte & 0x7f) << shift;
        if *byte < 0x80 {
            return Some(n);
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_come_back() {
        let mut out = Vec::new();
        put_number(&mut out, 1, u64::MAX);
        put_number(&mut out, 2, 0);
        put_bytes(&mut out, 300, b"abc");
        put_message(&mut out, 4, b"");
        let mut seen = Vec::new();
        assert!(fields(&out, |field, content| seen.push((field, content))));
        let wanted =
            [(1, Field::Number(u64::MAX)), (300, Field::Bytes(b"abc")), (4, Field::Bytes(b""))];
        assert_eq!(seen, wanted);
        for cut in 1..out.len() {
            let _ = fields(&out[..cut], |_, _| {});
        }
        assert!(!fields(&out[..5], |_, _| {}));
    }
}
