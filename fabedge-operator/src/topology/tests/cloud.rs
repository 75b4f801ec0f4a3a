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
    snapshot
        .clusters
        .insert("beijing".to_owned(), Cluster { endpoints });
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
