//! A small node: a bridge with a pod behind a veth, and a TUN for its tunnels.

use std::collections::{BTreeMap, BTreeSet};
use std::net::UdpSocket;

use fabedge_agent::desired::datapath::{Datapath as Desired, Entry, Hook};
use fabedge_common::abi::{Pod, ROUTE_STACK, ROUTE_TUN, Route};

use crate::packets::{ipv4, udp};
use crate::sandbox::{PATIENCE, ifindex, inside, ip, mac};
use crate::tun::Tun;

/// The pod's address.
pub const POD: &str = "10.1.0.2";
/// A peer's pod.
pub const PEER: &str = "10.2.0.5";
/// reqid of the peer.
pub const REQID: u32 = 0x4000_0007;

/// The node.
pub struct Node {
    /// Its tunnel device.
    pub tun: Tun,
}

impl Node {
    /// Makes devices, addresses and routes: the slow path.
    pub fn new() -> Self {
        for path in ["net/ipv4/ip_forward", "net/ipv6/conf/all/forwarding"] {
            std::fs::write(format!("/proc/sys/{path}"), "1").unwrap();
        }
        ip("netns add pod");
        ip("link add br0 type bridge");
        ip("address add 10.1.0.1/24 dev br0");
        ip("address add fd00:1::1/64 dev br0 nodad");
        ip("link set br0 up");
        ip("link add veth1 type veth peer name eth0 netns pod");
        ip("link set veth1 master br0 up");
        ip("-n pod address add 10.1.0.2/24 dev eth0");
        ip("-n pod address add fd00:1::2/64 dev eth0 nodad");
        ip("-n pod link set eth0 up");
        ip("-n pod route add default via 10.1.0.1");
        ip("-n pod route add default via fd00:1::1");
        Self::again()
    }

    /// Makes the tunnel device of a node that lost it.
    pub fn again() -> Self {
        let tun = Tun::new("ipsec0");
        ip("link set ipsec0 mtu 1400 up");
        ip("route add 10.2.0.0/16 dev ipsec0");
        ip("route add fd00:2::/64 dev ipsec0");
        Self { tun }
    }

    /// What the agent should make of it.
    pub fn desired(&self) -> Desired {
        let (veth, tunnel) = (ifindex("veth1"), ifindex("ipsec0"));
        let route = |flags| Route {
            kind: ROUTE_TUN,
            ifindex: tunnel,
            reqid: REQID,
            flags,
            mtu: 1400,
        };
        let pod = Pod {
            ifindex: veth,
            flags: 0,
            pod_mac: mac("eth0", Some("pod")),
            gateway_mac: mac("br0", None),
        };
        let hook = |ifindex, device: &str, entry| Hook {
            ifindex,
            entry,
            device: device.to_owned(),
        };
        Desired {
            enabled: true,
            routes: BTreeMap::from([
                ("10.2.0.0/16".parse().unwrap(), route(0)),
                ("fd00:2::/64".parse().unwrap(), route(0)),
                ("10.96.0.0/16".parse().unwrap(), route(ROUTE_STACK)),
            ]),
            pods: BTreeMap::from([(POD.parse().unwrap(), pod), ("fd00:1::2".parse().unwrap(), pod)]),
            peers: BTreeMap::from([(REQID, "fabedge.peer".to_owned())]),
            hooks: BTreeSet::from([
                hook(tunnel, "ipsec0", Entry::TunIngress),
                hook(tunnel, "ipsec0", Entry::TunnelEgress),
                hook(veth, "veth1", Entry::PodIngress),
                hook(veth, "veth1", Entry::PodEgress),
            ]),
            ..Desired::default()
        }
    }

    /// A UDP socket in the pod.
    pub fn socket(&self, address: &str) -> UdpSocket {
        let address = address.to_owned();
        let socket = inside("pod", move || UdpSocket::bind(address).unwrap());
        socket.set_read_timeout(Some(PATIENCE)).unwrap();
        socket
    }

    /// The next packet into the tunnel of this flow.
    pub fn sent(&self, src: &str, dst: &str, dst_port: u16) -> Option<Vec<u8>> {
        let wanted = ipv4(src, dst, 64, 17, &udp(0, dst_port, b""));
        self.tun.receive(PATIENCE, |packet| {
            packet.len() >= 24
                && packet[0] == 0x45
                && packet[12..20] == wanted[12..20]
                && packet[22..24] == wanted[22..24]
        })
    }
}
