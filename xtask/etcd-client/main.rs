//! What a Rust program asks of etcd by the crate etcd-client: all services that the crate has. Prints
//! what was answered, without what differs from cluster to cluster, so that two servers compare.

use etcd_client::{
    AlarmAction, AlarmType, Client, Compare, CompareOp, ConnectOptions, DeleteOptions, Error,
    EventType, GetOptions, LockOptions, Permission, ProclaimOptions, PutOptions, ResignOptions,
    SortOrder, SortTarget, Txn, TxnOp, WatchOptions,
};

#[tokio::main]
async fn main() -> Result<(), Error> {
    let endpoint = std::env::args().nth(1).expect("the endpoint");
    let mut client = Client::connect([&endpoint], None).await?;
    keys(&mut client).await?;
    watch(&mut client).await?;
    let lease = leases(&mut client).await?;
    locks(&mut client, lease).await?;
    maintenance(&mut client).await?;
    users(&mut client, &endpoint).await?;
    println!("done");
    Ok(())
}

async fn keys(client: &mut Client) -> Result<(), Error> {
    let put = client.put("a", "1", None).await?;
    println!("put at {:?}", put.header().map(|header| header.revision()));
    for n in 0..5 {
        client.put(format!("k{n}"), format!("{n}"), None).await?;
    }
    let options = GetOptions::new().with_prefix().with_limit(3);
    let options = options.with_sort(SortTarget::Key, SortOrder::Descend);
    let got = client.get("k", Some(options)).await?;
    println!(
        "got {:?} of {}, more {}",
        got.kvs().iter().map(|kv| kv.key_str()).collect::<Vec<_>>(),
        got.count(),
        got.more()
    );
    let old = client.put("a", "2", Some(PutOptions::new().with_prev_key())).await?;
    println!("before {:?}", old.prev_key().map(|kv| kv.value_str()));
    let txn = Txn::new()
        .when([Compare::value("a", CompareOp::Equal, "2")])
        .and_then([TxnOp::put("a", "3", None), TxnOp::get("a", None)])
        .or_else([TxnOp::delete("a", None)]);
    let done = client.txn(txn).await?;
    println!("txn {}, answers {}", done.succeeded(), done.op_responses().len());
    Ok(())
}

async fn watch(client: &mut Client) -> Result<(), Error> {
    let options = WatchOptions::new().with_prefix().with_prev_key();
    let mut watch = client.watch("w", Some(options)).await?;
    let created = watch.message().await?.expect("the watch is created");
    println!("watch created {}", created.created());
    client.put("w1", "x", None).await?;
    client.delete("w1", None).await?;
    let mut seen = 0;
    while seen < 2 {
        for event in watch.message().await?.expect("the watch goes on").events() {
            seen += 1;
            let what = match event.event_type() {
                EventType::Put => "put",
                EventType::Delete => "delete",
            };
            println!("event {what}, before {:?}", event.prev_kv().map(|kv| kv.value_str()));
        }
    }
    watch.cancel(created.watch_id()).await?;
    println!("watch canceled {:?}", watch.message().await?.map(|told| told.canceled()));
    Ok(())
}

/// Returns a lease that lives.
async fn leases(client: &mut Client) -> Result<i64, Error> {
    let lease = client.lease_grant(60, None).await?.id();
    client.put("leased", "1", Some(PutOptions::new().with_lease(lease))).await?;
    let (mut keeper, mut kept) = client.lease_keep_alive(lease).await?;
    keeper.keep_alive().await?;
    println!("kept alive {:?}", kept.message().await?.map(|told| told.ttl()));
    println!("leases {}", client.leases().await?.leases().len());
    client.lease_revoke(lease).await?;
    println!("leased keys {}", client.get("leased", None).await?.count());
    println!("revoked again: {:?}", client.lease_revoke(lease).await.err());
    Ok(client.lease_grant(60, None).await?.id())
}

async fn locks(client: &mut Client, lease: i64) -> Result<(), Error> {
    let lock = client.lock("lock", Some(LockOptions::new().with_lease(lease))).await?;
    client.unlock(lock.key()).await?;
    let leader = client.campaign("office", "me", lease).await?.take_leader().expect("a leader");
    let options = ProclaimOptions::new().with_leader(leader.clone());
    client.proclaim("still me", Some(options)).await?;
    println!("leads {:?}", client.leader("office").await?.kv().map(|kv| kv.value_str()));
    client.resign(Some(ResignOptions::new().with_leader(leader))).await?;
    println!("nobody leads: {:?}", client.leader("office").await.err());
    Ok(())
}

async fn maintenance(client: &mut Client) -> Result<(), Error> {
    let members = client.member_list().await?;
    let first = &members.members()[0];
    println!("members {}, the first learns {}", members.members().len(), first.is_learner());
    println!("it leads {}", client.status().await?.leader() == first.id());
    let alarms = client.alarm(AlarmAction::Get, AlarmType::None, None).await?;
    println!("alarms {}", alarms.alarms().len());
    let revision = client.put("z", "1", None).await?.header().map_or(0, |header| header.revision());
    client.compact(revision, None).await?;
    let past = GetOptions::new().with_revision(2);
    println!("compacted: {:?}", client.get("a", Some(past)).await.err());
    client.defragment().await?;
    println!("hash {}", client.hash_kv(0).await?.hash());
    let mut snapshot = client.snapshot().await?;
    let mut bytes = 0;
    while let Some(part) = snapshot.message().await? {
        bytes += part.blob().len();
    }
    println!("a snapshot is pages and a checksum {}", bytes % 4096 == 32);
    let all = DeleteOptions::new().with_prefix();
    println!("deleted {}", client.delete("k", Some(all)).await?.deleted());
    Ok(())
}

async fn users(client: &mut Client, endpoint: &str) -> Result<(), Error> {
    client.role_add("reader").await?;
    client.role_grant_permission("reader", Permission::read("a")).await?;
    client.user_add("root", "r", None).await?;
    client.user_grant_role("root", "root").await?;
    client.user_add("u", "p", None).await?;
    client.user_grant_role("u", "reader").await?;
    client.auth_enable().await?;
    println!("without a name: {:?}", client.get("a", None).await.err());
    let connect = |name, password| {
        Client::connect([endpoint], Some(ConnectOptions::new().with_user(name, password)))
    };
    println!("with a wrong password: {:?}", connect("u", "q").await.err());
    let mut user = connect("u", "p").await?;
    println!("reads {}", user.get("a", None).await?.count());
    println!("may not: {:?}", user.put("a", "9", None).await.err());
    let mut root = connect("root", "r").await?;
    println!("users {:?}", root.user_list().await?.users());
    println!("roles {:?}", root.role_list().await?.roles());
    root.auth_disable().await?;
    println!("to everybody again {}", client.get("a", None).await?.count());
    Ok(())
}
