//! `resolv.conf`, and names looked up by it, as this machine's programs do.

use crate::forward::Forwarder;
use hickory_proto::op::{Query, ResponseCode};
use hickory_proto::rr::{Name, RData, RecordType};
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};

/// So many dots a name has that is looked up as it is first.
const DOTS: usize = 1;
const PORT: u16 = 53;

/// What a `resolv.conf` says.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ResolvConf {
    /// Name servers.
    pub servers: Vec<String>,
    /// Search domains.
    pub searches: Vec<String>,
    /// Options.
    pub options: Vec<String>,
}

impl ResolvConf {
    /// This machine's own; empty when there is none.
    pub fn machine() -> Self {
        Self::parse(&std::fs::read_to_string("/etc/resolv.conf").unwrap_or_default())
    }

    /// Reads its text.
    pub fn parse(text: &str) -> Self {
        let mut all = Self::default();
        for line in text.lines() {
            let mut words = line.split(['#', ';']).next().unwrap_or("").split_whitespace();
            match words.next() {
                Some("nameserver") => all.servers.extend(words.next().map(str::to_owned)),
                Some("search" | "domain") => all.searches = words.map(str::to_owned).collect(),
                Some("options") => all.options.extend(words.map(str::to_owned)),
                _ => {}
            }
        }
        all
    }

    /// Where the name servers answer.
    pub fn upstreams(&self) -> Vec<SocketAddr> {
        let addresses = self.servers.iter().filter_map(|server| server.parse::<IpAddr>().ok());
        addresses.map(|address| SocketAddr::new(address, PORT)).collect()
    }

    /// The full names that a name may stand for, in the order in which they are tried.
    fn candidates(&self, name: &str) -> Vec<String> {
        if name.ends_with('.') {
            return vec![name.to_owned()];
        }
        let number = self.options.iter().filter_map(|option| option.strip_prefix("ndots:"));
        let dots = number.filter_map(|number| number.parse().ok()).next_back().unwrap_or(DOTS);
        let searched = self.searches.iter().map(|domain| domain.trim_end_matches('.'));
        let mut all: Vec<String> = searched.map(|domain| format!("{name}.{domain}.")).collect();
        let first = name.matches('.').count() >= dots;
        all.insert(if first { 0 } else { all.len() }, format!("{name}."));
        all
    }
}

impl fmt::Display for ResolvConf {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if !self.searches.is_empty() {
            writeln!(f, "search {}", self.searches.join(" "))?;
        }
        for server in &self.servers {
            writeln!(f, "nameserver {server}")?;
        }
        if !self.options.is_empty() {
            writeln!(f, "options {}", self.options.join(" "))?;
        }
        Ok(())
    }
}

/// What an SRV record says: where a service is.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Service {
    /// Lower ones come first.
    pub priority: u16,
    /// How often it is to be taken among those of its priority.
    pub weight: u16,
    /// Its host, without a dot at the end.
    pub host: String,
    /// Its port.
    pub port: u16,
}

/// Why a name was not found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum LookupError {
    /// There is no such record.
    Missing,
    /// It is no name.
    Invalid,
    /// No name server answered.
    Silent,
    /// A name server refused, or failed.
    Refused(String),
}

impl fmt::Display for LookupError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Missing => f.write_str("there is no such record"),
            Self::Invalid => f.write_str("that is no name"),
            Self::Silent => f.write_str("no name server of /etc/resolv.conf answers"),
            Self::Refused(code) => write!(f, "the name server answers {code}"),
        }
    }
}

impl std::error::Error for LookupError {}

/// Looks names up.
#[derive(Debug)]
pub struct Resolver {
    conf: ResolvConf,
    forwarder: Forwarder,
}

impl Resolver {
    /// A resolver that does as `conf` says; without a name server there it asks this machine.
    pub fn new(conf: ResolvConf) -> Self {
        let mut upstreams = conf.upstreams();
        if upstreams.is_empty() {
            upstreams.push((Ipv4Addr::LOCALHOST, PORT).into());
        }
        Self { conf, forwarder: Forwarder::new(upstreams) }
    }

    /// The SRV records of a name, those to be preferred first.
    ///
    /// # Errors
    /// [`LookupError`].
    pub async fn services(&self, name: &str) -> Result<Vec<Service>, LookupError> {
        for candidate in self.conf.candidates(name) {
            let name = Name::from_ascii(&candidate).map_err(|_| LookupError::Invalid)?;
            let question = Query::query(name, RecordType::SRV);
            let answer = self.forwarder.look_up(&question).await.ok_or(LookupError::Silent)?;
            match answer.metadata.response_code {
                ResponseCode::NoError | ResponseCode::NXDomain => {}
                code => return Err(LookupError::Refused(format!("{code:?}"))),
            }
            let service = |data: &RData| match data {
                RData::SRV(service) => Some(Service {
                    priority: service.priority,
                    weight: service.weight,
                    host: service.target.to_ascii().trim_end_matches('.').to_owned(),
                    port: service.port,
                }),
                _ => None,
            };
            let mut found: Vec<Service> =
                answer.answers.iter().filter_map(|record| service(&record.data)).collect();
            if !found.is_empty() {
                found.sort();
                return Ok(found);
            }
        }
        Err(LookupError::Missing)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_with_few_dots_is_looked_for_in_the_search_domains_first() {
        let few = ResolvConf::parse("nameserver 10.0.0.1 # x\nsearch a.b c.\noptions rotate\n");
        assert_eq!(
            few.candidates("_x._tcp.etcd"),
            ["_x._tcp.etcd.", "_x._tcp.etcd.a.b.", "_x._tcp.etcd.c."]
        );
        let many = ResolvConf { options: vec!["ndots:5".into()], ..few.clone() };
        assert_eq!(
            many.candidates("_x._tcp.etcd"),
            ["_x._tcp.etcd.a.b.", "_x._tcp.etcd.c.", "_x._tcp.etcd."]
        );
        assert_eq!(many.candidates("rooted."), ["rooted."]);
        assert_eq!(few.upstreams(), [SocketAddr::from(([10, 0, 0, 1], 53))]);
        assert_eq!(few.to_string(), "search a.b c.\nnameserver 10.0.0.1\noptions rotate\n");
    }
}
