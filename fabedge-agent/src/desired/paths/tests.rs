use std::collections::{BTreeMap, BTreeSet};

use fabedge_common::config::NodeConfig;

use super::{carriers, paths};
use crate::facts::{Facts, Link, TunnelKind};

const PEERS: &str = "peers:
- id: connector
  name: c.connector
  type: Connector
  subnets: [10.2.0.0/16, 10.96.0.0/12]
  serviceSubnets: [10.96.0.0/12]
  nodeSubnets: [10.8.0.1, 10.8.0.2, 'fd00:8::1']
- id: edge2
  name: c.edge2
  type: EdgeNode
  subnets: ['fd00:2::/64', 10.1.2.0/24]
- id: edge3
  name: c.edge3
  type: EdgeNode
  via: relay
  subnets: [10.1.3.0/24]
...
";

const CONNECTOR: &str = "version: 1
id: connector
name: c.connector
type: Connector
subnets: [10.2.0.0/16]
nodeSubnets: [10.8.0.1, 10.8.0.2]
peers:
- id: edge2
  name: c.edge2
  type: EdgeNode
  subnets: [10.1.2.0/24]
- id: other
  name: d.connector
  type: Connector
  subnets: [10.3.0.0/16]
  nodeSubnets: [10.9.0.1]
...
";

fn document(text: &str) -> NodeConfig {
    NodeConfig::parse(text).unwrap_or_else(|error| panic!("{error}"))
}

fn edge() -> NodeConfig {
    document(&format!(
        "version: 1\nid: edge1\nname: c.edge1\ntype: EdgeNode\nsubnets: [10.1.1.0/24, 'fd00:1::/64']\n{PEERS}"
    ))
}

fn facts(addresses: &[&str]) -> Facts {
    let link = |(index, address): (usize, &&str)| {
        let name = format!("link{index}");
        let link = Link {
            name: name.clone(),
            mtu: 1500,
            addresses: vec![address.parse().unwrap()],
            ..Link::default()
        };
        (name, link)
    };
    Facts {
        links: addresses.iter().enumerate().map(link).collect(),
        uplinks: Vec::new(),
        tunnel: TunnelKind::Xfrm,
        hops: BTreeSet::new(),
        reception: Default::default(),
        paths: BTreeMap::new(),
    }
}

fn ways(config: &NodeConfig, addresses: &[&str]) -> Vec<String> {
    paths(config, &facts(addresses))
        .into_iter()
        .map(|(name, path)| {
            assert_eq!((path.device, path.most), ("fabedge0", 1400));
            format!("{name}: {} -> {}", path.from, path.to)
        })
        .collect()
}

#[test]
fn an_edge_asks_from_its_bridge_the_connectors_node_and_the_bridges_of_others() {
    assert_eq!(
        ways(&edge(), &["192.168.1.2/24", "10.1.1.1/24"]),
        [
            "c.connector: 10.1.1.1 -> 10.8.0.1",
            "c.edge2: 10.1.1.1 -> 10.1.2.1"
        ]
    );
    assert_eq!(
        ways(&edge(), &["fd00:1::1/64"]),
        [
            "c.connector: fd00:1::1 -> fd00:8::1",
            "c.edge2: fd00:1::1 -> fd00:2::1"
        ]
    );
    // Without pods there is no bridge, and nothing to measure for.
    assert!(ways(&edge(), &["192.168.1.2/24"]).is_empty());
}

#[test]
fn a_connector_asks_edges_from_its_node_if_it_has_to_and_other_clusters_from_among_its_pods_only() {
    let config = document(CONNECTOR);
    assert_eq!(ways(&config, &["10.8.0.1/24"]), ["c.edge2: 10.8.0.1 -> 10.1.2.1"]);
    assert_eq!(
        ways(&config, &["10.8.0.1/24", "10.2.4.1/24"]),
        [
            "c.edge2: 10.2.4.1 -> 10.1.2.1",
            "d.connector: 10.2.4.1 -> 10.9.0.1"
        ]
    );
}

#[test]
fn what_is_relayed_goes_through_the_connectors_tunnel() {
    let config = edge();
    let carrier = carriers(&config);
    let of = |name: &str| carrier(config.peer(name).unwrap());
    assert_eq!(of("c.edge3"), of("c.connector"));
    assert_ne!(of("c.edge2"), of("c.connector"));
}

#[test]
fn a_measured_path_limits_what_goes_through_its_tunnel() {
    let mut facts = facts(&[]);
    assert_eq!(facts.path_mtu(7, false), 1400);
    facts.paths = BTreeMap::from([(7, 1218), (8, 9000)]);
    assert_eq!((facts.path_mtu(7, false), facts.path_mtu(7, true)), (1218, 1280));
    assert_eq!(facts.path_mtu(8, false), 1400, "the device has the last word");
}
