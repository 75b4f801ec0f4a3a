//! The Settings object -> the settings. Pure.

use std::net::IpAddr;

use ipnet::IpNet;

use super::convert::{done, edge_to_edge, hosts, is_label, prefixes};
use super::manifest::Fault;
use crate::api;
use crate::snapshot::{CniType, LabelMatch, Pool, Settings};

const EDGE_LABEL: &str = "node-role.kubernetes.io/edge";
const CLUSTER_CIDR: &str = "spec.clusterCIDR";
const CONNECTOR_LABEL: &str = "node-role.kubernetes.io/connector";

/// Reads the settings of a folder of manifests, where there is no API to ask and no other cluster to register with.
///
/// # Errors
/// Those of [`settings`], and every field that only a cluster's operator has a use for.
pub fn of_folder(spec: &api::SettingsSpec) -> Result<Settings, Vec<Fault>> {
    let mut faults = Vec::new();
    if spec.role.as_deref() == Some("member") {
        faults.push(Fault::new(
            "spec.role",
            "a member cluster registers with a host operator, which a folder of manifests cannot: use host",
        ));
    }
    for (field, given) in [
        ("spec.apiListen", spec.api_listen.is_some()),
        ("spec.operatorAPIServer", spec.operator_api_server.is_some()),
        ("spec.initTokenFile", spec.init_token_file.is_some()),
        ("spec.operatorCAHash", spec.operator_ca_hash.is_some()),
        ("spec.autoKeepIPPools", spec.auto_keep_ip_pools.is_some()),
    ] {
        if given {
            faults.push(Fault::new(
                field,
                "is for the operator of a cluster; a folder of manifests has no use for it: remove it",
            ));
        }
    }
    match settings(spec) {
        Ok(settings) => done(settings, faults),
        Err(more) => {
            faults.extend(more);
            Err(faults)
        }
    }
}

/// What is wrong with settings whatever an API may tell of the rest.
pub fn faults_of_given(spec: &api::SettingsSpec) -> Vec<Fault> {
    let guess = if spec.edge_pod_cidr.is_some() || spec.edge_pod_cidr6.is_some() {
        "calico"
    } else {
        "flannel"
    };
    let filled = api::SettingsSpec {
        cni_type: spec.cni_type.clone().or_else(|| Some(guess.to_owned())),
        ..spec.clone()
    };
    let mut faults = settings(&filled).err().unwrap_or_default();
    faults.retain(|fault| fault.field != CLUSTER_CIDR);
    faults
}

/// Reads the settings, once what an API can tell has been filled in.
///
/// # Errors
/// Every field that cannot be read, contradicts another, or asks for what this version does not have.
pub fn settings(spec: &api::SettingsSpec) -> Result<Settings, Vec<Fault>> {
    let mut faults = Vec::new();
    if !is_label(&spec.name) {
        faults.push(Fault::new(
            "spec.name",
            format!(
                "{:?} is not one DNS label: lower-case letters, digits and `-`, no dot",
                spec.name
            ),
        ));
    }
    match spec.role.as_deref() {
        None | Some("host" | "member") => {}
        Some(other) => faults.push(Fault::new(
            "spec.role",
            format!("{other:?} is neither host nor member"),
        )),
    }
    if spec.role.as_deref() == Some("member") && spec.operator_api_server.is_none() {
        faults.push(Fault::new(
            "spec.operatorAPIServer",
            "is required with the role member: the address of the host's operator, https://10.20.8.28:30303, say",
        ));
    }
    if spec.connector_as_mediator == Some(true) {
        faults.push(Fault::new(
            "spec.connectorAsMediator",
            "is not available in this version: edges that cannot reach each other are relayed by the connector; \
             remove it",
        ));
    }
    if spec.connector_public_addresses.is_empty() {
        faults.push(Fault::new(
            "spec.connectorPublicAddresses",
            "is empty, so no edge can reach the connector: give the address of the connector's node, say",
        ));
    }
    hosts(
        "spec.connectorPublicAddresses",
        &spec.connector_public_addresses,
        &mut faults,
    );
    if spec.connector_public_port == Some(0) {
        faults.push(Fault::new("spec.connectorPublicPort", "0 is not a port"));
    }
    let cluster_cidrs = prefixes(CLUSTER_CIDR, &spec.cluster_cidr, &mut faults);
    let service_cidrs = prefixes(
        "spec.serviceClusterIPRange",
        &spec.service_cluster_ip_range,
        &mut faults,
    );
    let cni = cni(spec, &mut faults);
    let edge_pools = pools(spec, &mut faults);
    if cni == Some(CniType::Calico) {
        for (i, cidr) in cluster_cidrs.iter().enumerate() {
            if let Some(pool) = edge_pools.iter().find(|pool| overlap(pool.range, *cidr)) {
                faults.push(Fault::new(
                    format!("spec.clusterCIDR[{i}]"),
                    format!(
                        "{cidr} overlaps the edges' {}: Calico would hand out edge addresses in the cloud",
                        pool.range
                    ),
                ));
            }
        }
    }
    for (i, cidr) in service_cidrs.iter().enumerate() {
        let others = cluster_cidrs
            .iter()
            .copied()
            .chain(edge_pools.iter().map(|pool| pool.range));
        for other in others.filter(|other| overlap(*other, *cidr)) {
            faults.push(Fault::new(
                format!("spec.serviceClusterIPRange[{i}]"),
                format!("{cidr} overlaps the pod prefix {other}"),
            ));
        }
    }
    for (i, text) in spec.connector_public_addresses.iter().enumerate() {
        let Ok(ip) = text.parse::<IpAddr>() else { continue };
        let pods = cluster_cidrs
            .iter()
            .copied()
            .chain(edge_pools.iter().map(|pool| pool.range));
        for net in pods
            .chain(service_cidrs.iter().copied())
            .filter(|net| net.contains(&ip))
        {
            faults.push(Fault::new(
                format!("spec.connectorPublicAddresses[{i}]"),
                format!("{ip} lies in {net}, so edges would send the tunnel into itself: it must be a node's address"),
            ));
        }
    }
    let edge_to_edge = spec
        .edge_to_edge
        .as_deref()
        .and_then(|text| edge_to_edge("spec.edgeToEdge", text, &mut faults));
    let edge_labels = labels(
        "spec.edgeLabels",
        spec.edge_labels.as_deref(),
        EDGE_LABEL,
        &mut faults,
    );
    let connector_labels = labels(
        "spec.connectorLabels",
        spec.connector_labels.as_deref(),
        CONNECTOR_LABEL,
        &mut faults,
    );
    let connector_node_addresses = addresses(&spec.connector_node_addresses, &mut faults);
    let Some(cni) = cni else {
        return Err(faults);
    };
    done(
        Settings {
            cluster: spec.name.clone(),
            cni,
            edge_labels,
            connector_labels,
            connector_public_addresses: spec.connector_public_addresses.clone(),
            connector_public_port: spec.connector_public_port,
            connector_node_addresses,
            edge_pools,
            cluster_cidrs,
            service_cidrs,
            edge_to_edge,
        },
        faults,
    )
}

/// The CNI type, and what must and must not be given with it.
fn cni(spec: &api::SettingsSpec, faults: &mut Vec<Fault>) -> Option<CniType> {
    match spec.cni_type.as_deref() {
        Some("flannel") => {
            if spec.edge_pod_cidr.is_some() || spec.edge_pod_cidr6.is_some() {
                faults.push(Fault::new(
                    "spec.edgePodCIDR",
                    "must not be set with Flannel, where each node has its own spec.podCIDRs: remove it",
                ));
            }
            Some(CniType::Flannel)
        }
        Some("calico") => {
            if spec.edge_pod_cidr.is_none() && spec.edge_pod_cidr6.is_none() {
                faults.push(Fault::new(
                    "spec.edgePodCIDR",
                    "is required with Calico, which gives no prefixes to nodes: set 10.10.0.0/16, say",
                ));
            }
            if spec.cluster_cidr.is_empty() {
                faults.push(Fault::new(
                    CLUSTER_CIDR,
                    "is required with Calico: give the prefixes of its IP pools",
                ));
            }
            Some(CniType::Calico)
        }
        Some(other) => {
            faults.push(Fault::new(
                "spec.cniType",
                format!("{other:?} is neither flannel nor calico"),
            ));
            None
        }
        None => {
            faults.push(Fault::new("spec.cniType", "is missing: write flannel or calico"));
            None
        }
    }
}

fn pools(spec: &api::SettingsSpec, faults: &mut Vec<Fault>) -> Vec<Pool> {
    let mut found = Vec::new();
    for (field, range, size_field, size, v6) in [
        (
            "spec.edgePodCIDR",
            &spec.edge_pod_cidr,
            "spec.edgeCIDRMaskSize",
            spec.edge_cidr_mask_size,
            false,
        ),
        (
            "spec.edgePodCIDR6",
            &spec.edge_pod_cidr6,
            "spec.edgeCIDRMaskSize6",
            spec.edge_cidr_mask_size6,
            true,
        ),
    ] {
        let Some(text) = range else { continue };
        let prefix_len = size.unwrap_or(if v6 { 64 } else { 24 });
        for range in prefixes(field, std::slice::from_ref(text), faults) {
            if range.addr().is_ipv6() != v6 {
                faults.push(Fault::new(
                    field,
                    format!("{range} is of the wrong address family"),
                ));
            } else if prefix_len < range.prefix_len() || prefix_len > range.max_prefix_len() - 2 {
                faults.push(Fault::new(
                    size_field,
                    format!("/{prefix_len} cannot be cut from {range}, or leaves no room for pods"),
                ));
            } else {
                found.push(Pool { range, prefix_len });
            }
        }
    }
    found
}

fn labels(field: &str, given: Option<&[String]>, default: &str, faults: &mut Vec<Fault>) -> Vec<LabelMatch> {
    let default = [default.to_owned()];
    let texts = given.unwrap_or(&default);
    if texts.is_empty() {
        faults.push(Fault::new(
            field,
            "is an empty list, which matches no node: remove it for the default",
        ));
    }
    let mut found = Vec::new();
    for (i, text) in texts.iter().enumerate() {
        let (key, value) = match text.split_once('=') {
            Some((key, value)) => (key, Some(value.to_owned())),
            None => (text.as_str(), None),
        };
        if key.is_empty() || key.contains(char::is_whitespace) {
            faults.push(Fault::new(
                format!("{field}[{i}]"),
                format!("{text:?} is not key, key= or key=value"),
            ));
        } else {
            found.push(LabelMatch {
                key: key.to_owned(),
                value,
            });
        }
    }
    found
}

fn addresses(texts: &[String], faults: &mut Vec<Fault>) -> Vec<IpAddr> {
    let mut found = Vec::new();
    for (i, text) in texts.iter().enumerate() {
        match text.parse() {
            Ok(ip) => found.push(ip),
            Err(_) => faults.push(Fault::new(
                format!("spec.connectorNodeAddresses[{i}]"),
                format!("{text:?} is not an IP address"),
            )),
        }
    }
    found
}

fn overlap(a: IpNet, b: IpNet) -> bool {
    a.contains(&b) || b.contains(&a)
}
