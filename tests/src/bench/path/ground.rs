//! What the modes stand on: two nodes with a pod each and a router between them, or only pods at the router.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;
use std::net::Ipv4Addr;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::json;

use super::meter::End;
use crate::daemon::Daemon;
use crate::lab::wait_until;
use crate::place::Place;
use crate::probe::icmp;
use crate::scenarios::product::CONVERGENCE;
use crate::world::network::like_a_nic;
use crate::world::{self, World};

/// The agent's bridge, and charon's TUN device.
const BRIDGE: &str = "br-fabedge";
const LIBIPSEC_DEVICE: &str = "ipsec0";

/// The router between the nodes.
pub const WAN: &str = "wan";
/// The pods.
pub const PODS: [&str; 2] = ["pod1", "pod2"];

/// One node's numbers; they agree with `cluster.yaml`.
#[derive(Clone, Copy, Debug)]
pub struct Node {
    /// Its name.
    pub name: &'static str,
    /// Its number, from which its addresses come.
    number: u8,
}

/// Both nodes.
pub const NODES: [Node; 2] = [
    Node {
        name: "edge1",
        number: 1,
    },
    Node {
        name: "edge2",
        number: 2,
    },
];

/// Prefixes that a node of this cluster reaches through the connector, and the connector's address.
pub const CLOUD: [&str; 3] = ["10.233.64.0/24", "10.233.0.0/18", "172.16.8.2"];

impl Node {
    /// The node's address.
    pub fn address(self) -> Ipv4Addr {
        Ipv4Addr::new(172, 16, self.number, 2)
    }

    /// The router's address on the node's link.
    pub fn gateway(self) -> Ipv4Addr {
        Ipv4Addr::new(172, 16, self.number, 1)
    }

    /// The address of the router's interface on the node's link.
    pub fn link(self) -> String {
        format!("w{}", self.number)
    }

    /// The router's interface on the node's second link, where a plain device stands for a tunnel.
    fn plain_link(self) -> String {
        format!("p{}", self.number)
    }

    /// The prefix of its pods.
    pub fn pods(self) -> String {
        format!("10.233.{}.0/24", 65 + self.number)
    }

    /// The bridge's address.
    pub fn bridge(self) -> Ipv4Addr {
        Ipv4Addr::new(10, 233, 65 + self.number, 1)
    }

    /// The first pod's address.
    pub fn pod(self) -> Ipv4Addr {
        Ipv4Addr::new(10, 233, 65 + self.number, 2)
    }
}

/// What nodes are set up with.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Folder with the operator's documents.
    pub documents: PathBuf,
    /// Whether the rules of others are in the nodes' iptables, and see bridged packets too.
    pub rules: bool,
    /// Whether packets that nothing hides go by a link between the nodes, past the router.
    pub direct: bool,
}

/// What kube-proxy and others have in a node's iptables.
const NODE_RULES: &str = include_str!("node.rules");

/// The world of one mode; gone when dropped.
#[derive(Debug)]
pub struct Ground {
    /// Its places.
    pub world: World,
    /// Programs that run in it.
    pub daemons: Vec<Daemon>,
    /// The router's interface by which packets of the first pod arrive.
    pub link: String,
    /// Whether packets that nothing hides go past the router.
    direct: bool,
}

impl Ground {
    /// Two nodes, and a router between them.
    ///
    /// # Errors
    /// When something cannot be made.
    pub fn of_nodes(settings: &Settings) -> Result<Self> {
        let sites = NODES.map(|node| (node.name, node.name));
        let furnish = |_: &World| {
            for node in NODES {
                let (from, to) = (
                    settings.documents.join(node.name),
                    world::documents().join(node.name),
                );
                for file in ["tunnels.yaml", "ca.crt", "tls.crt", "tls.key"] {
                    fs::copy(from.join(file), to.join(file)).with_context(|| {
                        format!("copying {} to {}", from.join(file).display(), to.display())
                    })?;
                }
            }
            Ok(())
        };
        let world = World::build_of(&[WAN], &sites, |places| connect(places, false), furnish)?;
        let ground = Self::new(world, settings.direct);
        let filter = format!("net/bridge/bridge-nf-call-iptables={}", u8::from(settings.rules));
        for node in NODES {
            ground.node(node)?.sysctl(&[&filter])?;
            if settings.rules {
                ground.load(node, NODE_RULES)?;
            }
        }
        Ok(ground)
    }

    /// Pods that are their own nodes, and the router.
    ///
    /// # Errors
    /// When something cannot be made.
    pub fn of_pods() -> Result<Self> {
        let routers = [WAN, PODS[0], PODS[1]];
        let world = World::build_of(&routers, &[], |places| connect(places, true), |_| Ok(()))?;
        Ok(Self::new(world, false))
    }

    fn new(world: World, direct: bool) -> Self {
        Self {
            world,
            daemons: Vec::new(),
            link: NODES[0].link(),
            direct,
        }
    }

    /// A node's place.
    ///
    /// # Errors
    /// When this is a world without nodes.
    pub fn node(&self, node: Node) -> Result<&Place> {
        Ok(&self.world.site(node.name)?.place)
    }

    /// The router.
    ///
    /// # Errors
    /// Never in a world that was made here.
    pub fn wan(&self) -> Result<&Place> {
        self.world.router(WAN)
    }

    /// Attaches a pod to a node by a conflist, as a container runtime does.
    ///
    /// # Errors
    /// When a plugin fails, or the pod gets another address than the first.
    pub fn attach(&mut self, name: &str, node: Node, conflist: &str) -> Result<()> {
        let pod = self.world.add_pod_by(name, node.name, conflist, &json!({}))?;
        ensure!(
            pod.v4 == node.pod(),
            "{name} got {} instead of {}",
            pod.v4,
            node.pod()
        );
        Ok(())
    }

    /// The ends between which packets are counted.
    ///
    /// # Errors
    /// When there are no pods.
    pub fn ends(&self) -> Result<[End; 2]> {
        let end = |name: &str, node: Node| -> Result<End> {
            Ok(End {
                place: self.world.place(name)?.clone(),
                address: node.pod(),
            })
        };
        Ok([end(PODS[0], NODES[0])?, end(PODS[1], NODES[1])?])
    }

    /// Waits until the pods reach each other.
    ///
    /// # Errors
    /// When they do not in time.
    pub fn wait_reach(&self) -> Result<()> {
        let [from, to] = self.ends()?;
        wait_until("the pods reach each other", CONVERGENCE, || {
            let wait = Duration::from_millis(250);
            Ok(icmp::ping(&from.place, to.address.into(), 56, 1, wait)?.all())
        })?;
        Ok(())
    }

    /// Loads rules for iptables into a node; `{pods}` and `{gateway}` stand for the node's own.
    ///
    /// # Errors
    /// When they are refused.
    pub fn load(&self, node: Node, rules: &str) -> Result<()> {
        let rules = rules
            .replace("{pods}", &node.pods())
            .replace("{gateway}", &node.bridge().to_string());
        self.node(node)?
            .must_with(&["iptables-restore", "--noflush"], &rules)?;
        Ok(())
    }

    /// Lays a link between the nodes, with this name on both.
    ///
    /// # Errors
    /// When `ip` or `ethtool` refuses.
    pub fn lay_direct_link(&self, name: &str) -> Result<()> {
        let [first, second] = NODES;
        self.wan()?.ip(&format!(
            "link add {name} netns {} type veth peer name {name} netns {}",
            first.name, second.name
        ))?;
        for node in NODES {
            let place = self.node(node)?;
            like_a_nic(place, name)?;
            place.ip(&format!("link set {name} up"))?;
        }
        Ok(())
    }

    /// Puts a link to the router, or to the other node, where each node has the TUN device of its charon, and under that
    /// one's name: what the agent takes for a tunnel encrypts nothing then.
    ///
    /// # Errors
    /// When `ip` or `ethtool` refuses.
    pub fn lay_plain_links(&mut self) -> Result<()> {
        for node in NODES {
            self.node(node)?.ip(&format!(
                "link set {LIBIPSEC_DEVICE} down\nlink set {LIBIPSEC_DEVICE} name idle0"
            ))?;
        }
        if self.direct {
            return self.lay_direct_link(LIBIPSEC_DEVICE);
        }
        for node in NODES {
            let (place, wan, link) = (self.node(node)?, self.wan()?, node.plain_link());
            wan.ip(&format!(
                "link add {link} type veth peer name {LIBIPSEC_DEVICE} netns {}\nlink set {link} up",
                node.name
            ))?;
            place.ip(&format!("link set {LIBIPSEC_DEVICE} up"))?;
            like_a_nic(place, LIBIPSEC_DEVICE)?;
            router_end(wan, &link)?;
        }
        self.link = NODES[0].plain_link();
        Ok(())
    }

    /// Has nodes and router know each other on those links, once there are bridges: a tunnel device has no link header, so
    /// the fast path leaves it as it is, addressed to the bridge.
    ///
    /// # Errors
    /// When `ip` refuses.
    pub fn join_plain_links(&self) -> Result<()> {
        let address = |place: &Place, link: &str| {
            let text = place.must(&["cat", &format!("/sys/class/net/{link}/address")])?;
            anyhow::Ok(text.trim().to_owned())
        };
        for (index, node) in NODES.into_iter().enumerate() {
            let (place, wan, link) = (self.node(node)?, self.wan()?, node.plain_link());
            let peer = NODES[1 - index];
            let (bridge, own) = (address(place, BRIDGE)?, address(place, LIBIPSEC_DEVICE)?);
            place.ip(&format!(
                "neigh replace {} lladdr {bridge} dev {LIBIPSEC_DEVICE} nud permanent",
                peer.pod()
            ))?;
            if self.direct {
                self.node(peer)?
                    .ip(&format!("link set {LIBIPSEC_DEVICE} address {bridge}"))?;
                continue;
            }
            wan.ip(&format!(
                "link set {link} address {bridge}\nneigh replace {} lladdr {own} dev {link} nud permanent\n\
                 route replace {} dev {link}",
                node.pod(),
                node.pods()
            ))?;
        }
        Ok(())
    }

    /// Has the router know the way to the pods themselves, for packets that nothing hides.
    ///
    /// # Errors
    /// When `ip` refuses.
    pub fn route_pods_on_wan(&self) -> Result<()> {
        let lines: Vec<String> = NODES
            .iter()
            .map(|node| format!("route add {} via {}", node.pods(), node.address()))
            .collect();
        self.wan()?.ip(&lines.join("\n"))
    }
}

impl Drop for Ground {
    fn drop(&mut self) {
        if let Err(error) = self.world.tear_down() {
            eprintln!("taking the nodes down: {error:#}");
        }
        for daemon in self.daemons.drain(..) {
            // It was killed with its namespace; this takes the zombie.
            drop(daemon.kill());
        }
    }
}

/// Joins nodes, or pods in their stead, to the router.
fn connect(places: &BTreeMap<String, Place>, pods: bool) -> Result<()> {
    let name = |index: usize| if pods { PODS[index] } else { NODES[index].name };
    let (mut links, mut router) = (String::new(), "link set lo up\n".to_owned());
    for (index, node) in NODES.iter().enumerate() {
        let link = node.link();
        writeln!(
            links,
            "link add eth0 netns {} type veth peer name {link} netns {WAN}",
            name(index)
        )?;
        writeln!(
            router,
            "addr add {}/24 dev {link}\nlink set {link} up",
            node.gateway()
        )?;
    }
    let wan = &places[WAN];
    wan.ip(&links)?;
    for (index, node) in NODES.iter().enumerate() {
        like_a_nic(&places[name(index)], "eth0")?;
        router_end(wan, &node.link())?;
    }
    wan.sysctl(&["net/ipv4/ip_forward=1", "net/ipv6/conf/all/disable_ipv6=1"])?;
    wan.ip(&router)?;
    for (index, node) in NODES.iter().enumerate() {
        let place = &places[name(index)];
        // rp_filter is what systemd ships (50-default.conf).
        place.sysctl(&[
            "net/ipv4/ip_forward=1",
            "net/ipv4/conf/default/rp_filter=2",
            "net/ipv4/conf/all/rp_filter=2",
            "net/ipv6/conf/default/accept_dad=0",
        ])?;
        place.ip(&format!(
            "link set lo up\naddr add {}/24 dev eth0\nlink set eth0 up\nroute add default via {}",
            node.address(),
            node.gateway()
        ))?;
    }
    Ok(())
}

/// The router's end of a link sends as a NIC does, but does no GRO: it is another machine, which has nothing loaded that
/// would look into ESP.
fn router_end(wan: &Place, link: &str) -> Result<()> {
    wan.must(&["ethtool", "-K", link, "tso", "off"])?;
    Ok(())
}
