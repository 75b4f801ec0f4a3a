//! The ways by which the CNI of a cloud node reaches the pods of other nodes.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use futures_util::TryStreamExt as _;
use ipnet::IpNet;
use netlink_packet_route::AddressFamily;
use netlink_packet_route::neighbour::{NeighbourAddress, NeighbourAttribute, NeighbourMessage};
use netlink_packet_route::route::{RouteAddress, RouteAttribute, RouteHeader, RouteMessage, RouteType};

use super::{Error, Netlink};
use crate::facts::{Hop, Link};

/// `IFLA_INFO_KIND` of a device that finds the other end by the neighbour's hardware address.
const VXLAN: &str = "vxlan";

impl Netlink {
    /// The ways that the main table has to prefixes within `pods`.
    ///
    /// # Errors
    /// When routes or neighbours cannot be listed.
    pub async fn hops(&self, links: &BTreeMap<String, Link>, pods: &[IpNet]) -> Result<BTreeSet<Hop>, Error> {
        let links: BTreeMap<u32, &Link> = links.values().map(|link| (link.index, link)).collect();
        let mut gateways = BTreeSet::new();
        for family in [AddressFamily::Inet, AddressFamily::Inet6] {
            let routes = self
                .routes(family, u32::from(RouteHeader::RT_TABLE_MAIN), Some)
                .await?;
            gateways.extend(routes.iter().filter_map(|route| gateway(route, pods)));
        }
        let is_vxlan = |index: u32| {
            links
                .get(&index)
                .is_some_and(|link| link.kind.as_deref() == Some(VXLAN))
        };
        let ends = if gateways.iter().any(|(_, index)| is_vxlan(*index)) {
            self.far_ends().await?
        } else {
            BTreeMap::new()
        };
        let hop = |(gateway, index): (IpAddr, u32)| {
            let node = if is_vxlan(index) {
                *ends.get(&(index, gateway))?
            } else {
                gateway
            };
            Some(Hop {
                node,
                gateway,
                device: links.get(&index)?.name.clone(),
            })
        };
        Ok(gateways.into_iter().filter_map(hop).collect())
    }

    /// Where neighbours on VXLAN devices are, by interface and address: the neighbour table tells the hardware address,
    /// and the forwarding table to which node that belongs.
    async fn far_ends(&self) -> Result<BTreeMap<(u32, IpAddr), IpAddr>, Error> {
        let nodes: BTreeMap<(u32, Vec<u8>), IpAddr> = self
            .neighbours(AddressFamily::Bridge)
            .await?
            .iter()
            .filter_map(|entry| Some(((entry.header.ifindex, hardware(entry)?), destination(entry)?)))
            .collect();
        let mut ends = BTreeMap::new();
        for family in [AddressFamily::Inet, AddressFamily::Inet6] {
            for entry in self.neighbours(family).await? {
                let index = entry.header.ifindex;
                let known = hardware(&entry).and_then(|mac| nodes.get(&(index, mac)));
                if let (Some(address), Some(node)) = (destination(&entry), known) {
                    ends.insert((index, address), *node);
                }
            }
        }
        Ok(ends)
    }

    async fn neighbours(&self, family: AddressFamily) -> Result<Vec<NeighbourMessage>, Error> {
        let request = self.handle.neighbours().get().set_address_family(family);
        let listed: Result<Vec<NeighbourMessage>, _> = request.execute().try_collect().await;
        match listed.map_err(|error| Error::new("listing the neighbours", error)) {
            // Booted with ipv6.disable=1.
            Err(error) if error.errno() == Some(libc::EAFNOSUPPORT) => Ok(Vec::new()),
            listed => listed,
        }
    }
}

/// Gateway and interface of a route to a prefix within `pods`.
fn gateway(route: &RouteMessage, pods: &[IpNet]) -> Option<(IpAddr, u32)> {
    if route.header.kind != RouteType::Unicast {
        return None;
    }
    let (mut to, mut gateway, mut index) = (None, None, None);
    for attribute in &route.attributes {
        match attribute {
            RouteAttribute::Destination(address) => to = of_route(address),
            RouteAttribute::Gateway(address) => gateway = of_route(address),
            RouteAttribute::Oif(oif) => index = Some(*oif),
            _ => {}
        }
    }
    let to = IpNet::new(to?, route.header.destination_prefix_length).ok()?;
    let within = pods.iter().any(|net| net.contains(&to));
    within.then_some((gateway?, index?))
}

fn of_route(address: &RouteAddress) -> Option<IpAddr> {
    match address {
        RouteAddress::Inet(address) => Some((*address).into()),
        RouteAddress::Inet6(address) => Some((*address).into()),
        _ => None,
    }
}

fn hardware(entry: &NeighbourMessage) -> Option<Vec<u8>> {
    entry.attributes.iter().find_map(|attribute| match attribute {
        NeighbourAttribute::LinkLayerAddress(mac) => Some(mac.clone()),
        _ => None,
    })
}

/// The address of a neighbour, or of the node behind an entry of a forwarding table, whose family only its length tells.
fn destination(entry: &NeighbourMessage) -> Option<IpAddr> {
    entry.attributes.iter().find_map(|attribute| match attribute {
        NeighbourAttribute::Destination(NeighbourAddress::Inet(address)) => Some((*address).into()),
        NeighbourAttribute::Destination(NeighbourAddress::Inet6(address)) => Some((*address).into()),
        NeighbourAttribute::Destination(NeighbourAddress::Other(bytes)) => match bytes.len() {
            4 => <[u8; 4]>::try_from(bytes.as_slice()).ok().map(IpAddr::from),
            16 => <[u8; 16]>::try_from(bytes.as_slice()).ok().map(IpAddr::from),
            _ => None,
        },
        _ => None,
    })
}
