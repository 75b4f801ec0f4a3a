//! Packets of a pod to a peer whose route stays, while the routes around it change.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, anyhow};
use fabedge_common::abi::POD_LEARNING;

use super::documents::pods;
use super::node::{Node, PATIENCE};
use crate::bench::path::ground::{NODES, PODS};
use crate::cni::CONF_DIR;
use crate::lab::wait_until;
use crate::observe::{self, Packets};
use crate::probe::udp;

/// Packets sent one after another.
const BURST: usize = 16;

/// The pause behind them.
const PAUSE: Duration = Duration::from_micros(400);

/// What became of the packets.
#[derive(Clone, Debug)]
pub struct Gap {
    /// Sent by the pod.
    pub sent: u64,
    /// Sent on by the fast path.
    pub fast: u64,
    /// All that the programs counted.
    pub counted: String,
}

/// Sends while the node goes through documents in which `half` of its `peers` have other pods, and back, `times` times.
///
/// # Errors
/// When the pod cannot be made, or a document is not applied.
pub fn measure(node: &mut Node, peers: usize, half: usize, times: usize) -> Result<Gap> {
    let conflist = node
        .site()?
        .place
        .must(&["cat", &format!("{CONF_DIR}/fabedge.conflist")])?;
    node.ground.attach(PODS[0], NODES[0], &conflist)?;
    wait_until("the pod is no longer new to the programs", PATIENCE, || {
        let pods = observe::dump(&node.site()?.place, "pods4")?;
        let learning = |pod: &serde_json::Value| {
            pod["value"]["flags"].as_u64().unwrap_or(0) & u64::from(POD_LEARNING) != 0
        };
        Ok(!pods.is_empty() && !pods.iter().any(learning))
    })?;
    let pod = node.ground.world.pod(PODS[0])?.place.clone();
    let [a, b, c, _] = pods(peers - 1, 0).addr().octets();
    let to = SocketAddr::from((Ipv4Addr::new(a, b, c, 9), 9));
    let socket = udp::open(&pod, to)?;
    socket.connect(to).context("connecting a socket")?;
    let before = Packets::read(node.site()?)?;
    let ended = AtomicBool::new(false);
    let sent = thread::scope(|scope| -> Result<u64> {
        let sender = scope.spawn(|| {
            let mut sent = 0;
            while !ended.load(Ordering::Relaxed) {
                for _ in 0..BURST {
                    sent += u64::from(socket.send(&[7; 64]).is_ok());
                }
                thread::sleep(PAUSE);
            }
            sent
        });
        let applied = (0..times).try_for_each(|time| {
            node.apply(peers, if time % 2 == 0 { half } else { 0 })?;
            node.rest().map(drop)
        });
        ended.store(true, Ordering::Relaxed);
        let sent = sender.join().map_err(|_| anyhow!("the sender panicked"))?;
        applied.map(|()| sent)
    })?;
    let counted = Packets::read(node.site()?)?.since(&before);
    let named = counted.named();
    let fast = named.iter().filter(|(name, _)| name.starts_with("pod_egress"));
    let fast = fast.filter(|(name, _)| name.contains("fast") || name.contains("tunnel"));
    Ok(Gap {
        sent,
        fast: fast.map(|(_, count)| count).sum(),
        counted: format!("{named:?}"),
    })
}
