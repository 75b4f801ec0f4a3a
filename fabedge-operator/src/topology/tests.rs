use std::collections::BTreeMap;

use super::render::documents;
use super::*;
use crate::finding::Severity;
use crate::snapshot::{
    Block, Cluster, CniType, Community, EdgeToEdge, LabelMatch, Node, Pool, distinguished_name,
};

mod cloud;
mod properties;

fn settings() -> Settings {
    let label = |key: &str| {
        vec![LabelMatch {
            key: key.to_owned(),
            value: None,
        }]
    };
    Settings {
        cluster: "fabedge".to_owned(),
        cni: CniType::Flannel,
        edge_labels: label("edge"),
        connector_labels: label("connector"),
        connector_public_addresses: vec!["10.20.8.28".to_owned()],
        connector_public_port: None,
        connector_node_addresses: Vec::new(),
        edge_pools: Vec::new(),
        cluster_cidrs: vec!["10.233.64.0/18".parse().unwrap()],
        service_cidrs: vec!["10.233.0.0/18".parse().unwrap()],
        edge_to_edge: None,
    }
}

fn node(label: &str, pods: &str, ip: &str) -> Node {
    Node {
        labels: BTreeMap::from([(label.to_owned(), String::new())]),
        pod_cidrs: pods.split_whitespace().map(|net| net.parse().unwrap()).collect(),
        internal_ips: ip.split_whitespace().map(|ip| ip.parse().unwrap()).collect(),
        ..Node::default()
    }
}

/// The world of the example, without communities.
fn world() -> ClusterSnapshot {
    let mut snapshot = ClusterSnapshot::default();
    for (name, label, pods, ip) in [
        ("cloud1", "connector", "10.233.64.0/24", "10.20.8.28"),
        ("node1", "worker", "10.233.65.0/24", "10.20.8.23"),
        ("edge1", "edge", "10.233.66.0/24", "192.168.50.2"),
        ("edge2", "edge", "10.233.67.0/24", "172.16.2.2"),
        ("edge3", "edge", "10.233.68.0/24", "192.168.50.2"),
    ] {
        snapshot.nodes.insert(name.to_owned(), node(label, pods, ip));
    }
    snapshot.nodes.get_mut("edge2").unwrap().public_addresses = vec!["172.16.2.2".to_owned()];
    snapshot
}

fn join(snapshot: &mut ClusterSnapshot, name: &str, members: &[&str]) {
    let members = members.iter().map(|m| (*m).to_owned()).collect();
    snapshot
        .communities
        .insert(name.to_owned(), Community { members });
}

fn run(snapshot: &ClusterSnapshot, settings: &Settings) -> (Topology, Vec<Finding>) {
    compute(snapshot, settings, &Previous::default())
}

fn texts(findings: &[Finding]) -> Vec<String> {
    findings.iter().map(ToString::to_string).collect()
}

#[track_caller]
fn says(findings: &[Finding], expected: &str) {
    assert!(
        texts(findings).iter().any(|f| f.contains(expected)),
        "{expected:?} in {:#?}",
        texts(findings)
    );
}

/// How `of` reaches `peer`: "initiate", "answer", "relay" or nothing.
fn way(topology: &Topology, of: &str, peer: &str) -> Option<&'static str> {
    topology.links.get(of)?.get(peer).map(|link| match link {
        Link::Initiate => "initiate",
        Link::Answer => "answer",
        Link::Relay => "relay",
    })
}

#[test]
fn edges_are_strangers_until_a_community_joins_them() {
    let mut snapshot = world();
    let (topology, findings) = run(&snapshot, &settings());
    assert_eq!(texts(&findings), [""; 0]);
    assert!(topology.links.is_empty());

    join(&mut snapshot, "a", &["fabedge.edge1", "fabedge.edge2"]);
    join(&mut snapshot, "b", &["fabedge.edge3", "fabedge.edge1"]);
    let (topology, findings) = run(&snapshot, &settings());
    assert_eq!(texts(&findings), [""; 0]);
    assert_eq!(
        way(&topology, "edge1", "edge2"),
        Some("initiate"),
        "the unreachable side initiates"
    );
    assert_eq!(way(&topology, "edge2", "edge1"), Some("answer"));
    assert_eq!(way(&topology, "edge1", "edge3"), Some("relay"));
    assert_eq!(way(&topology, "edge3", "edge1"), Some("relay"));
    assert_eq!(way(&topology, "edge2", "edge3"), None, "no community has both");

    let all = documents(&topology);
    let names = |peers: &[std::sync::Arc<fabedge_common::config::Peer>]| {
        peers
            .iter()
            .map(|p| p.endpoint.local_name().to_owned())
            .collect::<Vec<_>>()
    };
    assert_eq!(
        names(&all["edge1"].peers),
        ["connector", "edge2", "edge3"],
        "the connector first"
    );
    assert_eq!(all["connector"].peers[0].relays, ["fabedge.edge3"]);
    assert_eq!(all["connector"].peers[2].relays, ["fabedge.edge1"]);
    assert!(
        all["connector"].peers.iter().all(|p| !p.initiate),
        "edges initiate"
    );
    assert_eq!(names(&all["cloud"].peers), ["connector"]);
}

#[test]
fn how_a_pair_is_joined() {
    let private = || node("edge", "", "192.168.1.2");
    let with = |public: &str| Node {
        public_addresses: vec![public.to_owned()],
        ..node("edge", "", "192.168.1.3")
    };
    let relayed = || Node {
        edge_to_edge: Some(EdgeToEdge::Relay),
        ..with("1.1.1.9")
    };
    let at = |ip: &str| node("edge", "", ip);
    let direct = Some(EdgeToEdge::Direct);
    for (policy, a, b, expected) in [
        (None, private(), with("1.1.1.1"), Some("initiate")),
        (None, with("1.1.1.1"), private(), Some("answer")),
        (
            None,
            with("1.1.1.1"),
            Node {
                internal_ips: vec![],
                ..with("1.1.1.2")
            },
            Some("initiate"),
        ),
        (None, private(), at("192.168.1.9"), Some("relay")),
        // Public addresses count by themselves; a carrier's do not.
        (None, at("8.8.8.8"), private(), Some("answer")),
        (None, at("2a00::1"), private(), Some("answer")),
        (None, at("100.64.0.1"), private(), Some("relay")),
        (None, at("fd00::1"), private(), Some("relay")),
        // The settings may vouch for private ones, but not for two of the same.
        (direct, private(), at("192.168.1.9"), Some("initiate")),
        (direct, private(), private(), Some("relay")),
        // The same address: neither can tell the other from itself.
        (None, at("8.8.8.8"), at("8.8.8.8"), Some("relay")),
        (
            None,
            private(),
            Node {
                internal_ips: private().internal_ips,
                ..with("1.1.1.1")
            },
            Some("relay"),
        ),
        (
            None,
            with("1.1.1.1"),
            Node {
                internal_ips: vec![],
                ..with("1.1.1.1")
            },
            Some("relay"),
        ),
        // And either side may decline.
        (Some(EdgeToEdge::Relay), with("1.1.1.1"), private(), Some("relay")),
        (direct, relayed(), private(), Some("relay")),
        (direct, private(), relayed(), Some("relay")),
        (
            Some(EdgeToEdge::Relay),
            Node {
                edge_to_edge: direct,
                ..with("1.1.1.1")
            },
            private(),
            Some("relay"),
        ),
    ] {
        let mut snapshot = world();
        let case = format!("{policy:?} {a:?} {b:?}");
        for (name, pods, node) in [("edge1", "10.233.66.0/24", a), ("edge2", "10.233.67.0/24", b)] {
            let pod_cidrs = vec![pods.parse().unwrap()];
            snapshot.nodes.insert(name.to_owned(), Node { pod_cidrs, ..node });
        }
        snapshot.nodes.remove("edge3");
        join(&mut snapshot, "c", &["fabedge.edge1", "fabedge.edge2"]);
        let settings = Settings {
            edge_to_edge: policy,
            ..settings()
        };
        let (topology, _) = run(&snapshot, &settings);
        assert_eq!(way(&topology, "edge1", "edge2"), expected, "{case}");
        let back = match expected {
            Some("initiate") => Some("answer"),
            Some("answer") => Some("initiate"),
            other => other,
        };
        assert_eq!(way(&topology, "edge2", "edge1"), back, "{case}");
    }
}

#[test]
fn members_are_matched_by_their_whole_name() {
    let mut snapshot = world();
    let members = [
        "fab.edge1",
        "fabedge.edge",
        "fabedge.edge11",
        "fabedge.edge1.x",
        "fabedgex.edge1",
        "fabedge.edge2",
    ];
    join(&mut snapshot, "c", &members);
    for name in ["fab", "fabedgex"] {
        snapshot.clusters.insert(name.to_owned(), Cluster::default());
    }
    let (topology, findings) = run(&snapshot, &settings());
    assert!(topology.links.is_empty() && topology.foreign.is_empty());
    assert_eq!(findings.len(), 5);
    assert!(
        findings.iter().all(|f| f.severity == Severity::Warning),
        "pending is no error"
    );
}

#[test]
fn who_was_there_first_keeps_a_prefix() {
    let clash = |first: &str| {
        let mut snapshot = world();
        let overlapping = "10.233.66.0/25".parse().unwrap();
        snapshot.nodes.get_mut("edge2").unwrap().pod_cidrs = vec![overlapping];
        snapshot.nodes.get_mut("edge2").unwrap().created = (first == "older").then_some(1);
        let mut previous = Previous::default();
        if first == "published" {
            previous.subnets.insert("edge2".to_owned(), vec![overlapping]);
            // edge1 was published too, elsewhere: it is new where it is now.
            previous
                .subnets
                .insert("edge1".to_owned(), vec!["10.233.99.0/24".parse().unwrap()]);
        }
        join(&mut snapshot, "c", &["fabedge.edge1", "fabedge.edge2"]);
        compute(&snapshot, &settings(), &previous)
    };
    for (first, winner, loser) in [
        ("", "edge1", "edge2"),
        ("older", "edge2", "edge1"),
        ("published", "edge2", "edge1"),
    ] {
        let (topology, findings) = clash(first);
        assert!(
            topology.edges.contains_key(winner) && !topology.edges.contains_key(loser),
            "{first}"
        );
        assert!(topology.unresolved.contains(loser), "its files stay");
        says(&findings, &format!("Node {loser}: spec.podCIDRs: "));
        says(&findings, &format!("of Node {winner}, which had it first"));
        says(
            &findings,
            &format!("fabedge.{loser}: the node has a problem of its own"),
        );
    }
}

#[test]
fn prefixes_that_would_take_what_is_not_an_edges() {
    for (pods, whose) in [
        ("10.233.64.0/25", "Node cloud1"),
        ("10.233.65.0/24", "Node node1"),
        ("10.233.1.0/24", "serviceClusterIPRange"),
        ("10.20.0.0/16", "the cloud nodes' addresses"),
    ] {
        let mut snapshot = world();
        snapshot.nodes.get_mut("edge1").unwrap().pod_cidrs = vec![pods.parse().unwrap()];
        let (topology, findings) = run(&snapshot, &settings());
        assert!(!topology.edges.contains_key("edge1"), "{pods}");
        says(&findings, whose);
    }
}

/// Pods in a prefix that holds the node's own address would take its own network into the tunnel.
#[test]
fn prefixes_and_the_edges_own_networks_are_apart() {
    let with = |edge2: Node, published: bool| {
        let mut snapshot = world();
        snapshot.nodes.insert("edge2".to_owned(), edge2);
        let mut previous = Previous::default();
        if published {
            previous
                .subnets
                .insert("edge2".to_owned(), snapshot.nodes["edge2"].pod_cidrs.clone());
        }
        let (topology, findings) = compute(&snapshot, &settings(), &previous);
        let names = topology.edges.keys().cloned().collect::<Vec<_>>();
        (names, findings)
    };
    let (names, findings) = with(node("edge", "192.168.50.0/24", "172.16.2.2"), false);
    assert_eq!(names, ["edge1", "edge3"]);
    says(
        &findings,
        "Node edge2: spec.podCIDRs: 192.168.50.0/24 holds 192.168.50.2, which Node edge1 has",
    );
    let (names, findings) = with(node("edge", "192.168.50.0/24", "172.16.2.2"), true);
    assert_eq!(names, ["edge2"], "who was there first stays");
    says(
        &findings,
        "Node edge3: status.addresses: its own address 192.168.50.2 lies in the pod prefix 192.168.50.0/24",
    );
    for (ip, net) in [
        ("10.233.66.9", "10.233.64.0/18"),
        ("10.233.1.1", "10.233.0.0/18"),
        ("10.99.0.9", "10.99.0.0/24"),
    ] {
        let (names, findings) = with(node("edge", "10.99.0.0/24", ip), true);
        assert_eq!(names, ["edge1", "edge3"]);
        says(
            &findings,
            &format!("its own address {ip} lies in the pod prefix {net}"),
        );
    }
    // But the same private address as a cloud node's is nobody's fault.
    assert_eq!(
        with(node("edge", "10.233.67.0/24", "10.20.8.23"), false).0,
        ["edge1", "edge2", "edge3"]
    );
}

#[test]
fn a_pool_gives_each_edge_a_prefix_of_each_family() {
    let pool = |range: &str, prefix_len| Pool {
        range: range.parse().unwrap(),
        prefix_len,
    };
    let settings = Settings {
        cni: CniType::Calico,
        edge_pools: vec![pool("10.10.0.0/22", 24), pool("fd10::/48", 64)],
        ..settings()
    };
    let mut snapshot = world();
    for name in ["edge4", "edge5"] {
        snapshot.nodes.insert(name.to_owned(), node("edge", "", ""));
    }
    let (topology, findings) = run(&snapshot, &settings);
    says(
        &findings,
        "Node edge5: metadata.annotations[fabedge.io/subnets]: the pool 10.10.0.0/22 has no /24 left",
    );
    let subnets = |topology: &Topology, name: &str| {
        topology.edges[name]
            .subnets
            .iter()
            .map(ToString::to_string)
            .collect::<Vec<_>>()
    };
    assert_eq!(
        subnets(&topology, "edge1"),
        ["10.10.0.0/24", "fd10::/64"],
        "spec.podCIDRs is Flannel's"
    );

    // What was published stays, whoever comes and goes.
    let previous = Previous {
        subnets: topology
            .edges
            .iter()
            .map(|(name, edge)| (name.clone(), edge.subnets.clone()))
            .collect(),
    };
    snapshot.nodes.remove("edge1");
    let (later, findings) = compute(&snapshot, &settings, &previous);
    assert_eq!(texts(&findings), [""; 0], "edge5 got what edge1 had");
    assert_eq!(subnets(&later, "edge4"), subnets(&topology, "edge4"));
    assert_eq!(subnets(&later, "edge5")[0], "10.10.0.0/24");
    assert_eq!(
        later.connector.subnets[0], settings.cluster_cidrs[0],
        "Calico's pods are anywhere in the cluster CIDR"
    );
}
