//! The difference between the fast path that is and the one that should be. Pure.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use fabedge_common::abi::{POD_LEARNING, Pod, Route, SaCpu, SaId};
use ipnet::IpNet;

use crate::desired::datapath::{Datapath, Hook};
use crate::desired::spread::assign;

/// The pinned maps, as found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Pins {
    /// There are none.
    Absent,
    /// They are of our ABI version.
    Ours,
    /// They are of another version, or incomplete.
    Other(String),
}

/// The fast path as it is.
#[derive(Clone, Debug, PartialEq)]
pub struct Actual {
    /// The pinned maps.
    pub pins: Pins,
    /// Whether there is a folder for pins with none in it.
    pub bare: bool,
    /// Whether this process has loaded its programs.
    pub loaded: bool,
    /// Contents of `routes4` and `routes6`.
    pub routes: BTreeMap<IpNet, Route>,
    /// Whether the tables that programs read are known to say the same.
    pub compiled: bool,
    /// Contents of `pods4` and `pods6`.
    pub pods: BTreeMap<IpAddr, Pod>,
    /// Keys of `peers`.
    pub peers: BTreeSet<u32>,
    /// Hooks where a program of ours runs.
    pub hooks: BTreeSet<Hook>,
    /// Links of ours to devices that are gone.
    pub dead: BTreeSet<Hook>,
    /// Hooks that cannot be had.
    pub barred: BTreeSet<Hook>,
    /// Contents of `sas`.
    pub sas: BTreeMap<SaId, SaCpu>,
    /// CPUs with a queue in `cpus`.
    pub cpus: BTreeSet<u32>,
    /// Pods that have been learning for long enough.
    pub learned: BTreeSet<IpAddr>,
}

/// How programs and maps come into the kernel.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Load {
    /// Into new maps.
    Fresh,
    /// Onto the pinned maps of an agent before us.
    Reuse,
    /// Into new maps, which take the place of those of another version.
    Migrate {
        /// What was found.
        found: String,
    },
}

/// Changes of one map, or of several that look like one.
#[derive(Clone, Debug, PartialEq)]
pub struct Changes<K, V> {
    /// Entries to add or to overwrite.
    pub set: BTreeMap<K, V>,
    /// Entries to remove.
    pub remove: BTreeSet<K>,
}

impl<K, V> Default for Changes<K, V> {
    fn default() -> Self {
        Self {
            set: BTreeMap::new(),
            remove: BTreeSet::new(),
        }
    }
}

/// What is to be done.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Plan {
    /// Load the programs; whatever hooks there are get the new ones.
    pub load: Option<Load>,
    /// Changes of the route maps.
    pub routes: Changes<IpNet, Route>,
    /// Compile the routes, once they are set; they are again when some have been removed.
    pub compile: bool,
    /// Changes of the pod maps.
    pub pods: Changes<IpAddr, Pod>,
    /// Changes of the counters per peer.
    pub peers: Changes<u32, String>,
    /// Hooks that get a program.
    pub attach: BTreeSet<Hook>,
    /// Hooks that have one now; where a program is loaded, it takes over there.
    pub keep: BTreeSet<Hook>,
    /// Hooks that lose theirs, and links to nothing.
    pub detach: BTreeSet<Hook>,
    /// CPUs that get a queue.
    pub queues: Changes<u32, ()>,
    /// Changes of which CPU has which SA.
    pub sas: Changes<SaId, SaCpu>,
    /// Remove the pins of all maps, and their folder.
    pub unpin: bool,
}

impl Plan {
    /// Whether something is to be added or changed.
    pub fn grows(&self) -> bool {
        self.load.is_some()
            || self.compile
            || !self.pods.set.is_empty()
            || !self.peers.set.is_empty()
            || !self.attach.is_empty()
            || !self.queues.set.is_empty()
            || !self.sas.set.is_empty()
    }

    /// Whether something is to be removed.
    pub fn shrinks(&self) -> bool {
        !self.routes.remove.is_empty()
            || !self.pods.remove.is_empty()
            || !self.peers.remove.is_empty()
            || !self.detach.is_empty()
            || !self.queues.remove.is_empty()
            || !self.sas.remove.is_empty()
            || self.unpin
    }
}

/// Computes the difference.
pub fn plan(desired: &Datapath, actual: &Actual) -> Plan {
    if !desired.enabled {
        let detach = actual.hooks.union(&actual.dead).cloned().collect();
        return Plan {
            detach,
            unpin: actual.pins != Pins::Absent || actual.bare,
            ..Plan::default()
        };
    }
    let load = match (&actual.pins, actual.loaded) {
        (Pins::Ours, true) => None,
        (Pins::Ours, false) => Some(Load::Reuse),
        (Pins::Absent, _) => Some(Load::Fresh),
        (Pins::Other(found), _) => Some(Load::Migrate { found: found.clone() }),
    };
    let peers = desired
        .peers
        .iter()
        .filter(|(reqid, _)| !actual.peers.contains(reqid));
    let routes = Changes {
        set: differing(&desired.routes, &actual.routes),
        remove: obsolete(actual.routes.keys(), &desired.routes),
    };
    let spread = &desired.spread;
    let sas = assign(&spread.sas, &actual.sas, &spread.cpus);
    let queues = spread.cpus.difference(&actual.cpus);
    Plan {
        compile: load.is_some() || !routes.set.is_empty() || !actual.compiled,
        load,
        routes,
        pods: Changes {
            set: pods(desired, actual),
            remove: obsolete(actual.pods.keys(), &desired.pods),
        },
        peers: Changes {
            set: peers.map(|(reqid, name)| (*reqid, name.clone())).collect(),
            remove: obsolete(actual.peers.iter(), &desired.peers),
        },
        queues: Changes {
            set: queues.map(|cpu| (*cpu, ())).collect(),
            remove: actual.cpus.difference(&spread.cpus).copied().collect(),
        },
        sas: Changes {
            set: differing(&sas, &actual.sas),
            remove: obsolete(actual.sas.keys(), &sas),
        },
        attach: desired
            .hooks
            .iter()
            .filter(|hook| !actual.hooks.contains(hook) && !actual.barred.contains(hook))
            .cloned()
            .collect(),
        keep: desired.hooks.intersection(&actual.hooks).cloned().collect(),
        detach: actual
            .hooks
            .union(&actual.dead)
            .filter(|hook| !desired.hooks.contains(hook))
            .cloned()
            .collect(),
        unpin: false,
    }
}

/// The difference between two desired states, of which the maps hold the first, as far as peers and their prefixes go.
pub fn change(before: &Datapath, after: &Datapath) -> Plan {
    let peers = after
        .peers
        .iter()
        .filter(|(reqid, _)| !before.peers.contains_key(reqid));
    let routes = Changes {
        set: differing(&after.routes, &before.routes),
        remove: obsolete(before.routes.keys(), &after.routes),
    };
    Plan {
        compile: !routes.set.is_empty(),
        routes,
        peers: Changes {
            set: peers.map(|(reqid, name)| (*reqid, name.clone())).collect(),
            remove: obsolete(before.peers.keys(), &after.peers),
        },
        ..Plan::default()
    }
}

/// A pod that is new starts as one that learns; one that has learned enough is let onto the fast path.
fn pods(desired: &Datapath, actual: &Actual) -> BTreeMap<IpAddr, Pod> {
    let mut set = BTreeMap::new();
    for (addr, want) in &desired.pods {
        let learning = Pod {
            flags: want.flags | POD_LEARNING,
            ..*want
        };
        match actual.pods.get(addr) {
            Some(have) if have == want => {}
            Some(have) if *have == learning && actual.learned.contains(addr) => {
                set.insert(*addr, *want);
            }
            Some(have) if *have == learning => {}
            _ => {
                set.insert(*addr, learning);
            }
        }
    }
    set
}

fn differing<K: Ord + Copy, V: PartialEq + Copy>(
    want: &BTreeMap<K, V>,
    have: &BTreeMap<K, V>,
) -> BTreeMap<K, V> {
    want.iter()
        .filter(|(key, value)| have.get(key) != Some(value))
        .map(|(key, value)| (*key, *value))
        .collect()
}

fn obsolete<'a, K: Ord + Copy + 'a, V>(
    have: impl Iterator<Item = &'a K>,
    want: &BTreeMap<K, V>,
) -> BTreeSet<K> {
    have.filter(|key| !want.contains_key(key)).copied().collect()
}

#[cfg(test)]
mod tests;
