//! The netlink wire format: batches of messages built in one buffer, attributes read in place.

/// Asks for an acknowledgement.
pub const ACK: u16 = 0x4;
/// A request.
pub const REQUEST: u16 = 0x1;
/// All objects rather than one.
pub const DUMP: u16 = 0x300;
/// Create if missing.
pub const CREATE: u16 = 0x400;
/// Fail if it exists.
pub const EXCL: u16 = 0x200;
/// Replace if it exists.
pub const REPLACE: u16 = 0x100;
/// At the end of the list (rules).
pub const APPEND: u16 = 0x800;

const NESTED: u16 = 0x8000;

/// Several messages that travel in one `sendmsg`.
#[derive(Debug, Default)]
pub struct Batch {
    pub(super) bytes: Vec<u8>,
    pub(super) labels: Vec<String>,
    last: usize,
}

impl Batch {
    /// An empty batch.
    pub fn new() -> Self {
        Self::default()
    }

    /// How many messages it holds.
    pub fn len(&self) -> usize {
        self.labels.len()
    }

    /// Whether it holds no message.
    pub fn is_empty(&self) -> bool {
        self.labels.is_empty()
    }

    /// The encoded messages.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// Adds a message. `label` says what it does and stands in errors; `header` is the fixed part
    /// of its kind; `fill` writes the attributes. Its sequence number is its position.
    pub fn add(
        &mut self,
        label: impl Into<String>,
        kind: u16,
        flags: u16,
        header: &[u8],
        fill: impl FnOnce(&mut Attributes<'_>),
    ) {
        let start = self.bytes.len();
        self.last = start;
        let sequence = self.labels.len() as u32;
        self.bytes.extend_from_slice(&[0; 4]);
        self.bytes.extend_from_slice(&kind.to_ne_bytes());
        self.bytes.extend_from_slice(&(flags | REQUEST).to_ne_bytes());
        self.bytes.extend_from_slice(&sequence.to_ne_bytes());
        self.bytes.extend_from_slice(&[0; 4]);
        self.bytes.extend_from_slice(header);
        pad(&mut self.bytes);
        fill(&mut Attributes { bytes: &mut self.bytes });
        let length = (self.bytes.len() - start) as u32;
        self.bytes[start..start + 4].copy_from_slice(&length.to_ne_bytes());
        self.labels.push(label.into());
    }

    /// Adds flags to the message added last.
    pub fn flag_last(&mut self, flags: u16) {
        if self.labels.is_empty() {
            return;
        }
        let at = self.last + 6;
        let old = u16::from_ne_bytes([self.bytes[at], self.bytes[at + 1]]);
        self.bytes[at..at + 2].copy_from_slice(&(old | flags).to_ne_bytes());
    }
}

fn pad(bytes: &mut Vec<u8>) {
    while !bytes.len().is_multiple_of(4) {
        bytes.push(0);
    }
}

/// Writes attributes at the end of a message.
#[derive(Debug)]
pub struct Attributes<'a> {
    bytes: &'a mut Vec<u8>,
}

impl<'a> Attributes<'a> {
    /// A writer over a bare buffer, for parts that are built apart.
    pub fn over(bytes: &'a mut Vec<u8>) -> Self {
        Self { bytes }
    }

    /// Raw bytes, for attributes that were encoded apart.
    pub fn raw(&mut self, bytes: &[u8]) -> &mut Self {
        self.bytes.extend_from_slice(bytes);
        pad(self.bytes);
        self
    }

    /// Bytes.
    pub fn put(&mut self, kind: u16, value: &[u8]) -> &mut Self {
        self.bytes.extend_from_slice(&((value.len() + 4) as u16).to_ne_bytes());
        self.bytes.extend_from_slice(&kind.to_ne_bytes());
        self.bytes.extend_from_slice(value);
        pad(self.bytes);
        self
    }

    /// A string with its final zero byte.
    pub fn text(&mut self, kind: u16, value: &str) -> &mut Self {
        self.bytes.extend_from_slice(&((value.len() + 5) as u16).to_ne_bytes());
        self.bytes.extend_from_slice(&kind.to_ne_bytes());
        self.bytes.extend_from_slice(value.as_bytes());
        self.bytes.push(0);
        pad(self.bytes);
        self
    }

    /// One byte.
    pub fn u8(&mut self, kind: u16, value: u8) -> &mut Self {
        self.put(kind, &[value])
    }

    /// A 32-bit number in the machine's byte order (rtnetlink).
    pub fn u32(&mut self, kind: u16, value: u32) -> &mut Self {
        self.put(kind, &value.to_ne_bytes())
    }

    /// A 32-bit number in network byte order (netfilter).
    pub fn be32(&mut self, kind: u16, value: u32) -> &mut Self {
        self.put(kind, &value.to_be_bytes())
    }

    /// A 64-bit number in network byte order (netfilter).
    pub fn be64(&mut self, kind: u16, value: u64) -> &mut Self {
        self.put(kind, &value.to_be_bytes())
    }

    /// Attributes inside an attribute.
    pub fn nest(&mut self, kind: u16, fill: impl FnOnce(&mut Attributes<'_>)) -> &mut Self {
        let start = self.bytes.len();
        self.bytes.extend_from_slice(&[0; 2]);
        self.bytes.extend_from_slice(&(kind | NESTED).to_ne_bytes());
        fill(&mut Attributes { bytes: self.bytes });
        // The kernel's length field has 16 bits; callers keep lists short enough.
        let length = (self.bytes.len() - start) as u16;
        self.bytes[start..start + 2].copy_from_slice(&length.to_ne_bytes());
        self
    }
}

/// Walks the attributes in `bytes`; malformed ends are cut off.
pub fn attributes(bytes: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    let mut rest = bytes;
    std::iter::from_fn(move || {
        let [a, b, c, d, ..] = *rest else { return None };
        let length = usize::from(u16::from_ne_bytes([a, b]));
        let kind = u16::from_ne_bytes([c, d]) & 0x3fff;
        let value = rest.get(4..length)?;
        rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some((kind, value))
    })
}

/// The first attribute of a kind.
pub fn find(bytes: &[u8], kind: u16) -> Option<&[u8]> {
    attributes(bytes).find(|(k, _)| *k == kind).map(|(_, v)| v)
}

/// A string attribute without its final zero byte.
pub fn text(value: &[u8]) -> String {
    let end = value.iter().position(|b| *b == 0).unwrap_or(value.len());
    String::from_utf8_lossy(&value[..end]).into_owned()
}

/// A number in the machine's byte order.
pub fn u32_of(value: &[u8]) -> Option<u32> {
    Some(u32::from_ne_bytes(value.get(..4)?.try_into().ok()?))
}

/// A number in network byte order.
pub fn be32_of(value: &[u8]) -> Option<u32> {
    Some(u32::from_be_bytes(value.get(..4)?.try_into().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nested_attributes_read_back() {
        let mut batch = Batch::new();
        batch.add("a", 16, ACK, &[0; 4], |a| {
            a.text(3, "eth0").nest(18, |a| {
                a.text(1, "veth").u32(2, 7);
            });
        });
        let body = &batch.bytes()[20..];
        assert_eq!(text(find(body, 3).unwrap()), "eth0");
        let nest = find(body, 18).unwrap();
        assert_eq!(text(find(nest, 1).unwrap()), "veth");
        assert_eq!(u32_of(find(nest, 2).unwrap()), Some(7));
        assert_eq!(find(nest, 9), None);
    }

    #[test]
    fn cut_attributes_end_the_walk() {
        assert_eq!(attributes(&[9, 0, 1, 0, 1]).count(), 0);
        assert_eq!(attributes(&[2, 0, 1, 0]).count(), 0);
        assert_eq!(attributes(&[4, 0, 1, 0, 0]).count(), 1);
    }
}
