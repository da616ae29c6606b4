//! What the flags mean: checked, typed, with etcd's defaults and refusals.

use super::compaction::Retention;
use super::corruption::Checks;
use super::discovery::Discovery;
use super::flags::{Values, duration};
use super::gates::{Gate, Gates};
use super::srv::Srv;
use anyhow::{Context, Result, anyhow, bail};
use dhow_door_etcd::{Jwt, JwtError, Tokens};
use dhow_peers::{Address, Place, tls};
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

/// etcd takes no longer election timeout.
const LONGEST_ELECTION: u64 = 50_000;

/// What `--auth-token jwt` takes.
const JWT_OPTIONS: [&str; 4] = ["sign-method", "pub-key", "priv-key", "ttl"];

/// How a store runs alone.
#[derive(Debug, Clone)]
pub struct Settings {
    /// This member's name.
    pub name: String,
    /// Where the data lies.
    pub data_dir: PathBuf,
    /// Where the log lies, if not with the data.
    pub wal_dir: Option<PathBuf>,
    /// Where other members are listened to.
    pub listen_peers: Vec<Address>,
    /// Where clients are listened to.
    pub listen_clients: Vec<Address>,
    /// Where metrics and health are served besides.
    pub listen_metrics: Vec<Address>,
    /// Where other members reach this one.
    pub advertise_peers: Vec<String>,
    /// Where clients reach it.
    pub advertise_clients: Vec<String>,
    /// All members of a new cluster, or the known ones of an existing.
    pub initial: Vec<(String, Vec<String>)>,
    /// At which other etcd the first members of a new cluster find each other, if not in
    /// [`Settings::initial`].
    pub discovery: Option<Discovery>,
    /// Where DNS has the first members.
    pub srv: Option<Srv>,
    /// Tells clusters apart.
    pub token: String,
    /// Join instead of beginning.
    pub existing: bool,
    /// Keep the data and forget the other members.
    pub force_new: bool,
    /// Time between heartbeats.
    pub heartbeat: Duration,
    /// Time without a leader until an election.
    pub election: Duration,
    /// Serve clients after this long even if there is no leader.
    pub wait_ready: Duration,
    /// Refuse risky changes of the membership.
    pub strict_reconfig_check: bool,
    /// How many learners there may be.
    pub max_learners: usize,
    /// Bytes; 0 for no bound.
    pub quota: u64,
    /// Operations in one transaction.
    pub max_txn_ops: usize,
    /// Bytes of one request.
    pub max_request_bytes: usize,
    /// Streams of one connection.
    pub max_concurrent_streams: u32,
    /// Whether the JSON gateway is served.
    pub gateway: bool,
    /// What history is kept; `None` for all.
    pub retention: Option<Retention>,
    /// What users get when they log in.
    pub tokens: Arc<Tokens>,
    /// When members compare what they have.
    pub checks: Checks,
    /// How long an unused token is good, in seconds.
    pub token_ttl: u64,
    /// Cost of password hashes.
    pub bcrypt_cost: u32,
    /// Time between progress notices.
    pub progress: Duration,
    /// Measure how long requests take.
    pub extensive: bool,
    /// Requests that take this long are logged; `None` for none.
    pub slow: Option<Duration>,
    /// Certificates towards clients, and whether to make them.
    pub client_tls: Option<Tls>,
    /// Certificates towards members.
    pub peer_tls: Option<Tls>,
}

/// Certificates of one kind of connections.
#[derive(Debug, Clone)]
pub struct Tls {
    /// The files and rules.
    pub settings: tls::Settings,
    /// Make a certificate that is good for this long; the files are where it goes.
    pub make: Option<Duration>,
}

impl Settings {
    /// Checks what was given.
    ///
    /// # Errors
    /// What is wrong, as etcd says it where clients of its messages may look for it.
    pub fn new(values: &Values) -> Result<Self> {
        values.refuse()?;
        let name = match values.text("name") {
            "" => "default".to_owned(),
            name => name.to_owned(),
        };
        if values.is_given("listen-client-urls") && !values.is_given("advertise-client-urls") {
            bail!(
                "--advertise-client-urls is required when --listen-client-urls is set explicitly"
            );
        }
        let (heartbeat, election) =
            (values.number::<u64>("heartbeat-interval"), values.number::<u64>("election-timeout"));
        check_times(heartbeat, election)?;
        let mut listen_clients = values.urls("listen-client-urls");
        listen_clients.extend(values.urls("listen-client-http-urls"));
        let listen_peers = values.urls("listen-peer-urls");
        let listen_metrics = values.urls("listen-metrics-urls");
        for address in listen_clients.iter().chain(&listen_peers).chain(&listen_metrics) {
            check_bind(address)?;
        }
        let texts = |flag: &str| -> Result<Vec<String>> {
            let urls = values.urls(flag);
            if let Some(bad) = urls.iter().find(|url| url.host().is_empty()) {
                bail!("--{flag} {bad} must name a host: others are to reach this member there");
            }
            Ok(urls.iter().map(ToString::to_string).collect())
        };
        let advertise_peers = texts("initial-advertise-peer-urls")?;
        let initial = match values.text("initial-cluster") {
            "" => vec![(name.clone(), advertise_peers.clone())],
            text => parse_cluster(text)?,
        };
        let (discovery, srv) = (Discovery::new(values)?, Srv::new(values));
        let listed = !values.text("initial-cluster").is_empty();
        if [listed, discovery.is_some(), srv.is_some()].into_iter().filter(|way| *way).count() > 1 {
            bail!(
                "multiple discovery or bootstrap flags are set. Choose one of \"initial-cluster\", \"discovery-endpoints\" or \"discovery-srv\""
            );
        }
        let data_dir = match values.text("data-dir") {
            "" => format!("{name}.etcd").into(),
            dir => PathBuf::from(dir),
        };
        let quota = match values.number::<i64>("quota-backend-bytes") {
            0 => 2 << 30,
            wanted => u64::try_from(wanted).unwrap_or(0),
        };
        let progress = values.duration("watch-progress-notify-interval");
        let cost = values.number::<u32>("bcrypt-cost");
        if !(4..=31).contains(&cost) {
            bail!("--bcrypt-cost {cost} must be 4 to 31");
        }
        let slow = values.duration("warning-unary-request-duration");
        let client_tls = tls(values, "", &data_dir, &listen_clients)?;
        let peer_tls = tls(values, "peer-", &data_dir, &listen_peers)?;
        Ok(Self {
            existing: values.text("initial-cluster-state") == "existing",
            force_new: values.bool("force-new-cluster"),
            token: match &discovery {
                Some(discovery) => discovery.token().to_owned(),
                None => values.text("initial-cluster-token").to_owned(),
            },
            discovery,
            srv,
            heartbeat: Duration::from_millis(heartbeat),
            election: Duration::from_millis(election),
            wait_ready: values.duration("wait-cluster-ready-timeout"),
            strict_reconfig_check: values.bool("strict-reconfig-check"),
            max_learners: values.number("max-learners"),
            quota,
            max_txn_ops: values.number("max-txn-ops"),
            max_request_bytes: values.number("max-request-bytes"),
            max_concurrent_streams: u32::try_from(values.number::<u64>("max-concurrent-streams"))
                .unwrap_or(u32::MAX),
            gateway: values.bool("enable-grpc-gateway"),
            retention: retention(
                values.text("auto-compaction-mode"),
                values.text("auto-compaction-retention"),
            )?,
            tokens: Arc::new(tokens(values.text("auth-token"))?),
            checks: checks(values)?,
            token_ttl: values.number("auth-token-ttl"),
            bcrypt_cost: cost,
            extensive: values.text("metrics") == "extensive",
            slow: (!slow.is_zero()).then_some(slow),
            progress: progress.max(Duration::from_millis(100)),
            advertise_clients: texts("advertise-client-urls")?,
            advertise_peers,
            listen_peers,
            listen_clients,
            listen_metrics,
            initial,
            name,
            data_dir,
            wal_dir: match values.text("wal-dir") {
                "" => None,
                dir => Some(std::path::absolute(dir).context("--wal-dir is no path")?),
            },
            client_tls,
            peer_tls,
        })
    }

    /// Whether a new cluster may begin with these settings.
    ///
    /// # Errors
    /// When this member is not among the first ones as it is.
    pub fn check_first(&self) -> Result<()> {
        let Some((_, urls)) = self.initial.iter().find(|(name, _)| *name == self.name) else {
            bail!(
                "couldn't find local name {:?} in the initial cluster configuration; is --name or --initial-cluster wrong?",
                self.name
            );
        };
        let sorted = |urls: &[String]| {
            let mut urls = urls.to_vec();
            urls.sort();
            urls
        };
        if sorted(urls) != sorted(&self.advertise_peers) {
            bail!(
                "--initial-cluster has {}={} but missing from --initial-advertise-peer-urls={}",
                self.name,
                urls.join(","),
                self.advertise_peers.join(",")
            );
        }
        let mut all: Vec<&String> = self.initial.iter().flat_map(|(_, urls)| urls).collect();
        all.sort();
        if let Some(twice) = all.windows(2).find(|pair| pair[0] == pair[1]) {
            bail!(
                "member URL {} is listed twice in --initial-cluster: each member needs its own",
                twice[0]
            );
        }
        Ok(())
    }
}

fn check_times(heartbeat: u64, election: u64) -> Result<()> {
    if heartbeat == 0 {
        bail!("--heartbeat-interval must be >0 (set to 0ms)");
    }
    if election == 0 {
        bail!("--election-timeout must be >0 (set to 0ms)");
    }
    if heartbeat.saturating_mul(5) > election {
        bail!(
            "--election-timeout[{election}ms] should be at least as 5 times as --heartbeat-interval[{heartbeat}ms]"
        );
    }
    if election > LONGEST_ELECTION {
        bail!(
            "--election-timeout[{election}ms] is too long, and should be set less than {LONGEST_ELECTION}ms"
        );
    }
    Ok(())
}

/// A name may mean other addresses tomorrow; so only addresses are listened at.
fn check_bind(address: &Address) -> Result<()> {
    match &address.place {
        Place::Tcp(host, _)
            if !host.is_empty()
                && host != "localhost"
                && host.parse::<std::net::IpAddr>().is_err() =>
        {
            bail!("expected IP in URL for binding ({address})")
        }
        _ => Ok(()),
    }
}

/// `NAME=URL,NAME=URL`: a name with several URLs comes several times.
pub fn parse_cluster(text: &str) -> Result<Vec<(String, Vec<String>)>> {
    let mut members: std::collections::BTreeMap<String, Vec<String>> = Default::default();
    for part in text.split(',').map(str::trim).filter(|part| !part.is_empty()) {
        let (name, url) = part.split_once('=').unwrap_or(("", part));
        if name.is_empty() {
            bail!("--initial-cluster: empty name given for {part:?}; write NAME=URL");
        }
        let url: Address = url.parse().map_err(|error| anyhow!("--initial-cluster: {error}"))?;
        members.entry(name.to_owned()).or_default().push(url.to_string());
    }
    Ok(members.into_iter().collect())
}

fn retention(mode: &str, text: &str) -> Result<Option<Retention>> {
    let number = text.parse::<u32>();
    let retention = match (mode, number) {
        (_, Ok(0)) => return Ok(None),
        ("revision", Ok(revisions)) => Retention::Revisions(revisions.into()),
        ("revision", Err(_)) => {
            bail!("error parsing AutoCompactionRetention: {text:?} is no number of revisions")
        }
        (_, Ok(hours)) => Retention::Age(Duration::from_secs(u64::from(hours) * 3600)),
        (_, Err(_)) => Retention::Age(duration(text).ok_or_else(|| {
            anyhow!(
                "error parsing AutoCompactionRetention: {text:?} is neither hours nor a duration"
            )
        })?),
    };
    Ok((retention != Retention::Age(Duration::ZERO)).then_some(retention))
}

/// When members compare what they have: flags of before 3.6, and gates since.
fn checks(values: &Values) -> Result<Checks> {
    let gates = Gates::parse(values.text("feature-gates"))?;
    let newest = values.duration("corrupt-check-time");
    let pause = values.duration("compact-hash-check-time");
    if pause.is_zero() {
        bail!("--compact-hash-check-time must be >0 (set to 0s)");
    }
    let compacted =
        values.bool("compact-hash-check-enabled") || gates.enabled(Gate::CompactHashCheck);
    Ok(Checks {
        initially: values.bool("initial-corrupt-check") || gates.enabled(Gate::InitialCorruptCheck),
        newest: (!newest.is_zero()).then_some(newest),
        compacted: compacted.then_some(pause),
    })
}

/// What `--auth-token` asks for: `simple`, `jwt,KEY=VALUE,...`, or nothing for no tokens at all.
fn tokens(text: &str) -> Result<Tokens> {
    let invalid = |what: &str| anyhow!("auth: invalid auth options: --auth-token {text}: {what}");
    let mut parts = text.split(',');
    let kind = parts.next().unwrap_or_default();
    let mut options = BTreeMap::new();
    for part in parts {
        let (key, value) = match part.split_once('=') {
            Some((key, value)) if !value.contains('=') => (key, value),
            _ => return Err(invalid(&format!("write {part} as KEY=VALUE"))),
        };
        if options.insert(key, value).is_some() {
            return Err(invalid(&format!("{key} is given twice")));
        }
    }
    match kind {
        "simple" => Ok(Tokens::Simple),
        "" => Ok(Tokens::None),
        "jwt" => Ok(Tokens::Jwt(Box::new(jwt(&options, invalid)?))),
        other => Err(invalid(&format!("{other} is neither simple nor jwt"))),
    }
}

fn jwt(options: &BTreeMap<&str, &str>, invalid: impl Fn(&str) -> anyhow::Error) -> Result<Jwt> {
    for unknown in options.keys().filter(|key| !JWT_OPTIONS.contains(key)) {
        tracing::warn!("unknown JWT option {unknown} in --auth-token");
    }
    let option = |key: &str| options.get(key).copied().unwrap_or_default();
    let ttl = match option("ttl") {
        "" => Duration::from_secs(300),
        text => duration(text).ok_or_else(|| invalid("ttl is no duration as 5m is"))?,
    };
    let key = |name: &str| match option(name) {
        "" => Ok(Vec::new()),
        path => std::fs::read(path)
            .map_err(|error| invalid(&format!("cannot read {name} {path}: {error}"))),
    };
    let (public, private) = (key("pub-key")?, key("priv-key")?);
    let method = option("sign-method");
    let clock = dhow_clock::System::shared();
    Jwt::new(method, &private, &public, ttl, clock).map_err(|error| match error {
        JwtError::Method => {
            invalid("sign-method must be one of RS, PS, ES, HS with 256, 384 or 512, or EdDSA")
        }
        error => anyhow!(
            "{error}: --auth-token needs keys of the kind that sign-method {method} asks for"
        ),
    })
}

/// The certificates of clients' (`""`) or members' (`"peer-"`) connections.
fn tls(
    values: &Values,
    prefix: &str,
    data: &std::path::Path,
    listen: &[Address],
) -> Result<Option<Tls>> {
    let file = |name: &str| match values.text(&format!("{prefix}{name}")) {
        "" => None,
        path => Some(PathBuf::from(path)),
    };
    let secure = listen.iter().find(|address| address.tls);
    let (certificate, key) = (file("cert-file"), file("key-file"));
    let make = values.bool(&format!("{prefix}auto-tls"))
        && certificate.is_none()
        && key.is_none()
        && secure.is_some();
    let (certificate, key) = match (certificate, key) {
        (Some(certificate), Some(key)) => (certificate, key),
        (None, None) if make => {
            let dir = data.join("fixtures").join(if prefix.is_empty() { "client" } else { "peer" });
            (dir.join("cert.pem"), dir.join("key.pem"))
        }
        (None, None) => match secure {
            Some(address) => bail!(
                "{address} needs a certificate: give --{prefix}cert-file and --{prefix}key-file, or --{prefix}auto-tls"
            ),
            // Other members may be https although this one is not: it can call, without a certificate.
            None => Default::default(),
        },
        _ => {
            bail!("--{prefix}cert-file and --{prefix}key-file go together: one of them is missing")
        }
    };
    if let Some(plain) = listen.iter().find(|address| !address.tls)
        && !certificate.as_os_str().is_empty()
    {
        tracing::warn!("{plain} is not https: the certificate is not used there");
    }
    let (min, max) = (values.text("tls-min-version"), values.text("tls-max-version"));
    if (min, max) == ("TLS1.3", "TLS1.2") {
        bail!("min version (TLS1.3) is greater than max version (TLS1.2)");
    }
    let suites = values.list("cipher-suites");
    if min == "TLS1.3" && !suites.is_empty() {
        bail!("cipher suites cannot be configured when only TLS1.3 is enabled");
    }
    let as_client = (!prefix.is_empty())
        .then(|| file("client-cert-file").zip(file("client-key-file")))
        .flatten();
    let settings = tls::Settings {
        certificate,
        key,
        as_client,
        authority: file("trusted-ca-file"),
        demand_client: values.bool(&format!("{prefix}client-cert-auth")),
        revoked: if prefix.is_empty() { file("client-crl-file") } else { file("crl-file") },
        allowed_names: if prefix.is_empty() {
            Vec::new()
        } else {
            values.list("peer-cert-allowed-cn")
        },
        allowed_hosts: values.list(if prefix.is_empty() {
            "client-cert-allowed-hostname"
        } else {
            "peer-cert-allowed-hostname"
        }),
        suites,
        only_13: min == "TLS1.3",
        only_12: max == "TLS1.2",
        any_server: make && !prefix.is_empty(),
        protocols: if prefix.is_empty() {
            vec![b"h2".to_vec(), b"http/1.1".to_vec()]
        } else {
            Vec::new()
        },
    };
    let years = values.number::<u64>("self-signed-cert-validity").max(1);
    let make = make.then(|| Duration::from_secs(years * 365 * 86_400));
    Ok((secure.is_some() || !prefix.is_empty()).then_some(Tls { settings, make }))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings(line: &str) -> Result<Settings> {
        let words: Vec<String> = line.split_whitespace().map(str::to_owned).collect();
        Settings::new(&Values::parse(&words).map_err(anyhow::Error::from)?)
    }

    #[track_caller]
    fn refused(line: &str, part: &str) {
        let said = match settings(line) {
            Ok(_) => panic!("{line} must be refused"),
            Err(error) => error.to_string(),
        };
        assert!(said.contains(part), "{line}: {said}");
    }

    #[test]
    fn nothing_given_is_etcds_default() {
        let settings = settings("").unwrap();
        settings.check_first().unwrap();
        assert_eq!(settings.data_dir, PathBuf::from("default.etcd"));
        assert_eq!(settings.listen_clients[0].to_string(), "http://localhost:2379");
        assert_eq!(settings.initial, [("default".into(), vec!["http://localhost:2380".into()])]);
        assert_eq!((settings.quota, settings.max_request_bytes), (2 << 30, 1_572_864));
        assert_eq!(settings.retention, None);
        assert!(settings.client_tls.is_none());
    }

    #[test]
    fn a_name_goes_into_the_directory_and_the_cluster() {
        let settings = settings("--name a --initial-advertise-peer-urls http://h:1").unwrap();
        assert_eq!(settings.data_dir, PathBuf::from("a.etcd"));
        assert_eq!(settings.initial, [("a".into(), vec!["http://h:1".into()])]);
        settings.check_first().unwrap();
    }

    #[test]
    fn contradictions_are_refused_in_etcds_words() {
        refused("--listen-client-urls http://127.0.0.1:1", "--advertise-client-urls is required");
        refused("--heartbeat-interval 0", "--heartbeat-interval must be >0");
        refused("--heartbeat-interval 300", "should be at least as 5 times");
        refused("--election-timeout 60000", "too long");
        refused("--listen-peer-urls http://example.org:1", "expected IP in URL for binding");
        refused("--auto-compaction-retention x", "AutoCompactionRetention");
        refused("--auto-compaction-mode revision --auto-compaction-retention 5m", "revisions");
        refused("--listen-peer-urls https://127.0.0.1:1", "--peer-cert-file");
        refused("--cert-file x", "go together");
        refused("--tls-min-version TLS1.3 --tls-max-version TLS1.2", "greater than max");
        refused("--tls-min-version TLS1.3 --cipher-suites X", "cipher suites cannot");
        refused("--bcrypt-cost 99", "4 to 31");
        refused("--initial-cluster http://a:1", "empty name");
        refused("--initial-advertise-peer-urls http://:2380", "must name a host");
    }

    #[test]
    fn the_first_members_must_hold_this_one_as_it_is() {
        let first = |line: &str| settings(line).unwrap().check_first().map_err(|e| e.to_string());
        let other = first("--name a --initial-cluster b=http://h:1").unwrap_err();
        assert!(other.contains(r#"couldn't find local name "a""#), "{other}");
        let moved = first("--name a --initial-cluster a=http://h:1").unwrap_err();
        assert!(moved.contains("missing from --initial-advertise-peer-urls"), "{moved}");
        let twice = first(
            "--name a --initial-advertise-peer-urls http://h:1 --initial-cluster a=http://h:1,b=http://h:1",
        )
        .unwrap_err();
        assert!(twice.contains("listed twice"), "{twice}");
        let several = settings(
            "--name a --initial-cluster b=http://h:3,a=http://h:1,a=http://h:2 \
             --initial-advertise-peer-urls http://h:2,http://h:1",
        )
        .unwrap();
        several.check_first().unwrap();
        assert_eq!(several.initial[0].1.len(), 2);
    }

    #[test]
    fn history_is_kept_by_age_or_by_number() {
        let kept = |line: &str| settings(line).unwrap().retention;
        assert_eq!(
            kept("--auto-compaction-retention 2"),
            Some(Retention::Age(Duration::from_secs(7200)))
        );
        assert_eq!(
            kept("--auto-compaction-retention 5m"),
            Some(Retention::Age(Duration::from_secs(300)))
        );
        assert_eq!(kept("--auto-compaction-retention 0s"), None);
        assert_eq!(
            kept("--auto-compaction-mode=revision --auto-compaction-retention=1000"),
            Some(Retention::Revisions(1000))
        );
    }

    #[test]
    fn certificates_are_for_one_side_each() {
        let settings = settings(
            "--listen-client-urls https://127.0.0.1:1 --advertise-client-urls https://127.0.0.1:1 \
             --cert-file c --key-file k --trusted-ca-file ca --client-cert-auth \
             --listen-peer-urls https://127.0.0.1:2 --peer-auto-tls --peer-cert-allowed-cn m \
             --data-dir d",
        )
        .unwrap();
        let client = settings.client_tls.unwrap();
        assert_eq!(client.settings.authority, Some("ca".into()));
        assert!(client.settings.demand_client && client.make.is_none());
        assert!(client.settings.allowed_names.is_empty());
        let peer = settings.peer_tls.unwrap();
        assert!(peer.make.is_some() && peer.settings.any_server);
        assert_eq!(peer.settings.certificate, PathBuf::from("d/fixtures/peer/cert.pem"));
        assert_eq!(peer.settings.allowed_names, ["m"]);
    }

    #[test]
    fn options_of_tokens_are_refused_in_etcds_words() {
        let line = |token: &str| format!("--auth-token={token}");
        for bad in ["paper", "jwt", "jwt,sign-method", "jwt,ttl=1m,ttl=2m", "jwt,ttl=soon"] {
            refused(&line(bad), "auth: invalid auth options");
        }
        refused(&line("jwt,sign-method=RS1"), "auth: invalid auth options");
        refused(&line("jwt,sign-method=RS256"), "auth: missing key data");
        refused(&line("jwt,sign-method=RS256,pub-key=/nowhere"), "cannot read pub-key /nowhere");
        assert!(matches!(&*settings(&line("simple")).unwrap().tokens, Tokens::Simple));
        assert!(matches!(&*settings(&line("")).unwrap().tokens, Tokens::None));
        let key = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(key.path(), "secret").unwrap();
        let path = key.path().display();
        let jwt = settings(&line(&format!("jwt,sign-method=HS256,priv-key={path},ttl=10m")));
        assert!(matches!(&*jwt.unwrap().tokens, Tokens::Jwt(_)));
    }

    #[test]
    fn data_are_compared_as_flags_or_gates_say() {
        let of = |line: &str| settings(line).unwrap().checks;
        assert_eq!(of(""), Checks::default());
        let flags = of("--experimental-initial-corrupt-check --corrupt-check-time=3s \
                        --experimental-compact-hash-check-enabled --compact-hash-check-time=2s");
        let wanted = Checks {
            initially: true,
            newest: Some(Duration::from_secs(3)),
            compacted: Some(Duration::from_secs(2)),
        };
        assert_eq!(flags, wanted);
        let gates = of("--feature-gates=InitialCorruptCheck=true,CompactHashCheck=true");
        assert_eq!((gates.initially, gates.compacted), (true, Some(Duration::from_secs(60))));
        refused("--feature-gates=Flying=true", "unrecognized feature gate: Flying");
        refused("--compact-hash-check-time=0s", "must be >0");
    }
}
