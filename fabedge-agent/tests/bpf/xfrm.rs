//! The xfrm interface: what the kernel decrypted, and by which SA. Two SAs lead to the same node, as from two peers.

use std::collections::{BTreeMap, BTreeSet};
use std::net::UdpSocket;
use std::process::Command;
use std::time::Duration;

use fabedge_agent::desired::datapath::{Datapath as Desired, Entry, Hook};
use fabedge_common::abi::{Pod, ROUTE_XFRM, Route};

use crate::sandbox::{PATIENCE, Sandbox, ifindex, inside, ip, mac, run, sandbox};

const PEER: u32 = 0x4000_0001;
const OTHER: u32 = 0x4000_0002;
const KEY: &str = "0x000102030405060708090a0b0c0d0e0f10111213";
/// Node and peer on the WAN.
const NODE: &str = "192.168.9.1";
const REMOTE: &str = "192.168.9.2";

/// A kernel that was built without xfrm interfaces and says so (this is about the machine that builds, not about
/// those that the product runs on, which come as a guest of the suite).
fn kernel_has_none() -> bool {
    let output = Command::new("zcat").arg("/proc/config.gz").output();
    output.is_ok_and(|o| String::from_utf8_lossy(&o.stdout).contains("# CONFIG_XFRM_INTERFACE is not set"))
}

/// Devices, SAs and policies of both ends; a pod behind the node, and the peer's pod as an address of the peer.
fn world() -> Desired {
    for path in ["net/ipv4/ip_forward", "net/ipv6/conf/all/forwarding"] {
        std::fs::write(format!("/proc/sys/{path}"), "1").unwrap();
    }
    ip("netns add pod");
    ip("netns add peer");
    ip("link add veth1 type veth peer name eth0 netns pod");
    ip("address add 10.1.0.1/24 dev veth1");
    ip("address add fd00:1::1/64 dev veth1 nodad");
    ip("link set veth1 up");
    ip("-n pod address add 10.1.0.2/24 dev eth0");
    ip("-n pod address add fd00:1::2/64 dev eth0 nodad");
    ip("-n pod link set eth0 up");
    ip("-n pod route add default via 10.1.0.1");
    ip("-n pod route add default via fd00:1::1");
    ip("link add wan0 type veth peer name wan1 netns peer");
    ip(&format!("address add {NODE}/24 dev wan0"));
    ip("link set wan0 up");
    ip(&format!("-n peer address add {REMOTE}/24 dev wan1"));
    ip("-n peer link set wan1 up");
    ip("-n peer link set lo up");
    for (place, own) in [
        ("", "10.1.0.0/16 fd00:1::/64"),
        ("-n peer ", "10.2.0.0/16 fd00:2::/64"),
    ] {
        ip(&format!("{place}link add fabedge0 type xfrm if_id 0xfabe"));
        ip(&format!("{place}link set fabedge0 mtu 1400 up"));
        let theirs = if place.is_empty() {
            "10.2.0.0/16 fd00:2::/64"
        } else {
            "10.1.0.0/16 fd00:1::/64"
        };
        for prefix in theirs.split(' ') {
            ip(&format!("{place}route add {prefix} dev fabedge0"));
        }
        for (spi, reqid) in [(1, PEER), (2, OTHER)] {
            state(place, NODE, REMOTE, 0x10 + spi, reqid);
            state(place, REMOTE, NODE, 0x20 + spi, reqid);
        }
        for (local, remote) in own.split(' ').zip(theirs.split(' ')) {
            let (here, there) = if place.is_empty() {
                (NODE, REMOTE)
            } else {
                (REMOTE, NODE)
            };
            policy(place, "add", local, remote, "out", here, there, PEER);
            policy(place, "add", remote, local, "in", there, here, PEER);
            policy(place, "add", remote, local, "fwd", there, here, PEER);
        }
    }
    ip("-n peer address add 10.2.0.5/32 dev lo");
    ip("-n peer address add 10.2.0.6/32 dev lo");
    ip("-n peer address add fd00:2::5/128 dev lo nodad");

    let (veth, tunnel) = (ifindex("veth1"), ifindex("fabedge0"));
    let route = |reqid| Route {
        kind: ROUTE_XFRM,
        ifindex: tunnel,
        reqid,
        flags: 0,
        mtu: 1400,
    };
    let pod = Pod {
        ifindex: veth,
        flags: 0,
        pod_mac: mac("eth0", Some("pod")),
        gateway_mac: mac("veth1", None),
    };
    let hook = |ifindex, device: &str, entry| Hook {
        ifindex,
        entry,
        device: device.to_owned(),
    };
    Desired {
        enabled: true,
        routes: BTreeMap::from([
            ("10.2.0.0/16".parse().unwrap(), route(PEER)),
            ("fd00:2::/64".parse().unwrap(), route(PEER)),
        ]),
        pods: BTreeMap::from([
            ("10.1.0.2".parse().unwrap(), pod),
            ("fd00:1::2".parse().unwrap(), pod),
        ]),
        peers: BTreeMap::from([(PEER, "fabedge.peer".to_owned())]),
        hooks: BTreeSet::from([
            hook(tunnel, "fabedge0", Entry::TunnelIngress),
            hook(tunnel, "fabedge0", Entry::TunnelEgress),
            hook(veth, "veth1", Entry::PodIngress),
            hook(veth, "veth1", Entry::PodEgress),
        ]),
        ..Desired::default()
    }
}

fn state(place: &str, src: &str, dst: &str, spi: u32, reqid: u32) {
    // Of both inner families, as charon makes them.
    let aead = format!("aead rfc4106(gcm(aes)) {KEY} 128 flag af-unspec");
    ip(&format!(
        "{place}xfrm state add src {src} dst {dst} proto esp spi {spi} reqid {reqid} mode tunnel if_id 0xfabe {aead}"
    ));
}

#[allow(clippy::too_many_arguments, reason = "the words of one command")]
fn policy(place: &str, verb: &str, src: &str, dst: &str, dir: &str, from: &str, to: &str, reqid: u32) {
    ip(&format!(
        "{place}xfrm policy {verb} src {src} dst {dst} dir {dir} if_id 0xfabe tmpl src {from} dst {to} proto esp \
         reqid {reqid} mode tunnel"
    ));
}

fn socket(namespace: &'static str, address: &'static str) -> UdpSocket {
    let socket = inside(namespace, move || UdpSocket::bind(address).unwrap());
    socket.set_read_timeout(Some(PATIENCE)).unwrap();
    socket
}

fn arrives(socket: &UdpSocket) -> Option<Vec<u8>> {
    let mut buffer = [0; 65_536];
    socket
        .recv(&mut buffer)
        .ok()
        .map(|length| buffer[..length].to_vec())
}

fn settled(sandbox: &Sandbox) {
    sandbox.settle(&mut sandbox.datapath(), &world());
}

#[test]
fn pods_of_two_nodes_talk_past_the_stack_in_both_families() {
    sandbox(|sandbox| {
        if kernel_has_none() {
            return;
        }
        settled(sandbox);
        for (n, (local, remote)) in [
            ("10.1.0.2:1000", "10.2.0.5:2000"),
            ("[fd00:1::2]:1000", "[fd00:2::5]:2000"),
        ]
        .into_iter()
        .enumerate()
        {
            let (pod, peer) = (socket("pod", local), socket("peer", remote));
            for data in [vec![7; 8], vec![8; 1300]] {
                pod.send_to(&data, remote).unwrap();
                assert_eq!(arrives(&peer), Some(data.clone()), "{local} to {remote}");
                peer.send_to(&data, local).unwrap();
                assert_eq!(arrives(&pod), Some(data), "{remote} to {local}");
            }
            let packets = 2 * (n as u64 + 1);
            assert_eq!(sandbox.count("pod_egress/tunnel"), packets);
            assert_eq!(sandbox.count("tunnel_ingress/pod"), packets);
        }
        assert_eq!(sandbox.count("tunnel_egress/flow_recorded"), 0);
    });
}

#[test]
fn a_source_that_came_by_the_sa_of_another_peer_is_dropped() {
    sandbox(|sandbox| {
        if kernel_has_none() {
            return;
        }
        settled(sandbox);
        let (pod, peer) = (socket("pod", "10.1.0.2:1000"), socket("peer", "10.2.0.5:2000"));
        pod.set_read_timeout(Some(Duration::from_millis(500))).unwrap();
        peer.send_to(b"honest", "10.1.0.2:1000").unwrap();
        assert_eq!(arrives(&pod), Some(b"honest".to_vec()));
        // The peer sends through its other SA now, which is another peer's in the node's eyes.
        policy(
            "-n peer ",
            "update",
            "10.2.0.0/16",
            "10.1.0.0/16",
            "out",
            REMOTE,
            NODE,
            OTHER,
        );
        for _ in 0..5 {
            peer.send_to(b"spoofed", "10.1.0.2:1000").unwrap();
        }
        assert_eq!(arrives(&pod), None);
        assert_eq!(sandbox.count("tunnel_ingress/spoofed_source"), 5);
        let bytes = run("ip", "-s xfrm state list reqid 1073741826 spi 0x22");
        assert!(bytes.contains("5(packets)"), "they came by that SA: {bytes}");
    });
}

#[test]
fn large_transfers_arrive_whole() {
    sandbox(|sandbox| {
        if kernel_has_none() {
            return;
        }
        settled(sandbox);
        for (server, client, address) in [("pod", "peer", "10.1.0.2:80"), ("peer", "pod", "10.2.0.5:80")] {
            let listener = inside(server, move || std::net::TcpListener::bind(address).unwrap());
            let sender = std::thread::spawn(move || {
                let mut stream = inside(client, move || std::net::TcpStream::connect(address).unwrap());
                let block: Vec<u8> = (0..=255u8).cycle().take(1 << 20).collect();
                for _ in 0..2 {
                    std::io::Write::write_all(&mut stream, &block).unwrap();
                }
            });
            let (mut stream, _) = listener.accept().unwrap();
            let mut received = Vec::new();
            std::io::Read::read_to_end(&mut stream, &mut received).unwrap();
            sender.join().unwrap();
            assert_eq!(received.len(), 2 << 20);
            assert!(
                received
                    .iter()
                    .zip((0..=255u8).cycle())
                    .all(|(got, sent)| *got == sent)
            );
        }
        let tables = fabedge_agent::datapath::read::tables_in(&sandbox.pins).unwrap();
        let packets = |verdict: &str, program: &str| -> u64 {
            let rows = tables
                .counters
                .iter()
                .filter(|row| row.verdict == verdict && row.program == program);
            rows.map(|row| row.packets).sum()
        };
        for program in ["pod_egress", "tunnel_ingress"] {
            let (fast, slow) = (packets("fast", program), packets("stack", program));
            assert!(
                fast > 100 * slow.max(1),
                "{program}: {fast} fast, {slow} slow\n{tables}"
            );
        }
    });
}
