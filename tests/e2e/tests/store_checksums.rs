//! `HashKV` at every revision, asked of a real etcd and of dhow that were written to alike: checksum,
//! compacted revision and the revision that it is of are the same, also where history has gone.

#[path = "store/load.rs"]
mod load;
#[path = "store/member.rs"]
mod member;
#[path = "store/server.rs"]
mod server;

use dhow_kv::{Backend as _, Op, Span, Txn};
use dhow_sim::random::Random;
use load::{connect, number};
use serde_json::{Value, json};
use server::{Place, Server, dhow, etcd, newest};
use std::io::{Read as _, Write as _};
use std::net::TcpStream;

const ROUNDS: usize = 25;

/// The answer to a checksum at a revision, or the error that it is.
fn hash(server: &Server, revision: i64) -> Value {
    let address = server.client.strip_prefix("http://").expect("a URL");
    let body = json!({ "revision": revision }).to_string();
    let mut socket = TcpStream::connect(address).expect("it listens");
    let head = "POST /v3/maintenance/hashkv HTTP/1.1\r\nhost: h\r\nconnection: close";
    write!(socket, "{head}\r\ncontent-length: {}\r\n\r\n{body}", body.len()).expect("it reads");
    let mut answer = String::new();
    socket.read_to_string(&mut answer).expect("it answers");
    let (_, json) = answer.split_once("\r\n\r\n").expect("a head");
    let mut value: Value = serde_json::from_str(json.trim()).expect("JSON");
    // Who answers, and when; older gateways' word for a message, which newer ones leave out.
    value.as_object_mut().expect("an object").retain(|name, _| name != "header" && name != "error");
    value
}

/// What is done to both.
async fn write(servers: &[std::sync::Arc<dhow_remote::Remote>; 2], random: &mut Random) -> i64 {
    let mut txn = Txn::default();
    for n in 0..1 + random.below(3) {
        let key = format!("k{n}/{}", random.below(6));
        txn.success.push(match random.below(3) {
            0 => Op::delete(key),
            _ => Op::put(key, format!("v{}", random.below(1000))),
        });
    }
    if random.chance(1, 12) {
        txn.success = vec![Op::Delete { span: Span::prefix("k"), prev_kv: false }];
    }
    let mut revisions = [0; 2];
    for (at, server) in servers.iter().enumerate() {
        revisions[at] = server.txn(txn.clone()).await.expect("it writes").revision;
    }
    assert_eq!(revisions[0], revisions[1]);
    revisions[0]
}

#[test]
fn checksums_agree_with_etcds_at_all_revisions() {
    let seed = number("STORE_SEED", u64::from(std::process::id()));
    println!("STORE_SEED={seed}");
    let mut random = Random::new(seed);
    let home = tempfile::tempdir().expect("a directory");
    let start = |command, folder: &str| {
        Server::start(command, &home.path().join(folder), Place::new("a"), &[]).ready()
    };
    let (etcd, dhow) = (start(etcd(&newest()), "etcd"), start(dhow(), "dhow"));
    let compare = |until: i64, about: &str| {
        for revision in 0..=until + 1 {
            let (wanted, found) = (hash(&etcd, revision), hash(&dhow, revision));
            assert_eq!(found, wanted, "{about}, at {revision}; STORE_SEED={seed}");
        }
    };
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    let (mut newest, mut compacted) = (1, 0);
    for round in 0..ROUNDS {
        newest = runtime.block_on(async {
            let mut clients = [const { None }; 2];
            for (client, server) in clients.iter_mut().zip([&etcd, &dhow]) {
                *client = Some(connect(std::slice::from_ref(&server.client)).await);
            }
            let clients = clients.map(|client| client.expect("both were connected"));
            for _ in 0..1 + random.below(12) {
                newest = newest.max(write(&clients, &mut random).await);
            }
            newest
        });
        if newest > compacted + 1 && random.chance(2, 3) {
            compacted += 1 + random.below((newest - compacted) as u64) as i64;
            for server in [&etcd, &dhow] {
                server.must(&format!("compact {compacted} --physical"));
            }
        }
        if round % 5 == 4 {
            compare(newest, &format!("round {round}, compacted at {compacted}"));
        }
    }
}
