//! Snapshot and settings -> who is an endpoint, who talks to whom and how. Pure: no files, API, clock or chance.

pub mod allocate;
mod claims;
mod cloud;
pub mod endpoints;
pub mod peers;
pub mod render;

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use fabedge_common::config::Endpoint;
use ipnet::IpNet;

use crate::finding::Finding;
use crate::snapshot::{ClusterSnapshot, Settings};

/// What was published before: the topology keeps it where it can.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Previous {
    /// The pod prefixes in each edge's last document, by node name.
    pub subnets: BTreeMap<String, Vec<IpNet>>,
}

/// The whole network.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Topology {
    /// Name of the cluster.
    pub cluster: String,
    /// The connector.
    pub connector: Endpoint,
    /// Addresses to which cloud nodes send what goes through the connector; none while no node may run it.
    pub gateways: Vec<IpAddr>,
    /// What all other cloud nodes are together; absent when there are none.
    pub cloud: Option<Endpoint>,
    /// Edges by node name.
    pub edges: BTreeMap<String, Endpoint>,
    /// Community links between edges, in both directions, by node name.
    pub links: BTreeMap<String, BTreeMap<String, Link>>,
    /// Connectors of other clusters that ours shares a community with.
    pub foreign: Vec<Endpoint>,
    /// Every prefix of the pod network, aggregated: what an edge never sends by its default route.
    pub network_subnets: Vec<IpNet>,
    /// The part of it that lies beyond the connector. Cloud nodes close only this: the rest is for the cloud's own
    /// CNI to route, and a node that joins the cloud must work before any document tells of it.
    pub remote_subnets: Vec<IpNet>,
    /// Nodes that are edges but have no endpoint because something is wrong with them. What was published for
    /// them before stays.
    pub unresolved: BTreeSet<String>,
}

/// How one edge reaches another.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Link {
    /// Over a tunnel of its own, which this side initiates.
    Initiate,
    /// Over a tunnel of its own, which the other side initiates.
    Answer,
    /// Through the connector.
    Relay,
}

/// Computes the topology and everything that is wrong with its input.
pub fn compute(
    snapshot: &ClusterSnapshot,
    settings: &Settings,
    previous: &Previous,
) -> (Topology, Vec<Finding>) {
    let mut findings = Vec::new();
    let mut claims = claims::Claims::default();
    let roles = endpoints::roles(snapshot, settings, &mut findings);
    let cloud = cloud::cloud(snapshot, settings, &roles, &mut claims, &mut findings);
    let edges = endpoints::edges(snapshot, settings, &roles, previous, &mut claims, &mut findings);
    let (foreign, others) = cloud::foreign(snapshot, settings, &mut claims, &mut findings);
    let links = peers::links(
        snapshot,
        settings,
        &edges,
        &foreign,
        &cloud.connector,
        &mut findings,
    );

    let mut remote: Vec<IpNet> = settings.edge_pools.iter().map(|pool| pool.range).collect();
    remote.extend(edges.found.values().flat_map(|edge| &edge.endpoint.subnets));
    remote.extend(others);
    let mut network = remote.clone();
    network.extend(&settings.cluster_cidrs);
    network.extend(&cloud.connector.subnets);
    let topology = Topology {
        cluster: settings.cluster.clone(),
        connector: cloud.connector,
        gateways: cloud.gateways,
        cloud: cloud.others,
        edges: edges
            .found
            .into_iter()
            .map(|(name, edge)| (name, edge.endpoint))
            .collect(),
        links: links.edges,
        foreign: links.foreign,
        network_subnets: IpNet::aggregate(&network),
        remote_subnets: IpNet::aggregate(&remote),
        unresolved: edges.unresolved,
    };
    (topology, findings)
}

#[cfg(test)]
mod tests;
