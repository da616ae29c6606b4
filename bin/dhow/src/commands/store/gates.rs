//! `--feature-gates`: the names that etcd 3.7 knows, of which a few mean something here.

use anyhow::{Result, anyhow, bail};

/// A gate that does something.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Gate {
    /// Compare with the other members before serving.
    InitialCorruptCheck,
    /// Compare what is compacted.
    CompactHashCheck,
}

/// Gates that are known and change nothing: why is in the help.
const IDLE: [&str; 7] = [
    "FastLeaseKeepAlive",
    "LeaseCheckpoint",
    "LeaseCheckpointPersist",
    "PriorityRequest",
    "SetMemberLocalAddr",
    "StopGRPCServiceOnDefrag",
    "TxnModeWriteWithSharedBuffer",
];

/// What was asked for.
#[derive(Debug, Default)]
pub struct Gates {
    on: Vec<Gate>,
}

impl Gates {
    /// Reads `NAME=true,NAME=false`.
    ///
    /// # Errors
    /// A name that etcd does not know, or a value that is none.
    pub fn parse(text: &str) -> Result<Self> {
        let mut gates = Self::default();
        for part in text.split(',').map(str::trim).filter(|part| !part.is_empty()) {
            let (name, value) = part.split_once('=').ok_or_else(|| {
                anyhow!("missing bool value for feature gate {part}: write {part}=true")
            })?;
            let on = match value.trim() {
                "1" | "t" | "T" | "true" | "TRUE" | "True" => true,
                "0" | "f" | "F" | "false" | "FALSE" | "False" => false,
                other => bail!("invalid value of {name}: {other}: it must be true or false"),
            };
            let gate = match name.trim() {
                "InitialCorruptCheck" => Gate::InitialCorruptCheck,
                "CompactHashCheck" => Gate::CompactHashCheck,
                name if IDLE.contains(&name) => {
                    tracing::warn!("the feature gate {name} has no effect");
                    continue;
                }
                // Those that do something are of the stage alpha.
                name @ ("AllAlpha" | "AllBeta") => {
                    if on && name == "AllAlpha" {
                        gates.on.extend([Gate::InitialCorruptCheck, Gate::CompactHashCheck]);
                    }
                    continue;
                }
                unknown => bail!("unrecognized feature gate: {unknown}"),
            };
            gates.on.retain(|known| *known != gate);
            if on {
                gates.on.push(gate);
            }
        }
        Ok(gates)
    }

    /// Whether a gate is open.
    pub fn enabled(&self, gate: Gate) -> bool {
        self.on.contains(&gate)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gates_of_etcd_are_known_and_others_refused() {
        let on = |text: &str, gate| Gates::parse(text).unwrap().enabled(gate);
        assert!(!on("", Gate::CompactHashCheck));
        assert!(on("LeaseCheckpoint=true, CompactHashCheck=true", Gate::CompactHashCheck));
        assert!(!on("AllAlpha=true,CompactHashCheck=false", Gate::CompactHashCheck));
        assert!(on("AllAlpha=true", Gate::InitialCorruptCheck));
        for bad in ["CompactHashCheck", "CompactHashCheck=maybe", "Wings=true"] {
            assert!(Gates::parse(bad).is_err(), "{bad}");
        }
    }
}
