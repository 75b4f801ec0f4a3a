//! Two sites and their documents.

use std::sync::{Mutex, MutexGuard, PoisonError};

use fabedge_agent::facts::TunnelKind;

use crate::pki::Authority;
use crate::site::{Site, kind, run};

/// One world at a time: the namespaces have fixed names.
fn alone() -> MutexGuard<'static, ()> {
    static WORLD: Mutex<()> = Mutex::new(());
    WORLD.lock().unwrap_or_else(PoisonError::into_inner)
}

/// `edge` and `connector` on one link, certified, with charons; agents not started.
pub struct World {
    pub edge: Site,
    pub connector: Site,
    pub authority: Authority,
    _alone: MutexGuard<'static, ()>,
}

impl World {
    /// Both on one link.
    pub fn new() -> Self {
        let (world, _) = Self::make();
        run("ip link add eth0 netns fab-edge type veth peer name eth0 netns fab-conn");
        world.edge.run(
            "ip addr add 172.16.2.2/24 dev eth0; ip addr add fd01::2/64 dev eth0 nodad; ip link set eth0 up",
        );
        world.finish()
    }

    /// The edge behind a NAT, whose namespace comes with the world.
    pub fn behind_nat() -> (Self, Site) {
        let (world, kind) = Self::make();
        let nat = Site::new("fab-nat", kind);
        run(
            "ip link add eth0 netns fab-edge type veth peer name in0 netns fab-nat; \
             ip link add out0 netns fab-nat type veth peer name eth0 netns fab-conn",
        );
        world.edge.run("ip addr add 192.168.50.2/24 dev eth0; ip link set eth0 up; ip route add default via 192.168.50.1");
        nat.run(
            "ip addr add 192.168.50.1/24 dev in0; ip link set in0 up; \
             ip addr add 172.16.2.2/24 dev out0; ip link set out0 up; echo 1 > /proc/sys/net/ipv4/ip_forward; \
             nft add table ip nat; nft \"add chain ip nat post { type nat hook postrouting priority 100; }\"; \
             nft add rule ip nat post oifname out0 masquerade",
        );
        (world.finish(), nat)
    }

    /// A second edge, on a link of its own, certified, without charon and agent.
    pub fn second_edge(&self) -> Site {
        let site = Site::new("fab-edge3", kind());
        run("ip link add eth0 netns fab-edge3 type veth peer name eth1 netns fab-conn");
        self.connector
            .run("ip addr add 172.16.3.28/24 dev eth1; ip link set eth1 up");
        site.run(
            "ip addr add 172.16.3.2/24 dev eth0; ip link set eth0 up; ip route add 172.16.2.0/24 via 172.16.3.28; \
             ip link add pods type veth peer name pods0; ip link set pods up; ip link set pods0 up; \
             ip addr add 10.233.67.1/24 dev pods; ip addr add fd00:67::1/64 dev pods nodad",
        );
        if kind() == TunnelKind::Xfrm {
            site.run("ip link add fabedge0 type xfrm dev eth0 if_id 0xfabe; ip link set fabedge0 up");
        }
        self.authority.certify(&site, "fabedge.edge3");
        site
    }

    fn make() -> (Self, TunnelKind) {
        let guard = alone();
        let kind = kind();
        let world = Self {
            edge: Site::new("fab-edge", kind),
            connector: Site::new("fab-conn", kind),
            authority: Authority::new("fabedge-ca"),
            _alone: guard,
        };
        (world, kind)
    }

    fn finish(self) -> Self {
        self.connector
            .run("ip addr add 172.16.2.28/24 dev eth0; ip addr add fd01::28/64 dev eth0 nodad; ip link set eth0 up");
        for (site, name, pod, pod6) in [
            (&self.edge, "fabedge.edge2", "10.233.66.1/24", "fd00:66::1/64"),
            (
                &self.connector,
                "fabedge.connector",
                "10.233.64.1/24",
                "fd00:64::1/64",
            ),
        ] {
            site.run(&format!(
                "ip link add pods type veth peer name pods0; ip link set pods up; ip link set pods0 up; \
                 ip addr add {pod} dev pods; ip addr add {pod6} dev pods nodad"
            ));
            if kind() == TunnelKind::Xfrm {
                site.run("ip link add fabedge0 type xfrm dev eth0 if_id 0xfabe; ip link set fabedge0 up");
            }
            self.authority.certify(site, name);
        }
        self
    }

    /// Routes from `site` to prefixes, through the tunnel device.
    pub fn routes(&self) {
        let device = kind().device();
        for site in [&self.edge, &self.connector] {
            site.wait("tunnel device", 5, |site| {
                site.succeeds(&format!("ip link show {device}"))
            });
        }
        self.edge.run(&format!(
            "ip route replace 10.233.64.0/23 dev {device} src 10.233.66.1; \
             ip route replace fd00:64::/64 dev {device} src fd00:66::1"
        ));
        self.connector.run(&format!(
            "ip route replace 10.233.66.0/24 dev {device} src 10.233.64.1; \
             ip route replace fd00:66::/64 dev {device} src fd00:64::1"
        ));
    }
}

pub fn edge_document(connector_subnets: &str) -> String {
    format!(
        r#"version: 1
generation: 1
id: C=CN, O=fabedge.io, CN=fabedge.edge2
name: fabedge.edge2
publicAddresses: [172.16.2.2]
subnets: [10.233.66.0/24, "fd00:66::/64"]
nodeSubnets: [172.16.2.2]
type: EdgeNode
peers:
- id: C=CN, O=fabedge.io, CN=fabedge.connector
  name: fabedge.connector
  publicAddresses: [172.16.2.28]
  subnets: [{connector_subnets}]
  nodeSubnets: [172.16.2.28, 172.16.2.23]
  type: Connector
  initiate: true
...
"#
    )
}

pub fn connector_document(own_subnets: &str) -> String {
    format!(
        r#"version: 1
generation: 1
id: C=CN, O=fabedge.io, CN=fabedge.connector
name: fabedge.connector
publicAddresses: [172.16.2.28]
subnets: [{own_subnets}]
nodeSubnets: [172.16.2.28, 172.16.2.23]
type: Connector
peers:
- id: C=CN, O=fabedge.io, CN=fabedge.edge2
  name: fabedge.edge2
  publicAddresses: [172.16.2.2]
  subnets: [10.233.66.0/24, "fd00:66::/64"]
  nodeSubnets: [172.16.2.2]
  type: EdgeNode
...
"#
    )
}

/// Pods and services: the connector has no address in the latter.
pub const CLOUD: &str = r#"10.233.0.0/18, 10.233.64.0/24, "fd00:10::/112", "fd00:64::/64""#;

/// `world` with everything running and the tunnel up.
pub fn start(mut world: World) -> World {
    for site in [&mut world.edge, &mut world.connector] {
        site.start_charon();
        site.start_agent();
    }
    world.edge.document(&edge_document(CLOUD));
    world.connector.document(&connector_document(CLOUD));
    world.edge.wait_ready("fabedge.connector");
    world.connector.wait_ready("fabedge.edge2");
    world.routes();
    world
}

/// The document of the second edge, made from the first one's.
pub fn second_edge_document() -> String {
    second(&edge_document(CLOUD))
}

/// The connector's document with both edges.
pub fn both_edges_document() -> String {
    let text = connector_document(CLOUD);
    let text = text.trim_end_matches("...\n");
    let peer = &text[text.find("- id").unwrap()..];
    format!("{text}{}...\n", second(peer))
}

/// What is said of the first edge, said of the second.
fn second(text: &str) -> String {
    text.replace("edge2", "edge3")
        .replace("172.16.2.2]", "172.16.3.2]")
        .replace("10.233.66.", "10.233.67.")
        .replace("fd00:66:", "fd00:67:")
}
