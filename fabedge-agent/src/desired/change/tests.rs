use std::collections::{BTreeMap, BTreeSet};

use fabedge_common::config::Endpoint;
use proptest::prelude::*;

use super::*;
use crate::args::Role;
use crate::desired::datapath::LocalPods;
use crate::desired::firewall::Set;
use crate::desired::{Desired, Options};
use crate::facts::{Facts, Link, TunnelKind};
use crate::firewall::sets::Elements;

/// An edge: its number, the variant of its prefixes, what is odd about it.
type Edge = (u8, u8, u8);

fn peer((number, variant, odd): Edge) -> Arc<Peer> {
    let net = |text: String| text.parse::<IpNet>().unwrap();
    Arc::new(Peer {
        endpoint: Endpoint {
            id: format!("CN=a.edge{number}"),
            name: format!("a.edge{number}"),
            public_addresses: vec![match odd {
                // In the prefix of another.
                1 => "10.1.3.77".to_owned(),
                2 => "10.200.0.9".to_owned(),
                3 => "edge.example.com".to_owned(),
                _ => format!("192.0.2.{number}"),
            }],
            subnets: vec![
                net(format!("10.1.{}.0/24", number + 32 * (variant % 4))),
                net(format!("fd00:1:{number}:{}::/64", variant % 4)),
            ],
            node_subnets: vec![net(format!("192.168.0.{number}/32"))],
            service_subnets: Vec::new(),
            kind: EndpointType::EdgeNode,
            port: (odd == 4).then_some(4500),
        },
        via: if odd == 5 { Via::Relay } else { Via::Direct },
        initiate: odd == 6,
        relays: Vec::new(),
    })
}

/// A document with a connector, whose own prefixes and nodes may be where edges' are.
fn document(generation: u64, edges: &BTreeMap<u8, (u8, u8)>, near: bool) -> Option<NodeConfig> {
    let text = format!(
        "{{version: 1, generation: {generation}, id: CN=a.me, name: a.me, type: EdgeNode, subnets: [10.200.0.0/24], \
         nodeSubnets: [192.168.9.9], networkSubnets: [10.1.0.0/16, 10.200.0.0/16], peers: [{{id: CN=a.connector, name: \
         a.connector, type: Connector, publicAddresses: [198.51.100.1], subnets: [10.250.0.0/16], nodeSubnets: [{}], \
         initiate: true}}]}}\n...\n",
        if near { "10.1.4.4" } else { "198.51.100.1" }
    );
    let mut config = NodeConfig::parse(&text).unwrap();
    let edges = edges.iter();
    config
        .peers
        .extend(edges.map(|(number, (variant, odd))| peer((*number, *variant, *odd))));
    // As a valid one: prefixes are disjoint, and so on.
    NodeConfig::parse(&config.to_yaml().unwrap()).ok()
}

fn facts() -> Facts {
    let link = |name: &str, index, address: Option<&str>| Link {
        index,
        name: name.to_owned(),
        mtu: 1500,
        up: true,
        addresses: address
            .map(|address| address.parse().unwrap())
            .into_iter()
            .collect(),
        ..Link::default()
    };
    let links = [
        link("eth0", 2, Some("192.168.9.9/24")),
        link("fabedge0", 3, None),
        link("br-fabedge", 4, Some("10.200.0.1/24")),
    ];
    Facts {
        links: links.into_iter().map(|link| (link.name.clone(), link)).collect(),
        uplinks: vec!["eth0".to_owned()],
        tunnel: TunnelKind::Xfrm,
        hops: BTreeSet::new(),
        reception: Default::default(),
        paths: BTreeMap::new(),
    }
}

fn desired(config: &NodeConfig) -> Desired {
    let options = Options {
        masq_outgoing: true,
        fast_path: true,
        spread_esp: Default::default(),
    };
    Desired::new(Role::Edge, config, &facts(), &LocalPods::default(), &options)
}

fn change(was: &NodeConfig, is: &NodeConfig) -> Option<Change> {
    Change::new(was, is, &mut Others::of(&was.peers))
}

/// `whole` without what `before` has, with what `after` has.
fn carried<K: Ord + Clone, V: Clone + PartialEq>(
    whole: &BTreeMap<K, V>,
    before: &BTreeMap<K, V>,
    after: &BTreeMap<K, V>,
) -> BTreeMap<K, V> {
    let mut whole = whole.clone();
    for (key, value) in before {
        if after.get(key) != Some(value) {
            whole.remove(key);
        }
    }
    for (key, value) in after {
        if before.get(key) != Some(value) {
            whole.insert(key.clone(), value.clone());
        }
    }
    whole
}

fn edges() -> impl Strategy<Value = BTreeMap<u8, (u8, u8)>> {
    // Few are odd: a change of one is none for us.
    let odd = prop_oneof![8 => Just(0u8), 1 => 0u8..7];
    proptest::collection::btree_map(0u8..24, (0u8..4, odd), 0..20)
}

proptest! {
    #[test]
    fn what_is_carried_out_by_itself_leads_where_the_whole_leads(
        edges in edges(),
        others in proptest::collection::btree_map(0u8..24, proptest::option::of((0u8..4, prop_oneof![4 => Just(0u8), 1 => 0u8..7])), 1..4),
        near in any::<bool>(),
    ) {
        let mut next = edges.clone();
        for (number, edge) in others {
            match edge {
                Some(edge) => drop(next.insert(number, edge)),
                None => drop(next.remove(&number)),
            }
        }
        let documents = document(1, &edges, near).zip(document(2, &next, near));
        let Some((was, is)) = documents else { return Ok(()) };
        let Some(change) = change(&was, &is) else { return Ok(()) };
        let whole = (desired(&was), desired(&is));
        prop_assume!(whole.0.problems().is_empty() && whole.1.problems().is_empty());
        let part = (desired(&change.before), desired(&change.after));

        let routes = carried(&whole.0.routes.routes, &part.0.routes.routes, &part.1.routes.routes);
        prop_assert_eq!(&routes, &whole.1.routes.routes);
        let connections =
            carried(&whole.0.tunnels.connections, &part.0.tunnels.connections, &part.1.tunnels.connections);
        prop_assert_eq!(&connections, &whole.1.tunnels.connections);
        let fast = carried(&whole.0.datapath.routes, &part.0.datapath.routes, &part.1.datapath.routes);
        prop_assert_eq!(&fast, &whole.1.datapath.routes);
        let peers = carried(&whole.0.datapath.peers, &part.0.datapath.peers, &part.1.datapath.peers);
        prop_assert_eq!(&peers, &whole.1.datapath.peers);

        let sets = |desired: &Desired| desired.firewall.table.as_ref().unwrap().sets.clone();
        let nets = |sets: &BTreeMap<Set, Vec<IpNet>>, set| -> BTreeSet<IpNet> { sets[&set].iter().copied().collect() };
        for set in [Set::Own, Set::Services, Set::OwnNodes, Set::Peers, Set::RemoteNodes, Set::Network, Set::Guarded, Set::Watched] {
            let mut now = nets(&sets(&whole.0), set);
            let (before, after) = (nets(&sets(&part.0), set), nets(&sets(&part.1), set));
            let mut elements = Elements::new(&mut now);
            for net in before.difference(&after) {
                prop_assert!(elements.take(*net).is_some(), "{:?} {}", set, net);
            }
            for net in after.difference(&before) {
                prop_assert!(elements.put(*net).is_some(), "{:?} {}", set, net);
            }
            prop_assert_eq!(now, nets(&sets(&whole.1), set), "{:?}", set);
        }
    }
}

#[test]
fn an_edge_that_moves_is_a_change_and_one_that_concerns_others_is_not() {
    let edges: BTreeMap<u8, (u8, u8)> = (0..20).map(|number| (number, (0, 0))).collect();
    let changed = |number: u8, edge: Option<(u8, u8)>| {
        let mut next = edges.clone();
        match edge {
            Some(edge) => drop(next.insert(number, edge)),
            None => drop(next.remove(&number)),
        }
        change(
            &document(1, &edges, false).unwrap(),
            &document(2, &next, false).unwrap(),
        )
    };
    let moved = changed(7, Some((1, 0))).unwrap();
    assert_eq!((moved.before.peers.len(), moved.after.peers.len()), (1, 1));
    assert!(changed(7, None).is_some(), "it goes");
    assert!(changed(22, Some((0, 0))).is_some(), "one more");
    for (what, odd) in [
        ("its address is another's pod's", 1),
        ("is the node's own pod's", 2),
        ("it is relayed", 5),
    ] {
        assert!(changed(7, Some((0, odd))).is_none(), "{what}");
    }
    let (was, mut is) = (
        document(1, &edges, false).unwrap(),
        document(2, &edges, false).unwrap(),
    );
    is.endpoint.subnets.push("10.201.0.0/24".parse().unwrap());
    assert!(change(&was, &is).is_none(), "the node itself has changed");
}

#[test]
fn what_came_is_among_the_others_of_what_comes_next() {
    let mut edges: BTreeMap<u8, (u8, u8)> = (0..20).map(|number| (number, (0, 0))).collect();
    let first = document(1, &edges, false).unwrap();
    edges.insert(3, (1, 0));
    let second = document(2, &edges, false).unwrap();
    let third = |address: &str| {
        let mut third = document(3, &edges, false).unwrap();
        let mut peer = (*third.peers[8]).clone();
        peer.endpoint.public_addresses = vec![address.to_owned()];
        third.peers[8] = Arc::new(peer);
        third
    };
    // Edge 3 has fd00:1:3:1::/64 now, which the network's own prefixes do not hold.
    for (address, concerned) in [("fd00:1:3:1::77", true), ("fd00:1:3:2::77", false)] {
        let mut others = Others::of(&first.peers);
        assert!(Change::new(&first, &second, &mut others).is_some());
        let change = Change::new(&second, &third(address), &mut others);
        assert_eq!(change.is_none(), concerned, "{address}");
    }
}
