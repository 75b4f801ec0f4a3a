//! Packets that ask for their route while the agent replaces the tables which they ask.

use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use aya::programs::{SchedClassifier, TestRun, TestRunOptions};
use fabedge_agent::desired::datapath::Entry;
use fabedge_common::abi::Route;

use crate::packets::{ethernet, ipv4, ipv6, udp};
use crate::sandbox::{ifindex, ip, sandbox};
use crate::table::{PEER, PEER6, POD, POD6, context, desired, programs};

/// Packets per call of the kernel.
const BURST: u32 = 10_000;

/// How often the tables are replaced.
const ROUNDS: u32 = 40;

#[test]
fn no_packet_misses_its_route_while_tables_are_replaced() {
    sandbox(|sandbox| {
        ip("link add veth1 type veth peer name veth2");
        ip("link set veth1 up");
        let veth = ifindex("veth1");
        let desired = desired(veth, ifindex("veth2"));
        let mut datapath = sandbox.datapath();
        sandbox.settle(&mut datapath, &desired);

        let route = *desired.routes.values().next().unwrap();
        let datagram = udp(7000, 7000, b"question");
        let packets = [
            ethernet(&ipv4(POD, PEER, 64, 17, &datagram)),
            ethernet(&ipv6(POD6, PEER6, 64, 17, &datagram)),
        ];
        let done = AtomicBool::new(false);
        let asked: u64 = thread::scope(|scope| {
            let ask = packets.map(|packet| {
                let mut ebpf = programs(&sandbox.pins);
                let done = &done;
                scope.spawn(move || {
                    let program = ebpf.program_mut(Entry::PodEgress.name()).unwrap();
                    let program: &mut SchedClassifier = program.try_into().unwrap();
                    let mut asked = 0;
                    while !done.load(Ordering::Relaxed) {
                        program
                            .test_run(TestRunOptions {
                                data_in: Some(&packet),
                                ctx_in: Some(&context(veth, 0)),
                                repeat: BURST,
                                ..TestRunOptions::default()
                            })
                            .unwrap();
                        asked += u64::from(BURST);
                    }
                    asked
                })
            });
            for round in 0..ROUNDS {
                let mut desired = desired.clone();
                // With and without blocks; prefixes within those that are asked for come and go.
                for number in 0..round * 397 % 3000 {
                    let (high, low) = (1 + number / 250, number % 250);
                    for net in [
                        format!("10.2.{high}.{low}/32"),
                        format!("fd00:2::{high:x}:{low:x}/128"),
                    ] {
                        let reqid = route.reqid + 1 + number;
                        desired
                            .routes
                            .insert(net.parse().unwrap(), Route { reqid, ..route });
                    }
                }
                for outcome in sandbox.pass(&mut datapath, &desired) {
                    if outcome.result.is_err() {
                        // Else nobody would hear of it.
                        done.store(true, Ordering::Relaxed);
                    }
                    outcome.result.unwrap();
                }
            }
            done.store(true, Ordering::Relaxed);
            ask.map(|thread| thread.join().unwrap()).iter().sum()
        });

        assert_eq!(sandbox.count("pod_egress/no_route"), 0);
        // In a burst it is one packet, which loses a hop each time. Tests may interrupt each other, and a count be lost.
        let found = sandbox.count("pod_egress/tunnel") + sandbox.count("pod_egress/ttl");
        assert!(
            found <= asked && found + asked / 1000 >= asked,
            "{found} of {asked} found"
        );
        assert!(asked >= u64::from(ROUNDS * BURST), "{asked} asked");
    });
}
