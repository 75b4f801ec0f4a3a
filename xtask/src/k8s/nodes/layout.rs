//! The nodes and the networks between them, as values and as lines of configuration.
//!
//! ```text
//!   edge1 -- nat1 --+                +-- master
//!                   +-- wan -- hub --+
//!   edge2 ----------+    (API server)+-- node1
//! ```
//!
//! The hub is the gateway of the cloud's LAN, and the control plane runs in it. No node has a kube-proxy; a rule on cloud
//! nodes does for the Service of the API server what it would do.

use std::fmt::Write;
use std::net::Ipv4Addr;

use serde_json::{Value, json};

use crate::k8s::pki::{API_SERVICE, SERVICE_RANGE};

/// A node.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Node {
    /// Its name.
    pub name: &'static str,
    /// What its Node object is labelled with by whoever set the cluster up; the rest is the users' work.
    label: Option<&'static str>,
    /// Its address, in a /24.
    pub address: Ipv4Addr,
    /// Its default gateway.
    gateway: Ipv4Addr,
    /// Third octet of its pod prefix.
    pods: u8,
    /// Whether it is in the cloud's LAN.
    pub cloud: bool,
}

impl Node {
    /// Its `spec.podCIDR`.
    pub fn pod_cidr(&self) -> String {
        format!("10.233.{}.0/24", self.pods)
    }
}

/// Every node.
pub const NODES: [Node; 4] = [
    Node {
        name: "master",
        label: Some("node-role.kubernetes.io/master"),
        address: Ipv4Addr::new(10, 20, 8, 20),
        gateway: API_SERVER,
        pods: 64,
        cloud: true,
    },
    Node {
        name: "node1",
        label: None,
        address: Ipv4Addr::new(10, 20, 8, 28),
        gateway: API_SERVER,
        pods: 65,
        cloud: true,
    },
    Node {
        name: "edge1",
        label: None,
        address: Ipv4Addr::new(192, 168, 50, 2),
        gateway: Ipv4Addr::new(192, 168, 50, 1),
        pods: 66,
        cloud: false,
    },
    // Not private, so that others take it for reachable: of RFC 7535, which gives it to nobody.
    Node {
        name: "edge2",
        label: None,
        address: Ipv4Addr::new(192, 31, 196, 2),
        gateway: Ipv4Addr::new(192, 31, 196, 1),
        pods: 67,
        cloud: false,
    },
];

/// The pod prefix of the cluster.
pub const CLUSTER_CIDR: &str = "10.233.64.0/18";

/// Where nodes find the API server.
pub const API_SERVER: Ipv4Addr = Ipv4Addr::new(10, 20, 8, 1);

/// The place of the control plane.
pub const HUB: &str = "hub";
const WAN: &str = "wan";
/// The router that hides edge1.
pub const NAT: &str = "nat1";

/// The places that are no nodes.
pub const ROUTERS: [&str; 3] = [HUB, WAN, NAT];

/// Every place: routers, then nodes.
pub fn places() -> impl Iterator<Item = &'static str> {
    ROUTERS.into_iter().chain(NODES.iter().map(|node| node.name))
}

/// The network namespace of a place. The tag is that of one lab: there may be another in another cache.
pub fn namespace(tag: &str, place: &str) -> String {
    format!("fabedge-{tag}-{place}")
}

/// The veth pairs: place and interface at either end.
const LINKS: [(&str, &str, &str, &str); 6] = [
    ("master", "eth0", HUB, "master"),
    ("node1", "eth0", HUB, "node1"),
    (HUB, "out0", WAN, "hub"),
    ("edge1", "eth0", NAT, "in0"),
    (NAT, "out0", WAN, "nat1"),
    ("edge2", "eth0", WAN, "edge2"),
];

/// What `ip` is told to make the links.
pub fn links(tag: &str) -> String {
    let mut lines = String::new();
    for (a, a_link, b, b_link) in LINKS {
        let (a, b) = (namespace(tag, a), namespace(tag, b));
        lines += &format!("link add {a_link} netns {a} type veth peer name {b_link} netns {b}\n");
    }
    lines
}

/// What `ip` is told in a place once its links are there.
pub fn configuration(place: &str) -> String {
    let own = match place {
        // With its keyword, for a link may have the name of another one.
        HUB => format!(
            "link add br0 type bridge
link set dev master master br0
link set dev node1 master br0
addr add {API_SERVER}/24 dev br0
addr add 172.16.8.2/24 dev out0
link set dev br0 up
link set dev master up
link set dev node1 up
link set dev out0 up
route add default via 172.16.8.1"
        ),
        WAN => "addr add 172.16.8.1/24 dev hub
addr add 172.16.1.1/24 dev nat1
addr add 192.31.196.1/24 dev edge2
link set dev hub up
link set dev nat1 up
link set dev edge2 up
route add 10.20.8.0/24 via 172.16.8.2
route add 192.168.50.0/24 via 172.16.1.2"
            .to_owned(),
        NAT => "addr add 192.168.50.1/24 dev in0
addr add 172.16.1.2/24 dev out0
link set dev in0 up
link set dev out0 up
route add default via 172.16.1.1"
            .to_owned(),
        node => NODES
            .iter()
            .filter(|known| known.name == node)
            .map(|node| {
                // A kubelet looks for a cloud's metadata, and waits four seconds where nobody refuses.
                format!(
                    "addr add {}/24 dev eth0
link set dev eth0 up
route add default via {}
route add prohibit 169.254.169.254",
                    node.address, node.gateway
                )
            })
            .collect(),
    };
    format!("link set dev lo up\n{own}\n")
}

/// The sysctls of a place: 2 is what systemd ships for rp_filter, and cloud nodes forward as Kubernetes wants it.
pub fn sysctls(place: &str) -> &'static [(&'static str, &'static str)] {
    const FORWARD: (&str, &str) = ("ip_forward", "1");
    const STRICT: [(&str, &str); 2] = [("conf/default/rp_filter", "2"), ("conf/all/rp_filter", "2")];
    match NODES.iter().find(|node| node.name == place) {
        None => &[FORWARD],
        Some(node) if node.cloud => &[FORWARD, STRICT[0], STRICT[1]],
        Some(_) => &STRICT,
    }
}

/// The rules of nftables in a place, if it has any.
pub fn rules(place: &str) -> Option<String> {
    if place == NAT {
        return Some(NAT_RULES.to_owned());
    }
    let node = NODES.iter().find(|node| node.name == place)?;
    let to_server = format!("ip daddr {API_SERVICE} tcp dport 443 dnat to {API_SERVER}:443");
    node.cloud.then(|| {
        format!(
            "table ip services {{
  chain prerouting {{ type nat hook prerouting priority dstnat; {to_server}; }}
  chain output {{ type nat hook output priority -100; {to_server}; }}
}}
"
        )
    })
}

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

/// What the cluster holds before its users begin: the nodes, as kubeadm and a controller for pod prefixes leave them,
/// and what tells of their prefixes and their DNS.
pub fn objects() -> Value {
    let mut items: Vec<Value> = NODES.iter().map(node_object).collect();
    items.push(json!({
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {"name": "kubeadm-config", "namespace": "kube-system"},
        "data": {"ClusterConfiguration": cluster_configuration()},
    }));
    items.push(json!({
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": "kube-dns", "namespace": "kube-system"},
        "spec": {
            "clusterIP": CLUSTER_DNS.to_string(),
            "ports": [{"name": "dns", "protocol": "UDP", "port": 53}],
        },
    }));
    json!({"apiVersion": "v1", "kind": "List", "items": items})
}

fn node_object(node: &Node) -> Value {
    let mut labels = json!({
        "kubernetes.io/arch": "amd64",
        "kubernetes.io/hostname": node.name,
        "kubernetes.io/os": "linux",
    });
    if let Some(label) = node.label {
        labels[label] = json!("");
    }
    json!({
        "apiVersion": "v1",
        "kind": "Node",
        "metadata": {"name": node.name, "labels": labels},
        "spec": {"podCIDR": node.pod_cidr(), "podCIDRs": [node.pod_cidr()]},
        // A kubelet does not report to a Node without them.
        "status": {"capacity": {"pods": "110"}, "allocatable": {"pods": "110"}},
    })
}

fn cluster_configuration() -> String {
    format!(
        "apiVersion: kubeadm.k8s.io/v1beta2
kind: ClusterConfiguration
clusterName: kubernetes
networking:
  dnsDomain: {CLUSTER_DOMAIN}
  podSubnet: {CLUSTER_CIDR}
  serviceSubnet: {SERVICE_RANGE}
"
    )
}

/// The cluster's DNS, as kubelets are told; nobody serves it.
pub const CLUSTER_DNS: Ipv4Addr = Ipv4Addr::new(10, 96, 0, 10);
/// The cluster's domain.
pub const CLUSTER_DOMAIN: &str = "cluster.local";

/// The stand-in for Flannel: its DaemonSet and its ConfigMap. Flannel itself is not among Debian's packages.
pub fn flannel(image: &str) -> String {
    let mut nodes = String::new();
    for node in &NODES {
        let lan = if node.cloud { "cloud" } else { node.name };
        // A String takes every line.
        writeln!(
            nodes,
            "    {} {} {} {lan}",
            node.name,
            node.pod_cidr(),
            node.address
        )
        .unwrap_or_default();
    }
    let script: String = include_str!("flannel.sh")
        .lines()
        .map(|line| format!("    {line}\n"))
        .collect();
    include_str!("flannel.yaml")
        .replace("IMAGE", image)
        .replace("    NODES\n", &nodes)
        .replace("    SCRIPT\n", &script)
        .replace("CLUSTER_CIDR", CLUSTER_CIDR)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_link_ends_in_a_place_and_every_interface_is_brought_up() {
        for (a, a_link, b, b_link) in LINKS {
            for (place, link) in [(a, a_link), (b, b_link)] {
                assert!(places().any(|known| known == place), "{place}");
                let lines = configuration(place);
                assert!(
                    lines.contains(&format!("link set dev {link} up\n")),
                    "{place}: {lines}"
                );
            }
        }
        assert!(links("0123").lines().count() == LINKS.len());
    }

    #[test]
    fn pods_addresses_and_services_do_not_overlap() {
        let nets: std::collections::BTreeSet<String> = NODES.iter().map(Node::pod_cidr).collect();
        assert_eq!(nets.len(), NODES.len());
        assert!(nets.iter().all(|net| net.starts_with("10.233.")));
        assert!(NODES.iter().all(|node| node.address.octets()[1] != 233));
    }

    #[test]
    fn the_stand_in_is_told_of_every_node() {
        let text = flannel("test/image:1");
        for node in &NODES {
            let line = format!("    {} {} {}", node.name, node.pod_cidr(), node.address);
            assert!(text.contains(&line), "{text}");
        }
        assert!(
            text.contains("image: test/image:1") && text.contains("    set -eu\n"),
            "{text}"
        );
        for left in ["NODES", "SCRIPT", "CLUSTER_CIDR", "IMAGE"] {
            assert!(!text.contains(left), "{left}");
        }
    }
}
