//! Which pod has to go when the disk is nearly full. Follows the kubelet's order.
//!
//! Images are not deleted to make room, as the kubelet would: there is no registry to get them back
//! from.

use super::observe::Disk;
use crate::registry::PodEntry;
use crate::world::World;
use dhow_reason::{Code, Reason};
use std::path::Path;

/// What lies at or above this priority is the system's own and stays (upstream's
/// `SystemCriticalPriority`).
const CRITICAL: i32 = 2_000_000_000;

/// A pod that has to go.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Eviction {
    /// Its uid.
    pub uid: String,
    /// For people.
    pub message: String,
    /// As data.
    pub reason: Reason,
}

/// A pod that runs, and what it takes.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Candidate {
    name: String,
    entry: PodEntry,
    /// Bytes on the disk.
    used: u64,
}

impl Candidate {
    /// Bytes that it asked for.
    fn requested(&self) -> i64 {
        self.entry.usage.amount("ephemeral-storage")
    }
}

/// The pod that has to go, if one may; `None` while the disk has room. Reads the disk for long.
pub fn choose(world: &World) -> Option<Eviction> {
    let disk = Disk::of(&world.config.data_dir).filter(Disk::is_short)?;
    let measured = world.registry.pods().into_iter().map(|((namespace, name), entry)| {
        let logs = world.log_dir(&namespace, &name, &entry.uid);
        let used = size(&world.pod_dir(&entry.uid)) + size(&logs);
        Candidate { name: format!("{namespace}/{name}"), entry, used }
    });
    let chosen = greediest(measured.collect())?;
    Some(verdict(&world.config.node_name, &disk, &chosen))
}

/// The first to go: who uses more than it requests before who does not, then by priority, then by how
/// much.
fn greediest(candidates: Vec<Candidate>) -> Option<Candidate> {
    let may_go = |c: &Candidate| c.entry.active && c.entry.priority < CRITICAL;
    candidates.into_iter().filter(may_go).max_by_key(|c| {
        let beyond = i128::from(c.used) - i128::from(c.requested());
        (beyond > 0, std::cmp::Reverse(c.entry.priority), beyond)
    })
}

fn verdict(node: &str, disk: &Disk, pod: &Candidate) -> Eviction {
    let (available, threshold) = (disk.space.1, disk.threshold());
    let (used, requested) = (pod.used, pod.requested());
    let message = format!(
        "The node was low on resource: ephemeral-storage. Threshold quantity: {threshold}, available: {available}. Pod was using {used}, request is {requested}."
    );
    let cause = Reason::new(Code::DiskFull, format!("node {node}"))
        .with("available", available)
        .with("threshold", threshold);
    let reason = Reason::new(Code::Evicted, format!("pod {}", pod.name))
        .with("used", used)
        .with("requested", requested)
        .because(cause);
    Eviction { uid: pod.entry.uid.clone(), message, reason }
}

/// Bytes that a directory takes on its disk. What vanishes meanwhile takes none.
fn size(directory: &Path) -> u64 {
    use std::os::unix::fs::MetadataExt;
    let entries = std::fs::read_dir(directory).into_iter().flatten().flatten();
    let sizes = entries.map(|entry| match entry.metadata() {
        Ok(meta) if meta.is_dir() => size(&entry.path()) + meta.blocks() * 512,
        Ok(meta) => meta.blocks() * 512,
        Err(_) => 0,
    });
    sizes.sum()
}

#[cfg(test)]
mod tests {
    use super::*;
    use dhow_fit::Usage;

    fn candidate(name: &str, used: u64, requested: i64, priority: i32) -> Candidate {
        let entry = PodEntry {
            uid: name.into(),
            active: true,
            usage: Usage {
                amounts: [("ephemeral-storage".to_owned(), requested)].into(),
                ..Usage::default()
            },
            priority,
            ..PodEntry::default()
        };
        Candidate { name: format!("shop/{name}"), entry, used }
    }

    fn first(candidates: &[Candidate]) -> Option<String> {
        greediest(candidates.to_vec()).map(|c| c.entry.uid)
    }

    #[test]
    fn who_uses_more_than_it_asked_for_goes_first() {
        let modest = candidate("modest", 900, 1000, -5);
        let little = candidate("little", 20, 10, 5);
        let greedy = candidate("greedy", 500, 10, 5);
        let least = candidate("least", 11, 10, 0);
        assert_eq!(first(&[modest.clone(), little.clone()]).unwrap(), "little");
        assert_eq!(first(&[modest.clone(), little.clone(), greedy.clone()]).unwrap(), "greedy");
        assert_eq!(first(&[modest.clone(), little, greedy, least]).unwrap(), "least");
        assert_eq!(first(&[modest]).unwrap(), "modest");
    }

    #[test]
    fn what_has_ended_and_what_the_system_needs_stays() {
        let mut ended = candidate("ended", 500, 0, 0);
        ended.entry.active = false;
        assert_eq!(first(&[ended, candidate("system", 500, 0, CRITICAL)]), None);
    }

    #[test]
    fn the_verdict_has_its_evidence() {
        let disk = Disk { space: (1000, 40), files: (0, 0) };
        let found = verdict("n1", &disk, &candidate("web", 500, 10, 0));
        assert_eq!(
            found.reason.to_string(),
            "Evicted: pod shop/web: requested 10, used 500; because DiskFull: node n1: available 40, threshold 50"
        );
    }

    #[test]
    fn a_directory_takes_what_its_files_do() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join("a")).unwrap();
        std::fs::write(dir.path().join("a/b"), vec![1; 100_000]).unwrap();
        std::os::unix::fs::symlink("/usr", dir.path().join("elsewhere")).unwrap();
        let size = size(dir.path());
        assert!((100_000..200_000).contains(&size), "{size}");
        assert_eq!(super::size(&dir.path().join("none")), 0);
    }
}
