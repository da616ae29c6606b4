//! What is known: names, their records, and the object behind each.

use dhow_intents::{NameIntent, NameRecord, Owner};
use hickory_proto::rr::rdata::{A, AAAA, CNAME, PTR, SRV};
use hickory_proto::rr::{Name, RData};
use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::Arc;

type Key = (String, String, String);

fn key(owner: &Owner) -> Key {
    (owner.kind.clone(), owner.namespace.clone(), owner.name.clone())
}

/// All names, lower case, without the final dot.
#[derive(Debug, Default)]
pub struct Zone {
    nodes: HashMap<String, Node>,
    intents: HashMap<Key, (u64, Vec<String>)>,
}

/// One name.
#[derive(Debug, Default)]
pub(crate) struct Node {
    sources: Vec<(Arc<Owner>, Vec<RData>)>,
    /// How many known names end in this one: such a name exists even without records of its own
    /// (RFC 8020).
    below: usize,
}

impl Node {
    /// The records of all sources, in order.
    pub(crate) fn records(&self) -> impl Iterator<Item = &RData> {
        self.sources.iter().flat_map(|(_, records)| records)
    }
}

fn parents(name: &str) -> impl Iterator<Item = &str> {
    std::iter::successors(name.split_once('.').map(|(_, rest)| rest), |rest| {
        rest.split_once('.').map(|(_, rest)| rest)
    })
}

fn absolute(name: &str) -> Option<Name> {
    let mut parsed = Name::from_ascii(name).ok()?;
    parsed.set_fqdn(true);
    Some(parsed)
}

fn encode(record: &NameRecord) -> Option<RData> {
    Some(match record {
        NameRecord::Address(IpAddr::V4(address)) => RData::A(A(*address)),
        NameRecord::Address(IpAddr::V6(address)) => RData::AAAA(AAAA(*address)),
        NameRecord::Service { target, port } => {
            RData::SRV(SRV::new(0, 100, *port, absolute(target)?))
        }
        NameRecord::Alias(target) => RData::CNAME(CNAME(absolute(target)?)),
        NameRecord::Pointer(target) => RData::PTR(PTR(absolute(target)?)),
    })
}

impl Zone {
    /// Replaces all names of an object, unless a newer revision of it is known.
    pub fn set(&mut self, intent: &NameIntent) {
        let key = key(&intent.owner);
        if self.intents.get(&key).is_some_and(|(known, _)| *known > intent.owner.revision) {
            return;
        }
        self.forget(&key);
        let owner = Arc::new(intent.owner.clone());
        let mut names = Vec::with_capacity(intent.names.len());
        for (name, records) in &intent.names {
            let name = name.trim_end_matches('.').to_ascii_lowercase();
            let encoded: Vec<RData> = records.iter().filter_map(encode).collect();
            if encoded.len() < records.len() {
                tracing::warn!(owner = %owner, name, "records with names that DNS cannot carry are left out");
            }
            for parent in parents(&name) {
                self.nodes.entry(parent.to_owned()).or_default().below += 1;
            }
            self.nodes.entry(name.clone()).or_default().sources.push((owner.clone(), encoded));
            names.push(name);
        }
        self.intents.insert(key, (owner.revision, names));
    }

    /// Forgets all names of an object.
    pub fn remove(&mut self, owner: &Owner) {
        self.forget(&key(owner));
    }

    fn forget(&mut self, key: &Key) {
        let Some((_, names)) = self.intents.remove(key) else { return };
        let mine =
            |owner: &Owner| owner.kind == key.0 && owner.namespace == key.1 && owner.name == key.2;
        for name in names {
            if let Some(node) = self.nodes.get_mut(&name) {
                // One entry a time: the intent may have listed a name twice.
                if let Some(at) = node.sources.iter().position(|(owner, _)| mine(owner)) {
                    node.sources.remove(at);
                }
            }
            for parent in parents(&name) {
                if let Some(node) = self.nodes.get_mut(parent) {
                    node.below = node.below.saturating_sub(1);
                }
                self.drop_if_empty(parent);
            }
            self.drop_if_empty(&name);
        }
    }

    fn drop_if_empty(&mut self, name: &str) {
        if self.nodes.get(name).is_some_and(|n| n.below == 0 && n.sources.is_empty()) {
            self.nodes.remove(name);
        }
    }

    /// A name, if it exists.
    pub(crate) fn get(&self, name: &str) -> Option<&Node> {
        self.nodes.get(name)
    }

    /// The objects behind a name.
    pub(crate) fn sources(&self, name: &str) -> Vec<Owner> {
        let name = name.trim_end_matches('.').to_ascii_lowercase();
        let node = self.nodes.get(&name);
        node.map(|n| n.sources.iter().map(|(o, _)| Owner::clone(o)).collect()).unwrap_or_default()
    }

    #[cfg(test)]
    fn is_empty(&self) -> bool {
        self.nodes.is_empty() && self.intents.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn intent(name: &str, revision: u64, names: &[&str]) -> NameIntent {
        let owner =
            Owner { kind: "svc".into(), namespace: "shop".into(), name: name.into(), revision };
        let record = || vec![NameRecord::Address(IpAddr::from([10, 0, 0, 1]))];
        NameIntent { owner, names: names.iter().map(|n| ((*n).into(), record())).collect() }
    }

    #[test]
    fn removing_everything_leaves_nothing() {
        let mut zone = Zone::default();
        zone.set(&intent("a", 1, &["a.shop.svc.x", "b.a.shop.svc.x", "b.a.shop.svc.x"]));
        zone.set(&intent("c", 1, &["a.shop.svc.x"]));
        assert_eq!(zone.sources("A.shop.svc.x.").len(), 2);
        assert!(zone.get("shop.svc.x").is_some() && zone.get("x").is_some());
        zone.remove(&intent("a", 9, &[]).owner);
        assert!(zone.get("b.a.shop.svc.x").is_none());
        assert_eq!(zone.sources("a.shop.svc.x")[0].name, "c");
        zone.remove(&intent("c", 9, &[]).owner);
        assert!(zone.is_empty(), "{zone:?}");
    }

    #[test]
    fn an_older_revision_is_ignored() {
        let mut zone = Zone::default();
        zone.set(&intent("a", 5, &["new"]));
        zone.set(&intent("a", 4, &["old"]));
        assert!(zone.get("old").is_none() && zone.get("new").is_some());
        zone.set(&intent("a", 5, &["newest"]));
        assert!(zone.get("new").is_none() && zone.get("newest").is_some());
    }
}
