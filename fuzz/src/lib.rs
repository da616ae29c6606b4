//! What reads bytes from others, each as a target for bad input.
//!
//! A target has good inputs to begin with and takes any bytes: it may refuse them, it must not
//! panic, hang or lie. The program of this crate changes good inputs as a seed says; it needs nothing
//! but the workspace, and the same seed finds the same again. `fuzz/libfuzzer` gives the same
//! targets to libFuzzer, which looks at what code each input reaches.

mod door;
mod frames;
mod mutate;
mod node;
mod objects;
mod store;

pub use mutate::{Random, mutate};

use anyhow::{Context as _, Result};

/// Something that takes bytes.
pub trait Target {
    /// Good inputs, at least one.
    fn good(&self) -> &[Vec<u8>];
    /// Takes bytes.
    ///
    /// # Errors
    /// What it did that it must not.
    fn take(&mut self, bytes: &[u8]) -> Result<(), String>;
}

/// A target that keeps nothing between inputs.
struct Pure {
    good: Vec<Vec<u8>>,
    take: fn(&[u8]) -> Result<(), String>,
}

impl Pure {
    /// One whose good inputs are texts.
    fn of_texts(good: &[&str], take: fn(&[u8]) -> Result<(), String>) -> Box<dyn Target> {
        let good = good.iter().map(|text| text.as_bytes().to_vec()).collect();
        Box::new(Self { good, take })
    }
}

impl Target for Pure {
    fn good(&self) -> &[Vec<u8>] {
        &self.good
    }
    fn take(&mut self, bytes: &[u8]) -> Result<(), String> {
        (self.take)(bytes)
    }
}

/// The way to make a target.
type Make = fn() -> Result<Box<dyn Target>>;

/// All targets by name.
const TARGETS: [(&str, Make); 21] = [
    ("command", store::command),
    ("state", store::state),
    ("recovery", store::recovery),
    ("message", store::message),
    ("hello", store::hello),
    ("bolt", store::bolt),
    ("snapshot", store::snapshot),
    ("wal", store::wal),
    ("proto", door::proto),
    ("gateway", door::gateway),
    ("frames", frames::frames),
    ("jwt", door::jwt),
    ("spdy", door::spdy),
    ("path", door::path),
    ("object", objects::object),
    ("patch", objects::patch),
    ("selector", objects::selector),
    ("dockerfile", node::dockerfile),
    ("archive", node::archive),
    ("dns", node::dns),
    ("netlink", node::netlink),
];

/// The names of all targets.
pub fn names() -> impl Iterator<Item = &'static str> {
    TARGETS.iter().map(|(name, _)| *name)
}

/// Makes a target.
///
/// # Errors
/// There is none of this name, or its good inputs cannot be made.
pub fn target(name: &str) -> Result<Box<dyn Target>> {
    let all = || names().collect::<Vec<_>>().join(", ");
    let (_, make) = TARGETS
        .iter()
        .find(|(known, _)| *known == name)
        .with_context(|| format!("no target {name}; there are {}", all()))?;
    make().with_context(|| format!("{name}: no good input to begin with"))
}

/// The part that the first byte picks, and the rest: how an input says what it is for.
fn picked<'a, T>(parts: &'a [T], bytes: &'a [u8]) -> Option<(&'a T, &'a [u8])> {
    let (first, rest) = bytes.split_first()?;
    Some((&parts[usize::from(*first) % parts.len()], rest))
}

#[cfg(test)]
mod tests {
    /// Else nothing that is made of them says anything.
    #[test]
    fn every_target_takes_its_own_good_inputs() {
        for name in super::names() {
            let mut target = super::target(name).unwrap();
            let good = target.good().to_vec();
            assert!(!good.is_empty(), "{name}");
            for input in good {
                assert_eq!(target.take(&input), Ok(()), "{name}");
            }
        }
    }

    /// `cargo fuzz` and `cargo xtask fuzz --coverage` find them there.
    #[test]
    fn every_target_is_one_of_libfuzzer() {
        let manifest = include_str!("../libfuzzer/Cargo.toml");
        let there: Vec<&str> = manifest
            .split("[[bin]]")
            .skip(1)
            .filter_map(|bin| bin.split_once("name = \"")?.1.split_once('"').map(|(name, _)| name))
            .collect();
        assert_eq!(there, super::names().collect::<Vec<_>>());
    }
}
