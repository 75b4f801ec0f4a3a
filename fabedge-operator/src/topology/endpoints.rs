//! Nodes -> edge endpoints: names, prefixes, addresses.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use fabedge_common::config::{CLOUD, CONNECTOR, Endpoint, EndpointType, MAX_SELECTORS};
use ipnet::IpNet;

use super::Previous;
use super::allocate::allocate;
use super::claims::{CLOUD_ADDRESSES, Claims};
use crate::finding::Finding;
use crate::snapshot::{ClusterSnapshot, CniType, EdgeToEdge, Node, Settings, distinguished_name};

/// Names that the product gives to other things; a certificate with one of them would be theirs.
const RESERVED: [&str; 5] = [CONNECTOR, CLOUD, "mediator", "fabedge-client", "fabedge-operator"];

/// The longest common name that X.509 allows (RFC 5280 §A.1, ub-common-name).
const MAX_COMMON_NAME: usize = 64;

/// Node names by what the node is.
#[derive(Clone, Debug, Default)]
pub(super) struct Roles<'a> {
    pub(super) edges: BTreeMap<&'a str, &'a Node>,
    pub(super) connectors: BTreeMap<&'a str, &'a Node>,
    pub(super) cloud: BTreeMap<&'a str, &'a Node>,
    /// Edges in name, but not fit to be one.
    unfit: BTreeSet<&'a str>,
}

/// An edge endpoint and what decides how other edges reach it.
#[derive(Clone, Debug)]
pub(super) struct Edge {
    pub(super) endpoint: Endpoint,
    pub(super) internal_ips: Vec<IpAddr>,
    pub(super) mode: Option<EdgeToEdge>,
}

/// All edges.
#[derive(Clone, Debug, Default)]
pub(super) struct Edges {
    pub(super) found: BTreeMap<String, Edge>,
    pub(super) unresolved: BTreeSet<String>,
}

/// Tells edges, connector nodes and other cloud nodes apart by their labels.
pub(super) fn roles<'a>(
    snapshot: &'a ClusterSnapshot,
    settings: &Settings,
    findings: &mut Vec<Finding>,
) -> Roles<'a> {
    let mut roles = Roles::default();
    for (name, node) in &snapshot.nodes {
        let object = format!("Node {name}");
        let edge = node.matches(&settings.edge_labels);
        let connector = node.matches(&settings.connector_labels);
        if edge && connector {
            findings.push(Finding::error(
                object,
                "metadata.labels",
                "has the labels of an edge and of a connector node: remove one of the two",
            ));
            roles.unfit.insert(name);
        } else if edge {
            match unfit(name, &settings.cluster) {
                Some(why) => {
                    findings.push(Finding::error(object, "metadata.name", why));
                    roles.unfit.insert(name);
                }
                None => _ = roles.edges.insert(name, node),
            }
        } else if connector {
            roles.connectors.insert(name, node);
        } else {
            roles.cloud.insert(name, node);
        }
    }
    roles
}

/// Why a node of this name cannot be an edge.
fn unfit(name: &str, cluster: &str) -> Option<String> {
    if RESERVED.contains(&name) {
        return Some(format!(
            "{name:?} is reserved, an edge of that name would get another's identity: rename the node"
        ));
    }
    let length = format!("{cluster}.{name}").len();
    (length > MAX_COMMON_NAME).then(|| {
        format!(
            "{cluster}.{name} has {length} characters, but the common name of a certificate holds \
             {MAX_COMMON_NAME}: give the node or the cluster a shorter name"
        )
    })
}

/// Computes every edge's endpoint.
pub(super) fn edges(
    snapshot: &ClusterSnapshot,
    settings: &Settings,
    roles: &Roles<'_>,
    previous: &Previous,
    claims: &mut Claims,
    findings: &mut Vec<Finding>,
) -> Edges {
    // Who was there first keeps its prefix: published ones, then by age, then by name.
    let mut order: Vec<(&str, &Node)> = roles.edges.iter().map(|(name, node)| (*name, *node)).collect();
    order.sort_by_key(|(name, node)| {
        (
            Reverse(
                previous
                    .subnets
                    .get(*name)
                    .is_some_and(|had| settled(node, had, settings.cni)),
            ),
            node.created.unwrap_or(i64::MAX),
            *name,
        )
    });
    let subnets = match settings.cni {
        CniType::Flannel => from_nodes(&order, findings),
        CniType::Calico => from_pools(&order, settings, previous, findings),
    };
    let shared = shared_addresses(roles);

    let mut edges = Edges::default();
    edges
        .unresolved
        .extend(roles.unfit.iter().map(|name| (*name).to_owned()));
    for (name, node) in order {
        let object = format!("Node {name}");
        let endpoint = subnets.get(name).and_then(|(field, subnets)| {
            if let Err((field, why)) = claim(&object, field, subnets, node, settings, claims) {
                findings.push(Finding::error(
                    &object,
                    field,
                    format!("{why}: the edge is left out; {MEND}"),
                ));
                return None;
            }
            Some(endpoint(name, node, settings, subnets.clone(), &shared))
        });
        match endpoint {
            Some(edge) => _ = edges.found.insert(name.to_owned(), edge),
            None => _ = edges.unresolved.insert(name.to_owned()),
        }
    }
    debug_assert!(edges.found.len() + edges.unresolved.len() <= snapshot.nodes.len());
    edges
}

const MEND: &str = "give it a prefix of its own";

/// Takes the edge's prefixes and addresses, unless somebody who was there first stands in the way. A pod prefix that
/// held a node's own address would take that node's own network into the tunnel.
fn claim(
    object: &str,
    field: &'static str,
    subnets: &[IpNet],
    node: &Node,
    settings: &Settings,
    claims: &mut Claims,
) -> Result<(), (&'static str, String)> {
    if let Some((net, ip, owner)) = subnets
        .iter()
        .find_map(|net| claims.occupied(*net).map(|(ip, owner)| (net, ip, owner)))
    {
        return Err((
            field,
            format!("{net} holds {ip}, which {owner} has in its own network"),
        ));
    }
    let named = node.public_addresses.iter().filter_map(|text| text.parse().ok());
    let addresses: BTreeSet<IpAddr> = node.internal_ips.iter().copied().chain(named).collect();
    for ip in &addresses {
        let range = settings
            .pod_ranges()
            .chain(subnets.iter().copied())
            .find(|net| net.contains(ip));
        let claimed = || {
            claims
                .overlapping(IpNet::from(*ip))
                .filter(|(_, owner)| *owner != CLOUD_ADDRESSES)
        };
        if let Some(net) = range.or_else(|| claimed().map(|(net, _)| net)) {
            return Err((
                "status.addresses",
                format!(
                    "its own address {ip} lies in the pod prefix {net}, so its own network would be cut off"
                ),
            ));
        }
    }
    claims.claim_all(subnets, object).map_err(|(net, other, owner)| {
        (
            field,
            format!("{net} overlaps {other} of {owner}, which had it first"),
        )
    })?;
    for ip in addresses {
        claims.occupy(ip, object);
    }
    Ok(())
}

/// Whether the node was published with the prefixes that it claims now. One that has moved to others is a newcomer
/// there.
fn settled(node: &Node, had: &[IpNet], cni: CniType) -> bool {
    match cni {
        CniType::Flannel if !node.pod_cidrs.is_empty() => IpNet::aggregate(&node.pod_cidrs) == had,
        CniType::Flannel => IpNet::aggregate(&node.subnets) == had,
        CniType::Calico => true,
    }
}

type Subnets<'a> = BTreeMap<&'a str, (&'static str, Vec<IpNet>)>;

/// Flannel: the prefixes that the cluster gave to the node.
fn from_nodes<'a>(order: &[(&'a str, &Node)], findings: &mut Vec<Finding>) -> Subnets<'a> {
    let mut found = Subnets::new();
    for (name, node) in order {
        let (field, nets) = if node.pod_cidrs.is_empty() {
            ("metadata.annotations[fabedge.io/subnets]", &node.subnets)
        } else {
            ("spec.podCIDRs", &node.pod_cidrs)
        };
        if nets.is_empty() {
            findings.push(Finding::error(
                format!("Node {name}"),
                "spec.podCIDRs",
                "is missing, so its pods have no addresses: run the cluster with --allocate-node-cidrs, or set it",
            ));
        } else if nets.len() > MAX_SELECTORS {
            findings.push(Finding::error(
                format!("Node {name}"),
                field,
                format!(
                    "has {} prefixes, but a tunnel carries {MAX_SELECTORS}: aggregate them",
                    nets.len()
                ),
            ));
        } else {
            found.insert(name, (field, IpNet::aggregate(nets)));
        }
    }
    found
}

/// Calico: prefixes of our own pools; what a node has by annotation or by its last document it keeps.
fn from_pools<'a>(
    order: &[(&'a str, &Node)],
    settings: &Settings,
    previous: &Previous,
    findings: &mut Vec<Finding>,
) -> Subnets<'a> {
    const FIELD: &str = "metadata.annotations[fabedge.io/subnets]";
    let names: Vec<&str> = order.iter().map(|(name, _)| *name).collect();
    let nodes: BTreeMap<&str, &Node> = order.iter().copied().collect();
    let held = |name: &str| {
        let annotated = nodes
            .get(name)
            .map(|node| node.subnets.as_slice())
            .unwrap_or_default();
        let published = previous.subnets.get(name).map(Vec::as_slice).unwrap_or_default();
        annotated.iter().chain(published).copied().collect()
    };
    let mut found = Subnets::new();
    for pool in &settings.edge_pools {
        let allocation = allocate(*pool, &names, &held);
        for (name, net) in allocation.given {
            if let Some((name, _)) = nodes.get_key_value(name.as_str()) {
                found.entry(name).or_insert((FIELD, Vec::new())).1.push(net);
            }
        }
        for name in allocation.without {
            findings.push(Finding::error(
                format!("Node {name}"),
                FIELD,
                format!(
                    "the pool {} has no /{} left for it: enlarge edgePodCIDR or remove nodes",
                    pool.range, pool.prefix_len
                ),
            ));
        }
    }
    found
}

/// InternalIPs that more than one edge has: private addresses of sites behind NATs, for certain.
fn shared_addresses(roles: &Roles<'_>) -> BTreeSet<IpAddr> {
    let mut seen = BTreeSet::new();
    let addresses = roles
        .edges
        .values()
        .flat_map(|node| node.internal_ips.iter().collect::<BTreeSet<_>>());
    addresses.filter(|ip| !seen.insert(**ip)).copied().collect()
}

fn endpoint(
    name: &str,
    node: &Node,
    settings: &Settings,
    subnets: Vec<IpNet>,
    shared: &BTreeSet<IpAddr>,
) -> Edge {
    let mode = node.edge_to_edge.or(settings.edge_to_edge);
    let full_name = format!("{}.{name}", settings.cluster);
    Edge {
        endpoint: Endpoint {
            id: distinguished_name(&full_name),
            name: full_name,
            public_addresses: reachable_at(node, mode, shared),
            subnets,
            node_subnets: node.internal_ips.iter().copied().map(IpNet::from).collect(),
            service_subnets: Vec::new(),
            kind: EndpointType::EdgeNode,
            port: None,
        },
        internal_ips: node.internal_ips.clone(),
        mode,
    }
}

/// Where peers reach the edge: what its owner says, else its addresses of the public internet, else, if the
/// settings vouch for it, a private InternalIP that is its alone.
fn reachable_at(node: &Node, mode: Option<EdgeToEdge>, shared: &BTreeSet<IpAddr>) -> Vec<String> {
    if !node.public_addresses.is_empty() {
        return node.public_addresses.clone();
    }
    let known = || node.external_ips.iter().chain(&node.internal_ips);
    let public: BTreeSet<_> = known().filter(|ip| is_public(**ip)).collect();
    if public.is_empty() && mode == Some(EdgeToEdge::Direct) {
        return known()
            .filter(|ip| !shared.contains(ip))
            .map(ToString::to_string)
            .collect();
    }
    known()
        .filter(|ip| public.contains(ip) && !shared.contains(ip))
        .map(ToString::to_string)
        .collect()
}

/// An address of the public internet: not private (RFC 1918, RFC 4193), not a carrier's (RFC 6598), not special.
pub(super) fn is_public(ip: IpAddr) -> bool {
    match ip {
        IpAddr::V4(ip) => {
            let [a, b, ..] = ip.octets();
            !(ip.is_private()
                || ip.is_loopback()
                || ip.is_link_local()
                || ip.is_multicast()
                || ip.is_documentation()
                || a == 0
                || a >= 240
                || (a == 100 && (64..128).contains(&b))
                || (a == 198 && (18..20).contains(&b)))
        }
        IpAddr::V6(ip) => ip.segments()[0] & 0xe000 == 0x2000 && ip.segments()[..2] != [0x2001, 0xdb8],
    }
}
