//! What the operator knows of the world, as values of its own: no manifest, no API type.

use std::collections::BTreeMap;
use std::net::IpAddr;

use fabedge_common::config::Endpoint;
use ipnet::IpNet;
use serde::{Deserialize, Serialize};

/// Every object that the topology is made of, by name.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ClusterSnapshot {
    /// Nodes of this cluster.
    pub nodes: BTreeMap<String, Node>,
    /// Communities.
    pub communities: BTreeMap<String, Community>,
    /// Other clusters.
    pub clusters: BTreeMap<String, Cluster>,
    /// What Calico has given out; absent where nobody tells, which is not the same as nothing.
    pub blocks: Option<Vec<Block>>,
    /// The node on which the connector runs, where somebody tells.
    pub connector_node: Option<String>,
}

/// A node of this cluster.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Node {
    /// Labels.
    pub labels: BTreeMap<String, String>,
    /// Creation, in seconds since 1970, where the source knows it.
    pub created: Option<i64>,
    /// Pod prefixes that the cluster gave to it.
    pub pod_cidrs: Vec<IpNet>,
    /// Addresses of type InternalIP.
    pub internal_ips: Vec<IpAddr>,
    /// Addresses of type ExternalIP.
    pub external_ips: Vec<IpAddr>,
    /// Addresses or DNS names at which peers reach it, as its owner says.
    pub public_addresses: Vec<String>,
    /// Pod prefixes that it was given earlier by this operator or its predecessor.
    pub subnets: Vec<IpNet>,
    /// Overrides [`Settings::edge_to_edge`].
    pub edge_to_edge: Option<EdgeToEdge>,
    /// Options of its agent as its owner writes them, by name.
    #[serde(default)]
    pub arguments: BTreeMap<String, String>,
}

/// A set of endpoints that may talk to each other.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Community {
    /// Full endpoint names.
    pub members: Vec<String>,
}

/// Another cluster.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Cluster {
    /// The token with which it may register, where there is one.
    #[serde(default)]
    pub token: Option<String>,
    /// Its pod and service prefixes. Its endpoints say it in more detail.
    #[serde(default)]
    pub cidrs: Vec<IpNet>,
    /// Its endpoints.
    pub endpoints: Vec<Endpoint>,
}

/// Pod addresses that Calico has given out.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Block {
    /// The addresses.
    pub cidr: IpNet,
    /// The node that has them; nobody while one that gave them back still has a pod with one of them.
    pub node: Option<String>,
}

/// How two edges of a community reach each other.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum EdgeToEdge {
    /// Directly, and a private InternalIP counts as reachable unless another edge has the same.
    Direct,
    /// Through the connector, always.
    Relay,
}

/// The cluster's CNI, which decides where pod prefixes come from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum CniType {
    /// Each node's own `spec.podCIDRs`.
    Flannel,
    /// Cloud pods in the blocks that Calico gave out (where nobody tells which, anywhere in the cluster CIDR), edges
    /// from a pool of ours.
    Calico,
}

/// A label that a node must carry.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LabelMatch {
    /// Key.
    pub key: String,
    /// Value; any when absent.
    pub value: Option<String>,
}

/// A range that edge pod prefixes are cut from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pool {
    /// The range.
    pub range: IpNet,
    /// Length of each prefix cut from it.
    pub prefix_len: u8,
}

/// The facts of this cluster that no object carries, and how it wants to be connected.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Settings {
    /// Name of the cluster: one DNS label.
    pub cluster: String,
    /// The cluster's CNI.
    pub cni: CniType,
    /// A node that matches all of these is an edge.
    pub edge_labels: Vec<LabelMatch>,
    /// A node that matches all of these may run the connector.
    pub connector_labels: Vec<LabelMatch>,
    /// Addresses or DNS names at which edges reach the connector.
    pub connector_public_addresses: Vec<String>,
    /// The connector's IKE port, if not the default.
    pub connector_public_port: Option<u16>,
    /// Connector node addresses that replace the nodes' own.
    pub connector_node_addresses: Vec<IpAddr>,
    /// Pools of edge pod prefixes, at most one per family.
    pub edge_pools: Vec<Pool>,
    /// Pod prefixes of the cluster.
    pub cluster_cidrs: Vec<IpNet>,
    /// Service prefixes of the cluster.
    pub service_cidrs: Vec<IpNet>,
    /// How edges reach each other; by reachability when absent.
    pub edge_to_edge: Option<EdgeToEdge>,
}

impl Settings {
    /// Ranges of pod prefixes, given out or not.
    pub fn pod_ranges(&self) -> impl Iterator<Item = IpNet> + '_ {
        let pools = self.edge_pools.iter().map(|pool| pool.range);
        self.cluster_cidrs.iter().copied().chain(pools)
    }
}

impl Node {
    /// Whether the node carries every one of `labels`. No label matches nothing, lest an empty list make every
    /// node an edge.
    pub fn matches(&self, labels: &[LabelMatch]) -> bool {
        !labels.is_empty()
            && labels.iter().all(|label| {
                self.labels
                    .get(&label.key)
                    .is_some_and(|have| label.value.as_ref().is_none_or(|want| want == have))
            })
    }
}

/// The name in the certificate of an endpoint, as strongSwan writes it.
pub fn distinguished_name(name: &str) -> String {
    format!("C=CN, O=fabedge.io, CN={name}")
}
