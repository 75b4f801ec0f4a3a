//! The jump in FORWARD, in the language of `iptables-save` and `iptables-restore`. Pure.

use std::collections::BTreeSet;

use ipnet::IpNet;

use crate::desired::firewall::Pass;
use crate::marks;
use crate::subsystem::Phase;

/// Who holds the iptables rules.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Backend {
    /// `ip_tables`.
    Legacy,
    /// nftables.
    Nft,
}

/// Address family.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Family {
    /// IPv4.
    V4,
    /// IPv6.
    V6,
}

/// A change of one backend's filter table in one family.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Jump {
    /// Backend.
    pub backend: Backend,
    /// Family.
    pub family: Family,
    /// When to apply it.
    pub phase: Phase,
    /// Input for `iptables-restore --noflush`.
    pub script: String,
}

impl Jump {
    /// The command family, as `iptables-legacy`.
    pub fn name(&self) -> String {
        command(self.backend, self.family)
    }

    /// `add` or `delete`.
    pub fn action(&self) -> &'static str {
        match self.phase {
            Phase::Grow => "add",
            Phase::Shrink => "delete",
        }
    }
}

/// The command family, as `ip6tables-nft`.
pub fn command(backend: Backend, family: Family) -> String {
    let command = match family {
        Family::V4 => "iptables",
        Family::V6 => "ip6tables",
    };
    let backend = match backend {
        Backend::Legacy => "legacy",
        Backend::Nft => "nft",
    };
    format!("{command}-{backend}")
}

/// Our jump. The comment tells whoever lists the rules who put it there.
fn jump() -> String {
    format!(
        "-m comment --comment \"fabedge: pods and tunnels\" -j {}",
        marks::IPTABLES_CHAIN
    )
}

/// What to change in a filter table that `save` lists, so that it lets `pass` through, or that nothing of ours is
/// left where `pass` is empty. None where there is nothing to do, or no FORWARD chain.
pub fn change(backend: Backend, family: Family, pass: &BTreeSet<Pass>, save: &str) -> Option<Jump> {
    let chain = marks::IPTABLES_CHAIN;
    let forward: Vec<&str> = save
        .lines()
        .filter_map(|line| line.strip_prefix("-A FORWARD "))
        .collect();
    let jumps: Vec<&str> = forward
        .iter()
        .copied()
        .filter(|rule| rule.ends_with(&format!("-j {chain}")))
        .collect();
    let exists = save.lines().any(|line| line.starts_with(&format!(":{chain} ")));
    let mut script = String::from("*filter\n");
    let mut add = |line: String| {
        script.push_str(&line);
        script.push('\n');
    };

    let phase = if pass.is_empty() {
        if !exists {
            return None;
        }
        jumps.iter().for_each(|rule| add(format!("-D FORWARD {rule}")));
        add(format!("-F {chain}"));
        add(format!("-X {chain}"));
        Phase::Shrink
    } else {
        if !save.lines().any(|line| line.starts_with(":FORWARD ")) {
            return None;
        }
        let wanted = rules(family, pass);
        let current: Vec<&str> = save
            .lines()
            .filter(|line| line.starts_with(&format!("-A {chain} ")))
            .collect();
        if current == wanted && well_placed(&forward, &jumps) {
            return None;
        }
        add(format!(":{chain} - [0:0]"));
        add(format!("-F {chain}"));
        wanted.into_iter().for_each(&mut add);
        jumps.iter().for_each(|rule| add(format!("-D FORWARD {rule}")));
        add(format!("-I FORWARD 1 {}", jump()));
        Phase::Grow
    };
    add("COMMIT".to_owned());
    Some(Jump {
        backend,
        family,
        phase,
        script,
    })
}

/// One jump, and nothing in FORWARD itself that refuses before it. Others' jumps may stand before it: who insists
/// on the head, as Calico does for the sake of its policies, is not fought.
fn well_placed(forward: &[&str], jumps: &[&str]) -> bool {
    let refuses = |rule: &&str| rule.contains("-j DROP") || rule.contains("-j REJECT");
    jumps == [jump()]
        && !forward
            .iter()
            .copied()
            .take_while(|rule| *rule != jumps[0])
            .any(|rule| refuses(&rule))
}

/// Our chain, as `iptables-save` prints it.
fn rules(family: Family, pass: &BTreeSet<Pass>) -> Vec<String> {
    let accept = |condition: String| format!("-A {} {condition} -j ACCEPT", marks::IPTABLES_CHAIN);
    pass.iter()
        .filter(|pass| match pass {
            Pass::Device(_) => true,
            Pass::Prefix(net) => matches!(net, IpNet::V4(_)) == (family == Family::V4),
        })
        .flat_map(|pass| match pass {
            Pass::Device(name) => [format!("-i {name}"), format!("-o {name}")],
            Pass::Prefix(net) => [format!("-s {net}"), format!("-d {net}")],
        })
        .map(accept)
        .collect()
}
