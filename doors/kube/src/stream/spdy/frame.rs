//! SPDY/3.1 frames, between bytes and words. Pure: no input or output.
//!
//! Follows draft-mbelshe-httpbis-spdy-00 (SPDY/3), section 2. Only what Kubernetes' clients use is
//! told apart; other control frames are skipped, as the draft asks.

use super::dictionary::{ADLER32, dictionary};
use bytes::{Buf, BufMut, Bytes, BytesMut};
use miniz_oxide::inflate::TINFLStatus;
use miniz_oxide::inflate::core::inflate_flags::TINFL_FLAG_HAS_MORE_INPUT;
use miniz_oxide::inflate::core::{DecompressorOxide, decompress};

/// The largest control frame that is taken, in bytes. Headers of streams are a few hundred.
const MAX_CONTROL: usize = 64 * 1024;
/// The largest set of headers after decompression, in bytes.
const MAX_HEADERS: usize = 64 * 1024;
/// Deflate's window.
const WINDOW: usize = 32 * 1024;
/// The largest piece of data that is sent in one frame, in bytes.
pub const MAX_DATA: usize = 32 * 1024;

/// The last frame of its sender on a stream.
const FLAG_FIN: u8 = 1;
/// The opener of a stream will not listen on it.
const FLAG_UNIDIRECTIONAL: u8 = 2;

/// Names and values, in order. A name with several values has them separated by NUL, as on the
/// wire.
pub type Headers = Vec<(String, String)>;

/// A frame.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Frame {
    /// Opens a stream.
    SynStream {
        /// Its number; odd from clients.
        stream: u32,
        /// What it is for.
        headers: Headers,
        /// The opener has sent all it will send.
        fin: bool,
        /// The opener will not listen on it.
        unidirectional: bool,
    },
    /// Accepts a stream.
    SynReply {
        /// Its number.
        stream: u32,
        /// Answers.
        headers: Headers,
        /// The answerer has sent all it will send.
        fin: bool,
    },
    /// Bytes on a stream.
    Data {
        /// Its number.
        stream: u32,
        /// The bytes.
        bytes: Bytes,
        /// The sender has sent all it will send.
        fin: bool,
    },
    /// Breaks a stream off.
    Reset {
        /// Its number.
        stream: u32,
        /// Why: 1 protocol error, 3 refused, 5 cancelled, 6 internal error...
        status: u32,
    },
    /// Asks for the same frame back.
    Ping(u32),
    /// No more streams will be taken.
    GoAway,
    /// More headers for a stream.
    Headers {
        /// Its number.
        stream: u32,
        /// The headers.
        headers: Headers,
        /// The sender has sent all it will send.
        fin: bool,
    },
    /// The sender may send more. Kubernetes' peers do not limit themselves by it.
    WindowUpdate {
        /// The stream's number; 0 for the connection.
        stream: u32,
        /// How many more bytes.
        delta: u32,
    },
    /// A control frame that means nothing to us, by its type.
    Other(u16),
}

/// Why bytes are not SPDY.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum FrameError {
    /// Another version.
    #[error("SPDY version {0} is not 3")]
    Version(u16),
    /// A control frame that is too large.
    #[error("a SPDY control frame of {0} bytes is too large")]
    TooLarge(usize),
    /// A frame that is shorter than its type needs.
    #[error("a SPDY frame of type {0} is too short")]
    Short(u16),
    /// Headers that cannot be decompressed or read.
    #[error("SPDY headers cannot be read: {0}")]
    Headers(&'static str),
}

/// Takes frames out of a stream of bytes.
#[derive(Debug, Default)]
pub struct Decoder {
    inflate: Inflate,
}

impl Decoder {
    /// The next whole frame in `buffer`, taken out of it; `None` when more bytes are needed.
    ///
    /// # Errors
    /// When the bytes are not SPDY/3. The connection cannot be used any more then, because the
    /// state of header compression is lost.
    pub fn next(&mut self, buffer: &mut BytesMut) -> Result<Option<Frame>, FrameError> {
        if buffer.len() < 8 {
            return Ok(None);
        }
        let first = u32::from_be_bytes([buffer[0], buffer[1], buffer[2], buffer[3]]);
        let flags = buffer[4];
        let length = u32::from_be_bytes([0, buffer[5], buffer[6], buffer[7]]) as usize;
        let control = first & 0x8000_0000 != 0;
        if control && length > MAX_CONTROL {
            return Err(FrameError::TooLarge(length));
        }
        if buffer.len() < 8 + length {
            return Ok(None);
        }
        buffer.advance(8);
        let mut body = buffer.split_to(length).freeze();
        let fin = flags & FLAG_FIN != 0;
        if !control {
            return Ok(Some(Frame::Data { stream: first, bytes: body, fin }));
        }
        // 15 bits of version, 16 of type.
        let (version, kind) = ((first >> 16 & 0x7fff) as u16, (first & 0xffff) as u16);
        if version != 3 {
            return Err(FrameError::Version(version));
        }
        let need = |bytes: usize| {
            if body.len() < bytes { Err(FrameError::Short(kind)) } else { Ok(()) }
        };
        let number = |body: &mut Bytes| body.get_u32() & 0x7fff_ffff;
        Ok(Some(match kind {
            1 => {
                need(10)?;
                let stream = number(&mut body);
                body.advance(6);
                let headers = self.inflate.headers(&body)?;
                let unidirectional = flags & FLAG_UNIDIRECTIONAL != 0;
                Frame::SynStream { stream, headers, fin, unidirectional }
            }
            2 => {
                need(4)?;
                let stream = number(&mut body);
                Frame::SynReply { stream, headers: self.inflate.headers(&body)?, fin }
            }
            3 => {
                need(8)?;
                Frame::Reset { stream: number(&mut body), status: body.get_u32() }
            }
            6 => {
                need(4)?;
                Frame::Ping(body.get_u32())
            }
            7 => Frame::GoAway,
            8 => {
                need(4)?;
                let stream = number(&mut body);
                Frame::Headers { stream, headers: self.inflate.headers(&body)?, fin }
            }
            9 => {
                need(8)?;
                Frame::WindowUpdate { stream: number(&mut body), delta: number(&mut body) }
            }
            other => Frame::Other(other),
        }))
    }
}

/// Headers' decompression: one zlib stream for the whole connection, primed with the dictionary.
struct Inflate {
    state: Box<DecompressorOxide>,
    /// What was decompressed last; the dictionary stands in it before the first byte.
    window: Vec<u8>,
    position: usize,
    begun: bool,
}

impl Default for Inflate {
    fn default() -> Self {
        let mut window = vec![0; WINDOW];
        let primed = dictionary();
        window[..primed.len()].copy_from_slice(&primed);
        Self { state: Box::default(), window, position: primed.len(), begun: false }
    }
}

impl std::fmt::Debug for Inflate {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Inflate(begun {})", self.begun)
    }
}

impl Inflate {
    fn headers(&mut self, packed: &[u8]) -> Result<Headers, FrameError> {
        if packed.is_empty() {
            return Ok(Vec::new());
        }
        let plain = self.unpack(packed)?;
        parse_headers(&plain).ok_or(FrameError::Headers("a length is wrong"))
    }

    fn unpack(&mut self, packed: &[u8]) -> Result<Vec<u8>, FrameError> {
        let mut input = packed;
        if !self.begun {
            input = zlib_header(input)?;
            self.begun = true;
        }
        let mut plain = Vec::new();
        loop {
            let (status, read, written) = decompress(
                &mut self.state,
                input,
                &mut self.window,
                self.position,
                TINFL_FLAG_HAS_MORE_INPUT,
            );
            input = input.get(read..).unwrap_or_default();
            let end = self.position + written;
            plain.extend_from_slice(self.window.get(self.position..end).unwrap_or_default());
            self.position = end % WINDOW;
            if plain.len() > MAX_HEADERS {
                return Err(FrameError::Headers("they are too large"));
            }
            match status {
                TINFLStatus::NeedsMoreInput if input.is_empty() => return Ok(plain),
                TINFLStatus::HasMoreOutput => {}
                TINFLStatus::NeedsMoreInput if read > 0 || written > 0 => {}
                _ => return Err(FrameError::Headers("the compression is broken")),
            }
        }
    }
}

/// Checks and skips the two (or, with a dictionary, six) bytes in front of a zlib stream.
fn zlib_header(packed: &[u8]) -> Result<&[u8], FrameError> {
    let [method, flags, rest @ ..] = packed else {
        return Err(FrameError::Headers("the compression is cut off"));
    };
    let check = u16::from_be_bytes([*method, *flags]);
    if method & 0x0f != 8 || check % 31 != 0 {
        return Err(FrameError::Headers("the compression is not zlib"));
    }
    if flags & 0x20 == 0 {
        return Ok(rest);
    }
    match rest {
        [a, b, c, d, rest @ ..] if u32::from_be_bytes([*a, *b, *c, *d]) == ADLER32 => Ok(rest),
        _ => Err(FrameError::Headers("the compression has another dictionary")),
    }
}

fn parse_headers(mut plain: &[u8]) -> Option<Headers> {
    fn number(plain: &mut &[u8]) -> Option<usize> {
        (plain.len() >= 4).then(|| plain.get_u32() as usize)
    }
    fn text(plain: &mut &[u8]) -> Option<String> {
        let length = number(plain)?;
        let (word, rest) = plain.split_at_checked(length)?;
        *plain = rest;
        Some(String::from_utf8_lossy(word).into_owned())
    }
    let count = number(&mut plain)?;
    let mut headers = Vec::new();
    for _ in 0..count {
        let name = text(&mut plain)?;
        headers.push((name, text(&mut plain)?));
    }
    Some(headers)
}

/// Turns frames into bytes.
#[derive(Debug, Default)]
pub struct Encoder {
    begun: bool,
}

impl Encoder {
    /// The bytes of a frame. [`Frame::Other`] has none.
    pub fn encode(&mut self, frame: &Frame) -> Bytes {
        let mut out = BytesMut::new();
        let fin = |fin: bool| if fin { FLAG_FIN } else { 0 };
        match frame {
            Frame::Data { stream, bytes, fin: last } => {
                out.reserve(8 + bytes.len());
                out.put_u32(*stream);
                length(&mut out, fin(*last), bytes.len());
                out.put_slice(bytes);
            }
            Frame::SynStream { stream, headers, fin: last, unidirectional } => {
                let block = self.headers(headers);
                let alone = if *unidirectional { FLAG_UNIDIRECTIONAL } else { 0 };
                control(&mut out, 1, fin(*last) | alone, 10 + block.len());
                out.put_u32(*stream);
                out.put_bytes(0, 6);
                out.put_slice(&block);
            }
            Frame::SynReply { stream, headers, fin: last } => {
                let block = self.headers(headers);
                control(&mut out, 2, fin(*last), 4 + block.len());
                out.put_u32(*stream);
                out.put_slice(&block);
            }
            Frame::Headers { stream, headers, fin: last } => {
                let block = self.headers(headers);
                control(&mut out, 8, fin(*last), 4 + block.len());
                out.put_u32(*stream);
                out.put_slice(&block);
            }
            Frame::Reset { stream, status } => {
                control(&mut out, 3, 0, 8);
                out.put_u32(*stream);
                out.put_u32(*status);
            }
            Frame::Ping(id) => {
                control(&mut out, 6, 0, 4);
                out.put_u32(*id);
            }
            Frame::GoAway => {
                control(&mut out, 7, 0, 8);
                out.put_bytes(0, 8);
            }
            Frame::WindowUpdate { stream, delta } => {
                control(&mut out, 9, 0, 8);
                out.put_u32(*stream);
                out.put_u32(*delta);
            }
            Frame::Other(_) => {}
        }
        out.freeze()
    }

    /// A header block. It goes into stored blocks of one zlib stream: a few dozen bytes are not
    /// worth a compressor, and every peer reads them.
    fn headers(&mut self, headers: &Headers) -> Vec<u8> {
        let mut plain = Vec::new();
        plain.put_u32(u32::try_from(headers.len()).unwrap_or(0));
        for (name, value) in headers {
            for text in [name, value] {
                plain.put_u32(u32::try_from(text.len()).unwrap_or(0));
                plain.put_slice(text.as_bytes());
            }
        }
        let mut out = Vec::with_capacity(plain.len() + 16);
        if !self.begun {
            // Deflate with a window of 32 KiB, no dictionary.
            out.put_slice(&[0x78, 0x01]);
            self.begun = true;
        }
        for part in plain.chunks(0xffff) {
            // Never longer than two bytes can say.
            let length = part.len() as u16;
            out.put_u8(0);
            out.put_u16_le(length);
            out.put_u16_le(!length);
            out.put_slice(part);
        }
        // An empty stored block is how deflate flushes: Go's reader gives out what it has when it
        // meets one, and would otherwise look for the next block behind the end of the frame.
        out.put_slice(&[0, 0, 0, 0xff, 0xff]);
        out
    }
}

fn control(out: &mut BytesMut, kind: u16, flags: u8, body: usize) {
    out.reserve(8 + body);
    out.put_u16(0x8003);
    out.put_u16(kind);
    length(out, flags, body);
}

fn length(out: &mut BytesMut, flags: u8, length: usize) {
    // Frames of ours stay far below 24 bits.
    out.put_u32(u32::from(flags) << 24 | (length as u32 & 0x00ff_ffff));
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn through(frames: &[Frame]) -> Vec<Frame> {
        let (mut encoder, mut decoder) = (Encoder::default(), Decoder::default());
        let mut bytes = BytesMut::new();
        for frame in frames {
            bytes.put_slice(&encoder.encode(frame));
        }
        let mut found = Vec::new();
        while let Some(frame) = decoder.next(&mut bytes).unwrap() {
            found.push(frame);
        }
        assert!(bytes.is_empty());
        found
    }

    fn headers(pairs: &[(&str, &str)]) -> Headers {
        pairs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
    }

    #[test]
    fn frames_survive_the_wire() {
        let frames = [
            Frame::SynStream {
                stream: 1,
                headers: headers(&[("streamtype", "error"), ("port", "80")]),
                fin: false,
                unidirectional: false,
            },
            Frame::SynReply { stream: 1, headers: headers(&[]), fin: true },
            Frame::Headers { stream: 1, headers: headers(&[("a", "b")]), fin: false },
            Frame::Data { stream: 1, bytes: Bytes::from_static(b"hello"), fin: true },
            Frame::Reset { stream: 3, status: 5 },
            Frame::Ping(7),
            Frame::GoAway,
            Frame::WindowUpdate { stream: 1, delta: 65536 },
        ];
        assert_eq!(through(&frames), frames);
    }

    /// Headers as Kubernetes' clients send them, made by zlib with the dictionary and a sync flush
    /// after each block.
    #[test]
    fn the_dictionary_is_understood() {
        let packed: [&[u8]; 2] = [
            &[
                0x78, 0xf9, 0xe3, 0xc6, 0xa7, 0xc2, 0x02, 0x25, 0x3a, 0x70, 0x3a, 0x2b, 0x29, 0x4a,
                0x4d, 0xcc, 0x85, 0x16, 0x25, 0xac, 0xa9, 0xa0, 0x80, 0x86, 0x14, 0xcb, 0x45, 0xe0,
                0x1c, 0x60, 0x61, 0x60, 0x61, 0x00, 0xa4, 0x39, 0x8b, 0x20, 0xd1, 0x98, 0x09, 0x4a,
                0xde, 0x8c, 0x06, 0x00, 0x00, 0x00, 0x00, 0xff, 0xff,
            ],
            &[0xc2, 0xaa, 0x19, 0x54, 0x0e, 0x25, 0x12, 0xd6, 0x0b, 0x00, 0x00, 0x00, 0xff, 0xff],
        ];
        let mut inflate = Inflate::default();
        let first = inflate.headers(packed[0]).unwrap();
        assert_eq!(
            first,
            headers(&[("streamtype", "error"), ("port", "8080"), ("requestid", "0")])
        );
        let second = inflate.headers(packed[1]).unwrap();
        assert_eq!(
            second,
            headers(&[("streamtype", "data"), ("port", "8080"), ("requestid", "0")])
        );
    }

    #[test]
    fn other_versions_are_refused() {
        let mut bytes = BytesMut::from(&[0x80, 2, 0, 6, 0, 0, 0, 0][..]);
        assert_eq!(Decoder::default().next(&mut bytes), Err(FrameError::Version(2)));
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_or_refused(bytes in proptest::collection::vec(any::<u8>(), 0..600)) {
            let mut decoder = Decoder::default();
            let mut bytes = BytesMut::from(&bytes[..]);
            while let Ok(Some(_)) = decoder.next(&mut bytes) {}
        }

        #[test]
        fn any_control_frame_is_read_or_refused(
            kind in 0u16..12,
            flags in any::<u8>(),
            body in proptest::collection::vec(any::<u8>(), 0..200),
            zlib in any::<bool>(),
        ) {
            let mut bytes = BytesMut::new();
            let prefix: &[u8] = if zlib { &[0, 0, 0, 1, 0x78, 0x01] } else { &[] };
            control(&mut bytes, kind, flags, body.len() + prefix.len());
            bytes.put_slice(prefix);
            bytes.put_slice(&body);
            let mut decoder = Decoder::default();
            while let Ok(Some(_)) = decoder.next(&mut bytes) {}
        }

        #[test]
        fn frames_cut_anywhere_are_the_same(
            payload in proptest::collection::vec(any::<u8>(), 0..300),
            name in "[a-z]{1,12}",
            cut in 1usize..20,
        ) {
            let frames = [
                Frame::SynStream {
                    stream: 5,
                    headers: vec![(name.clone(), name)],
                    fin: false,
                    unidirectional: true,
                },
                Frame::Data { stream: 5, bytes: payload.into(), fin: true },
            ];
            let mut encoder = Encoder::default();
            let whole: Vec<u8> = frames.iter().flat_map(|f| encoder.encode(f)).collect();
            let (mut decoder, mut buffer, mut found) =
                (Decoder::default(), BytesMut::new(), Vec::new());
            for part in whole.chunks(cut) {
                buffer.put_slice(part);
                while let Some(frame) = decoder.next(&mut buffer).unwrap() {
                    found.push(frame);
                }
            }
            prop_assert_eq!(found, frames);
        }
    }
}
