//! Reason codes, evidence and cause links, as spoken by status, events and `dhow why`.
//!
//! A refusal, a wait or a failure is data: a [`Code`] from one closed list, the evidence that was
//! seen, and the cause that stands behind it. Text is made from it at the edge, so that tests and
//! tools compare codes and never sentences.

use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

macro_rules! codes {
    ($($(#[doc = $doc:literal])+ $name:ident,)+) => {
        /// Why something is refused, waits or failed. Each code has a page under `docs/reasons/`.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        pub enum Code { $($(#[doc = $doc])+ $name,)+ }

        impl Code {
            /// Every code, in the order of the list.
            pub const ALL: &[Code] = &[$(Code::$name,)+];

            /// The code's name, as it stands in status and events.
            pub fn name(self) -> &'static str {
                match self { $(Code::$name => stringify!($name),)+ }
            }

            /// One sentence that says what the code means.
            pub fn meaning(self) -> &'static str {
                match self { $(Code::$name => concat!($($doc),+).trim_ascii(),)+ }
            }
        }
    };
}

codes! {
    /// The object was accepted and nothing stands in its way.
    Fine,
    /// No machine satisfies what the pod asks for.
    Unschedulable,
    /// A machine lacks the free processor time that the pod requests.
    InsufficientCpu,
    /// A machine lacks the free memory that the pod requests.
    InsufficientMemory,
    /// A machine lacks what the pod requests beside processor time and memory.
    InsufficientResource,
    /// A machine already runs as many pods as it allows.
    TooManyPods,
    /// A machine's labels do not satisfy the pod's node selector or affinity.
    NodeSelectorMismatch,
    /// A machine carries a taint that the pod does not tolerate.
    UntoleratedTaint,
    /// A port of the machine that the pod asks for is taken.
    HostPortTaken,
    /// No pod that the pod must be near runs close enough to a machine.
    PodAffinityUnmet,
    /// A pod runs too close to a machine for the pod, or the other way round.
    PodAntiAffinityUnmet,
    /// On a machine the pods would be spread less evenly than the pod allows.
    TopologySpreadUnmet,
    /// The machine is not ready or is cordoned.
    NodeNotReady,
    /// The image is not in the machine's store and may not or cannot be pulled.
    ImageMissing,
    /// The image's name cannot be understood.
    ImageNameInvalid,
    /// A ConfigMap, Secret or key that a container needs does not exist.
    ConfigMissing,
    /// What a container asks for contradicts itself or its image, or is not supported.
    ConfigInvalid,
    /// A volume cannot be prepared.
    VolumeFailed,
    /// The pod's network namespace or address cannot be made.
    SandboxFailed,
    /// The container's process cannot be started.
    CannotStart,
    /// The container's process ended.
    Exited,
    /// The kernel ended the container because it went over its memory limit.
    OomKilled,
    /// The container ended again and again and waits before its next start.
    CrashLoop,
    /// A liveness or startup probe failed too often.
    ProbeFailed,
    /// A readiness probe has not succeeded.
    NotReady,
    /// A container's postStart or preStop hook failed.
    HookFailed,
    /// The pod was active for longer than it may be.
    DeadlineExceeded,
    /// A pod has failed, and another is made in its place.
    PodFailed,
    /// The limits of a running container cannot be changed.
    ResizeFailed,
    /// The pod was ended because its machine is short of something, or because it takes more of the
    /// disk than it may.
    Evicted,
    /// The pod's machine does not take it.
    NotAdmitted,
    /// Something of a pod cannot be ended or removed.
    CannotRemove,
    /// A service's selector matches no ready pod.
    NoEndpoints,
    /// The kernel's rules differ from the compiled ones.
    RuleDrift,
    /// The kernel did not take the rules of services.
    RulesRefused,
    /// There is no way to the pods of another machine.
    MachineUnreachable,
    /// The control plane does not answer a machine.
    ControlPlaneUnreachable,
    /// The API refused what a part of the platform wanted to write.
    Refused,
    /// A write was based on a revision that is no longer the newest.
    Conflict,
    /// A kernel feature that is needed is missing.
    KernelFeatureMissing,
    /// The disk that holds the data directory is full, or nearly so.
    DiskFull,
    /// A quota or limit of the platform is reached.
    LimitReached,
}

impl std::fmt::Display for Code {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name())
    }
}

/// The annotation of an event that holds its reason as JSON.
pub const ANNOTATION: &str = "dhow.dev/reason";

/// A reason: a code, what was seen, and what stands behind it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reason {
    /// Which of the known reasons this is.
    pub code: Code,
    /// What it is about, for example `pod shop/cart-1` or `node n2`.
    pub object: String,
    /// What was seen, by name: `requested=200m`, `free=150m`.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub evidence: BTreeMap<String, String>,
    /// The reasons that led to this one.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub causes: Vec<Reason>,
}

impl Reason {
    /// A reason without evidence yet.
    pub fn new(code: Code, object: impl Into<String>) -> Self {
        Self { code, object: object.into(), evidence: BTreeMap::new(), causes: Vec::new() }
    }

    /// Adds one piece of evidence.
    #[must_use]
    pub fn with(mut self, name: &str, value: impl ToString) -> Self {
        self.evidence.insert(name.to_owned(), value.to_string());
        self
    }

    /// The reason as the value of [`ANNOTATION`].
    pub fn to_json(&self) -> String {
        // Texts and maps of texts: nothing that JSON cannot hold.
        serde_json::to_string(self).unwrap_or_default()
    }

    /// Adds a cause.
    #[must_use]
    pub fn because(mut self, cause: Reason) -> Self {
        self.causes.push(cause);
        self
    }
}

impl std::fmt::Display for Reason {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}: {}", self.code, self.object)?;
        for (index, (name, value)) in self.evidence.iter().enumerate() {
            write!(f, "{}{name} {value}", if index == 0 { ": " } else { ", " })?;
        }
        for cause in &self.causes {
            write!(f, "; because {cause}")?;
        }
        Ok(())
    }
}

/// Who changed something, and what made them do so: stamped on every write.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Cause {
    /// The user or the platform's own part, for example `kubernetes-admin` or `dhow:deployments`.
    pub actor: String,
    /// The store revision whose observation led to this write; 0 when a person asked for it.
    #[serde(default)]
    pub revision: u64,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reason_reads_as_one_line() {
        let reason = Reason::new(Code::Unschedulable, "pod shop/cart").because(
            Reason::new(Code::InsufficientCpu, "node n2")
                .with("requested", "200m")
                .with("free", "0"),
        );
        assert_eq!(
            reason.to_string(),
            "Unschedulable: pod shop/cart; because InsufficientCpu: node n2: free 0, requested 200m"
        );
    }

    #[test]
    fn a_reason_comes_back_from_its_annotation() {
        let reason = Reason::new(Code::CrashLoop, "container web")
            .with("backoff", "10s")
            .because(Reason::new(Code::Exited, "container web").with("code", 3));
        assert_eq!(serde_json::from_str::<Reason>(&reason.to_json()).unwrap(), reason);
    }

    #[test]
    fn every_code_has_a_meaning() {
        assert!(Code::ALL.iter().all(|code| code.meaning().ends_with('.')));
    }
}
