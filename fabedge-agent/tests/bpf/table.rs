//! Packet in, verdict, packet out, counter: each program over tables of packets.

use std::collections::BTreeMap;
use std::path::Path;

use aya::programs::{Program, SchedClassifier, TestRun, TestRunOptions};
use aya::{Ebpf, EbpfLoader};
use fabedge_agent::desired::datapath::{Datapath as Desired, Entry};
use fabedge_common::abi::{self, Peer, Pod, ROUTE_STACK, ROUTE_TUN, Route};

use crate::packets::{ethernet, ipv4, ipv6, udp, with};
use crate::sandbox::{OBJECT, Sandbox, ifindex, ip, sandbox};

/// `TC_ACT_UNSPEC`, `TC_ACT_SHOT`, `TC_ACT_REDIRECT` of linux/pkt_cls.h.
const STACK: u32 = u32::MAX;
const DROP: u32 = 2;
const REDIRECT: u32 = 7;

pub const POD: &str = "10.1.0.2";
pub const POD6: &str = "fd00:1::2";
pub const PEER: &str = "10.2.0.5";
pub const PEER6: &str = "fd00:2::5";
const SERVICE: &str = "10.96.0.10";
const ELSEWHERE: &str = "192.0.2.1";

const POD_MAC: [u8; 6] = [6, 6, 6, 6, 6, 6];
const GATEWAY_MAC: [u8; 6] = [4, 4, 4, 4, 4, 4];
const REQID: u32 = 0x4000_0007;
const MTU: u32 = 1400;

pub fn desired(veth: u32, tunnel: u32) -> Desired {
    let route = |flags| Route {
        kind: ROUTE_TUN,
        ifindex: tunnel,
        reqid: REQID,
        flags,
        mtu: MTU,
    };
    let pod = Pod {
        ifindex: veth,
        flags: 0,
        pod_mac: POD_MAC,
        gateway_mac: GATEWAY_MAC,
    };
    Desired {
        enabled: true,
        routes: BTreeMap::from([
            ("10.2.0.0/16".parse().unwrap(), route(0)),
            ("fd00:2::/64".parse().unwrap(), route(0)),
            ("10.96.0.0/16".parse().unwrap(), route(ROUTE_STACK)),
        ]),
        pods: BTreeMap::from([(POD.parse().unwrap(), pod), (POD6.parse().unwrap(), pod)]),
        peers: BTreeMap::from([(REQID, "fabedge.peer".to_owned())]),
        ..Desired::default()
    }
}

/// The programs on the maps that the agent pinned, on a device that stands for a pod's veth.
struct Bench {
    ebpf: Ebpf,
    veth: u32,
}

struct Ran {
    verdict: u32,
    packet: Vec<u8>,
}

impl Bench {
    fn new(sandbox: &Sandbox) -> Self {
        ip("link add veth1 type veth peer name veth2");
        ip("link set veth1 up");
        let veth = ifindex("veth1");
        let tunnel = ifindex("veth2");
        sandbox.settle(&mut sandbox.datapath(), &desired(veth, tunnel));
        Self {
            ebpf: programs(&sandbox.pins),
            veth,
        }
    }

    fn run(&mut self, entry: Entry, packet: &[u8], gso_size: u32) -> Ran {
        let program: &mut SchedClassifier = self.ebpf.program_mut(entry.name()).unwrap().try_into().unwrap();
        let context = context(self.veth, gso_size);
        let mut out = vec![0; packet.len() + 64];
        let result = program
            .test_run(TestRunOptions {
                data_in: Some(packet),
                data_out: Some(&mut out),
                ctx_in: Some(&context),
                ..TestRunOptions::default()
            })
            .unwrap_or_else(|error| panic!("{} of {} bytes: {error}", entry.name(), packet.len()));
        out.truncate(result.data_size_out as usize);
        Ran {
            verdict: result.return_value,
            packet: out,
        }
    }
}

pub fn programs(pins: &Path) -> Ebpf {
    let mut loader = EbpfLoader::new();
    for name in abi::map::ALL {
        loader.map_pin_path(name, pins.join(name));
    }
    let mut ebpf = loader.load(OBJECT).unwrap();
    for (_, program) in ebpf.programs_mut() {
        match program {
            Program::SchedClassifier(program) => program.load().unwrap(),
            Program::Xdp(program) => program.load().unwrap(),
            other => panic!("what is {other:?}?"),
        }
    }
    ebpf
}

/// `struct __sk_buff` with what the kernel lets a test set: `ifindex` (offset 40), `gso_segs` (164), `gso_size` (176).
pub fn context(ifindex: u32, gso_size: u32) -> [u8; 192] {
    let mut context = [0; 192];
    context[40..44].copy_from_slice(&ifindex.to_ne_bytes());
    if gso_size != 0 {
        context[164..168].copy_from_slice(&3u32.to_ne_bytes());
        context[176..180].copy_from_slice(&gso_size.to_ne_bytes());
    }
    context
}

/// What leaves a router: one hop less, and a right checksum.
fn routed(packet: &[u8]) -> Vec<u8> {
    let (offset, hops) = if packet[0] >> 4 == 6 {
        (7, packet[7])
    } else {
        (8, packet[8])
    };
    with(packet.to_vec(), offset, &[hops - 1])
}

struct Row {
    name: &'static str,
    packet: Vec<u8>,
    gso_size: u32,
    verdict: u32,
    reason: &'static str,
}

fn row(name: &'static str, packet: Vec<u8>, verdict: u32, reason: &'static str) -> Row {
    Row {
        name,
        packet,
        gso_size: 0,
        verdict,
        reason,
    }
}

fn check(
    sandbox: &Sandbox,
    bench: &mut Bench,
    entry: Entry,
    label: &str,
    rows: Vec<Row>,
    fast: impl Fn(&[u8]) -> Vec<u8>,
) {
    for Row {
        name,
        packet,
        gso_size,
        verdict,
        reason,
    } in rows
    {
        let counter = format!("{label}/{reason}");
        let before = sandbox.count(&counter);
        let frame = ethernet(&packet);
        let ran = bench.run(entry, &frame, gso_size);
        assert_eq!(ran.verdict, verdict, "{name}: verdict");
        let expected = if verdict == REDIRECT { fast(&packet) } else { frame };
        assert_eq!(ran.packet, expected, "{name}: packet out");
        let packets = if gso_size == 0 { 1 } else { 3 };
        assert_eq!(
            sandbox.count(&counter) - before,
            packets,
            "{name}: counted as {counter}"
        );
    }
}

#[test]
fn pod_egress() {
    sandbox(|sandbox| {
        let mut bench = Bench::new(sandbox);
        let small = udp(1000, 2000, b"hello");
        let of = |size: usize| udp(1000, 2000, &vec![0; size]);
        let plain = || ipv4(POD, PEER, 64, 17, &small);
        let plain6 = || ipv6(POD6, PEER6, 64, 17, &small);
        let mut rows = vec![
            row("to a peer", plain(), REDIRECT, "tunnel"),
            row("to a peer, IPv6", plain6(), REDIRECT, "tunnel"),
            row(
                "ping",
                ipv4(POD, PEER, 64, 1, &[8, 0, 0, 0, 1, 2, 0, 1]),
                REDIRECT,
                "tunnel",
            ),
            row(
                "ping, IPv6",
                ipv6(POD6, PEER6, 64, 58, &[128, 0, 0, 0, 1, 2, 0, 1]),
                REDIRECT,
                "tunnel",
            ),
            row("GRE", ipv4(POD, PEER, 64, 47, &[0; 8]), REDIRECT, "tunnel"),
            row(
                "as large as fits",
                ipv4(POD, PEER, 64, 17, &of(1400 - 28)),
                REDIRECT,
                "tunnel",
            ),
            row(
                "one byte more",
                ipv4(POD, PEER, 64, 17, &of(1401 - 28)),
                STACK,
                "over_mtu",
            ),
            row(
                "one byte more, IPv6",
                ipv6(POD6, PEER6, 64, 17, &of(1401 - 48)),
                STACK,
                "over_mtu",
            ),
            row(
                "elsewhere",
                ipv4(POD, ELSEWHERE, 64, 17, &small),
                STACK,
                "no_route",
            ),
            row(
                "to a service",
                ipv4(POD, SERVICE, 64, 17, &small),
                STACK,
                "stack_prefix",
            ),
            row(
                "not this pod's address",
                ipv4("10.1.0.3", PEER, 64, 17, &small),
                STACK,
                "foreign_source",
            ),
            row(
                "a peer's own address",
                ipv4("10.2.0.9", PEER, 64, 17, &small),
                STACK,
                "foreign_source",
            ),
            row("last hop", ipv4(POD, PEER, 1, 17, &small), STACK, "ttl"),
            row("last hop, IPv6", ipv6(POD6, PEER6, 1, 17, &small), STACK, "ttl"),
            row("no hop", ipv4(POD, PEER, 0, 17, &small), STACK, "ttl"),
            row(
                "last but one hop",
                ipv4(POD, PEER, 2, 17, &small),
                REDIRECT,
                "tunnel",
            ),
            row("first fragment", with(plain(), 6, &[0x20, 0]), STACK, "fragment"),
            row("later fragment", with(plain(), 6, &[0, 100]), STACK, "fragment"),
            row(
                "fragment, IPv6",
                ipv6(POD6, PEER6, 64, 44, &[17, 0, 0, 1, 0, 0, 0, 1]),
                STACK,
                "fragment",
            ),
            row("options", with(plain(), 0, &[0x46]), STACK, "ip_options"),
            row(
                "hop-by-hop options",
                ipv6(POD6, PEER6, 64, 0, &[17, 0, 1, 4, 0, 0, 0, 0]),
                STACK,
                "ip_options",
            ),
            row(
                "multicast",
                ipv4(POD, "224.0.0.251", 64, 17, &small),
                STACK,
                "multicast",
            ),
            row(
                "broadcast",
                ipv4(POD, "255.255.255.255", 64, 17, &small),
                STACK,
                "multicast",
            ),
            row(
                "multicast, IPv6",
                ipv6(POD6, "ff02::1", 64, 17, &small),
                STACK,
                "multicast",
            ),
            row(
                "unreachable",
                ipv4(POD, PEER, 64, 1, &[3, 1, 0, 0, 0, 0, 0, 0]),
                STACK,
                "icmp_control",
            ),
            row(
                "too big",
                ipv6(POD6, PEER6, 64, 58, &[2, 0, 0, 0, 0, 0, 5, 0]),
                STACK,
                "icmp_control",
            ),
            row("header too short", with(plain(), 0, &[0x44]), STACK, "malformed"),
            row("no ports", ipv4(POD, PEER, 64, 17, &[0, 1]), STACK, "malformed"),
        ];
        let segment = |mss: u32, verdict, reason| {
            let mut header = vec![0; 32];
            header[12] = 8 << 4;
            header.resize(3000, 0);
            Row {
                name: "segments",
                packet: ipv4(POD, PEER, 64, 6, &header),
                gso_size: mss,
                verdict,
                reason,
            }
        };
        rows.push(segment(MTU - 52, REDIRECT, "tunnel"));
        rows.push(segment(MTU - 51, STACK, "over_mtu"));
        check(
            sandbox,
            &mut bench,
            Entry::PodEgress,
            "pod_egress",
            rows,
            |packet| ethernet(&routed(packet)),
        );

        let mut arp = vec![0; 60];
        arp[12..14].copy_from_slice(&[0x08, 0x06]);
        assert_eq!(bench.run(Entry::PodEgress, &arp, 0).verdict, STACK);
        assert_eq!(sandbox.count("pod_egress/not_ip"), 1);
    });
}

#[test]
fn tun_ingress() {
    sandbox(|sandbox| {
        let mut bench = Bench::new(sandbox);
        let small = udp(2000, 1000, b"hello");
        let plain = || ipv4(PEER, POD, 64, 17, &small);
        let rows = vec![
            row("to a pod", plain(), REDIRECT, "pod"),
            row(
                "to a pod, IPv6",
                ipv6(PEER6, POD6, 64, 17, &small),
                REDIRECT,
                "pod",
            ),
            row(
                "large",
                ipv4(PEER, POD, 64, 17, &udp(1, 2, &[0; 1372])),
                REDIRECT,
                "pod",
            ),
            row(
                "ping",
                ipv4(PEER, POD, 64, 1, &[0, 0, 0, 0, 1, 2, 0, 1]),
                REDIRECT,
                "pod",
            ),
            row(
                "from nobody",
                ipv4(ELSEWHERE, POD, 64, 17, &small),
                STACK,
                "unknown_source",
            ),
            row(
                "from a service",
                ipv4(SERVICE, POD, 64, 17, &small),
                STACK,
                "stack_prefix",
            ),
            row(
                "to the node",
                ipv4(PEER, "10.1.0.1", 64, 17, &small),
                STACK,
                "no_pod",
            ),
            row("last hop", ipv4(PEER, POD, 1, 17, &small), STACK, "ttl"),
            row("fragment", with(plain(), 6, &[0x20, 0]), STACK, "fragment"),
            row("options", with(plain(), 0, &[0x46]), STACK, "ip_options"),
            row(
                "multicast",
                ipv4(PEER, "224.0.0.251", 64, 17, &small),
                STACK,
                "multicast",
            ),
            row(
                "unreachable",
                ipv4(PEER, POD, 64, 1, &[3, 1, 0, 0, 0, 0, 0, 0]),
                STACK,
                "icmp_control",
            ),
        ];
        check(
            sandbox,
            &mut bench,
            Entry::TunIngress,
            "tunnel_ingress",
            rows,
            |packet| {
                let frame = ethernet(&routed(packet));
                [&POD_MAC[..], &GATEWAY_MAC, &frame[12..]].concat()
            },
        );
    });
}

#[test]
fn tunnel_ingress_wants_an_sa() {
    sandbox(|sandbox| {
        let mut bench = Bench::new(sandbox);
        let small = udp(2000, 1000, b"hello");
        // `BPF_PROG_TEST_RUN` cannot give a packet an SA, so all it can have is none.
        let rows = vec![
            row("no SA", ipv4(PEER, POD, 64, 17, &small), DROP, "no_sa"),
            row("no SA, IPv6", ipv6(PEER6, POD6, 64, 17, &small), DROP, "no_sa"),
            row(
                "no SA, from nobody",
                ipv4(ELSEWHERE, POD, 64, 17, &small),
                DROP,
                "no_sa",
            ),
        ];
        check(
            sandbox,
            &mut bench,
            Entry::TunnelIngress,
            "tunnel_ingress",
            rows,
            ethernet,
        );
    });
}

#[test]
fn flows_that_the_stack_carried_stay_with_it_both_ways() {
    sandbox(|sandbox| {
        let mut bench = Bench::new(sandbox);
        let out = ethernet(&ipv4(POD, PEER, 64, 17, &udp(1000, 2000, b"")));
        let back = ethernet(&ipv4(PEER, POD, 64, 17, &udp(2000, 1000, b"")));
        let other = ethernet(&ipv4(PEER, POD, 64, 17, &udp(2000, 1001, b"")));
        assert_eq!(bench.run(Entry::TunIngress, &back, 0).verdict, REDIRECT);

        assert_eq!(bench.run(Entry::TunnelEgress, &out, 0).verdict, STACK);
        assert_eq!(sandbox.count("tunnel_egress/flow_recorded"), 1);
        assert_eq!(bench.run(Entry::TunnelEgress, &out, 0).verdict, STACK);
        assert_eq!(sandbox.count("tunnel_egress/flow_recorded"), 1, "once is enough");
        assert_eq!(bench.run(Entry::TunIngress, &back, 0).verdict, STACK);
        assert_eq!(sandbox.count("tunnel_ingress/stack_flow"), 1);
        assert_eq!(
            bench.run(Entry::TunIngress, &other, 0).verdict,
            REDIRECT,
            "another flow"
        );

        assert_eq!(bench.run(Entry::PodEgress, &out, 0).verdict, REDIRECT);
        assert_eq!(bench.run(Entry::PodIngress, &back, 0).verdict, STACK);
        assert_eq!(sandbox.count("pod_ingress/flow_recorded"), 1);
        assert_eq!(bench.run(Entry::PodEgress, &out, 0).verdict, STACK);
        assert_eq!(sandbox.count("pod_egress/stack_flow"), 1);

        let out6 = ethernet(&ipv6(POD6, PEER6, 64, 6, &[&[1, 2, 3, 4][..], &[0; 16]].concat()));
        let back6 = ethernet(&ipv6(PEER6, POD6, 64, 6, &[&[3, 4, 1, 2][..], &[0; 16]].concat()));
        assert_eq!(bench.run(Entry::TunIngress, &back6, 0).verdict, REDIRECT);
        assert_eq!(bench.run(Entry::TunnelEgress, &out6, 0).verdict, STACK);
        assert_eq!(bench.run(Entry::TunIngress, &back6, 0).verdict, STACK);

        let tables = fabedge_agent::datapath::read::tables_in(&sandbox.pins).unwrap();
        assert_eq!((tables.stack_flows, tables.stack_flows_evicted), (3, 0));
    });
}

#[test]
fn peers_are_counted_both_ways_whichever_path_a_packet_takes() {
    sandbox(|sandbox| {
        let mut bench = Bench::new(sandbox);
        let peer = || {
            fabedge_agent::datapath::read::counters_in(&sandbox.pins)
                .unwrap()
                .peers[&REQID]
        };
        assert_eq!(peer(), Peer::default());
        let out = ethernet(&ipv4(POD, PEER, 64, 17, &udp(1, 2, &[0; 72])));
        let back = ethernet(&ipv4(PEER, POD, 64, 17, &udp(2, 1, &[0; 22])));
        let last_hop = ethernet(&ipv4(PEER, POD, 1, 17, &udp(2, 1, &[])));
        bench.run(Entry::PodEgress, &out, 0);
        bench.run(Entry::TunnelEgress, &out, 0);
        bench.run(Entry::TunIngress, &last_hop, 0);
        bench.run(Entry::TunIngress, &back, 0);
        assert_eq!(
            peer(),
            Peer {
                tx_packets: 2,
                tx_bytes: 200,
                rx_packets: 2,
                rx_bytes: 78
            }
        );
    });
}
