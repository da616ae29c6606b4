//! Keeps the programmed services and brings the kernel from one state to the next in one transaction.

use crate::program::{self, Door, Key, Map, Program, Step};
use crate::{Config, Error};
use dhow_intents::ServiceIntent;
use dhow_kernel::net::Socket;
use dhow_kernel::net::conntrack::Flow;
use dhow_kernel::net::nft::{Element, Set, Transaction, Type, Value, Values};
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

/// What one service holds in the kernel.
#[derive(Debug, Clone, Default)]
struct Programmed {
    /// Fingerprint of each chain.
    chains: BTreeMap<String, u64>,
    memories: BTreeSet<String>,
    elements: BTreeSet<(Map, Vec<u8>)>,
}

/// A service's wish for an element; the first wish is the one in the kernel.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Claim {
    service: Key,
    chain: String,
    owner: String,
}

/// Everything that services hold in the kernel.
#[derive(Debug, Default)]
pub(crate) struct Services {
    /// What was asked for since this process began.
    intents: HashMap<Key, Arc<ServiceIntent>>,
    programmed: HashMap<Key, Programmed>,
    claims: HashMap<(Map, Vec<u8>), Vec<Claim>>,
}

/// A difference between what was programmed and what the kernel holds.
pub type Drift = String;

fn parse_owner(text: &str) -> Option<Key> {
    let (kind, rest) = text.split_once(':')?;
    let (path, _) = rest.rsplit_once('@')?;
    let (namespace, name) = path.split_once('/')?;
    Some(Key { kind: kind.into(), namespace: namespace.into(), name: name.into() })
}

/// The service that a chain or map belongs to, by its name `svc/NAMESPACE/NAME/...`.
fn service_of(object: &str) -> Option<Key> {
    let mut parts = object.split('/');
    let kind = parts.next()?;
    matches!(kind, "svc" | "ext" | "ep" | "affinity").then_some(())?;
    Some(Key { kind: "svc".into(), namespace: parts.next()?.into(), name: parts.next()?.into() })
}

impl Services {
    /// Learns what an earlier process programmed.
    pub(crate) fn adopt(
        socket: &mut Socket,
        config: &Config,
    ) -> Result<Self, dhow_kernel::net::Error> {
        let table = &config.name;
        let mut services = Self::default();
        let mut prints: HashMap<String, u64> = HashMap::new();
        for rule in socket.nft_rules(Some(table))? {
            prints.insert(rule.chain, rule.fingerprint.unwrap_or(0));
        }
        for chain in socket.nft_chains(Some(table))? {
            if let Some(key) = service_of(&chain.name) {
                let print = prints.get(&chain.name).copied().unwrap_or(0);
                services.programmed.entry(key).or_default().chains.insert(chain.name, print);
            }
        }
        for (set, _) in socket.nft_sets(table)? {
            if let Some(key) = service_of(&set) {
                services.programmed.entry(key).or_default().memories.insert(set);
            }
        }
        for map in Map::ALL {
            for element in socket.nft_elements(table, map.name())? {
                let Value::Goto(chain) = element.value else { continue };
                let Some(key) = service_of(&chain).or_else(|| parse_owner(&element.comment)) else {
                    continue;
                };
                let id = (map, element.key);
                services.programmed.entry(key.clone()).or_default().elements.insert(id.clone());
                let claim = Claim { service: key, chain, owner: element.comment };
                services.claims.insert(id, vec![claim]);
            }
        }
        Ok(services)
    }

    /// The services that are programmed.
    pub(crate) fn keys(&self) -> Vec<Key> {
        self.programmed.keys().cloned().collect()
    }

    /// Sets and removes services in one transaction.
    pub(crate) fn apply(
        &mut self,
        socket: &mut Socket,
        config: &Config,
        set: &[Arc<ServiceIntent>],
        gone: &[Key],
    ) -> Result<(), Error> {
        let mut change = Change::new(config);
        // The last of several intents for one service counts.
        let mut wanted: BTreeMap<Key, Option<&Arc<ServiceIntent>>> = BTreeMap::new();
        for key in gone {
            wanted.insert(key.clone(), None);
        }
        for intent in set {
            wanted.insert(Key::from(&intent.owner), Some(intent));
        }
        // Kept even if the kernel refuses, so that a repair brings it.
        for (key, intent) in &wanted {
            match intent {
                Some(intent) => _ = self.intents.insert(key.clone(), Arc::clone(intent)),
                None => _ = self.intents.remove(key),
            }
        }
        let mut next: Vec<(Key, Option<Programmed>)> = Vec::new();
        let mut claims: BTreeMap<(Map, Vec<u8>), Vec<Claim>> = BTreeMap::new();
        for (key, intent) in wanted {
            let empty = Programmed::default();
            let old = self.programmed.get(&key).unwrap_or(&empty);
            let compiled = intent.map(|i| (i.owner.to_string(), program::compile(i, config)));
            let (owner, program) = compiled.unwrap_or_default();
            let now = change.service(old, &program, &owner);
            for id in old.elements.iter().chain(program.elements.keys()) {
                let list = claims
                    .entry(id.clone())
                    .or_insert_with(|| self.claims.get(id).cloned().unwrap_or_default());
                let mine = list.iter().position(|c| c.service == key);
                match (program.elements.get(id), mine) {
                    (Some(chain), Some(at)) if list[at].chain == *chain => {}
                    (Some(chain), at) => {
                        let (service, chain) = (key.clone(), chain.clone());
                        let claim = Claim { service, chain, owner: owner.clone() };
                        match at {
                            Some(at) => list[at] = claim,
                            None => list.push(claim),
                        }
                    }
                    (None, Some(at)) => _ = list.remove(at),
                    (None, None) => {}
                }
            }
            next.push((key, intent.is_some().then_some(now)));
        }
        for (id, list) in &claims {
            let before = self.claims.get(id).and_then(|l| l.first());
            change.element(id, before, list.first());
            if let [first, .., last] = list.as_slice() {
                tracing::warn!(map = id.0.name(), held_by = %first.owner, wanted_by = %last.owner,
                    "two services want the same address and port");
            }
        }
        let Change { doors, .. } = change.commit(socket)?;
        for (key, programmed) in next {
            match programmed {
                Some(programmed) => _ = self.programmed.insert(key, programmed),
                None => _ = self.programmed.remove(&key),
            }
        }
        for (id, list) in claims {
            if list.is_empty() {
                self.claims.remove(&id);
            } else {
                self.claims.insert(id, list);
            }
        }
        // From here on the new state holds; what follows only forgets the past.
        forget_flows(socket, &doors)
    }

    /// Learns anew what the kernel holds and programs what is missing of what was asked for.
    pub(crate) fn repair(&mut self, socket: &mut Socket, config: &Config) -> Result<(), Error> {
        let intents = std::mem::take(&mut self.intents);
        let all: Vec<_> = intents.values().cloned().collect();
        // What somebody else added, or what was asked to go when the kernel refused.
        let unknown = |key: &Key| !intents.contains_key(key) && !self.programmed.contains_key(key);
        let adopted = Self::adopt(socket, config).map_err(|e| Error::kernel("read rules", &e));
        match adopted {
            Ok(fresh) => {
                let gone: Vec<_> = fresh.keys().into_iter().filter(unknown).collect();
                *self = fresh;
                self.apply(socket, config, &all, &gone)
            }
            Err(error) => {
                self.intents = intents;
                Err(error)
            }
        }
    }

    /// Compares with the kernel.
    pub(crate) fn drift(&self, socket: &mut Socket, config: &Config) -> Result<Vec<Drift>, Error> {
        let wrap = |e| Error::kernel("read the rules back", &e);
        let actual = Self::adopt(socket, config).map_err(wrap)?;
        let mut drift = Vec::new();
        let flat = |services: &Self| -> BTreeMap<String, u64> {
            services.programmed.values().flat_map(|p| p.chains.clone()).collect()
        };
        let (want, have) = (flat(self), flat(&actual));
        for (chain, print) in &want {
            match have.get(chain) {
                None => drift.push(format!("chain {chain} is missing")),
                Some(other) if other != print => {
                    drift.push(format!("chain {chain} holds other rules than were programmed"));
                }
                Some(_) => {}
            }
        }
        for chain in have.keys().filter(|c| !want.contains_key(*c)) {
            drift.push(format!("chain {chain} should not exist"));
        }
        for (id, list) in &self.claims {
            let Some(first) = list.first() else { continue };
            let found = actual.claims.get(id).and_then(|l| l.first());
            if found.is_none_or(|f| f.chain != first.chain) {
                let map = id.0.name();
                drift.push(format!("map {map} does not lead to chain {}", first.chain));
            }
        }
        for (id, list) in &actual.claims {
            if !self.claims.contains_key(id) {
                let chain = list.first().map_or("", |c| &c.chain);
                drift.push(format!(
                    "map {} leads to chain {chain}, which nobody asked for",
                    id.0.name()
                ));
            }
        }
        drift.sort();
        Ok(drift)
    }
}

/// One transaction in the making, in the order that the kernel needs.
struct Change<'a> {
    config: &'a Config,
    create: Transaction,
    remove_elements: BTreeMap<Map, Vec<Vec<u8>>>,
    add_elements: BTreeMap<Map, Vec<Element>>,
    remove_chains: Vec<String>,
    remove_memories: Vec<String>,
    doors: Vec<Door>,
}

impl<'a> Change<'a> {
    fn new(config: &'a Config) -> Self {
        Self {
            config,
            create: Transaction::new(&config.name),
            remove_elements: BTreeMap::new(),
            add_elements: BTreeMap::new(),
            remove_chains: Vec::new(),
            remove_memories: Vec::new(),
            doors: Vec::new(),
        }
    }

    /// Plans the chains and maps of one service; gives what it will hold.
    fn service(&mut self, old: &Programmed, program: &Program, owner: &str) -> Programmed {
        for (name, seconds) in &program.memories {
            if old.memories.contains(name) {
                continue;
            }
            let set = Set {
                key: &[Type::Address],
                values: Values::None,
                timeout: Some(*seconds),
                comment: owner,
            };
            self.create.set(name, &set);
        }
        let prints: BTreeMap<String, u64> = program
            .chains
            .iter()
            .map(|(name, steps)| (name.clone(), program::fingerprint(steps)))
            .collect();
        let stale = |name: &String| old.chains.get(name) != prints.get(name);
        let changed: Vec<(&String, &Vec<Step>)> =
            program.chains.iter().filter(|(name, _)| stale(name)).collect();
        for (name, _) in &changed {
            if old.chains.contains_key(*name) {
                self.create.flush_chain(name);
            } else {
                self.create.chain(name, None, owner);
            }
        }
        // Rules may lead to chains of the same service, so all chains come first.
        for (name, steps) in &changed {
            program::emit(&mut self.create, name, steps, owner);
        }
        if !changed.is_empty() || old.elements.iter().ne(program.elements.keys()) {
            self.doors.extend(program.doors.iter().cloned());
        }
        self.remove_chains.extend(old.chains.keys().filter(|c| !prints.contains_key(*c)).cloned());
        let memories: BTreeSet<String> = program.memories.keys().cloned().collect();
        self.remove_memories.extend(old.memories.difference(&memories).cloned());
        // Flows to an element that goes lead nowhere from now on.
        for (map, key) in old.elements.iter().filter(|id| !program.elements.contains_key(*id)) {
            self.doors.extend(closed_door(*map, key));
        }
        Programmed {
            chains: prints,
            memories,
            elements: program.elements.keys().cloned().collect(),
        }
    }

    fn element(&mut self, id: &(Map, Vec<u8>), before: Option<&Claim>, after: Option<&Claim>) {
        if before.map(|c| &c.chain) == after.map(|c| &c.chain) {
            return;
        }
        if before.is_some() {
            self.remove_elements.entry(id.0).or_default().push(id.1.clone());
        }
        if let Some(after) = after {
            self.add_elements.entry(id.0).or_default().push(Element {
                key: id.1.clone(),
                value: Value::Goto(after.chain.clone()),
                comment: after.owner.clone(),
            });
        }
    }

    fn commit(mut self, socket: &mut Socket) -> Result<Self, Error> {
        let empty = Transaction::new(&self.config.name);
        let mut all = std::mem::replace(&mut self.create, empty);
        for (map, keys) in &self.remove_elements {
            all.delete_elements(map.name(), keys);
        }
        for (map, elements) in &self.add_elements {
            all.elements(map.name(), None, elements);
        }
        for chain in &self.remove_chains {
            all.flush_chain(chain);
        }
        for chain in &self.remove_chains {
            all.delete_chain(chain);
        }
        for memory in &self.remove_memories {
            all.delete_set(memory);
        }
        all.commit(socket).map_err(|e| Error::kernel("program services", &e))?;
        Ok(self)
    }
}

fn closed_door(map: Map, key: &[u8]) -> Option<Door> {
    let (address, rest) = match map {
        Map::ClusterIps | Map::ExternalIps => {
            let (address, rest) = key.split_first_chunk::<4>()?;
            (Some((*address).into()), rest)
        }
        Map::NodePorts => (None, key),
    };
    let port = u16::from_be_bytes(rest.get(4..6)?.try_into().ok()?);
    (rest[0] == 17).then(|| Door { address, port, protocol: rest[0], targets: Vec::new() })
}

/// Forgets UDP flows that still go to backends that are no more: without a connection that ends,
/// they would go there for as long as the client keeps sending.
fn forget_flows(socket: &mut Socket, doors: &[Door]) -> Result<(), Error> {
    if doors.is_empty() {
        return Ok(());
    }
    let wrap = |e| Error::kernel("forget stale UDP flows", &e);
    let mut by_port: HashMap<u16, Vec<&Door>> = HashMap::new();
    for door in doors {
        by_port.entry(door.port).or_default().push(door);
    }
    let stale = |flow: &Flow| {
        let to = flow.original.destination;
        let translated = flow.reply.source != to;
        by_port.get(&to.port()).into_iter().flatten().any(|door| {
            door.protocol == flow.original.protocol
                && match door.address {
                    Some(address) => address == *to.ip(),
                    // A flow to this port that was not translated may be to another machine.
                    None => translated,
                }
                && !door.targets.contains(&flow.reply.source)
        })
    };
    let flows: Vec<Flow> = socket.flows().map_err(wrap)?.into_iter().filter(stale).collect();
    socket.forget_flows(&flows).map_err(wrap)
}
