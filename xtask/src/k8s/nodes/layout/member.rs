//! The second cluster, which joins the first one: another site at the same WAN, its nodes called as those of the first.

use std::net::{IpAddr, Ipv4Addr};

use super::{HUB, Layout, Node, Role, WAN};
use crate::k8s::programs::Services;

const API_SERVER: Ipv4Addr = Ipv4Addr::new(10, 30, 8, 1);

/// The cluster that labs of two clusters have besides.
pub const MEMBER: Layout = Layout {
    name: "beijing",
    nodes: &[
        Node::new(
            "master",
            Role::Master,
            Ipv4Addr::new(10, 30, 8, 20),
            API_SERVER,
            "10.234.64.0/24",
        ),
        Node::new(
            "node1",
            Role::Cloud,
            Ipv4Addr::new(10, 30, 8, 28),
            API_SERVER,
            "10.234.65.0/24",
        ),
    ],
    routers: &[HUB],
    cluster_cidr: "10.234.64.0/18",
    services: Services {
        range: "10.97.0.0/16",
        api: IpAddr::V4(Ipv4Addr::new(10, 97, 0, 1)),
    },
    dns: Ipv4Addr::new(10, 97, 0, 10),
    api_server: API_SERVER,
    links: &[
        ("master", "eth0", HUB, "master"),
        ("node1", "eth0", HUB, "node1"),
        (HUB, "out0", WAN, "beijing"),
    ],
    configurations: &[
        (
            HUB,
            "link set dev lo up
link add br0 type bridge
link set dev master master br0
link set dev node1 master br0
addr add 10.30.8.1/24 dev br0
addr add 172.16.9.2/24 dev out0
link set dev br0 up
link set dev master up
link set dev node1 up
link set dev out0 up
route add default via 172.16.9.1
",
        ),
        // The place is the first cluster's, the link to it is ours.
        (
            WAN,
            "addr add 172.16.9.1/24 dev beijing
link set dev beijing up
route add 10.30.8.0/24 via 172.16.9.2
",
        ),
    ],
    nat: None,
};
