//! Packets at a cloud node without tunnels: edges are behind the connector, 10.20.8.28.

use fabedge_agent::desired::{firewall, routes, sysctl};

use super::documents::{self, MASQUERADE};
use super::space::{Space, in_space, sh};
use super::world::{Agent, OPEN, Role, assert_seen, count, own, wire};

const CLOUD: Role = Role {
    sysctl: sysctl::cloud,
    routes: routes::cloud,
    firewall: firewall::cloud,
};

#[test]
fn edges_are_reached_by_way_of_the_connector_and_in_no_other() {
    in_space(async || {
        let (lan, pod) = (Space::new(), Space::new());
        wire("eth0", &lan, "eth0");
        sh("ip addr add 10.20.8.23/24 dev eth0
            ip route add default via 10.20.8.1
            ip link add cni0 type bridge
            ip link set cni0 up
            ip addr add 10.233.65.1/24 dev cni0");
        // The connector, the LAN's router, and an edge's pod behind either.
        own(&lan, "eth0", &["10.20.8.28/24", "10.20.8.1/24"]);
        own(&lan, "lo", &["10.233.66.10/32"]);
        lan.sh(&format!("{OPEN}ip route add 10.233.65.0/24 via 10.20.8.23"));
        wire("pod0", &pod, "eth0");
        sh("ip link set pod0 master cni0");
        own(&pod, "eth0", &["10.233.65.10/24"]);
        pod.sh("ip route add default via 10.233.65.1");
        sh(OPEN);
        for command in ["iptables-nft", "iptables-legacy"] {
            sh(&format!(
                "{command} -t nat -A POSTROUTING -s 10.233.65.0/24 ! -d 10.233.64.0/23 -j MASQUERADE
                 {command} -P FORWARD DROP"
            ));
        }

        let mut agent = Agent::new().await;
        agent.apply(CLOUD, &documents::cloud(), &MASQUERADE).await;
        let cloud_pod = pod.udp("10.233.65.10:9000");
        let edge_pod = lan.udp("10.233.66.10:9000");
        assert_seen(&cloud_pod, "10.233.66.10:9000", &edge_pod, "10.233.65.10");
        assert_seen(
            &lan.udp("10.233.66.10:0"),
            "10.233.65.10:9000",
            &cloud_pod,
            "10.233.66.10",
        );

        // Should the rule vanish, the default route is not taken instead.
        sh("ip rule del pref 220");
        assert_eq!(count(&cloud_pod, "10.233.66.10:9000", &edge_pod), 0);
        assert_eq!(agent.dropped("outbound_to_pods").await, 10);
        agent.apply(CLOUD, &documents::cloud(), &MASQUERADE).await;
        assert_seen(&cloud_pod, "10.233.66.10:9000", &edge_pod, "10.233.65.10");
    });
}
