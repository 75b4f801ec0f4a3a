//! Desired state of what decrypts: on which CPU of a connector the ESP of which peer ends. Pure.
//!
//! A NIC with fewer receive queues than there are CPUs leaves all ESP to a few of them, and so does a peer's address
//! that is the same for many, as that of a NAT. One with a queue per CPU is believed to spread it by itself: there a packet
//! that is decrypted where it arrives is cheaper, for only there GRO does it (up to Linux 6.14).

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use fabedge_common::abi::{SaCpu, SaId, mapped};
use fabedge_common::config::{EndpointType, NodeConfig};

use super::datapath::{Datapath, Entry, Hook};
use crate::args::SpreadChoice;
use crate::facts::{Facts, TunnelKind};

/// How ESP is spread. The default is: it stays where it arrives.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Spread {
    /// CPUs that get a queue.
    pub cpus: BTreeSet<u32>,
    /// reqid of every inbound SA; with SPI 0 the addresses at which they end.
    pub sas: BTreeMap<SaId, u32>,
    /// Uplinks where it is not spread, and why; by their names.
    pub not: BTreeMap<String, String>,
}

impl Datapath {
    /// Adds what spreads ESP.
    pub fn spread_esp(&mut self, config: &NodeConfig, facts: &Facts, choice: SpreadChoice) {
        if config.endpoint.kind == EndpointType::Connector {
            let (spread, hooks) = spread(facts, choice);
            self.spread = spread;
            self.hooks.extend(hooks);
        }
    }
}

fn spread(facts: &Facts, choice: SpreadChoice) -> (Spread, BTreeSet<Hook>) {
    let mut spread = Spread::default();
    let mut hooks = BTreeSet::new();
    let cpus = &facts.reception.cpus;
    for link in facts.uplinks.iter().filter_map(|name| facts.links.get(name)) {
        let queues = facts.reception.queues.get(&link.name).copied().unwrap_or(1);
        let why_not = match (choice, facts.tunnel) {
            (SpreadChoice::Off, _) => Some("not spread, by --spread-esp off".to_owned()),
            (_, TunnelKind::Libipsec) => Some("not spread: charon decrypts, not the kernel".to_owned()),
            _ if cpus.len() < 2 => Some("not spread: there is one CPU".to_owned()),
            (SpreadChoice::Auto, _) if queues >= cpus.len() => Some(format!(
                "not spread: {queues} receive queues do it for {} CPUs",
                cpus.len()
            )),
            _ => None,
        };
        if let Some(why_not) = why_not {
            spread.not.insert(link.name.clone(), why_not);
            continue;
        }
        hooks.insert(Hook {
            ifindex: link.index,
            entry: Entry::UplinkXdp,
            device: link.name.clone(),
        });
        for address in link.addresses.iter().map(ipnet::IpNet::addr) {
            spread.sas.insert(sa(address, 0), 0);
        }
    }
    if !hooks.is_empty() {
        spread.cpus.clone_from(cpus);
    }
    for ((destination, spi), reqid) in &facts.reception.sas {
        if spread.sas.contains_key(&sa(*destination, 0)) {
            spread.sas.insert(sa(*destination, *spi), *reqid);
        }
    }
    (spread, hooks)
}

fn sa(destination: IpAddr, spi: u32) -> SaId {
    SaId {
        destination: match destination {
            IpAddr::V4(address) => mapped(address.octets()),
            IpAddr::V6(address) => address.octets(),
        },
        spi: spi.to_be_bytes(),
    }
}

/// The CPU of every SA: that of another SA of its peer, which may be one that it is to replace, else the one with the
/// fewest peers. What has one keeps it, for packets that wait in another queue would be overtaken.
pub fn assign(
    wanted: &BTreeMap<SaId, u32>,
    present: &BTreeMap<SaId, SaCpu>,
    cpus: &BTreeSet<u32>,
) -> BTreeMap<SaId, SaCpu> {
    let peers: BTreeSet<u32> = wanted.values().copied().filter(|reqid| *reqid != 0).collect();
    let mut taken: BTreeMap<u32, u32> = present
        .values()
        .filter(|sa| peers.contains(&sa.reqid) && cpus.contains(&sa.cpu))
        .map(|sa| (sa.reqid, sa.cpu))
        .collect();
    let mut load: BTreeMap<u32, usize> = cpus.iter().map(|cpu| (*cpu, 0)).collect();
    for cpu in taken.values() {
        *load.entry(*cpu).or_default() += 1;
    }
    for reqid in peers {
        if taken.contains_key(&reqid) {
            continue;
        }
        // Of several the last: the first is where most hosts have their interrupts.
        let free = load.iter_mut().rev().min_by_key(|(_, peers)| **peers);
        if let Some((cpu, peers)) = free {
            *peers += 1;
            taken.insert(reqid, *cpu);
        }
    }
    let value = |reqid: &u32| match reqid {
        0 => Some(SaCpu::default()),
        reqid => taken.get(reqid).map(|cpu| SaCpu {
            cpu: *cpu,
            reqid: *reqid,
        }),
    };
    wanted
        .iter()
        .filter_map(|(id, reqid)| Some((*id, value(reqid)?)))
        .collect()
}

#[cfg(test)]
mod tests;
