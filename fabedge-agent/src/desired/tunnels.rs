//! Desired state of [`crate::tunnels`]: one IKE connection per direct peer, with one CHILD_SA that carries every
//! selector. Pure.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use fabedge_common::abi;
use fabedge_common::config::{EndpointType, NodeConfig, Peer, Problem, Via};
use ipnet::IpNet;
use sha2::{Digest, Sha256};

use crate::facts::{Facts, TunnelKind};
use crate::marks;

/// More traffic selectors than this do not fit: an IKEv2 TS payload counts them in one octet (RFC 7296 §3.13).
pub const MAX_SELECTORS: usize = 200;

/// Connections by VICI name. They are many, and held at several places.
pub type Connections = BTreeMap<String, Arc<Connection>>;

/// What charon should hold of ours.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Tunnels {
    /// IKE connections by VICI name.
    pub connections: Connections,
    /// Peers that get no connection, and why.
    pub problems: Vec<Problem>,
}

/// One IKE connection and its CHILD_SA.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Connection {
    /// Full name of the peer: `fabedge.edge1`.
    pub peer: String,
    /// Own IKE identity.
    pub local_id: String,
    /// The peer's IKE identity.
    pub remote_id: String,
    /// Where to initiate to; empty when this node only answers, from wherever the peer comes (NAT).
    pub remote_addrs: Vec<String>,
    /// The peer's IKE port where it is not 500.
    pub remote_port: Option<u16>,
    /// Whether this node initiates.
    pub initiate: bool,
    /// Identity of the peer in the kernel's SAs, fixed, so that programs and policies can refer to it.
    pub reqid: u32,
    /// `if_id` of SAs and policies; none where charon itself performs ESP.
    pub if_id: Option<u32>,
    /// Name of the CHILD_SA. It carries a hash of the selectors, so a changed set is another child, which comes
    /// up before the old one goes.
    pub child: String,
    /// Local traffic selectors, aggregated.
    pub local: BTreeSet<IpNet>,
    /// Remote traffic selectors, aggregated.
    pub remote: BTreeSet<IpNet>,
}

impl Tunnels {
    /// Computes the connections of `config`'s node.
    pub fn new(config: &NodeConfig, facts: &Facts) -> Self {
        let mut tunnels = Self::default();
        // The other cloud nodes route through the connector and hold no tunnels.
        if config.endpoint.kind == EndpointType::CloudNode {
            return tunnels;
        }
        let direct =
            |peer: &&Arc<Peer>| peer.via == Via::Direct && peer.endpoint.kind != EndpointType::CloudNode;
        let mut reqids = BTreeMap::new();
        let mut remotes = Claims::default();
        let peers = config
            .peers
            .iter()
            .map(|peer| (peer.endpoint.name.as_str(), &**peer));
        let peers: BTreeMap<&str, &Peer> = peers.collect();
        for peer in config.peers.iter().filter(direct) {
            let connection = connection(config, &peers, peer, facts.tunnel);
            let object = format!("peer {}", peer.endpoint.name);
            let problem = selectors(&object, &connection)
                .or_else(|| {
                    let other = reqids.get(&connection.reqid)?;
                    Some(Problem::new(
                        &object,
                        "name",
                        format!("has the same reqid {:#x} as {other}: rename one", connection.reqid),
                    ))
                })
                .or_else(|| {
                    let (net, other, owner) = remotes.conflict(&connection.remote)?;
                    Some(Problem::new(
                        &object,
                        "subnets",
                        format!("{net} overlaps {other}, which leads to {owner}; charon would move traffic to either"),
                    ))
                });
            if let Some(problem) = problem {
                tunnels.problems.push(problem);
                continue;
            }
            reqids.insert(connection.reqid, peer.endpoint.name.clone());
            remotes.claim(&connection);
            tunnels.connections.insert(
                format!("{}{}", marks::CONNECTION_PREFIX, peer.endpoint.name),
                Arc::new(connection),
            );
        }
        tunnels
    }
}

impl Connection {
    /// Names of the two equal configurations of the CHILD_SA, of which one is used at a time; the other is for
    /// trying again while the first carries less than it should.
    pub fn children(&self) -> [String; 2] {
        [self.child.clone(), format!("{}-again", self.child)]
    }
}

/// Prefixes already taken by a connection, by family, first and last address.
#[derive(Default)]
struct Claims(BTreeMap<(bool, u128), (u128, IpNet, String)>);

impl Claims {
    /// The first of `nets` that overlaps a claimed prefix, with that prefix and its owner.
    fn conflict(&self, nets: &BTreeSet<IpNet>) -> Option<(IpNet, IpNet, &str)> {
        nets.iter().find_map(|net| {
            let (v6, first, last) = span(net);
            // Claimed prefixes are disjoint, so only the last one that starts before our end can reach into us.
            let (_, (end, other, owner)) = self.0.range((v6, 0)..=(v6, last)).next_back()?;
            (*end >= first).then_some((*net, *other, owner.as_str()))
        })
    }

    fn claim(&mut self, connection: &Connection) {
        for net in &connection.remote {
            let (v6, first, last) = span(net);
            self.0.insert((v6, first), (last, *net, connection.peer.clone()));
        }
    }
}

fn span(net: &IpNet) -> (bool, u128, u128) {
    match net {
        IpNet::V4(net) => (
            false,
            u32::from(net.network()).into(),
            u32::from(net.broadcast()).into(),
        ),
        IpNet::V6(net) => (true, u128::from(net.network()), u128::from(net.broadcast())),
    }
}

fn connection(
    config: &NodeConfig,
    peers: &BTreeMap<&str, &Peer>,
    peer: &Peer,
    tunnel: TunnelKind,
) -> Connection {
    let own = &config.endpoint;
    let remote = &peer.endpoint;
    let name = format!("{}{}", marks::CONNECTION_PREFIX, remote.name);

    let mut local_nets = own.subnets.clone();
    if own.kind == EndpointType::Connector {
        // Another cluster's pods reach our pods, and not our nodes, whose addresses may be those of its own.
        if remote.kind != EndpointType::Connector {
            local_nets.extend(&own.node_subnets);
        }
        let relayed = peer.relays.iter().filter_map(|name| peers.get(name.as_str()));
        local_nets.extend(relayed.flat_map(|relayed| &relayed.endpoint.subnets));
    }
    let mut remote_nets = remote.subnets.clone();
    if remote.kind == EndpointType::Connector {
        remote_nets.extend(&remote.node_subnets);
    }
    let is_own_connector = remote.kind == EndpointType::Connector
        && config
            .connector()
            .is_some_and(|connector| connector.endpoint.name == remote.name);
    if is_own_connector {
        let relayed = config.peers.iter().filter(|p| p.via == Via::Relay);
        remote_nets.extend(relayed.flat_map(|relayed| &relayed.endpoint.subnets));
    }
    let local = aggregate(&local_nets);
    let remote_set = aggregate(&remote_nets);

    Connection {
        peer: remote.name.clone(),
        local_id: own.id.clone(),
        remote_id: remote.id.clone(),
        remote_addrs: if peer.initiate {
            remote.public_addresses.clone()
        } else {
            Vec::new()
        },
        remote_port: remote.port.filter(|port| peer.initiate && *port != 500),
        initiate: peer.initiate,
        reqid: abi::reqid(&remote.name),
        if_id: match tunnel {
            TunnelKind::Xfrm => Some(marks::IF_ID),
            TunnelKind::Libipsec => None,
        },
        child: child_name(&name, &local, &remote_set),
        local,
        remote: remote_set,
    }
}

/// Prefixes as a canonical set: what lies within another is dropped, neighbours are joined.
pub fn aggregate(nets: &[IpNet]) -> BTreeSet<IpNet> {
    let nets: Vec<IpNet> = nets.iter().map(IpNet::trunc).collect();
    IpNet::aggregate(&nets).into_iter().collect()
}

fn child_name(connection: &str, local: &BTreeSet<IpNet>, remote: &BTreeSet<IpNet>) -> String {
    let mut hash = Sha256::new();
    for (side, nets) in [("local", local), ("remote", remote)] {
        hash.update(side);
        for net in nets {
            hash.update(format!(" {net}"));
        }
    }
    let [a, b, c, d, ..]: [u8; 32] = hash.finalize().into();
    format!("{connection}-{:08x}", u32::from_be_bytes([a, b, c, d]))
}

fn selectors(object: &str, connection: &Connection) -> Option<Problem> {
    for (side, nets) in [("local", &connection.local), ("remote", &connection.remote)] {
        if nets.is_empty() {
            return Some(Problem::new(
                object,
                "subnets",
                format!("a tunnel needs at least one {side} prefix"),
            ));
        }
        if nets.len() > MAX_SELECTORS {
            return Some(Problem::new(
                object,
                "subnets",
                format!(
                    "{} {side} prefixes, but a tunnel carries at most {MAX_SELECTORS}: aggregate them",
                    nets.len()
                ),
            ));
        }
    }
    if connection.initiate && connection.remote_addrs.is_empty() {
        return Some(Problem::new(
            object,
            "publicAddresses",
            "is empty, but this node is to initiate: give the peer an address",
        ));
    }
    None
}

#[cfg(test)]
mod tests;
