//! The lab's own instruments, without any of the product: that a probe tells reachable from unreachable, that the
//! capture sees plaintext when there is some, that plaintext injected into a LAN does arrive at an unprotected
//! pod. A check elsewhere that says "0" means something only because these say "not 0".

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use anyhow::{Context, Result};
use serde_json::json;

use crate::inject;
use crate::lab::Lab;
use crate::probe::responder::PORT;
use crate::probe::stream::Stream;
use crate::probe::{icmp, tcp, udp};
use crate::suite::{Check, Suite, judge};
use crate::table::Outcome;
use crate::world::addresses::{API_SERVER, CONNECTOR, EDGE2, INTERNET, Numbers};
use crate::world::network::remap_nat;
use crate::world::numbers;

/// The suite.
pub const SUITE: Suite = Suite {
    name: "instruments",
    about: "what the lab measures with, tried on plain networks",
    settings: |_| {},
    prepare,
    checks: &[CHECKS],
};

const CHECKS: &[Check] = &[
    Check {
        name: "edge node reaches the API server through NAT",
        run: api_server,
    },
    Check {
        name: "both NATs hide the same subnet",
        run: both_nats,
    },
    Check {
        name: "a remapped NAT shows another port",
        run: remapped,
    },
    Check {
        name: "pods of the cloud reach each other, both families",
        run: cloud_pods,
    },
    Check {
        name: "pods of an edge reach each other",
        run: edge_pods,
    },
    Check {
        name: "TCP content is checked both ways",
        run: bulk,
    },
    Check {
        name: "an unreachable pod is seen as such",
        run: unreachable,
    },
    Check {
        name: "the capture sees plaintext",
        run: plaintext,
    },
    Check {
        name: "a stream counts what is lost",
        run: losses,
    },
    Check {
        name: "injected plaintext arrives where nothing stops it",
        run: injected,
    },
    Check {
        name: "hostPort leads to the pod",
        run: host_port,
    },
    Check {
        name: "a pod can be removed",
        run: removed,
    },
];

/// How long a probe waits where an answer is expected.
const WAIT: Duration = Duration::from_secs(3);

/// An edge's CNI without the agent.
fn edge_conflist(numbers: &Numbers) -> String {
    json!({
        "name": "plain",
        "cniVersion": "0.3.1",
        "plugins": [
            {
                "type": "bridge",
                "bridge": "br-plain",
                "isDefaultGateway": true,
                "ipam": {"type": "host-local", "ranges": [[{"subnet": numbers.pods4()}]]},
            },
            {"type": "portmap", "capabilities": {"portMappings": true}},
        ],
    })
    .to_string()
}

fn prepare(lab: &mut Lab) -> Result<()> {
    for (pod, site) in [("cloud-a", "connector"), ("cloud-b", "node1")] {
        lab.add_pod(pod, site)?;
    }
    for (pod, site) in [("edge1-a", "edge1"), ("edge1-b", "edge1"), ("edge2-a", "edge2")] {
        let mut capabilities = json!({});
        if pod == "edge1-b" {
            capabilities =
                json!({"portMappings": [{"hostPort": 8080, "containerPort": PORT, "protocol": "tcp"}]});
        }
        lab.world
            .add_pod_by(pod, site, &edge_conflist(numbers(site)?), &capabilities)?;
        lab.respond(pod)?;
    }
    lab.respond("internet")?;
    lab.start_api_server()?;
    Ok(())
}

fn at(address: impl Into<IpAddr>) -> SocketAddr {
    SocketAddr::new(address.into(), PORT)
}

fn api_server(lab: &mut Lab) -> Result<Outcome> {
    let seen = tcp::who(&lab.world.site("edge1")?.place, API_SERVER.into(), WAIT)?;
    Ok(judge(
        seen.ip().to_string() == "172.16.1.2",
        format!("seen as {seen}"),
    ))
}

fn both_nats(lab: &mut Lab) -> Result<Outcome> {
    let ask = |site: &str| tcp::who(&lab.world.site(site)?.place, at(INTERNET), WAIT);
    let (one, three) = (ask("edge1")?, ask("edge3")?);
    Ok(judge(
        one.ip().to_string() == "172.16.1.2" && three.ip().to_string() == "172.16.3.2",
        format!("seen as {one} and {three}"),
    ))
}

fn remapped(lab: &mut Lab) -> Result<Outcome> {
    let edge = &lab.world.site("edge3")?.place;
    let nat = lab.world.router("nat3")?;
    let before = udp::who(edge, at(INTERNET), WAIT)?
        .context("no answer before")?
        .port();
    remap_nat(nat, Some((50_000, 54_999)))?;
    let after = udp::who(edge, at(INTERNET), WAIT)?
        .context("no answer after")?
        .port();
    Ok(judge(
        (40_000..45_000).contains(&before) && (50_000..55_000).contains(&after),
        format!("port {before}, then {after}"),
    ))
}

fn cloud_pods(lab: &mut Lab) -> Result<Outcome> {
    let (a, b) = (lab.world.pod("cloud-a")?, lab.world.pod("cloud-b")?);
    let four = icmp::ping(&a.place, b.address(false)?, 56, 3, WAIT)?;
    let six = icmp::ping(&b.place, a.address(true)?, 56, 3, WAIT)?;
    Ok(judge(four.all() && six.all(), format!("IPv4 {four}, IPv6 {six}")))
}

fn edge_pods(lab: &mut Lab) -> Result<Outcome> {
    let (a, b) = (lab.world.pod("edge1-a")?, lab.world.pod("edge1-b")?);
    let echo = icmp::ping(&a.place, b.v4.into(), 56, 3, WAIT)?;
    let datagrams = udp::exchange(&a.place, at(b.v4), 9000, 3, WAIT)?;
    Ok(judge(
        echo.all() && datagrams.all(),
        format!("ping {echo}, UDP 9000 {datagrams}"),
    ))
}

fn bulk(lab: &mut Lab) -> Result<Outcome> {
    let (a, b) = (lab.world.pod("cloud-a")?, lab.world.pod("cloud-b")?);
    let up = tcp::upload(&a.place, at(b.v4), 8 << 20)?;
    let down = tcp::download(&a.place, at(b.v4), 8 << 20)?;
    let mbit = |rate: f64| rate * 8.0 / 1e6;
    Ok(Outcome::Passed(format!(
        "{:.0} and {:.0} Mbit/s",
        mbit(up),
        mbit(down)
    )))
}

fn unreachable(lab: &mut Lab) -> Result<Outcome> {
    // edge1's private prefix is known to nobody but edge1.
    let (a, b) = (lab.world.pod("cloud-a")?, lab.world.pod("edge1-a")?);
    let wait = Duration::from_millis(300);
    let echo = icmp::ping(&a.place, b.v4.into(), 56, 2, wait)?;
    let datagrams = udp::exchange(&a.place, at(b.v4), 100, 2, wait)?;
    let connection = tcp::connect(&a.place, at(b.v4), wait);
    Ok(judge(
        echo.none() && datagrams.none() && connection.is_err(),
        format!("ping {echo}, UDP {datagrams}"),
    ))
}

fn plaintext(lab: &mut Lab) -> Result<Outcome> {
    let before = lab.capture.counts();
    // Nothing of ours is there, so a pod's packet leaves edge2 as it is.
    let pod = lab.world.pod("edge2-a")?;
    icmp::ping(
        &pod.place,
        CONNECTOR.gateway4().into(),
        56,
        5,
        Duration::from_millis(50),
    )?;
    let seen = lab.capture.counts().since(&before);
    Ok(judge(
        seen.plaintext >= 5 && seen.missed == 0,
        format!("{} packets, {:?}", seen.plaintext, seen.samples),
    ))
}

fn losses(lab: &mut Lab) -> Result<Outcome> {
    let (a, b) = (lab.world.pod("cloud-a")?, lab.world.pod("cloud-b")?);
    let stream = Stream::start(&a.place, &b.place, b.v4.into(), 1000, 64)?;
    stream.wait_for(500, WAIT).context("the stream does not start")?;
    let node = &lab.world.site("node1")?.place;
    node.ip(&format!("route add blackhole {}/32", b.v4))?;
    std::thread::sleep(Duration::from_millis(500));
    node.ip(&format!("route del blackhole {}/32", b.v4))?;
    stream.wait_for(500, WAIT).context("the stream does not resume")?;
    let report = stream.finish()?;
    Ok(judge(
        (300..2000).contains(&report.lost) && report.longest_gap > Duration::from_millis(400),
        format!(
            "{} of {} lost, gap {:?}",
            report.lost, report.sent, report.longest_gap
        ),
    ))
}

fn injected(lab: &mut Lab) -> Result<Outcome> {
    let victim = lab.world.pod("edge2-a")?;
    let delivered = inject::from_lan(&lab.world, CONNECTOR.gateway4(), victim, 10)?;
    Ok(judge(delivered == 10, format!("{delivered} of 10 delivered")))
}

fn host_port(lab: &mut Lab) -> Result<Outcome> {
    let nat = lab.world.router("nat1")?;
    let seen = tcp::who(nat, "192.168.50.2:8080".parse()?, WAIT)?;
    Ok(judge(
        seen.ip().to_string() == "192.168.50.1",
        format!("seen as {seen}"),
    ))
}

fn removed(lab: &mut Lab) -> Result<Outcome> {
    lab.remove_pod("edge2-a")?;
    let site = lab.world.site("edge2")?;
    let links = site.place.must(&["ip", "-br", "link", "show", "type", "veth"])?;
    let left = links.lines().filter(|line| !line.starts_with("eth0")).count();
    let cache = std::fs::read_dir(site.path("/var/lib/cni/results"))
        .context("reading the cache")?
        .count();
    Ok(judge(
        left == 0 && cache == 0,
        format!("{left} interfaces and {cache} cache files left on {}", EDGE2.name),
    ))
}
