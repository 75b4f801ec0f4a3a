//! Underlays of other sizes than Ethernet's: nothing that a pod may send gets lost for good, whoever hears of it.

mod ipv6;

use std::net::{IpAddr, SocketAddr};
use std::ops::RangeInclusive;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;

use super::product::{CONVERGENCE, WAIT};
use super::traffic::ping_whole;
use crate::lab::charon::swanctl;
use crate::lab::{Lab, Tunnel, wait_until};
use crate::observe;
use crate::place::Place;
use crate::pod::Pod;
use crate::probe::responder::PORT;
use crate::probe::{tcp, udp};
use crate::suite::{Check, Suite, judge};
use crate::table::Outcome;
use crate::world::network::underlay;

/// Ethernet's MTU, and what every link has in the end.
const ETHERNET: u32 = 1500;

/// What carries the largest packets that pods send on Ethernet, with ESP around them.
const WHOLE: u32 = 1485;

/// Bytes that go by TCP: enough for segments of full size.
const BYTES: u64 = 256 * 1024;

/// Pairs of pods: ESP in UDP over a NAT, plain ESP, and both by way of the connector.
const PAIRS: [(&str, &str); 3] = [
    ("edge1-a", "cloud-a"),
    ("edge2-a", "cloud-a"),
    ("edge1-a", "edge3-a"),
];

/// As a suite.
pub const SUITE: Suite = Suite {
    name: "mtu",
    about: "underlays with another MTU than Ethernet's",
    settings: |_| {},
    prepare: super::everything,
    checks: &[CHECKS],
};

const CHECKS: &[Check] = &[
    Check {
        name: "1280 on the way to the cloud, ICMP filtered",
        run: |lab| narrow(lab, TO_CLOUD, 1280, Icmp::Filtered),
    },
    Check {
        name: "1280 on the way to the cloud",
        run: |lab| narrow(lab, TO_CLOUD, 1280, Icmp::Heard),
    },
    Check {
        name: "1492 on the way to the cloud, ICMP filtered",
        run: |lab| narrow(lab, TO_CLOUD, 1492, Icmp::Filtered),
    },
    Check {
        name: "1358 at edge3, ICMP filtered: measured, told, whole",
        run: measured_whole,
    },
    MEASURED,
    Check {
        name: "1500, 1400 and 1280 over IPv6",
        run: ipv6::swept,
    },
    Check {
        name: "9000 everywhere",
        run: large,
    },
];

/// The narrowest of links, of which kernels hear.
const MEASURED: Check = Check {
    name: "1280 on the way to edge1: measured, told, nothing lost, and 1500 again",
    run: measured,
};

/// A link: router and interface at either end.
type Link = [(&'static str, &'static str); 2];

/// The link between the WAN and the cloud, where everything passes.
const TO_CLOUD: Link = [("wan", "cloud"), ("cloud", "out0")];

/// The link between the WAN and the NAT before edge1.
const TO_EDGE1: Link = [("wan", "nat1"), ("nat1", "out0")];

/// The link between the WAN and the NAT before edge3.
const TO_EDGE3: Link = [("wan", "nat3"), ("nat3", "out0")];

/// Whether the nodes hear of packets that are too large.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Icmp {
    Heard,
    Filtered,
}

/// Narrows a link.
fn set(lab: &Lab, link: Link, mtu: u32, icmp: Icmp) -> Result<()> {
    for (router, interface) in link {
        let router = lab.world.router(router)?;
        let chain = match icmp {
            Icmp::Heard => "",
            Icmp::Filtered => {
                "table ip mute { chain out { type filter hook output priority 0; icmp type destination-unreachable drop; }; }"
            }
        };
        router.nft(&format!("table ip mute {{}}\ndelete table ip mute\n{chain}"))?;
        set_mtu(router, interface, mtu)?;
    }
    Ok(())
}

/// Has the link as it was, and everybody forget what they heard of it.
fn restore(lab: &Lab, link: Link) -> Result<()> {
    set(lab, link, ETHERNET, Icmp::Heard)?;
    forget(lab)
}

/// A link that no agent has measured yet.
fn narrow(lab: &mut Lab, link: Link, mtu: u32, icmp: Icmp) -> Result<Outcome> {
    if icmp == Icmp::Filtered && mtu < WHOLE && lab.settings.tunnel == Tunnel::Libipsec {
        return Ok(Outcome::NotHere("charon has its ESP not fragmented".to_owned()));
    }
    set(lab, link, mtu, icmp)?;
    let lost = lost(lab, &PAIRS, 1400);
    restore(lab, link)?;
    let lost = lost?;
    Ok(judge(lost.is_empty(), lost.join("; ")))
}

/// What is left of so many bytes: less IPv4 20, UDP 8 and ESP 36, with its IV, ICV and trailer, and less what is padded and
/// what a search leaves open.
fn left_of(mtu: u32) -> RangeInclusive<u32> {
    mtu - 76..=mtu - 64
}

fn measured_whole(lab: &mut Lab) -> Result<Outcome> {
    const MTU: u32 = 1358;
    set(lab, TO_EDGE3, MTU, Icmp::Filtered)?;
    let result = at_edge3(lab, MTU);
    widen(lab, TO_EDGE3, "edge3", result)
}

fn measured(lab: &mut Lab) -> Result<Outcome> {
    const MTU: u32 = 1280;
    const PAIR: (&str, &str) = ("edge1-a", "cloud-a");
    set(lab, TO_EDGE1, MTU, Icmp::Heard)?;
    let mut bad = match lab.settings.tunnel {
        Tunnel::Xfrm => measure_anew(lab, "edge1", left_of(MTU)).and_then(|()| not_told(lab, PAIR)),
        // Its ESP goes in fragments as soon as the kernel hears.
        Tunnel::Libipsec => Ok(Vec::new()),
    };
    if let Ok(bad) = &mut bad {
        bad.extend(lost(lab, &[PAIR], 1400)?);
    }
    widen(lab, TO_EDGE1, "edge1", bad)
}

/// Has a link as it was, and both ends of the edge's tunnel find that out; the outcome with what was `bad` until then.
fn widen(lab: &Lab, link: Link, edge: &str, bad: Result<Vec<String>>) -> Result<Outcome> {
    restore(lab, link)?;
    let whole = measure_anew(lab, edge, 1400..=1400);
    let mut bad = bad?;
    bad.extend(whole.err().map(|error| format!("{error:#}")));
    Ok(judge(bad.is_empty(), bad.join("; ")))
}

/// Who of a pair, with a narrow link between, does not hear of it from the own node.
fn not_told(lab: &Lab, (a, b): (&str, &str)) -> Result<Vec<String>> {
    let mut bad = Vec::new();
    for (from, to) in [(a, b), (b, a)] {
        let (from, to) = (lab.world.pod(from)?, lab.world.pod(to)?);
        let (_, said) = ping_whole(from, to, 1372)?;
        if !said.replace(" = ", "=").contains("mtu=1") {
            bad.push(format!("{} is not told: {said}", from.place.name));
        }
    }
    Ok(bad)
}

fn at_edge3(lab: &Lab, mtu: u32) -> Result<Vec<String>> {
    const PAIRS: [(&str, &str); 2] = [("edge3-a", "cloud-a"), ("edge3-a", "edge1-a")];
    let fragments = || -> Result<u64> {
        let count = |router| observe::snmp(lab.world.router(router)?, "Ip", "FragCreates");
        Ok(count("wan")? + count("nat3")?)
    };
    let mut bad = match lab.settings.tunnel {
        Tunnel::Xfrm => lost(lab, &PAIRS, 1400)?,
        // Not before it is measured.
        Tunnel::Libipsec => Vec::new(),
    };
    measure_anew(lab, "edge3", left_of(mtu))?;
    let before = fragments()?;
    bad.extend(not_told(lab, PAIRS[0])?);
    bad.extend(lost(lab, &PAIRS, 1400)?);
    let after = fragments()?;
    if after != before {
        bad.push(format!("{} fragments on the WAN", after - before));
    }
    Ok(bad)
}

/// Has the path between an edge and the connector measured.
fn measure_anew(lab: &Lab, edge: &str, expected: RangeInclusive<u32>) -> Result<()> {
    measure_between(lab, (edge, "connector"), expected)
}

/// Renews the SAs of the tunnel of an edge and somebody, upon which both measure its path, and waits for what they find.
fn measure_between(lab: &Lab, (name, other): (&str, &str), expected: RangeInclusive<u32>) -> Result<()> {
    let edge = lab.world.site(name)?;
    let peer = |site: &str, peer: &str| -> Result<Value> {
        Ok(observe::status(lab.world.site(site)?)?["peers"][peer].clone())
    };
    let ends = [
        (name, format!("fabedge.{other}")),
        (other, format!("fabedge.{name}")),
    ];
    let mut child = None;
    wait_until(&format!("{name} has SAs with {other}"), CONVERGENCE, || {
        let name = peer(name, &ends[0].1)?["children"][0]["name"].clone();
        child = name.as_str().map(ToOwned::to_owned);
        Ok(child.is_some())
    })?;
    let child = child.unwrap_or_default();
    swanctl(edge, &["--rekey", "--child", &child])?;
    wait_until("both ends of a tunnel know its path", CONVERGENCE, || {
        let mut all = true;
        for (site, peer_name) in &ends {
            let mtu = peer(site, peer_name)?["pathMtu"].as_u64().unwrap_or(0);
            all &= u32::try_from(mtu).is_ok_and(|mtu| expected.contains(&mtu));
        }
        Ok(all)
    })?;
    Ok(())
}

fn large(lab: &mut Lab) -> Result<Outcome> {
    const JUMBO: u32 = 9000;
    let set = |mtu: u32| underlay().try_for_each(|(place, link)| set_mtu(lab.world.place(place)?, link, mtu));
    let device = match lab.settings.tunnel {
        Tunnel::Xfrm => "fabedge0",
        Tunnel::Libipsec => "ipsec0",
    };
    let tunnel = |site: &str| -> Result<u32> {
        let file = format!("/sys/class/net/{device}/mtu");
        let text = lab.world.site(site)?.place.must(&["cat", &file])?;
        text.trim().parse().context("reading an MTU")
    };
    let follows = |least: u32, most: u32| {
        wait_until("the tunnels' MTUs follow", CONVERGENCE, || {
            let mut all = true;
            for site in ["edge1", "edge2", "edge3", "connector"] {
                all &= (least..most).contains(&tunnel(site)?);
            }
            Ok(all)
        })
    };
    set(JUMBO)?;
    let result = follows(ETHERNET, JUMBO).and_then(|_| {
        let large = tunnel("edge1")?;
        Ok((large, lost(lab, &PAIRS, 8000)?))
    });
    set(ETHERNET)?;
    follows(1280, ETHERNET)?;
    forget(lab)?;
    let (large, lost) = result?;
    ensure!(large > 8000, "{large} in the tunnels");
    Ok(judge(
        lost.is_empty(),
        format!("{large} in the tunnels {}", lost.join("; ")),
    ))
}

/// What does not get through between the pairs, by TCP and UDP, of both families, both ways.
fn lost(lab: &Lab, pairs: &[(&str, &str)], datagram: usize) -> Result<Vec<String>> {
    let mut lost = Vec::new();
    for (a, b) in pairs {
        let (a, b) = (lab.world.pod(a)?, lab.world.pod(b)?);
        for (from, to) in [(a, b), (b, a)] {
            for v6 in [false, true] {
                let address: IpAddr = to.address(v6)?;
                lost.extend(lost_between(from, to, SocketAddr::new(address, PORT), datagram)?);
            }
        }
    }
    Ok(lost)
}

fn lost_between(from: &Pod, to: &Pod, address: SocketAddr, datagram: usize) -> Result<Vec<String>> {
    let name = |what: &str| format!("{what} {} -> {} ({address})", from.place.name, to.place.name);
    let mut lost = Vec::new();
    if let Err(error) = tcp::upload(&from.place, address, BYTES) {
        lost.push(format!("{}: {error:#}", name("TCP")));
    }
    // Each way, and behind each tunnel, a packet may be the one that finds the path's MTU out.
    udp::exchange(&from.place, address, datagram, 4, Duration::from_millis(300))?;
    let tally = udp::exchange(&from.place, address, datagram, 5, WAIT)?;
    if !tally.all() {
        lost.push(format!("{}: {tally}", name("UDP")));
    }
    Ok(lost)
}

fn set_mtu(place: &Place, link: &str, mtu: u32) -> Result<()> {
    place.ip(&format!("link set {link} mtu {mtu}"))
}

/// Has everybody forget what they heard of paths.
fn forget(lab: &Lab) -> Result<()> {
    for place in lab.world.places() {
        place.must(&["ip", "route", "flush", "cache"])?;
        place.must(&["ip", "-6", "route", "flush", "cache"])?;
    }
    Ok(())
}
