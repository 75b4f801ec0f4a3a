//! The networks between the sites: a WAN router, two NAT routers with the same private subnet behind them, the
//! LAN of edge2 with one more host, the cloud's LAN, and a host on the internet.
//!
//! ```text
//!   edge1 -- nat1 --+                      +-- cloud (LAN 10.20.8.0/24) -- connector
//!   edge3 -- nat3 --+-- wan (the capture) -+                            -- node1
//!   edge2 -- lan2 --+                      +-- internet
//! ```

use std::collections::BTreeMap;
use std::fmt::Write;

use anyhow::Result;

use super::addresses::{CLUSTER4, CLUSTER6, Numbers, Role, SITES};
use crate::place::Place;

/// The namespaces that are no sites.
pub const ROUTERS: [&str; 6] = ["wan", "nat1", "nat3", "lan2", "cloud", "internet"];

/// The veth pairs: place and interface at either end.
const LINKS: [(&str, &str, &str, &str); 10] = [
    ("edge1", "eth0", "nat1", "in0"),
    ("nat1", "out0", "wan", "nat1"),
    ("edge3", "eth0", "nat3", "in0"),
    ("nat3", "out0", "wan", "nat3"),
    ("edge2", "eth0", "lan2", "edge2"),
    ("lan2", "out0", "wan", "lan2"),
    ("connector", "eth0", "cloud", "connector"),
    ("node1", "eth0", "cloud", "node1"),
    ("cloud", "out0", "wan", "cloud"),
    ("internet", "eth0", "wan", "internet"),
];

/// What each router's `ip` is told after the links are there.
const CONFIGURATION: [(&str, &str); 6] = [
    (
        "wan",
        "addr add 172.16.1.1/24 dev nat1
addr add 172.16.3.1/24 dev nat3
addr add 172.16.2.1/24 dev lan2
addr add 172.16.8.1/24 dev cloud
addr add 203.0.113.1/24 dev internet
link set nat1 up
link set nat3 up
link set lan2 up
link set cloud up
link set internet up
route add 10.20.8.0/24 via 172.16.8.2",
    ),
    ("nat1", NAT1),
    ("nat3", NAT3),
    (
        "lan2",
        "link add br0 type bridge
link set edge2 master br0
link set out0 master br0
addr add 172.16.2.50/24 dev br0
link set br0 up
link set edge2 up
link set out0 up
route add default via 172.16.2.1",
    ),
    (
        "cloud",
        "link add br0 type bridge
link set connector master br0
link set node1 master br0
addr add 10.20.8.1/24 dev br0
addr add 172.16.8.2/24 dev out0
link set br0 up
link set connector up
link set node1 up
link set out0 up
route add default via 172.16.8.1",
    ),
    (
        "internet",
        "addr add 203.0.113.10/24 dev eth0
link set eth0 up
route add default via 203.0.113.1",
    ),
];

const NAT1: &str = "addr add 192.168.50.1/24 dev in0
addr add 172.16.1.2/24 dev out0
link set in0 up
link set out0 up
route add default via 172.16.1.1";

const NAT3: &str = "addr add 192.168.50.1/24 dev in0
addr add 172.16.3.2/24 dev out0
link set in0 up
link set out0 up
route add default via 172.16.3.1";

/// Connects the places and gives them addresses, routes and NAT.
///
/// # Errors
/// When a command fails.
pub fn build(places: &BTreeMap<String, Place>) -> Result<()> {
    let mut links = String::new();
    for (a, a_if, b, b_if) in LINKS {
        writeln!(
            links,
            "link add {a_if} netns {a} type veth peer name {b_if} netns {b}"
        )?;
    }
    // From within the WAN, so that the machine's own network sees none of it.
    places["wan"].ip(&links)?;
    for (place, link) in underlay() {
        like_a_nic(&places[place], link)?;
    }
    for (name, lines) in CONFIGURATION {
        let place = &places[name];
        place.sysctl(&["net/ipv4/ip_forward=1", "net/ipv6/conf/default/accept_dad=0"])?;
        place.ip(&format!("link set lo up\n{lines}"))?;
    }
    remap_nat(&places["nat1"], None)?;
    remap_nat(&places["nat3"], Some((40_000, 44_999)))?;
    for numbers in &SITES {
        configure_site(&places[numbers.name], numbers)?;
    }
    Ok(())
}

/// The ends of all links between sites and routers, by place and name.
pub fn underlay() -> impl Iterator<Item = (&'static str, &'static str)> {
    LINKS
        .into_iter()
        .flat_map(|(a, a_if, b, b_if)| [(a, a_if), (b, b_if)])
}

/// Makes an end of a veth send and receive as a NIC does: no packet is larger than the wire's, and what arrives goes
/// through GRO (a veth does that only where its other end does not segment TCP itself).
///
/// # Errors
/// When `ethtool` fails.
pub fn like_a_nic(place: &Place, interface: &str) -> Result<()> {
    place.must(&["ethtool", "-K", interface, "tso", "off", "gro", "on"])?;
    Ok(())
}

/// Makes a NAT router forget every flow it knows and give new ones other ports: those of `range` at random, or the
/// ones that the inside uses where it can.
///
/// # Errors
/// When a command fails.
pub fn remap_nat(nat: &Place, range: Option<(u16, u16)>) -> Result<()> {
    let masquerade = range.map_or_else(
        || "masquerade".to_owned(),
        |(low, high)| format!("meta l4proto {{ tcp, udp }} masquerade to :{low}-{high} random"),
    );
    nat.nft(&format!(
        "table ip nat {{}}
delete table ip nat
table ip nat {{
  chain post {{
    type nat hook postrouting priority srcnat;
    oifname \"out0\" {masquerade}
    oifname \"out0\" masquerade
  }}
}}"
    ))?;
    nat.must(&["conntrack", "-F"])?;
    Ok(())
}

/// A node as its operating system and, in the cloud, Flannel set it up.
fn configure_site(place: &Place, numbers: &Numbers) -> Result<()> {
    // 2 is what systemd ships (50-default.conf).
    place.sysctl(&[
        "net/ipv4/conf/default/rp_filter=2",
        "net/ipv4/conf/all/rp_filter=2",
        "net/ipv6/conf/default/accept_dad=0",
    ])?;
    let mut lines = format!(
        "link set lo up\naddr add {}/24 dev eth0\nlink set eth0 up\nroute add default via {}\n",
        numbers.node, numbers.gateway
    );
    if numbers.role == Role::Edge {
        return place.ip(&lines);
    }
    place.sysctl(&["net/ipv4/ip_forward=1", "net/ipv6/conf/all/forwarding=1"])?;
    let cloud = |numbers: &Numbers| format!("fd00:20:8::{}", numbers.node.octets()[3]);
    writeln!(lines, "addr add {}/64 dev eth0 nodad", cloud(numbers))?;
    // Flannel's host-gw backend: the other nodes' pods by way of their nodes.
    for other in SITES
        .iter()
        .filter(|other| other.role != Role::Edge && other.name != numbers.name)
    {
        writeln!(lines, "route add {} via {}", other.pods4(), other.node)?;
        writeln!(lines, "route add {} via {}", other.pods6(), cloud(other))?;
    }
    place.ip(&lines)?;
    // Flannel's masquerade rules: what leaves the pod network, and what enters it from elsewhere. Seen from the
    // connector, pods of other nodes talking to each other through it are masqueraded too.
    let rules = |cluster: &str, own: &str, multicast: &str| {
        format!(
            "*nat
:FLANNEL-POSTRTG - [0:0]
-A POSTROUTING -j FLANNEL-POSTRTG
-A FLANNEL-POSTRTG -s {own} -d {cluster} -j RETURN
-A FLANNEL-POSTRTG -s {cluster} -d {own} -j RETURN
-A FLANNEL-POSTRTG ! -s {cluster} -d {own} -j RETURN
-A FLANNEL-POSTRTG -s {cluster} ! -d {multicast} -j MASQUERADE --random-fully
-A FLANNEL-POSTRTG ! -s {cluster} -d {cluster} -j MASQUERADE --random-fully
COMMIT
"
        )
    };
    let restore = ["iptables-restore", "--noflush"];
    place.must_with(&restore, &rules(CLUSTER4, &numbers.pods4(), "224.0.0.0/4"))?;
    let restore = ["ip6tables-restore", "--noflush"];
    place.must_with(&restore, &rules(CLUSTER6, &numbers.pods6(), "ff00::/8"))?;
    Ok(())
}

/// The conflist of a cloud node: what Flannel's plugin delegates to, and what stands beside it.
pub fn flannel_conflist(numbers: &Numbers) -> String {
    serde_json::json!({
        "name": "cbr0",
        "cniVersion": "0.3.1",
        "plugins": [
            {
                "type": "bridge",
                "bridge": "cni0",
                "isDefaultGateway": true,
                "hairpinMode": true,
                "forceAddress": false,
                "ipMasq": false,
                "mtu": 1500,
                "ipam": {
                    "type": "host-local",
                    "ranges": [[{"subnet": numbers.pods4()}], [{"subnet": numbers.pods6()}]],
                },
            },
            {"type": "portmap", "capabilities": {"portMappings": true}},
        ],
    })
    .to_string()
}
