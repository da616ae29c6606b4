//! The platform's store for etcd clients: application configuration beside the platform's own keys,
//! which can be read and watched and not written.

use crate::config::Config;
use crate::pki::{Identity, Pki};
use crate::print::quoted;
use anyhow::{Context, Result};
use bytes::Bytes;
use dhow_door_etcd::Door;
use dhow_kv::Kv;
use dhow_peers::tls::{Settings, Trust};
use dhow_server::Store;
use serde::{Deserialize, Serialize};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

/// The common name that clients must show a certificate of. Whoever has it reads every secret of
/// the platform, so that no other certificate of the platform's authority opens this door.
const CLIENT: &str = "dhow-etcd";

/// Keys of the platform itself, which clients must not write.
const PROTECTED: [&str; 2] = ["/registry/", "/dhow/"];

/// Where etcd clients are listened to when nothing was said.
const DEFAULT: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::UNSPECIFIED), 2379);

/// Where etcd clients are listened to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum Listen {
    /// Nowhere.
    Off,
    /// Here.
    At(SocketAddr),
}

impl std::str::FromStr for Listen {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "off" => Ok(Self::Off),
            address => address
                .parse()
                .map(Self::At)
                .map_err(|_| "write IP:PORT, for example 0.0.0.0:2379, or off".to_owned()),
        }
    }
}

impl TryFrom<String> for Listen {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

impl From<Listen> for String {
    fn from(listen: Listen) -> Self {
        match listen {
            Listen::Off => "off".into(),
            Listen::At(address) => address.to_string(),
        }
    }
}

/// Takes the port, if etcd clients are to be served. A port that nobody asked for by name and that
/// somebody else has is done without.
///
/// # Errors
/// When a port that was asked for is taken.
pub async fn listen(config: &Config) -> Result<Option<TcpListener>> {
    if config.datastore.is_some() {
        // Clients ask the external etcd itself.
        return Ok(None);
    }
    let address = match config.etcd_listen {
        Some(Listen::Off) => return Ok(None),
        Some(Listen::At(address)) => address,
        None => DEFAULT,
    };
    let advice = "free the port or choose another with --etcd-listen";
    match TcpListener::bind(address).await {
        Ok(listener) => Ok(Some(listener)),
        Err(error) if config.etcd_listen.is_none() => {
            tracing::warn!(%address, "etcd clients are not served, the port is taken: {error}; {advice}");
            Ok(None)
        }
        Err(error) => Err(error)
            .with_context(|| format!("cannot listen on {address} for etcd clients: {advice}")),
    }
}

/// Serves the store until `stop`. Clients show the certificate that `DATA/env` names.
///
/// # Errors
/// When certificates cannot be read or written.
pub fn serve(
    listener: TcpListener,
    store: &Arc<Store>,
    data: &Path,
    pki: &Pki,
    now: Duration,
    stop: CancellationToken,
) -> Result<impl Future<Output = ()> + Send + 'static> {
    let _: Identity = pki.client("etcd-client", CLIENT, "dhow", now)?;
    let dir = data.join("pki");
    let trust = Trust::new(Settings {
        certificate: dir.join("apiserver.crt"),
        key: dir.join("apiserver.key"),
        authority: Some(dir.join("ca.crt")),
        demand_client: true,
        allowed_names: vec![CLIENT.to_owned()],
        protocols: vec![b"h2".to_vec(), b"http/1.1".to_vec()],
        ..Settings::default()
    });
    let tls = trust.server()?;
    let config = dhow_door_etcd::Config {
        protected: PROTECTED.iter().map(|prefix| Bytes::from_static(prefix.as_bytes())).collect(),
        ..dhow_door_etcd::Config::default()
    };
    let door = Door::new(Kv::new(store.clone()), store.clone(), config);
    Ok(async move { door.serve(listener, Some(tls), stop).await })
}

/// The lines of `DATA/env` that point etcd's clients at the platform.
pub fn exports(listener: Option<&TcpListener>, data: &Path) -> String {
    let Some(address) = listener.and_then(|listener| listener.local_addr().ok()) else {
        return String::new();
    };
    let host = match address.ip() {
        ip if ip.is_unspecified() => IpAddr::V4(Ipv4Addr::LOCALHOST),
        ip => ip,
    };
    let pki = data.join("pki");
    format!(
        "export ETCDCTL_ENDPOINTS='https://{}'\nexport ETCDCTL_CACERT={}\nexport ETCDCTL_CERT={}\nexport ETCDCTL_KEY={}\n",
        SocketAddr::new(host, address.port()),
        quoted(&pki.join("ca.crt")),
        quoted(&pki.join("etcd-client.crt")),
        quoted(&pki.join("etcd-client.key")),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn off_or_an_address() {
        assert_eq!("off".parse(), Ok(Listen::Off));
        assert_eq!("1.2.3.4:5".parse(), Ok(Listen::At("1.2.3.4:5".parse().unwrap())));
        assert!("2379".parse::<Listen>().unwrap_err().contains("IP:PORT"));
        let kept = serde_json::to_string(&Listen::At(DEFAULT)).unwrap();
        assert_eq!(kept, r#""0.0.0.0:2379""#);
        assert_eq!(serde_json::from_str::<Listen>(&kept).unwrap(), Listen::At(DEFAULT));
    }
}
