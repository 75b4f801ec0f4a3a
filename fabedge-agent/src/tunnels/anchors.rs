//! Addresses for charon's kernel-libipsec to hold on to; needed only where charon itself performs ESP.
//!
//! For every outbound policy that plugin installs a route (to a table that nobody looks up, see
//! `strongswan-libipsec.conf`), and fails the whole CHILD_SA unless the node has an address within the local selector
//! to put into it. A connector has none within its service prefixes, nor another node's address. So such an address
//! is given to a bridge that is never up, and the route that would make the kernel answer to it is moved to charon's
//! table: there it satisfies the check of routes' source addresses, and nothing else changes. For a moment in between
//! the address is the node's own.

use std::collections::BTreeSet;
use std::net::IpAddr;

use ipnet::IpNet;
use netlink_packet_route::AddressFamily;
use netlink_packet_route::address::{AddressAttribute, AddressFlags, AddressMessage};
use netlink_packet_route::link::InfoKind;
use netlink_packet_route::route::{
    RouteAddress, RouteAttribute, RouteMessage, RouteProtocol, RouteScope, RouteType,
};
use rtnetlink::{LinkBridge, LinkMessageBuilder};

use crate::desired::tunnels::Tunnels;
use crate::facts::Link;
use crate::marks;
use crate::netlink::{self, Netlink, table_of};
use crate::subsystem::Outcome;

/// The kernel's table of its own addresses.
const LOCAL_TABLE: u32 = 255;

/// What there is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Actual {
    /// Index of the bridge, if it is there.
    pub device: Option<u32>,
    /// Addresses on it.
    pub anchors: BTreeSet<IpAddr>,
    /// Those of them that the kernel would answer to.
    pub exposed: BTreeSet<IpAddr>,
    /// Those of them that are in charon's table.
    pub hidden: BTreeSet<IpAddr>,
    /// Addresses of every other interface.
    pub others: BTreeSet<IpAddr>,
}

/// The difference.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Plan {
    /// The bridge is to be made.
    pub create: bool,
    /// Addresses to add and to hide; what is there already is only hidden.
    pub add: BTreeSet<IpAddr>,
    /// Addresses that are of no more use.
    pub remove: BTreeSet<IpAddr>,
    /// The bridge is to go, with everything on it.
    pub delete: Option<u32>,
}

/// The local prefixes in which `tunnels` needs an address.
fn prefixes(tunnels: &Tunnels) -> BTreeSet<IpNet> {
    let by_charon = tunnels
        .connections
        .values()
        .filter(|connection| connection.if_id.is_none());
    by_charon
        .flat_map(|connection| connection.local.iter().copied())
        .collect()
}

/// Whether `tunnels` has use for anchors.
pub fn wanted(tunnels: &Tunnels) -> bool {
    !prefixes(tunnels).is_empty()
}

/// The difference between what `tunnels` needs and `actual`. Pure.
pub fn plan(tunnels: &Tunnels, actual: &Actual) -> Plan {
    let prefixes = prefixes(tunnels);
    let within = |net: &IpNet, addresses: &BTreeSet<IpAddr>| {
        addresses.iter().copied().find(|address| net.contains(address))
    };
    let mut keep = BTreeSet::new();
    for net in &prefixes {
        if let Some(anchor) = within(net, &actual.anchors) {
            keep.insert(anchor);
        } else if within(net, &actual.others).is_none() {
            keep.insert(first(net));
        }
    }
    if keep.is_empty() {
        return Plan {
            delete: actual.device,
            ..Plan::default()
        };
    }
    let settled = |address: &IpAddr| {
        let hidden = !needs_hiding(*address) || actual.hidden.contains(address);
        actual.anchors.contains(address) && hidden && !actual.exposed.contains(address)
    };
    Plan {
        create: actual.device.is_none(),
        remove: actual.anchors.difference(&keep).copied().collect(),
        add: keep.into_iter().filter(|address| !settled(address)).collect(),
        delete: None,
    }
}

/// Whether routes may name the address as their source only when it is local in their table. For IPv6 it is enough
/// that an interface has it, and no such route can be made over an interface that is down.
fn needs_hiding(address: IpAddr) -> bool {
    address.is_ipv4()
}

/// The first address for a host: not the network's own, where there are others.
fn first(net: &IpNet) -> IpAddr {
    match net {
        IpNet::V4(net) => net.hosts().next().unwrap_or(net.network()).into(),
        // Its iterator starts with the routers' anycast address.
        IpNet::V6(net) => net.hosts().nth(1).unwrap_or(net.network()).into(),
    }
}

/// What there is.
///
/// # Errors
/// When the kernel cannot list links, addresses or routes.
pub async fn observe(netlink: &Netlink) -> Result<Actual, netlink::Error> {
    let mut actual = Actual::default();
    for (name, link) in netlink.links().await? {
        let addresses = link.addresses.iter().map(IpNet::addr);
        if is_ours(&name, &link) {
            actual.device = Some(link.index);
            actual.anchors.extend(addresses);
        } else {
            actual.others.extend(addresses);
        }
    }
    let Some(index) = actual.device else {
        return Ok(actual);
    };
    for family in [AddressFamily::Inet, AddressFamily::Inet6] {
        let on_it = |route: &RouteMessage| route.attributes.contains(&RouteAttribute::Oif(index));
        let of = |routes: Vec<RouteMessage>| -> BTreeSet<IpAddr> {
            routes
                .iter()
                .filter(|route| on_it(route))
                .filter_map(destination)
                .collect()
        };
        actual
            .exposed
            .extend(of(netlink.routes(family, LOCAL_TABLE, Some).await?));
        actual
            .hidden
            .extend(of(netlink.routes(family, marks::ANCHOR_TABLE, Some).await?));
    }
    Ok(actual)
}

fn is_ours(name: &str, link: &Link) -> bool {
    name == marks::ANCHOR_DEVICE && link.kind.as_deref() == Some("bridge")
}

fn destination(route: &RouteMessage) -> Option<IpAddr> {
    if route.header.kind != RouteType::Local {
        return None;
    }
    route.attributes.iter().find_map(|attribute| match attribute {
        RouteAttribute::Destination(RouteAddress::Inet(address)) => Some((*address).into()),
        RouteAttribute::Destination(RouteAddress::Inet6(address)) => Some((*address).into()),
        _ => None,
    })
}

/// Makes the bridge and what is to be on it.
pub async fn grow(netlink: &Netlink, plan: &Plan) -> Vec<Outcome> {
    let mut outcomes = Vec::new();
    if plan.create {
        outcomes.push(Outcome::new(
            "add",
            format_args!("link {}", marks::ANCHOR_DEVICE),
            create(netlink).await,
        ));
    }
    if plan.add.is_empty() {
        return outcomes;
    }
    let index = match observe(netlink).await {
        Ok(Actual {
            device: Some(index), ..
        }) => index,
        Ok(_) => return outcomes,
        Err(error) => {
            outcomes.push(Outcome::new(
                "observe",
                format_args!("link {}", marks::ANCHOR_DEVICE),
                Err(error),
            ));
            return outcomes;
        }
    };
    for address in &plan.add {
        outcomes.push(Outcome::new(
            "add",
            format_args!("anchor {address}"),
            add(netlink, index, *address).await,
        ));
    }
    outcomes
}

/// Removes what is of no more use.
pub async fn shrink(netlink: &Netlink, plan: &Plan) -> Vec<Outcome> {
    let mut outcomes = Vec::new();
    if let Some(index) = plan.delete {
        let result = netlink.handle().link().del(index).execute().await;
        let result = result.map_err(|error| {
            netlink::Error::new(format!("deleting the bridge {}", marks::ANCHOR_DEVICE), error)
        });
        outcomes.push(Outcome::new(
            "delete",
            format_args!("link {}", marks::ANCHOR_DEVICE),
            result,
        ));
    }
    if plan.remove.is_empty() {
        return outcomes;
    }
    match observe(netlink).await {
        Ok(Actual {
            device: Some(index), ..
        }) => {
            for address in &plan.remove {
                outcomes.push(Outcome::new(
                    "delete",
                    format_args!("anchor {address}"),
                    remove(netlink, index, *address).await,
                ));
            }
        }
        Ok(_) => {}
        Err(error) => {
            outcomes.push(Outcome::new(
                "observe",
                format_args!("link {}", marks::ANCHOR_DEVICE),
                Err(error),
            ));
        }
    }
    outcomes
}

async fn create(netlink: &Netlink) -> Result<(), netlink::Error> {
    let message = LinkMessageBuilder::<LinkBridge>::new_with_info_kind(InfoKind::Bridge)
        .name(marks::ANCHOR_DEVICE)
        .build();
    netlink
        .handle()
        .link()
        .add(message)
        .execute()
        .await
        .map_err(|error| netlink::Error::new(format!("making the bridge {}", marks::ANCHOR_DEVICE), error))
}

async fn add(netlink: &Netlink, index: u32, address: IpAddr) -> Result<(), netlink::Error> {
    // First the table in which it does no harm, then the address, then at once what makes it the node's own. For IPv6
    // the kernel makes the latter a little later; the next pass finds it.
    let routes = netlink.handle().route();
    if needs_hiding(address) {
        let hide = routes
            .add(local(address, index, marks::ANCHOR_TABLE))
            .replace()
            .execute()
            .await;
        hide.map_err(|error| {
            netlink::Error::new(
                format!("adding {address} to table {}", marks::ANCHOR_TABLE),
                error,
            )
        })?;
    }
    let mut request =
        netlink
            .handle()
            .address()
            .add(index, address, if address.is_ipv4() { 32 } else { 128 });
    request.message_mut().attributes.push(AddressAttribute::Flags(
        AddressFlags::Nodad | AddressFlags::Noprefixroute,
    ));
    tolerate(request.execute().await, libc::EEXIST).map_err(|error| {
        netlink::Error::new(format!("adding {address} to {}", marks::ANCHOR_DEVICE), error)
    })?;
    // Absent where an earlier attempt came this far.
    tolerate(
        routes.del(local(address, index, LOCAL_TABLE)).execute().await,
        libc::ESRCH,
    )
    .map_err(|error| netlink::Error::new(format!("taking {address} from the node's own addresses"), error))
}

async fn remove(netlink: &Netlink, index: u32, address: IpAddr) -> Result<(), netlink::Error> {
    let mut message = AddressMessage::default();
    message.header.index = index;
    message.header.prefix_len = if address.is_ipv4() { 32 } else { 128 };
    message.header.family = family(address);
    message.attributes = vec![
        AddressAttribute::Local(address),
        AddressAttribute::Address(address),
    ];
    netlink
        .handle()
        .address()
        .del(message)
        .execute()
        .await
        .map_err(|error| {
            netlink::Error::new(format!("deleting {address} of {}", marks::ANCHOR_DEVICE), error)
        })?;
    let route = netlink
        .handle()
        .route()
        .del(local(address, index, marks::ANCHOR_TABLE))
        .execute()
        .await;
    tolerate(route, libc::ESRCH).map_err(|error| {
        netlink::Error::new(
            format!("deleting {address} of table {}", marks::ANCHOR_TABLE),
            error,
        )
    })
}

fn family(address: IpAddr) -> AddressFamily {
    if address.is_ipv4() {
        AddressFamily::Inet
    } else {
        AddressFamily::Inet6
    }
}

fn local(address: IpAddr, index: u32, table: u32) -> RouteMessage {
    let mut message = RouteMessage::default();
    message.header.address_family = family(address);
    message.header.destination_prefix_length = if address.is_ipv4() { 32 } else { 128 };
    message.header.kind = RouteType::Local;
    message.header.scope = RouteScope::Host;
    message.header.protocol = RouteProtocol::Kernel;
    message.attributes = vec![
        RouteAttribute::Destination(match address {
            IpAddr::V4(address) => RouteAddress::Inet(address),
            IpAddr::V6(address) => RouteAddress::Inet6(address),
        }),
        RouteAttribute::Oif(index),
        RouteAttribute::Table(table),
    ];
    debug_assert_eq!(
        table_of(&message),
        table,
        "the attribute counts, the header is too small"
    );
    message
}

fn tolerate(result: Result<(), rtnetlink::Error>, errno: i32) -> Result<(), rtnetlink::Error> {
    match result {
        Err(rtnetlink::Error::NetlinkError(message)) if message.raw_code() == -errno => Ok(()),
        result => result,
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::desired::tunnels::Connection;

    fn tunnels(local: &[&str], if_id: Option<u32>) -> Tunnels {
        let connection = Connection {
            peer: "f.edge1".into(),
            local_id: String::new(),
            remote_id: String::new(),
            remote_addrs: Vec::new(),
            remote_port: None,
            initiate: false,
            reqid: 1,
            if_id,
            child: String::new(),
            local: local.iter().map(|net| net.parse().unwrap()).collect(),
            remote: BTreeSet::new(),
        };
        Tunnels {
            connections: BTreeMap::from([("fabedge-f.edge1".into(), connection.into())]),
            problems: Vec::new(),
        }
    }

    fn addresses(texts: &[&str]) -> BTreeSet<IpAddr> {
        texts.iter().map(|text| text.parse().unwrap()).collect()
    }

    const LOCAL: [&str; 4] = ["10.233.0.0/18", "10.233.64.0/24", "10.20.8.23/32", "fd00:64::/64"];

    #[test]
    fn only_prefixes_without_an_address_get_an_anchor() {
        let actual = Actual {
            others: addresses(&["10.233.64.1", "10.20.8.28"]),
            ..Actual::default()
        };
        let first = plan(&tunnels(&LOCAL, None), &actual);
        assert!(first.create);
        assert_eq!(first.add, addresses(&["10.233.0.1", "10.20.8.23", "fd00:64::1"]));

        let done = Actual {
            device: Some(7),
            anchors: first.add.clone(),
            hidden: first.add.iter().copied().filter(IpAddr::is_ipv4).collect(),
            exposed: BTreeSet::new(),
            ..actual
        };
        assert_eq!(plan(&tunnels(&LOCAL, None), &done), Plan::default());
        let exposed = Actual {
            exposed: addresses(&["10.20.8.23"]),
            ..done.clone()
        };
        assert_eq!(
            plan(&tunnels(&LOCAL, None), &exposed).add,
            addresses(&["10.20.8.23"])
        );
        let fewer = plan(&tunnels(&LOCAL[..2], None), &done);
        assert_eq!(fewer.remove, addresses(&["10.20.8.23", "fd00:64::1"]));
        assert_eq!(plan(&Tunnels::default(), &done).delete, Some(7));
    }

    #[test]
    fn the_kernel_needs_none() {
        let tunnels = tunnels(&LOCAL, Some(marks::IF_ID));
        assert!(!wanted(&tunnels));
        assert_eq!(plan(&tunnels, &Actual::default()), Plan::default());
    }

    #[test]
    fn charon_is_configured_for_the_same_table() {
        let conf = include_str!("../../../images/strongswan/strongswan-libipsec.conf");
        assert!(conf.contains(&format!("\n  routing_table = {}\n", marks::ANCHOR_TABLE)));
    }
}
