//! One agent per test with everything below it, and proof that nothing is left of it.

use crate::feed::Memory;
use dhow_agent::{Agent, Config};
use dhow_clock::{BoxFuture, Clock, System};
use dhow_dataplane::Dataplane;
use dhow_images::Images;
use dhow_intents::{ExecRequest, LogRequest, PodRef, SessionExit, Streams};
use dhow_names::Names;
use dhow_runtime::Runtime;
use sha2::{Digest, Sha256};
use std::panic::AssertUnwindSafe;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};
use tokio::io::AsyncReadExt;

pub type Test = (&'static str, fn(Arc<Lab>) -> Pin<Box<dyn Future<Output = ()>>>);

/// Lists tests as `tests![name, ...]`.
#[macro_export]
macro_rules! tests {
    ($($name:ident),* $(,)?) => {
        pub const TESTS: &[$crate::lab::Test] = &[
            $((concat!(module_path!(), "::", stringify!($name)), |lab| Box::pin($name(lab)))),*
        ];
    };
}

const APPLETS: [&str; 18] = [
    "sh", "sleep", "cat", "ls", "true", "false", "echo", "id", "hostname", "nc", "touch", "rm",
    "mkdir", "stat", "grep", "httpd", "test", "kill",
];

/// The machine's clocks, of which the one that people read can be set.
#[derive(Debug, Default)]
pub struct Settable {
    real: System,
    ahead: AtomicU64,
}

impl Settable {
    /// Sets the clock on.
    pub fn set_on(&self, by: Duration) {
        self.ahead.fetch_add(by.as_secs(), Ordering::Relaxed);
    }
}

impl Clock for Settable {
    fn now(&self) -> Duration {
        self.real.now() + Duration::from_secs(self.ahead.load(Ordering::Relaxed))
    }

    fn monotonic(&self) -> Duration {
        self.real.monotonic()
    }

    fn sleep(&self, period: Duration) -> BoxFuture<'static, ()> {
        self.real.sleep(period)
    }

    fn random(&self) -> u64 {
        self.real.random()
    }
}

pub struct Lab {
    pub dir: PathBuf,
    pub feed: Arc<Memory>,
    pub runtime: Runtime,
    pub images: Images,
    dataplane: Dataplane,
    names: Names,
    pub clock: Arc<Settable>,
    agent: std::sync::Mutex<Option<Arc<Agent>>>,
}

fn network() -> dhow_dataplane::Config {
    dhow_dataplane::Config {
        name: "dhowt".into(),
        pod_cidr: "10.77.0.0/24".parse().unwrap(),
        cluster_cidr: "10.77.0.0/16".parse().unwrap(),
        service_cidr: "10.78.0.0/16".parse().unwrap(),
        dns_ip: [10, 78, 0, 10].into(),
        node_ip: [127, 0, 0, 1].into(),
        node_name: "n1".into(),
    }
}

impl Lab {
    async fn open(dir: &Path) -> Arc<Self> {
        let runtime = Runtime::open(dhow_runtime::Config {
            dir: dir.join("run"),
            binary: std::env::current_exe().unwrap(),
            cgroup: format!("dhow-agent-test-{}", std::process::id()),
        })
        .await
        .unwrap();
        let images = Images::open(&dir.join("images")).unwrap();
        images.load(&mut archive("busybox").as_slice()).unwrap();
        let dataplane = Dataplane::open(network()).await.unwrap();
        let names = Names::start(dhow_names::Config {
            domain: "cluster.local".into(),
            listen: vec!["127.0.0.1:0".parse().unwrap()],
            upstreams: Vec::new(),
            reverse: Vec::new(),
        })
        .await
        .unwrap();
        let lab = Arc::new(Self {
            dir: dir.to_owned(),
            feed: Memory::new(),
            runtime,
            images,
            dataplane,
            names,
            clock: Arc::default(),
            agent: std::sync::Mutex::new(None),
        });
        lab.start().await;
        lab
    }

    fn config(&self) -> Config {
        let mut config = Config::new(
            "n1",
            &self.dir.join("node"),
            "10.77.0.0/24".parse().unwrap(),
            [10, 78, 0, 10].into(),
        );
        config.addresses = vec![k8s_openapi::api::core::v1::NodeAddress {
            type_: "InternalIP".into(),
            address: "192.0.2.1".into(),
        }];
        config.api_host = "10.78.0.1".into();
        config
    }

    /// Starts the agent, as at the start of the platform.
    pub async fn start(&self) {
        let agent = Agent::start(
            self.config(),
            self.feed.clone(),
            self.runtime.clone(),
            self.images.clone(),
            self.dataplane.clone(),
            self.names.clone(),
            self.clock.clone(),
        )
        .await
        .unwrap();
        *self.agent.lock().unwrap() = Some(agent);
    }

    /// Ends the agent, as when the platform is stopped.
    pub async fn stop(&self) {
        let agent = self.agent.lock().unwrap().take();
        if let Some(agent) = agent {
            agent.shutdown().await;
        }
    }

    /// Ends the launcher by force, when its record of a container is gone.
    pub fn lose_launcher(&self, container: &str) {
        let record = self.dir.join(format!("run/containers/{container}.json"));
        std::fs::remove_file(record).unwrap();
        let own = self.dir.join("run");
        let is_launcher = |pid: &u32| {
            let line = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
            let line = String::from_utf8_lossy(&line).into_owned();
            line.contains("launcher") && line.contains(own.to_str().unwrap())
        };
        let all = std::fs::read_dir("/proc").unwrap().flatten();
        let mut all = all.filter_map(|e| e.file_name().to_str()?.parse().ok());
        let pid: u32 = all.find(is_launcher).unwrap();
        dhow_kernel::process::signal(pid, 9).unwrap();
    }

    pub fn agent(&self) -> Arc<Agent> {
        self.agent.lock().unwrap().clone().unwrap()
    }

    pub fn pod(&self, name: &str) -> PodRef {
        PodRef { namespace: "shop".into(), name: name.into(), uid: String::new() }
    }

    /// The whole log of a container.
    pub async fn logs(&self, name: &str, request: LogRequest) -> String {
        let mut pieces = self.agent().logs(self.pod(name), request).await.unwrap();
        let mut all = Vec::new();
        while let Some(piece) = within("the end of a log", pieces.recv()).await {
            all.extend(piece);
        }
        String::from_utf8(all).unwrap()
    }

    /// Runs a shell command in a container's only or named container.
    pub async fn exec(&self, name: &str, container: &str, script: &str) -> (i32, String) {
        let request = ExecRequest {
            container: container.into(),
            command: ["sh", "-c", script].map(str::to_owned).to_vec(),
            stdout: true,
            stderr: true,
            ..ExecRequest::default()
        };
        let mut session = self.agent().exec(self.pod(name), request).await.unwrap();
        let mut output = String::new();
        let work = async {
            session.stdout.as_mut().unwrap().read_to_string(&mut output).await.unwrap();
            session.stderr.as_mut().unwrap().read_to_string(&mut output).await.unwrap();
            match session.exit.await.unwrap() {
                SessionExit::Code(code) => code,
                SessionExit::Failed(why) => panic!("{why}"),
            }
        };
        let code = within("the end of a command", work).await;
        (code, output)
    }

    /// Waits until a command in a container prints this.
    pub async fn until_output(&self, name: &str, script: &str, expected: &str) {
        let wait = async {
            loop {
                if self.exec(name, "", script).await.1.trim() == expected {
                    return;
                }
                tokio::task::yield_now().await;
            }
        };
        within(&format!("{script} to print {expected}"), wait).await;
    }

    async fn close(&self) -> Vec<String> {
        let mut left = Vec::new();
        let names: Vec<String> = self.feed.lock().pods.keys().cloned().collect();
        if self.agent.lock().unwrap().is_none() {
            self.start().await;
        }
        for name in names {
            self.feed.delete(&name, 1);
        }
        self.feed.until("the end of all pods", |s| s.pods.is_empty()).await;
        // Pods that were removed by force end a little later than the store forgets them.
        let begun = Instant::now();
        loop {
            let runs = self.runtime.containers().await.unwrap().len();
            let sandboxes = self.runtime.sandboxes().await.unwrap().len();
            let files = std::fs::read_dir(self.dir.join("node/pods")).map_or(0, Iterator::count);
            if runs + sandboxes + files == 0 {
                break;
            }
            if begun.elapsed() > Duration::from_secs(20) {
                left.push(format!("{runs} containers, {sandboxes} sandboxes, {files} directories"));
                break;
            }
            tokio::task::yield_now().await;
        }
        self.stop().await;
        self.runtime.shutdown().await.unwrap();
        Agent::purge(&self.dir.join("node")).unwrap();
        Dataplane::purge("dhowt", "10.77.0.0/16".parse().unwrap()).await.unwrap();
        left
    }
}

pub async fn within<T>(what: &str, work: impl Future<Output = T>) -> T {
    match tokio::time::timeout(Duration::from_secs(20), work).await {
        Ok(done) => done,
        Err(_) => panic!("waited too long for {what}"),
    }
}

fn entry() -> tar::Header {
    let mut header = tar::Header::new_gnu();
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(0);
    header.set_mode(0o644);
    header
}

/// A `docker save` archive of one image that holds busybox.
fn archive(name: &str) -> Vec<u8> {
    let mut layer = tar::Builder::new(Vec::new());
    let mut header = entry();
    let busybox = std::fs::read(dhow_harness::busybox()).unwrap();
    for dir in ["bin/", "tmp/", "etc/"] {
        header.set_entry_type(tar::EntryType::Directory);
        header.set_mode(0o777);
        header.set_size(0);
        layer.append_data(&mut header, dir, std::io::empty()).unwrap();
    }
    let mut file = |path: &str, bytes: &[u8], mode: u32| {
        header.set_entry_type(tar::EntryType::Regular);
        header.set_mode(mode);
        header.set_size(bytes.len() as u64);
        layer.append_data(&mut header, path, bytes).unwrap();
    };
    file("bin/busybox", &busybox, 0o755);
    file("etc/passwd", b"root:x:0:0::/:/bin/sh\n", 0o644);
    for applet in APPLETS {
        let mut link = entry();
        link.set_entry_type(tar::EntryType::Symlink);
        link.set_size(0);
        layer.append_link(&mut link, format!("bin/{applet}"), "busybox").unwrap();
    }
    let layer = layer.into_inner().unwrap();
    let digest = |bytes: &[u8]| -> String {
        Sha256::digest(bytes).iter().map(|b| format!("{b:02x}")).collect()
    };
    let config = serde_json::json!({
        "architecture": "amd64", "os": "linux", "created": "2026-01-01T00:00:00Z",
        "config": {"Cmd": ["sh"], "Env": ["PATH=/bin", "FROM_IMAGE=yes"]},
        "rootfs": {"type": "layers", "diff_ids": [format!("sha256:{}", digest(&layer))]},
    })
    .to_string();
    let config_name = format!("{}.json", digest(config.as_bytes()));
    let manifest = serde_json::json!([{
        "Config": config_name, "RepoTags": [format!("{name}:latest")], "Layers": ["layer.tar"],
    }])
    .to_string();
    let mut all = tar::Builder::new(Vec::new());
    for (path, bytes) in [
        (config_name.as_str(), config.as_bytes()),
        ("layer.tar", &layer),
        ("manifest.json", manifest.as_bytes()),
    ] {
        let mut header = entry();
        header.set_size(bytes.len() as u64);
        all.append_data(&mut header, path, bytes).unwrap();
    }
    all.into_inner().unwrap()
}

/// A pod of one container that runs a shell script.
pub fn shell(name: &str, script: &str) -> serde_json::Value {
    serde_json::json!({
        "metadata": {"name": name},
        "spec": {
            "nodeName": "n1", "restartPolicy": "Always", "terminationGracePeriodSeconds": 5,
            "containers": [{"name": "main", "image": "busybox", "command": ["sh", "-c", script]}],
        },
    })
}

/// A script that runs until it is asked to end.
pub const FOREVER: &str = "trap 'exit 0' TERM; sleep 1000 & wait";

pub fn run_all(tests: Vec<Test>) -> ! {
    if std::env::var_os("DHOW_TEST_LOG").is_some() {
        tracing_subscriber::fmt()
            .with_writer(std::io::stderr)
            .with_max_level(tracing::Level::DEBUG)
            .init();
    }
    let up = Command::new("ip").args(["link", "set", "lo", "up"]).status();
    assert!(up.is_ok_and(|s| s.success()), "ip (iproute2) has to be installed");
    dhow_harness::run(tests, |_, test| {
        let dir = tempfile::tempdir().unwrap();
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .enable_all()
            .build()
            .unwrap();
        // A panic has said itself what is wrong.
        std::panic::catch_unwind(AssertUnwindSafe(|| {
            runtime.block_on(async {
                let lab = Lab::open(dir.path()).await;
                let caught =
                    futures::FutureExt::catch_unwind(AssertUnwindSafe(test(lab.clone()))).await;
                let left = lab.close().await;
                if let Err(panic) = caught {
                    std::panic::resume_unwind(panic);
                }
                assert!(left.is_empty(), "left behind: {left:?}");
            });
        }))
        .map_err(|_| "see above".to_owned())
    })
}
