use fabedge_common::abi::reqid;

use super::*;

const DOCUMENT: &str = "
version: 1
generation: 1
id: C=CN, O=fabedge.io, CN=fabedge.edge1
name: fabedge.edge1
subnets: [10.233.66.0/24, 'fd00:233:64:66::/64']
nodeSubnets: [192.168.50.2]
type: EdgeNode
peers:
- id: C=CN, O=fabedge.io, CN=fabedge.connector
  name: fabedge.connector
  publicAddresses: [10.20.8.28]
  subnets: [10.233.64.0/23, 10.233.0.0/18]
  serviceSubnets: [10.233.0.0/18]
  nodeSubnets: [10.20.8.28, 10.20.8.23]
  type: Connector
  initiate: true
- id: C=CN, O=fabedge.io, CN=fabedge.edge2
  name: fabedge.edge2
  publicAddresses: [172.16.2.2]
  subnets: [10.233.67.0/24, 'fd00:233:64:67::/64']
  nodeSubnets: [172.16.2.2]
  type: EdgeNode
  initiate: true
- id: C=CN, O=fabedge.io, CN=fabedge.edge3
  name: fabedge.edge3
  subnets: [10.233.68.0/24]
  nodeSubnets: [192.168.50.2]
  type: EdgeNode
  via: relay
...
";

fn config() -> NodeConfig {
    NodeConfig::parse(DOCUMENT).unwrap()
}

fn link(index: u32, name: &str, kind: Option<&str>) -> Link {
    Link {
        index,
        name: name.to_owned(),
        mtu: 1500,
        mac: [2, 0, 0, 0, 0, index as u8],
        kind: kind.map(str::to_owned),
        up: true,
        ..Link::default()
    }
}

fn facts(links: Vec<Link>) -> Facts {
    Facts {
        links: links.into_iter().map(|link| (link.name.clone(), link)).collect(),
        uplinks: vec!["eth0".to_owned()],
        tunnel: TunnelKind::Xfrm,
        hops: BTreeSet::new(),
        reception: Default::default(),
        paths: BTreeMap::new(),
    }
}

/// A host with uplink, tunnel device, bridge, and a pod's veth on it.
fn host() -> Facts {
    let mut tunnel = link(3, "fabedge0", Some("xfrm"));
    tunnel.mtu = 1380;
    let mut veth = link(5, "veth1", Some("veth"));
    veth.master = Some(4);
    facts(vec![
        link(2, "eth0", None),
        tunnel,
        link(4, "br-fabedge", Some("bridge")),
        veth,
    ])
}

fn pod() -> LocalPod {
    LocalPod {
        container: "c1".to_owned(),
        interfaces: vec!["br-fabedge".to_owned(), "veth1".to_owned()],
        mac: [6; 6],
        addresses: vec![
            "10.233.66.2".parse().unwrap(),
            "fd00:233:64:66::2".parse().unwrap(),
        ],
        shaped: false,
    }
}

fn local(pods: Vec<LocalPod>) -> LocalPods {
    LocalPods {
        pods,
        ..LocalPods::default()
    }
}

fn net(text: &str) -> IpNet {
    text.parse().unwrap()
}

#[test]
fn direct_peers_have_their_own_reqid_and_relayed_ones_the_connectors() {
    let desired = datapath(&config(), &host(), &local(vec![]), true);
    let connector = reqid("fabedge.connector");
    let expected = [
        ("10.233.64.0/23", connector, 0),
        ("10.233.0.0/18", connector, ROUTE_STACK),
        ("10.20.8.28/32", connector, ROUTE_STACK),
        ("10.20.8.23/32", connector, ROUTE_STACK),
        ("10.233.67.0/24", reqid("fabedge.edge2"), 0),
        ("fd00:233:64:67::/64", reqid("fabedge.edge2"), 0),
        ("10.233.68.0/24", connector, 0),
    ];
    let expected: BTreeMap<IpNet, Route> = expected
        .into_iter()
        .map(|(prefix, reqid, flags)| {
            (
                net(prefix),
                Route {
                    kind: ROUTE_XFRM,
                    ifindex: 3,
                    reqid,
                    flags,
                    mtu: 1380,
                },
            )
        })
        .collect();
    assert_eq!(desired.routes, expected);
    let names: Vec<&str> = desired.peers.values().map(String::as_str).collect();
    assert_eq!(names.len(), 2);
    assert!(names.contains(&"fabedge.connector") && names.contains(&"fabedge.edge2"));
}

#[test]
fn without_a_tunnel_device_nothing_is_routed_but_pods_are_ready() {
    let mut facts = host();
    facts.links.remove("fabedge0");
    let desired = datapath(&config(), &facts, &local(vec![pod()]), true);
    assert!(desired.enabled);
    assert_eq!(desired.routes, BTreeMap::new());
    assert!(desired.hooks.iter().all(|hook| !hook.entry.on_tunnel()));
    assert_eq!(desired.pods.len(), 2);
}

#[test]
fn a_pod_is_reached_over_its_veth_with_the_bridge_as_its_gateway() {
    let desired = datapath(&config(), &host(), &local(vec![pod()]), true);
    let expected = Pod {
        ifindex: 5,
        flags: 0,
        pod_mac: [6; 6],
        gateway_mac: [2, 0, 0, 0, 0, 4],
    };
    assert_eq!(desired.pods.values().collect::<Vec<_>>(), [&expected, &expected]);
    let hooks: Vec<String> = desired.hooks.iter().map(ToString::to_string).collect();
    assert_eq!(
        hooks,
        [
            "tunnel_ingress on fabedge0",
            "tunnel_egress on fabedge0",
            "pod_ingress on veth1",
            "pod_egress on veth1"
        ]
    );
    let mut routed = host();
    routed.links.get_mut("veth1").unwrap().master = None;
    let desired = datapath(&config(), &routed, &local(vec![pod()]), true);
    assert_eq!(
        desired.pods.values().next().unwrap().gateway_mac,
        [2, 0, 0, 0, 0, 5]
    );
}

#[test]
fn a_tun_needs_the_program_that_knows_no_sa() {
    let mut facts = host();
    facts.tunnel = TunnelKind::Libipsec;
    facts
        .links
        .insert("ipsec0".to_owned(), link(9, "ipsec0", Some("tun")));
    let desired = datapath(&config(), &facts, &local(vec![]), true);
    let entries: Vec<Entry> = desired.hooks.iter().map(|hook| hook.entry).collect();
    assert_eq!(entries, [Entry::TunIngress, Entry::TunnelEgress]);
    assert!(
        desired
            .routes
            .values()
            .all(|route| route.kind == ROUTE_TUN && route.ifindex == 9)
    );
    assert!(
        desired.routes.values().all(|route| route.mtu == 1400),
        "a TUN may be larger than what fits the uplink"
    );
}

#[test]
fn limited_pods_have_no_programs() {
    let mut asked = pod();
    asked.shaped = true;
    let qdisc = |kind: &str| LocalPods {
        pods: vec![pod()],
        qdiscs: BTreeMap::from([(5, BTreeSet::from(["noqueue".to_owned(), kind.to_owned()]))]),
    };
    for local in [local(vec![asked]), qdisc("tbf"), qdisc("ingress"), qdisc("netem")] {
        let desired = datapath(&config(), &host(), &local, true);
        assert!(
            desired.hooks.iter().all(|hook| hook.entry.on_tunnel()),
            "{local:?}"
        );
        assert!(
            desired.pods.values().all(|pod| pod.flags == POD_SHAPED),
            "{local:?}"
        );
    }
    for local in [qdisc("clsact"), qdisc("fq_codel")] {
        let desired = datapath(&config(), &host(), &local, true);
        assert!(desired.pods.values().all(|pod| pod.flags == 0), "{local:?}");
    }
}

#[test]
fn remains_of_pods_and_other_networks_are_left_out() {
    let mut gone = pod();
    gone.interfaces = vec!["br-fabedge".to_owned(), "veth9".to_owned()];
    let mut other = pod();
    other.addresses = vec!["172.30.0.2".parse().unwrap()];
    let mut both = pod();
    both.addresses.push("172.30.0.2".parse().unwrap());
    assert_eq!(
        datapath(&config(), &host(), &local(vec![gone, other.clone()]), true)
            .pods
            .len(),
        0
    );
    assert_eq!(
        datapath(&config(), &host(), &local(vec![other]), true)
            .hooks
            .len(),
        2
    );
    assert_eq!(
        datapath(&config(), &host(), &local(vec![both]), true).pods.len(),
        2
    );
}

#[test]
fn node_addresses_that_two_peers_claim_are_left_to_the_kernels_policies() {
    let mut config = config();
    let mut other = (*config.peers[0]).clone();
    other.endpoint.name = "shanghai.connector".to_owned();
    other.endpoint.subnets = vec![net("10.240.0.0/16")];
    other.endpoint.service_subnets.clear();
    config.peers.push(other.into());
    let desired = datapath(&config, &host(), &local(vec![]), true);
    assert!(!desired.routes.contains_key(&net("10.20.8.28/32")));
    assert_eq!(
        desired.routes[&net("10.240.0.0/16")].reqid,
        reqid("shanghai.connector")
    );
}

#[test]
fn off_and_for_nodes_without_tunnels_there_is_nothing() {
    assert_eq!(
        datapath(&config(), &host(), &local(vec![pod()]), false),
        Datapath::default()
    );
    let mut cloud = config();
    cloud.endpoint.kind = EndpointType::CloudNode;
    assert_eq!(
        datapath(&cloud, &host(), &local(vec![pod()]), true),
        Datapath::default()
    );
}
