//! Packets of all sizes and both families, what a tunnel's MTU does to them, and which path they take.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, ensure};
use fabedge_common::abi::{Program, Reason};
use rustix::thread::{CpuSet, sched_setaffinity};
use serde_json::{Value, json};

use super::product::{CONVERGENCE, WAIT, wait_reach};
use crate::cni::CONF_DIR;
use crate::lab::{Lab, Switch, Tunnel};
use crate::observe::{self, Packets, status};
use crate::pod::Pod;
use crate::probe::icmp;
use crate::probe::reach::{Reach, both_ways};
use crate::probe::responder::PORT;
use crate::probe::stream::Stream;
use crate::probe::{tcp, udp};
use crate::suite::{Check, judge};
use crate::table::Outcome;

/// The pods between which sizes are tried: over a NAT to the connector, on to another cloud node, direct, relayed.
const PAIRS: [(&str, &str); 4] = [
    ("edge1-a", "cloud-a"),
    ("edge1-a", "cloud-b"),
    ("edge1-a", "edge2-a"),
    ("edge1-a", "edge3-a"),
];

/// How long to wait for a packet that path MTU discovery may cost.
const DISCOVERY: Duration = Duration::from_millis(500);

/// In any order, with both Communities in force.
pub const CHECKS: &[Check] = &[
    Check {
        name: "IPv6 pod to pod",
        run: ipv6,
    },
    Check {
        name: "UDP of 1,400 bytes",
        run: |lab| datagrams(lab, 1400),
    },
    Check {
        name: "UDP of 9,000 bytes",
        run: |lab| datagrams(lab, 9000),
    },
    Check {
        name: "TCP in bulk, edge to connector",
        run: |lab| bulk(lab, "cloud-a", lab.settings.bulk_mib),
    },
    Check {
        name: "TCP in bulk, edge to edge",
        // Enough to see that it flows: the way differs from the other by a NAT.
        run: |lab| bulk(lab, "edge2-a", lab.settings.bulk_mib / 10),
    },
    Check {
        name: "no path MTU discovery is needed with our MTU",
        run: fits,
    },
    Check {
        name: "a pod with MTU 1500 is told the tunnel's MTU",
        run: frag_needed,
    },
    Check {
        name: "traceroute shows the way",
        run: traceroute,
    },
    Check {
        name: "most pod-to-pod packets take the fast path",
        run: fast_share,
    },
    Check {
        name: "the node's IP stack sees no ESP that comes in",
        run: received_by_gro,
    },
    Check {
        name: "the connector's CPUs share what its peers send",
        run: spread,
    },
];

/// Both families.
pub const IPV6: Check = Check {
    name: "IPv6 pod to pod",
    run: ipv6,
};

/// How much the fast path carries.
pub const FAST_SHARE: Check = Check {
    name: "most pod-to-pod packets take the fast path",
    run: fast_share,
};

/// The pair's pods.
fn pair<'a>(lab: &'a Lab, names: (&str, &str)) -> Result<(&'a Pod, &'a Pod)> {
    Ok((lab.world.pod(names.0)?, lab.world.pod(names.1)?))
}

fn ipv6(lab: &mut Lab) -> Result<Outcome> {
    let pairs: Vec<_> = PAIRS
        .into_iter()
        .map(|names| pair(lab, names))
        .collect::<Result<_>>()?;
    let results = both_ways(&pairs, true, WAIT)?;
    let seen: Vec<String> = pairs
        .iter()
        .zip(results.chunks(2))
        .filter(|(_, reaches)| !reaches.iter().all(Reach::all))
        .map(|((a, b), reaches)| {
            let shown: Vec<String> = reaches.iter().map(Reach::to_string).collect();
            format!("{} <-> {}: {}", a.place.name, b.place.name, shown.join(" / "))
        })
        .collect();
    Ok(judge(seen.is_empty(), seen.join("; ")))
}

fn datagrams(lab: &mut Lab, size: usize) -> Result<Outcome> {
    let mut bad = Vec::new();
    let mut sent = 0;
    for names in PAIRS {
        let (a, b) = pair(lab, names)?;
        for (from, to) in [(a, b), (b, a)] {
            // The cloud's CNI gives its pods an MTU of 1500: their first packet above the tunnel's MTU is lost to path
            // MTU discovery, as it has to be.
            udp::exchange(
                &from.place,
                SocketAddr::new(to.v4.into(), PORT),
                size,
                1,
                DISCOVERY,
            )?;
            let tally = udp::exchange(&from.place, SocketAddr::new(to.v4.into(), PORT), size, 5, WAIT)?;
            sent += tally.sent;
            if !tally.all() {
                bad.push(format!("{} -> {}: {tally}", from.place.name, to.place.name));
            }
        }
    }
    Ok(judge(
        bad.is_empty(),
        if bad.is_empty() {
            format!("{sent} echoed")
        } else {
            bad.join("; ")
        },
    ))
}

fn bulk(lab: &mut Lab, other: &str, mib: u64) -> Result<Outcome> {
    let (a, b) = pair(lab, ("edge1-a", other))?;
    let bytes = mib << 20;
    let to = SocketAddr::new(b.v4.into(), PORT);
    let up = tcp::upload(&a.place, to, bytes)? * 8.0 / 1e6;
    let down = tcp::download(&a.place, to, bytes)? * 8.0 / 1e6;
    let note = format!("{mib} MiB each way, {up:.0} and {down:.0} Mbit/s");
    lab.figures.set(format!("tcp_mbit_up_{other}"), up.round());
    lab.figures.set(format!("tcp_mbit_down_{other}"), down.round());
    Ok(Outcome::Passed(note))
}

/// The MTU of a pod's interface.
fn mtu_of(pod: &Pod) -> Result<usize> {
    let text = pod
        .place
        .run(|| std::fs::read_to_string("/proc/sys/net/ipv6/conf/eth0/mtu"))?;
    let text = text.with_context(|| format!("reading the MTU of {}", pod.place.name))?;
    text.trim()
        .parse()
        .with_context(|| format!("the MTU of {} is `{text}`", pod.place.name))
}

/// Runs `ping -M do`; whether all came back, and what it said.
///
/// # Errors
/// When `ping` cannot be run.
pub fn ping_whole(pod: &Pod, to: &Pod, payload: usize) -> Result<(bool, String)> {
    let size = payload.to_string();
    let to = to.v4.to_string();
    let words = [
        "ping", "-n", "-M", "do", "-c", "2", "-i", "0.2", "-W", "2", "-s", &size, &to,
    ];
    let output = pod.place.output(&words, Duration::from_secs(20))?;
    Ok((output.ok(), output.text()))
}

fn fits(lab: &mut Lab) -> Result<Outcome> {
    let (a, b) = pair(lab, ("edge1-a", "cloud-b"))?;
    let mtu = mtu_of(a)?;
    // 20 bytes of IPv4 and 8 of ICMP.
    let (arrived, said) = ping_whole(a, b, mtu - 28)?;
    let told = said.to_lowercase().contains("frag needed");
    let note = if arrived && !told {
        format!("pod MTU {mtu}, whole packets pass")
    } else {
        said
    };
    lab.figures.set("pod_mtu", mtu);
    Ok(judge(arrived && !told && mtu >= 1280, note))
}

fn frag_needed(lab: &mut Lab) -> Result<Outcome> {
    let site = lab.world.site("edge1")?;
    let ours = site
        .place
        .must(&["cat", &format!("{CONF_DIR}/fabedge.conflist")])?;
    let mut conflist: Value = serde_json::from_str(&ours).context("parsing the agent's conflist")?;
    let bridge = conflist["plugins"][0]
        .as_object_mut()
        .context("the conflist has no plugin")?;
    bridge.insert("mtu".to_owned(), json!(1500));
    let pod = lab
        .world
        .add_pod_by("edge1-mtu", "edge1", &conflist.to_string(), &json!({}))?;
    let device = match lab.settings.tunnel {
        Tunnel::Xfrm => "fabedge0",
        Tunnel::Libipsec => "ipsec0",
    };
    let tunnel = lab
        .world
        .site("edge1")?
        .place
        .must(&["cat", &format!("/sys/class/net/{device}/mtu")])?;
    let cloud = lab.world.pod("cloud-a")?;
    wait_reach(&pod, cloud, CONVERGENCE)?;
    let (arrived, said) = ping_whole(&pod, cloud, 1472)?;
    lab.world.remove_pod("edge1-mtu")?;
    let wanted = format!("mtu = {}", tunnel.trim());
    let told = said.to_lowercase().contains(&wanted);
    let note = if told {
        format!("frag needed, {wanted}")
    } else {
        format!("wanted `{wanted}`: {said}")
    };
    Ok(judge(!arrived && told, note))
}

fn traceroute(lab: &mut Lab) -> Result<Outcome> {
    let mut notes = Vec::new();
    let mut good = true;
    for (names, most) in [(("edge1-a", "cloud-a"), 3), (("edge1-a", "edge3-a"), 4)] {
        let (a, b) = pair(lab, names)?;
        let to = b.v4.to_string();
        let words = ["traceroute", "-n", "-q", "2", "-w", "2", "-m", "8", &to];
        let said = a.place.output(&words, Duration::from_secs(60))?.text();
        let hops: Vec<&str> = said
            .lines()
            .skip(1)
            .filter_map(|line| line.split_whitespace().nth(1))
            .collect();
        let gateway = a.v4.octets();
        let gateway = format!("{}.{}.{}.1", gateway[0], gateway[1], gateway[2]);
        good &= hops.first() == Some(&&*gateway) && hops.last() == Some(&&*to) && hops.len() <= most;
        notes.push(hops.join(" "));
    }
    Ok(judge(good, notes.join("; ")))
}

/// Streams both ways between edge1 and the connector, and over the tunnel between the edges; then asks the maps.
fn fast_share(lab: &mut Lab) -> Result<Outcome> {
    if lab.settings.fast_path == Switch::Off {
        return Ok(Outcome::NotHere("the fast path is off".to_owned()));
    }
    let sites = ["edge1", "edge2", "connector"];
    settle(lab)?;
    let read = |lab: &Lab| -> Result<Vec<Packets>> {
        sites
            .iter()
            .map(|site| Packets::read(lab.world.site(site)?))
            .collect()
    };
    let before = read(lab)?;
    let mut streams = Vec::new();
    for names in [("edge1-a", "cloud-a"), ("edge1-a", "edge2-a")] {
        let (a, b) = pair(lab, names)?;
        streams.push(Stream::start(&a.place, &b.place, b.v4.into(), 300, 200)?);
        streams.push(Stream::start(&b.place, &a.place, a.v4.into(), 300, 200)?);
    }
    let bytes = 2 << 20;
    let (a, b) = pair(lab, ("edge1-a", "cloud-a"))?;
    tcp::upload(&a.place, SocketAddr::new(b.v4.into(), PORT), bytes)?;
    std::thread::sleep(Duration::from_secs(3));
    for stream in streams {
        let report = stream.finish()?;
        ensure!(report.received > 100, "a stream did not flow: {report:?}");
    }
    let after = read(lab)?;
    let mut notes = Vec::new();
    let mut least: f64 = 1.0;
    let mut fast = 0;
    for ((site, before), after) in sites.iter().zip(&before).zip(&after) {
        let grown = after.since(before);
        let share = grown.fast_share();
        least = least.min(share);
        fast += grown.decided(fabedge_common::abi::Verdict::Fast);
        notes.push(format!("{site} {:.1} %", share * 100.0));
        lab.figures
            .set(format!("fast_path_counts_{site}"), json!(grown.named()));
    }
    lab.figures.set("fast_path_share", (least * 1e4).round() / 1e4);
    lab.figures.set("fast_path_packets", fast);
    Ok(judge(least > 0.9, notes.join(", ")))
}

/// New pods stay with the stack for a moment (so that flows which are translated are known before any packet could
/// go past the stack): waits until that is over for the pods that are measured.
fn settle(lab: &Lab) -> Result<()> {
    let started = Instant::now();
    loop {
        let mut learning = false;
        for site in ["edge1", "edge2", "connector"] {
            for pod in observe::dump(&lab.world.site(site)?.place, "pods4")? {
                let flags = pod["value"]["flags"].as_u64().unwrap_or(0);
                learning |= flags & u64::from(fabedge_common::abi::POD_LEARNING) != 0;
            }
        }
        if !learning {
            return Ok(());
        }
        ensure!(
            started.elapsed() < CONVERGENCE,
            "pods stay in their learning phase"
        );
        std::thread::sleep(Duration::from_millis(500));
    }
}

/// By GRO a packet is decrypted before the stack counts it.
fn received_by_gro(lab: &mut Lab) -> Result<Outcome> {
    const PINGS: u32 = 100;
    if lab.settings.tunnel == Tunnel::Libipsec {
        return Ok(Outcome::NotHere("charon decrypts".to_owned()));
    }
    // No NAT between them, so ESP is not in UDP.
    let (pod, cloud) = pair(lab, ("edge2-a", "cloud-a"))?;
    let node = &lab.world.site("edge2")?.place;
    // On the slow path it sees what pods send, and what is for them.
    let plain = match lab.settings.fast_path {
        Switch::On => 0,
        Switch::Off => 2 * PINGS,
    };
    let started = Instant::now();
    loop {
        let before = observe::snmp(node, "Ip", "InReceives")?;
        let tally = icmp::ping(&pod.place, cloud.v4.into(), 56, PINGS, WAIT)?;
        let seen = observe::snmp(node, "Ip", "InReceives")? - before;
        // Others send now and then, charon for one.
        let good = tally.all() && seen < u64::from(plain + PINGS / 2);
        // A pod that is new stays with the stack for a moment.
        if good || started.elapsed() > CONVERGENCE {
            return Ok(judge(good, format!("{seen} packets seen, {tally} answered")));
        }
    }
}

fn spread(lab: &mut Lab) -> Result<Outcome> {
    const PINGS: u32 = 100;
    if lab.settings.fast_path == Switch::Off {
        return Ok(Outcome::NotHere("it belongs to the fast path".to_owned()));
    }
    let connector = lab.world.site("connector")?;
    let cpus = std::thread::available_parallelism().map_or(1, usize::from);
    let listed: Vec<String> = (0..cpus).map(|cpu| cpu.to_string()).collect();
    let expected = match lab.settings.tunnel {
        Tunnel::Libipsec => "not spread: charon decrypts, not the kernel".to_owned(),
        Tunnel::Xfrm if cpus < 2 => "not spread: there is one CPU".to_owned(),
        Tunnel::Xfrm => format!("over CPUs {}", listed.join(", ")),
    };
    let how = status(connector)?["spread"]["eth0"].clone();
    if how != expected || !expected.starts_with("over") {
        return Ok(judge(how == expected, format!("the agent says {how}")));
    }
    // Both behind a NAT, with ESP in UDP, and without.
    let before = Packets::read(connector)?;
    let pings = || -> Result<()> {
        // A veth receives on the CPU that sends: from the first, what is for another has a way to go.
        let mut first = CpuSet::new();
        first.set(0);
        sched_setaffinity(None, &first).context("staying on the first CPU")?;
        for pod in ["edge1-a", "edge2-a", "edge3-a"] {
            let (pod, cloud) = pair(lab, (pod, "cloud-a"))?;
            let tally = icmp::ping(&pod.place, cloud.v4.into(), 56, PINGS, WAIT)?;
            ensure!(tally.all(), "{tally} of {} answered", pod.place.name);
        }
        Ok(())
    };
    // A thread of its own, for it stays there.
    std::thread::scope(|scope| scope.spawn(pings).join()).map_err(|_| anyhow!("the pings panicked"))??;
    let counted = Packets::read(connector)?.since(&before);
    let count = |reason| counted.of(Program::UplinkXdp, reason);
    let (there, here) = (count(Reason::OtherCpu), count(Reason::ThisCpu));
    let good = there + here >= 3 * u64::from(PINGS) && there > 0 && count(Reason::UnknownSa) < 10;
    // What was in a queue when the first look was taken has come out since.
    let lost = there.saturating_sub(count(Reason::Arrived));
    Ok(judge(
        good && lost == 0,
        format!("{there} of {} packets on another CPU, {lost} lost", there + here),
    ))
}
