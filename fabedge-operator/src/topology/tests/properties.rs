use std::net::IpAddr;

use fabedge_common::config::{CONNECTOR, NodeConfig, Via};
use proptest::prelude::*;

use super::*;

prop_compose! {
    fn any_node()(
        label in prop::sample::select(vec!["edge", "edge", "edge", "connector", "worker"]),
        pods in prop::collection::vec((60u8..75, 22u8..27), 0..3),
        ip in prop::option::of(0u8..6),
        public in prop::option::of(0u8..4),
        mode in prop::option::of(prop::sample::select(vec![EdgeToEdge::Direct, EdgeToEdge::Relay])),
        created in prop::option::of(0i64..3),
    ) -> Node {
        Node {
            labels: BTreeMap::from([(label.to_owned(), String::new())]),
            created,
            pod_cidrs: pods.iter().map(|(c, len)| format!("10.233.{c}.0/{len}").parse::<IpNet>().unwrap().trunc()).collect(),
            internal_ips: ip.iter().map(|d| IpAddr::from([192, 168, 1, *d])).collect(),
            public_addresses: public.iter().map(|d| format!("203.0.113.{d}")).collect(),
            edge_to_edge: mode,
            ..Node::default()
        }
    }
}

proptest! {
    /// Whatever the nodes and communities are, every document is one that the agent takes, and the two ends of
    /// every link agree.
    #[test]
    fn documents_are_valid_and_agree_with_each_other(
        nodes in prop::collection::btree_map("[a-d]{1,2}|connector", any_node(), 0..12),
        communities in prop::collection::vec(prop::collection::vec("fabedge\\.([a-d]{1,2}|connector)|other\\.a", 0..6), 0..4),
        mode in prop::option::of(prop::sample::select(vec![EdgeToEdge::Direct, EdgeToEdge::Relay])),
    ) {
        let snapshot = ClusterSnapshot {
            nodes,
            communities: communities.into_iter().enumerate().map(|(i, members)| (i.to_string(), Community { members })).collect(),
            ..ClusterSnapshot::default()
        };
        let settings = Settings { edge_to_edge: mode, ..settings() };
        let (topology, findings) = run(&snapshot, &settings);
        let all = documents(&topology);
        for (name, document) in &all {
            let parsed = NodeConfig::parse(&document.to_yaml().unwrap());
            prop_assert!(parsed.is_ok(), "{}: {:?}", name, parsed);
        }
        for (name, document) in all.iter().filter(|(name, _)| topology.edges.contains_key(*name)) {
            for peer in document.peers.iter().skip(1) {
                let other = &all[peer.endpoint.local_name()];
                let back = other.peer(&document.endpoint.name).unwrap();
                prop_assert_eq!(peer.via, back.via);
                let together = snapshot.communities.values().any(|c| {
                    [&document.endpoint.name, &other.endpoint.name].iter().all(|name| c.members.contains(name))
                });
                prop_assert!(together, "{} and {} share no community", name, other.endpoint.name);
                let relayed = all[CONNECTOR].peer(&document.endpoint.name).unwrap().relays.contains(&other.endpoint.name);
                prop_assert_eq!(relayed, peer.via == Via::Relay);
                if peer.via == Via::Direct {
                    prop_assert!(peer.initiate != back.initiate, "exactly one initiates");
                    let answering = if peer.initiate { &peer.endpoint } else { &document.endpoint };
                    prop_assert!(!answering.public_addresses.is_empty());
                    let (a, b) = (&document.endpoint.node_subnets, &other.endpoint.node_subnets);
                    prop_assert!(a.iter().all(|net| !b.contains(net)), "the same InternalIP is never direct");
                }
            }
        }
        // An edge has a document, or there is an error that names it.
        for (name, node) in snapshot.nodes.iter().filter(|(_, node)| node.labels.contains_key("edge")) {
            let named = findings.iter().any(|f| f.severity == Severity::Error && f.problem.object == format!("Node {name}"));
            prop_assert!(topology.edges.contains_key(name) != named, "{}: {:?}", name, node);
        }
    }
}
