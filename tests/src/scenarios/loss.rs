//! What may happen to a tunnel's ends without costing a packet: a thousand datagrams a second each way between an edge1
//! pod and a pod of the connector, and each event in the midst of them.

use std::collections::BTreeSet;
use std::fs;
use std::thread;
use std::time::{Duration, SystemTime};

use anyhow::{Context, Result, ensure};
use fabedge_common::abi::{self, Verdict};
use serde_json::Value;

use super::communities::DIRECT;
use super::product::{self, CONVERGENCE, wait_reach, wait_refused};
use crate::lab::charon::swanctl;
use crate::lab::{Lab, Switch, wait_until};
use crate::observe::{self, Packets};
use crate::probe::stream::Pair;
use crate::suite::{Check, Suite, judge};
use crate::table::Outcome;
use crate::world::documents;

/// As a suite.
pub const SUITE: Suite = Suite {
    name: "loss",
    about: "what costs no packet of 1,000 a second each way, edge1 pod (up) and pod of the connector (down)",
    settings: |_| {},
    prepare: |lab| {
        product::bring_up(lab)?;
        product::tunnels_come_up(lab)?;
        Ok(())
    },
    checks: &[RESTARTS, UPGRADES, DOCUMENTS, KEYS],
};

/// Agents that end and start again.
pub const RESTARTS: &[Check] = &[
    Check {
        name: "agent of edge1 killed and restarted",
        run: |lab| agent_killed(lab, "edge1"),
    },
    Check {
        name: "agent of the connector killed and restarted",
        run: |lab| agent_killed(lab, "connector"),
    },
];

const UPGRADES: &[Check] = &[
    Check {
        name: "agent of edge1 follows one of another ABI version",
        run: |lab| other_version(lab, "edge1"),
    },
    Check {
        name: "agent of the connector follows one of another ABI version",
        run: |lab| other_version(lab, "connector"),
    },
    Check {
        name: "fast path of edge1 switched off and on",
        run: |lab| switched(lab, "edge1"),
    },
    Check {
        name: "fast path of the connector switched off and on",
        run: |lab| switched(lab, "connector"),
    },
];

const DOCUMENTS: &[Check] = &[
    Check {
        name: "document of edge1: another peer comes and goes",
        run: community,
    },
    Check {
        name: "document of the connector: another peer comes and goes",
        run: another_edge,
    },
];

const KEYS: &[Check] = &[
    Check {
        name: "IKE_SA rekeyed by edge1",
        run: |lab| ike_rekeyed(lab, "edge1", "connector"),
    },
    Check {
        name: "IKE_SA rekeyed by the connector",
        run: |lab| ike_rekeyed(lab, "connector", "edge1"),
    },
    Check {
        name: "CHILD_SA rekeyed by edge1",
        run: |lab| child_rekeyed(lab, "edge1", "connector"),
    },
    Check {
        name: "CHILD_SA rekeyed by the connector",
        run: |lab| child_rekeyed(lab, "connector", "edge1"),
    },
    Check {
        name: "certificates of edge1 and the connector renewed",
        run: certificates,
    },
];

/// Datagrams per second each way.
const RATE: u32 = 1000;

/// How often a key is renewed.
const ROUNDS: usize = 3;

/// What an event breaks late must be seen too.
const AFTERWARDS: Duration = Duration::from_secs(2);

/// For how long charon keeps the inbound half of a CHILD_SA that was rekeyed (`delete_rekeyed_delay`).
const KEPT: Duration = Duration::from_secs(5);

/// Between questions to charon, each a program that starts: it would take the CPU from the streams.
const PAUSE: Duration = Duration::from_millis(200);

/// The version that pinned maps are said to have: none was ever released under this number.
const OTHER_VERSION: u8 = 77;

/// Does something in the midst of the streams; its own words follow the counts.
fn without_a_loss(lab: &mut Lab, event: impl FnOnce(&mut Lab) -> Result<String>) -> Result<Outcome> {
    let before = lab.capture.counts();
    let pair = Pair::start(lab.world.pod("edge1-a")?, lab.world.pod("cloud-a")?, RATE)?;
    pair.wait("at first", CONVERGENCE)?;
    thread::sleep(Duration::from_secs(1));
    let done = event(lab);
    thread::sleep(AFTERWARDS);
    let flows = pair.wait("in the end", CONVERGENCE);
    let reports = pair.finish()?;
    let also = done.with_context(|| reports.to_string())?;
    flows.with_context(|| reports.to_string())?;
    let leaked = lab.capture.counts().since(&before).plaintext;
    lab.figures.add("lost_without_a_fault", reports.lost());
    Ok(judge(
        reports.lost() == 0 && leaked == 0,
        format!("{reports}; {leaked} plaintext; {also}"),
    ))
}

/// Starts the agent of a site where there is none, and waits for its first report.
fn start_agent(lab: &mut Lab, site: &str) -> Result<()> {
    let started = SystemTime::now();
    lab.start_agent(site)?;
    let status = lab.world.site(site)?.path("/run/fabedge/status.json");
    lab.daemon(&format!("{site}/agent"))?
        .wait_until("it reported", CONVERGENCE, || {
            fs::metadata(&status)
                .and_then(|meta| meta.modified())
                .is_ok_and(|time| time > started)
        })
}

/// Waits until the agent of a site says this of its fast path.
fn wait_for_fast_path(lab: &Lab, site: &str, state: &str) -> Result<()> {
    wait_until(&format!("fast path of {site} {state}"), CONVERGENCE, || {
        Ok(observe::status(lab.world.site(site)?)?["fastPath"] == state)
    })?;
    Ok(())
}

/// Waits until the programs of a site carry packets by the maps that are pinned.
fn wait_for_fast_packets(lab: &Lab, site: &str) -> Result<()> {
    wait_until(
        &format!("packets on the fast path of {site}"),
        CONVERGENCE,
        || Ok(Packets::read(lab.world.site(site)?)?.decided(Verdict::Fast) > 0),
    )?;
    Ok(())
}

/// SIGKILL, a second without an agent, a new one.
fn agent_killed(lab: &mut Lab, site: &str) -> Result<Outcome> {
    without_a_loss(lab, |lab| {
        lab.take_daemon(&format!("{site}/agent"))?.kill()?;
        thread::sleep(Duration::from_secs(1));
        start_agent(lab, site)?;
        Ok("a second without an agent".to_owned())
    })
}

/// An agent finds what one of another ABI version left: programs that carry packets, and maps that it cannot use.
fn other_version(lab: &mut Lab, site: &str) -> Result<Outcome> {
    if lab.settings.fast_path == Switch::Off {
        return Ok(Outcome::NotHere(
            "without the fast path there are no maps".to_owned(),
        ));
    }
    without_a_loss(lab, |lab| {
        lab.take_daemon(&format!("{site}/agent"))?
            .terminate(Duration::from_secs(20))?;
        let place = lab.world.site(site)?.place.clone();
        let said = format!(
            "bpftool map update pinned {}/state key 0 0 0 0 value {OTHER_VERSION} 0 0 0 0 0 0 0",
            observe::PINS
        );
        // An earlier version had other maps, too.
        place.shell(&format!("{said}; rm {}/sas {0}/cpus", observe::PINS))?;
        ensure!(version(lab, site)? == Some(OTHER_VERSION.into()));
        start_agent(lab, site)?;
        wait_for_fast_path(lab, site, "on")?;
        let version = version(lab, site)?;
        ensure!(
            version == Some(abi::VERSION.into()),
            "the maps have version {version:?}"
        );
        wait_for_fast_packets(lab, site)?;
        Ok(format!("{OTHER_VERSION} to {}", abi::VERSION))
    })
}

/// The ABI version of a site's pinned maps.
fn version(lab: &Lab, site: &str) -> Result<Option<u64>> {
    let state = observe::dump(&lab.world.site(site)?.place, "state")?;
    Ok(state.first().and_then(|entry| entry["value"]["version"].as_u64()))
}

/// Another argument of an agent, and the old one again.
fn switched(lab: &mut Lab, site: &str) -> Result<Outcome> {
    let usual = lab.settings.fast_path;
    let outcome = without_a_loss(lab, |lab| {
        for (switch, state) in [(Switch::Off, "off"), (Switch::On, "on")] {
            lab.take_daemon(&format!("{site}/agent"))?
                .terminate(Duration::from_secs(20))?;
            lab.settings.fast_path = switch;
            start_agent(lab, site)?;
            wait_for_fast_path(lab, site, state)?;
            thread::sleep(Duration::from_secs(2));
        }
        wait_for_fast_packets(lab, site)?;
        Ok("2 s on the slow path".to_owned())
    });
    lab.settings.fast_path = usual;
    outcome
}

/// edge1 gets a tunnel with another edge, and loses it.
fn community(lab: &mut Lab) -> Result<Outcome> {
    without_a_loss(lab, |lab| {
        product::apply(lab, DIRECT)?;
        let (one, two) = (lab.world.pod("edge1-a")?, lab.world.pod("edge2-a")?);
        let came = wait_reach(one, two, CONVERGENCE);
        product::withdraw(lab, DIRECT)?;
        let came = came?;
        let went = wait_refused(one, two, CONVERGENCE)?;
        Ok(format!(
            "edge2 came after {:.1} s and went after {:.1} s",
            came.as_secs_f64(),
            went.as_secs_f64()
        ))
    })
}

/// An edge that nobody else knows: the connector is to answer it, and then no longer.
const EDGE4: &str = "apiVersion: v1
kind: Node
metadata:
  name: edge4
  labels:
    node-role.kubernetes.io/edge: \"\"
spec:
  podCIDR: 10.233.69.0/24
status:
  addresses:
  - {type: InternalIP, address: 192.168.50.2}
";

fn another_edge(lab: &mut Lab) -> Result<Outcome> {
    without_a_loss(lab, |lab| {
        let manifest = lab.manifests().join("edge4.yaml");
        fs::write(&manifest, EDGE4).with_context(|| format!("writing {}", manifest.display()))?;
        let known = |known: bool| {
            wait_until("the connector's peers change", CONVERGENCE, || {
                Ok(peer(lab, "connector", "edge4")?.is_null() != known)
            })
        };
        let came = known(true);
        fs::remove_file(&manifest).with_context(|| format!("removing {}", manifest.display()))?;
        let came = came?;
        let went = known(false)?;
        Ok(format!(
            "edge4 came after {:.1} s and went after {:.1} s",
            came.as_secs_f64(),
            went.as_secs_f64()
        ))
    })
}

/// What the agent of a site reports of a peer.
fn peer(lab: &Lab, site: &str, peer: &str) -> Result<Value> {
    Ok(observe::status(lab.world.site(site)?)?["peers"][format!("fabedge.{peer}")].clone())
}

/// The SPIs of established IKE_SAs with a peer.
fn ike_sas(lab: &Lab, site: &str, peer: &str) -> Result<BTreeSet<String>> {
    let start = format!("fabedge-fabedge.{peer}: #");
    let listed = swanctl(lab.world.site(site)?, &["--list-sas"])?;
    let lines = listed.lines().filter_map(|line| line.strip_prefix(&start));
    Ok(lines
        .filter(|line| line.contains(", ESTABLISHED, "))
        .filter_map(|line| Some(line.rsplit_once(", ")?.1.replace('*', "")))
        .collect())
}

fn ike_rekeyed(lab: &mut Lab, site: &str, other: &str) -> Result<Outcome> {
    without_a_loss(lab, |lab| {
        for _ in 0..ROUNDS {
            let before = ike_sas(lab, site, other)?;
            let name = format!("fabedge-fabedge.{other}");
            swanctl(lab.world.site(site)?, &["--rekey", "--ike", &name])?;
            wait_until("one other IKE_SA at both ends", CONVERGENCE, || {
                thread::sleep(PAUSE);
                let now = ike_sas(lab, site, other)?;
                Ok(now.len() == 1 && now.is_disjoint(&before) && now == ike_sas(lab, other, site)?)
            })?;
        }
        Ok(format!("{ROUNDS} times"))
    })
}

/// The SPIs, in and out, of the CHILD_SAs that an agent reports for a peer.
fn child_sas(lab: &Lab, site: &str, other: &str) -> Result<BTreeSet<[Option<u64>; 2]>> {
    let peer = peer(lab, site, other)?;
    let children = peer["children"].as_array().map_or(&[][..], Vec::as_slice);
    Ok(children
        .iter()
        .map(|child| [child["spiIn"].as_u64(), child["spiOut"].as_u64()])
        .collect())
}

fn child_rekeyed(lab: &mut Lab, site: &str, other: &str) -> Result<Outcome> {
    without_a_loss(lab, |lab| {
        for _ in 0..ROUNDS {
            let mut name = Value::Null;
            wait_until("a CHILD_SA", CONVERGENCE, || {
                name = peer(lab, site, other)?["children"][0]["name"].clone();
                Ok(name.is_string())
            })?;
            let before = child_sas(lab, site, other)?;
            let name = name.as_str().context("a CHILD_SA without a name")?;
            swanctl(lab.world.site(site)?, &["--rekey", "--child", name])?;
            wait_until("one other CHILD_SA at both ends", CONVERGENCE, || {
                let now = child_sas(lab, site, other)?;
                let there = child_sas(lab, other, site)?;
                let there = there.into_iter().map(|[spi_in, spi_out]| [spi_out, spi_in]);
                Ok(now.len() == 1 && now.is_disjoint(&before) && now == there.collect())
            })?;
        }
        thread::sleep(KEPT);
        Ok(format!("{ROUNDS} times"))
    })
}

/// The operator, started again, finds certificates missing and issues others, which the agents give to charon.
fn certificates(lab: &mut Lab) -> Result<Outcome> {
    const SITES: [&str; 2] = ["edge1", "connector"];
    without_a_loss(lab, |lab| {
        lab.take_daemon("operator")?.terminate(Duration::from_secs(20))?;
        let file = |site: &str| documents().join(site).join("tls.crt");
        for site in SITES {
            fs::remove_file(file(site)).with_context(|| format!("removing the certificate of {site}"))?;
        }
        lab.start_operator()?;
        for site in SITES {
            wait_until(
                &format!("another certificate at charon of {site}"),
                CONVERGENCE,
                || {
                    let Ok(text) = fs::read_to_string(file(site)) else {
                        return Ok(false);
                    };
                    let held = swanctl(lab.world.site(site)?, &["--list-certs", "--pem"])?;
                    Ok(held.contains(text.trim()))
                },
            )?;
        }
        Ok("both charons have others".to_owned())
    })
}
