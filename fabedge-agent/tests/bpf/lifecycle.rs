//! Loading, restarting, migrating, leaving; and what others have on the same hooks.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use aya::EbpfLoader;
use aya::programs::{SchedClassifier, TcAttachType};
use fabedge_agent::datapath::{Datapath, read};
use fabedge_agent::desired::datapath::Datapath as Desired;
use fabedge_common::abi;

use crate::node::{Node, PEER, POD, REQID};
use crate::packets::{ipv4, udp};
use crate::sandbox::{OBJECT, Sandbox, ifindex, ip, run, sandbox};

/// Answers each datagram of a stream that runs while `body` does; how many of how many came back.
fn under_traffic(node: &Node, body: impl FnOnce()) -> (u32, u32) {
    let socket = Arc::new(node.socket("10.1.0.2:7000"));
    let done = Arc::new(AtomicBool::new(false));
    let sender = {
        let (socket, done) = (Arc::clone(&socket), Arc::clone(&done));
        thread::spawn(move || {
            let mut sent = 0;
            while !done.load(Ordering::Relaxed) {
                socket.send_to(b"question", (PEER, 7000)).unwrap();
                sent += 1;
                thread::sleep(Duration::from_millis(1));
            }
            sent
        })
    };
    let receiver = {
        let (socket, done) = (Arc::clone(&socket), Arc::clone(&done));
        thread::spawn(move || {
            // Longer than the machine may be busy with something else.
            socket.set_read_timeout(Some(Duration::from_secs(2))).unwrap();
            let mut received = 0;
            loop {
                match socket.recv(&mut [0; 64]) {
                    Ok(_) => received += 1,
                    Err(_) if done.load(Ordering::Relaxed) => return received,
                    Err(_) => {}
                }
            }
        })
    };
    let answer = ipv4(PEER, POD, 64, 17, &udp(7000, 7000, b"answer"));
    thread::scope(|scope| {
        scope.spawn(|| {
            let fits = |packet: &[u8]| packet.ends_with(b"question");
            loop {
                match node.tun.receive(Duration::from_secs(1), fits) {
                    Some(_) => node.tun.send(&answer),
                    None if done.load(Ordering::Relaxed) => return,
                    None => {}
                }
            }
        });
        thread::sleep(Duration::from_millis(100));
        body();
        thread::sleep(Duration::from_millis(100));
        done.store(true, Ordering::Relaxed);
    });
    (receiver.join().unwrap(), sender.join().unwrap())
}

#[test]
fn a_new_agent_takes_over_without_losing_a_packet() {
    sandbox(|sandbox| {
        let node = Node::new();
        let desired = node.desired();
        sandbox.settle(&mut sandbox.datapath(), &desired);
        // The old agent is gone; only the pins hold programs and maps.
        let (received, sent) = under_traffic(&node, || {
            for _ in 0..3 {
                let mut next = sandbox.datapath();
                sandbox.settle(&mut next, &desired);
                assert_eq!(next.state(), "on");
            }
        });
        assert!(sent > 100, "{sent} sent");
        assert_eq!(received, sent);
        assert!(
            sandbox.count("pod_egress/tunnel") >= u64::from(sent),
            "and none took the slow path"
        );
        let peer = read::counters_in(&sandbox.pins).unwrap().peers[&REQID];
        assert_eq!(
            (peer.tx_packets, peer.rx_packets),
            (u64::from(sent), u64::from(received)),
            "counters go on"
        );
    });
}

/// Has pinned maps say that they are of `version`, and another agent migrate them under traffic.
fn migrated_without_a_loss(sandbox: &Sandbox, node: &Node, desired: &Desired, version: u8) {
    let state = sandbox.pins.join(abi::map::STATE);
    run(
        "bpftool",
        &format!(
            "map update pinned {} key 0 0 0 0 value {version} 0 0 0 0 0 0 0",
            state.display()
        ),
    );
    let error = read::tables_in(&sandbox.pins).unwrap_err().to_string();
    assert!(error.contains(&format!("ABI version {version}")), "{error}");
    let (received, sent) = under_traffic(node, || {
        let mut next = sandbox.datapath();
        sandbox.settle(&mut next, desired);
        assert_eq!(next.state(), "on");
    });
    assert!(sent > 100, "{sent} sent");
    assert_eq!(received, sent);
    assert_eq!(read::tables_in(&sandbox.pins).unwrap().routes.len(), 3);
    // A new flow: the stack may have carried the other one, which stays with it then.
    let socket = node.socket("10.1.0.2:0");
    let carried = sandbox.count("pod_egress/tunnel");
    let fast_again = (0..50).any(|_| {
        socket.send_to(b"question", (PEER, 53)).unwrap();
        node.sent(POD, PEER, 53).unwrap();
        sandbox.count("pod_egress/tunnel") > carried
    });
    assert!(fast_again);
}

#[test]
fn maps_of_another_version_are_migrated_without_losing_a_packet() {
    sandbox(|sandbox| {
        let node = Node::new();
        let desired = node.desired();
        sandbox.settle(&mut sandbox.datapath(), &desired);
        let id = || map_id(sandbox, "routes4");
        let old = id();
        migrated_without_a_loss(sandbox, &node, &desired, 77);
        assert_ne!(id(), old, "new maps");
        assert!(!sandbox.pins.join("next").exists());
    });
}

#[test]
fn the_maps_of_the_version_before_are_migrated_without_losing_a_packet() {
    sandbox(|sandbox| {
        let node = Node::new();
        let desired = node.desired();
        sandbox.settle(&mut sandbox.datapath(), &desired);
        // Version 2 had these maps but for two.
        for name in [abi::map::SAS, abi::map::CPUS] {
            fs::remove_file(sandbox.pins.join(name)).unwrap();
        }
        migrated_without_a_loss(sandbox, &node, &desired, 2);
    });
}

#[test]
fn half_a_set_of_pins_is_replaced() {
    sandbox(|sandbox| {
        let node = Node::new();
        let desired = node.desired();
        sandbox.settle(&mut sandbox.datapath(), &desired);
        fs::remove_file(sandbox.pins.join(abi::map::STATS)).unwrap();
        let mut next = sandbox.datapath();
        sandbox.settle(&mut next, &desired);
        assert_eq!(read::tables_in(&sandbox.pins).unwrap().pods.len(), 2);
    });
}

#[test]
fn changes_are_applied_one_by_one_and_a_quiet_pass_does_nothing() {
    sandbox(|sandbox| {
        let node = Node::new();
        let mut desired = node.desired();
        let mut datapath = sandbox.datapath();
        sandbox.settle(&mut datapath, &desired);
        assert_eq!(sandbox.pass(&mut datapath, &desired).len(), 0);
        let removed = desired.routes.pop_first().unwrap().0;
        desired.pods.remove(&POD.parse().unwrap());
        let objects: Vec<String> = sandbox
            .pass(&mut datapath, &desired)
            .into_iter()
            .map(|o| format!("{} {}", o.action, o.object))
            .collect();
        assert_eq!(
            objects,
            [
                format!("remove pod {POD}"),
                format!("remove route {removed}"),
                "compile the IPv4 routes".to_owned()
            ]
        );
        let tables = read::tables_in(&sandbox.pins).unwrap();
        assert_eq!((tables.routes.len(), tables.pods.len()), (2, 1));
    });
}

#[test]
fn cleanup_removes_all_and_only_ours() {
    sandbox(|sandbox| {
        let node = Node::new();
        let mut datapath = sandbox.datapath();
        sandbox.settle(&mut datapath, &node.desired());
        let foreign = attach_foreign("veth1");
        drop(datapath);
        let mut cleaner = sandbox.datapath();
        sandbox.settle(&mut cleaner, &Desired::default());
        assert_eq!(cleaner.state(), "off");
        assert!(!sandbox.pins.exists());
        // The kernel frees a link some time after its last reference went.
        let gone = (0..500).any(|_| {
            thread::sleep(Duration::from_millis(20));
            hooks() == ["veth1 foreign"]
        });
        assert!(gone, "{:?}", hooks());
        drop(foreign);
    });
}

#[test]
fn a_foreign_program_on_the_hook_is_named_and_survives() {
    sandbox(|sandbox| {
        let node = Node::new();
        let foreign = attach_foreign("veth1");
        let mut datapath = sandbox.datapath();
        sandbox.settle(&mut datapath, &node.desired());
        let named = datapath.foreign();
        assert_eq!(named.len(), 1, "{named:?}");
        assert!(
            named
                .iter()
                .all(|name| name.contains("beside pod_egress on veth1")),
            "{named:?}"
        );
        assert!(hooks().contains(&"veth1 foreign".to_owned()));
        let socket = node.socket("10.1.0.2:0");
        socket.send_to(b"question", (PEER, 53)).unwrap();
        node.sent(POD, PEER, 53).unwrap();
        assert_eq!(sandbox.count("pod_egress/tunnel"), 1, "ours comes first");
        drop(foreign);
    });
}

#[test]
fn a_tunnel_device_that_is_made_anew_gets_its_programs_and_routes() {
    sandbox(|sandbox| {
        let mut node = Node::new();
        let mut datapath = sandbox.datapath();
        sandbox.settle(&mut datapath, &node.desired());
        let old = ifindex("ipsec0");
        // A TUN goes with its last descriptor; links to it die with it, their pins stay.
        node = {
            drop(node);
            Node::again()
        };
        assert_ne!(ifindex("ipsec0"), old);
        sandbox.settle(&mut datapath, &node.desired());
        let socket = node.socket("10.1.0.2:0");
        socket.send_to(b"question", (PEER, 53)).unwrap();
        node.sent(POD, PEER, 53).unwrap();
        assert_eq!(sandbox.count("pod_egress/tunnel"), 1);
        let links = sandbox.pins.join("links");
        let stale = fs::read_dir(&links).unwrap().filter(|link| {
            link.as_ref()
                .unwrap()
                .file_name()
                .to_string_lossy()
                .ends_with(&format!("-{old}"))
        });
        assert_eq!(stale.count(), 0);
    });
}

#[test]
fn a_pin_that_somebody_removed_is_made_again() {
    sandbox(|sandbox| {
        let node = Node::new();
        let mut datapath = sandbox.datapath();
        sandbox.settle(&mut datapath, &node.desired());
        fs::remove_dir_all(sandbox.pins.join("links")).unwrap();
        fs::create_dir(sandbox.pins.join("links")).unwrap();
        sandbox.settle(&mut datapath, &node.desired());
        let socket = node.socket("10.1.0.2:0");
        socket.send_to(b"question", (PEER, 53)).unwrap();
        node.sent(POD, PEER, 53).unwrap();
        assert_eq!(sandbox.count("pod_egress/tunnel"), 1);
    });
}

#[test]
fn without_a_bpf_file_system_the_node_goes_on_and_says_why() {
    sandbox(|sandbox| {
        let node = Node::new();
        let mut datapath = Datapath::new(sandbox.options(Path::new("/nowhere/bpf/fabedge")));
        let failed: Vec<_> = sandbox
            .pass(&mut datapath, &node.desired())
            .into_iter()
            .filter(|o| o.result.is_err())
            .collect();
        assert_eq!(failed.len(), 1);
        let state = datapath.state();
        assert!(
            state.starts_with("slow path only: /nowhere/bpf is not a BPF file system"),
            "{state}"
        );
        assert_eq!(
            sandbox.pass(&mut datapath, &node.desired()).len(),
            0,
            "it is not tried over and over"
        );
        let socket = node.socket("10.1.0.2:0");
        socket.send_to(b"question", (PEER, 53)).unwrap();
        node.sent(POD, PEER, 53).unwrap();
    });
}

#[test]
fn bpftool_prints_the_maps_with_field_names() {
    sandbox(|sandbox| {
        let node = Node::new();
        sandbox.settle(&mut sandbox.datapath(), &node.desired());
        let dump = |name: &str| -> serde_json::Value {
            let path = sandbox.pins.join(name);
            serde_json::from_str(&run("bpftool", &format!("-j map dump pinned {}", path.display()))).unwrap()
        };
        let routes = dump("routes4");
        let first = &routes[0]["formatted"];
        assert_eq!(first["value"]["reqid"], REQID, "{routes}");
        for field in ["kind", "ifindex", "reqid", "flags", "mtu"] {
            assert!(first["value"][field].is_u64(), "{field} in {first}");
        }
        assert!(first["key"]["prefix_len"].is_u64(), "{first}");
        assert_eq!(
            dump("pods4")[0]["formatted"]["value"]["ifindex"],
            ifindex("veth1")
        );
        assert_eq!(dump("peers")[0]["formatted"]["key"], REQID);
        assert_eq!(dump("state")[0]["formatted"]["value"]["version"], abi::VERSION);
        for name in abi::map::ALL {
            dump(name);
        }
    });
}

#[test]
fn local_pods_are_found_with_their_qdiscs() {
    sandbox(|sandbox| {
        let _node = Node::new();
        run(
            "tc",
            "qdisc add dev veth1 root tbf rate 1mbit burst 10kb latency 50ms",
        );
        let folder = sandbox.cni.join("results");
        fs::create_dir_all(&folder).unwrap();
        fs::write(folder.join("fabedge-c1-eth0"), RESULT).unwrap();
        let mut datapath = sandbox.datapath();
        let local = sandbox.block_on(datapath.local_pods()).unwrap();
        assert_eq!(local.pods.len(), 1);
        assert_eq!(local.pods[0].interfaces, ["br0", "veth1"]);
        assert!(
            local.qdiscs[&ifindex("veth1")].contains("tbf"),
            "{:?}",
            local.qdiscs
        );
    });
}

const RESULT: &str = r#"{"kind": "cniCacheV1", "containerId": "c1", "networkName": "fabedge", "result": {
    "interfaces": [{"name": "br0"}, {"name": "veth1"}, {"name": "eth0", "mac": "02:00:00:00:00:09", "sandbox": "/n"}],
    "ips": [{"version": "4", "interface": 2, "address": "10.1.0.2/24"}]}}"#;

fn map_id(sandbox: &Sandbox, name: &str) -> u64 {
    let path = sandbox.pins.join(name);
    let shown = run("bpftool", &format!("-j map show pinned {}", path.display()));
    let shown: serde_json::Value = serde_json::from_str(&shown).unwrap();
    shown["id"].as_u64().unwrap()
}

/// Somebody else's program on the ingress of a device: what it does does not matter, only that it is not ours.
fn attach_foreign(device: &str) -> aya::Ebpf {
    let mut ebpf = EbpfLoader::new().load(OBJECT).unwrap();
    let program: &mut SchedClassifier = ebpf.program_mut("tunnel_egress").unwrap().try_into().unwrap();
    program.load().unwrap();
    if SchedClassifier::query_tcx(device, TcAttachType::Ingress).is_err() {
        // Fails where our hooks have made it; if it is missing, attaching fails.
        drop(aya::programs::tc::qdisc_add_clsact(device));
    }
    program.attach(device, TcAttachType::Ingress).unwrap();
    ebpf
}

/// What hangs on the devices, in words: `foreign` is what [`attach_foreign`] left.
fn hooks() -> Vec<String> {
    let mut found = Vec::new();
    for device in ["veth1", "ipsec0"] {
        for direction in [TcAttachType::Ingress, TcAttachType::Egress] {
            let names: Vec<String> = match SchedClassifier::query_tcx(device, direction) {
                Ok((_, programs)) => programs
                    .iter()
                    .filter_map(|p| Some(p.name_as_str()?.to_owned()))
                    .collect(),
                Err(_) => filters(device, direction),
            };
            let word = |name: &String| match (name.as_str(), device, direction) {
                ("tunnel_egress", "veth1", TcAttachType::Ingress) => "foreign".to_owned(),
                _ => name.clone(),
            };
            found.extend(names.iter().map(|name| format!("{device} {}", word(name))));
        }
    }
    found
}

/// Names of the BPF filters, on kernels without TCX.
fn filters(device: &str, direction: TcAttachType) -> Vec<String> {
    let side = if direction == TcAttachType::Ingress {
        "ingress"
    } else {
        "egress"
    };
    let output = Command::new("tc")
        .args(["filter", "show", "dev", device, side])
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let names = text.split_whitespace().zip(text.split_whitespace().skip(1));
    names
        .filter(|(word, next)| word.starts_with("0x") && !next.is_empty())
        .map(|(_, name)| name.split(':').next().unwrap_or(name).to_owned())
        .collect()
}

#[test]
fn an_interface_that_is_gone_leaves_nothing_behind() {
    sandbox(|sandbox| {
        let node = Node::new();
        let mut datapath = sandbox.datapath();
        let mut desired = node.desired();
        sandbox.settle(&mut datapath, &desired);
        let veth = ifindex("veth1");
        ip("link delete veth1");
        desired.pods.clear();
        desired.hooks.retain(|hook| hook.ifindex != veth);
        sandbox.settle(&mut datapath, &desired);
        assert_eq!(read::tables_in(&sandbox.pins).unwrap().pods, []);
    });
}
