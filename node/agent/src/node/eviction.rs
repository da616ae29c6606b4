//! Which pod has to go: when the disk is nearly full, in the kubelet's order, and when a pod takes more
//! of it than it may.
//!
//! Images are not deleted to make room, as the kubelet would: there is no registry to get them back
//! from.

use super::observe::Disk;
use crate::pods::resources::StorageLimits;
use crate::registry::PodEntry;
use crate::world::World;
use dhow_objects::quantity::Quantity;
use dhow_reason::{Code, Reason};
use std::os::unix::fs::MetadataExt;
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

/// The pods that take more of the disk than they may. Reads what those that have a limit wrote.
pub fn overdrawn(world: &World) -> Vec<Eviction> {
    let limited =
        |entry: &PodEntry| entry.active && entry.storage_limits != StorageLimits::default();
    let pods = world.registry.pods().into_iter().filter(|(_, entry)| limited(entry));
    pods.filter_map(|((namespace, name), entry)| {
        let logs = world.log_dir(&namespace, &name, &entry.uid);
        let excess = excess(&entry.storage_limits, |part| match part {
            Part::Volume(volume) => size(&world.volume_dir(&entry.uid, volume)),
            Part::Container(container) => {
                size(&world.container_dir(&entry.uid, container)) + size(&logs.join(container))
            }
            Part::Pod => size(&world.pod_dir(&entry.uid)) + size(&logs),
        })?;
        let reason = Reason::new(Code::Evicted, format!("pod {namespace}/{name}"))
            .with("used", excess.used)
            .with("limit", excess.limit);
        Some(Eviction { uid: entry.uid, message: excess.message, reason })
    })
    .collect()
}

/// What a limit is about.
enum Part<'a> {
    Volume(&'a str),
    Container(&'a str),
    Pod,
}

/// A limit that is exceeded.
#[derive(Debug, PartialEq, Eq)]
struct Excess {
    message: String,
    used: u64,
    limit: u64,
}

/// The first limit that is exceeded, in upstream's order and words.
fn excess(limits: &StorageLimits, used: impl Fn(Part<'_>) -> u64) -> Option<Excess> {
    let written = |limit: u64| Quantity::from_bytes(i64::try_from(limit).unwrap_or(i64::MAX));
    let over = |part: Part<'_>, limit: u64, message: String| {
        let used = used(part);
        (used > limit).then_some(Excess { message, used, limit })
    };
    let volume = limits.volumes.iter().find_map(|(name, limit)| {
        let told = format!(
            "Usage of EmptyDir volume {name:?} exceeds the limit \"{}\". ",
            written(*limit)
        );
        over(Part::Volume(name), *limit, told)
    });
    // Without a limit nothing of it is read.
    let pod = || {
        if limits.pod == 0 {
            return None;
        }
        let told = format!(
            "Pod ephemeral local storage usage exceeds the total limit of containers {}. ",
            written(limits.pod)
        );
        over(Part::Pod, limits.pod, told)
    };
    let container = || {
        limits.containers.iter().find_map(|(name, limit)| {
            let told = format!(
                "Container {name} exceeded its local ephemeral storage limit \"{}\". ",
                written(*limit)
            );
            over(Part::Container(name), *limit, told)
        })
    };
    volume.or_else(pod).or_else(container)
}

/// Bytes that a directory takes on its disk: not what is mounted below. What vanishes meanwhile takes
/// none.
fn size(directory: &Path) -> u64 {
    std::fs::metadata(directory).map_or(0, |meta| below(directory, meta.dev()))
}

fn below(directory: &Path, disk: u64) -> u64 {
    let entries = std::fs::read_dir(directory).into_iter().flatten().flatten();
    let sizes = entries.filter_map(|entry| entry.metadata().ok().map(|meta| (entry, meta)));
    sizes
        .filter(|(_, meta)| meta.dev() == disk)
        .map(|(entry, meta)| {
            let more = if meta.is_dir() { below(&entry.path(), disk) } else { 0 };
            more + meta.blocks() * 512
        })
        .sum()
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
    fn a_pod_that_takes_more_than_it_may_is_told_of_the_first_limit() {
        let limits = StorageLimits {
            volumes: vec![("scratch".into(), 1 << 20)],
            containers: vec![("main".into(), 4 << 20)],
            pod: 8 << 20,
        };
        let found = |volume: u64, container: u64, pod: u64| {
            let used = |part: Part<'_>| match part {
                Part::Volume(_) => volume,
                Part::Container(_) => container,
                Part::Pod => pod,
            };
            excess(&limits, used).map(|excess| excess.message)
        };
        assert_eq!(found(1 << 20, 4 << 20, 8 << 20), None);
        let told = found((1 << 20) + 1, 0, 9 << 20).unwrap();
        assert_eq!(told, "Usage of EmptyDir volume \"scratch\" exceeds the limit \"1Mi\". ");
        let told = found(0, 5 << 20, 9 << 20).unwrap();
        assert!(told.ends_with("exceeds the total limit of containers 8Mi. "), "{told}");
        let told = found(0, 5 << 20, 5 << 20).unwrap();
        assert_eq!(told, "Container main exceeded its local ephemeral storage limit \"4Mi\". ");
        let none = StorageLimits { containers: vec![("main".into(), 9)], ..Default::default() };
        assert_eq!(excess(&none, |_| 9), None, "no limit of the pod is none");
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
