//! What the door counts, and `/metrics` in Prometheus' text format.

use crate::method::{Kind, Method};
use std::fmt::Write as _;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::time::Instant;
use tonic::Code;

/// gRPC knows 17 codes.
const CODES: usize = 17;

/// The names of the codes, by number, as grpc-go writes them.
const CODE_NAMES: [&str; CODES] = [
    "OK",
    "Canceled",
    "Unknown",
    "InvalidArgument",
    "DeadlineExceeded",
    "NotFound",
    "AlreadyExists",
    "PermissionDenied",
    "ResourceExhausted",
    "FailedPrecondition",
    "Aborted",
    "OutOfRange",
    "Unimplemented",
    "Internal",
    "Unavailable",
    "DataLoss",
    "Unauthenticated",
];

/// The bounds of how long calls take, in seconds: Prometheus' own.
const BUCKETS: [f64; 11] = [0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0];

/// The counters of one method.
#[derive(Debug, Default)]
struct Counters {
    started: AtomicU64,
    /// Of streams only: a unary call receives one message and sends one if it succeeds.
    received: AtomicU64,
    sent: AtomicU64,
    handled: [AtomicU64; CODES],
    /// How many took at most how long; only when much is measured.
    took: [AtomicU64; BUCKETS.len()],
    /// Together, in microseconds.
    spent: AtomicU64,
}

/// All counters of a door.
#[derive(Debug)]
pub(crate) struct Metrics {
    /// Whether the time of calls is measured.
    extensive: bool,
    methods: Vec<Counters>,
    received_bytes: AtomicU64,
    sent_bytes: AtomicU64,
    pub(crate) watchers: AtomicI64,
    pub(crate) watch_streams: AtomicI64,
    pub(crate) events: AtomicU64,
    pub(crate) leader_changes: AtomicU64,
    pub(crate) health_ok: AtomicU64,
    pub(crate) health_failed: AtomicU64,
}

/// Adds to a counter.
pub(crate) fn add(counter: &AtomicU64, n: u64) {
    counter.fetch_add(n, Ordering::Relaxed);
}

impl Metrics {
    pub(crate) fn new(extensive: bool) -> Self {
        Self {
            extensive,
            methods: Method::ALL.iter().map(|_| Counters::default()).collect(),
            received_bytes: AtomicU64::new(0),
            sent_bytes: AtomicU64::new(0),
            watchers: AtomicI64::new(0),
            watch_streams: AtomicI64::new(0),
            events: AtomicU64::new(0),
            leader_changes: AtomicU64::new(0),
            health_ok: AtomicU64::new(0),
            health_failed: AtomicU64::new(0),
        }
    }

    /// A call begins, now.
    pub(crate) fn started(&self, method: Method) -> Instant {
        add(&self.methods[method as usize].started, 1);
        Instant::now()
    }

    /// A call that began then has ended.
    pub(crate) fn handled(&self, method: Method, code: Code, began: Instant) {
        let counters = &self.methods[method as usize];
        if let Some(counter) = counters.handled.get(code as usize) {
            add(counter, 1);
        }
        if self.extensive {
            let spent = began.elapsed();
            add(&counters.spent, u64::try_from(spent.as_micros()).unwrap_or(u64::MAX));
            let bucket = BUCKETS.iter().position(|most| spent.as_secs_f64() <= *most);
            if let Some(counter) = bucket.and_then(|at| counters.took.get(at)) {
                add(counter, 1);
            }
        }
    }

    /// How long calls of each method took, where there were some.
    fn times(&self, out: &mut String) {
        let name = "grpc_server_handling_seconds";
        family(
            out,
            name,
            "histogram",
            "Histogram of response latency (seconds) of gRPC that had been application-level handled by the server.",
        );
        for (method, counters) in Method::ALL.iter().zip(&self.methods) {
            let load = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
            let all: u64 = counters.handled.iter().map(load).sum();
            if all == 0 {
                continue;
            }
            let row = method.row();
            let labels = format!(
                "grpc_method=\"{}\",grpc_service=\"{}\",grpc_type=\"{}\"",
                row.name,
                row.service,
                row.kind.label()
            );
            let mut sum = 0;
            for (most, counter) in BUCKETS.iter().zip(&counters.took) {
                sum += load(counter);
                let _ = writeln!(out, "{name}_bucket{{{labels},le=\"{most}\"}} {sum}");
            }
            let _ = writeln!(out, "{name}_bucket{{{labels},le=\"+Inf\"}} {all}");
            let _ = writeln!(out, "{name}_sum{{{labels}}} {}", load(&counters.spent) as f64 / 1e6);
            let _ = writeln!(out, "{name}_count{{{labels}}} {all}");
        }
    }

    /// A message of `bytes` came.
    pub(crate) fn received(&self, method: Method, bytes: usize) {
        add(&self.received_bytes, bytes as u64);
        if method.row().kind == Kind::BidiStream {
            add(&self.methods[method as usize].received, 1);
        }
    }

    /// Messages of together `bytes` went.
    pub(crate) fn sent(&self, method: Method, messages: u64, bytes: usize) {
        add(&self.sent_bytes, bytes as u64);
        if method.row().kind != Kind::Unary {
            add(&self.methods[method as usize].sent, messages);
        }
    }

    /// The counters of the methods and of the watches.
    pub(crate) fn render(&self, out: &mut String) {
        let load = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        family(
            out,
            "grpc_server_started_total",
            "counter",
            "Total number of RPCs started on the server.",
        );
        self.each(out, "grpc_server_started_total", |_, c| load(&c.started));
        family(
            out,
            "grpc_server_msg_received_total",
            "counter",
            "Total number of RPC stream messages received on the server.",
        );
        self.each(out, "grpc_server_msg_received_total", |method, c| match method.row().kind {
            Kind::BidiStream => load(&c.received),
            _ => load(&c.started),
        });
        family(
            out,
            "grpc_server_msg_sent_total",
            "counter",
            "Total number of gRPC stream messages sent by the server.",
        );
        self.each(out, "grpc_server_msg_sent_total", |method, c| match method.row().kind {
            Kind::Unary => load(&c.handled[0]),
            _ => load(&c.sent),
        });
        family(
            out,
            "grpc_server_handled_total",
            "counter",
            "Total number of RPCs completed on the server, regardless of success or failure.",
        );
        for (method, counters) in Method::ALL.iter().zip(&self.methods) {
            let row = method.row();
            for (name, counter) in CODE_NAMES.iter().zip(&counters.handled) {
                let value = load(counter);
                // The zero of OK is there from the start, so that rates begin at the first call.
                if value > 0 || *name == "OK" {
                    let _ = writeln!(
                        out,
                        "grpc_server_handled_total{{grpc_code=\"{name}\",grpc_method=\"{}\",grpc_service=\"{}\",grpc_type=\"{}\"}} {value}",
                        row.name,
                        row.service,
                        row.kind.label()
                    );
                }
            }
        }
        if self.extensive {
            self.times(out);
        }
        counter(
            out,
            "etcd_network_client_grpc_received_bytes_total",
            "The total number of bytes received from grpc clients.",
            load(&self.received_bytes),
        );
        counter(
            out,
            "etcd_network_client_grpc_sent_bytes_total",
            "The total number of bytes sent to grpc clients.",
            load(&self.sent_bytes),
        );
        gauge(
            out,
            "etcd_debugging_mvcc_watch_stream_total",
            "Total number of watch streams.",
            self.watch_streams.load(Ordering::Relaxed),
        );
        gauge(
            out,
            "etcd_debugging_mvcc_watcher_total",
            "Total number of watchers.",
            self.watchers.load(Ordering::Relaxed),
        );
        counter(
            out,
            "etcd_debugging_mvcc_events_total",
            "Total number of events sent by this member.",
            load(&self.events),
        );
        counter(
            out,
            "etcd_server_health_success",
            "The total number of successful health checks",
            load(&self.health_ok),
        );
        counter(
            out,
            "etcd_server_health_failures",
            "The total number of failed health checks",
            load(&self.health_failed),
        );
    }

    fn each(&self, out: &mut String, name: &str, value: impl Fn(Method, &Counters) -> u64) {
        for (method, counters) in Method::ALL.iter().zip(&self.methods) {
            let row = method.row();
            let _ = writeln!(
                out,
                "{name}{{grpc_method=\"{}\",grpc_service=\"{}\",grpc_type=\"{}\"}} {}",
                row.name,
                row.service,
                row.kind.label(),
                value(*method, counters)
            );
        }
    }
}

fn family(out: &mut String, name: &str, kind: &str, help: &str) {
    let _ = writeln!(out, "# HELP {name} {help}\n# TYPE {name} {kind}");
}

/// A family with one number that grows.
pub(crate) fn counter(out: &mut String, name: &str, help: &str, value: u64) {
    family(out, name, "counter", help);
    let _ = writeln!(out, "{name} {value}");
}

/// A family with one number.
pub(crate) fn gauge(out: &mut String, name: &str, help: &str, value: impl std::fmt::Display) {
    family(out, name, "gauge", help);
    let _ = writeln!(out, "{name} {value}");
}

/// A family with one row and labels.
pub(crate) fn labelled(out: &mut String, name: &str, help: &str, labels: &[(&str, &str)]) {
    family(out, name, "gauge", help);
    let labels: Vec<_> = labels.iter().map(|(k, v)| format!("{k}=\"{v}\"")).collect();
    let _ = writeln!(out, "{name}{{{}}} 1", labels.join(","));
}

/// What the kernel tells about this process. Left out where it tells nothing.
pub(crate) fn process(out: &mut String) {
    let ticks = 100.0; // USER_HZ, fixed by the kernel's interface to user space
    if let Ok(stat) = std::fs::read_to_string("/proc/self/stat")
        && let Some((_, rest)) = stat.rsplit_once(") ")
    {
        let fields: Vec<u64> = rest.split(' ').map(|f| f.parse().unwrap_or(0)).collect();
        if let (Some(user), Some(system), Some(start), Some(vsize), Some(rss)) =
            (fields.get(11), fields.get(12), fields.get(19), fields.get(20), fields.get(21))
        {
            family(
                out,
                "process_cpu_seconds_total",
                "counter",
                "Total user and system CPU time spent in seconds.",
            );
            let _ = writeln!(out, "process_cpu_seconds_total {}", (user + system) as f64 / ticks);
            gauge(
                out,
                "process_resident_memory_bytes",
                "Resident memory size in bytes.",
                rss * 4096,
            );
            gauge(out, "process_virtual_memory_bytes", "Virtual memory size in bytes.", vsize);
            if let Some(boot) = boot_time() {
                gauge(
                    out,
                    "process_start_time_seconds",
                    "Start time of the process since unix epoch in seconds.",
                    boot as f64 + *start as f64 / ticks,
                );
            }
        }
    }
    let open = std::fs::read_dir("/proc/self/fd").map(Iterator::count).unwrap_or(0);
    gauge(out, "process_open_fds", "Number of open file descriptors.", open);
    gauge(out, "os_fd_used", "The number of used file descriptors.", open);
    if let Ok(limits) = std::fs::read_to_string("/proc/self/limits")
        && let Some(line) = limits.lines().find(|l| l.starts_with("Max open files"))
        && let Some(soft) = line.split_whitespace().nth(3)
    {
        gauge(out, "process_max_fds", "Maximum number of open file descriptors.", soft);
        gauge(out, "os_fd_limit", "The file descriptor limit.", soft);
    }
}

fn boot_time() -> Option<u64> {
    let stat = std::fs::read_to_string("/proc/stat").ok()?;
    stat.lines().find_map(|l| l.strip_prefix("btime "))?.trim().parse().ok()
}
