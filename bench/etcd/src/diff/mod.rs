//! The same random requests to two servers; their answers must be the same.
//!
//! Requests come one after the other, so that both servers go through the same revisions. What
//! cannot be the same (identifiers, terms, times, sizes) is taken out before the comparison; see
//! [`call::Scrub`]. A seed makes the same requests each time, as long as the answers are the same.

mod call;
mod keys;
mod rest;
mod watch;

use crate::load::{Dice, connect};
use anyhow::{Result, bail};
use call::{Answer, Call, send};
use dhow_rpc::etcdserverpb::{
    AuthenticateResponse, HashKvResponse, RangeRequest, RangeResponse, TxnResponse,
};
use dhow_rpc::mvccpb::KeyValue;
use prost::Message as _;
use tonic::Code;
use tonic::transport::Channel;

/// After so many differences the states are no longer comparable.
const ENOUGH: usize = 25;

/// Which servers, which requests.
#[derive(Debug, clap::Args)]
pub struct Options {
    /// The server that is right: http://ADDRESS:PORT
    #[arg(long)]
    left: String,
    /// The server that is compared with it
    #[arg(long)]
    right: String,
    /// Which random requests
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// How many
    #[arg(long, default_value_t = 5_000)]
    requests: u32,
    /// Print every request
    #[arg(long)]
    verbose: bool,
}

/// Where the servers stand.
#[derive(Debug, Default, Clone, Copy)]
pub struct Place {
    /// The last revision.
    pub revision: i64,
    /// The last one that was compacted.
    pub compacted: i64,
}

/// What was compared so far.
struct Pair {
    left: Channel,
    right: Channel,
    place: Place,
    sent: u32,
    differences: usize,
    verbose: bool,
}

/// Sends and compares.
///
/// # Errors
/// When a server does not answer, or answers differ: they are printed.
pub async fn run(options: &Options) -> Result<()> {
    let left = connect(&options.left, 1).await?.remove(0);
    let right = connect(&options.right, 1).await?.remove(0);
    let place = Place { revision: 1, compacted: 0 };
    let verbose = options.verbose;
    let mut pair = Pair { left, right, place, sent: 0, differences: 0, verbose };
    let mut dice = Dice::new(options.seed);
    while pair.sent < options.requests && pair.differences < ENOUGH {
        let place = pair.place;
        match dice.below(100) {
            0..60 => pair.ask(&keys::request(&mut dice, &place), None).await,
            60..75 => pair.ask(&rest::lease(&mut dice), None).await,
            75..83 => pair.ask(&rest::auth(&mut dice, false), None).await,
            83..88 => pair.ask(&rest::cluster(&mut dice, &place), None).await,
            88..92 => pair.ask(&rest::nonsense(&mut dice), None).await,
            92..95 => pair.ask(&rest::concurrency(&mut dice), None).await,
            _ => pair.watch(&mut dice).await,
        }
    }
    if pair.differences < ENOUGH {
        pair.guarded(&mut dice, options.requests / 5).await;
    }
    let Pair { sent, differences, .. } = pair;
    println!("seed {}: {sent} requests, {differences} answers differ", options.seed);
    if differences > 0 {
        bail!("seed {}: {sent} requests, {differences} answers differ", options.seed);
    }
    Ok(())
}

impl Pair {
    /// One request to both, with the tokens of one user.
    async fn ask(&mut self, call: &Call, tokens: Option<&(String, String)>) {
        let (left, right) = (self.left.clone(), self.right.clone());
        let token = tokens.map(|(left, _)| left.as_str());
        let left = send(&left, call, token).await;
        let right = send(&right, call, tokens.map(|(_, right)| right.as_str())).await;
        self.sent += 1;
        if self.verbose {
            println!("{} {} {}\n    {}", self.sent, call.path, call.words, left.words);
        }
        if let Some(revision) = left.revision {
            self.place.revision = self.place.revision.max(revision);
        }
        if call.path.ends_with("/Compact")
            && left.code == Code::Ok
            && let Ok(done) = dhow_rpc::etcdserverpb::CompactionRequest::decode(call.body.clone())
        {
            self.place.compacted = done.revision;
        }
        if !same(call, &left, &right) {
            self.differs(&format!("{} {}", call.path, call.words), &left.words, &right.words);
        }
    }

    async fn watch(&mut self, dice: &mut Dice) {
        let requests = watch::requests(dice, &self.place);
        let words = |told: Result<String>| told.unwrap_or_else(|error| format!("{error:#}"));
        let left = words(watch::told(&self.left, &requests, self.place).await);
        let right = words(watch::told(&self.right, &requests, self.place).await);
        self.sent += 1;
        if self.verbose {
            println!("{} /etcdserverpb.Watch/Watch {requests:?}\n    {left}", self.sent);
        }
        if left != right {
            self.differs(&format!("/etcdserverpb.Watch/Watch {requests:?}"), &left, &right);
        }
    }

    fn differs(&mut self, request: &str, left: &str, right: &str) {
        self.differences += 1;
        println!("request {}: {request}\n    left:  {left}\n    right: {right}", self.sent);
    }

    /// Requests of several users while the store asks who one is.
    async fn guarded(&mut self, dice: &mut Dice, requests: u32) {
        use dhow_rpc::authpb::{Permission, UserAddOptions};
        use dhow_rpc::etcdserverpb as pb;
        let mut root = Vec::new();
        for name in ["root", "alice", "bob"] {
            // Whatever random requests have made of them.
            let gone = pb::AuthUserDeleteRequest { name: name.to_owned() };
            root.push(Call::new::<pb::AuthUserDeleteResponse>(
                "/etcdserverpb.Auth/UserDelete",
                &gone,
            ));
            let add = pb::AuthUserAddRequest {
                name: name.to_owned(),
                password: "secret".to_owned(),
                options: Some(UserAddOptions { no_password: false }),
                hashed_password: String::new(),
            };
            root.push(Call::new::<pb::AuthUserAddResponse>("/etcdserverpb.Auth/UserAdd", &add));
        }
        for name in ["root", "reader"] {
            let add = pb::AuthRoleAddRequest { name: name.to_owned() };
            root.push(Call::new::<pb::AuthRoleAddResponse>("/etcdserverpb.Auth/RoleAdd", &add));
        }
        let permission = Permission { perm_type: 2, key: "a".into(), range_end: "b".into() };
        let grant = pb::AuthRoleGrantPermissionRequest {
            name: "reader".to_owned(),
            perm: Some(permission),
        };
        let path = "/etcdserverpb.Auth/RoleGrantPermission";
        root.push(Call::new::<pb::AuthRoleGrantPermissionResponse>(path, &grant));
        for (user, role) in [("root", "root"), ("alice", "reader")] {
            let (user, role) = (user.to_owned(), role.to_owned());
            let grant = pb::AuthUserGrantRoleRequest { user, role };
            let path = "/etcdserverpb.Auth/UserGrantRole";
            root.push(Call::new::<pb::AuthUserGrantRoleResponse>(path, &grant));
        }
        let enable = pb::AuthEnableRequest {};
        root.push(Call::new::<pb::AuthEnableResponse>("/etcdserverpb.Auth/AuthEnable", &enable));
        for call in &root {
            self.ask(call, None).await;
        }
        let nobody = Some(("no-token.1".to_owned(), "no-token.1".to_owned()));
        let mut users = vec![None, nobody];
        for name in ["root", "alice", "bob"] {
            users.push(self.tokens(name).await);
        }
        let until = self.sent + requests;
        while self.sent < until && self.differences < ENOUGH {
            // root is as often as the others together.
            let user = users[[0, 1, 2, 2, 2, 3, 3, 4][dice.below(8) as usize]].clone();
            let place = self.place;
            let call = match dice.below(10) {
                0..6 => keys::request(dice, &place),
                6 | 7 => rest::lease(dice),
                8 => rest::cluster(dice, &place),
                // Only reading what there is: a change of users makes all tokens old.
                _ => {
                    let list = pb::AuthUserListRequest {};
                    Call::new::<pb::AuthUserListResponse>("/etcdserverpb.Auth/UserList", &list)
                }
            };
            self.ask(&call, user.as_ref()).await;
        }
        let wrong = rest::authenticate("alice", "wrong");
        self.ask(&wrong, None).await;
        // Now everything, also what changes users and what switches it off.
        for _ in 0..requests / 10 {
            let root = users[2].clone();
            self.ask(&rest::auth(dice, true), root.as_ref()).await;
        }
    }

    /// Tokens of a user on both servers.
    async fn tokens(&mut self, name: &str) -> Option<(String, String)> {
        let call = rest::authenticate(name, "secret");
        let token = |answer: Answer| Some(AuthenticateResponse::decode(answer.body).ok()?.token);
        let left = token(send(&self.left, &call, None).await)?;
        let right = token(send(&self.right, &call, None).await)?;
        Some((left, right))
    }
}

/// What is known to differ; the left is etcd.
fn excused(call: &Call, left: &Answer, right: &Answer) -> bool {
    let refused = right.code != Code::Ok;
    // etcd looks at the size before it asks who it is; here who comes first.
    if left.words.ends_with("etcdserver: request is too large") && refused {
        return true;
    }
    // At exactly the compacted revision etcd tells the checksum that it kept from before.
    call.path.ends_with("Maintenance/HashKV")
        && HashKvResponse::decode(right.body.clone())
            .is_ok_and(|told| told.compact_revision == told.hash_revision)
}

/// Whether two answers mean the same.
fn same(call: &Call, left: &Answer, right: &Answer) -> bool {
    if left.words == right.words {
        return true;
    }
    // Bytes that are no message: each library has its own words for what it did not understand.
    let undecodable =
        |answer: &Answer| answer.code == Code::Internal && answer.words.contains("unmarshal");
    // A known field of another wire type is an unknown field to Go and an error to prost.
    if undecodable(right) && (undecodable(left) || call.raw) {
        return true;
    }
    if excused(call, left, right) {
        return true;
    }
    if call.path.ends_with("KV/Range") {
        return sorted_alike(call, left, right);
    }
    if call.path.ends_with("KV/Txn") {
        let ordered = |answer: &Answer| {
            let mut txn = TxnResponse::decode(answer.body.clone()).ok()?;
            call::header(&mut txn.header);
            order(&mut txn);
            Some(txn)
        };
        return left.code == right.code && left.code == Code::Ok && ordered(left) == ordered(right);
    }
    false
}

/// Whether two ranges hold the same, sorted as they must be: of what is equal in the sorted field
/// etcd's order is open.
fn sorted_alike(call: &Call, left: &Answer, right: &Answer) -> bool {
    let decode = |answer: &Answer| RangeResponse::decode(answer.body.clone()).ok();
    let request = RangeRequest::decode(call.body.clone());
    let (Ok(request), Some(mut left), Some(mut right)) = (request, decode(left), decode(right))
    else {
        return false;
    };
    let field = |kv: &KeyValue| match request.sort_target {
        1 => (kv.version, None),
        2 => (kv.create_revision, None),
        3 => (kv.mod_revision, None),
        4 => (0, Some(kv.value.clone())),
        _ => (0, Some(kv.key.clone())),
    };
    let alike = left.kvs.iter().map(field).eq(right.kvs.iter().map(field));
    for answer in [&mut left, &mut right] {
        call::header(&mut answer.header);
        answer.kvs.sort_by(|one, other| one.key.cmp(&other.key));
        // Since 3.7 etcd tells no leases with keys alone; before, it did, and dhow does.
        if request.keys_only {
            answer.kvs.iter_mut().for_each(|kv| kv.lease = 0);
        }
    }
    alike && left == right
}

/// Puts what is found by ranges in transactions into one order.
fn order(txn: &mut TxnResponse) {
    use dhow_rpc::etcdserverpb::response_op::Response;
    for response in &mut txn.responses {
        match &mut response.response {
            Some(Response::ResponseRange(range)) => {
                range.kvs.sort_by(|one, other| one.key.cmp(&other.key));
            }
            Some(Response::ResponseTxn(txn)) => order(txn),
            _ => {}
        }
    }
}
