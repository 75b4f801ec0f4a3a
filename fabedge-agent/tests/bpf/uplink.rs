//! ESP on an uplink: which packets get which verdict, on which CPU they come out, and in which order; what else may be on
//! the uplink, and what is left there.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddrV4};
use std::os::fd::OwnedFd;
use std::thread;
use std::time::{Duration, Instant};

use aya::EbpfLoader;
use aya::programs::xdp::XdpMode;
use aya::programs::{TestRun, TestRunOptions, Xdp};
use fabedge_agent::desired::datapath::{Datapath as Desired, Entry, Hook};
use fabedge_agent::desired::spread::{Spread, assign};
use fabedge_common::abi::{Program, Reason, SaCpu, SaId, mapped};
use rustix::net::{self, AddressFamily, RecvFlags, SendFlags, SocketType};
use rustix::thread::{CpuSet, sched_setaffinity};

use crate::packets::{ethernet, ipv4, ipv6, udp, with};
use crate::sandbox::{OBJECT, PATIENCE, Sandbox, ifindex, inside, ip, mac, run, sandbox};
use crate::table::programs;

const HERE: &str = "192.0.2.1";
const HERE6: &str = "2001:db8::1";
const EDGE: &str = "192.0.2.7";
const EDGE6: &str = "2001:db8::7";
const ELSEWHERE: &str = "192.0.2.9";

/// `XDP_DROP`, `XDP_PASS`, `XDP_REDIRECT` of linux/bpf.h.
const DROP: u32 = 1;
const PASS: u32 = 2;
const REDIRECT: u32 = 4;

/// SPI of the SA with peer `number`.
fn spi(number: u32) -> u32 {
    0xc000_0000 + number
}

fn id(destination: [u8; 16], spi: u32) -> SaId {
    SaId {
        destination,
        spi: spi.to_be_bytes(),
    }
}

/// A connector with an uplink to an edge in a namespace of its own, and two SAs with each of ten peers.
struct Connector {
    uplink: u32,
}

impl Connector {
    fn new() -> Self {
        ip("netns add edge");
        ip("link add eth0 type veth peer name eth0 netns edge");
        ip("address add 192.0.2.1/24 dev eth0");
        ip("address add 2001:db8::1/64 dev eth0 nodad");
        ip("link set eth0 up");
        ip("-n edge address add 192.0.2.7/24 dev eth0");
        // Nothing but what tests send leaves the edge, and so all of it on their CPU: what the kernel sends of its own
        // accord would have another CPU receive, and packets overtake each other.
        ip("-n edge link set eth0 addrgenmode none");
        ip("-n edge link set eth0 up");
        let [a, b, c, d, e, f] = mac("eth0", None);
        ip(&format!(
            "-n edge neighbour add {HERE} lladdr {a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{f:02x} dev eth0 nud permanent"
        ));
        Self {
            uplink: ifindex("eth0"),
        }
    }

    fn desired(&self) -> Desired {
        let here = [
            mapped(HERE.parse::<Ipv4Addr>().unwrap().octets()),
            HERE6.parse::<Ipv6Addr>().unwrap().octets(),
        ];
        let sas = here.into_iter().flat_map(|here| {
            let peers = (1..=10).map(move |number| (id(here, spi(number)), number));
            peers.chain([(id(here, 0), 0)])
        });
        Desired {
            enabled: true,
            hooks: BTreeSet::from([Hook {
                ifindex: self.uplink,
                entry: Entry::UplinkXdp,
                device: "eth0".to_owned(),
            }]),
            spread: Spread {
                cpus: BTreeSet::from([0, 1]),
                sas: sas.collect(),
                not: BTreeMap::new(),
            },
            ..Desired::default()
        }
    }
}

/// The CPU that the agent gives each of these peers.
fn assigned(desired: &Desired) -> BTreeMap<u32, u32> {
    let sas = assign(&desired.spread.sas, &BTreeMap::new(), &desired.spread.cpus);
    sas.values()
        .filter(|SaCpu { reqid, .. }| *reqid != 0)
        .map(|sa| (sa.reqid, sa.cpu))
        .collect()
}

/// Has the calling thread run on this CPU.
fn stay_on(cpu: usize) {
    let mut cpus = CpuSet::new();
    cpus.set(cpu);
    sched_setaffinity(None, &cpus).unwrap();
}

fn esp(spi: u32, sequence: u32) -> Vec<u8> {
    let mut bytes = [spi, sequence].map(u32::to_be_bytes).concat();
    bytes.resize(100, 7);
    bytes
}

#[test]
fn each_packet_gets_its_verdict_and_its_counter() {
    sandbox(|sandbox| {
        let connector = Connector::new();
        let desired = connector.desired();
        sandbox.settle(&mut sandbox.datapath(), &desired);
        let mut ebpf = programs(&sandbox.pins);
        let cpus = assigned(&desired);
        let there = *cpus.iter().find(|(_, cpu)| **cpu == 1).unwrap().0;
        let here = *cpus.iter().find(|(_, cpu)| **cpu == 0).unwrap().0;
        stay_on(0);
        let short = |spi: u32| [&spi.to_be_bytes()[..], &[0; 4]].concat();
        let natt = |payload: &[u8]| udp(61_000, 4500, payload);
        let four = |protocol, payload: &[u8]| ipv4(EDGE, HERE, 64, protocol, payload);
        let six = |protocol, payload: &[u8]| ipv6(EDGE6, HERE6, 64, protocol, payload);
        let other = esp(spi(there), 1);
        for (name, packet, verdict, reason) in [
            ("ESP", four(50, &other), REDIRECT, Some("other_cpu")),
            ("ESP, IPv6", six(50, &other), REDIRECT, Some("other_cpu")),
            ("ESP in UDP", four(17, &natt(&other)), REDIRECT, Some("other_cpu")),
            (
                "ESP in UDP, IPv6",
                six(17, &natt(&other)),
                REDIRECT,
                Some("other_cpu"),
            ),
            (
                "for this CPU",
                four(50, &esp(spi(here), 1)),
                PASS,
                Some("this_cpu"),
            ),
            ("unknown", four(50, &esp(spi(11), 1)), PASS, Some("unknown_sa")),
            (
                "too short",
                four(50, &short(spi(there))),
                DROP,
                Some("malformed_esp"),
            ),
            ("reserved", four(50, &esp(200, 1)), DROP, Some("malformed_esp")),
            (
                "reserved, in UDP",
                six(17, &natt(&esp(200, 1))),
                DROP,
                Some("malformed_esp"),
            ),
            (
                "cut off",
                four(50, &other)[..60].to_vec(),
                DROP,
                Some("malformed_esp"),
            ),
            (
                "to somebody else",
                ipv4(EDGE, ELSEWHERE, 64, 50, &other),
                PASS,
                None,
            ),
            (
                "bad, to somebody else",
                ipv4(EDGE, ELSEWHERE, 64, 50, &short(3)),
                PASS,
                None,
            ),
            ("IKE", four(17, &natt(&[0; 40])), PASS, None),
            ("keeps NAT awake", four(17, &natt(&[0xff])), PASS, None),
            ("other UDP", four(17, &udp(61_000, 4501, &other)), PASS, None),
            ("TCP", four(6, &other), PASS, None),
            ("a fragment", with(four(50, &other), 6, &[0x20, 0]), PASS, None),
            ("options", with(four(50, &other), 0, &[0x46]), PASS, None),
        ] {
            let all = || -> BTreeMap<&str, u64> {
                ["other_cpu", "this_cpu", "unknown_sa", "malformed_esp"]
                    .map(|reason| (reason, sandbox.count(&format!("uplink_xdp/{reason}"))))
                    .into()
            };
            let mut expected = all();
            if let Some(reason) = reason {
                *expected.get_mut(reason).unwrap() += 1;
            }
            let program: &mut Xdp = ebpf.program_mut("uplink_xdp").unwrap().try_into().unwrap();
            let frame = ethernet(&packet);
            let ran = program.test_run(TestRunOptions {
                data_in: Some(&frame),
                ..TestRunOptions::default()
            });
            assert_eq!(ran.unwrap().return_value, verdict, "{name}");
            assert_eq!(all(), expected, "{name}");
        }
    });
}

/// Packets that came out of the queue of each CPU.
fn arrived(sandbox: &Sandbox) -> Vec<u64> {
    let path = sandbox.pins.join("stats");
    let key = Reason::Arrived.index(Program::UplinkXdp).to_le_bytes();
    let [a, b, c, d] = key;
    let words = format!("-j map lookup pinned {} key {a} {b} {c} {d}", path.display());
    let entry: serde_json::Value = serde_json::from_str(&run("bpftool", &words)).unwrap();
    entry["formatted"]["values"]
        .as_array()
        .unwrap()
        .iter()
        .map(|cpu| cpu["value"]["packets"].as_u64().unwrap())
        .collect()
}

/// A raw socket for ESP: sends what an edge's kernel would, receives what the node's stack gets.
fn raw() -> OwnedFd {
    net::socket(AddressFamily::INET, SocketType::RAW, Some(net::ipproto::ESP)).unwrap()
}

/// SPI and sequence number of the next packet.
fn next(socket: &OwnedFd) -> Option<(u32, u32)> {
    let mut packet = [0; 256];
    let (length, _) = net::recv(socket, &mut packet, RecvFlags::DONTWAIT).ok()?;
    let word = |at: usize| u32::from_be_bytes(packet[at..at + 4].try_into().unwrap());
    assert_eq!(length, 120);
    Some((word(20), word(24)))
}

/// Has the edge send packets with each of ten SAs in turns; the sequence numbers of each, in the order in which the stack
/// got them.
fn exchange(each: u32, mut meanwhile: impl FnMut(u32)) -> BTreeMap<u32, Vec<u32>> {
    let sender = inside("edge", raw);
    let receiver = raw();
    // A packet that XDP saw takes a page or more there.
    net::sockopt::set_socket_recv_buffer_size_force(&receiver, 16 << 20).unwrap();
    let to = SocketAddrV4::new(HERE.parse().unwrap(), 0);
    let mut seen: BTreeMap<u32, Vec<u32>> = BTreeMap::new();
    let mut taken = 0;
    // Waits until there are at most so many on the way: on a busy machine a queue would be full.
    let mut settle = |sent: u32, most: u32| {
        let deadline = Instant::now() + PATIENCE;
        loop {
            while let Some((spi, sequence)) = next(&receiver) {
                seen.entry(spi).or_default().push(sequence);
                taken += 1;
            }
            if sent <= taken + most || Instant::now() > deadline {
                return;
            }
            thread::sleep(Duration::from_millis(1));
        }
    };
    for sequence in 0..each {
        for number in 1..=10 {
            let packet = esp(spi(number), sequence);
            net::sendto(&sender, &packet, SendFlags::empty(), &to).unwrap();
        }
        settle((sequence + 1) * 10, 100);
        meanwhile(sequence);
    }
    settle(each * 10, 0);
    seen
}

fn nothing_is_missing(seen: &BTreeMap<u32, Vec<u32>>, each: u32) {
    for number in 1..=10 {
        let order = &seen[&spi(number)];
        assert!(order.is_sorted(), "SA {number}: {order:?}");
        let missing: Vec<u32> = (0..each).filter(|sequence| !order.contains(sequence)).collect();
        assert_eq!(missing, [0; 0], "SA {number}");
        assert_eq!(order.len(), each as usize, "SA {number}");
    }
}

#[test]
fn packets_come_out_on_the_cpu_of_their_sa_and_in_order() {
    sandbox(|sandbox| {
        const EACH: u32 = 500;
        let connector = Connector::new();
        let desired = connector.desired();
        sandbox.settle(&mut sandbox.datapath(), &desired);
        let there = assigned(&desired).values().filter(|cpu| **cpu == 1).count() as u64;
        assert_eq!(there, 5, "half of them");
        stay_on(0);
        nothing_is_missing(&exchange(EACH, |_| {}), EACH);
        let packets = there * u64::from(EACH);
        assert_eq!(sandbox.count("uplink_xdp/other_cpu"), packets);
        assert_eq!(sandbox.count("uplink_xdp/this_cpu"), packets);
        assert_eq!(arrived(sandbox)[..2], [0, packets]);
    });
}

#[test]
fn a_new_agent_takes_over_without_losing_or_overtaking_a_packet() {
    sandbox(|sandbox| {
        const EACH: u32 = 300;
        let connector = Connector::new();
        let desired = connector.desired();
        sandbox.settle(&mut sandbox.datapath(), &desired);
        let first = program(&connector);
        stay_on(0);
        let seen = exchange(EACH, |sequence| {
            if sequence % 100 == 50 {
                let mut next = sandbox.datapath();
                sandbox.settle(&mut next, &desired);
                assert_eq!(next.spread()["eth0"], "over CPUs 0, 1");
            }
        });
        nothing_is_missing(&seen, EACH);
        assert_ne!(program(&connector), first, "another agent's program");
        assert_eq!(arrived(sandbox)[1], 5 * u64::from(EACH), "and none went past it");
    });
}

/// Id of the XDP program on the uplink.
fn program(connector: &Connector) -> Option<u64> {
    let links: serde_json::Value = serde_json::from_str(&run("ip", "-j link show dev eth0")).unwrap();
    assert_eq!(links[0]["ifindex"], connector.uplink);
    links[0]["xdp"]["prog"]["id"].as_u64()
}

#[test]
fn an_sa_that_goes_and_a_cpu_that_goes_are_forgotten_and_cleanup_leaves_nothing() {
    sandbox(|sandbox| {
        let connector = Connector::new();
        let mut desired = connector.desired();
        let mut datapath = sandbox.datapath();
        sandbox.settle(&mut datapath, &desired);
        assert_eq!(sandbox.pass(&mut datapath, &desired).len(), 0, "a quiet pass");
        desired.spread.sas.retain(|_, number| *number < 3);
        desired.spread.cpus.remove(&1);
        sandbox.settle(&mut datapath, &desired);
        let dump = |name: &str| -> serde_json::Value {
            let path = sandbox.pins.join(name);
            serde_json::from_str(&run("bpftool", &format!("-j map dump pinned {}", path.display()))).unwrap()
        };
        let sas = dump("sas");
        assert_eq!(sas.as_array().unwrap().len(), 6, "{sas}");
        for sa in sas.as_array().unwrap() {
            assert_eq!(sa["formatted"]["value"]["cpu"], 0, "{sa}");
        }
        drop(datapath);
        let mut cleaner = sandbox.datapath();
        sandbox.settle(&mut cleaner, &Desired::default());
        assert!(!sandbox.pins.exists());
        let gone = (0..500).any(|_| {
            thread::sleep(Duration::from_millis(20));
            program(&connector).is_none()
        });
        assert!(gone);
    });
}

#[test]
fn somebody_elses_xdp_program_is_named_and_stays() {
    sandbox(|sandbox| {
        let connector = Connector::new();
        let mut theirs = EbpfLoader::new().load(OBJECT).unwrap();
        let xdp: &mut Xdp = theirs.program_mut("uplink_xdp").unwrap().try_into().unwrap();
        xdp.load().unwrap();
        xdp.attach("eth0", XdpMode::Skb).unwrap();
        let before = program(&connector);
        let mut datapath = sandbox.datapath();
        sandbox.settle(&mut datapath, &connector.desired());
        let id = before.unwrap();
        assert_eq!(
            datapath.spread()["eth0"],
            format!("not spread: it has an XDP program of somebody else (id {id})")
        );
        assert_eq!(program(&connector), before);
        // Once they leave it is ours.
        drop(theirs);
        let taken = (0..500).any(|_| {
            thread::sleep(Duration::from_millis(20));
            sandbox.settle(&mut datapath, &connector.desired());
            datapath.spread()["eth0"] == "over CPUs 0, 1"
        });
        assert!(taken, "{:?}", datapath.spread());
    });
}

#[test]
fn a_device_without_xdp_in_its_driver_goes_without() {
    sandbox(|sandbox| {
        ip("link add br0 type bridge");
        ip("link set br0 up");
        let mut desired = Connector::new().desired();
        desired.hooks = BTreeSet::from([Hook {
            ifindex: ifindex("br0"),
            entry: Entry::UplinkXdp,
            device: "br0".to_owned(),
        }]);
        let mut datapath = sandbox.datapath();
        sandbox.settle(&mut datapath, &desired);
        assert_eq!(
            sandbox.pass(&mut datapath, &desired).len(),
            0,
            "it is not tried again"
        );
        let how = &datapath.spread()["br0"];
        assert!(how.starts_with("not spread: no XDP in its driver: "), "{how}");
    });
}
