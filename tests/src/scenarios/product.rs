//! Bringing the product up: the operator, a charon and an agent per site, and pods.

use std::fs;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use serde_json::json;

use crate::lab::{Lab, wait_until};
use crate::pod::Pod;
use crate::probe::icmp;
use crate::suite::judge;
use crate::table::Outcome;
use crate::world::addresses::{Role, SITES};

/// The pods that are always there: name and site.
pub const PODS: [(&str, &str); 5] = [
    ("cloud-a", "connector"),
    ("cloud-b", "node1"),
    ("edge1-a", "edge1"),
    ("edge2-a", "edge2"),
    ("edge3-a", "edge3"),
];

/// How long a tunnel may take to come up, under emulation.
pub const CONVERGENCE: Duration = Duration::from_secs(120);

/// How long a probe waits for an answer that is expected.
pub const WAIT: Duration = Duration::from_secs(3);

/// How long a probe waits for an answer that must not come.
pub const SILENCE: Duration = Duration::from_millis(400);

/// Starts everything and attaches the pods; what talks to what is for the checks.
///
/// # Errors
/// When a program does not come up.
pub fn bring_up(lab: &mut Lab) -> Result<()> {
    let started = Instant::now();
    lab.start_operator()?;
    for numbers in SITES.iter().filter(|numbers| numbers.role != Role::Cloud) {
        lab.start_charon(numbers.name)?;
    }
    for numbers in &SITES {
        lab.start_agent(numbers.name)?;
    }
    for numbers in SITES.iter().filter(|numbers| numbers.role == Role::Edge) {
        lab.wait_for_cni(numbers.name)?;
    }
    for (pod, site) in PODS {
        lab.add_pod(pod, site)?;
    }
    lab.respond("internet")?;
    lab.start_api_server()?;
    lab.figures.seconds("bring_up_seconds", started.elapsed());
    Ok(())
}

/// Waits until every edge is reached from the cloud; the row that says how long the tunnels took.
///
/// # Errors
/// When one is not reached.
pub fn tunnels_come_up(lab: &mut Lab) -> Result<Outcome> {
    let started = Instant::now();
    for edge in ["edge1-a", "edge2-a", "edge3-a"] {
        wait_reach(lab.world.pod("cloud-b")?, lab.world.pod(edge)?, CONVERGENCE)?;
    }
    lab.figures
        .seconds("first_connectivity_seconds", started.elapsed());
    Ok(judge(
        true,
        format!("{:.1} s after the last pod", started.elapsed().as_secs_f64()),
    ))
}

/// Waits until `from` gets an echo from `to`; gives the time that took.
///
/// # Errors
/// When there is none within `limit`.
pub fn wait_reach(from: &Pod, to: &Pod, limit: Duration) -> Result<Duration> {
    let what = format!("{} reaches {}", from.place.name, to.place.name);
    wait_until(&what, limit, || {
        Ok(icmp::ping(&from.place, to.v4.into(), 56, 1, Duration::from_millis(250))?.all())
    })
}

/// Waits until two echoes in a row from `from` to `to` stay without an answer; gives the time until then.
///
/// # Errors
/// When there still are answers after `limit`.
pub fn wait_refused(from: &Pod, to: &Pod, limit: Duration) -> Result<Duration> {
    let what = format!("{} no longer reaches {}", from.place.name, to.place.name);
    wait_until(&what, limit, || {
        Ok(icmp::ping(&from.place, to.v4.into(), 56, 2, Duration::from_millis(250))?.none())
    })
}

/// Drops a manifest of the example's `communities` into the folder that the operator watches.
///
/// # Errors
/// When it cannot be copied.
pub fn apply(lab: &Lab, manifest: &str) -> Result<()> {
    let from = lab.settings.manifests.join("communities").join(manifest);
    let to = lab.manifests().join(manifest);
    fs::copy(&from, &to).with_context(|| format!("copying {} to {}", from.display(), to.display()))?;
    Ok(())
}

/// Takes a manifest out of that folder again.
///
/// # Errors
/// When it cannot be removed.
pub fn withdraw(lab: &Lab, manifest: &str) -> Result<()> {
    let file = lab.manifests().join(manifest);
    fs::remove_file(&file).with_context(|| format!("removing {}", file.display()))
}

/// Applies a manifest unless it is applied already.
///
/// # Errors
/// When it cannot be copied.
pub fn ensure(lab: &Lab, manifest: &str) -> Result<()> {
    if lab.manifests().join(manifest).exists() {
        Ok(())
    } else {
        apply(lab, manifest)
    }
}

/// What a pod asks of its runtime for a host port.
pub fn host_port(host: u16, container: u16) -> serde_json::Value {
    json!({"portMappings": [
        {"hostPort": host, "containerPort": container, "protocol": "tcp"},
        {"hostPort": host, "containerPort": container, "protocol": "udp"},
    ]})
}
