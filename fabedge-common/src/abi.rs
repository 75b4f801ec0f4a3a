//! The kernel ABI: keys and values of the pinned maps, their names, and the reasons under which packets are
//! counted. Shared by the eBPF programs (`no_std`) and the agent, so one definition names a field for the program,
//! for `bpftool map dump pinned` and for the metrics.
//!
//! Everything that lies in a map is `repr(C)` with explicit padding and holds integers and byte arrays only: no
//! enum, bool or Option, whose invalid bit patterns another version could write. Addresses and ports are bytes in
//! network order. A change of any layout or meaning takes a new [`VERSION`].

pub mod fib;
mod layout;
mod reason;

pub use reason::{Program, Reason, Verdict};

/// Version of everything in this module. Pinned maps of another version are migrated, never reused.
pub const VERSION: u32 = 3;

/// Names of the maps, which are also the names of their pins.
pub mod map {
    /// IPv4 prefix -> [`Route`](super::Route), for people; programs look up [`FIB`].
    pub const ROUTES4: &str = "routes4";
    /// IPv6 prefix -> [`Route`](super::Route), for people.
    pub const ROUTES6: &str = "routes6";
    /// [`IPV4`](super::fib::IPV4) or [`IPV6`](super::fib::IPV6) -> 0 -> the [`Page`](super::fib::Page) of that family's
    /// forwarding table.
    pub const FIB: &str = "fib";
    /// Number of a block -> 0 -> [`Block`](super::fib::Block) of a forwarding table.
    pub const FIB_BLOCKS: &str = "fib_block";
    /// IPv4 address -> [`Pod`](super::Pod).
    pub const PODS4: &str = "pods4";
    /// IPv6 address -> [`Pod`](super::Pod).
    pub const PODS6: &str = "pods6";
    /// reqid -> [`Peer`](super::Peer), per CPU.
    pub const PEERS: &str = "peers";
    /// [`Reason::index`](super::Reason::index) -> [`Counter`](super::Counter), per CPU.
    pub const STATS: &str = "stats";
    /// [`Flow`](super::Flow) -> [`StackFlow`](super::StackFlow), least recently used evicted.
    pub const STACK_FLOWS: &str = "stack_flows";
    /// 0 -> [`State`](super::State).
    pub const STATE: &str = "state";
    /// [`SaId`](super::SaId) -> [`SaCpu`](super::SaCpu).
    pub const SAS: &str = "sas";
    /// Number of a CPU -> its queue. As many as this machine may have; empty where nothing is spread.
    pub const CPUS: &str = "cpus";

    /// All of them.
    pub const ALL: [&str; 12] = [
        ROUTES4,
        ROUTES6,
        FIB,
        FIB_BLOCKS,
        PODS4,
        PODS6,
        PEERS,
        STATS,
        STACK_FLOWS,
        STATE,
        SAS,
        CPUS,
    ];
}

/// Upper bounds of the maps. Only `peers` and `pods` cost memory before they are filled (a hash bucket each);
/// `stack_flows` is allocated whole (about 1.6 MiB), as every LRU map is.
pub mod capacity {
    /// Routes per family.
    pub const ROUTES: usize = 262_144;
    /// Pods of one node, per family.
    pub const PODS: usize = 4096;
    /// Peers of one node.
    pub const PEERS: usize = 16_384;
    /// Flows that the stack carries.
    pub const STACK_FLOWS: usize = 16_384;
    /// Inbound SAs and the addresses at which they end: two SAs per peer while one takes the other's place.
    pub const SAS: usize = 2 * PEERS + 1024;
}

/// [`Route::kind`]: over the xfrm interface; the kernel knows which SA decrypted a packet.
pub const ROUTE_XFRM: u32 = 1;
/// [`Route::kind`]: over the TUN of kernel-libipsec, where charon has checked the SA's selectors itself.
pub const ROUTE_TUN: u32 = 2;

/// [`Route::flags`]: the stack translates or filters this prefix (services, node addresses): never fast.
pub const ROUTE_STACK: u32 = 1;

/// [`Pod::flags`]: the CNI shapes this pod's bandwidth on its interface, which a redirect would go past.
pub const POD_SHAPED: u32 = 1;
/// [`Pod::flags`]: new here. Its packets stay with the stack for now, so that flows which the stack already
/// translates are recorded before any packet of theirs could go past the stack.
pub const POD_LEARNING: u32 = 2;

/// `skb->tc_index` of a packet that took the fast path out of a pod: not carried by the stack.
pub const STAMP_FAST: u32 = 0xfab1;
/// `skb->tc_index` of a packet that was fit for the fast path by its addresses, but is left to the stack for its
/// own sake (size, fragment, TTL): if it comes out with this stamp, its flow is not one that the stack translates.
pub const STAMP_PLAIN: u32 = 0xfab2;

/// Where packets to a prefix go, and which SA packets from it must have come by.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Route {
    /// [`ROUTE_XFRM`] or [`ROUTE_TUN`].
    pub kind: u32,
    /// The tunnel device.
    pub ifindex: u32,
    /// [`reqid`] of the peer (for a relayed prefix, of the connector) whose SA carries it.
    pub reqid: u32,
    /// [`ROUTE_STACK`].
    pub flags: u32,
    /// Largest IP packet that the tunnel device takes.
    pub mtu: u32,
}

impl Route {
    /// The route in words, as [`fib`] holds it.
    pub const fn to_words(self) -> [u64; 3] {
        [
            self.kind as u64 | (self.ifindex as u64) << 32,
            self.reqid as u64 | (self.flags as u64) << 32,
            self.mtu as u64,
        ]
    }

    /// The route that [`Route::to_words`] gave.
    #[inline(always)]
    pub const fn from_words([a, b, c]: [u64; 3]) -> Self {
        Self {
            kind: a as u32,
            ifindex: (a >> 32) as u32,
            reqid: b as u32,
            flags: (b >> 32) as u32,
            mtu: c as u32,
        }
    }
}

/// A pod of this node.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Pod {
    /// The host side of its veth.
    pub ifindex: u32,
    /// [`POD_SHAPED`], [`POD_LEARNING`].
    pub flags: u32,
    /// Hardware address of the pod's side.
    pub pod_mac: [u8; 6],
    /// Hardware address of the pod's gateway, as it shall appear as the sender's.
    pub gateway_mac: [u8; 6],
}

/// Traffic with one peer, fast and slow path together.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Peer {
    /// Packets sent into the tunnel; a GSO packet counts as its segments.
    pub tx_packets: u64,
    /// Bytes of those packets from the IP header on.
    pub tx_bytes: u64,
    /// Packets received out of the tunnel.
    pub rx_packets: u64,
    /// Bytes of those packets.
    pub rx_bytes: u64,
}

/// Packets under one [`Reason`].
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counter {
    /// Packets; a GSO packet counts as its segments.
    pub packets: u64,
    /// Bytes of those packets from the IP header on.
    pub bytes: u64,
}

/// One direction of a flow. IPv4 addresses are IPv4-mapped. Aligned, so that programs fill it word by word.
#[repr(C, align(8))]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Flow {
    /// Source address.
    pub src: [u8; 16],
    /// Destination address.
    pub dst: [u8; 16],
    /// Source port; for ICMP echo the identifier, for protocols without ports zero.
    pub src_port: [u8; 2],
    /// Destination port; for ICMP echo the identifier, for protocols without ports zero.
    pub dst_port: [u8; 2],
    /// IP protocol number.
    pub protocol: u8,
    /// Zero.
    pub padding: [u8; 3],
}

impl Flow {
    /// The direction in which the answers go.
    #[inline(always)]
    pub const fn reverse(&self) -> Self {
        Self {
            src: self.dst,
            dst: self.src,
            src_port: self.dst_port,
            dst_port: self.src_port,
            protocol: self.protocol,
            padding: [0; 3],
        }
    }
}

/// That the stack carried the other direction of a flow, and so may have translated it.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct StackFlow {
    /// [`Program`] that saw it, as a number.
    pub seen_by: u32,
}

/// An inbound SA, as a packet names it. With SPI 0, which no packet has: that SAs end at this address.
#[repr(C, align(4))]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct SaId {
    /// Where it ends; IPv4 addresses are IPv4-mapped.
    pub destination: [u8; 16],
    /// SPI.
    pub spi: [u8; 4],
}

/// What decrypts an SA's packets.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SaCpu {
    /// Number of the CPU.
    pub cpu: u32,
    /// [`reqid`] of the peer. All its SAs have the same CPU, so that a new one does not overtake the old one.
    pub reqid: u32,
}

/// Facts about the maps themselves.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct State {
    /// [`VERSION`] of the agent that made the maps.
    pub version: u32,
    /// 0 as long as `stack_flows` is empty, which spares its lookup.
    pub flows_recorded: u32,
}

/// The reqid of every SA with the endpoint `name`. The same on each node and after each restart, without anything
/// to remember: a hash (FNV-1a) folded into 0x4000_0000..=0x7fff_ffff, a range in which nobody counts up from 1.
pub const fn reqid(name: &str) -> u32 {
    let bytes = name.as_bytes();
    let mut hash: u32 = 0x811c_9dc5;
    let mut i = 0;
    while i < bytes.len() {
        hash = (hash ^ bytes[i] as u32).wrapping_mul(0x0100_0193);
        i += 1;
    }
    0x4000_0000 | ((hash ^ (hash >> 30)) & 0x3fff_ffff)
}

/// An IPv4 address as a [`Flow`] holds it.
#[inline(always)]
pub const fn mapped(addr: [u8; 4]) -> [u8; 16] {
    [
        0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, addr[0], addr[1], addr[2], addr[3],
    ]
}

#[cfg(test)]
mod tests;
