//! What charon holds, what it should hold, and the difference. Pure.

use std::collections::{BTreeMap, BTreeSet};

use ipnet::IpNet;

use super::messages::{ChildSa, IkeSa};
use crate::desired::tunnels::{Connection, Connections, Tunnels, aggregate};
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
    pub load: Connections,
    /// Connections of ours that are no longer wanted.
    pub unload: BTreeSet<String>,
    /// Connections that this node is to bring up.
    pub initiate: Connections,
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

/// IKE_SAs by the names of their connections.
#[derive(Debug)]
pub struct ByName<'a>(BTreeMap<&'a str, Vec<&'a Ike>>);

impl<'a> ByName<'a> {
    /// Sorts them.
    pub fn new(ikes: &'a [Ike]) -> Self {
        let mut by_name: BTreeMap<&str, Vec<&Ike>> = BTreeMap::new();
        for ike in ikes {
            by_name.entry(&ike.name).or_default().push(ike);
        }
        Self(by_name)
    }

    /// Those of one connection.
    pub fn of(&self, name: &str) -> &[&'a Ike] {
        self.0.get(name).map_or(&[], Vec::as_slice)
    }
}

/// What `connection` lacks, which has these IKE_SAs.
pub fn need(connection: &Connection, ikes: &[&Ike]) -> Need {
    let mut patience = false;
    for ike in ikes.iter().filter(|ike| ike.state != IkeState::Leaving) {
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
pub fn child_to_initiate(connection: &Connection, ikes: &[&Ike]) -> Option<String> {
    connection.children().into_iter().find(|candidate| {
        !ikes
            .iter()
            .filter(|ike| ike.state != IkeState::Leaving)
            .flat_map(|ike| &ike.children)
            .any(|child| child.name == *candidate && child.state != ChildState::Leaving)
    })
}

/// The difference between `desired` and `actual`. `loaded` is what this agent gave charon under which name.
pub fn plan(desired: &Tunnels, loaded: &Connections, actual: &Actual) -> SaPlan {
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
    let by_name = ByName::new(&actual.ikes);
    for ike in &actual.ikes {
        let unwanted =
            ike.name.starts_with(marks::CONNECTION_PREFIX) && !desired.connections.contains_key(&ike.name);
        if unwanted && ike.state != IkeState::Leaving {
            plan.terminate_ikes.insert(Doomed {
                id: ike.id,
                name: ike.name.clone(),
            });
        }
    }
    // What is on its way to an address that is no longer the peer's would keep its place until it is given up.
    for (name, connection) in &plan.load {
        let moved = loaded.get(name).is_some_and(|old| {
            (&old.remote_addrs, old.remote_port) != (&connection.remote_addrs, connection.remote_port)
        });
        let astray = |ike: &&&Ike| moved && ike.state == IkeState::Connecting;
        let astray = by_name.of(name).iter().filter(astray);
        plan.terminate_ikes.extend(astray.map(|ike| Doomed {
            id: ike.id,
            name: name.clone(),
        }));
    }
    for (name, connection) in &desired.connections {
        let ikes = by_name.of(name);
        if connection.initiate && need(connection, ikes) != Need::Nothing {
            plan.initiate.insert(name.clone(), connection.clone());
        }
        superseded(connection, ikes, &mut plan);
    }
    plan
}

/// Children of `connection` that a better one makes superfluous, and IKE_SAs beside the best child's.
///
/// The initiator decides, else both ends might close the one that the other keeps; what it fails to close is
/// [`excess`] at the other end.
fn superseded(connection: &Connection, ikes: &[&Ike], plan: &mut SaPlan) {
    if !connection.initiate {
        return;
    }
    let Some((home, best)) = best(connection, ikes) else {
        return;
    };
    for (ike, child) in live(ikes).filter(|(ike, child)| child.id != best.id && ike.id == home.id) {
        if replaces(best, child, connection) {
            plan.terminate_children.insert(doomed(ike, child));
        }
    }
    if is_exact(best, connection) {
        for ike in ikes.iter().filter(|ike| ike.state == IkeState::Established) {
            if ike.id != home.id {
                plan.terminate_ikes.insert(Doomed {
                    id: ike.id,
                    name: ike.name.clone(),
                });
            }
        }
    }
}

/// Live children of connections in `desired` that carry more than they should, or that a better one replaces, and
/// that the initiator should therefore have closed. They may be closed when they have been here for long.
pub fn excess(desired: &Tunnels, actual: &Actual) -> BTreeSet<Doomed> {
    let mut excess = BTreeSet::new();
    let by_name = ByName::new(&actual.ikes);
    for (name, connection) in &desired.connections {
        let ikes = by_name.of(name);
        let best = best(connection, ikes);
        for (ike, child) in live(ikes) {
            let replaced =
                best.is_some_and(|(_, best)| best.id != child.id && replaces(best, child, connection));
            let too_much = child.selectors.as_ref().is_none_or(|[local, remote]| {
                !covers(&connection.local, local) || !covers(&connection.remote, remote)
            });
            if replaced || too_much {
                excess.insert(doomed(ike, child));
            }
        }
    }
    excess
}

fn live<'a>(ikes: &[&'a Ike]) -> impl Iterator<Item = (&'a Ike, &'a Child)> {
    ikes.iter()
        .copied()
        .filter(|ike| ike.state == IkeState::Established)
        .flat_map(|ike| ike.children.iter().map(move |child| (ike, child)))
        .filter(|(_, child)| child.state == ChildState::Live)
}

/// The child that carries what it should, else the newest: the kernel sends by the newest, so closing an older one
/// loses nothing.
fn best<'a>(connection: &Connection, ikes: &[&'a Ike]) -> Option<(&'a Ike, &'a Child)> {
    live(ikes).max_by_key(|(_, child)| (is_exact(child, connection), child.id))
}

/// Whether `child` is of no use beside `best`. Until a child carries what it should, whatever works stays.
fn replaces(best: &Child, child: &Child, connection: &Connection) -> bool {
    is_exact(best, connection) || child.selectors.is_some() && child.selectors == best.selectors
}

fn covers(outer: &BTreeSet<IpNet>, inner: &BTreeSet<IpNet>) -> bool {
    inner
        .iter()
        .all(|net| outer.iter().any(|outer| outer.contains(net)))
}

fn is_exact(child: &Child, connection: &Connection) -> bool {
    child.state == ChildState::Live
        && child.reqid == connection.reqid
        && child
            .selectors
            .as_ref()
            .is_some_and(|[local, remote]| *local == connection.local && *remote == connection.remote)
}

fn doomed(ike: &Ike, child: &Child) -> Doomed {
    Doomed {
        id: child.id,
        name: format!("{} of {}", child.name, ike.name),
    }
}

#[cfg(test)]
mod tests;
