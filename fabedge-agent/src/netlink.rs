//! The one rtnetlink handle, what it tells of the host, and the notice that something changed.

mod changes;
mod hops;

use std::collections::{BTreeMap, BTreeSet};
use std::io;

use futures_util::TryStreamExt as _;
use ipnet::IpNet;
use netlink_packet_route::AddressFamily;
use netlink_packet_route::address::{AddressAttribute, AddressFlags, AddressMessage};
use netlink_packet_route::link::{LinkAttribute, LinkFlags, LinkInfo, LinkMessage};
use netlink_packet_route::route::{RouteAttribute, RouteHeader, RouteMessage, RouteType};
use netlink_packet_route::rule::RuleMessage;
use rtnetlink::IpVersion;

pub use changes::{Changes, OwnPort};

use crate::facts::{Facts, Link, Reception, TunnelKind};

/// What could not be asked of, or done through, rtnetlink.
#[derive(Debug, thiserror::Error)]
#[error("{attempted}")]
pub struct Error {
    attempted: String,
    source: io::Error,
}

impl Error {
    /// An error of what was attempted on which object.
    pub fn new(attempted: impl Into<String>, source: impl IntoIoError) -> Self {
        Self {
            attempted: attempted.into(),
            source: source.into_io(),
        }
    }

    /// The kernel's error number, where it was the kernel that refused.
    pub fn errno(&self) -> Option<i32> {
        self.source.raw_os_error()
    }
}

/// What carries an error of the kernel: [`Error`] keeps its number.
pub trait IntoIoError {
    /// The error as the standard library's.
    fn into_io(self) -> io::Error;
}

impl IntoIoError for io::Error {
    fn into_io(self) -> io::Error {
        self
    }
}

impl IntoIoError for rtnetlink::Error {
    fn into_io(self) -> io::Error {
        match self {
            Self::NetlinkError(message) => message.to_io(),
            other => io::Error::other(other),
        }
    }
}

/// The rtnetlink socket of the network namespace in which it was opened.
#[derive(Clone, Debug)]
pub struct Netlink {
    handle: rtnetlink::Handle,
}

impl Netlink {
    /// Opens the socket; its reader runs as a task of the current runtime.
    ///
    /// # Errors
    /// When the socket cannot be made.
    pub fn open() -> Result<Self, Error> {
        // Strict checking lets the kernel filter dumps by table: a host may hold a full BGP table in another one.
        let (connection, handle, _) = rtnetlink::new_connection_with_strict_check()
            .map_err(|error| Error::new("opening an rtnetlink socket", error))?;
        tokio::spawn(connection);
        Ok(Self { handle })
    }

    pub(crate) fn handle(&self) -> &rtnetlink::Handle {
        &self.handle
    }

    /// What the host looks like, all but its [`Netlink::hops`].
    ///
    /// # Errors
    /// When links, addresses or routes cannot be listed.
    pub async fn facts(&self, tunnel: TunnelKind) -> Result<Facts, Error> {
        let links = self.links().await?;
        let uplinks = self.uplinks(&links).await?;
        Ok(Facts {
            links,
            uplinks,
            tunnel,
            hops: BTreeSet::new(),
            reception: Reception::default(),
            paths: BTreeMap::new(),
        })
    }

    /// Every interface with its addresses, by name.
    ///
    /// # Errors
    /// When they cannot be listed.
    pub async fn links(&self) -> Result<BTreeMap<String, Link>, Error> {
        let mut links: BTreeMap<u32, Link> = self
            .handle
            .link()
            .get()
            .execute()
            .map_ok(|message| (message.header.index, link(message)))
            .try_collect()
            .await
            .map_err(|error| Error::new("listing the interfaces", error))?;
        let addresses: Vec<AddressMessage> = self
            .handle
            .address()
            .get()
            .execute()
            .try_collect()
            .await
            .map_err(|error| Error::new("listing the addresses", error))?;
        for message in addresses {
            let link = links.get_mut(&message.header.index);
            if let (Some(link), Some(address)) = (link, address(&message)) {
                link.addresses.push(address);
            }
        }
        Ok(links
            .into_values()
            .map(|link| (link.name.clone(), link))
            .collect())
    }

    /// Names of the interfaces that default routes of the main table lead to: those of IPv4 before those of IPv6,
    /// best metric first, each once.
    async fn uplinks(&self, links: &BTreeMap<String, Link>) -> Result<Vec<String>, Error> {
        let names: BTreeMap<u32, &str> = links
            .values()
            .map(|link| (link.index, link.name.as_str()))
            .collect();
        let mut uplinks: Vec<String> = Vec::new();
        for family in [AddressFamily::Inet, AddressFamily::Inet6] {
            let main = u32::from(RouteHeader::RT_TABLE_MAIN);
            let routes = self
                .routes(family, main, |route| Some(default_route(&route)))
                .await?;
            let mut hops: Vec<(u32, u32)> = routes.into_iter().flatten().collect();
            hops.sort_unstable();
            for name in hops.iter().filter_map(|(_, index)| names.get(index)) {
                if !uplinks.iter().any(|known| known == name) {
                    uplinks.push((*name).to_owned());
                }
            }
        }
        Ok(uplinks)
    }

    /// All rules of one family; none where the kernel does not know the family.
    pub(crate) async fn rules(&self, version: IpVersion) -> Result<Vec<RuleMessage>, Error> {
        let listed: Result<Vec<RuleMessage>, _> =
            self.handle.rule().get(version).execute().try_collect().await;
        match listed.map_err(|error| Error::new("listing the rules", error)) {
            // Booted with ipv6.disable=1.
            Err(error) if error.errno() == Some(libc::EAFNOSUPPORT) => Ok(Vec::new()),
            listed => listed,
        }
    }

    /// All routes of one table, as whatever they are taken for one by one: there may be tens of thousands. None where the
    /// table does not exist.
    pub(crate) async fn routes<T>(
        &self,
        family: AddressFamily,
        table: u32,
        take: impl Fn(RouteMessage) -> Option<T>,
    ) -> Result<Vec<T>, Error> {
        let mut request = RouteMessage::default();
        request.header.address_family = family;
        request.attributes.push(RouteAttribute::Table(table));
        // A kernel without IPv6 answers for IPv4 instead, and one without strict checking for all tables.
        let asked = |route: &RouteMessage| route.header.address_family == family && table_of(route) == table;
        let taken = |route| async { Ok(Some(route).filter(asked).and_then(&take)) };
        let routes = self.handle.route().get(request).execute();
        let listed: Result<Vec<T>, _> = routes.try_filter_map(taken).try_collect().await;
        match listed.map_err(|error| Error::new(format!("listing the routes of table {table}"), error)) {
            Err(error) if error.errno() == Some(libc::ENOENT) => Ok(Vec::new()),
            listed => listed,
        }
    }
}

/// The table of a route: in an attribute, for the header's field is too small for all of them.
pub(crate) fn table_of(route: &RouteMessage) -> u32 {
    route
        .attributes
        .iter()
        .find_map(|attribute| match attribute {
            RouteAttribute::Table(table) => Some(*table),
            _ => None,
        })
        .unwrap_or(u32::from(route.header.table))
}

/// Metric and interface of every next hop of a default route.
fn default_route(route: &RouteMessage) -> Vec<(u32, u32)> {
    if route.header.destination_prefix_length != 0 || route.header.kind != RouteType::Unicast {
        return Vec::new();
    }
    let metric = route
        .attributes
        .iter()
        .find_map(|attribute| match attribute {
            RouteAttribute::Priority(metric) => Some(*metric),
            _ => None,
        })
        .unwrap_or(0);
    route
        .attributes
        .iter()
        .flat_map(|attribute| match attribute {
            RouteAttribute::Oif(index) => vec![(metric, *index)],
            RouteAttribute::MultiPath(hops) => hops.iter().map(|hop| (metric, hop.interface_index)).collect(),
            _ => Vec::new(),
        })
        .collect()
}

fn link(message: LinkMessage) -> Link {
    let mut link = Link {
        index: message.header.index,
        up: message.header.flags.contains(LinkFlags::Up),
        ..Link::default()
    };
    for attribute in message.attributes {
        match attribute {
            LinkAttribute::IfName(name) => link.name = name,
            LinkAttribute::Mtu(mtu) => link.mtu = mtu,
            LinkAttribute::Address(mac) => link.mac = mac.try_into().unwrap_or_default(),
            LinkAttribute::Controller(index) => link.master = Some(index),
            LinkAttribute::LinkInfo(infos) => {
                link.kind = infos.iter().find_map(|info| match info {
                    LinkInfo::Kind(kind) => Some(kind.to_string()),
                    _ => None,
                });
            }
            _ => {}
        }
    }
    link
}

/// An address with its prefix length; none while it cannot be used, as during duplicate address detection.
fn address(message: &AddressMessage) -> Option<IpNet> {
    let mut address = None;
    let mut local = None;
    for attribute in &message.attributes {
        match attribute {
            AddressAttribute::Address(ip) => address = Some(*ip),
            AddressAttribute::Local(ip) => local = Some(*ip),
            AddressAttribute::Flags(flags)
                if flags.intersects(AddressFlags::Tentative | AddressFlags::Dadfailed)
                    && !flags.contains(AddressFlags::Optimistic) =>
            {
                return None;
            }
            _ => {}
        }
    }
    // On a point-to-point interface `address` is the other end.
    IpNet::new(local.or(address)?, message.header.prefix_len).ok()
}
