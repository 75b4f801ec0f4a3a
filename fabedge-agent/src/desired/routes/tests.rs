use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use fabedge_common::config::NodeConfig;
use ipnet::IpNet;
use proptest::prelude::*;

use super::{Key, Routes, Rule, TWIN_METRIC, Target, cloud, connector, edge};
use crate::facts::{Facts, Hop, Link, TunnelKind};
use crate::marks;

fn facts(links: &[(&str, &str)], uplinks: &[&str]) -> Facts {
    let links: BTreeMap<String, Link> = links
        .iter()
        .map(|(name, address)| {
            let link = Link {
                name: (*name).to_owned(),
                mtu: 1500,
                up: true,
                addresses: vec![address.parse().unwrap()],
                ..Link::default()
            };
            ((*name).to_owned(), link)
        })
        .collect();
    let uplinks = uplinks.iter().map(|name| (*name).to_owned()).collect();
    Facts {
        links,
        uplinks,
        tunnel: TunnelKind::Xfrm,
        hops: BTreeSet::new(),
        reception: Default::default(),
        paths: BTreeMap::new(),
    }
}

fn document(text: &str) -> NodeConfig {
    NodeConfig::parse(text).unwrap_or_else(|error| panic!("{error}"))
}

fn edge_document() -> NodeConfig {
    document(
        "version: 1
id: edge1
name: c.edge1
type: EdgeNode
subnets: [10.1.1.0/24, 'fd00:1::/64']
nodeSubnets: [192.168.1.2]
networkSubnets: [10.0.0.0/8, 'fd00::/32', 192.168.0.0/16]
peers:
- id: connector
  name: c.connector
  type: Connector
  publicAddresses: [10.8.0.1, connector.example, 203.0.113.1]
  subnets: [10.2.0.0/16, 10.96.0.0/12]
  serviceSubnets: [10.96.0.0/12]
  nodeSubnets: [10.8.0.1, 10.8.0.2]
- id: edge2
  name: c.edge2
  type: EdgeNode
  via: relay
  subnets: [10.1.2.0/24, 'fd00:2::/64']
  nodeSubnets: [192.168.1.2]
...
",
    )
}

fn edge_facts() -> Facts {
    facts(
        &[("br-fabedge", "10.1.1.1/24"), ("eth0", "192.168.1.2/24")],
        &["eth0"],
    )
}

/// What the kernel finds for a packet: rule after rule, in each table the longest prefix, then the best metric.
/// None: our rules leave it to the main table.
fn lookup(routes: &Routes, from: Option<&str>, to: &str) -> Option<Target> {
    lookup_marked(routes, from, to, 0)
}

fn lookup_marked(routes: &Routes, from: Option<&str>, to: &str, marked: u32) -> Option<Target> {
    let to: IpAddr = to.parse().unwrap();
    let from: IpAddr = from.map_or(
        if to.is_ipv6() {
            IpAddr::from([0_u16; 8])
        } else {
            IpAddr::from([0_u8; 4])
        },
        |from| from.parse().unwrap(),
    );
    routes
        .rules
        .iter()
        .filter(|rule| rule.from.contains(&from) && rule.mark.is_none_or(|mark| mark == marked))
        .find_map(|rule| {
            let best = routes
                .routes
                .iter()
                .filter(|(key, _)| key.table == rule.table && key.destination.contains(&to))
                .min_by_key(|(key, _)| (std::cmp::Reverse(key.destination.prefix_len()), key.metric));
            best.map(|(_, target)| target.clone())
                .filter(|target| *target != Target::Throw)
        })
}

fn device(target: Option<Target>) -> Option<(String, Option<IpAddr>)> {
    match target {
        Some(Target::Device {
            name,
            mtu: 1400,
            lock: false,
            src,
        }) => Some((name, src)),
        _ => None,
    }
}

#[test]
fn an_edge_leads_everybody_to_pods_and_only_its_pods_to_nodes() {
    let routes = edge(&edge_document(), &edge_facts());
    let tunnel = |src: Option<&str>| Some(("fabedge0".to_owned(), src.map(|src| src.parse().unwrap())));
    for pod in ["10.2.3.4", "10.96.0.1", "10.1.2.9"] {
        assert_eq!(
            device(lookup(&routes, None, pod)),
            tunnel(Some("10.1.1.1")),
            "{pod}"
        );
    }
    // There is no gateway of that family yet.
    assert_eq!(device(lookup(&routes, None, "fd00:2::9")), tunnel(None));
    assert_eq!(
        lookup(&routes, None, "10.1.1.9"),
        None,
        "own pods are the bridge's"
    );
    assert_eq!(lookup(&routes, None, "10.3.0.1"), Some(Target::Unreachable));
    assert_eq!(lookup(&routes, None, "8.8.8.8"), None);
    assert_eq!(
        device(lookup(&routes, Some("10.1.1.9"), "10.8.0.2")),
        tunnel(None)
    );
    assert_eq!(lookup(&routes, Some("10.1.1.9"), "8.8.8.8"), None);
    // An edge's node address means something else at every site.
    assert_eq!(lookup(&routes, Some("10.1.1.9"), "192.168.1.2"), None);
}

#[test]
fn a_pod_prefix_that_covers_the_underlay_does_not_cut_it_off() {
    let routes = edge(&edge_document(), &edge_facts());
    // The network's prefixes cover the connector's public address, which is its node address, and our own.
    assert_eq!(lookup(&routes, None, "10.8.0.1"), None);
    assert_eq!(lookup(&routes, None, "192.168.1.2"), None);
    assert_eq!(lookup(&routes, None, "203.0.113.1"), None);
    // Where it is not covered it needs no route.
    assert!(
        !routes
            .routes
            .keys()
            .any(|key| key.destination == "203.0.113.1/32".parse::<IpNet>().unwrap())
    );
    // Its pods still go there by the tunnel.
    assert!(device(lookup(&routes, Some("10.1.1.9"), "10.8.0.1")).is_some());
}

#[test]
fn families_without_routes_have_no_rules() {
    let mut config = edge_document();
    let v4 = |nets: &mut Vec<IpNet>| nets.retain(|net| matches!(net, IpNet::V4(_)));
    v4(&mut config.endpoint.subnets);
    v4(&mut config.network_subnets);
    config
        .peers
        .iter_mut()
        .for_each(|peer| v4(&mut Arc::make_mut(peer).endpoint.subnets));
    let routes = edge(&config, &edge_facts());
    assert_eq!(routes.rules.len(), 2);
    assert!(routes.rules.iter().all(|rule| matches!(rule.from, IpNet::V4(_))));
}

fn connector_document() -> NodeConfig {
    document(
        "version: 1
id: connector
name: c.connector
type: Connector
subnets: [10.2.0.0/24, 10.2.1.0/24, 10.96.0.0/12]
serviceSubnets: [10.96.0.0/12]
nodeSubnets: [10.8.0.1, 10.8.0.2]
networkSubnets: [10.1.0.0/16, 10.50.0.0/16]
peers:
- id: edge1
  name: c.edge1
  type: EdgeNode
  subnets: [10.1.1.0/24]
  nodeSubnets: [10.8.0.2]
- id: other
  name: d.connector
  type: Connector
  subnets: [10.50.0.0/16]
  nodeSubnets: [10.8.0.2, 10.9.0.1]
...
",
    )
}

#[test]
fn a_connector_leaves_its_own_cluster_to_the_cni() {
    let host = facts(
        &[
            ("cni0", "10.2.0.1/24"),
            ("eth0", "10.8.0.1/24"),
            ("ipvs0", "10.96.0.1/32"),
        ],
        &["eth0"],
    );
    let routes = connector(&connector_document(), &host);
    let (_, src) = device(lookup(&routes, None, "10.1.1.9")).unwrap();
    assert_eq!(
        src,
        Some("10.2.0.1".parse().unwrap()),
        "a pod gateway, not a service"
    );
    for own in ["10.2.1.9", "10.96.0.10", "10.8.0.2"] {
        assert_eq!(lookup(&routes, None, own), None, "{own}");
        assert_eq!(
            lookup(&routes, Some("10.2.0.9"), own),
            None,
            "{own} from a pod: ours, not the other cluster's"
        );
    }
    assert!(device(lookup(&routes, Some("10.2.1.9"), "10.9.0.1")).is_some());
    assert_eq!(
        lookup(&routes, None, "10.9.0.1"),
        None,
        "node to node is not provided"
    );
    assert_eq!(lookup(&routes, None, "10.1.77.1"), Some(Target::Unreachable));
    // One rule for all cloud pods: rules are walked one by one for every packet.
    assert_eq!(routes.rules.iter().filter(|rule| rule.table == 221).count(), 1);
}

fn cloud_document(connector: &str) -> NodeConfig {
    document(&format!(
        "version: 1
id: cloud
name: c.cloud
type: CloudNode
subnets: [10.2.0.0/16, 'fd00:2::/48']
nodeSubnets: [10.8.0.1, 10.8.0.2, 10.8.0.3]
networkSubnets: [10.1.0.0/16]
peers:
- id: connector
  name: c.connector
  type: Connector
  subnets: [10.1.1.0/24, 'fd00:1::/64']
  nodeSubnets: [{connector}]
...
"
    ))
}

fn hops(hops: &[(&str, &str, &str)]) -> BTreeSet<Hop> {
    let hop = |(node, gateway, device): &(&str, &str, &str)| Hop {
        node: node.parse().unwrap(),
        gateway: gateway.parse().unwrap(),
        device: (*device).to_owned(),
    };
    hops.iter().map(hop).collect()
}

fn gateway(address: &str, device: &str, onlink: bool, mtu: u32) -> Option<Target> {
    Some(Target::Gateway {
        address: address.parse().unwrap(),
        device: device.to_owned(),
        onlink,
        mtu,
    })
}

#[test]
fn a_cloud_node_needs_a_way_to_the_connector() {
    let config = cloud_document("10.8.0.1");
    let near = facts(&[("eth0", "10.8.0.2/24"), ("eth1", "172.16.0.1/24")], &["eth1"]);
    let routes = cloud(&config, &near);
    assert_eq!(
        lookup(&routes, None, "10.1.1.9"),
        gateway("10.8.0.1", "eth0", false, 1400)
    );
    assert_eq!(
        lookup(&routes, None, "fd00:1::9"),
        Some(Target::Unreachable),
        "the connector has no IPv6 address"
    );
    assert_eq!(lookup(&routes, None, "10.2.0.9"), None);
    let far = facts(&[("eth0", "10.8.0.2/32")], &["eth0"]);
    assert_eq!(
        lookup(&cloud(&config, &far), None, "10.1.1.9"),
        gateway("10.8.0.1", "eth0", true, 1400)
    );
    let none = facts(&[], &[]);
    assert_eq!(
        lookup(&cloud(&config, &none), None, "10.1.1.9"),
        Some(Target::Unreachable)
    );
}

#[test]
fn the_way_to_the_connector_is_the_one_that_the_cni_takes() {
    let config = cloud_document("10.8.0.1, 'fd08::1'");
    for (name, overlay, ways, v4, v6) in [
        (
            "Flannel, host-gw",
            None,
            hops(&[
                ("10.8.0.1", "10.8.0.1", "eth0"),
                ("fd08::1", "fd08::1", "eth0"),
                ("10.8.0.3", "10.8.0.3", "eth0"),
            ]),
            gateway("10.8.0.1", "eth0", false, 1400),
            gateway("fd08::1", "eth0", true, 1400),
        ),
        (
            "Flannel, vxlan",
            Some(("flannel.1", "10.2.2.0/32", 1450)),
            hops(&[
                ("10.8.0.1", "10.2.1.0", "flannel.1"),
                ("10.8.0.3", "10.2.3.0", "flannel.1"),
                ("fd08::1", "fd00:2:0:1::", "flannel-v6.1"),
            ]),
            gateway("10.2.1.0", "flannel.1", true, 1400),
            gateway("fd00:2:0:1::", "flannel-v6.1", true, 1400),
        ),
        (
            "Calico, IPIP, its MTU set by hand",
            Some(("tunl0", "10.2.2.64/32", 1380)),
            hops(&[
                ("10.8.0.1", "10.8.0.1", "tunl0"),
                ("10.8.0.3", "10.8.0.3", "eth0"),
            ]),
            gateway("10.8.0.1", "tunl0", true, 1380),
            gateway("fd08::1", "eth0", true, 1400),
        ),
        (
            "Calico, vxlan across subnets only, and this is the same one",
            Some(("vxlan.calico", "10.2.2.64/32", 1450)),
            hops(&[
                ("10.8.0.1", "10.8.0.1", "eth0"),
                ("10.8.0.3", "10.2.3.64", "vxlan.calico"),
            ]),
            gateway("10.8.0.1", "eth0", false, 1400),
            gateway("fd08::1", "eth0", true, 1400),
        ),
        (
            "another CNI's overlay, which has no gateways",
            Some(("cilium_vxlan", "10.2.2.1/32", 1450)),
            hops(&[]),
            gateway("10.8.0.1", "eth0", false, 1400),
            gateway("fd08::1", "eth0", true, 1400),
        ),
        (
            "one family over the other",
            None,
            hops(&[("10.8.0.1", "fd00:2:0:1::", "flannel-v6.1")]),
            gateway("10.8.0.1", "eth0", false, 1400),
            gateway("fd08::1", "eth0", true, 1400),
        ),
    ] {
        let mut host = facts(&[("eth0", "10.8.0.2/24")], &["eth0"]);
        if let Some((name, address, mtu)) = overlay {
            let mut link = host.links["eth0"].clone();
            (link.name, link.mtu, link.addresses) = (name.to_owned(), mtu, vec![address.parse().unwrap()]);
            host.links.insert(name.to_owned(), link);
        }
        host.hops = ways;
        let routes = cloud(&config, &host);
        assert_eq!(lookup(&routes, None, "10.1.1.9"), v4, "{name}");
        assert_eq!(lookup(&routes, None, "fd00:1::9"), v6, "{name}");
        assert_eq!(
            lookup(&routes, None, "10.2.1.9"),
            None,
            "{name}: the cloud's pods are the CNI's"
        );
        assert_eq!(
            lookup(&routes, None, "10.8.0.1"),
            None,
            "{name}: so are its nodes"
        );

        // The connector has moved: the same prefixes, all by another way, and none by the old one.
        let moved = cloud(&cloud_document("10.8.0.3, 'fd08::3'"), &host);
        let expected = host
            .hops
            .iter()
            .find(|hop| hop.node == IpAddr::from([10, 8, 0, 3]));
        match (expected, lookup(&moved, None, "10.1.1.9")) {
            (Some(hop), Some(Target::Gateway { address, device, .. })) => {
                assert_eq!((address, device), (hop.gateway, hop.device.clone()), "{name}");
            }
            (None, target) => assert_eq!(target, gateway("10.8.0.3", "eth0", false, 1400), "{name}"),
            (hop, target) => panic!("{name}: {hop:?} {target:?}"),
        }
        assert!(moved.routes.keys().eq(routes.routes.keys()), "{name}");
    }
}

proptest! {
    /// Whatever ways vanish with their devices, what had one is refused and not left to the default route.
    #[test]
    fn without_its_ways_a_node_is_closed(third in 0_u8..=255, last in 0_u8..=255) {
        for (routes, pod) in [
            (edge(&edge_document(), &edge_facts()), "10.1.1.9"),
            (connector(&connector_document(), &edge_facts()), "10.2.0.9"),
        ] {
            let mut closed = routes.clone();
            closed.routes.retain(|_, target| !matches!(target, Target::Device { .. } | Target::Gateway { .. }));
            let addresses =
                ["10.1", "10.2", "10.8", "10.9", "10.50", "10.96"].map(|net| format!("{net}.{third}.{last}"));
            for address in addresses.iter().map(String::as_str).chain(["10.8.0.1", "10.8.0.2", "10.9.0.1"]) {
                for from in [None, Some(pod)] {
                    let open = lookup(&routes, from, address);
                    let left = lookup(&closed, from, address);
                    let expected = match open {
                        Some(Target::Device { .. }) => Some(Target::Unreachable),
                        other => other,
                    };
                    prop_assert_eq!(left, expected, "{} from {:?}", address, from);
                }
            }
            for (key, target) in &routes.routes {
                let twin = Key { metric: TWIN_METRIC, ..*key };
                prop_assert!(*target == Target::Throw || routes.routes[&twin] == Target::Unreachable);
            }
        }
    }
}

#[test]
fn a_measured_path_narrows_the_routes_through_its_tunnel() {
    let mut facts = edge_facts();
    facts
        .paths
        .insert(fabedge_common::abi::reqid("c.connector"), 1218);
    let mut config = edge_document();
    let mtu =
        |config: &NodeConfig, from: Option<&str>, to: &str| match lookup(&edge(config, &facts), from, to) {
            Some(Target::Device { mtu, lock, .. }) => (mtu, lock),
            other => panic!("{other:?}"),
        };
    assert_eq!(mtu(&config, None, "10.2.3.4"), (1218, false));
    assert_eq!(mtu(&config, Some("10.1.1.9"), "10.8.0.2"), (1218, false));
    assert_eq!(mtu(&config, None, "10.1.2.9"), (1218, false), "relayed");
    assert_eq!(
        mtu(&config, None, "fd00:2::9"),
        (1280, false),
        "relayed: another tunnel follows"
    );
    Arc::make_mut(&mut config.peers[0])
        .endpoint
        .subnets
        .push("fd00:9::/64".parse().unwrap());
    assert_eq!(mtu(&config, None, "fd00:9::9"), (1280, true));
    Arc::make_mut(&mut config.peers[1]).via = fabedge_common::config::Via::Direct;
    assert_eq!(
        mtu(&config, None, "10.1.2.9"),
        (1400, false),
        "a tunnel of its own"
    );
}

#[test]
fn what_measures_a_narrow_path_is_not_held_to_its_mtu() {
    let mut facts = edge_facts();
    let config = edge_document();
    let probe_rules = |facts: &Facts| {
        let routes = edge(&config, facts);
        let probe = |rule: &&Rule| rule.table == marks::PROBE_TABLE;
        routes.rules.iter().filter(probe).count()
    };
    let reqid = fabedge_common::abi::reqid("c.connector");
    facts.paths.insert(reqid, 1400);
    assert_eq!(probe_rules(&facts), 0, "every lookup would ask them");
    facts.paths.insert(reqid, 1218);
    assert_eq!(probe_rules(&facts), 2);
    let routes = edge(&config, &facts);
    for to in ["10.2.3.4", "10.8.0.2", "fd00:2::9"] {
        let probe = lookup_marked(&routes, None, to, marks::PROBE_MARK);
        assert_eq!(device(probe), Some(("fabedge0".to_owned(), None)), "{to}");
    }
    facts.tunnel = TunnelKind::Libipsec;
    assert_eq!(probe_rules(&facts), 0, "a TUN device asks no route");
}
