//! Packets at a connector: edges and another cluster behind the tunnel, its own cluster's pods and nodes on the LAN.

use fabedge_agent::desired::{firewall, routes, sysctl};

use super::documents::{self, MASQUERADE};
use super::space::{Space, in_space, sh};
use super::world::{Agent, OPEN, Role, assert_seen, count, counts, own, tunnel, wire};

const CONNECTOR: Role = Role {
    sysctl: sysctl::connector,
    routes: routes::connector,
    firewall: firewall::connector,
};

struct World {
    /// Another cloud node, 10.20.8.23, with its pod 10.233.65.10, and a stranger on the LAN, 10.20.8.99.
    cloud: Space,
    /// A pod on the connector's own node, 10.233.64.10.
    pod: Space,
    /// Pods of edge1 and edge2, and a pod and a node of the other cluster.
    far: Space,
}

impl World {
    fn new() -> Self {
        let (cloud, pod) = (Space::new(), Space::new());
        wire("eth0", &cloud, "eth0");
        sh("ip addr add 10.20.8.28/24 dev eth0
            ip route add default via 10.20.8.1
            ip route add 10.233.65.0/24 via 10.20.8.23");
        own(&cloud, "eth0", &["10.20.8.23/24", "10.20.8.99/24"]);
        own(&cloud, "lo", &["10.233.65.10/32"]);
        cloud.sh(&format!(
            "{OPEN}
             ip route add 10.233.64.0/24 via 10.20.8.28
             ip route add 10.233.66.0/23 via 10.20.8.28
             ip route add 10.99.0.0/16 via 10.20.8.28"
        ));
        sh("ip link add cni0 type bridge
 ip link set cni0 up
 ip addr add 10.233.64.1/24 dev cni0");
        wire("pod0", &pod, "eth0");
        sh("ip link set pod0 master cni0");
        own(&pod, "eth0", &["10.233.64.10/24"]);
        pod.sh("ip route add default via 10.233.64.1");
        let far = tunnel(&[
            "10.233.66.10/32",
            "10.233.67.10/32",
            "10.99.0.10/32",
            "10.30.8.5/32",
        ]);
        sh(OPEN);
        // Flannel's, and kube-proxy's for what does not come from the cluster.
        sh(
            "iptables-nft -t nat -A POSTROUTING -s 10.233.64.0/18 ! -d 224.0.0.0/4 -j MASQUERADE
            iptables-nft -t nat -A POSTROUTING ! -s 10.233.64.0/23 -d 10.233.64.0/23 -j MASQUERADE",
        );
        Self { cloud, pod, far }
    }
}

#[test]
fn edges_and_cloud_see_each_other_under_the_right_addresses() {
    in_space(async || {
        let world = World::new();
        let mut agent = Agent::new().await;
        agent.apply(CONNECTOR, &documents::connector(), &MASQUERADE).await;
        let edge_pod = world.far.udp("10.233.66.10:9000");
        let other_pod = world.far.udp("10.99.0.10:9000");
        let other_node = world.far.udp("10.30.8.5:9000");
        let near_pod = world.pod.udp("10.233.64.10:9000");
        let cloud_pod = world.cloud.udp("10.233.65.10:9000");
        let cloud_node = world.cloud.udp("10.20.8.23:9000");

        // Questions come from other ports than those that answer, else they would be answers to earlier ones.
        let near = |address: &str| {
            if address.starts_with("10.233.64.") {
                &world.pod
            } else {
                &world.cloud
            }
        };
        for (here, address) in [(&near_pod, "10.233.64.10"), (&cloud_pod, "10.233.65.10")] {
            for (there, remote) in [(&edge_pod, "10.233.66.10"), (&other_pod, "10.99.0.10")] {
                assert_seen(
                    &world.far.udp(&format!("{remote}:0")),
                    &format!("{address}:9000"),
                    here,
                    remote,
                );
                assert_seen(
                    &near(address).udp(&format!("{address}:0")),
                    &format!("{remote}:9000"),
                    there,
                    address,
                );
            }
        }
        // Remote pod to local node, and remote node to local pod.
        assert_seen(
            &world.far.udp("10.233.66.10:0"),
            "10.20.8.23:9000",
            &cloud_node,
            "10.20.8.28",
        );
        let remote_node = world.far.udp("10.30.8.5:0");
        assert_seen(&remote_node, "10.233.64.10:9000", &near_pod, "10.233.64.1");
        assert_seen(&remote_node, "10.233.65.10:9000", &cloud_pod, "10.20.8.28");
        // A cloud node to an edge's pod, and a local pod to another cluster's node.
        assert_seen(
            &world.cloud.udp("10.20.8.23:0"),
            "10.233.66.10:9000",
            &edge_pod,
            "10.20.8.23",
        );
        assert_seen(
            &world.pod.udp("10.233.64.10:0"),
            "10.30.8.5:9000",
            &other_node,
            "10.233.64.10",
        );
        // Between edges, relayed: what either sends leaves this namespace, though the other is in it too.
        world.far.sh("echo 1 > /proc/sys/net/ipv4/conf/t0/accept_local
             ip rule add from 10.233.66.0/23 iif lo pref 1 lookup 9
             ip route add default via 169.254.1.1 dev t0 onlink table 9
             ip rule add pref 2 lookup local
             ip rule del pref 0");
        let other_edge_pod = world.far.udp("10.233.67.10:9000");
        assert_seen(
            &world.far.udp("10.233.66.10:0"),
            "10.233.67.10:9000",
            &other_edge_pod,
            "10.233.66.10",
        );
    });
}

#[test]
fn the_lan_can_neither_pose_as_an_edge_nor_use_the_connector_as_a_router() {
    in_space(async || {
        let world = World::new();
        let near_pod = world.pod.udp("10.233.64.10:9000");
        let edge_pod = world.far.udp("10.233.66.10:9000");
        own(&world.cloud, "lo", &["10.233.67.66/32"]);
        let spoofer = world.cloud.udp("10.233.67.66:0");
        assert_eq!(
            count(&spoofer, "10.233.64.10:9000", &near_pod),
            10,
            "the test would notice"
        );

        let mut agent = Agent::new().await;
        agent.apply(CONNECTOR, &documents::connector(), &MASQUERADE).await;
        assert_eq!(count(&spoofer, "10.233.64.10:9000", &near_pod), 0);
        assert_eq!(agent.dropped("inbound_spoofed").await, 10);
        let stranger = world.cloud.udp("10.20.8.99:0");
        assert_eq!(count(&stranger, "10.233.66.10:9000", &edge_pod), 0);
        assert_eq!(agent.dropped("forward_foreign").await, 10);
        // Node to node is not provided, though the tunnel to the other cluster would carry it.
        let other_node = world.far.udp("10.30.8.5:0");
        assert_eq!(
            count(
                &other_node,
                "10.20.8.23:9000",
                &world.cloud.udp("10.20.8.23:9000")
            ),
            0
        );
        assert_eq!(agent.dropped("node_to_node").await, 10);
    });
}

#[test]
fn a_service_address_that_nothing_translates_leads_nowhere() {
    in_space(async || {
        let world = World::new();
        own(&world.cloud, "lo", &["10.233.0.66/32"]);
        let leaked = world.cloud.udp("10.233.0.66:9000");
        sh("ip route replace default via 10.20.8.23");
        // As kube-proxy does it for what has endpoints.
        sh("iptables-nft -t nat -A PREROUTING -p udp -d 10.233.0.50 --dport 80 -j DNAT --to-destination 10.233.64.10:9000
            iptables-nft -t nat -A PREROUTING -p udp -d 10.233.0.51 --dport 80 -j DNAT --to-destination 10.233.65.10:9000");
        let pods = [
            world.pod.udp("10.233.64.10:9000"),
            world.cloud.udp("10.233.65.10:9000"),
        ];
        // A pod of another cluster, and one of an edge.
        for remote in ["10.99.0.10:0", "10.233.66.10:0"] {
            let from = world.far.udp(remote);
            assert_eq!(
                count(&from, "10.233.0.66:9000", &leaked),
                10,
                "the test would notice"
            );
        }
        let mut agent = Agent::new().await;
        agent.apply(CONNECTOR, &documents::connector(), &MASQUERADE).await;
        for (remote, dropped) in [("10.99.0.10:0", 10), ("10.233.66.10:0", 20)] {
            let from = world.far.udp(remote);
            assert_eq!(count(&from, "10.233.0.66:9000", &leaked), 0, "{remote}");
            assert_eq!(agent.dropped("forward_to_services").await, dropped);
            for (service, pod) in ["10.233.0.50:80", "10.233.0.51:80"].into_iter().zip(&pods) {
                assert_eq!(count(&from, service, pod), 10, "{remote} to {service}");
            }
        }
        // What the node itself and its own pods do about such an address is their affair.
        let near_pod = world.pod.udp("10.233.64.10:0");
        assert_eq!(count(&near_pod, "10.233.0.66:9000", &leaked), 10);
    });
}

#[test]
fn a_connector_without_its_tunnel_device_sends_nothing_in_plaintext() {
    in_space(async || {
        let world = World::new();
        own(
            &world.cloud,
            "lo",
            &["10.233.66.10/32", "10.99.0.10/32", "10.30.8.5/32"],
        );
        let addresses = ["10.233.66.10:9000", "10.99.0.10:9000", "10.30.8.5:9000"];
        let leaked = addresses.map(|address| world.cloud.udp(address));
        sh("ip route replace default via 10.20.8.23");
        let near_pod = world.pod.udp("10.233.64.10:0");
        let leaks = || counts([0, 1, 2].map(|i| (&near_pod, addresses[i], &leaked[i])));
        assert_eq!(leaks(), [10; 3], "the test would notice");
        let mut agent = Agent::new().await;
        agent.apply(CONNECTOR, &documents::connector(), &MASQUERADE).await;
        sh("ip link del ipsec0");
        assert_eq!(leaks(), [0; 3]);
        sh("ip rule del pref 220; while ip rule del pref 221 2>/dev/null; do :; done");
        assert_eq!(leaks(), [0; 3]);
        assert!(agent.dropped("outbound_to_pods").await >= 20);
        assert!(agent.dropped("outbound_to_nodes").await >= 10);
    });
}
