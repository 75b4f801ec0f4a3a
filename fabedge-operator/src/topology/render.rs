//! Topology -> documents. Generations are the publisher's to give.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use fabedge_common::config::{CLOUD, CONNECTOR, Endpoint, NodeConfig, Peer, VERSION, Via};
use ipnet::IpNet;

use super::{Link, Topology};

/// Every document by local name: an edge's node name, `connector`, `cloud`.
pub fn documents(topology: &Topology) -> BTreeMap<String, NodeConfig> {
    let mut found = BTreeMap::new();
    for name in topology.edges.keys() {
        if let Some(document) = document(topology, name) {
            found.insert(name.clone(), document);
        }
    }
    found.insert(CONNECTOR.to_owned(), connector(topology));
    if let Some(document) = cloud(topology) {
        found.insert(CLOUD.to_owned(), document);
    }
    found
}

/// The document of one edge.
pub fn document(topology: &Topology, edge: &str) -> Option<NodeConfig> {
    let mut peers = vec![Peer {
        initiate: true,
        ..direct(topology.connector.clone())
    }];
    for (name, link) in topology.links.get(edge).into_iter().flatten() {
        peers.push(Peer {
            via: if *link == Link::Relay {
                Via::Relay
            } else {
                Via::Direct
            },
            initiate: *link == Link::Initiate,
            ..direct(topology.edges.get(name)?.clone())
        });
    }
    Some(config(
        &topology.network_subnets,
        topology.edges.get(edge)?.clone(),
        peers,
    ))
}

/// The connector's document: every edge, and the connectors of other clusters.
pub fn connector(topology: &Topology) -> NodeConfig {
    let edges = topology.edges.iter().map(|(name, endpoint)| Peer {
        relays: topology
            .links
            .get(name)
            .into_iter()
            .flatten()
            .filter(|(_, link)| **link == Link::Relay)
            .filter_map(|(other, _)| topology.edges.get(other))
            .map(|other| other.name.clone())
            .collect(),
        ..direct(endpoint.clone())
    });
    let foreign = topology.foreign.iter().map(|endpoint| Peer {
        initiate: topology.connector.name < endpoint.name,
        ..direct(endpoint.clone())
    });
    config(
        &topology.remote_subnets,
        topology.connector.clone(),
        edges.chain(foreign).collect(),
    )
}

/// What all other cloud nodes share: everything beyond the connector is reached through it.
pub fn cloud(topology: &Topology) -> Option<NodeConfig> {
    let endpoint = topology.cloud.clone()?;
    if topology.gateways.is_empty() {
        return None;
    }
    let beyond: BTreeSet<IpNet> = topology
        .edges
        .values()
        .chain(&topology.foreign)
        .flat_map(|endpoint| endpoint.subnets.iter().copied())
        .collect();
    let connector = Endpoint {
        subnets: IpNet::aggregate(&beyond.into_iter().collect()),
        node_subnets: topology.gateways.iter().copied().map(IpNet::from).collect(),
        service_subnets: Vec::new(),
        ..topology.connector.clone()
    };
    Some(config(
        &topology.remote_subnets,
        endpoint,
        vec![direct(connector)],
    ))
}

fn direct(endpoint: Endpoint) -> Peer {
    Peer {
        endpoint,
        via: Via::Direct,
        initiate: false,
        relays: Vec::new(),
    }
}

fn config(network_subnets: &[IpNet], endpoint: Endpoint, peers: Vec<Peer>) -> NodeConfig {
    NodeConfig {
        version: VERSION,
        generation: 0,
        endpoint,
        peers: peers.into_iter().map(Arc::new).collect(),
        network_subnets: network_subnets.to_vec(),
        mediator: None,
    }
}
