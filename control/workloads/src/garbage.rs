//! Garbage: what goes when its owners go.
//!
//! Follows upstream's garbage collector: an object goes when all of its owners are gone; an owner
//! that is deleted in the foreground waits for the dependents that block it; one that is deleted
//! as an orphanage lets its dependents go first.

/// The finalizer of a foreground deletion.
pub const FOREGROUND: &str = "foregroundDeletion";
/// The finalizer of a deletion that keeps dependents.
pub const ORPHAN: &str = "orphan";

/// An owner as a dependent names it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Owner {
    /// Its uid.
    pub uid: String,
    /// Whether its foreground deletion waits for the dependent.
    pub blocks: bool,
}

/// What is known of an owner.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OwnerState {
    /// It is not in the store.
    Absent,
    /// It is there and stays.
    Present,
    /// It is being deleted in the foreground.
    Foreground,
}

/// What happens to a dependent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Fate {
    /// It stays as it is.
    Stay,
    /// It is deleted; in the foreground if it has dependents of its own that block.
    Delete,
    /// It stays, but the references to these owners go.
    Drop(Vec<String>),
}

/// Decides about a dependent by its owners.
pub fn fate(owners: &[Owner], state: impl Fn(&str) -> OwnerState) -> Fate {
    if owners.is_empty() {
        return Fate::Stay;
    }
    let mut solid = false;
    let mut dangling = Vec::new();
    for owner in owners {
        match state(&owner.uid) {
            OwnerState::Present => solid = true,
            OwnerState::Absent => dangling.push(owner.uid.clone()),
            OwnerState::Foreground => {
                if owner.blocks {
                    dangling.push(owner.uid.clone());
                }
            }
        }
    }
    match (solid, dangling.is_empty()) {
        (_, true) => Fate::Stay,
        (true, false) => Fate::Drop(dangling),
        (false, false) => Fate::Delete,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn owners(of: &[(&str, bool)]) -> Vec<Owner> {
        of.iter().map(|(uid, blocks)| Owner { uid: (*uid).into(), blocks: *blocks }).collect()
    }

    fn state(uid: &str) -> OwnerState {
        match uid {
            "here" => OwnerState::Present,
            "dying" => OwnerState::Foreground,
            _ => OwnerState::Absent,
        }
    }

    #[test]
    fn an_object_goes_with_its_last_owner() {
        assert_eq!(fate(&owners(&[("gone", false)]), state), Fate::Delete);
        assert_eq!(fate(&owners(&[("here", false)]), state), Fate::Stay);
        assert_eq!(fate(&[], state), Fate::Stay);
    }

    #[test]
    fn a_reference_to_a_gone_owner_is_dropped_while_another_stays() {
        assert_eq!(
            fate(&owners(&[("gone", false), ("here", true)]), state),
            Fate::Drop(vec!["gone".into()])
        );
    }

    #[test]
    fn a_foreground_deletion_takes_only_what_blocks_it() {
        assert_eq!(fate(&owners(&[("dying", true)]), state), Fate::Delete);
        assert_eq!(fate(&owners(&[("dying", false)]), state), Fate::Stay);
    }
}
