//! Answers written straight into their gRPC frame, from the store's own types.
//!
//! The hot answers (Range, Put, DeleteRange, watch events) skip the generated messages: no vectors
//! of converted key-values, and lengths are computed once. The rest is encoded by prost. Field
//! numbers are those of `store/rpc/proto`.

use bytes::{Buf as _, BufMut as _, Bytes, BytesMut};
use dhow_kv::{Event, KeyValue, KeyValueRef, RangeResult};
use dhow_rpc::etcdserverpb::ResponseHeader;
use prost::Message;

/// Compressed flag and length: what stands before every message of gRPC.
pub(crate) const PREFIX: usize = 5;

/// How long a number is as a varint.
fn varint_len(value: u64) -> usize {
    // Seven bits a byte: ceil(bits / 7), with one byte for zero.
    ((64 - (value | 1).leading_zeros() as usize) * 9 + 64) / 64
}

fn put_varint(out: &mut BytesMut, mut value: u64) {
    while value >= 0x80 {
        out.put_u8(value as u8 | 0x80);
        value >>= 7;
    }
    out.put_u8(value as u8);
}

/// A number of a field below 16; left out when it is 0.
fn put_number(out: &mut BytesMut, field: u8, value: u64) {
    if value != 0 {
        out.put_u8(field << 3);
        put_varint(out, value);
    }
}

fn number_len(value: u64) -> usize {
    if value == 0 { 0 } else { 1 + varint_len(value) }
}

fn put_bytes(out: &mut BytesMut, field: u8, value: &[u8]) {
    if !value.is_empty() {
        out.put_u8(field << 3 | 2);
        put_varint(out, value.len() as u64);
        out.put_slice(value);
    }
}

fn bytes_len(len: usize) -> usize {
    if len == 0 { 0 } else { 1 + varint_len(len as u64) + len }
}

/// A message's field, written by `content` and `len` bytes long.
fn put_message(out: &mut BytesMut, field: u8, len: usize, content: impl FnOnce(&mut BytesMut)) {
    out.put_u8(field << 3 | 2);
    put_varint(out, len as u64);
    content(out);
}

fn message_len(len: usize) -> usize {
    1 + varint_len(len as u64) + len
}

fn header_len(header: &ResponseHeader) -> usize {
    number_len(header.cluster_id)
        + number_len(header.member_id)
        + number_len(header.revision as u64)
        + number_len(header.raft_term)
}

fn put_header(out: &mut BytesMut, header: &ResponseHeader) {
    put_message(out, 1, header_len(header), |out| {
        put_number(out, 1, header.cluster_id);
        put_number(out, 2, header.member_id);
        put_number(out, 3, header.revision as u64);
        put_number(out, 4, header.raft_term);
    });
}

fn kv_len(kv: KeyValueRef<'_>) -> usize {
    bytes_len(kv.key.len())
        + number_len(kv.create_revision as u64)
        + number_len(kv.mod_revision as u64)
        + number_len(kv.version as u64)
        + bytes_len(kv.value.len())
        + number_len(kv.lease as u64)
}

fn put_kv(out: &mut BytesMut, field: u8, kv: KeyValueRef<'_>) {
    put_message(out, field, kv_len(kv), |out| {
        put_bytes(out, 1, kv.key);
        put_number(out, 2, kv.create_revision as u64);
        put_number(out, 3, kv.mod_revision as u64);
        put_number(out, 4, kv.version as u64);
        put_bytes(out, 5, kv.value);
        put_number(out, 6, kv.lease as u64);
    });
}

fn event_len(event: &Event) -> usize {
    number_len(event.deleted.into())
        + message_len(kv_len(event.kv.by_ref()))
        + event.prev_kv.as_ref().map_or(0, |kv| message_len(kv_len(kv.by_ref())))
}

/// Events as the field `events` of a `WatchResponse`, without anything around them.
pub(crate) fn events<'a>(events: impl Iterator<Item = &'a Event> + Clone) -> Bytes {
    let size = events.clone().map(|e| message_len(event_len(e))).sum();
    let mut out = BytesMut::with_capacity(size);
    for event in events {
        put_event(&mut out, event);
    }
    out.freeze()
}

fn put_event(out: &mut BytesMut, event: &Event) {
    put_message(out, 11, event_len(event), |out| {
        put_number(out, 1, event.deleted.into());
        put_kv(out, 2, event.kv.by_ref());
        if let Some(kv) = &event.prev_kv {
            put_kv(out, 3, kv.by_ref());
        }
    });
}

/// One message with its prefix, in the making.
struct Frame(BytesMut);

impl Frame {
    fn new(capacity: usize) -> Self {
        let mut out = BytesMut::with_capacity(PREFIX + capacity);
        out.put_bytes(0, PREFIX);
        Self(out)
    }

    fn finish(mut self) -> Bytes {
        let len = (self.0.len() - PREFIX) as u32;
        self.0[1..PREFIX].copy_from_slice(&len.to_be_bytes());
        self.0.freeze()
    }
}

/// Any message, framed.
pub(crate) fn message(message: &impl Message) -> Bytes {
    let mut frame = Frame::new(message.encoded_len());
    message.encode_raw(&mut frame.0);
    frame.finish()
}

/// A `RangeResponse`, written while its key-values are read.
pub(crate) struct RangeFrame {
    out: BytesMut,
    /// How many key-values there may be at most, if that is known.
    most: usize,
}

impl RangeFrame {
    /// Room for the prefix and the header, which is known last.
    const HEAD: usize = PREFIX + 64;
    /// No more than this is taken on the word of the first key-value, in bytes.
    const GUESS: usize = 1 << 20;

    pub(crate) fn new(most: usize) -> Self {
        Self { out: BytesMut::new(), most }
    }

    /// Adds a key-value.
    pub(crate) fn push(&mut self, kv: KeyValueRef<'_>) {
        if self.out.is_empty() {
            // The others may be about as long.
            let size = message_len(kv_len(kv));
            self.out.reserve(
                Self::HEAD + 16 + size.max(size.saturating_mul(self.most).min(Self::GUESS)),
            );
            self.out.put_bytes(0, Self::HEAD);
        }
        put_kv(&mut self.out, 2, kv);
    }

    /// The frame, with what was found beside the key-values.
    pub(crate) fn finish(self, header: &ResponseHeader, found: &RangeResult) -> Bytes {
        let mut out = self.out;
        if out.is_empty() {
            out.put_bytes(0, Self::HEAD);
        }
        put_number(&mut out, 3, found.more.into());
        put_number(&mut out, 4, found.count as u64);
        let mut head = BytesMut::with_capacity(Self::HEAD);
        put_header(&mut head, header);
        // Right before the key-values.
        let start = Self::HEAD - PREFIX - head.len();
        let len = (out.len() - start - PREFIX) as u32;
        out[start + 1..start + PREFIX].copy_from_slice(&len.to_be_bytes());
        out[start + PREFIX..Self::HEAD].copy_from_slice(&head);
        out.advance(start);
        out.freeze()
    }
}

/// A `PutResponse`.
pub(crate) fn put(header: &ResponseHeader, prev_kv: Option<&KeyValue>) -> Bytes {
    let mut frame = Frame::new(64 + prev_kv.map_or(0, |kv| message_len(kv_len(kv.by_ref()))));
    put_header(&mut frame.0, header);
    if let Some(kv) = prev_kv {
        put_kv(&mut frame.0, 2, kv.by_ref());
    }
    frame.finish()
}

/// A `DeleteRangeResponse`.
pub(crate) fn delete(header: &ResponseHeader, deleted: i64, prev_kvs: &[KeyValue]) -> Bytes {
    let kvs: usize = prev_kvs.iter().map(|kv| message_len(kv_len(kv.by_ref()))).sum();
    let mut frame = Frame::new(64 + kvs);
    let out = &mut frame.0;
    put_header(out, header);
    put_number(out, 2, deleted as u64);
    for kv in prev_kvs {
        put_kv(out, 3, kv.by_ref());
    }
    frame.finish()
}

/// The part of a `WatchResponse` with events that differs between watchers: frame prefix, header,
/// number and whether more follows. The events, `events` bytes of them, must come right after.
pub(crate) fn watch_head(
    out: &mut BytesMut,
    header: &ResponseHeader,
    id: i64,
    fragment: bool,
    events: usize,
) {
    let head =
        message_len(header_len(header)) + number_len(id as u64) + number_len(fragment.into());
    out.reserve(PREFIX + head);
    out.put_u8(0);
    out.put_u32((head + events) as u32);
    put_header(out, header);
    put_number(out, 2, id as u64);
    put_number(out, 7, fragment.into());
}

/// Cuts the first whole frame off and returns its message; `None` when there is not a whole one.
pub(crate) fn split_frame(buffer: &mut BytesMut) -> Option<Bytes> {
    let len = frame_len(buffer)?;
    if buffer.len() < PREFIX + len {
        return None;
    }
    let mut frame = buffer.split_to(PREFIX + len);
    let _ = frame.split_to(PREFIX);
    Some(frame.freeze())
}

/// The length of the message whose prefix is at the start.
pub(crate) fn frame_len(buffer: &[u8]) -> Option<usize> {
    let len = buffer.get(1..PREFIX)?;
    Some(u32::from_be_bytes(len.try_into().ok()?) as usize)
}

#[cfg(test)]
mod tests {
    use super::*;
    use dhow_rpc::{etcdserverpb as pb, mvccpb};

    fn header() -> ResponseHeader {
        ResponseHeader { cluster_id: u64::MAX, member_id: 3, revision: 300, raft_term: 2 }
    }

    fn kv(key: &'static str, value: usize) -> KeyValue {
        KeyValue {
            key: key.into(),
            value: vec![7; value].into(),
            create_revision: 1,
            mod_revision: 128,
            version: 1 << 40,
            lease: -1,
        }
    }

    fn pb_kv(kv: &KeyValue) -> mvccpb::KeyValue {
        crate::convert::key_value(kv.clone())
    }

    #[test]
    fn varints_are_as_long_as_they_say() {
        for shift in 0..64 {
            for value in [1u64 << shift, (1u64 << shift) - 1, u64::MAX >> shift] {
                let mut out = BytesMut::new();
                put_varint(&mut out, value);
                assert_eq!(out.len(), varint_len(value), "{value}");
            }
        }
    }

    #[test]
    fn answers_decode_as_the_generated_messages() {
        let found =
            RangeResult { revision: 9, kvs: vec![kv("a", 0), kv("b", 300)], more: true, count: 12 };
        let expected = pb::RangeResponse {
            header: Some(header()),
            kvs: found.kvs.iter().map(pb_kv).collect(),
            more: true,
            count: 12,
        };
        let mut frame = RangeFrame::new(2);
        found.kvs.iter().for_each(|kv| frame.push(kv.by_ref()));
        assert_eq!(frame.finish(&header(), &found), message(&expected));
        let empty = RangeResult { revision: 9, ..RangeResult::default() };
        let expected = pb::RangeResponse { header: Some(header()), ..Default::default() };
        assert_eq!(RangeFrame::new(0).finish(&header(), &empty), message(&expected));
        let old = kv("k", 3);
        let expected = pb::PutResponse { header: Some(header()), prev_kv: Some(pb_kv(&old)) };
        assert_eq!(put(&header(), Some(&old)), message(&expected));
        let expected = pb::DeleteRangeResponse {
            header: Some(header()),
            deleted: 1,
            prev_kvs: vec![pb_kv(&old)],
        };
        assert_eq!(delete(&header(), 1, &[old]), message(&expected));
    }

    #[test]
    fn a_watch_answer_is_a_head_and_shared_events() {
        let list = [
            Event { kv: kv("a", 5), prev_kv: Some(kv("a", 500)), deleted: false },
            Event { kv: kv("b", 0), prev_kv: None, deleted: true },
        ];
        let shared = events(list.iter());
        let mut out = BytesMut::new();
        watch_head(&mut out, &header(), 77, true, shared.len());
        out.put_slice(&shared);
        let expected = pb::WatchResponse {
            header: Some(header()),
            watch_id: 77,
            fragment: true,
            events: list
                .iter()
                .map(|e| mvccpb::Event {
                    r#type: i32::from(e.deleted),
                    kv: Some(pb_kv(&e.kv)),
                    prev_kv: e.prev_kv.as_ref().map(pb_kv),
                })
                .collect(),
            ..pb::WatchResponse::default()
        };
        assert_eq!(out, message(&expected));
        let mut two = BytesMut::new();
        two.put_slice(&out);
        two.put_slice(&out[..7]);
        assert_eq!(split_frame(&mut two).unwrap().len(), out.len() - PREFIX);
        assert_eq!(split_frame(&mut two), None);
    }
}
