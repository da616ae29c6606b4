//! Deployments: which replica sets there should be, and of what size.
//!
//! Follows upstream's deployment controller: annotation and label names, condition reasons and
//! event texts are its own, because `kubectl rollout` reads them.

use crate::rollout::{self, Set};
use crate::template::{self, HASH_LABEL, template_hash};
use crate::{Note, controller_of, is_active, seconds, selects};
use k8s_openapi::api::apps::v1::{
    Deployment, DeploymentCondition, DeploymentStatus, ReplicaSet, ReplicaSetSpec,
};
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference, Time};
use std::collections::BTreeMap;
use std::sync::Arc;

/// The rollout's number, on deployments and replica sets.
pub const REVISION: &str = "deployment.kubernetes.io/revision";
/// The deployment's size when its replica sets were sized.
const DESIRED: &str = "deployment.kubernetes.io/desired-replicas";
/// That size with its surge.
const MAXIMUM: &str = "deployment.kubernetes.io/max-replicas";
const HISTORY: &str = "deployment.kubernetes.io/revision-history";
const LAST_APPLIED: &str = "kubectl.kubernetes.io/last-applied-configuration";

/// One write that a deployment needs.
#[derive(Debug, Clone, PartialEq)]
pub enum Action {
    /// Make this replica set. When its name is taken by another template, count a collision.
    Create(Box<ReplicaSet>),
    /// Bring this replica set's size and annotations to these.
    Resize {
        /// Its name.
        name: String,
        /// Its size.
        replicas: i32,
        /// Annotations to set.
        annotations: BTreeMap<String, String>,
    },
    /// Take a matching replica set that has no controller.
    Adopt(String),
    /// Let a replica set go that does not match any more.
    Release(String),
    /// Delete an old replica set that is beyond the history limit.
    Delete(String),
    /// Write this revision onto the deployment.
    Revise(String),
}

/// What to do for a deployment.
#[derive(Debug, Clone, PartialEq)]
pub struct Plan {
    /// Writes, in order.
    pub actions: Vec<Action>,
    /// Events to record when they succeed.
    pub notes: Vec<Note>,
    /// The status as it is now.
    pub status: DeploymentStatus,
    /// Look again at this second, because the progress deadline passes then.
    pub again_at: Option<i64>,
}

fn name_of(set: &ReplicaSet) -> String {
    set.metadata.name.clone().unwrap_or_default()
}

fn annotation<'a>(metadata: &'a ObjectMeta, key: &str) -> Option<&'a String> {
    metadata.annotations.as_ref()?.get(key)
}

fn revision(set: &ReplicaSet) -> i64 {
    annotation(&set.metadata, REVISION).and_then(|r| r.parse().ok()).unwrap_or(0)
}

fn wanted(set: &ReplicaSet) -> i32 {
    set.spec.replicas.unwrap_or(1)
}

fn counts(set: &ReplicaSet) -> Set {
    let status = set.status.as_ref();
    Set {
        wanted: wanted(set),
        present: status.map_or(0, |s| s.replicas),
        available: status.and_then(|s| s.available_replicas).unwrap_or(0),
    }
}

/// Plans for `deployment`. `sets` and `pods` are all of its namespace; `now` is the time.
pub fn plan(
    deployment: &Deployment,
    sets: &[Arc<ReplicaSet>],
    pods: &[Arc<Pod>],
    now: &Time,
) -> Plan {
    let mut planner = Planner::new(deployment, sets, pods, now);
    if deployment.metadata.deletion_timestamp.is_none() {
        planner.work();
    }
    planner.finish()
}

struct Planner<'a> {
    deployment: &'a Deployment,
    spec: k8s_openapi::api::apps::v1::DeploymentSpec,
    replicas: i32,
    /// Owned sets, oldest first.
    sets: Vec<Arc<ReplicaSet>>,
    pods: &'a [Arc<Pod>],
    now: &'a Time,
    actions: Vec<Action>,
    notes: Vec<Note>,
    /// Why the rollout moved in this step, if it did.
    progress: Option<(&'static str, String)>,
}

impl<'a> Planner<'a> {
    fn new(
        deployment: &'a Deployment,
        sets: &[Arc<ReplicaSet>],
        pods: &'a [Arc<Pod>],
        now: &'a Time,
    ) -> Self {
        let spec = deployment.spec.clone();
        let uid = deployment.metadata.uid.as_deref().unwrap_or_default();
        // Who goes takes nobody in: a deletion that orphans has just let its sets go.
        let dying = deployment.metadata.deletion_timestamp.is_some();
        let mut actions = Vec::new();
        let mut owned = Vec::new();
        for set in sets {
            let matches = selects(Some(&spec.selector), set.metadata.labels.as_ref());
            match controller_of(&set.metadata) {
                Some(owner) if owner.uid == uid && matches => owned.push(set.clone()),
                Some(owner) if owner.uid == uid => actions.push(Action::Release(name_of(set))),
                None if matches && !dying && set.metadata.deletion_timestamp.is_none() => {
                    actions.push(Action::Adopt(name_of(set)));
                    owned.push(set.clone());
                }
                _ => {}
            }
        }
        owned.sort_by_key(|s| {
            (s.metadata.creation_timestamp.as_ref().map_or(0, seconds), name_of(s))
        });
        let replicas = spec.replicas.unwrap_or(1);
        Self {
            deployment,
            spec,
            replicas,
            sets: owned,
            pods,
            now,
            actions,
            notes: Vec::new(),
            progress: None,
        }
    }

    fn new_set(&self) -> Option<&Arc<ReplicaSet>> {
        // The oldest equal one wins, should two be equal.
        self.sets.iter().find(|set| {
            let template = set.spec.template.as_ref();
            template.is_some_and(|t| template::equal(t, &self.spec.template))
        })
    }

    fn rolling(&self) -> bool {
        self.spec.strategy.as_ref().and_then(|s| s.type_.as_deref()) != Some("Recreate")
    }

    fn bounds(&self) -> rollout::Bounds {
        if !self.rolling() {
            return rollout::Bounds { surge: 0, unavailable: 0 };
        }
        let rolling = self.spec.strategy.as_ref().and_then(|s| s.rolling_update.as_ref());
        let of = |pick: fn(
            &k8s_openapi::api::apps::v1::RollingUpdateDeployment,
        ) -> Option<
            &k8s_openapi::apimachinery::pkg::util::intstr::IntOrString,
        >| { rolling.and_then(pick) };
        rollout::bounds(
            of(|r| r.max_surge.as_ref()),
            of(|r| r.max_unavailable.as_ref()),
            self.replicas,
        )
    }

    fn work(&mut self) {
        let paused = self.spec.paused == Some(true);
        let new = self.new_set().cloned();
        if paused || self.was_scaled() {
            self.scale(new.as_ref());
            return;
        }
        let next = match &new {
            Some(set) => self.revise(set),
            None => self.make_new(),
        };
        if let Some(next) = next {
            if self.rolling() {
                self.roll(new.as_ref(), next);
            } else {
                self.recreate(new.as_ref(), next);
            }
        }
        self.forget_history(new.as_ref());
    }

    /// How many pods there may be in the middle of a rollout.
    fn most(&self) -> i32 {
        self.replicas.saturating_add(self.bounds().surge)
    }

    /// The annotations that a replica set takes over from its deployment.
    fn inherited(&self) -> BTreeMap<String, String> {
        let skip = [
            LAST_APPLIED,
            REVISION,
            HISTORY,
            DESIRED,
            MAXIMUM,
            "deprecated.deployment.rollback.to",
        ];
        let mut taken: BTreeMap<String, String> = self
            .deployment
            .metadata
            .annotations
            .iter()
            .flatten()
            .filter(|(key, _)| !skip.contains(&key.as_str()))
            .map(|(key, value)| (key.clone(), value.clone()))
            .collect();
        taken.insert(DESIRED.into(), self.replicas.to_string());
        taken.insert(MAXIMUM.into(), self.most().to_string());
        taken
    }

    fn newest_other_revision(&self, except: &str) -> i64 {
        self.sets.iter().filter(|s| name_of(s) != except).map(|s| revision(s)).max().unwrap_or(0)
    }

    /// Gives the new set the highest revision (a rollback makes an old set the newest) and the
    /// deployment the same. Returns the annotations that the set should have.
    fn revise(&mut self, set: &ReplicaSet) -> Option<BTreeMap<String, String>> {
        let highest = self.newest_other_revision(&name_of(set));
        let number = if revision(set) > highest { revision(set) } else { highest + 1 };
        let mut annotations = self.inherited();
        annotations.insert(REVISION.into(), number.to_string());
        if number != revision(set) && revision(set) != 0 {
            let mut past = annotation(&set.metadata, HISTORY).cloned().unwrap_or_default();
            if !past.is_empty() {
                past.push(',');
            }
            past.push_str(&revision(set).to_string());
            annotations.insert(HISTORY.into(), past);
            self.progress =
                Some(("FoundNewReplicaSet", format!("Found new replica set {:?}", name_of(set))));
        }
        if annotation(&self.deployment.metadata, REVISION) != annotations.get(REVISION) {
            self.actions.push(Action::Revise(number.to_string()));
        }
        Some(annotations)
    }

    /// Makes the set for the template. The rollout goes on when it is there.
    fn make_new(&mut self) -> Option<BTreeMap<String, String>> {
        let collisions =
            self.deployment.status.as_ref().and_then(|s| s.collision_count).unwrap_or(0);
        let hash = template_hash(&self.spec.template, collisions);
        let metadata = &self.deployment.metadata;
        let owner = metadata.name.clone().unwrap_or_default();
        let name = format!("{owner}-{hash}");
        let number = self.newest_other_revision("") + 1;
        let mut annotations = self.inherited();
        annotations.insert(REVISION.into(), number.to_string());
        let mut template = self.spec.template.clone();
        let labels = template.metadata.get_or_insert_default().labels.get_or_insert_default();
        labels.insert(HASH_LABEL.into(), hash.clone());
        let labels = labels.clone();
        let mut selector = self.spec.selector.clone();
        selector.match_labels.get_or_insert_default().insert(HASH_LABEL.into(), hash);

        let bounds = self.bounds();
        let old: Vec<Set> = self.sets.iter().map(|s| counts(s)).collect();
        let none = Set { wanted: 0, present: 0, available: 0 };
        let size = if self.rolling() {
            let mut all = old.clone();
            all.push(none);
            rollout::grow_new(none, &all, self.replicas, bounds)
        } else if self.old_pods_are_gone(None) {
            self.replicas
        } else {
            0
        };
        let set = ReplicaSet {
            metadata: ObjectMeta {
                name: Some(name.clone()),
                namespace: metadata.namespace.clone(),
                labels: Some(labels),
                annotations: Some(annotations),
                owner_references: Some(vec![OwnerReference {
                    api_version: "apps/v1".into(),
                    kind: "Deployment".into(),
                    name: owner,
                    uid: metadata.uid.clone().unwrap_or_default(),
                    controller: Some(true),
                    block_owner_deletion: Some(true),
                }]),
                ..ObjectMeta::default()
            },
            spec: ReplicaSetSpec {
                replicas: Some(size),
                min_ready_seconds: self.spec.min_ready_seconds,
                selector,
                template: Some(template),
            },
            status: None,
        };
        self.actions.push(Action::Create(Box::new(set)));
        if annotation(metadata, REVISION) != Some(&number.to_string()) {
            self.actions.push(Action::Revise(number.to_string()));
        }
        if size > 0 {
            self.scaled(&name, 0, size);
        }
        self.progress = Some(("NewReplicaSetCreated", format!("Created new replica set {name:?}")));
        if !self.rolling() {
            self.shrink_all_old(None);
        }
        None
    }

    fn scaled(&mut self, name: &str, from: i32, to: i32) {
        let way = if to > from { "up" } else { "down" };
        let message = format!("Scaled {way} replica set {name} from {from} to {to}");
        self.notes.push(Note {
            kind: "Normal",
            reason: "ScalingReplicaSet",
            message,
            because: None,
        });
    }

    /// Asks for a size and annotations, if they differ from what is there.
    fn resize(&mut self, set: &ReplicaSet, size: i32, annotations: BTreeMap<String, String>) {
        let same =
            annotations.iter().all(|(key, value)| annotation(&set.metadata, key) == Some(value));
        let before = wanted(set);
        if before == size && same {
            return;
        }
        if before != size {
            self.scaled(&name_of(set), before, size);
            if self.progress.is_none() {
                let message = format!("ReplicaSet {:?} is progressing.", name_of(set));
                self.progress = Some(("ReplicaSetUpdated", message));
            }
        }
        self.actions.push(Action::Resize { name: name_of(set), replicas: size, annotations });
    }

    fn size_marks(&self) -> BTreeMap<String, String> {
        BTreeMap::from([
            (DESIRED.to_owned(), self.replicas.to_string()),
            (MAXIMUM.to_owned(), self.most().to_string()),
        ])
    }

    fn old_sets(&self, new: Option<&Arc<ReplicaSet>>) -> Vec<Arc<ReplicaSet>> {
        let new = new.map(|s| name_of(s));
        self.sets.iter().filter(|s| Some(name_of(s)) != new).cloned().collect()
    }

    fn roll(&mut self, new: Option<&Arc<ReplicaSet>>, annotations: BTreeMap<String, String>) {
        let Some(new) = new else { return };
        let bounds = self.bounds();
        let all: Vec<Set> = self.sets.iter().map(|s| counts(s)).collect();
        let size = rollout::grow_new(counts(new), &all, self.replicas, bounds);
        let grows = size > wanted(new);
        self.resize(new, size, annotations);
        if grows {
            // Shrinking waits for the next look: the new pods do not serve yet.
            return;
        }
        let old: Vec<Arc<ReplicaSet>> =
            self.old_sets(Some(new)).into_iter().filter(|s| wanted(s) > 0).collect();
        let sizes = rollout::shrink_old(
            &old.iter().map(|s| counts(s)).collect::<Vec<_>>(),
            counts(new),
            self.replicas,
            bounds,
        );
        for (set, size) in old.iter().zip(sizes) {
            self.resize(set, size, self.size_marks());
        }
    }

    fn shrink_all_old(&mut self, new: Option<&Arc<ReplicaSet>>) {
        for set in self.old_sets(new) {
            if wanted(&set) > 0 {
                self.resize(&set, 0, self.size_marks());
            }
        }
    }

    fn old_pods_are_gone(&self, new: Option<&Arc<ReplicaSet>>) -> bool {
        let old: Vec<String> =
            self.old_sets(new).iter().filter_map(|s| s.metadata.uid.clone()).collect();
        !self.pods.iter().any(|pod| {
            let finished = matches!(crate::phase(pod), "Succeeded" | "Failed");
            !finished && controller_of(&pod.metadata).is_some_and(|o| old.contains(&o.uid))
        })
    }

    fn recreate(&mut self, new: Option<&Arc<ReplicaSet>>, annotations: BTreeMap<String, String>) {
        let Some(new) = new else { return };
        self.shrink_all_old(Some(new));
        let size = if self.old_pods_are_gone(Some(new)) { self.replicas } else { wanted(new) };
        self.resize(new, size, annotations);
    }

    /// Whether the deployment's size changed since its active sets were sized.
    fn was_scaled(&self) -> bool {
        self.sets.iter().filter(|s| wanted(s) > 0).any(|set| {
            annotation(&set.metadata, DESIRED)
                .and_then(|d| d.parse::<i32>().ok())
                .is_some_and(|d| d != self.replicas)
        })
    }

    /// Changes sizes without rolling out.
    fn scale(&mut self, new: Option<&Arc<ReplicaSet>>) {
        let active: Vec<Arc<ReplicaSet>> =
            self.sets.iter().filter(|s| wanted(s) > 0).cloned().collect();
        let single = match active.as_slice() {
            [] => new.cloned(),
            [only] => Some(only.clone()),
            _ => None,
        };
        if let Some(set) = single {
            self.resize(&set, self.replicas, self.size_marks());
            return;
        }
        if new.is_some_and(|n| counts(n).available >= self.replicas && wanted(n) == self.replicas) {
            self.shrink_all_old(new);
            return;
        }
        if !self.rolling() {
            return;
        }
        let allowed = if self.replicas > 0 { self.most() } else { 0 };
        let sizes = rollout::spread(&active.iter().map(|s| wanted(s)).collect::<Vec<_>>(), allowed);
        for (set, size) in active.iter().zip(sizes) {
            self.resize(set, size, self.size_marks());
        }
    }

    fn forget_history(&mut self, new: Option<&Arc<ReplicaSet>>) {
        let Some(limit) = self.spec.revision_history_limit else { return };
        let mut idle: Vec<Arc<ReplicaSet>> = self
            .old_sets(new)
            .into_iter()
            .filter(|s| {
                wanted(s) == 0 && counts(s).present == 0 && s.metadata.deletion_timestamp.is_none()
            })
            .collect();
        idle.sort_by_key(|s| revision(s));
        let surplus = idle.len().saturating_sub(usize::try_from(limit).unwrap_or(0));
        self.actions.extend(idle.iter().take(surplus).map(|s| Action::Delete(name_of(s))));
    }

    fn finish(self) -> Plan {
        let new = self.new_set().map(|s| counts(s));
        let new_name = self.new_set().map(|s| name_of(s)).unwrap_or_default();
        let all: Vec<Set> = self.sets.iter().map(|s| counts(s)).collect();
        let total = rollout::sum(all.iter().map(|s| s.present));
        let available = rollout::sum(all.iter().map(|s| s.available));
        let ready =
            rollout::sum(self.sets.iter().filter_map(|s| s.status.as_ref()?.ready_replicas));
        let uids: Vec<&String> = self.sets.iter().filter_map(|s| s.metadata.uid.as_ref()).collect();
        let terminating = self
            .pods
            .iter()
            .filter(|p| !is_active(p) && !matches!(crate::phase(p), "Succeeded" | "Failed"))
            .filter(|p| controller_of(&p.metadata).is_some_and(|o| uids.contains(&&o.uid)))
            .count();
        let before = self.deployment.status.clone().unwrap_or_default();
        let mut status = DeploymentStatus {
            observed_generation: self.deployment.metadata.generation,
            replicas: Some(total),
            updated_replicas: Some(new.map_or(0, |n| n.present)),
            ready_replicas: Some(ready),
            available_replicas: Some(available),
            unavailable_replicas: Some(
                (rollout::sum(all.iter().map(|s| s.wanted)).max(total) - available).max(0),
            ),
            terminating_replicas: Some(i32::try_from(terminating).unwrap_or(i32::MAX)),
            collision_count: before.collision_count,
            conditions: before.conditions.clone(),
        };
        let enough = available >= self.replicas - self.bounds().unavailable;
        let (state, reason, message) = if enough {
            ("True", "MinimumReplicasAvailable", "Deployment has minimum availability.")
        } else {
            (
                "False",
                "MinimumReplicasUnavailable",
                "Deployment does not have minimum availability.",
            )
        };
        set_condition(&mut status, "Available", state, reason, message.into(), self.now, false);

        let complete = new.is_some_and(|n| {
            n.present == self.replicas && n.available == self.replicas && total == self.replicas
        });
        let mut again_at = None;
        if self.spec.paused == Some(true) {
            let message = "Deployment is paused".into();
            set_condition(
                &mut status,
                "Progressing",
                "Unknown",
                "DeploymentPaused",
                message,
                self.now,
                false,
            );
        } else if complete && self.progress.is_none() {
            let message = format!("ReplicaSet {new_name:?} has successfully progressed.");
            set_condition(
                &mut status,
                "Progressing",
                "True",
                "NewReplicaSetAvailable",
                message,
                self.now,
                false,
            );
        } else if let Some((reason, message)) = self.progress.clone() {
            set_condition(&mut status, "Progressing", "True", reason, message, self.now, true);
            again_at = self.deadline(&status);
        } else {
            let moved = before.updated_replicas.unwrap_or(0) < status.updated_replicas.unwrap_or(0)
                || before.ready_replicas.unwrap_or(0) < status.ready_replicas.unwrap_or(0)
                || before.available_replicas.unwrap_or(0) < available
                || before.replicas.unwrap_or(0) > total;
            let was_paused = before.conditions.iter().flatten().any(|c| {
                c.type_.as_deref() == Some("Progressing")
                    && c.reason.as_deref() == Some("DeploymentPaused")
            });
            if was_paused {
                let message = "Deployment is resumed".into();
                set_condition(
                    &mut status,
                    "Progressing",
                    "Unknown",
                    "DeploymentResumed",
                    message,
                    self.now,
                    true,
                );
            } else if moved {
                let message = format!("ReplicaSet {new_name:?} is progressing.");
                set_condition(
                    &mut status,
                    "Progressing",
                    "True",
                    "ReplicaSetUpdated",
                    message,
                    self.now,
                    true,
                );
            }
            again_at = self.deadline(&status);
            if again_at.is_some_and(|at| at <= seconds(self.now)) {
                let message = format!("ReplicaSet {new_name:?} has timed out progressing.");
                set_condition(
                    &mut status,
                    "Progressing",
                    "False",
                    "ProgressDeadlineExceeded",
                    message,
                    self.now,
                    false,
                );
                again_at = None;
            }
        }
        Plan { actions: self.actions, notes: self.notes, status, again_at }
    }

    /// When the rollout counts as stuck, unless it is complete or has no deadline.
    fn deadline(&self, status: &DeploymentStatus) -> Option<i64> {
        let allowed = self.spec.progress_deadline_seconds.filter(|s| *s < i32::MAX)?;
        let condition = status
            .conditions
            .iter()
            .flatten()
            .find(|c| c.type_.as_deref() == Some("Progressing"))?;
        if condition.reason.as_deref() == Some("NewReplicaSetAvailable")
            || condition.reason.as_deref() == Some("ProgressDeadlineExceeded")
        {
            return None;
        }
        let since = condition.last_update_time.as_ref().map_or_else(|| seconds(self.now), seconds);
        Some(since + i64::from(allowed))
    }
}

/// Sets a condition. The transition time moves only when the status does; the update time moves
/// with any change, or when `touch` says that there was progress.
fn set_condition(
    status: &mut DeploymentStatus,
    kind: &str,
    state: &str,
    reason: &str,
    message: String,
    now: &Time,
    touch: bool,
) {
    let conditions = status.conditions.get_or_insert_default();
    let before = conditions.iter().find(|c| c.type_.as_deref() == Some(kind)).cloned();
    if let Some(before) = &before {
        let same =
            before.status.as_deref() == Some(state) && before.reason.as_deref() == Some(reason);
        if same && !touch {
            return;
        }
    }
    conditions.retain(|c| c.type_.as_deref() != Some(kind));
    let transition = match before {
        Some(before) if before.status.as_deref() == Some(state) => before.last_transition_time,
        _ => Some(now.clone()),
    };
    conditions.push(DeploymentCondition {
        type_: Some(kind.into()),
        status: Some(state.into()),
        reason: Some(reason.into()),
        message: Some(message),
        last_update_time: Some(now.clone()),
        last_transition_time: transition,
    });
}

#[cfg(test)]
mod tests;
