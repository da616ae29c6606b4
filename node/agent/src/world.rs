//! What every part of the agent works with: its settings, its neighbours, and its paths.

use crate::env::downward::PodFacts;
use crate::events::Recorder;
use crate::node::Facts;
use crate::registry::Registry;
use crate::time::At;
use dhow_clock::SharedClock;
use dhow_dataplane::Dataplane;
use dhow_images::Images;
use dhow_intents::Feed;
use dhow_names::Names;
use dhow_runtime::Runtime;
use ipnet::Ipv4Net;
use k8s_openapi::api::core::v1::{NodeAddress, Pod};
use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// How the agent of one machine is set up.
#[derive(Debug, Clone)]
pub struct Config {
    /// The machine's name.
    pub node_name: String,
    /// Directory for pods, logs and secrets; the agent's own, for example `DATA/node`.
    pub data_dir: PathBuf,
    /// Further labels of the node object.
    pub labels: BTreeMap<String, String>,
    /// The machine's addresses, the one that others should use first.
    pub addresses: Vec<NodeAddress>,
    /// Addresses of this machine's pods.
    pub pod_cidr: Ipv4Net,
    /// Most pods that the machine runs.
    pub max_pods: u32,
    /// Address of the DNS server, for pods' `/etc/resolv.conf`.
    pub dns_ip: Ipv4Addr,
    /// The cluster's domain, for example `cluster.local`.
    pub domain: String,
    /// Address of the API inside the cluster: the `kubernetes` service's.
    pub api_host: String,
    /// Port of the API inside the cluster.
    pub api_port: u16,
    /// Version of dhow, for `containerRuntimeVersion: dhow://VERSION`.
    pub version: String,
    /// A log file is rotated at this size, bytes.
    pub log_max_size: u64,
    /// So many log files are kept for one container instance, the current one included.
    pub log_max_files: u32,
}

impl Config {
    /// A configuration with the usual sizes.
    pub fn new(node_name: &str, data_dir: &Path, pod_cidr: Ipv4Net, dns_ip: Ipv4Addr) -> Self {
        Self {
            node_name: node_name.to_owned(),
            data_dir: data_dir.to_owned(),
            labels: BTreeMap::new(),
            addresses: Vec::new(),
            pod_cidr,
            max_pods: 110,
            dns_ip,
            domain: "cluster.local".to_owned(),
            api_host: String::new(),
            api_port: 443,
            version: env!("CARGO_PKG_VERSION").to_owned(),
            log_max_size: 10 << 20,
            log_max_files: 5,
        }
    }

    /// The machine's own address towards others, empty if none was given.
    pub fn host_ip(&self) -> &str {
        self.addresses.iter().find(|a| a.type_ == "InternalIP").map_or("", |a| a.address.as_str())
    }
}

/// What every worker holds.
pub struct World {
    /// Settings.
    pub config: Config,
    /// The control plane.
    pub feed: Arc<dyn Feed>,
    /// Containers.
    pub runtime: Runtime,
    /// Images.
    pub images: Images,
    /// Links, addresses and services.
    pub dataplane: Dataplane,
    /// Name server.
    pub names: Names,
    /// Time.
    pub clock: SharedClock,
    /// Events.
    pub events: Recorder,
    /// What lives here.
    pub registry: Registry,
    /// What the machine has.
    pub facts: Facts,
}

impl World {
    /// Everything of one pod that is not in memory file systems or logs.
    pub fn pod_dir(&self, uid: &str) -> PathBuf {
        self.config.data_dir.join("pods").join(uid)
    }

    /// The directory of one volume on disk.
    pub fn volume_dir(&self, uid: &str, volume: &str) -> PathBuf {
        self.pod_dir(uid).join("volumes").join(volume)
    }

    /// The memory file system that holds every pod's secrets.
    pub fn memory_root(&self) -> PathBuf {
        self.config.data_dir.join("memory")
    }

    /// The directory of one volume that never touches a disk.
    pub fn memory_dir(&self, uid: &str, volume: &str) -> PathBuf {
        self.memory_root().join(uid).join(volume)
    }

    /// What one instance of a container owns: writable layer, termination message.
    pub fn instance_dir(&self, uid: &str, container: &str, attempt: u32) -> PathBuf {
        self.container_dir(uid, container).join(attempt.to_string())
    }

    /// What all instances of a container own.
    pub fn container_dir(&self, uid: &str, container: &str) -> PathBuf {
        self.pod_dir(uid).join("containers").join(container)
    }

    /// Logs of all instances of one pod's containers, named as upstream does.
    pub fn log_dir(&self, namespace: &str, name: &str, uid: &str) -> PathBuf {
        self.config.data_dir.join("logs").join(format!("{namespace}_{name}_{uid}"))
    }

    /// The log of one instance.
    pub fn log_path(
        &self,
        namespace: &str,
        name: &str,
        uid: &str,
        container: &str,
        attempt: u32,
    ) -> PathBuf {
        self.log_dir(namespace, name, uid).join(container).join(format!("{attempt}.log"))
    }

    /// What a pod may be told of itself; `pod_ip` is empty while it has none.
    pub fn pod_facts<'a>(&'a self, pod: &'a Pod, pod_ip: &'a str) -> PodFacts<'a> {
        PodFacts {
            pod,
            pod_ip,
            host_ip: self.config.host_ip(),
            cpu_millis: self.facts.cpu_millis,
            memory: self.facts.memory,
            storage: self.facts.storage,
        }
    }

    /// The present.
    pub fn now(&self) -> At {
        At::now(&*self.clock)
    }

    /// 64 hexadecimal digits, for a container's identifier.
    pub fn new_id(&self) -> String {
        (0..4).map(|_| format!("{:016x}", self.clock.random())).collect()
    }
}

impl std::fmt::Debug for World {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("World").field("config", &self.config).finish_non_exhaustive()
    }
}
