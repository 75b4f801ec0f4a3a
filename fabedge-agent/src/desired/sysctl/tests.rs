use std::collections::{BTreeMap, BTreeSet};

use fabedge_common::config::NodeConfig;

use super::{cloud, connector, edge};
use crate::facts::{Facts, Link, TunnelKind};

fn facts() -> Facts {
    let link = |name: &str, address: &str, kind: &str, master| Link {
        name: name.to_owned(),
        kind: Some(kind.to_owned()),
        master,
        addresses: vec![address.parse().unwrap()],
        ..Link::default()
    };
    let links: BTreeMap<String, Link> = [
        link("eth0", "10.8.0.1/24", "veth", None),
        link("flannel.1", "10.2.0.0/32", "vxlan", None),
        link("cni0", "10.2.0.1/24", "bridge", None),
        link("veth1", "10.2.0.7/32", "veth", Some(4)),
    ]
    .map(|link| (link.name.clone(), link))
    .into();
    Facts {
        links,
        uplinks: vec!["eth0".to_owned()],
        tunnel: TunnelKind::Xfrm,
        hops: BTreeSet::new(),
        reception: Default::default(),
        paths: BTreeMap::new(),
    }
}

fn document(peer_subnets: &str) -> NodeConfig {
    let text = format!(
        "{{version: 0, id: a, name: c.a, type: EdgeNode, subnets: [10.2.0.0/16],
           peers: [{{id: b, name: c.b, type: EdgeNode, subnets: [{peer_subnets}]}}]}}"
    );
    NodeConfig::parse(&text).unwrap()
}

fn names(names: &[&str]) -> BTreeSet<String> {
    names.iter().map(|name| (*name).to_owned()).collect()
}

#[test]
fn ipv6_is_touched_only_where_the_network_has_it() {
    let v4 = edge(&document("10.3.0.0/16"), &facts());
    assert_eq!(
        (v4.forward4, v4.forward6, v4.advertised),
        (true, false, names(&[]))
    );
    let both = edge(&document("10.3.0.0/16, 'fd00::/64'"), &facts());
    assert_eq!(
        (both.forward4, both.forward6, both.advertised),
        (true, true, names(&["eth0"]))
    );
}

#[test]
fn the_reverse_path_is_loose_where_ways_differ() {
    let config = document("10.3.0.0/16");
    assert_eq!(edge(&config, &facts()).asymmetric, names(&["fabedge0"]));
    assert_eq!(
        connector(&config, &facts()).asymmetric,
        names(&["eth0", "fabedge0", "flannel.1"])
    );
    assert_eq!(cloud(&config, &facts()).asymmetric, names(&["eth0", "flannel.1"]));
}
