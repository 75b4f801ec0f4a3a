//! What breaks, and what it costs: never plaintext, and traffic returns by itself.

use std::fs;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde_json::json;

use super::communities::DIRECT;
use super::product::{self, CONVERGENCE, SILENCE, WAIT, wait_reach};
use super::reports;
use crate::cni::CONF_DIR;
use crate::inject;
use crate::lab::{Lab, Tunnel, wait_until};
use crate::observe;
use crate::probe::icmp;
use crate::probe::stream::Pair;
use crate::suite::{Check, judge};
use crate::table::Outcome;
use crate::world::addresses::{CONNECTOR, EDGE1};
use crate::world::documents;

/// In this order: the last one looks back on the others.
pub const CHECKS: &[Check] = &[
    Check {
        name: "charon of edge1 stopped and started again",
        run: |lab| charon_ends(lab, "edge1", false),
    },
    Check {
        name: "charon of edge1 killed and started again",
        run: |lab| charon_ends(lab, "edge1", true),
    },
    Check {
        name: "charon of the connector killed and started again",
        run: |lab| charon_ends(lab, "connector", true),
    },
    Check {
        name: "tunnel device of edge1 gone under traffic",
        run: device_gone,
    },
    Check {
        name: "plaintext injected from edge2's LAN",
        run: injected,
    },
    Check {
        name: "a broken document",
        run: broken_document,
    },
    Check {
        name: "operator gone, edge1 comes back from its cache",
        run: from_cache,
    },
    Check {
        name: "no stale state after a minute at most",
        run: soon_no_stale_state,
    },
];

/// Datagrams per second while it counts for how long nothing comes.
const SPARSE: u32 = 200;

/// Streams between an edge1 pod (up) and a pod of the connector (down), under way.
fn traffic(lab: &Lab) -> Result<Pair> {
    let pair = Pair::start(lab.world.pod("edge1-a")?, lab.world.pod("cloud-a")?, SPARSE)?;
    pair.wait("at first", CONVERGENCE)?;
    Ok(pair)
}

/// charon ends and comes back, as kubelet restarts a container. Stopped in order it deletes its SAs; killed, the
/// kernel may go on with them until the peers notice. It is over when both ends have the same SAs again.
fn charon_ends(lab: &mut Lab, site: &str, kill: bool) -> Result<Outcome> {
    let before = lab.capture.counts();
    let traffic = traffic(lab)?;
    let daemon = lab.take_daemon(&format!("{site}/charon"))?;
    if kill {
        daemon.kill()?;
    } else {
        daemon.terminate(Duration::from_secs(20))?;
    }
    thread::sleep(Duration::from_secs(1));
    let (up, down) = (traffic.up.received(), traffic.down.received());
    thread::sleep(Duration::from_secs(2));
    let flowed = (traffic.up.received() - up) + (traffic.down.received() - down);
    let started = Instant::now();
    lab.start_charon(site)?;
    traffic.wait("after charon's restart", CONVERGENCE)?;
    let took = started.elapsed();
    wait_until("the same SAs at both ends", CONVERGENCE, || {
        observe::sas_agree(&lab.world)
    })?;
    let settled = started.elapsed();
    traffic.wait("with the new SAs", CONVERGENCE)?;
    let reports = traffic.finish()?;
    let leaked = lab.capture.counts().since(&before).plaintext;
    let how = if kill { "kill" } else { "stop" };
    lab.figures
        .seconds(format!("recovery_seconds_charon_{how}_{site}"), settled);
    let meanwhile = if flowed == 0 {
        "traffic stopped"
    } else {
        "traffic went on"
    };
    Ok(judge(
        leaked == 0 && (kill || flowed == 0),
        format!(
            "{meanwhile}; flows {:.1} s after the start, all in order after {:.1} s; {leaked} plaintext; {}",
            took.as_secs_f64(),
            settled.as_secs_f64(),
            reports
        ),
    ))
}

/// The device that routes and programs point to is deleted; charon's own TUN, which nobody else can make again, is
/// set down instead.
fn device_gone(lab: &mut Lab) -> Result<Outcome> {
    let before = lab.capture.counts();
    let traffic = traffic(lab)?;
    let gone = Instant::now();
    let place = &lab.world.site("edge1")?.place;
    match lab.settings.tunnel {
        Tunnel::Xfrm => place.ip("link del fabedge0")?,
        Tunnel::Libipsec => place.ip("link set ipsec0 down")?,
    }
    traffic.wait("after the device was gone", CONVERGENCE)?;
    let took = gone.elapsed();
    let reports = traffic.finish()?;
    let leaked = lab.capture.counts().since(&before).plaintext;
    lab.figures.seconds("recovery_seconds_device", took);
    Ok(judge(
        leaked == 0,
        format!(
            "repaired after {:.1} s; {leaked} plaintext; {}",
            took.as_secs_f64(),
            reports
        ),
    ))
}

/// Sources of a pod of the connector, of another edge and of the own site: none is believed on the LAN.
fn injected(lab: &mut Lab) -> Result<Outcome> {
    let victim = lab.world.pod("edge2-a")?;
    let mut delivered = 0;
    for source in [
        lab.world.pod("cloud-a")?.v4,
        lab.world.pod("edge1-a")?.v4,
        CONNECTOR.gateway4(),
        EDGE1.gateway4(),
    ] {
        delivered += inject::from_lan(&lab.world, source, victim, 10)?;
    }
    lab.figures.set("injected_delivered", delivered);
    Ok(judge(delivered == 0, format!("{delivered} of 40 delivered")))
}

/// A truncated document: the last good one stays in force, and the status names the error.
fn broken_document(lab: &mut Lab) -> Result<Outcome> {
    let file = documents().join("edge1").join("tunnels.yaml");
    let good = fs::read_to_string(&file).with_context(|| format!("reading {}", file.display()))?;
    replace(&file, &good[..good.len() * 2 / 3])?;
    let mut problem = String::new();
    let named = wait_until(
        "the status names the broken document",
        Duration::from_secs(20),
        || {
            let status = observe::status(lab.world.site("edge1")?)?;
            if let Some(text) = status["documentProblem"].as_str() {
                text.clone_into(&mut problem);
            }
            Ok(!problem.is_empty())
        },
    );
    let (edge, cloud) = (lab.world.pod("edge1-a")?, lab.world.pod("cloud-a")?);
    let echo = icmp::ping(&edge.place, cloud.v4.into(), 56, 3, WAIT)?;
    replace(&file, &good)?;
    named?;
    wait_until("the status is good again", Duration::from_secs(20), || {
        Ok(observe::status(lab.world.site("edge1")?)?["documentProblem"].is_null())
    })?;
    Ok(judge(echo.all(), format!("ping {echo}; {problem}")))
}

/// Replaces a file in one step, as operator and kubelet do.
///
/// # Errors
/// When it cannot be written.
pub fn replace(file: &std::path::Path, text: &str) -> Result<()> {
    let next = file.with_extension("next");
    fs::write(&next, text).with_context(|| format!("writing {}", next.display()))?;
    fs::rename(&next, file).with_context(|| format!("replacing {}", file.display()))
}

/// A reboot without the cloud's help: no operator, no document, no certificates at hand, and nothing left in the
/// kernel or in /run. The neighbours are as they were.
fn from_cache(lab: &mut Lab) -> Result<Outcome> {
    let before = lab.capture.counts();
    lab.take_daemon("operator")?.terminate(Duration::from_secs(20))?;
    lab.take_daemon("edge1/agent")?.kill()?;
    lab.take_daemon("edge1/charon")?.kill()?;
    let folder = documents().join("edge1");
    let hidden = documents().join("edge1.hidden");
    fs::create_dir_all(&hidden).with_context(|| format!("making {}", hidden.display()))?;
    move_files(&folder, &hidden)?;
    let site = lab.world.site("edge1")?.clone();
    // Pods do not run yet when a node boots: their interfaces are down until the site is closed both ways.
    let ports = |state: &str| {
        format!("for port in /sys/class/net/br-fabedge/brif/*; do ip link set ${{port##*/}} {state}; done")
    };
    site.place.shell(&ports("down"))?;
    site.place.shell(
        "ip link del fabedge0 2>/dev/null || true
nft flush ruleset
ip xfrm state flush; ip xfrm policy flush
ip route flush table 220 2>/dev/null || true
ip -6 route flush table 220 2>/dev/null || true
for f in -4 -6; do for pref in 219 220 221; do while ip $f rule del pref $pref 2>/dev/null; do :; done; done; done
rm -rf /run/fabedge /sys/fs/bpf/fabedge",
    )?;
    let started = Instant::now();
    lab.start_charon("edge1")?;
    lab.start_agent("edge1")?;
    // A link into the site's own /run, which is seen from here under another path.
    let link = site.path(CONF_DIR).join("fabedge.conflist");
    let closed = wait_until("the conflist of edge1", CONVERGENCE, || {
        Ok(fs::read_link(&link).is_ok_and(|target| site.path(&target.to_string_lossy()).exists()))
    });
    site.place.shell(&ports("up"))?;
    let (edge, cloud) = (lab.world.pod("edge1-a")?, lab.world.pod("cloud-a")?);
    let back = wait_reach(edge, cloud, CONVERGENCE);
    let took = started.elapsed();
    let origin = observe::status(&site).map(|status| status["origin"].clone());
    move_files(&hidden, &folder)?;
    fs::remove_dir(&hidden).with_context(|| format!("removing {}", hidden.display()))?;
    lab.start_operator()?;
    closed?;
    back?;
    let leaked = lab.capture.counts().since(&before).plaintext;
    lab.figures.seconds("recovery_seconds_from_cache", took);
    Ok(judge(
        leaked == 0,
        format!(
            "reachable after {:.1} s, document from {}; {leaked} plaintext",
            took.as_secs_f64(),
            origin.unwrap_or(json!("?"))
        ),
    ))
}

/// Moves every file of one folder to another.
fn move_files(from: &std::path::Path, to: &std::path::Path) -> Result<()> {
    let entries = fs::read_dir(from).with_context(|| format!("reading {}", from.display()))?;
    for entry in entries {
        let path = entry
            .with_context(|| format!("reading {}", from.display()))?
            .path();
        let name = path.file_name().context("a file has no name")?;
        fs::rename(&path, to.join(name)).with_context(|| format!("moving {}", path.display()))?;
    }
    Ok(())
}

/// What the faults above left behind goes by itself: charon retransmits, gives up and deletes.
fn soon_no_stale_state(lab: &mut Lab) -> Result<Outcome> {
    let deadline = Instant::now() + Duration::from_secs(60);
    loop {
        let outcome = reports::no_stale_state(lab)?;
        if !matches!(outcome, Outcome::Failed(_)) || Instant::now() > deadline {
            return Ok(outcome);
        }
        thread::sleep(Duration::from_secs(1));
    }
}

/// What faults start from: everything up, edge1 and edge2 joined.
///
/// # Errors
/// When something does not come up.
pub fn prepare(lab: &mut Lab) -> Result<()> {
    product::bring_up(lab)?;
    product::tunnels_come_up(lab)?;
    product::ensure(lab, DIRECT)?;
    let (one, two) = (lab.world.pod("edge1-a")?, lab.world.pod("edge2-a")?);
    wait_reach(one, two, CONVERGENCE)?;
    ensure!(
        icmp::ping(&two.place, one.v4.into(), 56, 1, SILENCE.max(WAIT))?.all(),
        "edge2 does not reach edge1"
    );
    Ok(())
}
