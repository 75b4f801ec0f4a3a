//! The metrics as text (Prometheus text format 0.0.4). Pure: a fresh registry per scrape, filled from values.

use std::collections::BTreeMap;

use prometheus::core::Collector;
use prometheus::{Encoder, IntCounterVec, IntGauge, IntGaugeVec, Opts, Registry, TextEncoder};

use crate::datapath::read::Counters;
use crate::firewall::Count;
use crate::status::Status;

/// Encodes one scrape.
pub fn exposition(
    status: &Status,
    counters: &Counters,
    dropped: &BTreeMap<String, Count>,
    resident_bytes: u64,
) -> String {
    encode(status, counters, dropped, resident_bytes)
        .unwrap_or_else(|error| format!("# not encoded: {error}\n"))
}

fn encode(
    status: &Status,
    counters: &Counters,
    dropped: &BTreeMap<String, Count>,
    resident_bytes: u64,
) -> prometheus::Result<String> {
    let registry = Registry::new();
    let add = |collector: Box<dyn Collector>| registry.register(collector);
    let gauge = |name: &str, help: &str, value: i64| {
        let gauge = IntGauge::new(name, help)?;
        gauge.set(value);
        add(Box::new(gauge))
    };
    let gauges = |name: &str, help: &str, labels: &[&str], values: Vec<(Vec<&str>, i64)>| {
        let vec = IntGaugeVec::new(Opts::new(name, help), labels)?;
        for (labels, value) in values {
            vec.with_label_values(&labels).set(value);
        }
        add(Box::new(vec))
    };
    let totals = |name: &str, help: &str, labels: &[&str], values: Vec<(Vec<&str>, u64)>| {
        let vec = IntCounterVec::new(Opts::new(name, help), labels)?;
        for (labels, value) in values {
            vec.with_label_values(&labels).inc_by(value);
        }
        add(Box::new(vec))
    };

    gauges(
        "fabedge_build_info",
        "Version of the agent; always 1.",
        &["component", "version"],
        vec![(vec!["agent", &status.version], 1)],
    )?;
    gauge(
        "fabedge_agent_ready",
        "1 when the newest document is applied.",
        status.ready().is_ok().into(),
    )?;
    gauge(
        "fabedge_agent_config_generation",
        "Generation of the document in force.",
        status.generation.try_into().unwrap_or(i64::MAX),
    )?;
    totals(
        "fabedge_agent_passes_total",
        "Reconcile passes.",
        &["role"],
        vec![(vec![status.role.as_str()], status.passes)],
    )?;
    gauges(
        "fabedge_agent_problems",
        "Problems that the last pass met, by subsystem.",
        &["subsystem"],
        status
            .problems
            .iter()
            .map(|(name, list)| (vec![name.as_str()], list.len() as i64))
            .collect(),
    )?;
    gauge(
        "fabedge_agent_fast_path_active",
        "1 when eBPF programs steer pod traffic, 0 when the kernel's slow path carries everything.",
        (status.fast_path == "on").into(),
    )?;
    gauge(
        "fabedge_agent_resident_memory_bytes",
        "Resident memory of the agent.",
        resident_bytes.try_into().unwrap_or(i64::MAX),
    )?;
    gauges(
        "fabedge_agent_peer_child_sas",
        "Installed CHILD_SAs of a peer; 0 means that it cannot be reached.",
        &["peer"],
        status
            .peers
            .iter()
            .map(|(name, peer)| (vec![name.as_str()], peer.children.len() as i64))
            .collect(),
    )?;
    gauges(
        "fabedge_agent_peer_path_mtu_bytes",
        "The largest packet that the tunnel to a peer carries in one piece, as measured; missing while it is not known.",
        &["peer"],
        status
            .peers
            .iter()
            .filter_map(|(name, peer)| Some((vec![name.as_str()], peer.path_mtu?.into())))
            .collect(),
    )?;
    totals(
        "fabedge_agent_fast_path_packets_total",
        "Packets that eBPF programs saw, by what became of them.",
        &["outcome"],
        counters
            .reasons
            .iter()
            .map(|(name, value)| (vec![name.as_str()], *value))
            .collect(),
    )?;
    totals(
        "fabedge_agent_dropped_packets_total",
        "Packets that the nftables table of this node dropped, by reason.",
        &["reason"],
        dropped
            .iter()
            .map(|(name, count)| (vec![name.as_str()], count.packets))
            .collect(),
    )?;
    gauge(
        "fabedge_agent_foreign_programs",
        "eBPF programs of others on the hooks of the fast path.",
        status.foreign_programs.len() as i64,
    )?;
    let name = |reqid: u32| {
        status
            .peers
            .keys()
            .find(|name| fabedge_common::abi::reqid(name) == reqid)
    };
    for (metric, help, value) in [
        ("packets", "Packets that the fast path carried, by peer.", 0),
        (
            "bytes",
            "Bytes that the fast path carried, by peer; inner packets.",
            1,
        ),
    ] {
        let mut values = Vec::new();
        for (reqid, peer) in &counters.peers {
            let Some(name) = name(*reqid) else { continue };
            let [tx, rx] = [
                [peer.tx_packets, peer.tx_bytes][value],
                [peer.rx_packets, peer.rx_bytes][value],
            ];
            values.push((vec![name.as_str(), "out"], tx));
            values.push((vec![name.as_str(), "in"], rx));
        }
        totals(
            &format!("fabedge_agent_peer_{metric}_total"),
            help,
            &["peer", "direction"],
            values,
        )?;
    }

    let mut text = Vec::new();
    TextEncoder::new().encode(&registry.gather(), &mut text)?;
    Ok(String::from_utf8_lossy(&text).into_owned())
}
