//! The table of flags: etcd's names, kinds and defaults, releases 3.4 to 3.7.
//!
//! Names and defaults follow `etcd --help` of those releases
//! (<https://etcd.io/docs/latest/op-guide/configuration/>).

/// What a flag's value must be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Any text.
    Text,
    /// `true` or `false`; the bare flag means true.
    Bool,
    /// A number, not negative.
    Uint,
    /// A number.
    Int,
    /// A duration as Go writes it: `1h30m`, `100ms`.
    Duration,
    /// URLs, with commas between them.
    Urls,
    /// Texts, with commas between them.
    List,
    /// One of these.
    Choice(&'static [&'static str]),
}

/// What a flag does here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Effect {
    /// It works; the text is its help.
    Works(&'static str),
    /// It is accepted and means nothing here; the text says why.
    Idle(&'static str),
    /// It asks for something that does not exist here; the text says what to do instead.
    Refused(&'static str),
}

/// One flag.
#[derive(Debug, Clone, Copy)]
pub struct Flag {
    /// Its name, without dashes.
    pub name: &'static str,
    /// What its value must be.
    pub kind: Kind,
    /// Its value when it is not given.
    pub default: &'static str,
    /// What it does.
    pub effect: Effect,
}

const fn works(name: &'static str, kind: Kind, default: &'static str, help: &'static str) -> Flag {
    Flag { name, kind, default, effect: Effect::Works(help) }
}

const fn idle(name: &'static str, kind: Kind, default: &'static str, why: &'static str) -> Flag {
    Flag { name, kind, default, effect: Effect::Idle(why) }
}

const fn refused(name: &'static str, kind: Kind, why: &'static str) -> Flag {
    Flag { name, kind, default: "", effect: Effect::Refused(why) }
}

/// The flag of this name. Names that left their `experimental-` behind are known with it too.
pub fn find(name: &str) -> Option<&'static Flag> {
    let known = |name: &str| GROUPS.iter().flat_map(|(_, flags)| *flags).find(|f| f.name == name);
    known(name).or_else(|| match name {
        "log-output" => known("log-outputs"),
        _ => known(name.strip_prefix("experimental-")?),
    })
}

use Kind::{Bool, Choice, Duration, Int, List, Text, Uint, Urls};

/// All flags, in groups.
pub const GROUPS: [(&str, &[Flag]); 10] = [
    ("Member", MEMBER),
    ("Cluster", CLUSTER),
    ("Discovery of the members of a new cluster, by DNS or at another etcd", DISCOVERY),
    ("TLS", TLS),
    ("Users", USERS),
    ("Limits and history", LIMITS),
    ("Metrics and logs", LOGS),
    ("Unsafe", UNSAFE),
    ("Accepted, without effect", IDLE),
    ("Not supported", REFUSED),
];

const LOCAL_PEER: &str = "http://localhost:2380";
const LOCAL_CLIENT: &str = "http://localhost:2379";

const MEMBER: &[Flag] = &[
    works("name", Text, "default", "This member's name, for people"),
    works("data-dir", Text, "", "Where the data lies (default: NAME.etcd)"),
    works("wal-dir", Text, "", "Where the log lies, if not with the data"),
    works("listen-peer-urls", Urls, LOCAL_PEER, "Where other members are listened to"),
    works("listen-client-urls", Urls, LOCAL_CLIENT, "Where clients are listened to"),
    works("listen-client-http-urls", Urls, "", "Where clients are listened to for HTTP only"),
    works("heartbeat-interval", Uint, "100", "Time between heartbeats, in milliseconds"),
    works(
        "election-timeout",
        Uint,
        "1000",
        "Time without a leader until an election, in milliseconds",
    ),
    works("config-file", Text, "", "Read everything from this YAML file instead"),
    works("version", Bool, "false", "Print the version and end"),
    works(
        "watch-progress-notify-interval",
        Duration,
        "10m",
        "Time between progress notices to idle watches",
    ),
];

const CLUSTER: &[Flag] = &[
    works("initial-advertise-peer-urls", Urls, LOCAL_PEER, "Where other members reach this one"),
    works("advertise-client-urls", Urls, LOCAL_CLIENT, "Where clients reach this member"),
    works(
        "initial-cluster",
        Text,
        "",
        "All members of a new cluster: NAME=URL,NAME=URL (default: this one)",
    ),
    works(
        "initial-cluster-state",
        Choice(&["new", "existing"]),
        "new",
        "Begin a cluster, or join one",
    ),
    works(
        "initial-cluster-token",
        Text,
        "etcd-cluster",
        "Tells clusters with equal addresses apart",
    ),
    works(
        "wait-cluster-ready-timeout",
        Duration,
        "5s",
        "Time to wait for the others before clients are served all the same",
    ),
    works(
        "strict-reconfig-check",
        Bool,
        "true",
        "Refuse changes of the membership that could cost the quorum",
    ),
    works("max-learners", Int, "1", "How many learners there may be"),
    works(
        "initial-corrupt-check",
        Bool,
        "false",
        "Compare the data with the other members' before serving; end if they differ",
    ),
    works(
        "corrupt-check-time",
        Duration,
        "0s",
        "Compare the newest data of all members this often; 0 for never",
    ),
    works("compact-hash-check-enabled", Bool, "false", "Compare what is compacted"),
    works("compact-hash-check-time", Duration, "1m", "How often"),
    works(
        "feature-gates",
        Text,
        "",
        "InitialCorruptCheck=true, CompactHashCheck=true; etcd's others mean nothing here",
    ),
];

const DISCOVERY: &[Flag] = &[
    works(
        "discovery-srv",
        Text,
        "",
        "Domain with a record _etcd-server-ssl._tcp or _etcd-server._tcp for each member",
    ),
    works("discovery-srv-name", Text, "", "The services are called _etcd-server-NAME instead"),
    works("discovery-token", Text, "", "Which of the clusters that are registered there"),
    works("discovery-endpoints", List, "", "Where the other etcd is"),
    works("discovery-dial-timeout", Duration, "2s", "How long it may take to be reached"),
    works("discovery-request-timeout", Duration, "5s", "How long its answers may take"),
    works(
        "discovery-keepalive-time",
        Duration,
        "2s",
        "How long it may be quiet before it is asked whether it is there; at least 10s",
    ),
    works("discovery-keepalive-timeout", Duration, "6s", "How long it may take to say so"),
    works("discovery-insecure-transport", Bool, "true", "Endpoints without a scheme are http"),
    works(
        "discovery-insecure-skip-tls-verify",
        Bool,
        "false",
        "Take any certificate: whoever is between can tell who the members are",
    ),
    works("discovery-cert", Text, "", "Certificate to show there, PEM"),
    works("discovery-key", Text, "", "Its key, PEM"),
    works("discovery-cacert", Text, "", "Authority that signs the other etcd's certificates, PEM"),
    works("discovery-user", Text, "", "NAME or NAME:PASSWORD to be there"),
    works("discovery-password", Text, "", "Password of that user"),
];

const TLS: &[Flag] = &[
    works("cert-file", Text, "", "Certificate shown to clients"),
    works("key-file", Text, "", "Its key"),
    works("client-cert-auth", Bool, "false", "Clients must show a certificate"),
    works("trusted-ca-file", Text, "", "Authority of the clients' certificates"),
    works("client-crl-file", Text, "", "Clients' certificates that are no longer good"),
    works(
        "client-cert-allowed-hostname",
        List,
        "",
        "Host names that a client's certificate must be for, one of them",
    ),
    works("auto-tls", Bool, "false", "Make a certificate for clients' connections"),
    works("peer-cert-file", Text, "", "Certificate shown to other members"),
    works("peer-key-file", Text, "", "Its key"),
    works(
        "peer-client-cert-file",
        Text,
        "",
        "Another certificate, for connections that this member makes",
    ),
    works("peer-client-key-file", Text, "", "Its key"),
    works("peer-client-cert-auth", Bool, "false", "Members must show a certificate"),
    works("peer-trusted-ca-file", Text, "", "Authority of the members' certificates"),
    works("peer-crl-file", Text, "", "Members' certificates that are no longer good"),
    works("peer-cert-allowed-cn", List, "", "Common names that members' certificates may have"),
    works(
        "peer-cert-allowed-hostname",
        List,
        "",
        "Host names that a member's certificate must be for, one of them",
    ),
    works(
        "peer-auto-tls",
        Bool,
        "false",
        "Make a certificate for members' connections; it keeps listeners out and nobody else",
    ),
    works("self-signed-cert-validity", Uint, "1", "Years that certificates made here are good for"),
    works(
        "cipher-suites",
        List,
        "",
        "Cipher suites to use below TLS 1.3 (default: all that are safe)",
    ),
    works("tls-min-version", Choice(&["", "TLS1.2", "TLS1.3"]), "TLS1.2", "Oldest version of TLS"),
    works("tls-max-version", Choice(&["", "TLS1.2", "TLS1.3"]), "", "Newest version of TLS"),
];

const USERS: &[Flag] = &[
    works(
        "auth-token",
        Text,
        "simple",
        "Tokens of users: simple, or jwt,sign-method=RS256,pub-key=FILE,priv-key=FILE,ttl=5m",
    ),
    works("auth-token-ttl", Uint, "300", "Time until an unused token ends, in seconds"),
    works("bcrypt-cost", Uint, "10", "Cost of a password's hash, 4 to 31"),
];

const LIMITS: &[Flag] = &[
    works(
        "quota-backend-bytes",
        Int,
        "0",
        "Space for data in bytes; 0 for 2 GiB, negative for no bound",
    ),
    works("max-txn-ops", Uint, "128", "Operations in one transaction, at most"),
    works("max-request-bytes", Uint, "1572864", "Bytes of one request, at most"),
    works("max-concurrent-streams", Uint, "4294967295", "Streams of one connection, at most"),
    works(
        "auto-compaction-mode",
        Choice(&["periodic", "revision"]),
        "periodic",
        "Forget history by age or by number of revisions",
    ),
    works(
        "auto-compaction-retention",
        Text,
        "0",
        "History to keep: hours or a duration, or revisions; 0 for all",
    ),
];

const LOGS: &[Flag] = &[
    works("listen-metrics-urls", Urls, "", "Where metrics and health are asked for besides"),
    works(
        "metrics",
        Choice(&["basic", "extensive"]),
        "basic",
        "Measure how long requests take, too: extensive",
    ),
    works("enable-grpc-gateway", Bool, "true", "Serve the JSON gateway"),
    works("log-level", Text, "info", "Lowest level of log lines: debug, info, warn, error"),
    works("log-outputs", List, "default", "Where log lines go: stderr, stdout or files"),
    works(
        "log-format",
        Choice(&["json", "console"]),
        "json",
        "Form of log lines (on a terminal: console)",
    ),
    works(
        "warning-unary-request-duration",
        Duration,
        "300ms",
        "Requests that take this long are logged",
    ),
    works("debug", Bool, "false", "Log more; as --log-level=debug"),
];

const UNSAFE: &[Flag] =
    &[works("force-new-cluster", Bool, "false", "Keep the data and forget all other members")];

const ENGINE: &str = "the store is built otherwise and has no such part";
const BY_ITSELF: &str = "the store takes care of that by itself";
const HTTP_2: &str = "the library below decides that";
const TRACING: &str = "there are no distributed traces";
const NO_V2: &str = "there is no v2 API";

const IDLE: &[Flag] = &[
    idle("enable-pprof", Bool, "false", "profiles of Go do not exist here; use perf(1)"),
    idle("snapshot-count", Uint, "10000", BY_ITSELF),
    idle("snapshot-catchup-entries", Uint, "5000", BY_ITSELF),
    idle("experimental-snapshot-catch-up-entries", Uint, "5000", BY_ITSELF),
    idle("max-snapshots", Uint, "5", "is deprecated in 3.6 and will be decommissioned in 3.8"),
    idle("max-wals", Uint, "5", BY_ITSELF),
    idle("pre-vote", Bool, "true", "it is always on"),
    idle("initial-election-tick-advance", Bool, "true", BY_ITSELF),
    idle("backend-bbolt-freelist-type", Text, "map", ENGINE),
    idle("backend-batch-interval", Duration, "", ENGINE),
    idle("backend-batch-limit", Int, "0", ENGINE),
    idle("compaction-batch-limit", Int, "1000", ENGINE),
    idle("compaction-sleep-interval", Duration, "10ms", ENGINE),
    idle("bootstrap-defrag-threshold-megabytes", Uint, "0", "space returns by itself"),
    idle("memory-mlock", Bool, "false", ENGINE),
    idle("experimental-txn-mode-write-with-shared-buffer", Bool, "true", ENGINE),
    idle("grpc-keepalive-min-time", Duration, "5s", HTTP_2),
    idle("grpc-keepalive-interval", Duration, "2h", HTTP_2),
    idle("grpc-keepalive-timeout", Duration, "20s", HTTP_2),
    idle("raft-read-timeout", Duration, "5s", BY_ITSELF),
    idle("raft-write-timeout", Duration, "5s", BY_ITSELF),
    idle("socket-reuse-port", Bool, "false", "a port has one listener"),
    idle("socket-reuse-address", Bool, "false", "it is always on"),
    idle("client-cert-file", Text, "", "this member is no client of itself"),
    idle("client-key-file", Text, "", "this member is no client of itself"),
    idle(
        "peer-skip-client-san-verification",
        Bool,
        "false",
        "no member is turned away for the address that it calls from",
    ),
    idle("cors", Text, "*", "the gateway serves no browsers"),
    idle("host-whitelist", List, "*", "the gateway serves no browsers"),
    idle("logger", Text, "zap", "see --log-format"),
    idle("log-package-levels", Text, "", "see --log-level"),
    idle("enable-log-rotation", Bool, "false", "let the machine's logrotate or journal do that"),
    idle("log-rotation-config-json", Text, "", "let the machine's logrotate or journal do that"),
    idle("enable-v2", Bool, "false", NO_V2),
    idle("experimental-enable-v2v3", Text, "", NO_V2),
    idle(
        "v2-deprecation",
        Choice(&["", "write-only", "write-only-drop-data", "gone"]),
        "",
        "is deprecated and scheduled for removal in v3.8. The default value is enforced, ignoring user input",
    ),
    idle("enable-lease-checkpoint", Bool, "false", "a new leader gives leases their whole time"),
    idle(
        "enable-lease-checkpoint-persist",
        Bool,
        "false",
        "a new leader gives leases their whole time",
    ),
    idle("stop-grpc-service-on-defrag", Bool, "false", "nothing stops for a defragmentation"),
    idle("downgrade-check-time", Duration, "5s", "there is no downgrade"),
    idle("warning-apply-duration", Duration, "100ms", "see --warning-unary-request-duration"),
    idle("enable-distributed-tracing", Bool, "false", TRACING),
    idle("distributed-tracing-address", Text, "localhost:4317", TRACING),
    idle("distributed-tracing-service-name", Text, "etcd", TRACING),
    idle("distributed-tracing-instance-id", Text, "", TRACING),
    idle("distributed-tracing-sampling-rate", Int, "0", TRACING),
    idle("unsafe-no-fsync", Bool, "false", "what is acknowledged is on the disk"),
    idle("discovery-fallback", Text, "exit", "a member that finds no others ends"),
    idle("discovery-proxy", Text, "", NO_V2),
    idle("proxy-failure-wait", Uint, "5000", NO_V2),
    idle("proxy-refresh-interval", Uint, "30000", NO_V2),
    idle("proxy-dial-timeout", Uint, "1000", NO_V2),
    idle("proxy-write-timeout", Uint, "5000", NO_V2),
    idle("proxy-read-timeout", Uint, "0", NO_V2),
    // Of etcd 0.4, which every release since has taken without a word.
    idle("cluster-active-size", Text, "", NO_V2),
    idle("cluster-remove-delay", Text, "", NO_V2),
    idle("cluster-sync-interval", Text, "", NO_V2),
    idle("config", Text, "", NO_V2),
    idle("force", Text, "", NO_V2),
    idle("max-result-buffer", Text, "", NO_V2),
    idle("max-retry-attempts", Text, "", NO_V2),
    idle("peer-heartbeat-interval", Text, "", NO_V2),
    idle("peer-election-timeout", Text, "", NO_V2),
    idle("retry-interval", Text, "", NO_V2),
    idle("snapshot", Text, "", NO_V2),
    idle("v", Text, "", NO_V2),
    idle("vv", Text, "", NO_V2),
];

const LIST_THEM: &str =
    "list the members with --initial-cluster, or see --discovery-endpoints and --discovery-srv";

const REFUSED: &[Flag] = &[
    refused("discovery", Text, LIST_THEM),
    refused("proxy", Choice(&["off"]), "point clients at the members"),
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_unique_and_defaults_fit() {
        let mut names = std::collections::HashSet::new();
        for flag in GROUPS.iter().flat_map(|(_, flags)| *flags) {
            assert!(names.insert(flag.name), "{} twice", flag.name);
            if !flag.default.is_empty() {
                super::super::flags::check(flag, flag.default).unwrap();
            }
        }
    }

    #[test]
    fn names_that_have_graduated_are_known_by_both() {
        assert_eq!(
            find("experimental-watch-progress-notify-interval").unwrap().name,
            "watch-progress-notify-interval"
        );
        assert_eq!(find("experimental-enable-v2v3").unwrap().name, "experimental-enable-v2v3");
        assert!(find("experimental").is_none() && find("").is_none());
    }
}
