//! One object as users write it -> one object of the snapshot. Pure; nothing here depends on where it came from.

use std::net::IpAddr;

use fabedge_common::config::{Endpoint, EndpointType};
use ipnet::IpNet;
use k8s_openapi::api::core::v1 as core;

use super::manifest::Fault;
use crate::api;
use crate::snapshot::{Cluster, Community, EdgeToEdge, Node, distinguished_name};

/// What is needed of a node.
///
/// # Errors
/// Every field that cannot be read.
pub fn node(node: &core::Node) -> Result<Node, Vec<Fault>> {
    let mut faults = Vec::new();
    let meta = &node.metadata;
    let annotation = |key: &str| meta.annotations.as_ref().and_then(|map| map.get(key));
    let list = |key: &str| {
        let text = annotation(key).map(String::as_str).unwrap_or_default();
        text.split(',')
            .map(str::trim)
            .filter(|item| !item.is_empty())
            .map(str::to_owned)
            .collect::<Vec<_>>()
    };

    let spec = node.spec.clone().unwrap_or_default();
    let pod_cidrs = match spec.pod_cidrs.filter(|list| !list.is_empty()) {
        Some(list) => prefixes("spec.podCIDRs", &list, &mut faults),
        None => {
            let one: Vec<_> = spec
                .pod_cidr
                .into_iter()
                .filter(|text| !text.is_empty())
                .collect();
            prefixes("spec.podCIDR", &one, &mut faults)
        }
    };
    let field = |key: &str| format!("metadata.annotations[{key}]");
    let subnets = prefixes(&field(api::SUBNETS), &list(api::SUBNETS), &mut faults);
    let public_addresses = list(api::NODE_PUBLIC_ADDRESSES);
    hosts(&field(api::NODE_PUBLIC_ADDRESSES), &public_addresses, &mut faults);
    let edge_to_edge = annotation(api::EDGE_TO_EDGE)
        .and_then(|text| edge_to_edge(&field(api::EDGE_TO_EDGE), text, &mut faults));

    let (mut internal_ips, mut external_ips) = (Vec::new(), Vec::new());
    let addresses = node.status.as_ref().and_then(|status| status.addresses.as_ref());
    for (i, address) in addresses.into_iter().flatten().enumerate() {
        let into = match address.type_.as_str() {
            "InternalIP" => &mut internal_ips,
            "ExternalIP" => &mut external_ips,
            _ => continue,
        };
        match address.address.parse::<IpAddr>() {
            Ok(ip) => into.push(ip),
            Err(_) => faults.push(Fault::new(
                format!("status.addresses[{i}].address"),
                format!("{:?} is not an IP address", address.address),
            )),
        }
    }
    done(
        Node {
            labels: meta.labels.clone().unwrap_or_default(),
            created: meta.creation_timestamp.as_ref().map(|time| time.0.as_second()),
            pod_cidrs,
            internal_ips,
            external_ips,
            public_addresses,
            subnets,
            edge_to_edge,
            arguments: meta
                .annotations
                .iter()
                .flatten()
                .filter_map(|(key, value)| Some((key.strip_prefix(api::ARGUMENT)?.to_owned(), value.clone())))
                .collect(),
        },
        faults,
    )
}

/// A community.
///
/// # Errors
/// Members that are not of the form `<cluster>.<node>`.
pub fn community(spec: &api::CommunitySpec) -> Result<Community, Vec<Fault>> {
    let mut faults = Vec::new();
    for (i, member) in spec.members.iter().enumerate() {
        if !member
            .split_once('.')
            .is_some_and(|(cluster, node)| is_label(cluster) && is_name(node))
        {
            faults.push(Fault::new(
                format!("spec.members[{i}]"),
                format!("{member:?} is not <cluster>.<node> or <cluster>.connector"),
            ));
        }
    }
    done(
        Community {
            members: spec.members.clone(),
        },
        faults,
    )
}

/// Another cluster. What it says of itself is not trusted: its endpoints carry its own name, and their ids are
/// what the certificate of that name says.
///
/// # Errors
/// Every field that cannot be read or is not the cluster's to say.
pub fn cluster(name: &str, spec: &api::ClusterSpec) -> Result<Cluster, Vec<Fault>> {
    let mut faults = Vec::new();
    if !is_label(name) {
        faults.push(Fault::new("metadata.name", "is not one DNS label"));
    }
    let cidrs = prefixes("spec.cidrs", &spec.cidrs, &mut faults);
    let spellings = [
        ("spec.endpoints", &spec.endpoints),
        ("spec.endPoints", &spec.end_points),
    ];
    if spellings.iter().all(|(_, list)| !list.is_empty()) {
        faults.push(Fault::new(
            "spec.endPoints",
            "and spec.endpoints are both given: keep the second, the first is its older spelling",
        ));
    }
    let mut endpoints = Vec::new();
    for (field, list) in spellings {
        for (i, given) in list.iter().enumerate() {
            endpoints.extend(endpoint(name, &format!("{field}[{i}]"), given, &mut faults));
        }
    }
    done(
        Cluster {
            token: spec.token.clone(),
            cidrs,
            endpoints,
        },
        faults,
    )
}

fn endpoint(cluster: &str, field: &str, given: &api::Endpoint, faults: &mut Vec<Fault>) -> Option<Endpoint> {
    let before = faults.len();
    let kind = match given.kind.as_str() {
        "Connector" => EndpointType::Connector,
        "EdgeNode" => EndpointType::EdgeNode,
        other => {
            faults.push(Fault::new(
                format!("{field}.type"),
                format!("{other:?} is neither Connector nor EdgeNode"),
            ));
            return None;
        }
    };
    if !given
        .name
        .split_once('.')
        .is_some_and(|(own, node)| own == cluster && is_name(node))
    {
        faults.push(Fault::new(
            format!("{field}.name"),
            format!(
                "{:?} is not a name of this cluster: it must be {cluster}.<node>",
                given.name
            ),
        ));
    }
    if (kind == EndpointType::Connector) != (given.name == format!("{cluster}.connector")) {
        faults.push(Fault::new(
            format!("{field}.type"),
            format!(
                "{} is not what {:?} can be: a cluster has one Connector, {cluster}.connector",
                given.kind, given.name
            ),
        ));
    }
    let id = distinguished_name(&given.name);
    if given.id != id {
        faults.push(Fault::new(
            format!("{field}.id"),
            format!(
                "is {:?}, but the certificate of {} says {id:?}",
                given.id, given.name
            ),
        ));
    }
    hosts(
        &format!("{field}.publicAddresses"),
        &given.public_addresses,
        faults,
    );
    let subnets = prefixes(&format!("{field}.subnets"), &given.subnets, faults);
    let node_subnets = prefixes(&format!("{field}.nodeSubnets"), &given.node_subnets, faults);
    (faults.len() == before).then(|| Endpoint {
        id,
        name: given.name.clone(),
        public_addresses: given.public_addresses.clone(),
        subnets,
        node_subnets,
        service_subnets: Vec::new(),
        kind,
        port: given.port,
    })
}

/// `direct` or `relay`.
pub(super) fn edge_to_edge(field: &str, text: &str, faults: &mut Vec<Fault>) -> Option<EdgeToEdge> {
    match text {
        "direct" => Some(EdgeToEdge::Direct),
        "relay" => Some(EdgeToEdge::Relay),
        "auto" => {
            faults.push(Fault::new(
                field,
                "`auto` (try direct, fall back) is not available in this version: use direct or relay, or \
                 leave it out to decide by the edges' public addresses",
            ));
            None
        }
        other => {
            faults.push(Fault::new(
                field,
                format!("{other:?} is neither direct nor relay"),
            ));
            None
        }
    }
}

/// Prefixes, or addresses as prefixes of one.
pub(crate) fn prefixes(field: &str, texts: &[String], faults: &mut Vec<Fault>) -> Vec<IpNet> {
    let mut found = Vec::new();
    for (i, text) in texts.iter().enumerate() {
        let net = text
            .parse::<IpNet>()
            .or_else(|_| text.parse::<IpAddr>().map(IpNet::from));
        let why = match net {
            Err(_) => "is not a prefix; write 10.233.66.0/24, say",
            Ok(net) if net.prefix_len() == 0 => "is the default route, which is nobody's to claim",
            Ok(net) if net.trunc() != net => "has host bits set; write the network address",
            Ok(net) if !is_unicast(net.addr()) => "is not a prefix of usable unicast addresses",
            Ok(net) => {
                found.push(net);
                continue;
            }
        };
        faults.push(Fault::new(format!("{field}[{i}]"), format!("{text:?} {why}")));
    }
    found
}

fn is_unicast(ip: IpAddr) -> bool {
    let link_local = match ip {
        IpAddr::V4(ip) => ip.is_link_local() || ip.octets()[0] == 0 || ip.octets()[0] >= 240,
        IpAddr::V6(ip) => ip.is_unicast_link_local(),
    };
    !(link_local || ip.is_loopback() || ip.is_multicast())
}

/// IP addresses or DNS names.
pub(super) fn hosts(field: &str, texts: &[String], faults: &mut Vec<Fault>) {
    for (i, text) in texts.iter().enumerate() {
        let good = match text.parse::<IpAddr>() {
            Ok(ip) => is_unicast(ip) && !ip.is_unspecified(),
            // All digits and dots is an address with a slip in it, not a name.
            Err(_) => is_name(text) && !text.bytes().all(|b| b.is_ascii_digit() || b == b'.'),
        };
        if !good {
            faults.push(Fault::new(
                format!("{field}[{i}]"),
                format!("{text:?} is neither a usable IP address nor a DNS name"),
            ));
        }
    }
}

/// One DNS label (RFC 1123).
pub(crate) fn is_label(text: &str) -> bool {
    let inner = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-';
    (1..=63).contains(&text.len())
        && text.bytes().all(inner)
        && !text.starts_with('-')
        && !text.ends_with('-')
}

/// A DNS name: labels with dots between.
pub(crate) fn is_name(text: &str) -> bool {
    text.len() <= 253 && text.split('.').all(is_label)
}

pub(super) fn done<T>(value: T, faults: Vec<Fault>) -> Result<T, Vec<Fault>> {
    if faults.is_empty() { Ok(value) } else { Err(faults) }
}
