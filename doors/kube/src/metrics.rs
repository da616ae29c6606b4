//! Counters in Prometheus' text format.

use crate::path::{Query, Target};
use crate::respond::{self, Body};
use dhow_state::State;
use http::{Method, Response};
use std::collections::BTreeMap;
use std::fmt::Write;
use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

/// Upper bounds of the latency histogram, in seconds.
const BOUNDS: [f64; 12] = [0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 5.0, 30.0];

/// What a request is counted under.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Label {
    verb: String,
    group: String,
    resource: String,
    subresource: String,
    long: bool,
}

#[derive(Debug, Default, Clone)]
struct Latency {
    buckets: [u64; BOUNDS.len()],
    sum: f64,
    count: u64,
}

#[derive(Debug, Default)]
struct Counts {
    requests: BTreeMap<(Label, u16), u64>,
    latencies: BTreeMap<Label, Latency>,
}

/// The door's counters.
#[derive(Debug, Default)]
pub struct Metrics {
    counts: Mutex<Counts>,
    watchers: Arc<AtomicI64>,
}

/// Counts one watcher for as long as it lives.
#[derive(Debug)]
pub struct WatcherGuard(Arc<AtomicI64>);

impl Drop for WatcherGuard {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Metrics {
    /// What a request is counted under. Names that clients make up are not taken over, so that
    /// the number of series stays bounded.
    pub fn label(&self, method: &Method, target: &Target, query: &Query) -> Label {
        let mut label = Label {
            verb: method.as_str().to_owned(),
            group: String::new(),
            resource: String::new(),
            subresource: String::new(),
            long: false,
        };
        if !matches!(
            *method,
            Method::GET
                | Method::HEAD
                | Method::POST
                | Method::PUT
                | Method::PATCH
                | Method::DELETE
        ) {
            label.verb = "OTHER".to_owned();
        }
        if let Target::Resource(path) = target {
            if crate::catalog::find(&path.group, &path.version, &path.resource).is_err() {
                label.resource = "unknown".to_owned();
                return label;
            }
            label.group.clone_from(&path.group);
            label.resource.clone_from(&path.resource);
            let known = dhow_objects::kinds::find(&path.group, &path.version, &path.resource)
                .is_some_and(|kind| kind.subresource(&path.subresource).is_some());
            if known {
                label.subresource.clone_from(&path.subresource);
            }
            if *method == Method::GET {
                if path.subresource.is_empty() && (path.watch || query.flag("watch")) {
                    label.verb = "WATCH".to_owned();
                    label.long = true;
                } else if path.name.is_none() {
                    label.verb = "LIST".to_owned();
                }
            }
            label.long |= matches!(
                path.subresource.as_str(),
                "log" | "exec" | "attach" | "portforward" | "proxy"
            );
        }
        label
    }

    /// Counts an answered request.
    pub fn answered(&self, label: Label, code: u16, took: Duration) {
        let Ok(mut counts) = self.counts.lock() else { return };
        *counts.requests.entry((label.clone(), code)).or_default() += 1;
        if label.long {
            return;
        }
        let latency = counts.latencies.entry(label).or_default();
        let seconds = took.as_secs_f64();
        latency.sum += seconds;
        latency.count += 1;
        for (bucket, bound) in latency.buckets.iter_mut().zip(BOUNDS) {
            if seconds <= bound {
                *bucket += 1;
            }
        }
    }

    /// Counts a watcher until the guard is dropped.
    pub fn watcher(&self) -> WatcherGuard {
        self.watchers.fetch_add(1, Ordering::Relaxed);
        WatcherGuard(self.watchers.clone())
    }

    /// `/metrics`.
    pub fn text(&self, state: &State) -> Response<Body> {
        let mut out = String::with_capacity(16 * 1024);
        // Writing into a String does not fail.
        let _ = self.write(&mut out, state);
        respond::reply(200, "text/plain; version=0.0.4; charset=utf-8", out)
    }

    fn write(&self, out: &mut String, state: &State) -> std::fmt::Result {
        head(
            out,
            "apiserver_request_total",
            "counter",
            "Requests answered, by verb, resource and code.",
        )?;
        let counts = match self.counts.lock() {
            Ok(counts) => counts,
            Err(poisoned) => poisoned.into_inner(),
        };
        for ((label, code), count) in &counts.requests {
            writeln!(out, "apiserver_request_total{{{},code=\"{code}\"}} {count}", labels(label))?;
        }
        let name = "apiserver_request_duration_seconds";
        head(out, name, "histogram", "Seconds to answer requests that are not streams.")?;
        for (label, latency) in &counts.latencies {
            let labels = labels(label);
            for (bucket, bound) in latency.buckets.iter().zip(BOUNDS) {
                writeln!(out, "{name}_bucket{{{labels},le=\"{bound}\"}} {bucket}")?;
            }
            writeln!(out, "{name}_bucket{{{labels},le=\"+Inf\"}} {}", latency.count)?;
            writeln!(out, "{name}_sum{{{labels}}} {}", latency.sum)?;
            writeln!(out, "{name}_count{{{labels}}} {}", latency.count)?;
        }
        drop(counts);
        head(out, "apiserver_registered_watchers", "gauge", "Watches that are open.")?;
        writeln!(out, "apiserver_registered_watchers {}", self.watchers.load(Ordering::Relaxed))?;
        head(out, "dhow_store_revision", "gauge", "The store's revision that reads see.")?;
        writeln!(out, "dhow_store_revision {}", state.revision())?;
        process(out)
    }
}

fn head(out: &mut String, name: &str, kind: &str, help: &str) -> std::fmt::Result {
    writeln!(out, "# HELP {name} {help}\n# TYPE {name} {kind}")
}

fn labels(label: &Label) -> String {
    // None of these can hold a quote: they come from the server's own tables.
    format!(
        "verb=\"{}\",group=\"{}\",resource=\"{}\",subresource=\"{}\"",
        label.verb, label.group, label.resource, label.subresource
    )
}

/// This process's memory and processor time, as `/proc` tells them.
fn process(out: &mut String) -> std::fmt::Result {
    if let Ok(statm) = std::fs::read_to_string("/proc/self/statm")
        && let Some(pages) = statm.split(' ').nth(1).and_then(|text| text.parse::<u64>().ok())
    {
        let bytes = pages * rustix::param::page_size() as u64;
        head(out, "process_resident_memory_bytes", "gauge", "Resident memory.")?;
        writeln!(out, "process_resident_memory_bytes {bytes}")?;
    }
    if let Ok(stat) = std::fs::read_to_string("/proc/self/stat")
        // The command's name may hold spaces; it ends at the last parenthesis.
        && let Some((_, rest)) = stat.rsplit_once(')')
    {
        let fields: Vec<&str> = rest.split_ascii_whitespace().collect();
        let ticks = |index: usize| fields.get(index).and_then(|text| text.parse::<f64>().ok());
        // Fields 14 and 15 of proc_pid_stat(5), counted from the state, which is field 3.
        if let (Some(user), Some(system)) = (ticks(11), ticks(12)) {
            let seconds = (user + system) / rustix::param::clock_ticks_per_second() as f64;
            head(out, "process_cpu_seconds_total", "counter", "Processor time used.")?;
            writeln!(out, "process_cpu_seconds_total {seconds}")?;
        }
    }
    if let Ok(entries) = std::fs::read_dir("/proc/self/fd") {
        head(out, "process_open_fds", "gauge", "Open descriptors.")?;
        writeln!(out, "process_open_fds {}", entries.count())?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn made_up_resources_share_one_series() {
        let metrics = Metrics::default();
        let label =
            |path: &str| metrics.label(&Method::GET, &crate::path::parse(path), &Query::default());
        assert_eq!(label("/apis/x/v1/a"), label("/apis/y/v2/b"));
        assert_eq!(label("/api/v1/pods").verb, "LIST");
    }

    #[test]
    fn watchers_are_counted_while_they_live() {
        let metrics = Metrics::default();
        let guard = metrics.watcher();
        assert_eq!(metrics.watchers.load(Ordering::Relaxed), 1);
        drop(guard);
        assert_eq!(metrics.watchers.load(Ordering::Relaxed), 0);
    }
}
