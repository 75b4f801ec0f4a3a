//! The maps as people and metrics read them. Needs no running agent, only the pins.

use std::collections::BTreeMap;
use std::fmt;
use std::net::IpAddr;
use std::path::Path;

use fabedge_common::abi::{
    POD_LEARNING, POD_SHAPED, Peer, Program, ROUTE_STACK, ROUTE_TUN, ROUTE_XFRM, Reason,
};
use ipnet::IpNet;
use serde::Serialize;

use super::bpffs::Pinboard;
use super::maps::{self, Found, Maps};
use crate::marks;

/// Why nothing can be read.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// No maps.
    #[error("no maps are pinned in {0}: the fast path is off, or the agent never ran here")]
    Nothing(String),
    /// Not our maps.
    #[error("the maps pinned in {dir} are not of this agent's version ({found}): restart the agent")]
    Other {
        /// Where.
        dir: String,
        /// What they are.
        found: String,
    },
    /// A map that is there but cannot be read.
    #[error(transparent)]
    Maps(#[from] maps::Error),
}

/// What the programs have counted.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// Packets by `<program>/<reason>`.
    pub reasons: BTreeMap<String, u64>,
    /// Traffic by the peers' reqid, fast and slow path together.
    pub peers: BTreeMap<u32, Peer>,
}

/// All maps.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Tables {
    /// Prefixes behind tunnels.
    pub routes: Vec<RouteRow>,
    /// Pods of this node.
    pub pods: Vec<PodRow>,
    /// Traffic by peer.
    pub peers: Vec<PeerRow>,
    /// Packets by program and reason.
    pub counters: Vec<CounterRow>,
    /// Directions of flows that are known to be the stack's.
    pub stack_flows: usize,
    /// How many of those were forgotten for want of room.
    pub stack_flows_evicted: u64,
}

/// An entry of `routes4` or `routes6`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct RouteRow {
    /// Destination.
    pub prefix: IpNet,
    /// `xfrm` or `tun`.
    pub kind: &'static str,
    /// Index of the tunnel device.
    pub ifindex: u32,
    /// reqid of the SAs.
    pub reqid: u32,
    /// Whether the stack carries it always.
    pub stack: bool,
    /// Largest packet.
    pub mtu: u32,
}

/// An entry of `pods4` or `pods6`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct PodRow {
    /// The pod's address.
    pub address: IpAddr,
    /// Index of the host's side of its veth.
    pub ifindex: u32,
    /// The pod's hardware address.
    pub mac: String,
    /// `fast`, `learning` or `shaped`.
    pub state: &'static str,
}

/// An entry of `peers`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct PeerRow {
    /// reqid of the SAs.
    pub reqid: u32,
    /// Packets sent into the tunnel.
    pub tx_packets: u64,
    /// Bytes of those.
    pub tx_bytes: u64,
    /// Packets received out of it.
    pub rx_packets: u64,
    /// Bytes of those.
    pub rx_bytes: u64,
}

/// An entry of `stats`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct CounterRow {
    /// The program.
    pub program: &'static str,
    /// `fast`, `stack` or `drop`.
    pub verdict: &'static str,
    /// Why.
    pub reason: &'static str,
    /// Packets.
    pub packets: u64,
    /// Bytes.
    pub bytes: u64,
}

/// The counters of this node.
///
/// # Errors
/// When there are no maps, or they cannot be read.
pub fn counters() -> Result<Counters, Error> {
    counters_in(Path::new(marks::BPF_DIR))
}

/// The counters of the maps pinned in `dir`.
///
/// # Errors
/// When there are no maps, or they cannot be read.
pub fn counters_in(dir: &Path) -> Result<Counters, Error> {
    let maps = open(dir)?;
    let stats = maps.stats()?;
    let name = |program: Program, reason: Reason| format!("{}/{}", program.name(), reason.name());
    Ok(Counters {
        reasons: stats
            .iter()
            .map(|(program, reason, count)| (name(*program, *reason), count.packets))
            .collect(),
        peers: maps.peers()?,
    })
}

/// The maps of this node.
///
/// # Errors
/// When there are no maps, or they cannot be read.
pub fn tables() -> Result<Tables, Error> {
    tables_in(Path::new(marks::BPF_DIR))
}

/// The maps pinned in `dir`.
///
/// # Errors
/// When there are no maps, or they cannot be read.
pub fn tables_in(dir: &Path) -> Result<Tables, Error> {
    let maps = open(dir)?;
    let counters: Vec<CounterRow> = maps
        .stats()?
        .into_iter()
        .map(|(program, reason, count)| CounterRow {
            program: program.name(),
            verdict: reason.verdict().name(),
            reason: reason.name(),
            packets: count.packets,
            bytes: count.bytes,
        })
        .collect();
    let stack_flows = maps.stack_flows()?.len();
    // Only the kernel's eviction removes flows, and a flow is counted when it is added.
    let added = counters
        .iter()
        .filter(|row| row.reason == Reason::Recorded.name())
        .map(|row| row.packets);
    let stack_flows_evicted = added.sum::<u64>().saturating_sub(stack_flows as u64);
    let routes = maps.routes()?.into_iter().map(|(prefix, route)| RouteRow {
        prefix,
        kind: match route.kind {
            ROUTE_XFRM => "xfrm",
            ROUTE_TUN => "tun",
            _ => "unknown",
        },
        ifindex: route.ifindex,
        reqid: route.reqid,
        stack: route.flags & ROUTE_STACK != 0,
        mtu: route.mtu,
    });
    let pods = maps.pods()?.into_iter().map(|(address, pod)| PodRow {
        address,
        ifindex: pod.ifindex,
        mac: pod.pod_mac.map(|byte| format!("{byte:02x}")).join(":"),
        state: if pod.flags & POD_SHAPED != 0 {
            "shaped"
        } else if pod.flags & POD_LEARNING != 0 {
            "learning"
        } else {
            "fast"
        },
    });
    let peers = maps.peers()?.into_iter().map(|(reqid, peer)| PeerRow {
        reqid,
        tx_packets: peer.tx_packets,
        tx_bytes: peer.tx_bytes,
        rx_packets: peer.rx_packets,
        rx_bytes: peer.rx_bytes,
    });
    Ok(Tables {
        routes: routes.collect(),
        pods: pods.collect(),
        peers: peers.collect(),
        counters,
        stack_flows,
        stack_flows_evicted,
    })
}

fn open(dir: &Path) -> Result<Box<Maps>, Error> {
    let shown = || dir.display().to_string();
    match maps::find(&Pinboard::new(dir.to_path_buf()))? {
        Found::Ours(maps) => Ok(maps),
        Found::Nothing => Err(Error::Nothing(shown())),
        Found::Other(found) => Err(Error::Other { dir: shown(), found }),
    }
}

impl fmt::Display for Tables {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "{:<24} {:>10} {:>8} {:>5}  PATH",
            "PREFIX", "REQID", "IFINDEX", "MTU"
        )?;
        for row in &self.routes {
            let path = if row.stack { "stack" } else { "fast" };
            writeln!(
                f,
                "{:<24} {:>10} {:>8} {:>5}  {path}",
                row.prefix.to_string(),
                row.reqid,
                row.ifindex,
                row.mtu
            )?;
        }
        writeln!(f, "\n{:<24} {:>8}  {:<17}  STATE", "POD", "IFINDEX", "MAC")?;
        for row in &self.pods {
            writeln!(
                f,
                "{:<24} {:>8}  {:<17}  {}",
                row.address.to_string(),
                row.ifindex,
                row.mac,
                row.state
            )?;
        }
        writeln!(
            f,
            "\n{:>10} {:>12} {:>15} {:>12} {:>15}",
            "REQID", "SENT", "BYTES", "RECEIVED", "BYTES"
        )?;
        for row in &self.peers {
            let PeerRow {
                reqid,
                tx_packets,
                tx_bytes,
                rx_packets,
                rx_bytes,
            } = row;
            writeln!(
                f,
                "{reqid:>10} {tx_packets:>12} {tx_bytes:>15} {rx_packets:>12} {rx_bytes:>15}"
            )?;
        }
        writeln!(
            f,
            "\n{:<16} {:<7} {:<16} {:>12} {:>15}",
            "PROGRAM", "VERDICT", "REASON", "PACKETS", "BYTES"
        )?;
        for row in &self.counters {
            let CounterRow {
                program,
                verdict,
                reason,
                packets,
                bytes,
            } = row;
            writeln!(
                f,
                "{program:<16} {verdict:<7} {reason:<16} {packets:>12} {bytes:>15}"
            )?;
        }
        writeln!(
            f,
            "\nflows of the stack: {} (evicted: {})",
            self.stack_flows, self.stack_flows_evicted
        )
    }
}
