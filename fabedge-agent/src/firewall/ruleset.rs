//! Our table in nft's own language. Pure.
//!
//! Text for `nft -f -` rather than a netlink crate: it is what an administrator reads in `nft list ruleset` and in
//! every manual, nft makes one atomic transaction of it, and the crates at hand lack interval sets, named counters
//! or `snat to ip saddr`.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::net::IpAddr;

use ipnet::IpNet;

use crate::desired::firewall::{Counter, Hook, Rule, Set, Table, Then, When};

/// The table, as nft names it.
pub const NAME: &str = "inet fabedge";

/// What a named counter counted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Count {
    /// Packets.
    pub packets: u64,
    /// Bytes.
    pub bytes: u64,
}

const COUNTERS: [Counter; 7] = [
    Counter::InboundToPods,
    Counter::InboundSpoofed,
    Counter::NodeToNode,
    Counter::ForwardForeign,
    Counter::OutboundToPods,
    Counter::OutboundToNodes,
    Counter::OutboundRedirect,
];

/// The text that replaces our table with `table` in one transaction, its counters going on from `counted`.
pub fn render(table: &Table, counted: &BTreeMap<String, Count>) -> String {
    // Adding first lets the deletion succeed where there is none yet.
    let mut text = format!("add table {NAME}\ndelete table {NAME}\ntable {NAME} {{\n");
    for counter in COUNTERS.map(counter_name) {
        let Count { packets, bytes } = counted.get(counter).copied().unwrap_or_default();
        line(
            &mut text,
            1,
            &format!("counter {counter} {{ packets {packets} bytes {bytes} }}"),
        );
    }
    for (set, nets) in &table.sets {
        for v6 in [false, true] {
            let kind = if v6 { "ipv6_addr" } else { "ipv4_addr" };
            line(&mut text, 1, &format!("set {} {{", set_name(*set, v6)));
            line(&mut text, 2, &format!("type {kind}; flags interval;"));
            let elements: Vec<String> = of_family(nets, v6).map(ToString::to_string).collect();
            if !elements.is_empty() {
                line(&mut text, 2, &format!("elements = {{ {} }}", elements.join(", ")));
            }
            line(&mut text, 1, "}");
        }
    }
    for (hook, rules) in &table.rules {
        let (name, declaration) = chain(*hook);
        line(&mut text, 1, &format!("chain {name} {{"));
        line(&mut text, 2, &format!("type {declaration}; policy accept;"));
        for rule in rules {
            for statement in statements(rule, table) {
                line(&mut text, 2, &statement);
            }
        }
        line(&mut text, 1, "}");
    }
    text.push_str("}\n");
    text
}

fn line(text: &mut String, depth: usize, content: &str) {
    text.extend(std::iter::repeat_n('\t', depth));
    text.push_str(content);
    text.push('\n');
}

/// Name and declaration of a chain. Sources are looked at before they are translated, and translated before the
/// CNI and kube-proxy do (at `srcnat`).
fn chain(hook: Hook) -> (&'static str, &'static str) {
    match hook {
        Hook::Inbound => ("inbound", "filter hook prerouting priority raw"),
        Hook::Forward => ("forward", "filter hook forward priority filter - 10"),
        Hook::Outbound => ("outbound", "filter hook postrouting priority srcnat - 20"),
        Hook::Translate => ("translate", "nat hook postrouting priority srcnat - 10"),
    }
}

/// A rule as nft statements: one per address family, where it can match at all.
fn statements(rule: &Rule, table: &Table) -> Vec<String> {
    [false, true]
        .into_iter()
        .filter(|v6| can_match(rule, table, *v6))
        .flat_map(|v6| {
            let mut conditions = vec![String::new()];
            for when in &rule.when {
                let alternatives = condition(when, v6);
                conditions = conditions
                    .iter()
                    .flat_map(|so_far| alternatives.iter().map(move |more| format!("{so_far}{more} ")))
                    .collect();
            }
            let family = if v6 { "ipv6" } else { "ipv4" };
            let verdict = verdict(rule.then, v6);
            conditions
                .into_iter()
                .map(move |when| format!("meta nfproto {family} {when}{verdict}"))
        })
        .collect()
}

fn can_match(rule: &Rule, table: &Table, v6: bool) -> bool {
    let empty = |set: &Set| {
        table
            .sets
            .get(set)
            .is_none_or(|nets| of_family(nets, v6).next().is_none())
    };
    let never = |when: &When| match when {
        When::From(set) | When::To(set) => empty(set),
        When::NotVia(neighbour) => neighbour.is_ipv6() != v6,
        When::Family4(v4) => *v4 == v6,
        _ => false,
    };
    let unlike = matches!(rule.then, Then::Source(address) if address.is_ipv6() != v6);
    !unlike && !rule.when.iter().any(never)
}

/// A condition, or several of which any will do.
fn condition(when: &When, v6: bool) -> Vec<String> {
    let ip = if v6 { "ip6" } else { "ip" };
    let none_of = |field: &str, sets: &[Set]| {
        let mut text = String::new();
        for set in sets {
            if !text.is_empty() {
                text.push(' ');
            }
            write_condition(&mut text, ip, field, *set, v6);
        }
        text
    };
    vec![match when {
        When::From(set) => format!("{ip} saddr @{}", set_name(*set, v6)),
        When::NotFrom(sets) => none_of("saddr", sets),
        When::To(set) => format!("{ip} daddr @{}", set_name(*set, v6)),
        When::NotTo(sets) => none_of("daddr", sets),
        When::In(interface) => format!("iifname {interface:?}"),
        When::NotIn(interfaces) => format!("iifname != {}", interface_set(interfaces)),
        When::Out(interface) => format!("oifname {interface:?}"),
        When::NotOut(interfaces) => format!("oifname != {}", interface_set(interfaces)),
        When::NotVia(IpAddr::V4(neighbour)) => format!("rt ip nexthop != {neighbour}"),
        When::NotVia(IpAddr::V6(neighbour)) => format!("rt ip6 nexthop != {neighbour}"),
        // What is not tracked has neither direction nor status, and matches no condition about them.
        When::Unsolicited => {
            return vec![
                "ct direction original ct status ! dnat".to_owned(),
                "ct state invalid,untracked".to_owned(),
            ];
        }
        When::Redirect if v6 => "icmpv6 type nd-redirect".to_owned(),
        When::Redirect => "icmp type redirect".to_owned(),
        When::Family4(_) => return vec![String::new()],
    }]
}

fn write_condition(text: &mut String, ip: &str, field: &str, set: Set, v6: bool) {
    // Writing to a string cannot fail.
    write!(text, "{ip} {field} != @{}", set_name(set, v6)).unwrap_or_default();
}

fn interface_set(interfaces: &[String]) -> String {
    let quoted: Vec<String> = interfaces.iter().map(|name| format!("{name:?}")).collect();
    format!("{{ {} }}", quoted.join(", "))
}

fn verdict(then: Then, v6: bool) -> String {
    let ip = if v6 { "ip6" } else { "ip" };
    match then {
        Then::Drop(counter) => format!("counter name {:?} drop", counter_name(counter)),
        Then::Keep => format!("snat {ip} to {ip} saddr"),
        Then::Source(address) => format!("snat {ip} to {address}"),
        Then::Masquerade => "masquerade".to_owned(),
    }
}

fn set_name(set: Set, v6: bool) -> String {
    let name = match set {
        Set::Own => "own",
        Set::OwnNodes => "own_nodes",
        Set::Peers => "peers",
        Set::RemoteNodes => "remote_nodes",
        Set::Network => "network",
    };
    format!("{name}{}", if v6 { "6" } else { "4" })
}

fn counter_name(counter: Counter) -> &'static str {
    match counter {
        Counter::InboundToPods => "inbound_to_pods",
        Counter::InboundSpoofed => "inbound_spoofed",
        Counter::NodeToNode => "node_to_node",
        Counter::ForwardForeign => "forward_foreign",
        Counter::OutboundToPods => "outbound_to_pods",
        Counter::OutboundToNodes => "outbound_to_nodes",
        Counter::OutboundRedirect => "outbound_redirect",
    }
}

fn of_family(nets: &[IpNet], v6: bool) -> impl Iterator<Item = &IpNet> {
    nets.iter().filter(move |net| matches!(net, IpNet::V6(_)) == v6)
}
