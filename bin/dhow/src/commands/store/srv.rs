//! Members that find each other by DNS, as with etcd's `--discovery-srv`.
//!
//! The domain has a record `_etcd-server-ssl._tcp` for each member that speaks TLS to the others, and
//! `_etcd-server._tcp` for each that does not. A member knows itself among them by the address that it
//! gives with `--initial-advertise-peer-urls`, and the others by numbers until they say their names.

use super::flags::Values;
use super::settings::Settings;
use anyhow::{Context as _, Result, bail};
use dhow_names::{LookupError, ResolvConf, Resolver, Service};
use dhow_peers::{Address, Place};
use std::collections::BTreeMap;
use std::net::SocketAddr;

/// The services of both kinds, and the schemes of their members' URLs.
const SERVICES: [(&str, &str); 2] = [("etcd-server-ssl", "https"), ("etcd-server", "http")];

/// Where members find each other by DNS.
#[derive(Debug, Clone)]
pub struct Srv {
    domain: String,
    /// Comes behind the services' names.
    suffix: String,
}

/// What a record says of a member: where it is, in words and in numbers.
struct Found {
    service: Service,
    scheme: &'static str,
    addresses: Vec<SocketAddr>,
}

impl Found {
    fn url(&self) -> String {
        let Service { host, port, .. } = &self.service;
        format!("{}://{host}:{port}", self.scheme)
    }
}

impl Srv {
    /// What the flags say; `None` when they name no domain.
    pub fn new(values: &Values) -> Option<Self> {
        let suffix = match values.text("discovery-srv-name") {
            "" => String::new(),
            name => format!("-{name}"),
        };
        let domain = values.text("discovery-srv");
        (!domain.is_empty()).then(|| Self { domain: domain.to_owned(), suffix })
    }

    /// Looks the members up, and puts them into the settings. This one's URLs become those that the
    /// others find: all must know it by the same.
    ///
    /// # Errors
    /// When there are none, one has no address, or this one is not among them.
    pub async fn find(&self, settings: &mut Settings) -> Result<()> {
        let resolver = Resolver::new(ResolvConf::machine());
        let (mut found, mut missing) = (Vec::new(), Vec::new());
        for (service, scheme) in SERVICES {
            let name = format!("_{service}{}._tcp.{}", self.suffix, self.domain);
            match resolver.services(&name).await {
                Ok(services) => {
                    for service in services {
                        let addresses = addresses(&service.host, service.port)
                            .await
                            .with_context(|| format!("{name} names a member that is not known"))?;
                        found.push(Found { service, scheme, addresses });
                    }
                }
                // Members of one kind are enough.
                Err(LookupError::Missing) => {
                    missing.push(format!("{name}: {}", LookupError::Missing))
                }
                Err(error) => bail!(
                    "cannot look up {name}: {error}; mend that, or list the members with --initial-cluster"
                ),
            }
        }
        if found.is_empty() {
            bail!(
                "cannot find the members by DNS ({}): add an SRV record for each, or list them with --initial-cluster",
                missing.join("; ")
            );
        }
        let mut own = Vec::new();
        for url in &settings.advertise_peers {
            own.push((url.clone(), addresses_of(url).await?));
        }
        let (initial, advertised) = members(&settings.name, &found, &own)?;
        for (name, urls) in &initial {
            tracing::info!(name, urls = urls.join(","), "got bootstrap from DNS for etcd-server");
        }
        (settings.initial, settings.advertise_peers) = (initial, advertised);
        Ok(())
    }
}

/// Names and URLs of the first members.
type Members = Vec<(String, Vec<String>)>;

/// The members, and the URLs that the own ones are known by.
fn members(
    name: &str,
    found: &[Found],
    own: &[(String, Vec<SocketAddr>)],
) -> Result<(Members, Vec<String>)> {
    let mut members: BTreeMap<String, Vec<String>> = BTreeMap::new();
    let mut advertised: Vec<String> = own.iter().map(|(url, _)| url.clone()).collect();
    let mut other_scheme = String::new();
    for (_, scheme) in SERVICES {
        // As etcd counts: those of each kind from 0.
        let mut others = 0..;
        for found in found.iter().filter(|found| found.scheme == scheme) {
            let is_own = |(_, known): &(String, Vec<SocketAddr>)| {
                known.iter().any(|address| found.addresses.contains(address))
            };
            let url = found.url();
            match own.iter().position(is_own) {
                Some(at) if own[at].0.starts_with(&format!("{scheme}://")) => {
                    members.entry(name.to_owned()).or_default().push(url.clone());
                    advertised[at] = url;
                }
                Some(at) => {
                    other_scheme = format!(
                        ": {url} is where it is, and --initial-advertise-peer-urls has {}",
                        own[at].0
                    );
                }
                None => {
                    let number = others.next().unwrap_or(0).to_string();
                    members.entry(number).or_default().push(url);
                }
            }
        }
    }
    if !members.contains_key(name) {
        bail!("cannot find local etcd member {name:?} in SRV records{other_scheme}");
    }
    Ok((members.into_iter().collect(), advertised))
}

async fn addresses_of(url: &str) -> Result<Vec<SocketAddr>> {
    let address: Address = url.parse()?;
    match &address.place {
        Place::Tcp(host, port) => addresses(host, *port)
            .await
            .with_context(|| "--initial-advertise-peer-urls names a member that is not known"),
        Place::Unix(_) => bail!("{url} has no address that DNS could tell others"),
    }
}

/// All addresses of a host.
async fn addresses(host: &str, port: u16) -> Result<Vec<SocketAddr>> {
    let found = tokio::net::lookup_host((host, port)).await;
    Ok(found.with_context(|| format!("{host} has no address"))?.collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(scheme: &'static str, host: &str, address: &str) -> Found {
        let service = Service { priority: 0, weight: 0, host: host.into(), port: 2380 };
        Found { service, scheme, addresses: vec![address.parse().unwrap()] }
    }

    fn own(url: &str, address: &str) -> (String, Vec<SocketAddr>) {
        (url.to_owned(), vec![address.parse().unwrap()])
    }

    #[test]
    fn a_member_knows_itself_by_its_address_and_takes_the_name_that_others_find() {
        let all = [
            found("http", "m1.example", "10.0.0.1:2380"),
            found("http", "m2.example", "10.0.0.2:2380"),
            found("http", "m3.example", "10.0.0.3:2380"),
        ];
        let own = [own("http://10.0.0.2:2380", "10.0.0.2:2380")];
        let (members, advertised) = members("b", &all, &own).unwrap();
        let members: Vec<String> =
            members.iter().map(|(name, urls)| format!("{name}={}", urls.join(","))).collect();
        assert_eq!(
            members,
            ["0=http://m1.example:2380", "1=http://m3.example:2380", "b=http://m2.example:2380"]
        );
        assert_eq!(advertised, ["http://m2.example:2380"]);
    }

    #[test]
    fn one_that_is_not_among_them_is_told_why() {
        let all = [
            found("https", "m1.example", "10.0.0.1:2380"),
            found("http", "m2.example", "10.0.0.2:2380"),
        ];
        let refused = |url: &str, address: &str| {
            members("a", &all, &[own(url, address)]).unwrap_err().to_string()
        };
        assert_eq!(
            refused("http://10.0.0.9:2380", "10.0.0.9:2380"),
            "cannot find local etcd member \"a\" in SRV records"
        );
        assert_eq!(
            refused("http://10.0.0.1:2380", "10.0.0.1:2380"),
            "cannot find local etcd member \"a\" in SRV records: https://m1.example:2380 is where it is, \
             and --initial-advertise-peer-urls has http://10.0.0.1:2380"
        );
    }
}
