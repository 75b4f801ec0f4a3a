//! The cloud side: the connector's endpoint, the other cloud nodes, and other clusters' connectors.

use std::net::IpAddr;

use fabedge_common::config::{CLOUD, CONNECTOR, Endpoint, EndpointType, MAX_SELECTORS};
use ipnet::IpNet;

use super::claims::{CLOUD_ADDRESSES, Claims};
use super::endpoints::Roles;
use crate::finding::Finding;
use crate::snapshot::{Block, ClusterSnapshot, CniType, Node, Settings, distinguished_name};

/// The cloud side of the topology.
pub(super) struct Cloud {
    pub(super) connector: Endpoint,
    pub(super) gateways: Vec<IpAddr>,
    pub(super) others: Option<Endpoint>,
}

/// Computes the connector and what the other cloud nodes share.
pub(super) fn cloud(
    snapshot: &ClusterSnapshot,
    settings: &Settings,
    roles: &Roles<'_>,
    claims: &mut Claims,
    findings: &mut Vec<Finding>,
) -> Cloud {
    if roles.connectors.is_empty() {
        let labels: Vec<String> = settings
            .connector_labels
            .iter()
            .map(|l| format!("{}={}", l.key, l.value.as_deref().unwrap_or_default()))
            .collect();
        findings.push(Finding::error(
            "connector",
            "metadata.labels",
            format!(
                "no node may run the connector, so the cloud has no way to the edges: label one with {}",
                labels.join(" and ")
            ),
        ));
    }
    let service_subnets = IpNet::aggregate(&settings.service_cidrs);
    for net in &service_subnets {
        // First of all, so nothing can be in the way but another service prefix that contains it.
        if let Err((other, owner)) = claims.claim(*net, "serviceClusterIPRange") {
            findings.push(Finding::error(
                "Settings",
                "spec.serviceClusterIPRange",
                format!("{net} overlaps {other} of {owner}"),
            ));
        }
    }
    let nodes = || {
        roles
            .connectors
            .iter()
            .chain(&roles.cloud)
            .map(|(name, node)| (*name, *node))
    };
    let mut gateways = settings.connector_node_addresses.clone();
    if gateways.is_empty() {
        let mut nodes: Vec<_> = roles.connectors.iter().collect();
        // The first one is the others' next hop.
        nodes.sort_by_key(|(name, _)| snapshot.connector_node.as_deref() != Some(**name));
        gateways.extend(nodes.into_iter().flat_map(|(_, node)| &node.internal_ips));
    }
    let node_subnets = node_subnets(settings, &gateways, nodes(), claims, findings);
    let pods = pod_subnets(snapshot, settings, nodes(), claims, findings);

    let name = format!("{}.{CONNECTOR}", settings.cluster);
    let mut connector = Endpoint {
        id: distinguished_name(&name),
        name,
        public_addresses: settings.connector_public_addresses.clone(),
        subnets: pods.iter().chain(&service_subnets).copied().collect(),
        node_subnets,
        service_subnets,
        kind: EndpointType::Connector,
        port: settings.connector_public_port,
    };
    limit_selectors(&mut connector, findings);
    // A second connector node is one of the others as long as the connector does not run there.
    let others = (!roles.cloud.is_empty() || roles.connectors.len() > 1).then(|| {
        let name = format!("{}.{CLOUD}", settings.cluster);
        Endpoint {
            id: distinguished_name(&name),
            name,
            public_addresses: Vec::new(),
            subnets: connector
                .subnets
                .iter()
                .filter(|net| !connector.service_subnets.contains(net))
                .copied()
                .collect(),
            node_subnets: connector.node_subnets.clone(),
            service_subnets: Vec::new(),
            kind: EndpointType::CloudNode,
            port: None,
        }
    });
    debug_assert!(nodes().count() <= snapshot.nodes.len());
    Cloud {
        connector,
        gateways,
        others,
    }
}

/// Addresses of cloud nodes. The connector's own stand first and by themselves, for they are the others' next
/// hop; the rest is aggregated.
fn node_subnets<'a>(
    settings: &Settings,
    gateways: &[IpAddr],
    nodes: impl Iterator<Item = (&'a str, &'a Node)>,
    claims: &mut Claims,
    findings: &mut Vec<Finding>,
) -> Vec<IpNet> {
    let mut all: Vec<IpAddr> = Vec::new();
    for (name, node) in nodes {
        if node.internal_ips.is_empty() {
            findings.push(Finding::error(
                format!("Node {name}"),
                "status.addresses",
                "has no InternalIP, so edges do not reach it: give it one",
            ));
        }
        for ip in &node.internal_ips {
            if let Some(net) = settings.pod_ranges().find(|net| net.contains(ip)) {
                findings.push(Finding::error(
                    format!("Node {name}"),
                    "status.addresses",
                    format!("{ip} lies in the pod prefix {net}, so edges send what is for the node to pods: renumber one"),
                ));
            }
        }
        all.extend(&node.internal_ips);
    }
    let mut nets: Vec<IpNet> = gateways.iter().copied().map(IpNet::from).collect();
    let rest: Vec<IpNet> = all
        .iter()
        .filter(|ip| !gateways.contains(ip))
        .copied()
        .map(IpNet::from)
        .collect();
    nets.extend(IpNet::aggregate(&rest));
    let public = settings
        .connector_public_addresses
        .iter()
        .filter_map(|text| text.parse::<IpAddr>().ok());
    for net in nets.iter().copied().chain(public.map(IpNet::from)) {
        // A pod prefix that held one of these would take the tunnels' own packets.
        if let Err((other, owner)) = claims.claim(net, CLOUD_ADDRESSES) {
            findings.push(Finding::error(
                "connector",
                "nodeSubnets",
                format!("{net} lies in {other} of {owner}: pods and nodes cannot share addresses"),
            ));
        }
    }
    nets
}

/// Where cloud pods are: with Flannel in each node's prefixes, with Calico in the blocks that it gave to the cloud's
/// nodes, or, while nobody tells of them, anywhere in the cluster CIDR.
fn pod_subnets<'a>(
    snapshot: &ClusterSnapshot,
    settings: &Settings,
    nodes: impl Iterator<Item = (&'a str, &'a Node)>,
    claims: &mut Claims,
    findings: &mut Vec<Finding>,
) -> Vec<IpNet> {
    let mut pods = Vec::new();
    let owned: Vec<(String, &str, Vec<IpNet>)> = match (settings.cni, &snapshot.blocks) {
        (CniType::Calico, None) => vec![(
            "Settings".to_owned(),
            "spec.clusterCIDR",
            IpNet::aggregate(&settings.cluster_cidrs),
        )],
        (CniType::Calico, Some(blocks)) => blocks_of_the_cloud(blocks, snapshot, settings, findings)
            .into_iter()
            .map(|net| ("IPAMBlock".to_owned(), "spec.cidr", vec![net]))
            .collect(),
        (CniType::Flannel, _) => nodes
            .map(|(name, node)| {
                (
                    format!("Node {name}"),
                    "spec.podCIDRs",
                    IpNet::aggregate(&node.pod_cidrs),
                )
            })
            .collect(),
    };
    for (object, field, nets) in owned {
        if nets.is_empty() {
            findings.push(Finding::error(
                &object,
                field,
                "is missing, so edges do not reach its pods: run the cluster with --allocate-node-cidrs, or set it",
            ));
        }
        match claims.claim_all(&nets, &object) {
            Ok(()) => pods.extend(nets),
            Err((net, other, owner)) => findings.push(Finding::error(
                &object,
                field,
                format!("{net} overlaps {other} of {owner}: it is left out; give it a prefix of its own"),
            )),
        }
    }
    IpNet::aggregate(&pods)
}

/// Calico's blocks but those of edges, aggregated. Where there are more than a tunnel carries, the ranges of which they
/// were cut stand for them.
fn blocks_of_the_cloud(
    blocks: &[Block],
    snapshot: &ClusterSnapshot,
    settings: &Settings,
    findings: &mut Vec<Finding>,
) -> Vec<IpNet> {
    let mut nets = Vec::new();
    for block in blocks {
        let node = block.node.as_ref().and_then(|name| snapshot.nodes.get(name));
        if node.is_some_and(|node| node.matches(&settings.edge_labels)) {
            continue;
        }
        let mut pools = settings.edge_pools.iter().map(|pool| pool.range);
        match pools.find(|range| range.contains(&block.cidr) || block.cidr.contains(range)) {
            Some(range) => findings.push(Finding::error(
                "IPAMBlock",
                "spec.cidr",
                format!(
                    "Calico gave {} to {}, but {range} is the edges': it is left out; disable the IPPool that holds it",
                    block.cidr,
                    block.node.as_deref().unwrap_or("no node"),
                ),
            )),
            None => nets.push(block.cidr),
        }
    }
    let few = IpNet::aggregate(&nets);
    if few.len() <= MOST_BLOCKS {
        return few;
    }
    let ranges = &settings.cluster_cidrs;
    let within = |net: &IpNet| ranges.iter().find(|range| range.contains(net));
    let coarse: Vec<IpNet> = few.iter().map(|net| *within(net).unwrap_or(net)).collect();
    IpNet::aggregate(&coarse)
}

/// As many blocks as leave room in a tunnel for services and the cloud's nodes.
const MOST_BLOCKS: usize = MAX_SELECTORS / 2;

/// An IKEv2 traffic selector payload counts in one octet, so a tunnel holds so many prefixes and no more.
fn limit_selectors(connector: &mut Endpoint, findings: &mut Vec<Finding>) {
    let all = connector.subnets.len() + connector.node_subnets.len();
    if all <= MAX_SELECTORS {
        return;
    }
    connector.subnets.truncate(MAX_SELECTORS);
    connector
        .node_subnets
        .truncate(MAX_SELECTORS - connector.subnets.len());
    connector
        .service_subnets
        .retain(|net| connector.subnets.contains(net));
    let last = connector.node_subnets.last().or(connector.subnets.last());
    findings.push(Finding::error(
        "connector",
        "subnets",
        format!(
            "the cloud has {all} prefixes and node addresses, but a tunnel carries {MAX_SELECTORS}: all after {} \
             are left out; number cloud nodes and their prefixes so that they aggregate",
            last.map(ToString::to_string).unwrap_or_default()
        ),
    ));
}

/// Connectors of other clusters, by full name, with their pods and services alone: clusters that know nothing of each
/// other number their nodes alike, and nodes are not joined. Besides, all prefixes of those clusters: what is for them does
/// not leave in the clear, also as long as no community joins them.
pub(super) fn foreign(
    snapshot: &ClusterSnapshot,
    settings: &Settings,
    claims: &mut Claims,
    findings: &mut Vec<Finding>,
) -> (Vec<Endpoint>, Vec<IpNet>) {
    let (mut found, mut prefixes) = (Vec::new(), Vec::new());
    for (name, cluster) in &snapshot.clusters {
        let object = format!("Cluster {name}");
        if *name == settings.cluster {
            // The host's own entry, as the predecessor makes one; its nodes say the same and are newer.
            continue;
        }
        let connectors = cluster
            .endpoints
            .iter()
            .filter(|e| e.kind == EndpointType::Connector);
        for connector in connectors {
            if connector.subnets.len() > MAX_SELECTORS {
                findings.push(Finding::error(
                    &object,
                    "spec.endpoints",
                    format!("its connector has more prefixes than the {MAX_SELECTORS} that a tunnel carries"),
                ));
                continue;
            }
            let subnets = IpNet::aggregate(&connector.subnets);
            if let Some((ip, owner)) = subnets.iter().find_map(|net| claims.occupied(*net)) {
                findings.push(Finding::error(
                    &object,
                    "spec.endpoints",
                    format!("its prefixes hold {ip}, which {owner} has in its own network: its connector is left out"),
                ));
                continue;
            }
            match claims.claim_all(&subnets, &object) {
                Ok(()) => {
                    prefixes.extend(&subnets);
                    found.push(Endpoint {
                        node_subnets: Vec::new(),
                        ..connector.clone()
                    });
                }
                Err((net, other, owner)) => findings.push(Finding::error(
                    &object,
                    "spec.endpoints",
                    format!(
                        "{net} overlaps {other} of {owner}: its connector is left out; renumber one of them"
                    ),
                )),
            }
        }
        // One that is somebody else's is his; a report that claims it has been complained of where it came in.
        let cidrs = IpNet::aggregate(&cluster.cidrs);
        prefixes.extend(
            cidrs
                .into_iter()
                .filter(|net| claims.occupied(*net).is_none() && claims.claim(*net, &object).is_ok()),
        );
    }
    (found, prefixes)
}
