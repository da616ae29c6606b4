//! Resizing in place: whether the machine has room, and the change itself.
//!
//! Follows upstream's kubelet (`pkg/kubelet/allocation`): a resize that can never fit is told as
//! `Infeasible`, one that does not fit now as `Deferred` and tried when room is made.

use super::{Done, Worker};
use crate::events::Level;
use crate::pods::diff::{self, differs};
use crate::pods::observe::{Failure, Held, Role, Step, containers, label};
use crate::pods::{observe, reasons, resources};
use crate::time::Moment;
use dhow_fit::Usage;
use dhow_reason::Code;
use dhow_runtime::Limits;
use k8s_openapi::api::core::v1::{Container, Pod, ResourceRequirements};
use std::collections::BTreeMap;

impl Worker {
    /// Whether a resize is asked for at all.
    fn resizes(&self) -> bool {
        let all = containers(&self.pod);
        all.iter().any(|(_, c)| self.seen.track(&c.name).is_some_and(|t| differs(c, t)))
    }

    /// The pod with the resources that its running containers have, but for `changed`, which gets
    /// what the pod asks for.
    fn as_it_runs(&self, changed: Option<&str>) -> Pod {
        let mut pod = (*self.pod).clone();
        let Some(spec) = pod.spec.as_mut() else { return pod };
        let inits = spec.init_containers.iter_mut().flatten();
        for container in inits.chain(spec.containers.iter_mut()) {
            let track = self.seen.track(&container.name);
            let has = track.and_then(|t| t.running()).and_then(|i| i.resources.clone());
            if let Some(has) = has.filter(|_| changed != Some(container.name.as_str())) {
                container.resources = Some(has);
            }
        }
        pod
    }

    /// The pod's own limits, once a container has what the pod asks for it.
    fn limits_with(&self, changed: &str) -> Limits {
        resources::pod_limits(&self.as_it_runs(Some(changed)), self.world.facts.pids_of_pod)
    }

    /// What of the machine is granted to this pod.
    pub(super) fn granted(&self) -> Usage {
        if self.seen.torn || diff::ending(&self.pod, &self.seen).is_some() && !self.seen.busy() {
            return Usage::default();
        }
        match self.seen.held {
            Some(_) => Usage::of(&self.as_it_runs(None)),
            None => Usage::of(&self.pod),
        }
    }

    /// The pod or the room on the machine changed: may a resize begin that it asks for?
    pub(super) fn asked(&mut self) {
        let held = if self.resizes() { self.obstacle() } else { None };
        if held == self.seen.held {
            return;
        }
        if let Some(Held { word, message, reason }) = &held {
            let event = if *word == "Deferred" { "ResizeDeferred" } else { "ResizeInfeasible" };
            self.warn("", event, format!("Pod resize: {message}"), reason);
        }
        self.seen.held = held;
        self.note();
    }

    /// What failed for the old numbers may succeed for new ones.
    pub(super) fn try_resize_again(&mut self, before: &Pod) {
        let all = containers(before);
        let asked =
            |name: &str| all.iter().find(|(_, c)| c.name == name).map(|(_, c)| &c.resources);
        for (_, container) in containers(&self.pod) {
            let changed = asked(&container.name) != Some(&container.resources);
            if changed
                && let Some(track) = self.seen.containers.get_mut(&container.name)
                && matches!(track.resize, Step::Failed(_))
            {
                track.resize = Step::Absent;
            }
        }
    }

    /// What of the machine a resize lacks.
    fn obstacle(&self) -> Option<Held> {
        let wanted = Usage::of(&self.pod);
        let has = Usage::of(&self.as_it_runs(None));
        let used = self.world.registry.granted(|pod| pod.uid != self.uid());
        let facts = &self.world.facts;
        let all = [("cpu", facts.cpu_millis), ("memory", facts.memory)].map(|(name, capacity)| {
            let capacity = i64::try_from(capacity).unwrap_or(i64::MAX);
            (name, wanted.amount(name), has.amount(name), used.amount(name), capacity)
        });
        let reason = |name: &str, wanted: i64, used: i64, capacity: i64| {
            let code = match name {
                "cpu" => Code::InsufficientCpu,
                _ => Code::InsufficientMemory,
            };
            let evidence = [("requested", wanted), ("used", used), ("capacity", capacity)];
            let said = reasons::of_pod(code, &self.pod, "the resize waits");
            evidence.into_iter().fold(said, |reason, (name, value)| reason.with(name, value))
        };
        // What a pod gives back is never refused.
        let more = all.iter().filter(|(_, wanted, has, ..)| wanted > has);
        let infeasible = more.clone().find(|(_, wanted, _, _, capacity)| wanted > capacity);
        if let Some(&(name, wanted, _, used, capacity)) = infeasible {
            let message = format!(
                "Node didn't have enough capacity: {name}, requested: {wanted}, capacity: {capacity}"
            );
            let reason = reason(name, wanted, used, capacity);
            return Some(Held { word: "Infeasible", message, reason });
        }
        let deferred = more
            .clone()
            .find(|(_, wanted, _, used, capacity)| wanted.saturating_add(*used) > *capacity);
        deferred.map(|&(name, wanted, _, used, capacity)| {
            let message = format!(
                "Node didn't have enough resource: {name}, requested: {wanted}, used: {used}, capacity: {capacity}"
            );
            Held { word: "Deferred", message, reason: reason(name, wanted, used, capacity) }
        })
    }

    /// Begins to give a container the limits that its pod asks for. Returns whether the plan has to
    /// be made anew at once.
    pub(super) fn resize(&mut self, name: &str) -> bool {
        let Some((role, container)) = self.container(name) else { return false };
        let Some(instance) = self.running(name) else { return false };
        let wanted = container.resources.clone().unwrap_or_default();
        let restarts = restarts(&container, instance.resources.as_ref(), &wanted);
        let id = instance.id.clone();
        if restarts && role == Role::Main {
            instance.condemned = Some((format!("Container {name} resize requires restart"), None));
            return self.widen_for_restart(name);
        }
        let limits = resources::limits(&container);
        let labels = BTreeMap::from([(label::RESOURCES.to_owned(), resources::label(&container))]);
        let pod = self.limits_with(name);
        if let Some(track) = self.seen.containers.get_mut(name) {
            track.resize.begin();
        }
        let (world, uid, name) = (self.world.clone(), self.uid().to_owned(), name.to_owned());
        self.push(async move {
            let change = Some((id.as_str(), limits, labels));
            let result = world.runtime.change_limits(&uid, pod, change).await;
            let result = result.map_err(|e| e.to_string());
            Done::Resized { name, id, resources: Box::new(wanted), result }
        });
        false
    }

    /// The pod's own limits have to hold what the container will be started with.
    fn widen_for_restart(&mut self, name: &str) -> bool {
        let pod = self.limits_with(name);
        let (world, uid) = (self.world.clone(), self.uid().to_owned());
        self.push(async move {
            if let Err(error) = world.runtime.change_limits(&uid, pod, None).await {
                // The start that follows says what the kernel refuses.
                tracing::warn!(uid, %error, "limits of a pod not changed");
            }
            Done::Forgotten
        });
        true
    }

    /// A change of limits has been made, or was refused.
    pub(super) fn resized(
        &mut self,
        name: &str,
        id: &str,
        resources: ResourceRequirements,
        result: Result<(), String>,
        now: Moment,
    ) {
        let Some(track) = self.seen.containers.get_mut(name) else { return };
        let times = track.resize.failure().map_or(0, |f| f.times) + 1;
        match result {
            Ok(()) => {
                track.resize = Step::Absent;
                if let Some(instance) = self.seen.instance_mut(id) {
                    instance.resources = Some(resources);
                }
                tracing::info!(
                    namespace = self.namespace(),
                    pod = self.name(),
                    container = name,
                    "container resized"
                );
                if !self.resizes() {
                    self.event("", Level::Normal, "ResizeCompleted", "Pod resize completed");
                }
                self.note();
            }
            Err(message) => {
                let retry_at = now + observe::pause(times);
                let reason = "ResizeError".to_owned();
                track.resize =
                    Step::Failed(Failure { reason, message: message.clone(), retry_at, times });
                if times == 1 {
                    let code = Code::ResizeFailed;
                    let reason = reasons::of_container(code, &self.pod, name, &message);
                    let message = format!("Pod resize: container {name}: {message}");
                    self.warn(name, "ResizeError", message, &reason);
                }
            }
        }
    }
}

/// Whether the container's policy asks for a restart when what has changed changes.
fn restarts(
    container: &Container,
    has: Option<&ResourceRequirements>,
    wanted: &ResourceRequirements,
) -> bool {
    let none = ResourceRequirements::default();
    let has = has.unwrap_or(&none);
    let policies = container.resize_policy.iter().flatten();
    policies.clone().any(|policy| {
        policy.restart_policy == "RestartContainer"
            && !resources::same(has, wanted, &policy.resource_name)
    })
}
