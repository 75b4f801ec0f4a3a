//! The nodes of one or two clusters and the networks between them, as values and as lines of configuration.
//!
//! ```text
//!   edge1 -- nat1 --+                +-- master
//!                   +-- wan -- hub --+
//!   edge2 ----------+    |  (API)    +-- node1
//!                        |
//!                        |           +-- master
//!                        +---- hub --+               (the second cluster, beijing)
//!                             (API)  +-- node1
//! ```
//!
//! A hub is the gateway of its cloud's LAN, and the control plane runs in it. No node has a kube-proxy; a rule on cloud
//! nodes does for the Service of the API server what it would do.

mod host;
mod member;

use std::fmt::Write;
use std::net::Ipv4Addr;

use serde_json::{Value, json};

use crate::k8s::programs::Services;

pub use host::HOST;
pub use member::MEMBER;

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
    /// Its `spec.podCIDR`.
    pub pod_cidr: &'static str,
    /// Whether it is in the cloud's LAN.
    pub cloud: bool,
}

/// What a node is for.
#[derive(Clone, Copy)]
enum Role {
    Master,
    /// Another one in the cloud.
    Cloud,
    Edge,
}

impl Node {
    const fn new(
        name: &'static str,
        role: Role,
        address: Ipv4Addr,
        gateway: Ipv4Addr,
        pod_cidr: &'static str,
    ) -> Self {
        Self {
            name,
            label: match role {
                Role::Master => Some("node-role.kubernetes.io/master"),
                Role::Cloud | Role::Edge => None,
            },
            address,
            gateway,
            pod_cidr,
            cloud: !matches!(role, Role::Edge),
        }
    }
}

/// A cluster and its networks.
#[derive(Debug, Eq, PartialEq)]
pub struct Layout {
    /// Its name, by which FabEdge is going to know it.
    pub name: &'static str,
    /// Its nodes.
    pub nodes: &'static [Node],
    /// The places that are no nodes.
    pub routers: &'static [&'static str],
    /// The pod prefix of the cluster.
    pub cluster_cidr: &'static str,
    /// Its Services.
    pub services: Services,
    /// Its DNS, as kubelets are told; nobody serves it.
    pub dns: Ipv4Addr,
    /// Where nodes find the API server.
    pub api_server: Ipv4Addr,
    /// The veth pairs: place and interface at either end.
    links: &'static [(&'static str, &'static str, &'static str, &'static str)],
    /// What `ip` is told in places that are no nodes, [`WAN`] among them.
    configurations: &'static [(&'static str, &'static str)],
    /// The router that hides a node, and its firewall.
    nat: Option<(&'static str, &'static str)>,
}

/// The first cluster, and those that may join it.
pub const ALL: [&Layout; 2] = [&HOST, &MEMBER];

/// The place of a control plane.
pub const HUB: &str = "hub";
/// What all clusters are connected to; it is one of the first one's places.
pub const WAN: &str = "wan";

/// The cluster of a name.
pub fn named(name: &str) -> Option<&'static Layout> {
    ALL.into_iter().find(|layout| layout.name == name)
}

impl Layout {
    /// Every place: routers, then nodes.
    pub fn places(&self) -> impl Iterator<Item = &'static str> {
        self.routers
            .iter()
            .copied()
            .chain(self.nodes.iter().map(|node| node.name))
    }

    /// The network namespace of a place. The tag is that of one lab: there may be another in another cache.
    pub fn namespace(&self, tag: &str, place: &str) -> String {
        if *self == HOST || place == WAN {
            format!("fabedge-{tag}-{place}")
        } else {
            format!("fabedge-{tag}-{}-{place}", self.name)
        }
    }

    /// What `ip` is told to make the links.
    pub fn lines_of_links(&self, tag: &str) -> String {
        let mut lines = String::new();
        for (a, a_link, b, b_link) in self.links {
            let (a, b) = (self.namespace(tag, a), self.namespace(tag, b));
            lines += &format!("link add {a_link} netns {a} type veth peer name {b_link} netns {b}\n");
        }
        lines
    }

    /// What `ip` is told once the links are there, by place.
    pub fn configurations(&self) -> impl Iterator<Item = (&'static str, String)> {
        let routers = self
            .configurations
            .iter()
            .map(|(place, lines)| (*place, (*lines).to_owned()));
        // A kubelet looks for a cloud's metadata, and waits four seconds where nobody refuses.
        let nodes = self.nodes.iter().map(|node| {
            let lines = format!(
                "link set dev lo up
addr add {}/24 dev eth0
link set dev eth0 up
route add default via {}
route add prohibit 169.254.169.254
",
                node.address, node.gateway
            );
            (node.name, lines)
        });
        routers.chain(nodes)
    }

    fn node(&self, name: &str) -> Option<&'static Node> {
        self.nodes.iter().find(|node| node.name == name)
    }

    /// The sysctls of a place: 2 is what systemd ships for rp_filter, and cloud nodes forward as Kubernetes wants it.
    pub fn sysctls(&self, place: &str) -> &'static [(&'static str, &'static str)] {
        const FORWARD: (&str, &str) = ("ip_forward", "1");
        const STRICT: [(&str, &str); 2] = [("conf/default/rp_filter", "2"), ("conf/all/rp_filter", "2")];
        match self.node(place) {
            None => &[FORWARD],
            Some(node) if node.cloud => &[FORWARD, STRICT[0], STRICT[1]],
            Some(_) => &STRICT,
        }
    }

    /// The rules of nftables in a place, if it has any.
    pub fn rules(&self, place: &str) -> Option<String> {
        if let Some((_, rules)) = self.nat.filter(|(router, _)| *router == place) {
            return Some(rules.to_owned());
        }
        let (service, server) = (self.services.api, self.api_server);
        let to_server = format!("ip daddr {service} tcp dport 443 dnat to {server}:443");
        self.node(place)?.cloud.then(|| {
            format!(
                "table ip services {{
  chain prerouting {{ type nat hook prerouting priority dstnat; {to_server}; }}
  chain output {{ type nat hook output priority -100; {to_server}; }}
}}
"
            )
        })
    }

    /// What the cluster holds before its users begin: the nodes, as kubeadm and a controller for pod prefixes leave them,
    /// and what tells of their prefixes and their DNS.
    pub fn objects(&self) -> Value {
        let mut items: Vec<Value> = self.nodes.iter().map(node_object).collect();
        items.push(json!({
            "apiVersion": "v1",
            "kind": "ConfigMap",
            "metadata": {"name": "kubeadm-config", "namespace": "kube-system"},
            "data": {"ClusterConfiguration": format!(
                "apiVersion: kubeadm.k8s.io/v1beta2
kind: ClusterConfiguration
clusterName: kubernetes
networking:
  dnsDomain: {CLUSTER_DOMAIN}
  podSubnet: {}
  serviceSubnet: {}
",
                self.cluster_cidr, self.services.range
            )},
        }));
        items.push(json!({
            "apiVersion": "v1",
            "kind": "Service",
            "metadata": {"name": "kube-dns", "namespace": "kube-system"},
            "spec": {
                "clusterIP": self.dns.to_string(),
                "ports": [{"name": "dns", "protocol": "UDP", "port": 53}],
            },
        }));
        json!({"apiVersion": "v1", "kind": "List", "items": items})
    }

    /// The stand-in for Flannel: its DaemonSet and its ConfigMap. Flannel itself is not among Debian's packages.
    pub fn flannel(&self, image: &str) -> String {
        let mut nodes = String::new();
        for node in self.nodes {
            let lan = if node.cloud { "cloud" } else { node.name };
            // A String takes every line.
            writeln!(
                nodes,
                "    {} {} {} {lan}",
                node.name, node.pod_cidr, node.address
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
            .replace("CLUSTER_CIDR", self.cluster_cidr)
    }
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
        "spec": {"podCIDR": node.pod_cidr, "podCIDRs": [node.pod_cidr]},
        // A kubelet does not report to a Node without them.
        "status": {"capacity": {"pods": "110"}, "allocatable": {"pods": "110"}},
    })
}

/// The domain of every cluster.
pub const CLUSTER_DOMAIN: &str = "cluster.local";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_link_ends_in_a_place_and_every_interface_is_brought_up() {
        for layout in ALL {
            let lines_of = |wanted: &str| -> String {
                layout
                    .configurations()
                    .filter(|(place, _)| *place == wanted)
                    .map(|(_, lines)| lines)
                    .collect()
            };
            for (a, a_link, b, b_link) in layout.links {
                for (place, link) in [(a, a_link), (b, b_link)] {
                    assert!(
                        layout.places().any(|known| known == *place) || *place == WAN,
                        "{place}"
                    );
                    let lines = lines_of(place);
                    assert!(
                        lines.contains(&format!("link set dev {link} up\n")),
                        "{place}: {lines}"
                    );
                }
            }
            assert!(lines_of(HUB).contains(&format!("addr add {}/24 dev br0\n", layout.api_server)));
            assert_eq!(layout.lines_of_links("0123").lines().count(), layout.links.len());
        }
    }

    #[test]
    fn places_of_two_clusters_are_two_places() {
        let mut names: Vec<String> = ALL
            .iter()
            .flat_map(|layout| layout.places().map(|place| layout.namespace("0123", place)))
            .collect();
        let all = names.len();
        names.sort();
        names.dedup();
        assert_eq!(names.len(), all);
        assert_eq!(MEMBER.namespace("0123", WAN), HOST.namespace("0123", WAN));
    }

    #[test]
    fn pods_addresses_and_services_do_not_overlap() {
        // Prefixes of two octets tell them apart, which all of these have.
        let net = |text: &str| text.split('.').take(2).collect::<Vec<_>>().join(".");
        let mut nets = std::collections::BTreeSet::new();
        for layout in ALL {
            for own in [layout.cluster_cidr, layout.services.range] {
                assert!(nets.insert(net(own)), "{own}");
            }
            assert_eq!(net(&layout.services.api.to_string()), net(layout.services.range));
            assert_eq!(net(&layout.dns.to_string()), net(layout.services.range));
        }
        for layout in ALL {
            let pods: std::collections::BTreeSet<&str> =
                layout.nodes.iter().map(|node| node.pod_cidr).collect();
            assert_eq!(pods.len(), layout.nodes.len());
            assert!(pods.iter().all(|pods| net(pods) == net(layout.cluster_cidr)));
            assert!(
                layout
                    .nodes
                    .iter()
                    .all(|node| !nets.contains(&net(&node.address.to_string())))
            );
        }
    }

    #[test]
    fn the_stand_in_is_told_of_every_node() {
        for layout in ALL {
            let text = layout.flannel("test/image:1");
            for node in layout.nodes {
                let line = format!("    {} {} {}", node.name, node.pod_cidr, node.address);
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
}
