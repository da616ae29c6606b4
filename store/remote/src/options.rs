//! Where the cluster is, and what is shown to it.

use std::time::Duration;
use tonic::transport::{Certificate, ClientTlsConfig, Endpoint, Identity};

/// Where the cluster is, what is shown to it and how long it may take.
#[derive(Clone)]
pub struct Options {
    /// The members: `https://host:port`, `http://host:port`, or `host:port`, which is `https` when
    /// [`Options::tls`] is given.
    pub endpoints: Vec<String>,
    /// Whom to trust and who we are; `None` for plain connections.
    pub tls: Option<Tls>,
    /// Name and password, when the cluster asks for users.
    pub user: Option<(String, String)>,
    /// How long a request may take, all tries together.
    pub timeout: Duration,
    /// How long one try of a request that can be repeated may take, before another member is asked.
    pub attempt: Duration,
    /// How long a member may take to accept a connection.
    pub connect: Duration,
    /// How long a connection with calls may be quiet before a member is asked whether it is there.
    /// etcd cuts off clients that ask more often than every 5 s.
    pub keep_alive: Duration,
    /// How long its answer may take.
    pub keep_alive_timeout: Duration,
}

/// Whom to trust and who we are, all PEM.
#[derive(Clone, Default)]
pub struct Tls {
    /// The authorities that sign the members' certificates.
    pub ca: Option<Vec<u8>>,
    /// Our certificate and its key.
    pub identity: Option<(Vec<u8>, Vec<u8>)>,
    /// The name that the members' certificates carry, when it is not the one that they are reached by.
    pub server_name: Option<String>,
    /// Members may show any certificate, whatever [`Tls::ca`] says: who is between can read and change
    /// everything.
    pub any_server: bool,
}

impl Options {
    /// The members at `endpoints`, over plain connections.
    pub fn new(endpoints: impl IntoIterator<Item = impl Into<String>>) -> Self {
        Self {
            endpoints: endpoints.into_iter().map(Into::into).collect(),
            tls: None,
            user: None,
            timeout: Duration::from_secs(10),
            attempt: Duration::from_secs(5),
            connect: Duration::from_secs(2),
            keep_alive: Duration::from_secs(10),
            keep_alive_timeout: Duration::from_secs(5),
        }
    }

    /// One endpoint for each member, not connected yet.
    pub(crate) fn members(&self) -> Result<Vec<(String, Endpoint)>, ConnectError> {
        let mut members = Vec::new();
        for text in self.endpoints.iter().map(|e| e.trim()).filter(|e| !e.is_empty()) {
            let url = match text.contains("://") {
                true => text.to_owned(),
                false if self.tls.is_some() => format!("https://{text}"),
                false => format!("http://{text}"),
            };
            let bad = |why: String| ConnectError::BadEndpoint { endpoint: url.clone(), why };
            let mut endpoint =
                Endpoint::from_shared(url.clone()).map_err(|e| bad(e.to_string()))?;
            let uri = endpoint.uri();
            match uri.scheme_str() {
                Some("http" | "https") => {}
                other => return Err(bad(format!("unknown scheme {}", other.unwrap_or("")))),
            }
            if uri.host().is_none_or(str::is_empty) {
                return Err(bad("it names no host".into()));
            }
            if uri.port_u16().is_none() {
                return Err(bad("it names no port; etcd listens on 2379".into()));
            }
            if uri.scheme_str() == Some("https") {
                let tls = self.tls.clone().unwrap_or_default();
                endpoint = tls.secure(endpoint).map_err(|e| {
                    let why =
                        std::error::Error::source(&e).map_or(e.to_string(), |s| s.to_string());
                    ConnectError::BadCertificate { why }
                })?;
            }
            // etcd cuts off clients that ask whether it is there without a stream.
            let endpoint = endpoint
                .connect_timeout(self.connect)
                .tcp_nodelay(true)
                .http2_keep_alive_interval(self.keep_alive)
                .keep_alive_timeout(self.keep_alive_timeout)
                .keep_alive_while_idle(false)
                .initial_stream_window_size(4 << 20)
                .initial_connection_window_size(16 << 20);
            members.push((url, endpoint));
        }
        if members.is_empty() {
            return Err(ConnectError::NoEndpoint);
        }
        Ok(members)
    }
}

impl std::fmt::Debug for Options {
    // Keys and passwords stay out of logs.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Options({}, tls {})", self.endpoints.join(","), self.tls.is_some())
    }
}

impl Tls {
    fn secure(self, endpoint: Endpoint) -> Result<Endpoint, tonic::transport::Error> {
        let mut config = ClientTlsConfig::new();
        if let Some((certificate, key)) = self.identity {
            config = config.identity(Identity::from_pem(certificate, key));
        }
        if let Some(name) = self.server_name {
            config = config.domain_name(name);
        }
        if self.any_server {
            let provider = rustls::crypto::ring::default_provider();
            let anyone = dhow_tls::any_server(provider.signature_verification_algorithms);
            return endpoint.tls_config_with_verifier(config, anyone);
        }
        if let Some(ca) = self.ca {
            config = config.ca_certificate(Certificate::from_pem(ca));
        }
        endpoint.tls_config(config)
    }
}

/// Why an external cluster cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ConnectError {
    /// No endpoint was given.
    #[error("no endpoint of the etcd cluster was given")]
    NoEndpoint,
    /// An endpoint that is no address.
    #[error("{endpoint} is no endpoint of an etcd cluster: {why}")]
    BadEndpoint {
        /// What was given.
        endpoint: String,
        /// What is wrong with it.
        why: String,
    },
    /// A certificate or key that cannot be read.
    #[error("the certificates for the etcd cluster cannot be used: {why}")]
    BadCertificate {
        /// What is wrong with them.
        why: String,
    },
    /// No member answers.
    #[error("no member of the etcd cluster answers: {endpoint}: {why}")]
    Unreachable {
        /// The first member.
        endpoint: String,
        /// How it failed.
        why: String,
    },
    /// A member's certificate is not to be trusted.
    #[error(
        "{endpoint} shows a certificate that is not trusted ({why}): give the authority that signed it"
    )]
    Untrusted {
        /// The member.
        endpoint: String,
        /// What is wrong with its certificate.
        why: String,
    },
    /// The cluster does not take our certificate, or misses one.
    #[error(
        "{endpoint} ends the connection ({why}): give a client certificate, and its key, that the cluster trusts"
    )]
    NotTrusted {
        /// The member.
        endpoint: String,
        /// How it was refused.
        why: String,
    },
    /// The members belong to more than one cluster.
    #[error("{one} and {other} belong to different etcd clusters: name members of one")]
    TwoClusters {
        /// A member of one.
        one: String,
        /// A member of another.
        other: String,
    },
    /// The cluster is too old.
    #[error("{endpoint} is etcd {version}: 3.4 or newer is needed")]
    TooOld {
        /// The member.
        endpoint: String,
        /// Its version.
        version: String,
    },
    /// The cluster does not let us in, or has no leader.
    #[error("the etcd cluster answers and refuses: {0}")]
    Refused(dhow_kv::Error),
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refusal(endpoint: &str) -> String {
        Options::new([endpoint]).members().unwrap_err().to_string()
    }

    #[test]
    fn endpoints_are_addresses_with_a_port() {
        let members = Options::new(["10.0.0.1:2379", " http://b:2379 "]).members().unwrap();
        let urls: Vec<&str> = members.iter().map(|(url, _)| url.as_str()).collect();
        assert_eq!(urls, ["http://10.0.0.1:2379", "http://b:2379"]);
        let mut options = Options::new(["a:2379"]);
        options.tls = Some(Tls::default());
        assert_eq!(options.members().unwrap()[0].0, "https://a:2379");
        assert!(refusal("http://a").contains("no port"));
        assert!(refusal("mysql://a:1").contains("unknown scheme mysql"));
        assert!(refusal("").contains("no endpoint"));
    }

    #[test]
    fn secrets_do_not_reach_logs() {
        let mut options = Options::new(["a:1"]);
        options.user = Some(("u".into(), "hush".into()));
        assert!(!format!("{options:?}").contains("hush"));
    }
}
