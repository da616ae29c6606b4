//! For clients that send no host and port as `:authority`.
//!
//! The client of etcd 3.4 sends a URL when it asks a single member (`endpoint status`, `endpoint
//! hashkv`, `defrag`, `move-leader`), and Go's client 3.5.0 what it connects to,
//! `#initially=[URL;URL]`, with every call. etcd's server takes both, while the HTTP/2 layer here
//! refuses the request: RFC 9113 allows a host and a port. Nobody looks at the authority, so the
//! socket puts other characters where a URL has slashes and a list its brackets, in the bytes as they
//! pass: each has a code of the same length that differs in its last bit, so that neither a frame nor
//! an entry of the header table (RFC 7541) changes its size, and nothing else of the connection needs
//! to be understood.
//!
//! A connection whose first request has a proper authority is not looked at further.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// What a client begins HTTP/2 with.
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
/// The size of a frame's head: length, type, flags, stream.
const HEAD: usize = 9;
/// Types of frames.
const HEADERS: u8 = 1;
const CONTINUATION: u8 = 9;
/// Flags of frames.
const END_HEADERS: u8 = 4;
const PADDED: u8 = 8;
const PRIORITY: u8 = 0x20;
/// Bytes that say a request's priority.
const PRIORITY_SIZE: u32 = 5;
/// Where the static table of headers has `:authority`.
const AUTHORITY: u8 = 1;
/// Huffman codes: how many bits, and which. With another last bit these are `3`, `B`, `@` and `~`.
const SLASH: (u8, u16) = (6, 0x18);
const COLON: (u8, u16) = (7, 0x5c);
const OPENING: (u8, u16) = (13, 0x1ffb);
const CLOSING: (u8, u16) = (13, 0x1ffc);
/// Twelve bits have no other character that fits: `#i` becomes `+-`, which takes as many. They begin with
/// the same byte; this is the second, as it is and as it becomes.
const LIST: (u8, u8) = (0xa3, 0x6b);

/// A socket that bears a URL, or a list of them, as `:authority`.
#[derive(Debug)]
pub(crate) struct Lenient<S> {
    socket: S,
    frames: Frames,
}

impl<S> Lenient<S> {
    pub(crate) fn new(socket: S) -> Self {
        Self { socket, frames: Frames::default() }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Lenient<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        ready!(Pin::new(&mut self.socket).poll_read(context, buffer))?;
        self.frames.pass(&mut buffer.filled_mut()[before..]);
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Lenient<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        piece: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.socket).poll_write(context, piece)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.socket).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.socket).poll_shutdown(context)
    }

    fn is_write_vectored(&self) -> bool {
        self.socket.is_write_vectored()
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        pieces: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.socket).poll_write_vectored(context, pieces)
    }
}

/// Where the next byte of a connection stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Place {
    /// In the preface, after so many bytes.
    Preface(usize),
    /// In a frame's head, after so many bytes.
    Head(usize),
    /// It says how much padding ends the frame.
    PadLength,
    /// In what comes before a frame's headers; so many bytes are left of it.
    Before(u32),
    /// In a frame's headers.
    Headers,
    /// In what nobody needs to look at.
    Rest,
    /// Nothing of this connection is looked at any more.
    Over,
}

/// The frames of a connection as they pass.
#[derive(Debug)]
struct Frames {
    place: Place,
    head: [u8; HEAD],
    /// Bytes of the frame that are still to come, the padding not counted.
    left: u32,
    padding: u32,
    headers: Headers,
}

impl Default for Frames {
    fn default() -> Self {
        let (head, headers) = ([0; HEAD], Headers::default());
        Self { place: Place::Preface(0), head, left: 0, padding: 0, headers }
    }
}

impl Frames {
    /// Changes what must be changed in the next bytes of the connection.
    fn pass(&mut self, mut bytes: &mut [u8]) {
        while let Some(first) = bytes.first_mut() {
            let mut passed = 1;
            match self.place {
                Place::Over => return,
                Place::Preface(at) if *first != PREFACE[at] => self.place = Place::Over,
                Place::Preface(at) if at + 1 == PREFACE.len() => self.place = Place::Head(0),
                Place::Preface(at) => self.place = Place::Preface(at + 1),
                Place::Head(at) => {
                    self.head[at] = *first;
                    self.place = Place::Head(at + 1);
                    if at + 1 == HEAD {
                        self.begin();
                    }
                }
                Place::PadLength => {
                    let (padding, left) = (u32::from(*first), self.left - 1);
                    (self.padding, self.left) = (padding, left.saturating_sub(padding));
                    self.enter();
                }
                Place::Before(more) => {
                    self.left -= 1;
                    self.place = if more == 1 { Place::Headers } else { Place::Before(more - 1) };
                    self.end_when_done();
                }
                Place::Headers => {
                    self.headers.pass(first);
                    self.left -= 1;
                    self.end_when_done();
                }
                Place::Rest => {
                    passed = bytes.len().min(self.left as usize);
                    self.left -= passed as u32;
                    self.end_when_done();
                }
            }
            if self.headers.part == Part::Proper {
                self.place = Place::Over;
            }
            bytes = &mut bytes[passed..];
        }
    }

    /// After a frame's head.
    fn begin(&mut self) {
        let [a, b, c, kind, flags, ..] = self.head;
        self.left = u32::from_be_bytes([0, a, b, c]);
        self.padding = 0;
        match kind {
            HEADERS if flags & PADDED != 0 && self.left > 0 => self.place = Place::PadLength,
            HEADERS | CONTINUATION => self.enter(),
            _ => {
                self.place = Place::Rest;
                self.end_when_done();
            }
        }
    }

    /// After what says how much padding there is.
    fn enter(&mut self) {
        let [.., kind, flags, _, _, _, _] = self.head;
        let priority = kind == HEADERS && flags & PRIORITY != 0;
        self.place = if priority { Place::Before(PRIORITY_SIZE) } else { Place::Headers };
        self.end_when_done();
    }

    fn end_when_done(&mut self) {
        if self.left > 0 {
            return;
        }
        let [.., kind, flags, _, _, _, _] = self.head;
        if matches!(kind, HEADERS | CONTINUATION) && flags & END_HEADERS != 0 {
            self.headers.end();
        }
        self.left = std::mem::take(&mut self.padding);
        self.place = if self.left > 0 { Place::Rest } else { Place::Head(0) };
    }
}

/// What the next byte of a request's headers is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
enum Part {
    /// The first of a header.
    #[default]
    First,
    /// More of its number in the table.
    Index,
    /// The length of its name or value.
    Length,
    /// More of that, from this bit on.
    More(u32),
    /// Of its name or value.
    Text,
    /// There is no URL for an authority, or this is not HTTP/2: nothing needs to be changed.
    Proper,
}

/// The headers of a request as they pass (RFC 7541, section 6).
#[derive(Debug, Default)]
struct Headers {
    part: Part,
    /// How many texts the header still has: its name, unless a table has it, and its value.
    texts: u8,
    /// The next one is the authority.
    authority: bool,
    /// The text is Huffman-coded.
    huffman: bool,
    /// Bytes of the text that are still to come.
    left: u32,
    /// How many bits of a character's code have come, and which.
    code: (u8, u16),
    /// The authority has a slash, or is a list.
    slash: bool,
    /// It is a list.
    list: bool,
    /// This connection's authority is a URL, or a list.
    url: bool,
}

impl Headers {
    fn pass(&mut self, byte: &mut u8) {
        match self.part {
            Part::First => {
                let (mask, literal) = match *byte {
                    0x80.. => (0x7f, false),
                    0x40.. => (0x3f, true),
                    0x20.. => (0x1f, false),
                    _ => (0x0f, true),
                };
                let index = *byte & mask;
                self.texts = if literal { 1 + u8::from(index == 0) } else { 0 };
                self.authority = literal && index == AUTHORITY;
                self.part = Part::Index;
                if index != mask {
                    self.next();
                }
            }
            Part::Index if *byte & 0x80 == 0 => self.next(),
            Part::Index => {}
            Part::Length => {
                self.huffman = *byte & 0x80 != 0;
                self.left = u32::from(*byte & 0x7f);
                self.part = Part::More(0);
                if self.left < 0x7f {
                    self.begin();
                }
            }
            // No list of headers that the layer above takes has longer texts.
            Part::More(21..) => self.part = Part::Proper,
            Part::More(bit) => {
                self.left += u32::from(*byte & 0x7f) << bit;
                self.part = Part::More(bit + 7);
                if *byte & 0x80 == 0 {
                    self.begin();
                }
            }
            Part::Text => {
                if self.authority {
                    self.mend(byte);
                }
                self.left -= 1;
                self.end_text_when_done();
            }
            Part::Proper => {}
        }
    }

    /// After a header's number, and after each text.
    fn next(&mut self) {
        self.part = if self.texts > 0 { Part::Length } else { Part::First };
    }

    /// After a text's length.
    fn begin(&mut self) {
        (self.part, self.code, self.slash, self.list) = (Part::Text, (0, 0), false, false);
        self.end_text_when_done();
    }

    fn end_text_when_done(&mut self) {
        if self.left > 0 {
            return;
        }
        self.texts -= 1;
        self.next();
        if self.authority && !self.url {
            self.part = Part::Proper;
        }
    }

    /// After a request's headers.
    fn end(&mut self) {
        if self.part != Part::First || !self.url {
            self.part = Part::Proper;
        }
    }

    /// Changes slashes, and the colons behind them: one is as many as an authority may have. In a list
    /// brackets as well, which may stand in each other there.
    fn mend(&mut self, byte: &mut u8) {
        if !self.huffman {
            *byte = match *byte {
                b'#' => {
                    (self.slash, self.list, self.url) = (true, true, true);
                    b'+'
                }
                b'/' => {
                    (self.slash, self.url) = (true, true);
                    b'.'
                }
                b':' if self.slash => b';',
                b'[' if self.list => b'@',
                b']' if self.list => b'~',
                other => other,
            };
            return;
        }
        if self.code == (8, 0xff) && *byte == LIST.0 {
            *byte = LIST.1;
            (self.slash, self.list, self.url) = (true, true, true);
        }
        for bit in (0..8).rev() {
            self.code = (self.code.0 + 1, self.code.1 << 1 | u16::from(*byte >> bit & 1));
            match self.code {
                SLASH => {
                    (self.slash, self.url) = (true, true);
                    *byte ^= 1 << bit;
                }
                COLON if self.slash => *byte ^= 1 << bit,
                OPENING | CLOSING if self.list => *byte ^= 1 << bit,
                // The greatest code of each size is below one that goes on.
                (5, ..=0x09) | (6, ..=0x2d) | (7, ..=0x7b) | (8, ..=0xfd) => {}
                (10, ..=0x3fc) | (11, ..=0x7fc) | (12, ..=0xffb) if self.list => {}
                (13, _) => {
                    // The address of an IPv6 host begins: its colons may be many. Or nobody's address.
                    self.authority = false;
                    return;
                }
                _ => continue,
            }
            self.code = (0, 0);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// RFC 7541, appendix B, as far as URLs need it: a character, the size of its code, the code.
    const CODES: [(char, u32, u32); 30] = [
        ('0', 5, 0x0),
        ('1', 5, 0x1),
        ('2', 5, 0x2),
        ('a', 5, 0x3),
        ('i', 5, 0x6),
        ('s', 5, 0x8),
        ('t', 5, 0x9),
        ('-', 6, 0x16),
        ('.', 6, 0x17),
        ('/', 6, 0x18),
        ('3', 6, 0x19),
        ('7', 6, 0x1d),
        ('9', 6, 0x1f),
        ('=', 6, 0x20),
        ('h', 6, 0x27),
        ('l', 6, 0x28),
        ('n', 6, 0x2a),
        ('p', 6, 0x2b),
        (':', 7, 0x5c),
        ('B', 7, 0x5d),
        ('y', 7, 0x7a),
        (';', 8, 0xfb),
        ('X', 8, 0xfc),
        ('+', 11, 0x7fb),
        ('#', 12, 0xffa),
        ('@', 13, 0x1ffa),
        ('[', 13, 0x1ffb),
        (']', 13, 0x1ffc),
        ('~', 13, 0x1ffd),
        ('\n', 30, 0x3fff_fffc),
    ];

    fn huffman(text: &str) -> Vec<u8> {
        let mut bits = String::new();
        for c in text.chars() {
            let (_, size, code) = CODES.iter().find(|(own, ..)| *own == c).unwrap();
            bits += &format!("{code:0size$b}", size = *size as usize);
        }
        while !bits.len().is_multiple_of(8) {
            bits.push('1');
        }
        let byte = |n| u8::from_str_radix(&bits[n..n + 8], 2).unwrap();
        (0..bits.len()).step_by(8).map(byte).collect()
    }

    fn frame(kind: u8, flags: u8, payload: &[u8]) -> Vec<u8> {
        let [_, a, b, c] = (payload.len() as u32).to_be_bytes();
        [&[a, b, c, kind, flags, 0, 0, 0, 1], payload].concat()
    }

    /// A method, a path, the authority, and a header that no table has.
    fn request(huffman: bool, authority: &[u8]) -> Vec<u8> {
        let length = authority.len() as u8 | if huffman { 0x80 } else { 0 };
        let path = b"\x83\x44\x04/a/b\x41";
        [&path[..], &[length], authority, b"\x86\x40\x03a:b\x03c/d\xbe"].concat()
    }

    fn connection(requests: &[Vec<u8>]) -> Vec<u8> {
        let mut bytes = [PREFACE, &frame(4, 0, &[])].concat();
        for request in requests {
            bytes.extend(frame(HEADERS, END_HEADERS, request));
            bytes.extend(frame(0, 1, b"\0\0\0\0\x02//"));
        }
        bytes
    }

    /// What arrives of it when it comes in pieces of this size.
    fn passed(bytes: &[u8], size: usize) -> Vec<u8> {
        let (mut frames, mut bytes) = (Frames::default(), bytes.to_vec());
        bytes.chunks_mut(size).for_each(|piece| frames.pass(piece));
        bytes
    }

    #[test]
    fn a_url_becomes_an_authority_of_its_size_however_it_is_coded_and_cut() {
        for (url, becomes) in [
            ("http://127.0.0.1:2379", "http:33127.0.0.1B2379"),
            ("https://X:2379/", "https:33XB23793"),
            ("https://[::1]:2379", "https:33[::1]:2379"),
            ("#initially=[127.0.0.1:2379]", "+-nitially=@127.0.0.1B2379~"),
            ("#initially=[http://a:1;[::1]:2]", "+-nitially=@httpB33aB1;@BB1~B2~"),
        ] {
            becomes.parse::<http::uri::Authority>().unwrap();
            let sent = connection(&[request(true, &huffman(url)), request(true, &huffman(url))]);
            let mended = request(true, &huffman(becomes));
            for size in [1, 2, 3, 7, 24, 1000] {
                assert_eq!(passed(&sent, size), connection(&[mended.clone(), mended.clone()]));
            }
        }
        for (url, becomes) in [
            ("http://127.0.0.1:2379", "http:..127.0.0.1;2379"),
            ("#initially=[http://[::1]:2379]", "+initially=@http;..@;;1~;2379~"),
        ] {
            becomes.parse::<http::uri::Authority>().unwrap();
            let sent = connection(&[request(false, url.as_bytes())]);
            assert_eq!(passed(&sent, 5), connection(&[request(false, becomes.as_bytes())]));
        }
    }

    #[test]
    fn padding_priority_and_continuations_stand_in_nobodys_way() {
        let (url, becomes) = ("http://127.0.0.1:2379", "http:33127.0.0.1B2379");
        let parts = |authority: &str| {
            let request = request(true, &huffman(authority));
            let (a, b) = request.split_at(20);
            let mut bytes = PREFACE.to_vec();
            let padded = [&b"\x04//::/"[..], a, b"\x41\x01//"].concat();
            bytes.extend(frame(HEADERS, PADDED | PRIORITY, &padded));
            bytes.extend(frame(CONTINUATION, 0, &[]));
            bytes.extend(frame(CONTINUATION, END_HEADERS, b));
            bytes.extend(frame(HEADERS, END_HEADERS, &request));
            bytes
        };
        for size in [1, 2, 11, 1000] {
            assert_eq!(passed(&parts(url), size), parts(becomes));
        }
    }

    #[test]
    fn a_connection_with_a_proper_authority_is_not_looked_at_further() {
        let first = request(true, &huffman("127.0.0.1:2379"));
        let mut frames = Frames::default();
        let mut bytes = connection(&[first]);
        let before = bytes.clone();
        frames.pass(&mut bytes);
        assert_eq!((bytes, frames.place), (before, Place::Over));
        // Nor one that is no HTTP/2.
        let mut frames = Frames::default();
        frames.pass(&mut b"PUT /v3/kv".to_vec());
        assert_eq!(frames.place, Place::Over);
    }

    #[test]
    fn numbers_of_any_length_end_somewhere() {
        // Lengths and indexes in many bytes, texts that never come, codes that nobody uses.
        for block in [
            &b"\x41\xff\xff\xff\xff\xff\xff\xff\xff\x7f"[..],
            b"\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\x7f",
            b"\x41\x7f\x80\x80\x01//",
            b"\x41\x83\xff\xff\xff",
            b"\x3f\xff\x01\x00\x00\x00",
        ] {
            let bytes = connection(&[block.to_vec(), block.to_vec()]);
            assert_eq!(passed(&bytes, 1).len(), bytes.len());
            assert_eq!(passed(&bytes, 1), passed(&bytes, 1000));
        }
    }
}
