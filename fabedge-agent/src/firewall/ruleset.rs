//! Our table in nft's own language. Pure.
//!
//! Text for `nft -f -` rather than a netlink crate: it is what an administrator reads in `nft list ruleset` and in
//! every manual, nft makes one atomic transaction of it, and the crates at hand lack interval sets, named counters
//! or `snat to ip saddr`. Only elements that change while all else stays go the short way, by [`super::elements`].

use std::collections::{BTreeMap, BTreeSet};

use ipnet::IpNet;

use super::elements::Change;
use super::listing::Listing;
use super::sets::Elements;
use crate::desired::firewall::{Counter, Hook, Rule, Set, Table, Then, When};
use crate::marks::PROBE_MARK;

/// The table, as nft names it.
pub const NAME: &str = "inet fabedge";

const COUNTERS: [Counter; 9] = [
    Counter::InboundToPods,
    Counter::InboundSpoofed,
    Counter::NodeToNode,
    Counter::ForwardForeign,
    Counter::ForwardToServices,
    Counter::OutboundToPods,
    Counter::OutboundToNodes,
    Counter::OutboundRedirect,
    Counter::InboundTooLarge,
];

const SETS: [Set; 8] = [
    Set::Own,
    Set::Services,
    Set::OwnNodes,
    Set::Peers,
    Set::RemoteNodes,
    Set::Network,
    Set::Guarded,
    Set::Watched,
];
const HOOKS: [Hook; 4] = [Hook::Inbound, Hook::Forward, Hook::Outbound, Hook::Translate];

/// At most so many elements are written into one line.
const CHUNK: usize = 256;

/// Everything but the elements of the sets: counters, sets, chains and their rules. Carrying it out again changes
/// nothing, and does not reset the counters.
pub fn rules(table: &Table) -> String {
    let mut text = format!("add table {NAME}\n");
    for counter in COUNTERS {
        line(&mut text, "add counter", counter_name(counter));
    }
    for set in SETS {
        for (v6, kind) in [(false, "ipv4_addr"), (true, "ipv6_addr")] {
            line(
                &mut text,
                "add set",
                &format!("{} {{ type {kind}; flags interval; }}", set_name(set, v6)),
            );
        }
    }
    for hook in HOOKS {
        let (name, declaration) = chain(hook);
        line(
            &mut text,
            "add chain",
            &format!("{name} {{ type {declaration}; policy accept; }}"),
        );
        line(&mut text, "flush chain", name);
        for rule in table.rules.get(&hook).into_iter().flatten() {
            for statement in statements(rule, table) {
                line(&mut text, "add rule", &format!("{name} {statement}"));
            }
        }
    }
    text
}

/// What brings the sets from what is listed to what they should hold, element by element.
///
/// A set is never emptied and filled again, nor made anew: the kernel publishes the elements of an interval set
/// after the rules that look into it, and for that moment what should be dropped is let through (seen on 6.18: 3
/// of 9,000 packets passed while the whole table was replaced 20 times).
pub fn elements(table: &Table, listing: Option<&Listing>) -> String {
    let mut text = String::new();
    for set in SETS {
        for v6 in [false, true] {
            let name = set_name(set, v6);
            let nets = table.sets.get(&set).map(Vec::as_slice).unwrap_or_default();
            let wanted: BTreeSet<IpNet> = of_family(nets, v6).copied().collect();
            let empty = BTreeSet::new();
            let current = match listing.and_then(|listing| listing.sets.get(&name)) {
                None => &empty,
                Some(Some(current)) => current,
                Some(None) => {
                    line(&mut text, "flush set", &name);
                    &empty
                }
            };
            for (action, difference) in [
                ("delete element", current.difference(&wanted)),
                ("add element", wanted.difference(current)),
            ] {
                write_elements(&mut text, action, &name, difference);
            }
        }
    }
    text
}

/// What brings the sets from `before` to `after`, which hold only that in which whole tables differ, where `standing` is
/// what all of the sets hold; none where rules would have to change with them.
pub fn change(
    standing: &mut BTreeMap<String, BTreeSet<IpNet>>,
    before: &Table,
    after: &Table,
) -> Option<Vec<Change>> {
    let mut changes = Vec::new();
    for set in SETS {
        for v6 in [false, true] {
            let nets = |table: &Table| -> BTreeSet<IpNet> {
                let nets = table.sets.get(&set).map(Vec::as_slice).unwrap_or_default();
                of_family(nets, v6).copied().collect()
            };
            let (before, after) = (nets(before), nets(after));
            if before == after {
                continue;
            }
            let name = set_name(set, v6);
            let now = standing.get_mut(&name)?;
            // Where a set is empty its rules are left out.
            let some = !now.is_empty();
            let mut elements = Elements::new(now);
            before
                .difference(&after)
                .try_for_each(|net| elements.take(*net))?;
            after.difference(&before).try_for_each(|net| elements.put(*net))?;
            let Elements { added, deleted, .. } = elements;
            if !some || now.is_empty() {
                return None;
            }
            changes.push(Change {
                set: name,
                deleted,
                added,
            });
        }
    }
    Some(changes)
}

/// What removes from our table what is not ours.
pub fn removal(listing: &Listing) -> String {
    let mut text = String::new();
    let ours: BTreeSet<&str> = HOOKS.map(|hook| chain(hook).0).into();
    let chains: Vec<&String> = listing
        .chains
        .iter()
        .filter(|name| !ours.contains(name.as_str()))
        .collect();
    for action in ["flush chain", "delete chain"] {
        chains.iter().for_each(|name| line(&mut text, action, name));
    }
    let ours: BTreeSet<String> = SETS
        .into_iter()
        .flat_map(|set| [set_name(set, false), set_name(set, true)])
        .collect();
    for name in listing.sets.keys().filter(|name| !ours.contains(*name)) {
        line(&mut text, "delete set", name);
    }
    text
}

/// The table made anew in one transaction, for when what is there cannot be changed into it.
pub fn anew(table: &Table) -> String {
    let elements = elements(table, None);
    // Adding first lets the deletion succeed where there is none.
    format!(
        "add table {NAME}\ndelete table {NAME}\n{}{elements}",
        rules(table)
    )
}

fn write_elements<'a>(text: &mut String, action: &str, set: &str, nets: impl Iterator<Item = &'a IpNet>) {
    let nets: Vec<String> = nets.map(ToString::to_string).collect();
    for chunk in nets.chunks(CHUNK) {
        line(text, action, &format!("{set} {{ {} }}", chunk.join(", ")));
    }
}

fn line(text: &mut String, action: &str, object: &str) {
    text.push_str(&format!("{action} {NAME} {object}\n"));
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

/// A rule as nft statements: one per address family, where it can match at all, or one for both.
fn statements(rule: &Rule, table: &Table) -> Vec<String> {
    if let ([When::Encrypted], Then::Pass) = (&*rule.when, rule.then) {
        return vec!["rt ipsec exists accept".to_owned()];
    }
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
        When::EspTooLarge => v6,
        _ => false,
    };
    let unlike = match rule.then {
        Then::Source(address) => address.is_ipv6() != v6,
        Then::Whole => v6,
        _ => false,
    };
    !unlike && !rule.when.iter().any(never)
}

/// A condition, or several of which any will do.
fn condition(when: &When, v6: bool) -> Vec<String> {
    let ip = if v6 { "ip6" } else { "ip" };
    let none_of = |field: &str, sets: &[Set]| {
        let conditions: Vec<String> = sets
            .iter()
            .map(|set| format!("{field} != @{}", set_name(*set, v6)))
            .collect();
        conditions.join(" ")
    };
    vec![match when {
        When::From(set) => format!("{ip} saddr @{}", set_name(*set, v6)),
        When::NotFrom(sets) => none_of(&format!("{ip} saddr"), sets),
        When::To(set) => format!("{ip} daddr @{}", set_name(*set, v6)),
        When::NotTo(sets) => none_of(&format!("{ip} daddr"), sets),
        When::In(interface) => format!("iifname {interface:?}"),
        When::NotIn(interfaces) => format!("iifname != {}", interface_set(interfaces)),
        When::Out(interface) => format!("oifname {interface:?}"),
        // Behind an xfrm interface a packet passes postrouting once more before it is encrypted, and there its
        // device is the uplink already.
        When::NotOut(interfaces) => format!("oifname != {} rt ipsec missing", interface_set(interfaces)),
        When::NotVia(sets) => none_of(&format!("rt {ip} nexthop"), sets),
        // What is not tracked has neither direction nor status, and matches no condition about them.
        When::Unsolicited => {
            return vec![
                "ct direction original ct status ! dnat".to_owned(),
                "ct state invalid,untracked".to_owned(),
            ];
        }
        When::Redirect if v6 => "icmpv6 type nd-redirect".to_owned(),
        When::Redirect => "icmp type redirect".to_owned(),
        When::Encrypted => "rt ipsec exists".to_owned(),
        // The packet that an ICMP error is about follows 8 bytes after its header: protocol 50, or UDP from charon's port without
        // the four zeros by which IKE is known there (RFC 3948). ESP has its IV in their place. One rule, for all packets ask it.
        When::EspTooLarge => {
            let packet = "@th,136,8 . @th,224,16 { 50 . 0-65535, 17 . 4500 } @th,288,32 != 0";
            format!("icmp type destination-unreachable icmp code frag-needed {packet}")
        }
        When::Probe => format!("meta mark {PROBE_MARK:#x}"),
        When::NoProbe => format!("meta mark != {PROBE_MARK:#x}"),
    }]
}

fn interface_set(interfaces: &[String]) -> String {
    let quoted: Vec<String> = interfaces.iter().map(|name| format!("{name:?}")).collect();
    format!("{{ {} }}", quoted.join(", "))
}

fn verdict(then: Then, v6: bool) -> String {
    let ip = if v6 { "ip6" } else { "ip" };
    match then {
        Then::Pass => "accept".to_owned(),
        Then::Drop(counter) => format!("counter name {:?} drop", counter_name(counter)),
        Then::Keep => format!("snat {ip} to {ip} saddr"),
        Then::Source(address) => format!("snat {ip} to {address}"),
        Then::Masquerade => "masquerade".to_owned(),
        Then::Whole => "ip frag-off set 0x4000".to_owned(),
    }
}

fn set_name(set: Set, v6: bool) -> String {
    let name = match set {
        Set::Own => "own",
        Set::Services => "services",
        Set::OwnNodes => "own_nodes",
        Set::Peers => "peers",
        Set::RemoteNodes => "remote_nodes",
        Set::Network => "network",
        Set::Guarded => "guarded",
        Set::Watched => "watched",
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
        Counter::ForwardToServices => "forward_to_services",
        Counter::OutboundRedirect => "outbound_redirect",
        Counter::InboundTooLarge => "inbound_too_large",
    }
}

fn of_family(nets: &[IpNet], v6: bool) -> impl Iterator<Item = &IpNet> {
    nets.iter().filter(move |net| matches!(net, IpNet::V6(_)) == v6)
}
