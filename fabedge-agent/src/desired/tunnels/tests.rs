use std::collections::{BTreeMap, BTreeSet};

use fabedge_common::config::Endpoint;

use super::*;

fn nets(texts: &[&str]) -> Vec<IpNet> {
    texts.iter().map(|text| text.parse().unwrap()).collect()
}

fn endpoint(name: &str, kind: EndpointType, subnets: &[&str], nodes: &[&str]) -> Endpoint {
    Endpoint {
        id: format!("C=CN, O=fabedge.io, CN={name}"),
        name: name.into(),
        public_addresses: vec!["192.0.2.1".into()],
        subnets: nets(subnets),
        node_subnets: nets(nodes),
        service_subnets: Vec::new(),
        kind,
        port: None,
    }
}

fn peer(endpoint: Endpoint, via: Via, initiate: bool, relays: &[&str]) -> Peer {
    Peer {
        endpoint,
        via,
        initiate,
        relays: relays.iter().map(|name| (*name).to_owned()).collect(),
    }
}

fn connector() -> Endpoint {
    endpoint(
        "f.connector",
        EndpointType::Connector,
        &[
            "10.233.0.0/18",
            "10.233.64.0/24",
            "10.233.65.0/24",
            "fd00:64::/64",
        ],
        &["10.20.8.28/32", "10.20.8.23/32"],
    )
}

fn edge(n: u8) -> Endpoint {
    endpoint(
        &format!("f.edge{n}"),
        EndpointType::EdgeNode,
        &[&format!("10.233.{}.0/24", 65 + n)],
        &["192.168.50.2/32"],
    )
}

fn document(endpoint: Endpoint, peers: Vec<Peer>) -> NodeConfig {
    NodeConfig {
        version: 1,
        generation: 1,
        endpoint,
        peers: peers.into_iter().map(Into::into).collect(),
        network_subnets: Vec::new(),
        mediator: None,
    }
}

fn desired(config: &NodeConfig, tunnel: TunnelKind) -> Tunnels {
    Tunnels::new(
        config,
        &Facts {
            links: BTreeMap::new(),
            uplinks: Vec::new(),
            tunnel,
            hops: BTreeSet::new(),
            reception: Default::default(),
            paths: BTreeMap::new(),
        },
    )
}

fn set(texts: &[&str]) -> BTreeSet<IpNet> {
    texts.iter().map(|text| text.parse().unwrap()).collect()
}

#[test]
fn an_edge_reaches_relayed_peers_through_its_connector() {
    let config = document(
        edge(1),
        vec![
            peer(connector(), Via::Direct, true, &[]),
            peer(edge(2), Via::Direct, true, &[]),
            peer(edge(3), Via::Relay, false, &[]),
        ],
    );
    let tunnels = desired(&config, TunnelKind::Xfrm);
    assert_eq!(tunnels.problems, []);
    assert_eq!(
        tunnels.connections.keys().collect::<Vec<_>>(),
        ["fabedge-f.connector", "fabedge-f.edge2"]
    );
    let cloud = &tunnels.connections["fabedge-f.connector"];
    assert_eq!(cloud.local, set(&["10.233.66.0/24"]));
    assert_eq!(
        cloud.remote,
        set(&[
            "10.233.0.0/18",
            "10.233.64.0/23",
            "10.233.68.0/24",
            "fd00:64::/64",
            "10.20.8.23/32",
            "10.20.8.28/32"
        ])
    );
    assert_eq!(cloud.if_id, Some(marks::IF_ID));
    assert_eq!(cloud.remote_addrs, ["192.0.2.1"]);
    // Never an edge's node address.
    assert_eq!(
        tunnels.connections["fabedge-f.edge2"].remote,
        set(&["10.233.67.0/24"])
    );
}

#[test]
fn both_ends_agree_on_selectors_and_relaying() {
    let near = document(
        edge(1),
        vec![
            peer(connector(), Via::Direct, true, &[]),
            peer(edge(3), Via::Relay, false, &[]),
        ],
    );
    let far = document(
        connector(),
        vec![
            peer(edge(1), Via::Direct, false, &["f.edge3"]),
            peer(edge(3), Via::Direct, false, &["f.edge1"]),
        ],
    );
    let near = desired(&near, TunnelKind::Libipsec);
    let far = desired(&far, TunnelKind::Libipsec);
    assert_eq!(far.problems, []);
    let (a, b) = (
        &near.connections["fabedge-f.connector"],
        &far.connections["fabedge-f.edge1"],
    );
    assert_eq!((&a.local, &a.remote), (&b.remote, &b.local));
    assert_eq!((&a.local_id, &a.remote_id), (&b.remote_id, &b.local_id));
    assert_eq!(a.if_id, None);
    assert!(
        !b.initiate && b.remote_addrs.is_empty(),
        "an edge is answered wherever it comes from"
    );
}

#[test]
fn the_child_is_named_for_its_selectors() {
    let with = |subnets: &[&str]| {
        let cloud = endpoint("f.connector", EndpointType::Connector, subnets, &[]);
        let config = document(edge(1), vec![peer(cloud, Via::Direct, true, &[])]);
        desired(&config, TunnelKind::Xfrm).connections["fabedge-f.connector"]
            .child
            .clone()
    };
    let name = with(&["10.8.0.0/24", "10.8.1.0/24"]);
    assert_eq!(name.len(), "fabedge-f.connector-".len() + 8);
    assert_eq!(
        name,
        with(&["10.8.0.0/23", "10.8.1.0/25"]),
        "the same addresses, told otherwise"
    );
    assert_ne!(name, with(&["10.8.0.0/24"]));
}

#[test]
fn cloud_nodes_hold_no_tunnels() {
    let own = endpoint(
        "f.cloud",
        EndpointType::CloudNode,
        &["10.233.64.0/23"],
        &["10.20.8.23/32"],
    );
    let config = document(own, vec![peer(connector(), Via::Direct, true, &[])]);
    assert_eq!(desired(&config, TunnelKind::Xfrm), Tunnels::default());
}

#[test]
fn what_cannot_work_is_left_out_and_named() {
    let other = endpoint(
        "g.connector",
        EndpointType::Connector,
        &["10.40.0.0/16"],
        &["10.233.67.9/32"],
    );
    let many: Vec<String> = (0..=MAX_SELECTORS).map(|n| format!("10.50.{n}.0/32")).collect();
    let many: Vec<&str> = many.iter().map(String::as_str).collect();
    let large = endpoint("h.connector", EndpointType::Connector, &many, &[]);
    let mut hidden = edge(4);
    hidden.public_addresses.clear();
    let config = document(
        edge(1),
        vec![
            peer(connector(), Via::Direct, true, &[]),
            peer(edge(2), Via::Direct, true, &[]),
            peer(other, Via::Direct, true, &[]),
            peer(large, Via::Direct, true, &[]),
            peer(hidden, Via::Direct, true, &[]),
        ],
    );
    let tunnels = desired(&config, TunnelKind::Xfrm);
    assert_eq!(
        tunnels.connections.keys().collect::<Vec<_>>(),
        ["fabedge-f.connector", "fabedge-f.edge2"]
    );
    let problems: Vec<String> = tunnels.problems.iter().map(ToString::to_string).collect();
    assert_eq!(problems.len(), 3, "{problems:#?}");
    assert!(
        problems[0].contains("g.connector") && problems[0].contains("leads to f.edge2"),
        "{problems:#?}"
    );
    assert!(
        problems[1].contains("h.connector") && problems[1].contains("at most 200"),
        "{problems:#?}"
    );
    assert!(
        problems[2].contains("f.edge4") && problems[2].contains("publicAddresses"),
        "{problems:#?}"
    );
}
