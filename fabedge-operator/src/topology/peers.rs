//! Communities -> who talks to whom, directly or through the connector.

use std::collections::{BTreeMap, BTreeSet};

use fabedge_common::config::{CONNECTOR, Endpoint, MAX_SELECTORS};

use super::Link;
use super::endpoints::{Edge, Edges};
use crate::finding::Finding;
use crate::snapshot::{ClusterSnapshot, EdgeToEdge, Settings};

/// Every link that communities make.
#[derive(Debug, Default)]
pub(super) struct Links {
    pub(super) edges: BTreeMap<String, BTreeMap<String, Link>>,
    pub(super) foreign: Vec<Endpoint>,
}

/// Computes the links.
pub(super) fn links(
    snapshot: &ClusterSnapshot,
    settings: &Settings,
    edges: &Edges,
    foreign: &[Endpoint],
    connector: &Endpoint,
    findings: &mut Vec<Finding>,
) -> Links {
    let mut links = Links::default();
    let foreign_by_name: BTreeMap<&str, &Endpoint> = foreign.iter().map(|e| (e.name.as_str(), e)).collect();
    let mut foreign_peers = BTreeSet::new();
    // Selectors of each edge's tunnel to the connector, which relayed prefixes add to.
    let own = connector.subnets.len() + connector.node_subnets.len();
    let mut selectors: BTreeMap<&str, usize> = BTreeMap::new();
    for (name, community) in &snapshot.communities {
        let object = format!("Community {name}");
        let mut local = BTreeSet::new();
        let (mut with_connector, mut connectors, mut others) = (false, BTreeSet::new(), Vec::new());
        for (i, member) in community.members.iter().enumerate() {
            let field = format!("spec.members[{i}]");
            // A cluster's name has no dot, so what stands before the first one is all of it.
            let (cluster, node) = member.split_once('.').unwrap_or(("", member));
            if cluster != settings.cluster {
                if node == CONNECTOR && foreign_by_name.contains_key(member.as_str()) {
                    connectors.insert(member.as_str());
                } else {
                    match pending_foreign(snapshot, cluster, node) {
                        Some(why) => {
                            findings.push(Finding::warning(&object, field, format!("{member}: {why}")))
                        }
                        None => others.push((field, member)),
                    }
                }
            } else if node == CONNECTOR {
                with_connector = true;
            } else if let Some((edge, _)) = edges.found.get_key_value(node) {
                local.insert(edge.as_str());
            } else {
                let why = if edges.unresolved.contains(node) {
                    "the node has a problem of its own, see there"
                } else if snapshot.nodes.contains_key(node) {
                    "the node is not an edge: label it, or take it out of the community"
                } else {
                    "there is no such node yet: pending until there is"
                };
                findings.push(Finding::warning(&object, field, format!("{member}: {why}")));
            }
        }
        if with_connector {
            foreign_peers.extend(connectors);
        }
        for (field, member) in others {
            if !local.is_empty() || with_connector {
                findings.push(Finding::error(
                    &object,
                    field,
                    format!(
                        "{member} is an edge of another cluster: clusters are linked by their connectors, put \
                         those into a community"
                    ),
                ));
            }
        }
        let mut refused: BTreeMap<&str, usize> = BTreeMap::new();
        for (i, a) in local.iter().enumerate() {
            for b in local.iter().skip(i + 1) {
                if links.edges.get(*a).is_some_and(|peers| peers.contains_key(*b)) {
                    continue;
                }
                let (Some(edge_a), Some(edge_b)) = (edges.found.get(*a), edges.found.get(*b)) else {
                    continue;
                };
                let [ab, ba] = decide(edge_a, edge_b);
                if ab == Link::Relay {
                    let full = |at: &str, more: usize| {
                        selectors.get(at).copied().unwrap_or(own) + more > MAX_SELECTORS
                    };
                    let (of_a, of_b) = (edge_a.endpoint.subnets.len(), edge_b.endpoint.subnets.len());
                    if full(a, of_b) || full(b, of_a) {
                        *refused.entry(if full(a, of_b) { a } else { b }).or_default() += 1;
                        continue;
                    }
                    *selectors.entry(a).or_insert(own) += of_b;
                    *selectors.entry(b).or_insert(own) += of_a;
                }
                links
                    .edges
                    .entry((*a).to_owned())
                    .or_default()
                    .insert((*b).to_owned(), ab);
                links
                    .edges
                    .entry((*b).to_owned())
                    .or_default()
                    .insert((*a).to_owned(), ba);
            }
        }
        for (edge, count) in refused {
            findings.push(Finding::error(
                &object,
                "spec.members",
                format!(
                    "{count} relayed links of {edge} are left out, its tunnel to the connector carries \
                     {MAX_SELECTORS} prefixes: give it a public address (annotation \
                     fabedge.io/node-public-addresses), or split the community"
                ),
            ));
        }
    }
    links.foreign = foreign_peers
        .iter()
        .filter_map(|name| foreign_by_name.get(*name))
        .map(|e| (*e).clone())
        .collect();
    links
}

/// Why a member of another cluster has no effect yet; none when it is an edge that is there.
fn pending_foreign(snapshot: &ClusterSnapshot, cluster: &str, node: &str) -> Option<String> {
    let Some(known) = snapshot.clusters.get(cluster) else {
        return Some(format!(
            "there is no Cluster {cluster} yet: pending until there is"
        ));
    };
    let name = format!("{cluster}.{node}");
    if known.endpoints.iter().any(|e| e.name == name) && node != CONNECTOR {
        return None;
    }
    Some(format!(
        "Cluster {cluster} has no such endpoint that can be used: pending until it has"
    ))
}

/// How `a` reaches `b`, and `b` `a`. `a` is the one with the smaller name.
pub(super) fn decide(a: &Edge, b: &Edge) -> [Link; 2] {
    let relay = [a, b].iter().any(|edge| edge.mode == Some(EdgeToEdge::Relay));
    // With the same address they are two sites behind NATs, or one address forwarded to one of them: neither can
    // tell the other from itself.
    let same = a.internal_ips.iter().any(|ip| b.internal_ips.contains(ip))
        || a.endpoint
            .public_addresses
            .iter()
            .any(|at| b.endpoint.public_addresses.contains(at));
    match (
        a.endpoint.public_addresses.is_empty(),
        b.endpoint.public_addresses.is_empty(),
    ) {
        _ if relay || same => [Link::Relay; 2],
        (true, true) => [Link::Relay; 2],
        (false, true) => [Link::Answer, Link::Initiate],
        (_, false) => [Link::Initiate, Link::Answer],
    }
}
