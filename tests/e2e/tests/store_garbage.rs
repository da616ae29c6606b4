//! Garbage at the ports of a real store: HTTP/2 that breaks its rules, protobuf that is none, bytes by
//! chance at the clients' port and at the members'. The store refuses with etcd's words, lives, and
//! takes no memory for what is only announced. `STORE_SEED` repeats a run.

#[path = "store/load.rs"]
mod load;

use dhow_harness::ports;
use dhow_sim::random::Random;
use load::{number, program, tail};
use std::io::{ErrorKind, Read as _, Write as _};
use std::net::{Shutdown, TcpStream};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// More than a store at rest ever takes, in KiB.
const MEMORY: u64 = 256 << 10;

struct Store {
    child: Child,
    home: tempfile::TempDir,
    client: u16,
    peer: u16,
}

impl Store {
    fn start() -> Self {
        let (client, peer) = (ports::free(), ports::free());
        let home = tempfile::tempdir().expect("a directory");
        let log = std::fs::File::create(home.path().join("log")).expect("a log");
        let (clients, peers) =
            (format!("http://127.0.0.1:{client}"), format!("http://127.0.0.1:{peer}"));
        let child = Command::new(program())
            .args(["store", "--name", "m", "--data-dir"])
            .arg(home.path().join("m"))
            .args(["--listen-client-urls", &clients, "--advertise-client-urls", &clients])
            .args(["--listen-peer-urls", &peers, "--initial-advertise-peer-urls", &peers])
            .args(["--initial-cluster", &format!("m={peers}")])
            .stdin(Stdio::null())
            .stdout(log.try_clone().expect("one more handle"))
            .stderr(log)
            .spawn()
            .expect("dhow store starts");
        let store = Self { child, home, client, peer };
        e2e::wait_for(
            || TcpStream::connect(("127.0.0.1", client)).is_ok(),
            Duration::from_secs(60),
            "the store",
        );
        store
    }

    fn log(&self) -> PathBuf {
        self.home.path().join("log")
    }

    /// Sends bytes and reads whatever comes until the other side ends it or is silent.
    fn send(&self, port: u16, bytes: &[u8]) -> Vec<u8> {
        let mut stream = TcpStream::connect(("127.0.0.1", port)).expect("the port is open");
        stream.set_read_timeout(Some(Duration::from_millis(200))).expect("a socket");
        // It may have had enough before all is written.
        let _ = stream.write_all(bytes);
        let _ = stream.shutdown(Shutdown::Write);
        let mut answer = Vec::new();
        let mut part = [0; 4096];
        loop {
            match stream.read(&mut part) {
                Ok(0) => break,
                Ok(n) if answer.len() < 1 << 20 => answer.extend_from_slice(&part[..n]),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                _ => break,
            }
        }
        answer
    }

    /// A call over HTTP/2 with a body as it is: the answer's headers and trailers.
    fn call(&self, method: &str, headers: &[&str], body: &[u8]) -> String {
        let mut curl = Command::new("curl");
        curl.args(["--silent", "--show-error", "--http2-prior-knowledge", "--max-time", "20"]);
        curl.args(["--header", "te: trailers", "--dump-header", "-", "--output", "/dev/null"]);
        for header in headers {
            curl.args(["--header", header]);
        }
        curl.args(["--data-binary", "@-", &format!("http://127.0.0.1:{}{method}", self.client)]);
        let mut child = curl
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("curl, which the tests need");
        child.stdin.take().expect("it is piped").write_all(body).expect("curl reads");
        let output = child.wait_with_output().expect("it is our child");
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    /// It runs, takes a write and gives it back, and has not grown.
    fn lives(&mut self, after: &str) {
        let ended = self.child.try_wait().expect("it is our child");
        assert!(ended.is_none(), "after {after} it ended: {}", tail(&self.log()));
        // A put of a to 1: a length of 6, two fields of one byte each.
        let put = [0, 0, 0, 0, 6, 0x0a, 1, b'a', 0x12, 1, b'1'];
        let answer = self.call("/etcdserverpb.KV/Put", &["content-type: application/grpc"], &put);
        assert!(answer.contains("grpc-status: 0"), "after {after}: {answer}");
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.child.id()));
        let status = status.expect("it runs");
        let resident = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
        let resident = resident.and_then(|rest| rest.trim().strip_suffix(" kB"));
        let resident: u64 = resident.and_then(|kib| kib.parse().ok()).expect("a number");
        assert!(resident < MEMORY, "after {after} it has {resident} KiB");
    }
}

impl Drop for Store {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// What an HTTP/2 client begins with.
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = payload.len() as u32;
    let mut bytes = length.to_be_bytes()[1..].to_vec();
    bytes.extend([kind, flags]);
    bytes.extend(stream.to_be_bytes());
    bytes.extend(payload);
    bytes
}

/// The headers of a call as HPACK literals, which need no table.
fn call_headers(path: &str) -> Vec<u8> {
    let mut block = Vec::new();
    for (name, value) in [
        (":method", "POST"),
        (":scheme", "http"),
        (":path", path),
        (":authority", "x"),
        ("content-type", "application/grpc"),
        ("te", "trailers"),
    ] {
        block.push(0);
        for text in [name, value] {
            block.push(text.len() as u8);
            block.extend(text.as_bytes());
        }
    }
    block
}

/// Connections that begin well and go wrong in ways that have names.
fn wrong() -> Vec<(&'static str, Vec<u8>)> {
    let begun = [PREFACE, &frame(4, 0, 0, &[])].concat();
    let after = |frames: &[Vec<u8>]| [begun.clone(), frames.concat()].concat();
    let put = || frame(1, 4, 1, &call_headers("/etcdserverpb.KV/Put"));
    vec![
        ("a preface cut short", PREFACE[..10].to_vec()),
        ("no settings", [PREFACE, &put()].concat()),
        ("settings of a wrong length", [PREFACE, &frame(4, 0, 0, &[0; 5])].concat()),
        ("a frame of 16 MiB", after(&[vec![0xff, 0xff, 0xff, 0, 0, 0, 0, 0, 1]])),
        ("data on a stream that is not there", after(&[frame(0, 1, 7, b"x")])),
        ("headers on stream 0", after(&[frame(1, 4, 0, &call_headers("/x"))])),
        ("an even stream", after(&[frame(1, 5, 2, &call_headers("/x"))])),
        ("a header block that is none", after(&[frame(1, 5, 1, &[0xff; 64])])),
        ("a header block without an end", {
            let mut frames = vec![frame(1, 0, 1, &call_headers("/x"))];
            frames.extend((0..4000).map(|_| frame(9, 0, 1, &[0x40, 1, b'a', 1, b'b'].repeat(200))));
            after(&frames)
        }),
        ("a window of 0", after(&[frame(8, 0, 0, &[0; 4])])),
        ("a window that overflows", {
            after(&[frame(8, 0, 0, &[0x7f, 0xff, 0xff, 0xff]), frame(8, 0, 0, &[0x7f; 4])])
        }),
        ("resets without end", {
            let one = |n: u32| {
                let stream = 2 * n + 1;
                let headers = frame(1, 4, stream, &call_headers("/etcdserverpb.KV/Put"));
                [headers, frame(3, 0, stream, &[0, 0, 0, 8])].concat()
            };
            after(&(0..3000).map(one).collect::<Vec<_>>())
        }),
        (
            "pings without end",
            after(&(0..5000).map(|_| frame(6, 0, 0, &[7; 8])).collect::<Vec<_>>()),
        ),
        ("settings without end", {
            after(&(0..5000).map(|_| frame(4, 0, 0, &[0, 3, 0, 0, 0, 9])).collect::<Vec<_>>())
        }),
        (
            "a message that never comes",
            after(&[put(), frame(0, 0, 1, &[0, 0x7f, 0xff, 0xff, 0xff])]),
        ),
        ("a message cut short", after(&[put(), frame(0, 1, 1, &[0, 0, 0, 0, 9, 1])])),
        ("a request line of HTTP/1 without end", [b"GET /", &[b'a'; 200_000][..]].concat()),
        ("headers of HTTP/1 without end", {
            [b"GET / HTTP/1.1\r\n".to_vec(), b"a: b\r\n".repeat(50_000)].concat()
        }),
        ("a chunk of a wrong length", {
            let head = b"POST /v3/kv/put HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n";
            [&head[..], b"fffffffffffffffff\r\nx"].concat()
        }),
        ("json nested without end", {
            let body = b"{\"key\":".repeat(20_000);
            let head = format!(
                "POST /v3/kv/put HTTP/1.1\r\nhost: x\r\ncontent-length: {}\r\n\r\n",
                body.len()
            );
            [head.into_bytes(), body].concat()
        }),
    ]
}

#[test]
fn garbage_at_its_ports_is_refused_in_etcds_words_and_ends_nothing() {
    let seed = number("STORE_SEED", u64::from(std::process::id()));
    println!("STORE_SEED={seed}");
    let mut random = Random::new(seed);
    let mut store = Store::start();
    store.lives("its start");
    let grpc = "content-type: application/grpc";
    let kv = "/etcdserverpb.KV/Put";
    for (method, headers, body, status, words) in [
        (kv, vec![grpc], vec![0, 0, 0, 0, 3, 0xff, 0xff, 0xff], 13, "unmarshalling request"),
        // A group that never ends, a field of number 0, a length beyond the end.
        (kv, vec![grpc], vec![0, 0, 0, 0, 2, 0x0b, 0x0b], 13, "unmarshalling request"),
        (kv, vec![grpc], vec![0, 0, 0, 0, 2, 0x02, 0x00], 13, "unmarshalling request"),
        (kv, vec![grpc], vec![0, 0, 0, 0, 2, 0x0a, 0x7f], 13, "unmarshalling request"),
        (kv, vec![grpc], vec![0, 0xff, 0xff, 0xff, 0xff], 8, "larger than max"),
        // Without a body: where one is left unread the stream is reset behind the answer, and curl
        // may take that for all there is.
        ("/etcdserverpb.KV/No", vec![grpc], vec![], 12, "unknown method No"),
        ("/a.B/C", vec![grpc], vec![], 12, "unknown service a.B"),
        (kv, vec![grpc], vec![0; 5], 3, "etcdserver: key is not provided"),
    ] {
        let answer = store.call(method, &headers, &body);
        let plain = answer.replace("%20", " ");
        let refused = plain.contains(&format!("grpc-status: {status}")) && plain.contains(words);
        assert!(refused, "{method} of {body:?}: {answer}");
    }
    store.lives("what is no protobuf");
    for (what, bytes) in wrong() {
        let began = Instant::now();
        for port in [store.client, store.peer] {
            store.send(port, &bytes);
        }
        store.lives(what);
        assert!(began.elapsed() < Duration::from_secs(30), "{what} held it up");
    }
    // A connection between members begins with a hello; what follows it has a length and a sum.
    for bytes in [
        vec![0xff; 64],
        [&[0, 0, 0, 0x10][..], &[0; 60]].concat(),
        [&[8, 0, 0, 0, 1, 2, 3, 4][..], &[0; 8]].concat(),
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03".to_vec(),
    ] {
        store.send(store.peer, &bytes);
        store.lives("garbage among members");
    }
    let good: Vec<Vec<u8>> = wrong().into_iter().map(|(_, bytes)| bytes).collect();
    for round in 0..300 {
        let mut bytes = match random.below(3) {
            0 => (0..random.below(400)).map(|_| random.draw() as u8).collect(),
            _ => {
                let mut bytes = random.pick(&good).clone();
                bytes.truncate(4000);
                bytes
            }
        };
        for _ in 0..random.between(1, 8) {
            let at = random.below(bytes.len() as u64) as usize;
            if let Some(byte) = bytes.get_mut(at) {
                *byte = random.draw() as u8;
            }
        }
        // Two in a row on either port, without waiting for an answer.
        let port = *random.pick(&[store.client, store.peer]);
        let mut stream = TcpStream::connect(("127.0.0.1", port)).expect("the port is open");
        let _ = stream.write_all(&bytes);
        drop(stream);
        if round % 50 == 49 {
            store.lives("bytes by chance");
        }
    }
    let log = std::fs::read_to_string(store.log()).expect("a log");
    assert!(!log.contains("panicked"), "{log}");
}
