//! What charon holds, what it should hold, and the difference. Pure.

use std::collections::{BTreeMap, BTreeSet};

use ipnet::IpNet;

use super::messages::{ChildSa, IkeSa};
use crate::desired::tunnels::{Connection, Tunnels, aggregate};
use crate::marks;

/// Stage of an IKE_SA, as far as it matters here.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum IkeState {
    /// Being negotiated.
    Connecting,
    /// In use.
    Established,
    /// Replaced or on its way out.
    Leaving,
}

/// Stage of a CHILD_SA, as far as it matters here.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum ChildState {
    /// Being negotiated.
    Pending,
    /// Carries traffic.
    Live,
    /// Replaced or on its way out.
    Leaving,
}

/// One IKE_SA.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ike {
    /// Name of its connection.
    pub name: String,
    /// charon's number for it.
    pub id: u32,
    /// Its stage.
    pub state: IkeState,
    /// charon's word for its stage.
    pub state_name: String,
    /// The peer's address and port as seen from here.
    pub remote: String,
    /// Seconds since it was established.
    pub established: Option<u64>,
    /// Whether it is about to make a child.
    pub creating: bool,
    /// Its children.
    pub children: Vec<Child>,
}

/// One CHILD_SA.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Child {
    /// Name of its configuration.
    pub name: String,
    /// charon's number for it.
    pub id: u32,
    /// Its reqid.
    pub reqid: u32,
    /// Its stage.
    pub state: ChildState,
    /// Inbound and outbound SPI.
    pub spis: [u32; 2],
    /// Local and remote selectors as negotiated; none when they are not plain prefixes.
    pub selectors: Option<[BTreeSet<IpNet>; 2]>,
    /// Bytes received and sent.
    pub bytes: [u64; 2],
}

/// What charon holds, of whomever.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Actual {
    /// Names of loaded connections.
    pub connections: BTreeSet<String>,
    /// IKE_SAs.
    pub ikes: Vec<Ike>,
}

/// An SA that is to go.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Doomed {
    /// charon's number for it.
    pub id: u32,
    /// Its name, for people.
    pub name: String,
}

/// The difference, as far as connections and SAs go.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SaPlan {
    /// Connections to load, new or changed.
    pub load: BTreeMap<String, Connection>,
    /// Connections of ours that are no longer wanted.
    pub unload: BTreeSet<String>,
    /// Connections that this node is to bring up.
    pub initiate: BTreeMap<String, Connection>,
    /// CHILD_SAs that a better one replaces.
    pub terminate_children: BTreeSet<Doomed>,
    /// IKE_SAs of ours whose connection is no longer wanted, or that are double.
    pub terminate_ikes: BTreeSet<Doomed>,
}

/// What a connection lacks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Need {
    /// Nothing: a live child carries exactly what it should.
    Nothing,
    /// charon is at it.
    Patience,
    /// Somebody has to initiate.
    Initiation,
}

impl Ike {
    /// Takes over what `list-sas` said about the IKE_SA called `name`.
    pub fn new(name: &str, sa: IkeSa) -> Self {
        let creating = sa
            .tasks_queued
            .iter()
            .chain(&sa.tasks_active)
            .any(|task| task == "CHILD_CREATE");
        Self {
            name: name.to_owned(),
            id: sa.uniqueid,
            state: match sa.state.as_str() {
                "CREATED" | "CONNECTING" => IkeState::Connecting,
                "ESTABLISHED" | "PASSIVE" | "REKEYING" => IkeState::Established,
                _ => IkeState::Leaving,
            },
            state_name: sa.state,
            remote: match sa.remote_port {
                Some(port) if sa.remote_host.contains(':') => format!("[{}]:{port}", sa.remote_host),
                Some(port) => format!("{}:{port}", sa.remote_host),
                None => sa.remote_host,
            },
            established: sa.established,
            creating,
            children: sa.child_sas.into_values().map(Child::from).collect(),
        }
    }
}

impl From<ChildSa> for Child {
    fn from(sa: ChildSa) -> Self {
        let spi = |text: &Option<String>| {
            text.as_deref()
                .and_then(|text| u32::from_str_radix(text, 16).ok())
                .unwrap_or(0)
        };
        Self {
            id: sa.uniqueid,
            reqid: sa.reqid,
            state: match sa.state.as_str() {
                "CREATED" | "ROUTED" | "INSTALLING" | "RETRYING" => ChildState::Pending,
                "INSTALLED" | "UPDATING" | "REKEYING" => ChildState::Live,
                _ => ChildState::Leaving,
            },
            spis: [spi(&sa.spi_in), spi(&sa.spi_out)],
            selectors: prefixes(&sa.local_ts)
                .zip(prefixes(&sa.remote_ts))
                .map(|(local, remote)| [local, remote]),
            bytes: [sa.bytes_in, sa.bytes_out],
            name: sa.name,
        }
    }
}

fn prefixes(selectors: &[String]) -> Option<BTreeSet<IpNet>> {
    let nets: Option<Vec<IpNet>> = selectors
        .iter()
        .map(|text| {
            text.parse()
                .or_else(|_| text.parse::<std::net::IpAddr>().map(IpNet::from))
                .ok()
        })
        .collect();
    nets.map(|nets| aggregate(&nets))
}

/// What `connection`, called `name`, lacks.
pub fn need(name: &str, connection: &Connection, ikes: &[Ike]) -> Need {
    let mut patience = false;
    for ike in ikes
        .iter()
        .filter(|ike| ike.name == name && ike.state != IkeState::Leaving)
    {
        if ike.children.iter().any(|child| is_exact(child, connection)) {
            return Need::Nothing;
        }
        patience |= ike.state == IkeState::Connecting
            || ike.creating
            || ike
                .children
                .iter()
                .any(|child| child.state == ChildState::Pending);
    }
    if patience {
        Need::Patience
    } else {
        Need::Initiation
    }
}

/// The child configuration of `connection` with which to initiate; none while both are taken.
///
/// charon makes no second CHILD_SA of an equal configuration. So that a child which carries too little stays while
/// another is tried, there is a second configuration that differs in name and a second of lifetime.
pub fn child_to_initiate(name: &str, connection: &Connection, ikes: &[Ike]) -> Option<String> {
    connection.children().into_iter().find(|candidate| {
        !ikes
            .iter()
            .filter(|ike| ike.name == name && ike.state != IkeState::Leaving)
            .flat_map(|ike| &ike.children)
            .any(|child| child.name == *candidate && child.state != ChildState::Leaving)
    })
}

/// The difference between `desired` and `actual`. `loaded` is what this agent gave charon under which name.
pub fn plan(desired: &Tunnels, loaded: &BTreeMap<String, Connection>, actual: &Actual) -> SaPlan {
    let mut plan = SaPlan {
        load: desired
            .connections
            .iter()
            .filter(|(name, connection)| {
                !actual.connections.contains(*name) || loaded.get(*name) != Some(connection)
            })
            .map(|(name, connection)| (name.clone(), connection.clone()))
            .collect(),
        unload: actual
            .connections
            .iter()
            .filter(|name| {
                name.starts_with(marks::CONNECTION_PREFIX) && !desired.connections.contains_key(*name)
            })
            .cloned()
            .collect(),
        ..SaPlan::default()
    };
    for ike in &actual.ikes {
        let unwanted =
            ike.name.starts_with(marks::CONNECTION_PREFIX) && !desired.connections.contains_key(&ike.name);
        if unwanted && ike.state != IkeState::Leaving {
            plan.terminate_ikes.insert(doomed(ike.id, &ike.name));
        }
    }
    for (name, connection) in &desired.connections {
        if connection.initiate && need(name, connection, &actual.ikes) != Need::Nothing {
            plan.initiate.insert(name.clone(), connection.clone());
        }
        superseded(name, connection, &actual.ikes, &mut plan);
    }
    plan
}

/// Children of `connection` that a better one makes superfluous, and IKE_SAs beside the best child's.
fn superseded(name: &str, connection: &Connection, ikes: &[Ike], plan: &mut SaPlan) {
    let own: Vec<&Ike> = ikes
        .iter()
        .filter(|ike| ike.name == name && ike.state == IkeState::Established)
        .collect();
    let live = || {
        own.iter()
            .flat_map(|ike| ike.children.iter().map(|child| (*ike, child)))
            .filter(|(_, child)| child.state == ChildState::Live)
    };
    // Both ends must keep the same one of two equals: the SPIs are what both know.
    let rank = |child: &Child| {
        (
            is_exact(child, connection),
            std::cmp::Reverse(canonical(child.spis)),
        )
    };
    let Some((home, best)) = live().max_by_key(|(_, child)| rank(child)) else {
        return;
    };
    // Until a child carries what it should, whatever works stays; the newcomers among equals go.
    for (ike, child) in live().filter(|(_, child)| child.id != best.id) {
        let replaced =
            is_exact(best, connection) || child.selectors.is_some() && child.selectors == best.selectors;
        if replaced && ike.id == home.id {
            plan.terminate_children.insert(doomed(child.id, &child.name));
        }
    }
    if is_exact(best, connection) {
        // One side decides, else both might close the one that the other keeps.
        for ike in own.iter().filter(|ike| ike.id != home.id && connection.initiate) {
            plan.terminate_ikes.insert(doomed(ike.id, &ike.name));
        }
    }
}

fn is_exact(child: &Child, connection: &Connection) -> bool {
    child.state == ChildState::Live
        && child.reqid == connection.reqid
        && child
            .selectors
            .as_ref()
            .is_some_and(|[local, remote]| *local == connection.local && *remote == connection.remote)
}

fn canonical([a, b]: [u32; 2]) -> [u32; 2] {
    if a < b { [a, b] } else { [b, a] }
}

fn doomed(id: u32, name: &str) -> Doomed {
    Doomed {
        id,
        name: name.to_owned(),
    }
}

#[cfg(test)]
mod tests;
