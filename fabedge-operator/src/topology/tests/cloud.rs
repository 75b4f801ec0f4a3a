use fabedge_common::config::{NodeConfig, Via};

use super::*;

#[test]
fn the_connector_speaks_for_the_whole_cloud() {
    let (topology, _) = run(&world(), &settings());
    let nets = |nets: &[IpNet]| nets.iter().map(ToString::to_string).collect::<Vec<_>>();
    assert_eq!(
        nets(&topology.connector.subnets),
        ["10.233.64.0/23", "10.233.0.0/18"],
        "aggregated"
    );
    assert_eq!(nets(&topology.connector.service_subnets), ["10.233.0.0/18"]);
    assert_eq!(
        nets(&topology.connector.node_subnets),
        ["10.20.8.28/32", "10.20.8.23/32"],
        "its own first"
    );
    let all = documents(&topology);
    assert_eq!(nets(&all["edge1"].network_subnets), ["10.233.0.0/17"]);
    // What lies in the cloud is the cloud CNI's to route.
    assert_eq!(
        nets(&all["cloud"].network_subnets),
        ["10.233.66.0/23", "10.233.68.0/24"]
    );
    assert_eq!(
        nets(&all["cloud"].peers[0].endpoint.subnets),
        ["10.233.66.0/23", "10.233.68.0/24"]
    );
    assert_eq!(
        nets(&all["cloud"].peers[0].endpoint.node_subnets),
        ["10.20.8.28/32"],
        "the next hop"
    );
}

#[test]
fn of_several_connector_nodes_the_one_that_runs_it_is_the_next_hop() {
    let mut snapshot = world();
    let second = node("connector", "10.233.70.0/24", "10.20.8.40");
    snapshot.nodes.insert("cloud2".to_owned(), second);
    for (runs_on, expected) in [
        (None, ["10.20.8.28/32", "10.20.8.40/32"]),
        (Some("cloud2"), ["10.20.8.40/32", "10.20.8.28/32"]),
        (Some("cloud1"), ["10.20.8.28/32", "10.20.8.40/32"]),
        // Its label went, and it did not yet.
        (Some("node1"), ["10.20.8.28/32", "10.20.8.40/32"]),
    ] {
        snapshot.connector_node = runs_on.map(str::to_owned);
        let (topology, _) = run(&snapshot, &settings());
        let nets = |nets: &[IpNet]| nets.iter().map(ToString::to_string).collect::<Vec<_>>();
        let all = documents(&topology);
        let hops = nets(&all["cloud"].peers[0].endpoint.node_subnets);
        assert_eq!(hops, expected, "{runs_on:?}");
        assert_eq!(
            nets(&topology.connector.node_subnets)[..2],
            expected,
            "{runs_on:?}"
        );
    }
}

#[test]
fn without_a_connector_node_edges_keep_their_documents() {
    let mut snapshot = world();
    snapshot.nodes.get_mut("cloud1").unwrap().labels.clear();
    let (topology, findings) = run(&snapshot, &settings());
    says(&findings, "no node may run the connector");
    let all = documents(&topology);
    assert_eq!(all["edge1"].peers[0].endpoint.public_addresses, ["10.20.8.28"]);
    assert!(!all.contains_key("cloud"), "there is no next hop to name");
}

#[test]
fn a_tunnel_is_never_given_more_selectors_than_it_can_carry() {
    let mut snapshot = world();
    for i in 0..250u32 {
        // Every other address and prefix, so that nothing aggregates.
        let (pods, ip) = (
            format!("10.233.{}.{}/28", 70 + i / 8, i % 8 * 32),
            format!("10.30.0.{}", i / 2 * 2),
        );
        let ip = if i % 2 == 0 {
            ip
        } else {
            format!("10.31.0.{}", i / 2 * 2)
        };
        snapshot
            .nodes
            .insert(format!("worker{i}"), node("worker", &pods, &ip));
    }
    let (topology, findings) = run(&snapshot, &settings());
    assert_eq!(
        topology.connector.subnets.len() + topology.connector.node_subnets.len(),
        200
    );
    says(&findings, "but a tunnel carries 200");
    for document in documents(&topology).values() {
        NodeConfig::parse(&document.to_yaml().unwrap()).unwrap();
    }
}

#[test]
fn relayed_links_stop_where_the_tunnel_is_full() {
    let mut snapshot = world();
    let mut members = vec!["fabedge.edge1".to_owned()];
    for i in 0..230u8 {
        let name = format!("e{i:03}");
        members.push(format!("fabedge.{name}"));
        snapshot.nodes.insert(
            name,
            node(
                "edge",
                &format!("10.233.{}.{}/28", 100 + i / 8, i % 8 * 32),
                "10.0.0.1",
            ),
        );
    }
    snapshot
        .communities
        .insert("big".to_owned(), Community { members });
    let (topology, findings) = run(&snapshot, &settings());
    says(&findings, "relayed links of");
    let own = topology.connector.subnets.len() + topology.connector.node_subnets.len();
    for (name, peers) in &topology.links {
        assert!(own + peers.len() <= 200, "{name} has {}", peers.len());
    }
    assert_eq!(topology.links["e000"].len(), 200 - own, "full, and no less");
}

#[test]
fn another_clusters_connector_is_a_peer_of_ours_and_of_nobody_else() {
    let endpoint = |name: &str, kind, subnets: &str| Endpoint {
        id: distinguished_name(name),
        name: name.to_owned(),
        public_addresses: vec!["10.20.8.12".to_owned()],
        subnets: vec![subnets.parse().unwrap()],
        node_subnets: Vec::new(),
        service_subnets: Vec::new(),
        kind,
        port: None,
    };
    use fabedge_common::config::EndpointType::{Connector, EdgeNode};
    let mut snapshot = world();
    let endpoints = vec![
        endpoint("beijing.connector", Connector, "10.234.64.0/18"),
        endpoint("beijing.edge1", EdgeNode, "10.234.70.0/24"),
    ];
    snapshot.clusters.insert(
        "beijing".to_owned(),
        Cluster {
            endpoints,
            ..Cluster::default()
        },
    );
    join(
        &mut snapshot,
        "connectors",
        &["fabedge.connector", "beijing.connector"],
    );
    let (topology, findings) = run(&snapshot, &settings());
    assert_eq!(texts(&findings), [""; 0]);
    let all = documents(&topology);
    let peer = all["connector"].peer("beijing.connector").unwrap();
    assert!(
        !peer.initiate && peer.via == Via::Direct,
        "the smaller name initiates"
    );
    assert!(all["edge1"].peer("beijing.connector").is_none());
    assert!(
        all["cloud"].peers[0]
            .endpoint
            .subnets
            .contains(&"10.234.64.0/18".parse().unwrap())
    );

    join(
        &mut snapshot,
        "connectors",
        &["fabedge.edge1", "beijing.connector"],
    );
    assert!(
        run(&snapshot, &settings()).0.foreign.is_empty(),
        "our connector is not in it"
    );
    join(&mut snapshot, "connectors", &["fabedge.edge1", "beijing.edge1"]);
    says(
        &run(&snapshot, &settings()).1,
        "beijing.edge1 is an edge of another cluster",
    );
}

#[test]
fn with_calico_the_clouds_prefixes_are_the_blocks_of_its_nodes() {
    let settings = Settings {
        cni: CniType::Calico,
        edge_pools: vec![Pool {
            range: "10.10.0.0/16".parse().unwrap(),
            prefix_len: 24,
        }],
        ..settings()
    };
    let block = |cidr: &str, node: &str| Block {
        cidr: cidr.parse().unwrap(),
        node: (!node.is_empty()).then(|| node.to_owned()),
    };
    let mut snapshot = world();
    let pods = |snapshot: &ClusterSnapshot| {
        let (topology, findings) = run(snapshot, &settings);
        let nets: Vec<String> = topology
            .connector
            .pod_subnets()
            .map(|net| net.to_string())
            .collect();
        let all = documents(&topology);
        let edge = &all["edge1"].peers[0].endpoint;
        assert_eq!(edge.subnets, topology.connector.subnets, "edges know the same");
        // A block that is new tomorrow is the pod network's today: nothing for it leaves in plaintext.
        assert!(
            all["edge1"]
                .network_subnets
                .iter()
                .any(|net| net.contains(&settings.cluster_cidrs[0]))
        );
        (nets, texts(&findings))
    };
    assert_eq!(
        pods(&snapshot),
        (vec!["10.233.64.0/18".to_owned()], vec![]),
        "nobody tells"
    );

    snapshot.blocks = Some(Vec::new());
    assert_eq!(pods(&snapshot), (vec![], vec![]), "no pods yet");

    snapshot.blocks = Some(vec![
        block("10.233.90.0/26", "node1"),
        block("10.233.90.64/26", "cloud1"),
        block("10.233.91.0/26", "edge1"),
        block("10.233.92.0/26", ""),
        block("10.233.93.0/26", "a-node-that-is-gone"),
    ]);
    let expected = ["10.233.90.0/25", "10.233.92.0/26", "10.233.93.0/26"];
    assert_eq!(pods(&snapshot), (expected.map(str::to_owned).to_vec(), vec![]));

    snapshot.blocks = Some(vec![
        block("10.233.90.0/26", "node1"),
        block("10.10.3.0/26", "node1"),
    ]);
    let (nets, findings) = pods(&snapshot);
    assert_eq!(nets, ["10.233.90.0/26"]);
    assert!(
        findings[0].contains("10.10.3.0/26 to node1, but 10.10.0.0/16 is the edges'"),
        "{findings:?}"
    );

    // More than a tunnel carries: every other one, so that nothing aggregates, and one beyond all ranges.
    let many = (0..120).map(|i| block(&format!("10.233.{}.{}/26", 64 + i / 2, i % 2 * 128), "node1"));
    snapshot.blocks = Some(many.chain([block("10.99.0.0/26", "node1")]).collect());
    let expected = ["10.99.0.0/26", "10.233.64.0/18"];
    assert_eq!(pods(&snapshot), (expected.map(str::to_owned).to_vec(), vec![]));
}
