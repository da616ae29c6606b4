//! A door over a store in memory, and clients for it.

#[path = "admin.rs"]
pub mod admin;

use admin::Local;
use dhow_door_etcd::{Config, Door, Security};
use dhow_kv::Kv;
use dhow_kv::admin::SharedAdmin;
use dhow_rpc::etcdserverpb as pb;
use dhow_server::Store;
use pb::kv_client::KvClient;
use pb::watch_client::WatchClient;
use std::net::SocketAddr;
use std::sync::Arc;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tonic::transport::Channel;
use tonic::{Code, Status, Streaming};

/// A served door.
#[allow(dead_code, reason = "not every test uses all")]
pub struct Served {
    pub address: SocketAddr,
    pub kv: Kv,
    pub admin: SharedAdmin,
    /// The same, when it is the one of the tests.
    local: Option<Arc<Local>>,
    pub stop: CancellationToken,
    pub serving: JoinHandle<()>,
}

#[allow(dead_code, reason = "not every test uses all")]
impl Served {
    /// A store in memory with all that is its own.
    pub async fn new(config: Config) -> Self {
        let store = Self::store();
        Self::with(Kv::new(store.clone()), store, config, Security::Plain).await
    }

    /// The same over TLS, for those who like.
    pub async fn over_tls(config: Config, security: Security) -> Self {
        let store = Self::store();
        Self::with(Kv::new(store.clone()), store, config, security).await
    }

    /// A store in memory whose leader and alarms are the test's.
    pub async fn local(config: Config) -> Self {
        let kv = Kv::new(Self::store());
        let local = Local::new(kv.clone());
        let served = Self::with(kv, local.clone(), config, Security::Plain).await;
        Self { local: Some(local), ..served }
    }

    fn store() -> Arc<Store> {
        let options = dhow_server::Options { retention: None, ..dhow_server::Options::default() };
        Store::memory_with(dhow_clock::System::shared(), options)
    }

    async fn with(kv: Kv, admin: SharedAdmin, config: Config, security: Security) -> Self {
        let door = Door::new(kv.clone(), admin.clone(), config);
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let stop = CancellationToken::new();
        let serving = tokio::spawn(door.serve(listener, security, stop.clone()));
        Self { address, kv, admin, local: None, stop, serving }
    }

    /// Changes the leader of [`Served::local`], 0 for none.
    pub fn lead(&self, leader: u64) {
        self.local.as_ref().unwrap().lead(leader);
    }

    /// The member's identifier.
    pub fn member(&self) -> u64 {
        self.admin.identity().member_id
    }

    pub async fn channel(&self) -> Channel {
        Channel::from_shared(format!("http://{}", self.address)).unwrap().connect().await.unwrap()
    }

    pub async fn kv_client(&self) -> KvClient<Channel> {
        KvClient::new(self.channel().await).max_decoding_message_size(64 << 20)
    }

    pub async fn watch(&self) -> WatchStream {
        WatchStream::new(self.channel().await).await
    }

    pub async fn put(&self, key: &str, value: &str) -> i64 {
        let request = pb::PutRequest {
            key: key.to_owned().into(),
            value: value.to_owned().into(),
            ..Default::default()
        };
        self.kv_client().await.put(request).await.unwrap().into_inner().header.unwrap().revision
    }

    pub async fn delete(&self, key: &str) -> i64 {
        let request = pb::DeleteRangeRequest { key: key.to_owned().into(), ..Default::default() };
        let done = self.kv_client().await.delete_range(request).await.unwrap().into_inner();
        done.header.unwrap().revision
    }
}

/// A stream of watches.
pub struct WatchStream {
    requests: mpsc::Sender<pb::WatchRequest>,
    answers: Streaming<pb::WatchResponse>,
}

#[allow(dead_code, reason = "not every test uses all")]
impl WatchStream {
    pub async fn new(channel: Channel) -> Self {
        Self::asking(channel, &[]).await.unwrap()
    }

    /// A stream with metadata.
    pub async fn asking(
        channel: Channel,
        metadata: &[(&'static str, &str)],
    ) -> Result<Self, Status> {
        let (requests, receiver) = mpsc::channel(16);
        let mut request = tonic::Request::new(tokio_stream(receiver));
        for (name, value) in metadata {
            request.metadata_mut().insert(*name, value.parse().unwrap());
        }
        let mut client = WatchClient::new(channel).max_decoding_message_size(64 << 20);
        let answers = client.watch(request).await?.into_inner();
        Ok(Self { requests, answers })
    }

    pub async fn ask(&self, request: pb::watch_request::RequestUnion) {
        self.requests.send(pb::WatchRequest { request_union: Some(request) }).await.unwrap();
    }

    pub async fn create(&self, request: pb::WatchCreateRequest) {
        self.ask(pb::watch_request::RequestUnion::CreateRequest(request)).await;
    }

    pub async fn cancel(&self, watch_id: i64) {
        let request = pb::WatchCancelRequest { watch_id };
        self.ask(pb::watch_request::RequestUnion::CancelRequest(request)).await;
    }

    pub async fn progress(&self) {
        let request = pb::WatchProgressRequest {};
        self.ask(pb::watch_request::RequestUnion::ProgressRequest(request)).await;
    }

    pub async fn next(&mut self) -> pb::WatchResponse {
        self.answers.message().await.unwrap().expect("the stream goes on")
    }

    /// How the stream ends.
    pub async fn end(&mut self) -> Result<Option<pb::WatchResponse>, Status> {
        self.answers.message().await
    }

    /// Starts a watch and takes the answer that it began.
    pub async fn begin(&mut self, request: pb::WatchCreateRequest) -> i64 {
        self.create(request).await;
        let begun = self.next().await;
        assert!(begun.created && !begun.canceled, "{begun:?}");
        begun.watch_id
    }
}

fn tokio_stream<T: Send + 'static>(
    receiver: mpsc::Receiver<T>,
) -> impl futures::Stream<Item = T> + Send + 'static {
    futures::stream::unfold(receiver, |mut receiver| async move {
        receiver.recv().await.map(|item| (item, receiver))
    })
}

/// Asserts what a call was refused with.
#[allow(dead_code, reason = "not every test uses all")]
#[track_caller]
pub fn refused<T: std::fmt::Debug>(
    answer: Result<tonic::Response<T>, Status>,
    code: Code,
    text: &str,
) {
    let status = answer.unwrap_err();
    assert_eq!((status.code(), status.message()), (code, text));
}
