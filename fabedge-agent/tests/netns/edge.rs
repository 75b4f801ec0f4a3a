//! Packets at an edge: 10.233.66.0/24 behind the bridge, everything else of the pod network behind the tunnel.

use std::net::UdpSocket;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::thread::JoinHandle;
use std::time::Instant;

use fabedge_agent::desired::{Options, firewall, routes, sysctl};

use super::documents::{self, MASQUERADE};
use super::space::{Space, in_space, sh};
use super::world::{Agent, OPEN, PATIENCE, Role, assert_seen, count, counts, drain, own, seen, tunnel, wire};

const EDGE: Role = Role {
    sysctl: sysctl::edge,
    routes: routes::edge,
    firewall: firewall::edge,
};

/// Addresses that others claim in one test or another: a cloud pod, a cloud node, a pod of edge2.
const REMOTE: [&str; 5] = [
    "10.233.64.10/32",
    "10.20.8.23/32",
    "10.233.67.10/32",
    "fd00:233:64:64::10/128",
    "fd00:233:64:67::10/128",
];

struct World {
    /// A local pod, 10.233.66.10.
    pod: Space,
    /// The site's router, 192.168.50.1, and all that is behind it; it also claims [`REMOTE`].
    lan: Space,
    /// The other ends of the tunnels, with [`REMOTE`].
    far: Space,
}

impl World {
    fn new() -> Self {
        let (pod, lan) = (Space::new(), Space::new());
        sh("ip link add br-fabedge type bridge
            ip link set br-fabedge up
            ip addr add 10.233.66.1/24 dev br-fabedge
            ip addr add fd00:233:64:66::1/64 dev br-fabedge nodad");
        wire("pod0", &pod, "eth0");
        sh("ip link set pod0 master br-fabedge");
        own(&pod, "eth0", &["10.233.66.10/24", "fd00:233:64:66::10/64"]);
        pod.sh("ip route add default via 10.233.66.1
 ip route add default via fd00:233:64:66::1");

        wire("eth0", &lan, "eth0");
        sh("ip addr add 192.168.50.2/24 dev eth0
            ip addr add fd00:50::2/64 dev eth0 nodad
            ip route add default via 192.168.50.1
            ip route add default via fd00:50::1");
        own(
            &lan,
            "eth0",
            &[
                "192.168.50.1/24",
                "fd00:50::1/64",
                "198.51.100.9/32",
                "2001:db8::9/128",
            ],
        );
        own(&lan, "lo", &REMOTE);
        lan.sh(&format!(
            "{OPEN}
             ip route add 10.233.66.0/24 via 192.168.50.2
             ip route add fd00:233:64:66::/64 via fd00:50::2"
        ));
        let far = tunnel(&REMOTE);
        sh(OPEN);
        Self { pod, lan, far }
    }
}

fn here(address: &str) -> UdpSocket {
    let socket = UdpSocket::bind(address).unwrap();
    socket.set_read_timeout(Some(PATIENCE)).unwrap();
    socket
}

#[test]
fn plaintext_does_not_get_in() {
    in_space(async || {
        let world = World::new();
        let pod = [
            world.pod.udp("10.233.66.10:9000"),
            world.pod.udp("[fd00:233:64:66::10]:9000"),
        ];
        let target = ["10.233.66.10:9000", "[fd00:233:64:66::10]:9000"];
        let attacks = [
            ("10.233.67.10:0", 0, "inbound_to_pods"),
            ("192.168.50.1:0", 0, "inbound_to_pods"),
            ("[fd00:233:64:67::10]:0", 1, "inbound_to_pods"),
        ]
        .map(|(source, family, counter)| (source, world.lan.udp(source), family, counter));
        for (source, attacker, family, _) in &attacks {
            let through = count(attacker, target[*family], &pod[*family]);
            assert_eq!(through, 10, "from {source}: the test would notice");
        }

        let mut agent = Agent::new().await;
        agent.apply(EDGE, &documents::edge(), &MASQUERADE).await;
        for (source, attacker, family, counter) in &attacks {
            let before = agent.dropped(counter).await;
            assert_eq!(
                count(attacker, target[*family], &pod[*family]),
                0,
                "from {source}"
            );
            assert_eq!(agent.dropped(counter).await, before + 10, "from {source}");
        }
        // The same addresses out of the tunnel are the peers themselves.
        assert_eq!(count(&world.far.udp("10.233.67.10:0"), target[0], &pod[0]), 10);
        assert_eq!(
            count(&world.far.udp("[fd00:233:64:67::10]:0"), target[1], &pod[1]),
            10
        );

        // Nor does the node itself believe a pod's address from the LAN, or a local pod that claims another's, or
        // a peer that claims a local pod's.
        let node = here("0.0.0.0:9001");
        let spoofer = world.lan.udp("10.233.67.10:0");
        assert_eq!(count(&spoofer, "192.168.50.2:9001", &node), 0);
        own(&world.pod, "eth0", &["10.233.67.11/32"]);
        let spoofer = world.pod.udp("10.233.67.11:0");
        assert_eq!(
            count(&spoofer, "10.233.64.10:9000", &world.far.udp("10.233.64.10:9000")),
            0
        );
        own(&world.far, "t0", &["10.233.66.11/32"]);
        assert_eq!(count(&world.far.udp("10.233.66.11:0"), target[0], &pod[0]), 0);
        assert_eq!(agent.dropped("inbound_spoofed").await, 30);
    });
}

#[test]
fn plaintext_does_not_get_out() {
    in_space(async || {
        let world = World::new();
        let pod = world.pod.udp("10.233.66.10:0");
        let pod6 = world.pod.udp("[fd00:233:64:66::10]:0");
        let node = here("0.0.0.0:0");
        let leaks = [
            "10.233.64.10:9000",
            "10.20.8.23:9000",
            "[fd00:233:64:64::10]:9000",
            "10.233.67.10:9000",
        ];
        let lan = leaks.map(|address| world.lan.udp(address));
        let far = leaks.map(|address| world.far.udp(address));
        // In plaintext on the LAN: from a pod for a cloud pod and a cloud node, and from the node for another pod.
        let leaked = || {
            counts([
                (&pod, leaks[0], &lan[0]),
                (&pod, leaks[1], &lan[1]),
                (&pod6, leaks[2], &lan[2]),
                (&node, leaks[3], &lan[3]),
            ])
        };
        assert_eq!(leaked(), [10; 4], "the test would notice");

        let mut agent = Agent::new().await;
        let document = documents::edge();
        agent.apply(EDGE, &document, &MASQUERADE).await;
        assert_eq!(leaked(), [0; 4]);
        for (i, sender) in [&pod, &pod, &pod6].into_iter().enumerate() {
            assert_eq!(count(sender, leaks[i], &far[i]), 10, "{}", leaks[i]);
        }
        assert_eq!(
            count(&node, leaks[1], &lan[1]),
            10,
            "the node reaches cloud nodes over the underlay"
        );

        // The second line, should rules vanish.
        let undo = "ip rule del pref 220; ip rule del pref 221; ip -6 rule del pref 220";
        sh(undo);
        assert_eq!(leaked(), [0; 4]);
        assert_eq!(agent.dropped("outbound_to_pods").await, 30);
        assert_eq!(agent.dropped("outbound_to_nodes").await, 10);
        agent.apply(EDGE, &document, &MASQUERADE).await;
        assert_eq!(count(&pod, leaks[0], &far[0]), 10, "the rules are back");

        // The first line, should the table vanish; in both cases with and without the device.
        sh("nft delete table inet fabedge
 ip link set ipsec0 down");
        assert_eq!(leaked(), [0; 4]);
        sh("ip link del ipsec0");
        assert_eq!(leaked(), [0; 4]);
        sh(undo);
        assert_eq!(
            leaked(),
            [10; 4],
            "with neither line it leaks, so both were needed"
        );
    });
}

#[test]
fn sources_are_translated_where_they_should_be_and_nowhere_else() {
    in_space(async || {
        let world = World::new();
        // CNIs masquerade all that leaves, in either backend.
        for command in ["iptables-nft", "iptables-legacy"] {
            sh(&format!("{command} -t nat -A POSTROUTING ! -o lo -j MASQUERADE"));
        }
        for command in ["ip6tables-nft", "ip6tables-legacy"] {
            sh(&format!("{command} -t nat -A POSTROUTING ! -o lo -j MASQUERADE"));
        }
        let mut agent = Agent::new().await;
        agent.apply(EDGE, &documents::edge(), &MASQUERADE).await;

        let pod = world.pod.udp("10.233.66.10:9000");
        let pod6 = world.pod.udp("[fd00:233:64:66::10]:9000");
        let cloud_pod = world.far.udp("10.233.64.10:9000");
        let cloud_pod6 = world.far.udp("[fd00:233:64:64::10]:9000");
        let cloud_node = world.far.udp("10.20.8.23:9000");
        // Pods keep their addresses towards remote pods and nodes, whatever the CNI masquerades.
        assert_seen(&pod, "10.233.64.10:9000", &cloud_pod, "10.233.66.10");
        assert_seen(
            &pod6,
            "[fd00:233:64:64::10]:9000",
            &cloud_pod6,
            "fd00:233:64:66::10",
        );
        assert_seen(&pod, "10.20.8.23:9000", &cloud_node, "10.233.66.10");
        // Questions come from other ports than those that answer, else they would be answers to earlier ones.
        assert_seen(
            &world.far.udp("10.233.64.10:0"),
            "10.233.66.10:9000",
            &pod,
            "10.233.64.10",
        );
        let remote6 = world.far.udp("[fd00:233:64:64::10]:0");
        assert_seen(&remote6, "[fd00:233:64:66::10]:9000", &pod6, "fd00:233:64:64::10");
        // A remote node is seen as the gateway.
        assert_seen(
            &world.far.udp("10.20.8.23:0"),
            "10.233.66.10:9000",
            &pod,
            "10.233.66.1",
        );
        // The node itself speaks to remote pods as the pods' gateway, also where it is bound to another address.
        assert_seen(&here("0.0.0.0:0"), "10.233.64.10:9000", &cloud_pod, "10.233.66.1");
        assert_seen(
            &here("192.168.50.2:0"),
            "10.233.64.10:9000",
            &cloud_pod,
            "10.233.66.1",
        );
        // Towards the outside, pods go out under the node's address.
        let outside = world.lan.udp("198.51.100.9:9000");
        let outside6 = world.lan.udp("[2001:db8::9]:9000");
        assert_seen(&pod, "198.51.100.9:9000", &outside, "192.168.50.2");
        assert_seen(&pod6, "[2001:db8::9]:9000", &outside6, "fd00:50::2");
    });
}

#[test]
fn pods_go_out_under_their_own_addresses_when_asked_to() {
    in_space(async || {
        let world = World::new();
        let mut agent = Agent::new().await;
        let direct = Options {
            masq_outgoing: false,
            fast_path: true,
            spread_esp: Default::default(),
        };
        agent.apply(EDGE, &documents::edge(), &direct).await;
        let pod = world.pod.udp("10.233.66.10:9000");
        let outside = world.lan.udp("198.51.100.9:9000");
        assert_seen(&pod, "198.51.100.9:9000", &outside, "10.233.66.10");
        // Answers come in, questions do not.
        let stranger = world.lan.udp("198.51.100.9:0");
        assert_eq!(count(&stranger, "10.233.66.10:9000", &pod), 0);
        assert_eq!(agent.dropped("inbound_to_pods").await, 10);
        assert_eq!(
            count(&world.lan.udp("10.233.67.10:0"), "10.233.66.10:9000", &pod),
            0
        );
    });
}

#[test]
fn nobody_uses_the_edge_as_a_router_into_the_tunnels_but_published_ports_work() {
    in_space(async || {
        let world = World::new();
        let mut agent = Agent::new().await;
        agent.apply(EDGE, &documents::edge(), &MASQUERADE).await;
        let pod = world.pod.udp("10.233.66.10:9000");
        let cloud_pod = world.far.udp("10.233.64.10:9000");

        world.lan.sh("ip addr del 10.233.64.10/32 dev lo
 ip route add 10.233.64.0/24 via 192.168.50.2");
        let stranger = world.lan.udp("192.168.50.1:0");
        assert_eq!(count(&stranger, "10.233.64.10:9000", &cloud_pod), 0);
        assert_eq!(agent.dropped("forward_foreign").await, 10);

        // As portmap and kube-proxy do it: a local pod behind the node's port, and a remote one.
        sh("nft 'add table ip theirs'
            nft 'add chain ip theirs pre { type nat hook prerouting priority dstnat; }'
            nft 'add rule ip theirs pre ip daddr 192.168.50.2 udp dport 8080 dnat to 10.233.66.10:9000'
            nft 'add rule ip theirs pre ip daddr 192.168.50.2 udp dport 8081 dnat to 10.233.64.10:9000'
            nft 'add rule ip theirs pre ip daddr 10.233.0.10 udp dport 53 dnat to 10.233.64.10:9000'
            nft 'add rule ip theirs pre ip daddr 10.233.0.11 udp dport 53 dnat to 10.233.66.11:9000'");
        assert_seen(&stranger, "192.168.50.2:8080", &pod, "192.168.50.1");
        // Only under the gateway's address does it fit the tunnel's selectors.
        assert_seen(&stranger, "192.168.50.2:8081", &cloud_pod, "10.233.66.1");
        // ClusterIPs that lead to a remote pod and to another local one.
        assert_seen(&pod, "10.233.0.10:53", &cloud_pod, "10.233.66.10");
        let neighbour = Space::new();
        wire("pod1", &neighbour, "eth0");
        sh("ip link set pod1 master br-fabedge");
        own(&neighbour, "eth0", &["10.233.66.11/24"]);
        neighbour.sh("ip route del 10.233.66.0/24
 ip route add 10.233.66.1 dev eth0
 ip route add default via 10.233.66.1");
        world.pod.sh("ip route del 10.233.66.0/24
 ip route add 10.233.66.1 dev eth0
 ip route replace default via 10.233.66.1");
        assert_seen(
            &pod,
            "10.233.0.11:53",
            &neighbour.udp("10.233.66.11:9000"),
            "10.233.66.10",
        );
    });
}

#[test]
fn a_forward_policy_of_drop_stops_nothing_of_ours() {
    in_space(async || {
        let world = World::new();
        let pod = world.pod.udp("10.233.66.10:9000");
        let cloud_pod = world.far.udp("10.233.64.10:9000");
        let outside = world.lan.udp("198.51.100.9:9000");
        for command in ["iptables-nft", "iptables-legacy"] {
            sh(&format!("{command} -P FORWARD DROP"));
            let mut agent = Agent::new().await;
            let unsettled = seen(&pod, "10.233.64.10:9000", &cloud_pod);
            assert_eq!(unsettled, None, "{command}: the test would notice");
            agent.apply(EDGE, &documents::edge(), &MASQUERADE).await;
            assert_seen(&pod, "10.233.64.10:9000", &cloud_pod, "10.233.66.10");
            assert_seen(
                &world.far.udp("10.233.64.10:0"),
                "10.233.66.10:9000",
                &pod,
                "10.233.64.10",
            );
            assert_seen(&pod, "198.51.100.9:9000", &outside, "192.168.50.2");
            sh(&format!("{command} -P FORWARD ACCEPT; {command} -F FORWARD"));
        }
    });
}

/// Sends to `address` until told to stop; returns how many packets.
fn flood(from: UdpSocket, address: &'static str, stop: &Arc<AtomicBool>) -> JoinHandle<u64> {
    let stop = stop.clone();
    std::thread::spawn(move || {
        let mut sent = 0;
        while !stop.load(Relaxed) {
            let began = Instant::now();
            from.send_to(b"probe", address).unwrap();
            sent += 1;
            // The packet's whole way is part of sending it; most of the time is left to others, however slow.
            std::thread::sleep(began.elapsed() * 6);
        }
        sent
    })
}

#[test]
fn nothing_gets_in_and_nothing_is_lost_while_rules_change() {
    in_space(async || {
        let world = World::new();
        let (refused, welcome) = (
            world.pod.udp("10.233.66.10:9000"),
            world.pod.udp("10.233.66.10:9001"),
        );
        let (attacker, peer) = (world.lan.udp("10.233.67.10:0"), world.far.udp("10.233.67.10:0"));
        assert_eq!(
            count(&attacker, "10.233.66.10:9000", &refused),
            10,
            "the test would notice"
        );
        let mut document = documents::edge();
        let mut agent = Agent::new().await;
        agent.apply(EDGE, &document, &MASQUERADE).await;
        assert_eq!(count(&peer, "10.233.66.10:9001", &welcome), 10);

        let stop = Arc::new(AtomicBool::new(false));
        let stopped = stop.clone();
        let received = std::thread::spawn(move || {
            let mut received = 0;
            // A pause is not the end: the senders may have to wait for their turn.
            loop {
                match welcome.recv(&mut [0; 16]) {
                    Ok(_) => received += 1,
                    Err(_) if stopped.load(Relaxed) => return received,
                    Err(_) => {}
                }
            }
        });
        let floods = [
            flood(attacker, "10.233.66.10:9000", &stop),
            flood(peer, "10.233.66.10:9001", &stop),
        ];
        // Peers come and go, and every agent that starts writes the rules once more.
        for i in 0..8 {
            let subnets = &mut Arc::make_mut(&mut document.peers[1]).endpoint.subnets;
            subnets.truncate(2);
            subnets.push(format!("10.233.{}.0/24", 100 + i).parse().unwrap());
            agent = Agent::new().await;
            agent.apply(EDGE, &document, &MASQUERADE).await;
        }
        stop.store(true, Relaxed);
        let [attacks, sent] = floods.map(|flood| flood.join().unwrap());
        println!("{attacks} attacks, {sent} sent");
        assert!(attacks > 100 && sent > 100);
        assert_eq!(received.join().unwrap(), sent, "a peer's packets arrive");
        assert_eq!(drain(&refused), 0, "of {attacks}");
        assert_eq!(
            agent.dropped("inbound_to_pods").await,
            attacks,
            "every one is counted"
        );
    });
}

#[test]
fn what_is_for_own_pods_stays_here_while_nothing_leads_to_them() {
    in_space(async || {
        let world = World::new();
        // An edge that has no pod yet has no such bridge, and only the default route is left.
        sh("ip addr flush dev br-fabedge");
        own(&world.lan, "lo", &["10.233.66.99/32"]);
        let leaked = world.lan.udp("10.233.66.99:9000");
        let node = here("0.0.0.0:0");
        assert_eq!(
            count(&node, "10.233.66.99:9000", &leaked),
            10,
            "the test would notice"
        );
        let mut agent = Agent::new().await;
        agent.apply(EDGE, &documents::edge(), &MASQUERADE).await;
        assert_eq!(count(&node, "10.233.66.99:9000", &leaked), 0);
        assert_eq!(agent.dropped("outbound_to_pods").await, 10);
    });
}
