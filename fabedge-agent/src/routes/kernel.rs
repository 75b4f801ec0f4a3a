//! Rules and routes, by rtnetlink.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use futures_util::{StreamExt as _, stream};
use ipnet::IpNet;
use netlink_packet_route::AddressFamily;
use netlink_packet_route::route::{
    RouteAddress, RouteAttribute, RouteFlags, RouteMessage, RouteMetric, RouteProtocol, RouteScope, RouteType,
};
use netlink_packet_route::rule::{RuleAction, RuleAttribute, RuleMessage};
use rtnetlink::IpVersion;

use super::plan::{Observed, ObservedRoute, ObservedRule, Plan};
use crate::desired::routes::{Key, Rule, Target};
use crate::facts::Link;
use crate::marks;
use crate::netlink::{Error, Netlink, table_of};
use crate::subsystem::Outcome;

/// Requests in flight: the socket answers one at a time, but need not wait for us in between.
const IN_FLIGHT: usize = 64;

/// `RTAX_LOCK`'s bit for `RTAX_MTU` (linux/rtnetlink.h).
const LOCKED_MTU: u32 = 1 << 2;

/// Everybody's rules and everybody's routes in our tables.
pub(super) async fn observe(netlink: &Netlink) -> Result<Observed, Error> {
    let links = netlink.links().await?;
    let names: BTreeMap<u32, &str> = links
        .values()
        .map(|link| (link.index, link.name.as_str()))
        .collect();
    let mut observed = Observed::default();
    for (version, family) in [
        (IpVersion::V4, AddressFamily::Inet),
        (IpVersion::V6, AddressFamily::Inet6),
    ] {
        let rules = netlink.rules(version).await?;
        observed.rules.extend(
            rules
                .iter()
                .filter(|message| message.header.family == family)
                .filter_map(rule),
        );
        for table in [marks::PROBE_TABLE, marks::POD_TABLE, marks::NODE_TABLE] {
            let routes = netlink
                .routes(family, table, |message| route(&message, &names))
                .await?;
            observed.routes.extend(routes);
        }
    }
    Ok(observed)
}

/// Adds and replaces, in an order that never opens what is closed: what stays local, what is refused, what has a
/// way, and only then the rules that make it count.
pub(super) async fn grow(netlink: &Netlink, plan: &Plan) -> Vec<Outcome> {
    if plan.add.is_empty() && plan.replace.is_empty() && plan.add_rules.is_empty() {
        return Vec::new();
    }
    let links = match netlink.links().await {
        Ok(links) => links,
        Err(error) => return vec![Outcome::new("add", "routes", Err(error))],
    };
    let mut outcomes = Vec::new();
    let mut waiting: BTreeMap<&str, usize> = BTreeMap::new();
    for rank in 0..=2 {
        let mut requests = Vec::new();
        for (replace, (key, target)) in plan
            .add
            .iter()
            .map(|route| (false, route))
            .chain(plan.replace.iter().map(|route| (true, route)))
        {
            if rank != rank_of(target) {
                continue;
            }
            match message(*key, Some(target), &links) {
                Ok(message) => requests.push((replace, key, message)),
                Err(device) => *waiting.entry(device).or_default() += 1,
            }
        }
        let mut done = stream::iter(requests)
            .map(|(replace, key, message)| async move {
                let request = netlink.handle().route().add(message);
                let (action, request) = if replace {
                    ("replace", request.replace())
                } else {
                    ("add", request)
                };
                let result = request.execute().await;
                Outcome::new(
                    action,
                    route_name(key),
                    result.map_err(|error| Error::new("asking the kernel", error)),
                )
            })
            .buffered(IN_FLIGHT);
        while let Some(outcome) = done.next().await {
            outcomes.push(outcome);
        }
    }
    for (device, count) in waiting {
        let problem = format!("the device {device} does not exist or is down");
        outcomes.push(Outcome::new(
            "add",
            format!("{count} routes to {device}"),
            Err(problem),
        ));
    }
    for rule in &plan.add_rules {
        let mut request = netlink.handle().rule().add();
        *request.message_mut() = rule_message(*rule);
        let result = request
            .execute()
            .await
            .map_err(|error| Error::new("asking the kernel", error));
        outcomes.push(Outcome::new("add", rule_name(rule), result));
    }
    outcomes
}

/// Deletes: ways before the `unreachable` routes below them, so that nothing opens.
pub(super) async fn shrink(netlink: &Netlink, plan: &Plan) -> Vec<Outcome> {
    let mut outcomes = Vec::new();
    for rule in &plan.delete_rules {
        let result = netlink.handle().rule().del(rule_message(*rule)).execute().await;
        outcomes.push(Outcome::new("delete", rule_name(rule), gone(result)));
    }
    let mut keys: Vec<&Key> = plan.delete.iter().collect();
    keys.sort_by_key(|key| (key.metric, **key));
    let none = BTreeMap::new();
    let requests = keys
        .into_iter()
        .filter_map(|key| Some((key, message(*key, None, &none).ok()?)));
    let mut done = stream::iter(requests)
        .map(|(key, message)| async move {
            let result = netlink.handle().route().del(message).execute().await;
            Outcome::new("delete", route_name(key), gone(result))
        })
        .buffered(IN_FLIGHT);
    while let Some(outcome) = done.next().await {
        outcomes.push(outcome);
    }
    outcomes
}

/// What has gone by itself in the meantime counts as deleted.
fn gone(result: Result<(), rtnetlink::Error>) -> Result<(), Error> {
    match result.map_err(|error| Error::new("asking the kernel", error)) {
        Err(error) if matches!(error.errno(), Some(libc::ESRCH | libc::ENOENT)) => Ok(()),
        result => result,
    }
}

fn rank_of(target: &Target) -> u8 {
    match target {
        Target::Throw => 0,
        Target::Unreachable => 1,
        Target::Device { .. } | Target::Gateway { .. } => 2,
    }
}

fn route_name(key: &Key) -> String {
    format!(
        "route {} table {} metric {}",
        key.destination, key.table, key.metric
    )
}

fn rule_name(rule: &Rule) -> String {
    let mark = rule
        .mark
        .map_or_else(String::new, |mark| format!(" fwmark {mark:#x}"));
    format!(
        "rule {} from {}{mark} lookup {}",
        rule.priority, rule.from, rule.table
    )
}

/// The message for a route; without target, as much of it as tells ours from others. The error is the name of a
/// device that is not there.
fn message<'a>(
    key: Key,
    target: Option<&'a Target>,
    links: &BTreeMap<String, Link>,
) -> Result<RouteMessage, &'a str> {
    let mut message = RouteMessage::default();
    let header = &mut message.header;
    header.address_family = family(key.destination);
    header.destination_prefix_length = key.destination.prefix_len();
    header.protocol = RouteProtocol::from(marks::ROUTE_PROTOCOL);
    // For deletion: any scope.
    header.scope = RouteScope::NoWhere;
    message.attributes = vec![
        RouteAttribute::Table(key.table),
        RouteAttribute::Destination(key.destination.network().into()),
        RouteAttribute::Priority(key.metric),
    ];
    let Some(target) = target else { return Ok(message) };
    let index = |name: &'a str| {
        links
            .get(name)
            .filter(|link| link.up)
            .map(|link| RouteAttribute::Oif(link.index))
            .ok_or(name)
    };
    let header = &mut message.header;
    header.scope = RouteScope::Universe;
    header.kind = match target {
        Target::Device { name, mtu, lock, src } => {
            if matches!(key.destination, IpNet::V4(_)) {
                header.scope = RouteScope::Link;
            }
            message.attributes.push(index(name)?);
            let mut metrics = vec![RouteMetric::Mtu(*mtu)];
            if *lock {
                metrics.push(RouteMetric::Lock(LOCKED_MTU));
            }
            message.attributes.push(RouteAttribute::Metrics(metrics));
            message
                .attributes
                .extend(src.map(|src| RouteAttribute::PrefSource(src.into())));
            RouteType::Unicast
        }
        Target::Gateway {
            address,
            device,
            onlink,
            mtu,
        } => {
            if *onlink {
                header.flags |= RouteFlags::Onlink;
            }
            message.attributes.push(index(device)?);
            message
                .attributes
                .push(RouteAttribute::Gateway((*address).into()));
            message
                .attributes
                .push(RouteAttribute::Metrics(vec![RouteMetric::Mtu(*mtu)]));
            RouteType::Unicast
        }
        Target::Unreachable => RouteType::Unreachable,
        Target::Throw => RouteType::Throw,
    };
    Ok(message)
}

fn route(message: &RouteMessage, names: &BTreeMap<u32, &str>) -> Option<ObservedRoute> {
    let v6 = message.header.address_family == AddressFamily::Inet6;
    let mut destination = unspecified(v6);
    let (mut metric, mut mtu, mut lock, mut odd) = (0, 0, false, false);
    let (mut device, mut gateway, mut src) = (None, None, None);
    for attribute in &message.attributes {
        match attribute {
            RouteAttribute::Destination(address) => destination = ip(address)?,
            RouteAttribute::Priority(value) => metric = *value,
            RouteAttribute::Oif(index) => device = names.get(index).map(|name| (*name).to_owned()),
            RouteAttribute::Gateway(address) => gateway = ip(address),
            RouteAttribute::PrefSource(address) => src = ip(address),
            RouteAttribute::Metrics(metrics) => {
                for metric in metrics {
                    match metric {
                        RouteMetric::Mtu(value) => mtu = *value,
                        RouteMetric::Lock(metrics) => lock = metrics & LOCKED_MTU != 0,
                        _ => {}
                    }
                }
            }
            RouteAttribute::MultiPath(_) | RouteAttribute::Via(_) | RouteAttribute::Encap(_) => odd = true,
            _ => {}
        }
    }
    let target = match (message.header.kind, device, gateway) {
        _ if odd => None,
        (RouteType::Unicast, Some(name), None) => Some(Target::Device { name, mtu, lock, src }),
        (RouteType::Unicast, Some(device), Some(address)) if src.is_none() => {
            let onlink = message.header.flags.contains(RouteFlags::Onlink);
            Some(Target::Gateway {
                address,
                device,
                onlink,
                mtu,
            })
        }
        (RouteType::Unreachable, ..) => Some(Target::Unreachable),
        (RouteType::Throw, ..) => Some(Target::Throw),
        _ => None,
    };
    let destination = IpNet::new(destination, message.header.destination_prefix_length).ok()?;
    Some(ObservedRoute {
        protocol: message.header.protocol.into(),
        key: Key {
            table: table_of(message),
            destination,
            metric,
        },
        target,
    })
}

fn rule_message(rule: Rule) -> RuleMessage {
    let mut message = RuleMessage::default();
    message.header.family = family(rule.from);
    message.header.src_len = rule.from.prefix_len();
    message.header.action = RuleAction::ToTable;
    message.attributes = vec![
        RuleAttribute::Priority(rule.priority),
        RuleAttribute::Table(rule.table),
        RuleAttribute::Protocol(RouteProtocol::from(marks::ROUTE_PROTOCOL)),
    ];
    if rule.from.prefix_len() > 0 {
        message
            .attributes
            .push(RuleAttribute::Source(rule.from.network()));
    }
    if let Some(mark) = rule.mark {
        message.attributes.push(RuleAttribute::FwMark(mark));
    }
    message
}

fn rule(message: &RuleMessage) -> Option<ObservedRule> {
    let (mut priority, mut table, mut protocol, mut mark) = (0, u32::from(message.header.table), 0, None);
    let mut from = unspecified(message.header.family == AddressFamily::Inet6);
    for attribute in &message.attributes {
        match attribute {
            RuleAttribute::Priority(value) => priority = *value,
            RuleAttribute::Table(value) => table = *value,
            RuleAttribute::Protocol(value) => protocol = (*value).into(),
            RuleAttribute::Source(address) => from = *address,
            RuleAttribute::FwMark(value) => mark = Some(*value),
            RuleAttribute::FwMask(u32::MAX) => {}
            RuleAttribute::Destination(_)
            | RuleAttribute::Iifname(_)
            | RuleAttribute::Oifname(_)
            | RuleAttribute::FwMask(_) => return None,
            _ => {}
        }
    }
    if message.header.action != RuleAction::ToTable {
        return None;
    }
    let from = IpNet::new(from, message.header.src_len).ok()?;
    Some(ObservedRule {
        protocol,
        rule: Rule {
            priority,
            from,
            mark,
            table,
        },
    })
}

fn family(net: IpNet) -> AddressFamily {
    match net {
        IpNet::V4(_) => AddressFamily::Inet,
        IpNet::V6(_) => AddressFamily::Inet6,
    }
}

fn unspecified(v6: bool) -> IpAddr {
    if v6 {
        Ipv6Addr::UNSPECIFIED.into()
    } else {
        Ipv4Addr::UNSPECIFIED.into()
    }
}

fn ip(address: &RouteAddress) -> Option<IpAddr> {
    match address {
        RouteAddress::Inet(address) => Some((*address).into()),
        RouteAddress::Inet6(address) => Some((*address).into()),
        _ => None,
    }
}
