//! Packets at a cloud node whose CNI has an overlay: nodes share no link, and what is between them knows no pods. Edges
//! are behind the connector, first 10.20.8.28 and then 10.20.8.29.

use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use fabedge_agent::desired::{firewall, routes, sysctl};
use fabedge_agent::facts::TunnelKind;
use fabedge_agent::netlink::Netlink;
use fabedge_agent::sysctl::Sysctl;
use fabedge_common::config::NodeConfig;

use super::documents::{self, MASQUERADE};
use super::space::{Space, assert_fine, in_space, pass, sh};
use super::world::{Agent, Role, assert_seen, count, own, wire};

const CLOUD: Role = Role {
    sysctl: sysctl::cloud,
    routes: routes::cloud,
    firewall: firewall::cloud,
};

/// The nodes: last byte of the address on the underlay, prefix of the pods, address on the overlay.
const NODES: [(u8, &str, &str); 3] = [
    (23, "10.233.65.0/24", "10.233.65.0"),
    (28, "10.233.64.0/25", "10.233.64.0"),
    (29, "10.233.64.128/25", "10.233.64.128"),
];

const STRICT: &str = "
    for filter in /proc/sys/net/ipv4/conf/*/rp_filter; do echo 1 > $filter; done
    echo 1 > /proc/sys/net/ipv4/ip_forward
";

#[derive(Clone, Copy)]
enum Overlay {
    /// As Flannel and Calico make it: no learning, every other node entered by hand.
    Vxlan,
    /// As Calico makes it: the one device that a kernel with the module has.
    Ipip,
}

impl Overlay {
    fn device(self) -> &'static str {
        match self {
            Self::Vxlan => "flannel.1",
            Self::Ipip => "tunl0",
        }
    }

    /// What a CNI does on the node with this last byte.
    fn script(self, last: u8) -> String {
        let device = self.device();
        let mut script = match self {
            Self::Vxlan => format!(
                "ip link add flannel.1 type vxlan id 1 local 10.20.8.{last} dev eth0 dstport 8472 nolearning
                 ip link set flannel.1 address 0e:00:00:00:00:{last}\n"
            ),
            Self::Ipip => String::new(),
        };
        script += &format!("ip link set {device} up\n");
        for (other, pods, address) in NODES {
            script += &match self {
                _ if other == last => format!("ip addr add {address}/32 dev {device}\n"),
                Self::Vxlan => format!(
                    "ip neigh add {address} lladdr 0e:00:00:00:00:{other} dev {device} nud permanent
                     bridge fdb add 0e:00:00:00:00:{other} dev {device} dst 10.20.8.{other} self permanent
                     ip route add {pods} via {address} dev {device} onlink\n"
                ),
                Self::Ipip => format!("ip route add {pods} via 10.20.8.{other} dev {device} onlink\n"),
            };
        }
        script
    }

    /// Whom routes to edges name while the connector is the node with this last byte.
    fn gateway(self, connector: u8) -> String {
        match (self, connector) {
            (Self::Vxlan, 28) => "10.233.64.0".to_owned(),
            (Self::Vxlan, _) => "10.233.64.128".to_owned(),
            (Self::Ipip, last) => format!("10.20.8.{last}"),
        }
    }
}

/// This namespace is the cloud node 10.20.8.23.
struct World {
    /// What is between the nodes.
    _fabric: Space,
    connectors: [Space; 2],
    /// A pod of this node, 10.233.65.10.
    pod: Space,
    /// An edge's pod, 10.233.66.10, behind either connector.
    edge: Space,
}

impl World {
    fn new(overlay: Overlay) -> Self {
        let (fabric, pod, edge) = (Space::new(), Space::new(), Space::new());
        let connectors = [Space::new(), Space::new()];
        fabric.sh(STRICT);
        let attach = |last: u8, space: Option<&Space>| {
            let moved = space.map_or(String::new(), |space| {
                format!("ip link set x{last} netns {}\n", space.id())
            });
            sh(&format!(
                "ip link add x{last} type veth peer name n{last} netns {}\n{moved}",
                fabric.id()
            ));
            fabric.sh(&format!(
                "ip addr add 10.20.8.1/32 dev n{last}
                 ip link set n{last} up
                 ip route add 10.20.8.{last} dev n{last}"
            ));
            let own = format!(
                "ip link set x{last} name eth0 up
                 ip addr add 10.20.8.{last}/32 dev eth0
                 ip route add 10.20.8.1 dev eth0
                 ip route add default via 10.20.8.1
                 {}{STRICT}",
                overlay.script(last)
            );
            match space {
                Some(space) => space.sh(&own),
                None => sh(&own),
            };
        };
        attach(23, None);
        for (last, space) in [28, 29].into_iter().zip(&connectors) {
            attach(last, Some(space));
            sh(&format!(
                "ip link add e{last} type veth peer name e{last} netns {}
                 ip link set e{last} netns {}",
                edge.id(),
                space.id()
            ));
            space.sh(&format!(
                "ip link set e{last} up
                 ip addr add 172.31.{last}.1/30 dev e{last}
                 ip route add 10.233.66.0/24 via 172.31.{last}.2
                 {STRICT}"
            ));
            edge.sh(&format!(
                "ip link set e{last} up
                 ip addr add 172.31.{last}.2/30 dev e{last}"
            ));
        }
        own(&edge, "lo", &["10.233.66.10/32"]);
        edge.sh(
            "for filter in /proc/sys/net/ipv4/conf/*/rp_filter; do echo 0 > $filter; done
                 ip route add default via 172.31.28.1",
        );

        sh("ip link add cni0 type bridge
            ip link set cni0 up
            ip addr add 10.233.65.1/24 dev cni0");
        wire("pod0", &pod, "eth0");
        sh("ip link set pod0 master cni0");
        own(&pod, "eth0", &["10.233.65.10/24"]);
        pod.sh("ip route add default via 10.233.65.1");
        sh(STRICT);
        // Flannel's, and as in Flannel's for what does not come from the cluster.
        sh(
            "iptables-nft -t nat -A POSTROUTING -s 10.233.64.0/23 ! -d 224.0.0.0/4 -j MASQUERADE
            iptables-nft -t nat -A POSTROUTING ! -s 10.233.64.0/23 -d 10.233.64.0/23 -j MASQUERADE
            iptables-nft -P FORWARD DROP",
        );
        Self {
            _fabric: fabric,
            connectors,
            pod,
            edge,
        }
    }
}

/// The document once the connector runs on the node with this last byte.
fn document(connector: u8) -> NodeConfig {
    let mut config = documents::cloud();
    let address = |last: u8| format!("10.20.8.{last}/32").parse().unwrap();
    config.endpoint.node_subnets = vec![address(28), address(23), address(29)];
    Arc::make_mut(&mut config.peers[0]).endpoint.node_subnets = vec![address(connector)];
    config
}

fn ways() -> String {
    sh("ip -4 route show table 220 10.233.66.0/24 metric 50")
}

async fn packets_take_the_overlay(overlay: Overlay) {
    let world = World::new(overlay);
    let cloud_pod = world.pod.udp("10.233.65.10:9000");
    let edge_pod = world.edge.udp("10.233.66.10:9000");
    assert_eq!(
        count(&cloud_pod, "10.233.66.10:9000", &edge_pod),
        0,
        "the test would notice"
    );

    let mut agent = Agent::new().await;
    agent.apply(CLOUD, &document(28), &MASQUERADE).await;
    let expected = format!("via {} dev {} ", overlay.gateway(28), overlay.device());
    assert!(
        ways().contains(&expected) && ways().contains("mtu 1400"),
        "{}",
        ways()
    );
    assert_seen(&cloud_pod, "10.233.66.10:9000", &edge_pod, "10.233.65.10");
    assert_seen(
        &world.edge.udp("10.233.66.10:0"),
        "10.233.65.10:9000",
        &cloud_pod,
        "10.233.66.10",
    );
    // The node itself: by its address on the overlay, a pod's; by its other one it is heard as well, once the connector
    // does not insist that its answer goes the same way.
    let node = std::net::UdpSocket::bind("0.0.0.0:0").unwrap();
    node.set_read_timeout(Some(Duration::from_secs(1))).unwrap();
    assert_seen(&node, "10.233.66.10:9000", &edge_pod, "10.233.65.0");
    let bound = std::net::UdpSocket::bind("10.20.8.23:0").unwrap();
    assert_eq!(count(&bound, "10.233.66.10:9000", &edge_pod), 0);
    world.connectors[0].run(|| {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        runtime.block_on(async {
            let facts = Netlink::open()
                .unwrap()
                .facts(TunnelKind::Libipsec)
                .await
                .unwrap();
            let desired = sysctl::connector(&documents::connector(), &facts);
            assert_fine(&pass(&mut Sysctl::new(), &desired).await);
        });
    });
    assert_eq!(count(&bound, "10.233.66.10:9000", &edge_pod), 10);

    // Should the rule vanish, the default route is not taken instead.
    sh("ip rule del pref 220");
    assert_eq!(count(&cloud_pod, "10.233.66.10:9000", &edge_pod), 0);
    assert_eq!(agent.dropped("outbound_to_pods").await, 10);
    agent.apply(CLOUD, &document(28), &MASQUERADE).await;
    assert_eq!(count(&cloud_pod, "10.233.66.10:9000", &edge_pod), 10);
}

#[test]
fn over_vxlan_pods_keep_their_addresses_both_ways() {
    in_space(async || packets_take_the_overlay(Overlay::Vxlan).await);
}

#[test]
fn over_ipip_pods_keep_their_addresses_both_ways() {
    if kernel_has_no_ipip() {
        println!("this kernel was built without ipip; that of the machine 6.12 has it");
        return;
    }
    in_space(async || {
        // Makes tunl0, in every namespace. Where it is built in there is nothing to load.
        drop(Command::new("modprobe").arg("ipip").output());
        packets_take_the_overlay(Overlay::Ipip).await;
    });
}

/// Says so itself, so that no other reason for a missing device is taken for this one.
fn kernel_has_no_ipip() -> bool {
    let output = Command::new("zcat").arg("/proc/config.gz").output();
    output.is_ok_and(|o| String::from_utf8_lossy(&o.stdout).contains("# CONFIG_NET_IPIP is not set"))
}

#[test]
fn a_moved_connector_is_followed_without_a_lost_packet() {
    in_space(async || {
        let overlay = Overlay::Vxlan;
        let world = World::new(overlay);
        let mut agent = Agent::new().await;
        agent.apply(CLOUD, &document(28), &MASQUERADE).await;
        let cloud_pod = world.pod.udp("10.233.65.10:9000");
        let edge_pod = world.edge.udp("10.233.66.10:9000");
        assert_seen(&cloud_pod, "10.233.66.10:9000", &edge_pod, "10.233.65.10");

        let stop = Arc::new(AtomicBool::new(false));
        let (stopped, ended) = (Arc::clone(&stop), Arc::clone(&stop));
        let sender = std::thread::spawn(move || {
            let mut sent = 0;
            while !stopped.load(Ordering::Relaxed) {
                cloud_pod.send_to(b"probe", "10.233.66.10:9000").unwrap();
                sent += 1;
                std::thread::sleep(Duration::from_millis(1));
            }
            sent
        });
        let receiver = std::thread::spawn(move || {
            let mut received = 0;
            // A pause is not the end: the sender may have to wait for its turn.
            loop {
                match edge_pod.recv(&mut [0; 16]) {
                    Ok(_) => received += 1,
                    Err(_) if ended.load(Ordering::Relaxed) => return received,
                    Err(_) => {}
                }
            }
        });
        std::thread::sleep(Duration::from_millis(50));
        agent.apply(CLOUD, &document(29), &MASQUERADE).await;
        std::thread::sleep(Duration::from_millis(50));
        stop.store(true, Ordering::Relaxed);
        let sent: usize = sender.join().unwrap();
        assert_eq!(receiver.join().unwrap(), sent, "what was sent arrives");
        println!("{sent} packets while the connector moved");

        let text = ways();
        assert!(
            text.contains(&format!("via {} ", overlay.gateway(29))) && text.lines().count() == 1,
            "{text}"
        );
    });
}
