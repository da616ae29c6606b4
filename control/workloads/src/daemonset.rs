//! Daemon sets: one pod on every machine that takes it, rolled from one template to the next.
//!
//! Follows upstream's `pkg/controller/daemon` (`manage`, `rollingUpdate`).

use crate::{Note, available, controller_of, phase, ready_since, seconds, selects};
use dhow_reason::{Code, Reason};
use k8s_openapi::api::apps::v1::{ControllerRevision, DaemonSet, DaemonSetStatus};
use k8s_openapi::api::core::v1::{
    Affinity, NodeAffinity, NodeSelector, NodeSelectorRequirement, NodeSelectorTerm, Pod, PodSpec,
    Toleration,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use std::collections::BTreeMap;
use std::sync::Arc;

/// The label that tells of which template a pod is.
pub const HASH_LABEL: &str = "controller-revision-hash";
/// First and longest pause, in seconds, between replacements of pods that fail on one machine, as
/// upstream's.
const PAUSE: (i64, i64) = (1, 15 * 60);

/// A machine, as a daemon set sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Site {
    /// The node's name.
    pub node: String,
    /// The set's pod should run there.
    pub run: bool,
    /// A pod of the set that is there may stay.
    pub stay: bool,
}

/// Machines where pods of a set have failed lately: one that fails at once must not be made again
/// and again without a pause, which grows. Nobody stores it: who leads next begins anew.
#[derive(Debug, Default)]
pub struct Setbacks(BTreeMap<String, Setback>);

#[derive(Debug)]
struct Setback {
    /// When a failed pod was replaced last, seconds since the epoch.
    at: i64,
    /// Seconds until the next may be.
    pause: i64,
}

impl Setbacks {
    /// From when a failed pod of this machine may be replaced.
    fn over(&self, node: &str) -> i64 {
        self.0.get(node).map_or(i64::MIN, |setback| setback.at + setback.pause)
    }

    /// Takes note that a failed pod of this machine is replaced.
    pub fn note(&mut self, node: &str, now: i64) {
        self.0.retain(|_, setback| now - setback.at <= 2 * PAUSE.1);
        let pause = self.0.get(node).map_or(PAUSE.0, |last| (last.pause * 2).min(PAUSE.1));
        self.0.insert(node.to_owned(), Setback { at: now, pause });
    }
}

/// What to do for a daemon set.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Plan {
    /// Pods (by name) that match and have no controller: take them.
    pub adopt: Vec<String>,
    /// Pods that are owned but do not match any more: let them go.
    pub release: Vec<String>,
    /// Machines (by name) that get a pod.
    pub create: Vec<String>,
    /// Pods to delete.
    pub delete: Vec<String>,
    /// Machines whose failed pods are among them.
    pub failed: Vec<String>,
    /// What to tell about it.
    pub notes: Vec<Note>,
    /// The status as it is now.
    pub status: DaemonSetStatus,
    /// Look again at this second.
    pub again_at: Option<i64>,
}

/// The pods of one machine, oldest first.
#[derive(Default)]
struct There<'a> {
    all: Vec<&'a Arc<Pod>>,
}

fn name(pod: &Pod) -> String {
    pod.metadata.name.clone().unwrap_or_default()
}

fn created(pod: &Pod) -> i64 {
    pod.metadata.creation_timestamp.as_ref().map_or(0, seconds)
}

fn going(pod: &Pod) -> bool {
    pod.metadata.deletion_timestamp.is_some()
}

fn is_of(pod: &Pod, hash: &str) -> bool {
    pod.metadata.labels.as_ref().and_then(|l| l.get(HASH_LABEL)).is_some_and(|h| h == hash)
}

impl<'a> There<'a> {
    /// The newest living pod of this template, and of others.
    fn new_and_old(&self, hash: &str) -> (Option<&'a Arc<Pod>>, Option<&'a Arc<Pod>>) {
        let living = self.all.iter().copied().filter(|p| !going(p));
        let (new, old): (Vec<_>, Vec<_>) = living.partition(|p| is_of(p, hash));
        (new.last().copied(), old.last().copied())
    }
}

/// The machine that a pod is on, or is made for.
pub fn target(pod: &Pod) -> Option<&str> {
    let spec = pod.spec.as_ref()?;
    if let Some(node) = spec.node_name.as_deref().filter(|n| !n.is_empty()) {
        return Some(node);
    }
    let affinity = spec.affinity.as_ref()?.node_affinity.as_ref()?;
    let required = affinity.required_during_scheduling_ignored_during_execution.as_ref()?;
    let fields = required.node_selector_terms.iter().flat_map(|t| t.match_fields.iter().flatten());
    let mut named = fields.filter(|f| f.key == "metadata.name" && f.operator == "In");
    named.find_map(|f| f.values.as_ref()?.first()).map(String::as_str)
}

/// Plans for `set`, whose template has this `hash`. `pods` are all pods of its namespace; `now` is
/// in seconds since the epoch.
pub fn plan(
    set: &DaemonSet,
    hash: &str,
    pods: &[Arc<Pod>],
    sites: &[Site],
    setbacks: &Setbacks,
    now: i64,
) -> Plan {
    let mut plan = Plan::default();
    let uid = set.metadata.uid.as_deref().unwrap_or_default();
    let dying = set.metadata.deletion_timestamp.is_some();
    let mut by_node: BTreeMap<&str, There<'_>> = BTreeMap::new();
    for pod in pods {
        let matches = selects(Some(&set.spec.selector), pod.metadata.labels.as_ref());
        match controller_of(&pod.metadata) {
            Some(owner) if owner.uid == uid => {
                if !matches {
                    plan.release.push(name(pod));
                    continue;
                }
            }
            None if matches && !dying && !going(pod) => plan.adopt.push(name(pod)),
            _ => continue,
        }
        by_node.entry(target(pod).unwrap_or_default()).or_default().all.push(pod);
    }
    for there in by_node.values_mut() {
        there.all.sort_by_key(|p| (created(p), name(p)));
    }
    if !dying {
        manage(set, hash, sites, &by_node, setbacks, now, &mut plan);
        let rolls = set.spec.update_strategy.as_ref().and_then(|s| s.type_.as_deref());
        if rolls.unwrap_or("RollingUpdate") == "RollingUpdate" {
            roll(set, hash, sites, &by_node, now, &mut plan);
        }
    }
    plan.delete.sort_unstable();
    plan.delete.dedup();
    plan.create.sort_unstable();
    plan.create.dedup();
    status(set, hash, sites, &by_node, now, &mut plan);
    plan
}

fn min_ready(set: &DaemonSet) -> i64 {
    i64::from(set.spec.min_ready_seconds.unwrap_or(0))
}

/// `maxUnavailable` and `maxSurge` in machines; percentages are rounded up.
fn bounds(set: &DaemonSet, sites: &[Site]) -> (usize, usize) {
    let wanted = sites.iter().filter(|s| s.run).count();
    let rolling = set.spec.update_strategy.as_ref().and_then(|s| s.rolling_update.as_ref());
    let count = |amount: Option<&IntOrString>, default: usize| match amount {
        None => default,
        Some(IntOrString::Int(n)) => usize::try_from(*n).unwrap_or(0),
        Some(IntOrString::String(text)) => {
            let percent: usize = text.trim_end_matches('%').parse().unwrap_or(0);
            wanted.saturating_mul(percent).div_ceil(100)
        }
    };
    let surge = count(rolling.and_then(|r| r.max_surge.as_ref()), 0);
    let unavailable = count(rolling.and_then(|r| r.max_unavailable.as_ref()), 1);
    // Both at nothing would never come to an end.
    (if surge == 0 { unavailable.max(1) } else { unavailable }, surge)
}

/// A pod where one should be, none where none should be, and not more than one.
fn manage(
    set: &DaemonSet,
    hash: &str,
    sites: &[Site],
    by_node: &BTreeMap<&str, There<'_>>,
    setbacks: &Setbacks,
    now: i64,
    plan: &mut Plan,
) {
    let (_, surge) = bounds(set, sites);
    for site in sites {
        let Some(there) = by_node.get(site.node.as_str()) else {
            if site.run {
                plan.create.push(site.node.clone());
            }
            continue;
        };
        if !site.stay {
            plan.delete.extend(there.all.iter().filter(|p| !going(p)).map(|p| name(p)));
            continue;
        }
        let mut running: Vec<&Arc<Pod>> = Vec::new();
        for pod in there.all.iter().copied().filter(|p| !going(p)) {
            if phase(pod) != "Failed" {
                running.push(pod);
                continue;
            }
            let at = setbacks.over(&site.node);
            if now < at {
                plan.again_at = Some(plan.again_at.map_or(at, |known| known.min(at)));
                continue;
            }
            let of =
                format!("{}/{}", set.metadata.namespace.as_deref().unwrap_or_default(), name(pod));
            let message =
                format!("Found failed daemon pod {of} on node {}, will try to kill it", site.node);
            let status = pod.status.clone().unwrap_or_default();
            let because = Reason::new(Code::PodFailed, format!("pod {of}"))
                .with("phase", status.phase.unwrap_or_default())
                .with("reason", status.reason.unwrap_or_default())
                .with("message", status.message.unwrap_or_default());
            let because = Some(because);
            plan.notes.push(Note { kind: "Warning", reason: "FailedDaemonPod", message, because });
            plan.delete.push(name(pod));
            plan.failed.push(site.node.clone());
        }
        let surplus =
            |pods: Vec<&Arc<Pod>>| pods.into_iter().skip(1).map(|p| name(p)).collect::<Vec<_>>();
        if surge == 0 {
            plan.delete.extend(surplus(running));
            continue;
        }
        // While one template takes over from another there are two.
        let (new, old): (Vec<_>, Vec<_>) = running.into_iter().partition(|p| is_of(p, hash));
        plan.delete.extend(surplus(new));
        plan.delete.extend(surplus(old));
    }
    // Machines that are gone.
    for (node, there) in by_node {
        if !node.is_empty() && !sites.iter().any(|s| s.node == *node) {
            plan.delete.extend(there.all.iter().filter(|p| !going(p)).map(|p| name(p)));
        }
    }
}

/// Replaces pods of older templates within the bounds.
fn roll(
    set: &DaemonSet,
    hash: &str,
    sites: &[Site],
    by_node: &BTreeMap<&str, There<'_>>,
    now: i64,
    plan: &mut Plan,
) {
    let (unavailable_most, surge_most) = bounds(set, sites);
    let up = |pod: &Pod| available(pod, min_ready(set), now).is_ok();
    let (mut unavailable, mut surging) = (0, 0);
    let (mut at_once, mut in_turn) = (Vec::new(), Vec::new());
    for site in sites.iter().filter(|s| s.run) {
        let Some(there) = by_node.get(site.node.as_str()) else {
            unavailable += 1;
            continue;
        };
        match there.new_and_old(hash) {
            (None, None) => unavailable += 1,
            (Some(new), None) => unavailable += usize::from(!up(new)),
            (None, Some(old)) if up(old) => in_turn.push((site, old)),
            // What does not work anyway is replaced at once.
            (None, Some(old)) => at_once.push((site, old)),
            (Some(new), Some(old)) if up(new) => plan.delete.push(name(old)),
            (Some(_), Some(_)) => surging += 1,
        }
    }
    if surge_most > 0 {
        let left = surge_most.saturating_sub(surging);
        plan.create
            .extend(at_once.into_iter().chain(in_turn).take(left).map(|(s, _)| s.node.clone()));
    } else {
        let left = unavailable_most.saturating_sub(unavailable + at_once.len());
        let chosen = at_once.into_iter().chain(in_turn.into_iter().take(left));
        plan.delete.extend(chosen.map(|(_, pod)| name(pod)));
    }
}

fn status(
    set: &DaemonSet,
    hash: &str,
    sites: &[Site],
    by_node: &BTreeMap<&str, There<'_>>,
    now: i64,
    plan: &mut Plan,
) {
    let (mut desired, mut current, mut stray, mut ready, mut up, mut updated) = (0, 0, 0, 0, 0, 0);
    for site in sites {
        let pods = by_node.get(site.node.as_str()).map(|t| t.all.as_slice()).unwrap_or_default();
        if !site.run {
            stray += i32::from(!pods.is_empty());
            continue;
        }
        desired += 1;
        let Some(pod) = pods.iter().find(|p| !going(p)).or(pods.first()) else { continue };
        current += 1;
        updated += i32::from(is_of(pod, hash));
        if ready_since(pod).is_some() {
            ready += 1;
            match available(pod, min_ready(set), now) {
                Ok(()) => up += 1,
                Err(Some(at)) => {
                    plan.again_at = Some(plan.again_at.map_or(at, |known| known.min(at)));
                }
                Err(None) => {}
            }
        }
    }
    plan.status = DaemonSetStatus {
        desired_number_scheduled: desired,
        current_number_scheduled: current,
        number_misscheduled: stray,
        number_ready: ready,
        number_available: Some(up),
        number_unavailable: Some(desired - up),
        updated_number_scheduled: Some(updated),
        observed_generation: set.metadata.generation,
        collision_count: set.status.as_ref().and_then(|s| s.collision_count),
        conditions: set.status.as_ref().and_then(|s| s.conditions.clone()),
    };
}

/// The pod of a set for one machine, without owner.
pub fn pod(set: &DaemonSet, hash: &str, node: &str) -> Pod {
    let template = set.spec.template.clone();
    let of = template.metadata.unwrap_or_default();
    let mut labels = of.labels.unwrap_or_default();
    labels.insert(HASH_LABEL.to_owned(), hash.to_owned());
    let mut spec = template.spec.unwrap_or_default();
    tolerate(&mut spec);
    // The scheduler places it: there, and nowhere else.
    let only = NodeSelectorRequirement {
        key: "metadata.name".to_owned(),
        operator: "In".to_owned(),
        values: Some(vec![node.to_owned()]),
    };
    let affinity = spec.affinity.get_or_insert_with(Affinity::default);
    let of_nodes = affinity.node_affinity.get_or_insert_with(NodeAffinity::default);
    of_nodes.required_during_scheduling_ignored_during_execution = Some(NodeSelector {
        node_selector_terms: vec![NodeSelectorTerm {
            match_fields: Some(vec![only]),
            ..NodeSelectorTerm::default()
        }],
    });
    Pod {
        metadata: ObjectMeta {
            generate_name: Some(format!("{}-", set.metadata.name.as_deref().unwrap_or_default())),
            namespace: set.metadata.namespace.clone(),
            labels: Some(labels),
            annotations: of.annotations,
            finalizers: of.finalizers,
            ..ObjectMeta::default()
        },
        spec: Some(spec),
        status: None,
    }
}

/// Daemons stay where others are sent away: what upstream adds to their pods.
pub fn tolerate(spec: &mut PodSpec) {
    let mut all = vec![
        ("not-ready", "NoExecute"),
        ("unreachable", "NoExecute"),
        ("disk-pressure", "NoSchedule"),
        ("memory-pressure", "NoSchedule"),
        ("pid-pressure", "NoSchedule"),
        ("unschedulable", "NoSchedule"),
    ];
    if spec.host_network == Some(true) {
        all.push(("network-unavailable", "NoSchedule"));
    }
    let known = spec.tolerations.get_or_insert_with(Vec::new);
    for (key, effect) in all {
        let toleration = Toleration {
            key: Some(format!("node.kubernetes.io/{key}")),
            operator: Some("Exists".to_owned()),
            effect: Some(effect.to_owned()),
            ..Toleration::default()
        };
        if !known.contains(&toleration) {
            known.push(toleration);
        }
    }
}

/// What to do about the revisions that keep a set's templates for `kubectl rollout undo`.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct History {
    /// The newest template has no revision yet: make one with this number.
    pub create: Option<i64>,
    /// An older template came back: its revision (by name) gets this number.
    pub raise: Option<(String, i64)>,
    /// Revisions that are too old and that no pod is of.
    pub delete: Vec<String>,
}

/// Plans the history of `set`. `revisions` are all of its namespace, `pods` as in [`plan`].
pub fn history(
    set: &DaemonSet,
    hash: &str,
    revisions: &[Arc<ControllerRevision>],
    pods: &[Arc<Pod>],
) -> History {
    let uid = set.metadata.uid.as_deref().unwrap_or_default();
    let own = |meta: &ObjectMeta| controller_of(meta).is_some_and(|owner| owner.uid == uid);
    let mut all: Vec<_> = revisions.iter().filter(|r| own(&r.metadata)).collect();
    let number = |r: &ControllerRevision| r.revision.unwrap_or(0);
    all.sort_by_key(|r| number(r));
    let of = |meta: &ObjectMeta| {
        meta.labels.as_ref().and_then(|l| l.get(HASH_LABEL)).cloned().unwrap_or_default()
    };
    let newest = all.last().map_or(0, |r| number(r));
    let mut history = History::default();
    match all.iter().find(|r| of(&r.metadata) == hash) {
        None => history.create = Some(newest + 1),
        Some(found) if number(found) < newest => {
            let name = found.metadata.name.clone().unwrap_or_default();
            history.raise = Some((name, newest + 1));
        }
        Some(_) => {}
    }
    let used: Vec<String> =
        pods.iter().filter(|p| own(&p.metadata)).map(|p| of(&p.metadata)).collect();
    let old = all.iter().filter(|r| {
        let of = of(&r.metadata);
        of != hash && !used.contains(&of)
    });
    let old: Vec<String> = old.filter_map(|r| r.metadata.name.clone()).collect();
    let kept = usize::try_from(set.spec.revision_history_limit.unwrap_or(10)).unwrap_or(0);
    history.delete = old[..old.len().saturating_sub(kept)].to_vec();
    history
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::object;
    use serde_json::{Value, json};

    fn set(rolling: Value) -> DaemonSet {
        object(json!({
            "metadata": {"name": "log", "namespace": "d", "uid": "u", "generation": 3},
            "spec": {
                "selector": {"matchLabels": {"app": "log"}},
                "updateStrategy": {"type": "RollingUpdate", "rollingUpdate": rolling},
                "template": {"metadata": {"labels": {"app": "log"}}, "spec": {"containers": []}},
            },
        }))
    }

    fn on(pod_name: &str, node: &str, hash: &str, ready: bool) -> Arc<Pod> {
        Arc::new(object(json!({
            "metadata": {"name": pod_name, "labels": {"app": "log", HASH_LABEL: hash},
                "creationTimestamp": "2026-01-01T00:00:00Z",
                "ownerReferences": [{"apiVersion": "apps/v1", "kind": "DaemonSet", "name": "log",
                                     "uid": "u", "controller": true}]},
            "spec": {"containers": [], "nodeName": node},
            "status": {"phase": "Running", "conditions": [
                {"type": "Ready", "status": if ready {"True"} else {"False"},
                 "lastTransitionTime": "2026-01-01T00:00:10Z"}]},
        })))
    }

    fn sites(names: &[&str]) -> Vec<Site> {
        names.iter().map(|n| Site { node: (*n).to_owned(), run: true, stay: true }).collect()
    }

    const NOW: i64 = 2_000_000_000;

    fn plan(set: &DaemonSet, hash: &str, pods: &[Arc<Pod>], sites: &[Site], now: i64) -> Plan {
        super::plan(set, hash, pods, sites, &Setbacks::default(), now)
    }

    #[test]
    fn every_machine_gets_one_pod() {
        let set = set(json!({"maxUnavailable": 1}));
        let pods = [on("a1", "a", "h", true), on("a2", "a", "h", true), on("gone", "x", "h", true)];
        let mut sites = sites(&["a", "b"]);
        sites.push(Site { node: "c".into(), run: false, stay: false });
        let plan = plan(&set, "h", &pods, &sites, NOW);
        assert_eq!(
            (plan.create, plan.delete),
            (vec!["b".to_owned()], vec!["a2".into(), "gone".into()])
        );
        let status = plan.status;
        assert_eq!((status.desired_number_scheduled, status.current_number_scheduled), (2, 1));
        assert_eq!((status.number_ready, status.number_unavailable), (1, Some(1)));
    }

    #[test]
    fn what_was_made_for_a_machine_counts_before_it_is_bound() {
        let set = set(json!({"maxUnavailable": 1}));
        let mut waiting = pod(&set, "h", "a");
        waiting.metadata.name = Some("w".into());
        waiting.metadata.owner_references =
            on("x", "a", "h", true).metadata.owner_references.clone();
        assert_eq!(target(&waiting), Some("a"));
        let plan = plan(&set, "h", &[Arc::new(waiting)], &sites(&["a"]), NOW);
        assert!(plan.create.is_empty() && plan.delete.is_empty(), "{plan:?}");
    }

    #[test]
    fn a_machine_that_sends_daemons_away_loses_them_and_one_that_takes_no_more_keeps_its_own() {
        let set = set(json!({"maxUnavailable": 1}));
        let pods = [on("a1", "a", "h", true), on("b1", "b", "h", true)];
        let sites = [
            Site { node: "a".into(), run: false, stay: false },
            Site { node: "b".into(), run: false, stay: true },
        ];
        let plan = plan(&set, "h", &pods, &sites, NOW);
        assert_eq!(plan.delete, ["a1"]);
        assert_eq!(plan.status.number_misscheduled, 2);
    }

    #[test]
    fn pods_are_replaced_one_at_a_time_and_broken_ones_at_once() {
        let set = set(json!({"maxUnavailable": 1}));
        let old = [on("a", "a", "old", true), on("b", "b", "old", true), on("c", "c", "old", true)];
        let all = sites(&["a", "b", "c"]);
        assert_eq!(plan(&set, "new", &old, &all, NOW).delete, ["a"]);
        let broken = [on("a", "a", "old", true), on("b", "b", "old", false), old[2].clone()];
        assert_eq!(plan(&set, "new", &broken, &all, NOW).delete, ["b"]);
        let half = [on("a", "a", "new", false), old[1].clone(), old[2].clone()];
        assert!(plan(&set, "new", &half, &all, NOW).delete.is_empty());
        let next = [on("a", "a", "new", true), old[1].clone(), old[2].clone()];
        let next = plan(&set, "new", &next, &all, NOW);
        assert_eq!(next.delete, ["b"]);
        assert_eq!(next.status.updated_number_scheduled, Some(1));
    }

    #[test]
    fn with_surge_the_new_pod_comes_first() {
        let set = set(json!({"maxUnavailable": 0, "maxSurge": "50%"}));
        let all = sites(&["a", "b"]);
        let old = [on("a", "a", "old", true), on("b", "b", "old", true)];
        let first = plan(&set, "new", &old, &all, NOW);
        assert_eq!((first.create, first.delete), (vec!["a".to_owned()], vec![]));
        let both = [old[0].clone(), old[1].clone(), on("a2", "a", "new", false)];
        let waits = plan(&set, "new", &both, &all, NOW);
        assert!(waits.create.is_empty() && waits.delete.is_empty(), "{waits:?}");
        let both = [old[0].clone(), old[1].clone(), on("a2", "a", "new", true)];
        let on_it_goes = plan(&set, "new", &both, &all, NOW);
        assert_eq!(
            (on_it_goes.create, on_it_goes.delete),
            (vec!["b".to_owned()], vec!["a".to_owned()])
        );
    }

    #[test]
    fn a_failed_pod_is_replaced_and_the_next_after_a_pause_that_grows() {
        let set = set(json!({"maxUnavailable": 1}));
        let mut failed = (*on("a", "a", "h", false)).clone();
        failed.status.as_mut().unwrap().phase = Some("Failed".into());
        let pods = [Arc::new(failed)];
        let mut setbacks = Setbacks::default();
        let mut now = NOW;
        for pause in [1, 2, 4, 8] {
            let due = super::plan(&set, "h", &pods, &sites(&["a"]), &setbacks, now);
            assert_eq!((due.delete, due.failed), (vec!["a".to_owned()], vec!["a".to_owned()]));
            assert_eq!(due.notes[0].reason, "FailedDaemonPod");
            setbacks.note("a", now);
            let waits = super::plan(&set, "h", &pods, &sites(&["a"]), &setbacks, now);
            assert_eq!((waits.delete.len(), waits.again_at), (0, Some(now + pause)));
            now += pause;
        }
        setbacks.note("b", now + 2 * PAUSE.1);
        assert_eq!(setbacks.over("a"), i64::MIN, "it has gone well for long");
    }

    #[test]
    fn templates_are_kept_as_revisions() {
        let mut set = set(json!({"maxUnavailable": 1}));
        set.spec.revision_history_limit = Some(1);
        let revision = |hash: &str, number: i64| -> Arc<ControllerRevision> {
            Arc::new(object(json!({
                "metadata": {"name": format!("log-{hash}"), "labels": {HASH_LABEL: hash},
                    "ownerReferences": [{"apiVersion": "apps/v1", "kind": "DaemonSet", "name": "log",
                                         "uid": "u", "controller": true}]},
                "revision": number,
            })))
        };
        assert_eq!(history(&set, "one", &[], &[]).create, Some(1));
        let all = [revision("one", 1), revision("two", 2), revision("three", 3)];
        let of_pod = [on("a", "a", "one", true)];
        let back = history(&set, "two", &all, &of_pod);
        assert_eq!(back.raise, Some(("log-two".to_owned(), 4)));
        assert!(back.create.is_none() && back.delete.is_empty());
        let forgets = history(&set, "three", &all, &[]);
        assert_eq!(forgets.delete, ["log-one"]);
    }
}
