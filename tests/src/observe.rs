//! What the programs and the kernel say about themselves, read from outside.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use fabedge_common::abi::{Program, Reason, Verdict};
use serde_json::Value;

use crate::command;
use crate::place::Place;
use crate::site::Site;
use crate::world::World;
use crate::world::addresses::{Role, SITES};

/// The pinned maps.
pub const PINS: &str = "/sys/fs/bpf/fabedge";

/// What the agent last reported.
///
/// # Errors
/// When there is no report, or it is no JSON.
pub fn status(site: &Site) -> Result<Value> {
    let path = site.path("/run/fabedge/status.json");
    let text = fs::read_to_string(&path).with_context(|| format!("reading {}", path.display()))?;
    serde_json::from_str(&text).with_context(|| format!("parsing {}", path.display()))
}

/// Whether every SA that an agent reports is reported from the other end too, and every tunnel has one.
///
/// # Errors
/// When an agent has not reported.
pub fn sas_agree(world: &World) -> Result<bool> {
    let mut spis = BTreeSet::new();
    for numbers in SITES.iter().filter(|numbers| numbers.role != Role::Cloud) {
        let status = status(world.site(numbers.name)?)?;
        for peer in status["peers"]
            .as_object()
            .into_iter()
            .flat_map(|peers| peers.values())
        {
            let children = peer["children"].as_array().map_or(&[][..], Vec::as_slice);
            if children.is_empty() {
                return Ok(false);
            }
            spis.extend(
                children
                    .iter()
                    .map(|child| (child["spiIn"].as_u64(), child["spiOut"].as_u64())),
            );
        }
    }
    Ok(!spis.is_empty()
        && spis
            .iter()
            .all(|(incoming, outgoing)| spis.contains(&(*outgoing, *incoming))))
}

/// What the stack of a place has counted so far under a name of a group (`Ip`, `Udp`) of /proc/net/snmp.
///
/// # Errors
/// When it counts nothing under that name.
pub fn snmp(place: &Place, group: &str, name: &str) -> Result<u64> {
    let text = place
        .run(|| fs::read_to_string("/proc/thread-self/net/snmp"))?
        .with_context(|| format!("reading what the stack of {} counts", place.name))?;
    let mut lines = text
        .lines()
        .filter_map(|line| line.strip_prefix(group)?.strip_prefix(": "));
    let (names, values) = (lines.next().unwrap_or(""), lines.next().unwrap_or(""));
    let mut counts = names.split(' ').zip(values.split(' '));
    counts
        .find_map(|(known, value)| (known == name).then(|| value.parse().ok())?)
        .with_context(|| format!("the stack of {} counts no {group}: {name}", place.name))
}

/// How many packets the eBPF programs of a site have counted, by program and reason.
#[derive(Clone, Debug, Default)]
pub struct Packets(BTreeMap<(Program, Reason), u64>);

impl Packets {
    /// Reads them from the pinned map, as anybody could.
    ///
    /// # Errors
    /// When the map is not there, or its dump is not what it should be.
    pub fn read(site: &Site) -> Result<Self> {
        let dump = dump(&site.place, "stats")?;
        let mut packets = Self::default();
        for &program in &Program::ALL {
            for &reason in Reason::ALL {
                let entry = dump
                    .iter()
                    .find(|entry| entry["key"].as_u64() == Some(u64::from(reason.index(program))))
                    .with_context(|| format!("the map stats has no {}", reason.name()))?;
                let sum = entry["values"]
                    .as_array()
                    .context("the map stats is not per CPU")?
                    .iter()
                    .filter_map(|cpu| cpu["value"]["packets"].as_u64())
                    .sum();
                packets.0.insert((program, reason), sum);
            }
        }
        Ok(packets)
    }

    /// Packets that a program counted under a reason.
    pub fn of(&self, program: Program, reason: Reason) -> u64 {
        self.0.get(&(program, reason)).copied().unwrap_or(0)
    }

    /// What was counted since `before`.
    #[must_use]
    pub fn since(&self, before: &Self) -> Self {
        let past = |key| before.0.get(key).copied().unwrap_or(0);
        let grown = self
            .0
            .iter()
            .map(|(key, now)| (*key, now.saturating_sub(past(key))));
        Self(grown.collect())
    }

    /// Packets of the two programs that decide, by verdict. What is no unfragmented packet between a pod and the
    /// pod network does not count.
    pub fn decided(&self, verdict: Verdict) -> u64 {
        let about_pods = |reason: Reason| {
            !matches!(
                reason,
                Reason::NotIp | Reason::Multicast | Reason::NoRoute | Reason::Fragment | Reason::OverMtu
            )
        };
        self.0
            .iter()
            .filter(|((program, reason), _)| {
                matches!(program, Program::PodEgress | Program::TunnelIngress)
                    && reason.verdict() == verdict
                    && about_pods(*reason)
            })
            .map(|(_, count)| count)
            .sum()
    }

    /// The share of the fast path in what was decided.
    pub fn fast_share(&self) -> f64 {
        let fast = self.decided(Verdict::Fast) as f64;
        let all = fast + self.decided(Verdict::Stack) as f64 + self.decided(Verdict::Drop) as f64;
        if all > 0.0 { fast / all } else { 0.0 }
    }

    /// Everything that was counted, by name.
    pub fn named(&self) -> BTreeMap<String, u64> {
        self.0
            .iter()
            .filter(|(_, count)| **count > 0)
            .map(|((program, reason), count)| (format!("{} {}", program.name(), reason.name()), *count))
            .collect()
    }
}

/// How many entries pinned maps have.
///
/// # Errors
/// When bpftool fails.
pub fn entries(place: &Place, maps: &[&str]) -> Result<Vec<usize>> {
    let dumps: String = maps
        .iter()
        .map(|map| format!("map dump pinned {PINS}/{map}\n"))
        .collect();
    let text = place.must_with(&["bpftool", "-j", "batch", "file", "-"], &dumps)?;
    let dumps: Vec<Value> = serde_json::from_str(&text).context("parsing dumps of maps")?;
    Ok(dumps
        .iter()
        .map(|dump| dump["output"].as_array().map_or(0, Vec::len))
        .collect())
}

/// The entries of a pinned map as bpftool prints them, with names.
///
/// # Errors
/// When bpftool fails, or prints entries without field names.
pub fn dump(place: &Place, map: &str) -> Result<Vec<Value>> {
    let text = place.must(&["bpftool", "-j", "map", "dump", "pinned", &format!("{PINS}/{map}")])?;
    let dump: Value = serde_json::from_str(&text).with_context(|| format!("parsing the dump of {map}"))?;
    dump.as_array()
        .with_context(|| format!("the dump of {map} is no list"))?
        .iter()
        .map(|entry| {
            entry
                .get("formatted")
                .cloned()
                .with_context(|| format!("an entry of {map} has no named fields: {entry}"))
        })
        .collect()
}

/// Kernel memory of the pinned maps, in bytes, as the kernel accounts for it; none before 6.4, where it names what a
/// full map would take.
///
/// # Errors
/// When bpftool fails.
pub fn map_bytes(place: &Place) -> Result<Option<u64>> {
    if kernel()? < (6, 4) {
        return Ok(None);
    }
    let pins = place.must(&["find", PINS, "-maxdepth", "1", "-type", "f"])?;
    let mut bytes = 0;
    for pin in pins.lines() {
        let text = place.must(&["bpftool", "-j", "map", "show", "pinned", pin])?;
        let map: Value =
            serde_json::from_str(&text).with_context(|| format!("parsing what bpftool says of {pin}"))?;
        bytes += map["bytes_memlock"]
            .as_u64()
            .with_context(|| format!("bpftool does not tell the memory of {pin}"))?;
    }
    Ok(Some(bytes))
}

/// Major and minor version of the running kernel.
fn kernel() -> Result<(u32, u32)> {
    let release =
        fs::read_to_string("/proc/sys/kernel/osrelease").context("asking for the kernel's version")?;
    let mut numbers = release.split('.').map(str::parse);
    match (numbers.next(), numbers.next()) {
        (Some(Ok(major)), Some(Ok(minor))) => Ok((major, minor)),
        _ => bail!("the kernel's version is `{}`", release.trim()),
    }
}

/// Everything the network configuration of a place consists of, to be compared: links, addresses, routes, rules,
/// nftables, both iptables, xfrm, pins.
///
/// # Errors
/// When a command cannot be run.
pub fn configuration(place: &Place) -> Result<BTreeMap<&'static str, String>> {
    /// A name, the commands that tell it, and what of a line of theirs counts.
    type Part = (&'static str, &'static [&'static str], fn(&str) -> Option<String>);
    const PARTS: [Part; 9] = [
        ("links", &["ip -o link"], link),
        ("addresses", &["ip -br address"], addresses),
        ("rules", &["ip rule", "ip -6 rule"], whole),
        (
            "routes",
            &["ip route show table all", "ip -6 route show table all"],
            route,
        ),
        ("nftables", &["nft list tables"], table),
        (
            "iptables",
            &["iptables-nft-save", "ip6tables-nft-save"],
            without_counters,
        ),
        (
            "legacy iptables",
            &["iptables-legacy-save", "ip6tables-legacy-save"],
            without_counters,
        ),
        ("xfrm", &["ip xfrm state", "ip xfrm policy"], whole),
        ("pins", &["ls -R /sys/fs/bpf"], whole),
    ];
    let mut parts = BTreeMap::new();
    for (name, commands, line) in PARTS {
        let mut text = Vec::new();
        for command in commands {
            let words: Vec<&str> = command.split(' ').collect();
            // What is not there is nothing.
            let output = place.output(&words, Duration::from_secs(60))?.stdout;
            text.extend(output.lines().filter_map(line));
        }
        parts.insert(name, text.join("\n"));
    }
    Ok(parts)
}

fn whole(line: &str) -> Option<String> {
    Some(line.to_owned())
}

/// Name, MTU and queueing discipline. Carriers come and go by themselves, and with them other words.
fn link(line: &str) -> Option<String> {
    let words: Vec<&str> = line.split_whitespace().collect();
    let words = words.get(1).into_iter().chain(words.iter().skip(3).take(4));
    Some(words.copied().collect::<Vec<_>>().join(" "))
}

/// Name and addresses, but for link-local ones, which come and go by themselves.
fn addresses(line: &str) -> Option<String> {
    let words = line.split_whitespace().enumerate();
    let words = words.filter(|(at, word)| *at != 1 && !word.starts_with("fe80:"));
    Some(words.map(|(_, word)| word).collect::<Vec<_>>().join(" "))
}

/// A route, unless it is link-local.
fn route(line: &str) -> Option<String> {
    let by_itself = ["fe80::", "ff00::", "kernel metric 256"];
    (!by_itself.iter().any(|words| line.contains(words)))
        .then(|| line.replace(" linkdown", "").trim_end().to_owned())
}

/// A table that is not one of iptables.
fn table(line: &str) -> Option<String> {
    let words: Vec<&str> = line.split_whitespace().collect();
    let of_iptables = match words[..] {
        [_, family, name] => {
            matches!(family, "ip" | "ip6") && matches!(name, "filter" | "nat" | "mangle" | "raw")
        }
        _ => false,
    };
    (!of_iptables).then(|| line.to_owned())
}

/// A line of `iptables-save` without its `[packets:bytes]`; dates are no configuration.
fn without_counters(line: &str) -> Option<String> {
    match line.split_once('[') {
        _ if line.starts_with('#') => None,
        Some((before, _)) if line.starts_with(':') => Some(before.trim_end().to_owned()),
        _ => Some(line.to_owned()),
    }
}

/// A URL of a site's agent.
///
/// # Errors
/// When curl fails.
pub fn fetch(place: &Place, url: &str) -> Result<command::Output> {
    place.output(
        &["curl", "-s", "-S", "-m", "10", "-f", url],
        Duration::from_secs(15),
    )
}
