//! What one platform instance is configured with: flags at the first start, the data directory's
//! memory after that.

use crate::datastore::{self, Datastore};
use crate::etcd;
use anyhow::{Context, Result, anyhow, bail};
use dhow_objects::hash::stable;
use ipnet::Ipv4Net;
use serde::{Deserialize, Serialize};
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};

/// Where a platform lives unless told otherwise.
pub const DEFAULT_DATA_DIR: &str = "/var/lib/dhow";

/// The newest layout of a data directory that this program reads.
const FORMAT: u32 = 1;

/// The settings of one instance, kept in `DATA/config.json`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// Layout version of the data directory.
    pub format: u32,
    /// This machine's name in the cluster.
    pub name: String,
    /// This machine's address towards others; `None` takes the address of the default route, or
    /// that of the pod network when the machine has none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub advertise: Option<Ipv4Addr>,
    /// Where the Kubernetes API listens.
    pub listen: SocketAddr,
    /// Addresses of pods, all machines.
    pub cluster_cidr: Ipv4Net,
    /// Addresses of services.
    pub service_cidr: Ipv4Net,
    /// Domain of cluster names.
    pub domain: String,
    /// Prefix of network links and name of the nftables table.
    pub network: String,
    /// Name of the control group.
    pub cgroup: String,
    /// The external etcd cluster that holds the data; `None` for the embedded store.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub datastore: Option<Datastore>,
    /// Where etcd clients are listened to; `None` for the usual port, if it is free.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub etcd_listen: Option<etcd::Listen>,
    /// Where other servers are listened to; `None` for the usual port, if it is free.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub peer_listen: Option<etcd::Listen>,
    /// The servers that this one has joined; `None` for the first one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub joined: Option<Joined>,
}

/// What a server remembers of those that it has joined.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct Joined {
    /// Where they were reached: asked again should this one end before its store is begun.
    pub peers: Vec<String>,
    /// The pod addresses that they gave to this machine.
    pub pod_cidr: Ipv4Net,
}

impl Config {
    /// The settings of `data` with `flags` laid over; see [`Config::keep`].
    ///
    /// # Errors
    /// When the data directory is of a newer version, or a flag contradicts what cannot change any
    /// more.
    pub fn load(data: &Path, flags: &Flags) -> Result<Self> {
        let path = data.join("config.json");
        let stored = match std::fs::read(&path) {
            Ok(bytes) => Some(Self::parse(&path, &bytes)?),
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => None,
            Err(e) => return Err(e).with_context(|| format!("cannot read {}", path.display())),
        };
        let file = match &flags.config {
            Some(path) => {
                let text = std::fs::read_to_string(path)
                    .with_context(|| format!("cannot read the configuration {}", path.display()))?;
                crate::files::yaml(&text).map_err(|why| {
                    anyhow!("configuration {} is not understood: {why}", path.display())
                })?
            }
            None => File::default(),
        };
        let wanted = file.under(flags)?;
        let config = match &stored {
            Some(stored) => stored.changed_by(&wanted, data)?,
            None => Self::first(data, &wanted)?,
        };
        config.check()?;
        Ok(config)
    }

    /// Stores the settings in `data`. Not before it is clear that the platform may start: what a
    /// refused start wanted binds nobody.
    ///
    /// # Errors
    /// When the data directory cannot be written.
    pub fn keep(&self, data: &Path) -> Result<()> {
        let (path, bytes) = (data.join("config.json"), serde_json::to_vec_pretty(self)?);
        if std::fs::read(&path).is_ok_and(|stored| stored == bytes) {
            return Ok(());
        }
        crate::files::write(&path, &bytes, 0o600)
    }

    /// The settings of a data directory that was used before.
    ///
    /// # Errors
    /// When there are none.
    pub fn read(data: &Path) -> Result<Self> {
        let path = data.join("config.json");
        let bytes = std::fs::read(&path).with_context(|| match data.metadata() {
            Ok(_) if !rustix::process::geteuid().is_root() => {
                format!("cannot read {}: only root may; use sudo", path.display())
            }
            _ => format!("{} is no dhow data directory; start one with 'dhow up'", data.display()),
        })?;
        Self::parse(&path, &bytes)
    }

    fn parse(path: &Path, bytes: &[u8]) -> Result<Self> {
        #[derive(Deserialize)]
        struct Version {
            format: u32,
        }
        let version: Version = serde_json::from_slice(bytes)
            .with_context(|| format!("{} is not understood", path.display()))?;
        if version.format > FORMAT {
            bail!(
                "{} has format {}, this dhow knows formats up to {FORMAT}: use a newer dhow or another --data-dir",
                path.display(),
                version.format
            );
        }
        serde_json::from_slice(bytes)
            .with_context(|| format!("{} is not understood", path.display()))
    }

    fn first(data: &Path, wanted: &File) -> Result<Self> {
        let host = rustix::system::uname().nodename().to_string_lossy().to_lowercase();
        // The default instance has plain names; others derive theirs from where they live.
        let (network, cgroup) = if data == Path::new(DEFAULT_DATA_DIR) {
            ("dhow0".to_owned(), "dhow".to_owned())
        } else {
            let hash = stable(data.as_os_str().as_encoded_bytes().iter().copied());
            (format!("d{:04x}", hash as u16), format!("dhow-{:08x}", hash as u32))
        };
        Ok(Self {
            format: FORMAT,
            name: wanted.name.clone().unwrap_or(host),
            advertise: wanted.advertise,
            listen: wanted.listen.unwrap_or(SocketAddr::from(([0, 0, 0, 0], 6443))),
            cluster_cidr: wanted
                .cluster_cidr
                .unwrap_or(Ipv4Net::new_assert(Ipv4Addr::new(10, 244, 0, 0), 16)),
            service_cidr: wanted
                .service_cidr
                .unwrap_or(Ipv4Net::new_assert(Ipv4Addr::new(10, 96, 0, 0), 16)),
            domain: wanted.domain.clone().unwrap_or_else(|| "cluster.local".into()),
            network,
            cgroup,
            datastore: wanted.datastore.clone(),
            etcd_listen: wanted.etcd_listen,
            peer_listen: wanted.peer_listen,
            joined: None,
        })
    }

    fn changed_by(&self, wanted: &File, data: &Path) -> Result<Self> {
        let mut config = self.clone();
        config.advertise = wanted.advertise.or(config.advertise);
        config.listen = wanted.listen.unwrap_or(config.listen);
        config.etcd_listen = wanted.etcd_listen.or(config.etcd_listen);
        config.peer_listen = wanted.peer_listen.or(config.peer_listen);
        // Members come and go and certificates move; but data stay where they are.
        if let Some(datastore) = &wanted.datastore {
            if self.datastore.is_none() && data.join("store").exists() {
                bail!(
                    "--datastore {datastore} contradicts {}, whose data are in its embedded store: leave the flag out, or start anew with another --data-dir",
                    data.display()
                );
            }
            config.datastore = Some(datastore.clone());
        }
        let fixed = [
            ("--name", wanted.name.clone(), self.name.clone()),
            (
                "--cluster-cidr",
                wanted.cluster_cidr.map(|c| c.to_string()),
                self.cluster_cidr.to_string(),
            ),
            (
                "--service-cidr",
                wanted.service_cidr.map(|c| c.to_string()),
                self.service_cidr.to_string(),
            ),
            ("--domain", wanted.domain.clone(), self.domain.clone()),
        ];
        for (flag, wanted, stored) in fixed {
            if let Some(wanted) = wanted.filter(|w| *w != stored) {
                bail!(
                    "{flag} {wanted} contradicts {}, which was set up with {stored}: leave the flag out, or purge and start anew",
                    data.display()
                );
            }
        }
        Ok(config)
    }

    fn check(&self) -> Result<()> {
        let label = |text: &str| {
            !text.is_empty()
                && text.len() <= 63
                && text.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
                && !text.starts_with('-')
                && !text.ends_with('-')
        };
        if self.name.len() > 253 || !self.name.split('.').all(label) {
            bail!(
                "--name {:?} is not a DNS name: use lower-case letters, digits, '-' and '.'",
                self.name
            );
        }
        if !self.domain.split('.').all(label) {
            bail!("--domain {:?} is not a DNS name", self.domain);
        }
        if self.cluster_cidr.prefix_len() > 24 {
            bail!("--cluster-cidr {} is too small: a machine needs a /24 of it", self.cluster_cidr);
        }
        if self.service_cidr.prefix_len() > 24 {
            bail!("--service-cidr {} is too small: it must be /24 or larger", self.service_cidr);
        }
        if self.cluster_cidr.contains(&self.service_cidr)
            || self.service_cidr.contains(&self.cluster_cidr)
        {
            bail!(
                "--cluster-cidr {} and --service-cidr {} overlap",
                self.cluster_cidr,
                self.service_cidr
            );
        }
        Ok(())
    }

    /// The pod addresses of this machine: what the others gave to it, or the first /24 of the
    /// cluster's.
    pub fn pod_cidr(&self) -> Ipv4Net {
        let first = || Ipv4Net::new_assert(self.cluster_cidr.network(), 24);
        self.joined.as_ref().map_or_else(first, |joined| joined.pod_cidr)
    }

    /// The `n`th address of the service network.
    fn service_address(&self, n: u32) -> Ipv4Addr {
        Ipv4Addr::from(u32::from(self.service_cidr.network()) + n)
    }

    /// The DNS server's address.
    pub fn dns_ip(&self) -> Ipv4Addr {
        self.service_address(10)
    }

    /// The address of service `kubernetes.default`.
    pub fn kubernetes_ip(&self) -> Ipv4Addr {
        self.service_address(1)
    }
}

/// What flags or a configuration file may set.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
pub struct File {
    /// As [`Config::name`].
    pub name: Option<String>,
    /// As [`Config::advertise`].
    pub advertise: Option<Ipv4Addr>,
    /// As [`Config::listen`].
    pub listen: Option<SocketAddr>,
    /// As [`Config::cluster_cidr`].
    pub cluster_cidr: Option<Ipv4Net>,
    /// As [`Config::service_cidr`].
    pub service_cidr: Option<Ipv4Net>,
    /// As [`Config::domain`].
    pub domain: Option<String>,
    /// As [`Config::datastore`].
    pub datastore: Option<Datastore>,
    /// As [`Config::etcd_listen`].
    pub etcd_listen: Option<etcd::Listen>,
    /// As [`Config::peer_listen`].
    pub peer_listen: Option<etcd::Listen>,
}

impl File {
    fn under(self, flags: &Flags) -> Result<Self> {
        let machine = &flags.machine;
        Ok(Self {
            name: machine.name.clone().or(self.name),
            advertise: machine.advertise.or(self.advertise),
            listen: machine.listen.or(self.listen),
            cluster_cidr: flags.cluster_cidr.or(self.cluster_cidr),
            service_cidr: flags.service_cidr.or(self.service_cidr),
            domain: flags.domain.clone().or(self.domain),
            datastore: flags.datastore.datastore()?.or(self.datastore),
            etcd_listen: machine.etcd_listen.or(self.etcd_listen),
            peer_listen: machine.peer_listen.or(self.peer_listen),
        })
    }
}

/// The settings of `dhow up`.
#[derive(Debug, Clone, Default, clap::Args)]
pub struct Flags {
    /// Read settings from this YAML file; flags win over it
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// What is this machine's own
    #[command(flatten)]
    pub machine: Machine,
    /// Addresses of pods (default: 10.244.0.0/16)
    #[arg(long, value_name = "CIDR")]
    pub cluster_cidr: Option<Ipv4Net>,
    /// Addresses of services (default: 10.96.0.0/16)
    #[arg(long, value_name = "CIDR")]
    pub service_cidr: Option<Ipv4Net>,
    /// Domain of cluster names (default: cluster.local)
    #[arg(long)]
    pub domain: Option<String>,
    /// Go on alone with what this server has: the other servers are lost for good
    #[arg(long)]
    pub force_new_cluster: bool,
    /// Where the data are
    #[command(flatten)]
    pub datastore: datastore::Flags,
}

/// The settings that each machine of a platform has of its own: what `dhow up` and `dhow join` share.
#[derive(Debug, Clone, Default, clap::Args)]
#[group(skip)]
pub struct Machine {
    /// This machine's name in the cluster (default: its host name)
    #[arg(long)]
    pub name: Option<String>,
    /// This machine's address towards others (default: that of the default route)
    #[arg(long, value_name = "IP")]
    pub advertise: Option<Ipv4Addr>,
    /// Where the Kubernetes API listens (default: 0.0.0.0:6443)
    #[arg(long, value_name = "IP:PORT")]
    pub listen: Option<SocketAddr>,
    /// Where etcd clients are listened to, or off (default: 0.0.0.0:2379 if it is free)
    #[arg(long, value_name = "IP:PORT")]
    pub etcd_listen: Option<etcd::Listen>,
    /// Where other servers are listened to, or off (default: 0.0.0.0:2380 if it is free)
    #[arg(long, value_name = "IP:PORT")]
    pub peer_listen: Option<etcd::Listen>,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn flags(name: &str) -> Flags {
        let machine = Machine { name: Some(name.into()), ..Machine::default() };
        Flags { machine, ..Flags::default() }
    }

    #[test]
    fn settings_are_remembered_and_contradictions_refused() {
        let dir = tempfile::tempdir().unwrap();
        // What a refused start wanted is forgotten.
        Config::load(dir.path(), &flags("n0")).unwrap();
        let first = Config::load(dir.path(), &flags("n1")).unwrap();
        first.keep(dir.path()).unwrap();
        assert_eq!(Config::load(dir.path(), &Flags::default()).unwrap(), first);
        let refused = Config::load(dir.path(), &flags("n2")).unwrap_err().to_string();
        assert!(refused.contains("--name n2 contradicts"), "{refused}");
    }

    #[test]
    fn a_newer_format_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("config.json"), r#"{"format": 99, "later": true}"#).unwrap();
        let refused = Config::load(dir.path(), &Flags::default()).unwrap_err().to_string();
        assert!(refused.contains("use a newer dhow"), "{refused}");
    }

    #[test]
    fn unknown_settings_are_refused() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("c.yaml");
        std::fs::write(&file, "nam: x\n").unwrap();
        let flags = Flags { config: Some(file), ..Flags::default() };
        assert!(format!("{:#}", Config::load(dir.path(), &flags).unwrap_err()).contains("nam"));
    }

    #[test]
    fn overlapping_networks_are_refused() {
        let dir = tempfile::tempdir().unwrap();
        let flags = Flags { service_cidr: "10.244.0.0/20".parse().ok(), ..flags("n") };
        assert!(Config::load(dir.path(), &flags).unwrap_err().to_string().contains("overlap"));
    }
}
