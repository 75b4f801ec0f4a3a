//! What a document may not say, whoever wrote it: the agent checks it again, for a wrong prefix here would take
//! traffic that is not ours.

use std::collections::{BTreeMap, BTreeSet};

use ipnet::IpNet;

use super::{Endpoint, EndpointType, NodeConfig, Problem, Via};
use crate::prefixes::Prefixes;

/// More traffic selectors than this do not fit: an IKEv2 TS payload counts them in one octet (RFC 7296 §3.13).
pub const MAX_SELECTORS: usize = 200;

impl NodeConfig {
    /// Every problem of the document; empty when it may be applied.
    pub(super) fn validate(&self) -> Vec<Problem> {
        let mut problems = Vec::new();
        let own = format!("endpoint {}", self.endpoint.name);
        endpoint(&own, &self.endpoint, &mut problems);

        let mut ids = BTreeMap::from([(self.endpoint.id.as_str(), self.endpoint.name.as_str())]);
        let mut names = BTreeSet::from([self.endpoint.name.as_str()]);
        let all: BTreeSet<&str> = self
            .peers
            .iter()
            .map(|peer| peer.endpoint.name.as_str())
            .collect();
        let mut prefixes = Prefixes::default();
        let mut claimed: BTreeMap<IpNet, &str> = BTreeMap::new();
        for net in &self.endpoint.subnets {
            prefixes.insert(*net);
            claimed.insert(net.trunc(), &self.endpoint.name);
        }
        for peer in &self.peers {
            let object = format!("peer {}", peer.endpoint.name);
            endpoint(&object, &peer.endpoint, &mut problems);
            if !names.insert(&peer.endpoint.name) {
                problems.push(Problem::new(&object, "name", "stands twice; keep one of the two"));
            }
            if let Some(other) = ids.insert(&peer.endpoint.id, &peer.endpoint.name) {
                problems.push(Problem::new(
                    &object,
                    "id",
                    format!(
                        "{:?} is also the id of {other}; give each endpoint its own",
                        peer.endpoint.id
                    ),
                ));
            }
            for (i, net) in peer.endpoint.subnets.iter().enumerate() {
                let field = format!("subnets[{i}]");
                let others = prefixes.containing(net).into_iter().chain(prefixes.within(net));
                for other in others.collect::<BTreeSet<_>>() {
                    let owner = claimed.get(&other).copied().unwrap_or_default();
                    problems.push(Problem::new(
                        &object,
                        &field,
                        format!("{net} overlaps {other} of {owner}; a prefix belongs to one endpoint"),
                    ));
                }
                prefixes.insert(*net);
                claimed.entry(net.trunc()).or_insert(&peer.endpoint.name);
            }
            for (i, name) in peer.relays.iter().enumerate() {
                if !all.contains(name.as_str()) {
                    problems.push(Problem::new(
                        &object,
                        format!("relays[{i}]"),
                        format!("{name} is not among the peers"),
                    ));
                }
            }
            if peer.via == Via::Relay && self.connector().is_none() {
                problems.push(Problem::new(
                    &object,
                    "via",
                    "is relay, but the document has no connector",
                ));
            }
        }
        problems
    }
}

fn endpoint(object: &str, endpoint: &Endpoint, problems: &mut Vec<Problem>) {
    if endpoint.id.is_empty() {
        problems.push(Problem::new(object, "id", "is empty"));
    }
    if endpoint.cluster().is_empty() || endpoint.local_name().is_empty() {
        problems.push(Problem::new(object, "name", "is not <cluster>.<node>"));
    }
    let reserved = endpoint.local_name() == super::CONNECTOR;
    if reserved != (endpoint.kind == EndpointType::Connector) {
        problems.push(Problem::new(
            object,
            "type",
            format!(
                "is {:?}, but the name `connector` is for connectors and only for them",
                endpoint.kind
            ),
        ));
    }
    for (i, net) in endpoint.subnets.iter().enumerate() {
        prefix(object, &format!("subnets[{i}]"), *net, problems);
    }
    for (i, net) in endpoint.node_subnets.iter().enumerate() {
        prefix(object, &format!("nodeSubnets[{i}]"), *net, problems);
    }
    for (i, net) in endpoint.service_subnets.iter().enumerate() {
        if !endpoint.subnets.contains(net) {
            problems.push(Problem::new(
                object,
                format!("serviceSubnets[{i}]"),
                format!("{net} is not one of subnets"),
            ));
        }
    }
    let selectors = endpoint.subnets.len()
        + if endpoint.kind == EndpointType::Connector {
            endpoint.node_subnets.len()
        } else {
            0
        };
    if selectors > MAX_SELECTORS {
        problems.push(Problem::new(
            object,
            "subnets",
            format!("{selectors} prefixes, but a tunnel carries at most {MAX_SELECTORS}: aggregate them"),
        ));
    }
}

fn prefix(object: &str, field: &str, net: IpNet, problems: &mut Vec<Problem>) {
    let why = if net.prefix_len() == 0 {
        "is the default route, which is not an endpoint's to claim"
    } else if net.trunc() != net {
        "has host bits set; write the network address"
    } else if net.addr().is_loopback() || net.addr().is_multicast() {
        "is not a unicast prefix"
    } else if matches!(net.addr(), std::net::IpAddr::V4(a) if a.is_link_local())
        || matches!(net.addr(), std::net::IpAddr::V6(a) if a.is_unicast_link_local())
    {
        "is link-local"
    } else {
        return;
    };
    problems.push(Problem::new(object, field, format!("{net} {why}")));
}
