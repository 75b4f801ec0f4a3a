//! Flows whose addresses somebody rewrites: Services, host ports, masquerade, a CNI's rules, other people's firewalls,
//! NAT routers that forget.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use anyhow::{Context, Result};
use serde_json::json;

use super::product::{self, CONVERGENCE, WAIT, wait_reach};
use crate::lab::Lab;
use crate::place::Place;
use crate::probe::reach::{Reach, both_ways};
use crate::probe::responder::PORT;
use crate::probe::stream::Stream;
use crate::probe::{icmp, tcp, udp};
use crate::suite::{Check, judge};
use crate::table::Outcome;
use crate::world::addresses::{API_SERVER, CONNECTOR, EDGE1, EDGE2, INTERNET, NODE1};
use crate::world::network::remap_nat;

/// In any order, with both Communities in force.
pub const CHECKS: &[Check] = &[
    Check {
        name: "pods see each other's own addresses",
        run: addresses,
    },
    Check {
        name: "edge pods reach cloud nodes, cloud nodes reach edge pods",
        run: nodes,
    },
    Check {
        name: "edge nodes reach the API server outside the tunnel",
        run: api_server,
    },
    Check {
        name: "edge pods reach the internet, masqueraded",
        run: internet,
    },
    Check {
        name: "a CNI's masquerade rule changes nothing",
        run: cni_masquerade,
    },
    Check {
        name: "hostPort on an edge",
        run: host_port_edge,
    },
    Check {
        name: "hostPort on the connector, through the tunnel",
        run: host_port_connector,
    },
    Check {
        name: "ClusterIP on an edge to a remote pod",
        run: |lab| service(lab, "edge1", "edge1-a", "cloud-a"),
    },
    Check {
        name: "ClusterIP on an edge to a pod of another edge",
        run: |lab| service(lab, "edge1", "edge1-a", "edge2-a"),
    },
    Check {
        name: "ClusterIP on an edge to a local pod",
        run: service_local,
    },
    Check {
        name: "ClusterIP on the connector for an edge, local pod",
        run: |lab| service(lab, "connector", "edge1-a", "cloud-a"),
    },
    Check {
        name: "ClusterIP on the connector for an edge, other node",
        run: |lab| service(lab, "connector", "edge2-a", "cloud-b"),
    },
    Check {
        name: "ClusterIP on a cloud node to an edge pod",
        run: |lab| service(lab, "node1", "cloud-b", "edge1-a"),
    },
    Check {
        name: "ClusterIP on the connector to an edge pod",
        run: |lab| service(lab, "connector", "cloud-a", "edge3-a"),
    },
    Check {
        name: "a pod with limited bandwidth stays limited",
        run: bandwidth,
    },
    Check {
        name: "FORWARD DROP in iptables-nft",
        run: |lab| forward_drop(lab, "iptables-nft"),
    },
    Check {
        name: "FORWARD DROP in iptables-legacy",
        run: |lab| forward_drop(lab, "iptables-legacy"),
    },
    Check {
        name: "both NATs remap their ports under traffic",
        run: nat_remap,
    },
    Check {
        name: "both NATs remap their ports while all is idle",
        run: nat_remap_idle,
    },
];

fn at(address: impl Into<IpAddr>) -> SocketAddr {
    SocketAddr::new(address.into(), PORT)
}

/// Whom `to` sees when `from` calls, by TCP and by UDP.
fn seen(lab: &Lab, from: &str, to: SocketAddr) -> Result<[IpAddr; 2]> {
    let place = lab.world.place(from)?;
    let tcp = tcp::who(place, to, WAIT)?.ip();
    let udp = udp::who(place, to, WAIT)?
        .with_context(|| format!("no UDP answer from {to} to {from}"))?
        .ip();
    Ok([tcp, udp])
}

fn addresses(lab: &mut Lab) -> Result<Outcome> {
    let mut wrong = Vec::new();
    let pairs = [
        ("edge1-a", "cloud-a"),
        ("edge1-a", "cloud-b"),
        ("cloud-a", "edge1-a"),
        ("cloud-b", "edge1-a"),
        ("edge1-a", "edge2-a"),
        ("edge3-a", "edge1-a"),
    ];
    for (from, to) in pairs {
        let own = IpAddr::V4(lab.world.pod(from)?.v4);
        let seen = seen(lab, from, at(lab.world.pod(to)?.v4))?;
        if seen != [own; 2] {
            wrong.push(format!("{to} sees {from} ({own}) as {} and {}", seen[0], seen[1]));
        }
    }
    let note = if wrong.is_empty() {
        format!("{} pairs", pairs.len())
    } else {
        wrong.join("; ")
    };
    Ok(judge(wrong.is_empty(), note))
}

fn nodes(lab: &mut Lab) -> Result<Outcome> {
    let mut notes = Vec::new();
    let mut good = true;
    for node in [NODE1, CONNECTOR] {
        let edge = lab.world.pod("edge1-a")?;
        let there = icmp::ping(&edge.place, node.node.into(), 56, 3, WAIT)?;
        let back = icmp::ping(&lab.world.site(node.name)?.place, edge.v4.into(), 56, 3, WAIT)?;
        good &= there.all() && back.all();
        notes.push(format!("{}: {there} there, {back} back", node.name));
    }
    let edge = lab.world.place("edge1-a")?;
    let by = tcp::who(edge, API_SERVER.into(), WAIT)?.ip();
    Ok(judge(
        good,
        format!("{}; node1 sees the pod as {by}", notes.join("; ")),
    ))
}

fn api_server(lab: &mut Lab) -> Result<Outcome> {
    let mut notes = Vec::new();
    let mut good = true;
    for (site, outside) in [
        ("edge1", "172.16.1.2"),
        ("edge2", "172.16.2.2"),
        ("edge3", "172.16.3.2"),
    ] {
        let seen = tcp::who(&lab.world.site(site)?.place, API_SERVER.into(), WAIT)?.ip();
        good &= seen.to_string() == outside;
        notes.push(format!("{site} as {seen}"));
    }
    Ok(judge(good, format!("sees {}", notes.join(", "))))
}

fn internet(lab: &mut Lab) -> Result<Outcome> {
    let mut notes = Vec::new();
    let mut good = true;
    for (pod, outside) in [("edge1-a", "172.16.1.2"), ("edge2-a", "172.16.2.2")] {
        let seen = seen(lab, pod, at(INTERNET))?;
        good &= seen.iter().all(|address| address.to_string() == outside);
        notes.push(format!("{pod} as {} and {}", seen[0], seen[1]));
    }
    Ok(judge(good, format!("sees {}", notes.join(", "))))
}

/// The rule that the bridge plugin writes with `ipMasq`, ahead of where ours would come in a table by itself.
fn cni_masquerade(lab: &mut Lab) -> Result<Outcome> {
    let own = EDGE1.pods4();
    let rule = format!("POSTROUTING -t nat -s {own} ! -d {own} -j MASQUERADE");
    let place = lab.world.site("edge1")?.place.clone();
    place.shell(&format!("iptables -w -I {rule}"))?;
    let result = addresses(lab);
    place.shell(&format!("iptables -w -D {rule}"))?;
    result
}

/// 256 KiB of TCP each way and a few datagrams.
fn works(place: &Place, to: SocketAddr) -> Result<()> {
    tcp::upload(place, to, 256 * 1024)?;
    tcp::download(place, to, 256 * 1024)?;
    let datagrams = udp::exchange(place, to, 500, 5, WAIT)?;
    anyhow::ensure!(datagrams.all(), "UDP from {} to {to}: {datagrams}", place.name);
    Ok(())
}

fn host_port_edge(lab: &mut Lab) -> Result<Outcome> {
    lab.add_pod_with("edge2-web", "edge2", &product::host_port(8080, PORT))?;
    let to = SocketAddr::new(EDGE2.node.into(), 8080);
    let result = works(lab.world.place("lan2")?, to).and_then(|()| works(lab.world.place("internet")?, to));
    lab.remove_pod("edge2-web")?;
    result?;
    Ok(Outcome::Passed("from its LAN and from the internet".to_owned()))
}

fn host_port_connector(lab: &mut Lab) -> Result<Outcome> {
    lab.add_pod_with("cloud-web", "connector", &product::host_port(8081, PORT))?;
    let to = SocketAddr::new(CONNECTOR.node.into(), 8081);
    let result = works(lab.world.place("edge1-a")?, to).and_then(|()| works(lab.world.place("edge2-a")?, to));
    lab.remove_pod("cloud-web")?;
    result?;
    Ok(Outcome::Passed("from pods of edge1 and edge2".to_owned()))
}

/// Translates a ClusterIP on `site`, as kube-proxy does, to the pod `backend`, and calls it from the pod `client`.
fn service(lab: &mut Lab, site: &str, client: &str, backend: &str) -> Result<Outcome> {
    let cluster_ip = "10.233.0.50";
    let place = lab.world.site(site)?.place.clone();
    let to = at(lab.world.pod(backend)?.v4);
    let table = format!(
        "table ip lab_services {{
  chain prerouting {{
    type nat hook prerouting priority dstnat;
    ip daddr {cluster_ip} meta l4proto {{ tcp, udp }} th dport 80 dnat to {to}
  }}
}}"
    );
    place.nft(&table)?;
    let front: SocketAddr = format!("{cluster_ip}:80").parse().context("a ClusterIP")?;
    let from = lab.world.place(client)?;
    // Twice: the second time round the flow's kind is known, and the answers must not go another way.
    let result = works(from, front).and_then(|()| works(from, front));
    place.nft("delete table ip lab_services")?;
    result?;
    Ok(Outcome::Passed(format!("{client} -> {cluster_ip} -> {to}")))
}

fn service_local(lab: &mut Lab) -> Result<Outcome> {
    lab.add_pod("edge1-b", "edge1")?;
    let site = lab.world.site("edge1")?.place.clone();
    // Kubernetes demands it on every node: answers between two pods of one bridge have to pass the translation.
    site.output(&["modprobe", "br_netfilter"], WAIT)?;
    let bridged = site.sysctl(&["net/bridge/bridge-nf-call-iptables=1"]);
    let result = match bridged {
        Ok(()) => service(lab, "edge1", "edge1-a", "edge1-b"),
        Err(error) => Ok(Outcome::NotHere(format!("{error:#}"))),
    };
    lab.remove_pod("edge1-b")?;
    result
}

fn bandwidth(lab: &mut Lab) -> Result<Outcome> {
    const LIMIT: f64 = 8e6;
    let limits = json!({"bandwidth": {
        "ingressRate": LIMIT as u64, "ingressBurst": 800_000,
        "egressRate": LIMIT as u64, "egressBurst": 800_000,
    }});
    if let Err(error) = lab.add_pod_with("edge1-slow", "edge1", &limits) {
        let text = format!("{error:#}");
        return if text.contains("not supported") {
            Ok(Outcome::NotHere(text))
        } else {
            Err(error)
        };
    }
    let measure = |lab: &Lab| -> Result<(f64, f64)> {
        let (slow, cloud) = (lab.world.pod("edge1-slow")?, lab.world.pod("cloud-a")?);
        wait_reach(slow, cloud, CONVERGENCE)?;
        let up = tcp::upload(&slow.place, at(cloud.v4), 2 << 20)? * 8.0;
        let down = tcp::download(&slow.place, at(cloud.v4), 2 << 20)? * 8.0;
        Ok((up, down))
    };
    let result = measure(lab);
    lab.remove_pod("edge1-slow")?;
    let (up, down) = result?;
    // The burst goes on top.
    Ok(judge(
        up < 1.3 * LIMIT && down < 1.3 * LIMIT,
        format!(
            "{:.1} and {:.1} Mbit/s of {:.0}",
            up / 1e6,
            down / 1e6,
            LIMIT / 1e6
        ),
    ))
}

/// How long a new drop in FORWARD may keep three pairs of pods apart, under emulation: agents look every 30 s even without a
/// notice.
const FORWARD_REPAIR: Duration = Duration::from_secs(25);

/// What Docker does to a host: everything that is forwarded and not explicitly accepted is dropped.
fn forward_drop(lab: &mut Lab, tool: &str) -> Result<Outcome> {
    let sites = ["edge1", "edge3", "connector"];
    let policy = |lab: &Lab, policy: &str| -> Result<()> {
        for site in sites {
            lab.world
                .site(site)?
                .place
                .must(&[tool, "-w", "-P", "FORWARD", policy])?;
        }
        Ok(())
    };
    let test = |lab: &Lab| -> Result<Outcome> {
        let pod = |name| lab.world.pod(name);
        let mut took = Duration::ZERO;
        let pairs = [
            (pod("edge1-a")?, pod("cloud-a")?),
            (pod("edge1-a")?, pod("cloud-b")?),
            (pod("edge1-a")?, pod("edge3-a")?),
        ];
        for (a, b) in pairs {
            took += wait_reach(a, b, CONVERGENCE)?;
        }
        let results = both_ways(&pairs, false, WAIT)?;
        let bad: Vec<String> = results
            .iter()
            .filter(|reach| !reach.all())
            .map(Reach::to_string)
            .collect();
        let internet = seen(lab, "edge1-a", at(INTERNET))?;
        Ok(judge(
            bad.is_empty() && took < FORWARD_REPAIR,
            format!(
                "after {:.1} s; internet as {}; {}",
                took.as_secs_f64(),
                internet[0],
                bad.join("; ")
            ),
        ))
    };
    if let Err(error) = policy(lab, "DROP") {
        return Ok(Outcome::NotHere(format!("{error:#}")));
    }
    let result = test(lab);
    policy(lab, "ACCEPT")?;
    result
}

/// Ports before and after.
const RANGES: [Option<(u16, u16)>; 2] = [Some((50_000, 54_999)), Some((40_000, 44_999))];

fn remap(lab: &Lab, range: Option<(u16, u16)>) -> Result<()> {
    for nat in ["nat1", "nat3"] {
        remap_nat(lab.world.router(nat)?, range)?;
    }
    Ok(())
}

fn nat_remap(lab: &mut Lab) -> Result<Outcome> {
    let before = lab.capture.counts();
    let mut streams = Vec::new();
    for (a, b) in [("edge1-a", "cloud-a"), ("edge3-a", "cloud-b")] {
        let (a, b) = (lab.world.pod(a)?, lab.world.pod(b)?);
        streams.push(Stream::start(&a.place, &b.place, b.v4.into(), 200, 64)?);
        streams.push(Stream::start(&b.place, &a.place, a.v4.into(), 200, 64)?);
    }
    for stream in &streams {
        stream
            .wait_for(50, CONVERGENCE)
            .context("a stream does not start")?;
    }
    remap(lab, RANGES[0])?;
    std::thread::sleep(Duration::from_millis(300));
    for stream in &streams {
        stream
            .wait_for(50, CONVERGENCE)
            .context("a stream does not come back")?;
    }
    let mut gap = Duration::ZERO;
    for stream in streams {
        gap = gap.max(stream.finish()?.longest_gap);
    }
    let leaked = lab.capture.counts().since(&before).plaintext;
    lab.figures.seconds("nat_remap_gap_seconds", gap);
    Ok(judge(
        leaked == 0,
        format!("longest gap {:.2} s, {leaked} plaintext", gap.as_secs_f64()),
    ))
}

/// Nobody at the edges sends: how long they stay unreachable is up to keepalives and DPD.
fn nat_remap_idle(lab: &mut Lab) -> Result<Outcome> {
    remap(lab, RANGES[1])?;
    let (cloud, one, three) = (
        lab.world.pod("cloud-a")?,
        lab.world.pod("edge1-a")?,
        lab.world.pod("edge3-a")?,
    );
    let mut took = wait_reach(cloud, one, CONVERGENCE)?;
    took += wait_reach(cloud, three, CONVERGENCE)?;
    lab.figures.seconds("nat_remap_idle_seconds", took);
    Ok(judge(
        true,
        format!("both reachable after {:.1} s", took.as_secs_f64()),
    ))
}
