//! The first cluster, with two edges.

use std::net::Ipv4Addr;

use super::{HUB, Layout, Node, Role, WAN};
use crate::k8s::programs::Services;

const API_SERVER: Ipv4Addr = Ipv4Addr::new(10, 20, 8, 1);
/// The router that hides edge1.
const NAT: &str = "nat1";

/// The cluster that every lab with nodes has.
pub const HOST: Layout = Layout {
    name: "fabedge",
    nodes: &[
        Node::new(
            "master",
            Role::Master,
            Ipv4Addr::new(10, 20, 8, 20),
            API_SERVER,
            "10.233.64.0/24",
        ),
        Node::new(
            "node1",
            Role::Cloud,
            Ipv4Addr::new(10, 20, 8, 28),
            API_SERVER,
            "10.233.65.0/24",
        ),
        Node::new(
            "edge1",
            Role::Edge,
            Ipv4Addr::new(192, 168, 50, 2),
            Ipv4Addr::new(192, 168, 50, 1),
            "10.233.66.0/24",
        ),
        // Not private, so that others take it for reachable: of RFC 7535, which gives it to nobody.
        Node::new(
            "edge2",
            Role::Edge,
            Ipv4Addr::new(192, 31, 196, 2),
            Ipv4Addr::new(192, 31, 196, 1),
            "10.233.67.0/24",
        ),
    ],
    routers: &[HUB, WAN, NAT],
    cluster_cidr: "10.233.64.0/18",
    services: Services::USUAL,
    dns: Ipv4Addr::new(10, 96, 0, 10),
    api_server: API_SERVER,
    links: &[
        ("master", "eth0", HUB, "master"),
        ("node1", "eth0", HUB, "node1"),
        (HUB, "out0", WAN, "hub"),
        ("edge1", "eth0", NAT, "in0"),
        (NAT, "out0", WAN, "nat1"),
        ("edge2", "eth0", WAN, "edge2"),
    ],
    configurations: &[
        // With its keyword, for a link may have the name of another one.
        (
            HUB,
            "link set dev lo up
link add br0 type bridge
link set dev master master br0
link set dev node1 master br0
addr add 10.20.8.1/24 dev br0
addr add 172.16.8.2/24 dev out0
link set dev br0 up
link set dev master up
link set dev node1 up
link set dev out0 up
route add default via 172.16.8.1
",
        ),
        (
            WAN,
            "link set dev lo up
addr add 172.16.8.1/24 dev hub
addr add 172.16.1.1/24 dev nat1
addr add 192.31.196.1/24 dev edge2
link set dev hub up
link set dev nat1 up
link set dev edge2 up
route add 10.20.8.0/24 via 172.16.8.2
route add 192.168.50.0/24 via 172.16.1.2
",
        ),
        (
            NAT,
            "link set dev lo up
addr add 192.168.50.1/24 dev in0
addr add 172.16.1.2/24 dev out0
link set dev in0 up
link set dev out0 up
route add default via 172.16.1.1
",
        ),
    ],
    nat: Some((NAT, NAT_RULES)),
};

/// The firewall of the NAT router. From outside comes what was asked for from inside, and the API server for logs and
/// exec: edge frameworks have a channel of their own for that.
const NAT_RULES: &str = "table ip nat {
  chain post {
    type nat hook postrouting priority srcnat;
    oifname \"out0\" masquerade
  }
}
table ip filter {
  chain forward {
    type filter hook forward priority filter; policy drop;
    ct state established,related accept
    iifname \"in0\" accept
    ip saddr 172.16.8.2 tcp dport 10250 accept
  }
}
";
