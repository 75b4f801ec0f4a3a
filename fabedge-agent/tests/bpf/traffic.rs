//! Real packets between a pod and the tunnel, on both paths.

use std::net::UdpSocket;
use std::process::Command;

use crate::node::{Node, PEER, POD};
use crate::packets::{checksum, ipv4, ipv6, udp};
use crate::sandbox::{PATIENCE, inside, run, sandbox};

fn port(socket: &UdpSocket) -> u16 {
    socket.local_addr().unwrap().port()
}

fn receive(socket: &UdpSocket) -> (String, Vec<u8>) {
    let mut buffer = [0; 65_536];
    let (length, from) = socket
        .recv_from(&mut buffer)
        .unwrap_or_else(|error| panic!("nothing arrived: {error}"));
    (from.to_string(), buffer[..length].to_vec())
}

#[test]
fn a_pod_and_a_peer_talk_past_the_stack() {
    sandbox(|sandbox| {
        let node = Node::new();
        sandbox.settle(&mut sandbox.datapath(), &node.desired());
        let socket = node.socket("10.1.0.2:0");
        socket.send_to(b"question", (PEER, 53)).unwrap();
        let packet = node.sent(POD, PEER, 53).unwrap();
        assert_eq!(packet[8], 63, "one hop");
        assert_eq!(checksum(&packet[..20]), 0);
        assert!(packet.ends_with(b"question"));
        node.tun
            .send(&ipv4(PEER, POD, 64, 17, &udp(53, port(&socket), b"answer")));
        assert_eq!(receive(&socket), ("10.2.0.5:53".to_owned(), b"answer".to_vec()));
        assert_eq!(sandbox.count("pod_egress/tunnel"), 1);
        assert_eq!(sandbox.count("tunnel_ingress/pod"), 1);
        assert_eq!(sandbox.count("tunnel_egress/flow_recorded"), 0);
        assert_eq!(sandbox.count("pod_ingress/flow_recorded"), 0);
    });
}

#[test]
fn ipv6_too() {
    sandbox(|sandbox| {
        let node = Node::new();
        sandbox.settle(&mut sandbox.datapath(), &node.desired());
        let socket = node.socket("[fd00:1::2]:0");
        socket.send_to(b"question", ("fd00:2::5", 53)).unwrap();
        let packet = node
            .tun
            .receive(PATIENCE, |packet| {
                packet[0] >> 4 == 6 && packet.ends_with(b"question")
            })
            .unwrap();
        assert_eq!(packet[7], 63, "one hop");
        let mut answer = udp(53, port(&socket), b"answer");
        let sum = udp6_checksum("fd00:2::5", "fd00:1::2", &answer);
        answer[6..8].copy_from_slice(&sum.to_be_bytes());
        node.tun.send(&ipv6("fd00:2::5", "fd00:1::2", 64, 17, &answer));
        assert_eq!(
            receive(&socket),
            ("[fd00:2::5]:53".to_owned(), b"answer".to_vec())
        );
        assert_eq!(
            (
                sandbox.count("pod_egress/tunnel"),
                sandbox.count("tunnel_ingress/pod")
            ),
            (1, 1)
        );
    });
}

fn udp6_checksum(src: &str, dst: &str, datagram: &[u8]) -> u16 {
    let header = ipv6(src, dst, 0, 17, datagram);
    let length = (datagram.len() as u32).to_be_bytes();
    checksum(&[&header[8..40], &length, &[0, 0, 0, 17], datagram].concat())
}

#[test]
fn what_the_stack_must_cut_arrives_all_the_same_and_does_not_slow_its_flow() {
    sandbox(|sandbox| {
        let node = Node::new();
        sandbox.settle(&mut sandbox.datapath(), &node.desired());
        let socket = node.socket("10.1.0.2:0");
        socket.send_to(&[7; 9000], (PEER, 53)).unwrap();
        let first = node.sent(POD, PEER, 53).unwrap();
        assert_eq!(first[6] & 0x20, 0x20, "more fragments follow");
        assert!(first.len() <= 1400);
        assert!(sandbox.count("pod_egress/fragment") >= 2);
        assert_eq!(
            sandbox.count("tunnel_egress/flow_recorded"),
            0,
            "its flow is plain"
        );
        node.tun
            .send(&ipv4(PEER, POD, 64, 17, &udp(53, port(&socket), b"answer")));
        assert_eq!(receive(&socket).1, b"answer");
        assert_eq!(sandbox.count("tunnel_ingress/pod"), 1);
    });
}

#[test]
fn the_last_hop_is_answered_by_the_node() {
    sandbox(|sandbox| {
        let node = Node::new();
        sandbox.settle(&mut sandbox.datapath(), &node.desired());
        let words = ["-n", "-c", "1", "-t", "1", "-W", "2", PEER];
        let output = inside("pod", move || Command::new("ping").args(words).output().unwrap());
        let text = String::from_utf8_lossy(&output.stdout);
        assert!(
            text.contains("From 10.1.0.1") && text.contains("Time to live exceeded"),
            "{text}"
        );
        assert_eq!(sandbox.count("pod_egress/ttl"), 1);
    });
}

/// kube-proxy's way with a ClusterIP whose backend is a remote pod.
#[test]
fn a_service_with_a_remote_backend_works_and_its_flow_stays_with_the_stack() {
    sandbox(|sandbox| {
        let node = Node::new();
        dnat("ip daddr 10.96.0.10 udp dport 53 dnat to 10.2.0.5:5353");
        sandbox.settle(&mut sandbox.datapath(), &node.desired());
        let socket = node.socket("10.1.0.2:0");
        for round in 0..3 {
            socket.send_to(b"question", ("10.96.0.10", 53)).unwrap();
            node.sent(POD, PEER, 5353).unwrap();
            node.tun
                .send(&ipv4(PEER, POD, 64, 17, &udp(5353, port(&socket), b"answer")));
            assert_eq!(receive(&socket).0, "10.96.0.10:53", "round {round}");
        }
        assert_eq!(sandbox.count("tunnel_egress/flow_recorded"), 1);
        assert_eq!(sandbox.count("tunnel_ingress/stack_flow"), 3);
        // The same pod to the same backend, directly, is another flow, and fast.
        let direct = node.socket("10.1.0.2:0");
        direct.send_to(b"question", (PEER, 5353)).unwrap();
        node.sent(POD, PEER, 5353).unwrap();
        node.tun
            .send(&ipv4(PEER, POD, 64, 17, &udp(5353, port(&direct), b"answer")));
        assert_eq!(receive(&direct).0, "10.2.0.5:5353");
        assert_eq!(sandbox.count("pod_egress/tunnel"), 1);
        assert_eq!(sandbox.count("tunnel_ingress/pod"), 1);
    });
}

/// hostPort: a remote pod asks the node, the node's rules lead to a local pod.
#[test]
fn a_host_port_asked_by_a_remote_pod_works() {
    sandbox(|sandbox| {
        let node = Node::new();
        dnat("ip daddr 10.1.0.1 udp dport 8080 dnat to 10.1.0.2:80");
        sandbox.settle(&mut sandbox.datapath(), &node.desired());
        let server = node.socket("10.1.0.2:80");
        for _ in 0..3 {
            node.tun
                .send(&ipv4(PEER, "10.1.0.1", 64, 17, &udp(4000, 8080, b"question")));
            assert_eq!(receive(&server).0, "10.2.0.5:4000");
            server.send_to(b"answer", (PEER, 4000)).unwrap();
            let answer = node.sent("10.1.0.1", PEER, 4000).unwrap();
            assert_eq!(
                answer[20..22],
                8080u16.to_be_bytes(),
                "the answer comes from the port that was asked"
            );
        }
        assert_eq!(sandbox.count("pod_ingress/flow_recorded"), 1);
        assert_eq!(sandbox.count("pod_egress/stack_flow"), 3);
    });
}

/// The agent comes when the stack translates already: a flow that shows itself while its pod is new stays whole.
#[test]
fn a_flow_that_is_older_than_the_programs_is_not_torn() {
    sandbox(|sandbox| {
        let node = Node::new();
        dnat("ip daddr 10.96.0.10 udp dport 53 dnat to 10.2.0.5:5353");
        let socket = node.socket("10.1.0.2:0");
        let plain = node.socket("10.1.0.2:0");
        let ask = || {
            socket.send_to(b"question", ("10.96.0.10", 53)).unwrap();
            plain.send_to(b"question", (PEER, 53)).unwrap();
            node.sent(POD, PEER, 53).unwrap();
        };
        ask();
        let mut datapath = sandbox.datapath();
        sandbox.pass(&mut datapath, &node.desired());
        ask();
        sandbox.settle(&mut datapath, &node.desired());
        node.tun
            .send(&ipv4(PEER, POD, 64, 17, &udp(5353, port(&socket), b"answer")));
        assert_eq!(receive(&socket).0, "10.96.0.10:53");
        assert_eq!(sandbox.count("tunnel_ingress/stack_flow"), 1);
        node.tun
            .send(&ipv4(PEER, POD, 64, 17, &udp(53, port(&plain), b"answer")));
        assert_eq!(receive(&plain).0, "10.2.0.5:53");
        assert_eq!(
            sandbox.count("tunnel_ingress/pod"),
            1,
            "what nobody translates is fast, old or not"
        );
    });
}

fn dnat(rule: &str) {
    run("nft", "add table ip nat");
    run(
        "nft",
        "add chain ip nat prerouting { type nat hook prerouting priority -100 ; }",
    );
    run("nft", &format!("add rule ip nat prerouting {rule}"));
}
