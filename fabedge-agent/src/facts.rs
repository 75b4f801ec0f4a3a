//! What the agent knows of its host, as values: observed by [`crate::netlink`] and [`crate::tunnels`] at the
//! start of every pass, read by the pure [`crate::desired`].

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use ipnet::IpNet;

use crate::marks;

/// Who performs ESP, and so which device carries the tunnels.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TunnelKind {
    /// The kernel, behind an xfrm interface that the agent makes.
    Xfrm,
    /// charon's kernel-libipsec plugin, behind a TUN that charon makes.
    Libipsec,
}

impl TunnelKind {
    /// Name of the tunnel device.
    pub fn device(self) -> &'static str {
        match self {
            Self::Xfrm => marks::XFRM_DEVICE,
            Self::Libipsec => marks::LIBIPSEC_DEVICE,
        }
    }
}

/// One network interface of the agent's network namespace.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Link {
    /// Interface index.
    pub index: u32,
    /// Interface name.
    pub name: String,
    /// MTU in bytes.
    pub mtu: u32,
    /// Hardware address; all zero where the device has none.
    pub mac: [u8; 6],
    /// `IFLA_INFO_KIND`: `veth`, `bridge`, `xfrm`, `tun`; none for a physical device.
    pub kind: Option<String>,
    /// Index of the bridge it is a port of.
    pub master: Option<u32>,
    /// Administratively up.
    pub up: bool,
    /// Addresses with their prefix lengths, host bits kept.
    pub addresses: Vec<IpNet>,
}

/// A way by which the cloud's CNI reaches the pods of another node.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Hop {
    /// The other node's address on the underlay.
    pub node: IpAddr,
    /// Whom routes name as the gateway: the same, or the far end of an overlay.
    pub gateway: IpAddr,
    /// By which interface.
    pub device: String,
}

/// How ESP reaches this host.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Reception {
    /// CPUs that are online.
    pub cpus: BTreeSet<u32>,
    /// Receive queues of each uplink, by its name.
    pub queues: BTreeMap<String, usize>,
    /// reqid of every SA with our `if_id`, by its destination and SPI.
    pub sas: BTreeMap<(IpAddr, u32), u32>,
}

/// The host at the start of a pass.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Facts {
    /// Every interface by name.
    pub links: BTreeMap<String, Link>,
    /// Names of the interfaces with a default route of the main table, best metric first.
    pub uplinks: Vec<String>,
    /// Who performs ESP here.
    pub tunnel: TunnelKind,
    /// The CNI's ways to other nodes; on cloud nodes without tunnels only, for nobody else asks.
    pub hops: BTreeSet<Hop>,
    /// How ESP arrives; on connectors only.
    pub reception: Reception,
    /// What [`crate::paths`] measured: the largest packet that a tunnel carries in one piece, by the peer's reqid.
    pub paths: BTreeMap<u32, u32>,
}

/// What every link has to carry for IPv6 (RFC 8200 §5).
const IPV6_LEAST: u32 = 1280;

impl Facts {
    /// MTU of the tunnel device, in bytes: the smallest uplink MTU less the worst-case overhead of ESP in UDP
    /// (IPv6 header 40, UDP 8, ESP header 8, IV 8, padding and trailer 2..=5, ICV 16: 85, rounded up to 100).
    /// Never below what IPv6 demands.
    pub fn tunnel_mtu(&self) -> u32 {
        const OVERHEAD: u32 = 100;
        let uplink = self
            .uplinks
            .iter()
            .filter_map(|name| self.links.get(name))
            .map(|link| link.mtu)
            .min();
        uplink
            .unwrap_or(1500)
            .saturating_sub(OVERHEAD)
            .clamp(IPV6_LEAST, 65535)
    }

    /// The largest packet of the family for what is behind the tunnel of `reqid`: what its path was found to carry in
    /// one piece, the device's MTU until that is known. IPv6 gets what it demands, for ESP itself may be fragmented.
    pub fn path_mtu(&self, reqid: u32, v6: bool) -> u32 {
        let device = self.tunnel_mtu();
        let path = self.paths.get(&reqid).map_or(device, |path| device.min(*path));
        if v6 { path.max(IPV6_LEAST) } else { path }
    }

    /// The address of this node inside one of `subnets` (its pod gateway address), per family at most one.
    pub fn address_within<'a>(&'a self, subnets: &'a [IpNet]) -> impl Iterator<Item = IpAddr> + 'a {
        let mut seen = [false; 2];
        self.links
            .values()
            // Its addresses are not the node's: the kernel does not answer to them.
            .filter(|link| link.name != marks::ANCHOR_DEVICE)
            .flat_map(|link| &link.addresses)
            .map(IpNet::addr)
            .filter(|addr| subnets.iter().any(|net| net.contains(addr)))
            .filter(move |addr| !std::mem::replace(&mut seen[usize::from(addr.is_ipv6())], true))
    }
}
