//! New limits for pods and containers that run.

use super::Launcher;
use super::containers::limits as kernel;
use crate::spec::Limits;
use crate::wire::{ContainerLimits, Failure, Relimit};
use dhow_kernel::cgroup::Error;

/// The wider of two: 0 is no limit, but for the request, of which 0 is the least.
fn wider(a: &Limits, b: &Limits) -> Limits {
    let limit = |a: u64, b: u64| if a == 0 || b == 0 { 0 } else { a.max(b) };
    Limits {
        cpu_request_millis: a.cpu_request_millis.max(b.cpu_request_millis),
        cpu_limit_millis: limit(a.cpu_limit_millis, b.cpu_limit_millis),
        memory_limit: limit(a.memory_limit, b.memory_limit),
        pids_limit: limit(a.pids_limit, b.pids_limit),
    }
}

fn refused(what: &str, error: &Error) -> Failure {
    Failure::Other(format!("{what}: {error}"))
}

impl Launcher {
    /// The kernel holds a group to less than the group above it has: the pod is widened first and
    /// narrowed last.
    pub(super) fn change_limits(&mut self, relimit: Relimit) -> Result<(), Failure> {
        let Relimit { sandbox: id, limits, container } = relimit;
        let pod = format!("sandbox {id}");
        let sandbox = self
            .sandboxes
            .get_mut(&id)
            .filter(|sandbox| !sandbox.growing)
            .ok_or_else(|| Failure::NotFound(pod.clone()))?;
        let widest = kernel(&wider(&sandbox.spec.limits, &limits));
        self.cgroups.change_limits(&sandbox.group, &widest).map_err(|e| refused(&pod, &e))?;
        let changed = container.map_or(Ok(()), |new| self.change_container(&id, new));
        let Some(sandbox) = self.sandboxes.get_mut(&id) else { return changed };
        if changed.is_err() {
            let _ = self.cgroups.change_limits(&sandbox.group, &kernel(&sandbox.spec.limits));
            return changed;
        }
        self.cgroups
            .change_limits(&sandbox.group, &kernel(&limits))
            .map_err(|error| refused(&pod, &error))?;
        sandbox.spec.limits = limits;
        self.record_sandbox(&id)
    }

    /// One of a sandbox's containers: it has all of its new limits, or its old ones.
    fn change_container(&mut self, sandbox: &str, new: ContainerLimits) -> Result<(), Failure> {
        let what = format!("container {}", new.id);
        let known = self.containers.get_mut(&new.id);
        let known = known.filter(|c| c.state.spec.sandbox.as_deref() == Some(sandbox));
        let container = known.ok_or_else(|| Failure::NotFound(what.clone()))?;
        let (group, old) = (&container.group, &container.state.spec.limits);
        if let Err(error) = self.cgroups.change_limits(group, &kernel(&new.limits)) {
            let _ = self.cgroups.change_limits(group, &kernel(old));
            return Err(refused(&what, &error));
        }
        container.state.spec.limits = new.limits;
        container.state.spec.labels.extend(new.labels);
        tracing::info!("container {} has other limits", new.id);
        self.record(&new.id);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_limit_is_the_widest() {
        let limits = |cpu, memory| Limits {
            cpu_request_millis: cpu,
            cpu_limit_millis: cpu,
            memory_limit: memory,
            pids_limit: 0,
        };
        assert_eq!(wider(&limits(100, 0), &limits(200, 64)), limits(200, 0));
        assert_eq!(wider(&limits(300, 32), &limits(200, 64)), limits(300, 64));
    }
}
