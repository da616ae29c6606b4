//! Requests that flow in the background and are counted, while the demo changes things.

use super::http;
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

/// How many requests are on their way at a time.
const THREADS: usize = 2;
/// The pause of each thread between two requests.
const PAUSE: Duration = Duration::from_millis(5);

/// What became of the requests.
#[derive(Debug, Default)]
pub struct Tally {
    /// Answers by the version that gave them.
    pub versions: BTreeMap<String, usize>,
    /// Why requests failed.
    pub failures: Vec<String>,
}

impl Tally {
    /// How many requests were answered.
    pub fn answered(&self) -> usize {
        self.versions.values().sum()
    }
}

/// Requests that flow until they are told to stop.
pub struct Traffic {
    stop: Arc<AtomicBool>,
    threads: Vec<JoinHandle<Tally>>,
}

impl Traffic {
    /// Starts to ask `GET /` of `address`.
    pub fn start(address: SocketAddr) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let threads = (0..THREADS)
            .map(|_| {
                let stop = stop.clone();
                std::thread::spawn(move || flow(address, &stop))
            })
            .collect();
        Self { stop, threads }
    }

    /// Stops and counts.
    pub fn stop(mut self) -> Tally {
        self.stop.store(true, Ordering::SeqCst);
        let mut all = Tally::default();
        for thread in self.threads.drain(..) {
            match thread.join() {
                Ok(tally) => {
                    for (version, count) in tally.versions {
                        *all.versions.entry(version).or_default() += count;
                    }
                    all.failures.extend(tally.failures);
                }
                Err(_) => all.failures.push("a thread of the traffic ended early".to_owned()),
            }
        }
        all
    }
}

impl Drop for Traffic {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::SeqCst);
    }
}

fn flow(address: SocketAddr, stop: &AtomicBool) -> Tally {
    let mut tally = Tally::default();
    while !stop.load(Ordering::SeqCst) {
        match http::ask("GET", address, "/") {
            Ok(page) => {
                let version = page["version"].as_str().unwrap_or("?").to_owned();
                *tally.versions.entry(version).or_default() += 1;
            }
            Err(error) => tally.failures.push(format!("{error:#}")),
        }
        std::thread::sleep(PAUSE);
    }
    tally
}
