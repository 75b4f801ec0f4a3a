//! A node between an uplink and what stands for the other ends of its tunnels, and probes that tell who is seen
//! where, under which address.

use std::net::{IpAddr, UdpSocket};
use std::time::{Duration, Instant};

use fabedge_agent::desired::Options;
use fabedge_agent::desired::firewall::Firewall as DesiredFirewall;
use fabedge_agent::desired::routes::Routes as DesiredRoutes;
use fabedge_agent::desired::sysctl::Sysctl as DesiredSysctl;
use fabedge_agent::facts::{Facts, TunnelKind};
use fabedge_agent::firewall::Firewall;
use fabedge_agent::netlink::Netlink;
use fabedge_agent::routes::Routes;
use fabedge_agent::sysctl::Sysctl;
use fabedge_common::config::NodeConfig;

use super::space::{Space, assert_fine, pass, sh};

/// Packets of one probe.
const PROBES: usize = 10;

/// How long a packet may take; only what does not arrive costs this time.
pub const PATIENCE: Duration = Duration::from_millis(300);

/// How long one may take that must arrive, and the rest of those of which some have.
const LONG: Duration = Duration::from_secs(2);

/// Nothing but our own rules may be what stops a packet.
pub const OPEN: &str = "
    for filter in /proc/sys/net/ipv4/conf/*/rp_filter; do echo 0 > $filter; done
    echo 1 > /proc/sys/net/ipv4/ip_forward
    echo 1 > /proc/sys/net/ipv6/conf/all/forwarding
";

/// Connects this namespace's `name` with `peer` in `space`.
pub fn wire(name: &str, space: &Space, peer: &str) {
    sh(&format!(
        "ip link add {name} type veth peer name {peer} netns {}
         ip link set {name} up",
        space.id()
    ));
    space.sh(&format!("ip link set {peer} up"));
}

/// A tunnel device of this node whose far end has `addresses`, in a namespace that routes everything back.
pub fn tunnel(addresses: &[&str]) -> Space {
    let far = Space::new();
    wire("ipsec0", &far, "t0");
    let mac = sh(
        "cat /sys/class/net/ipsec0/address 2>/dev/null || ip -o link show ipsec0 | sed 's/.*ether //; s/ .*//'",
    );
    let mac = mac.trim();
    far.sh(&format!(
        "{OPEN}
         ip addr add 169.254.1.2/32 dev t0
         ip route add default via 169.254.1.1 dev t0 onlink
         ip neigh add 169.254.1.1 lladdr {mac} dev t0
         ip route add default via fe80::1 dev t0
         ip neigh add fe80::1 lladdr {mac} dev t0"
    ));
    own(&far, "t0", addresses);
    far
}

/// Gives `space` addresses of its own.
pub fn own(space: &Space, device: &str, addresses: &[&str]) {
    let line = |address: &&str| {
        let nodad = if address.contains(':') { "nodad" } else { "" };
        format!("ip addr add {address} dev {device} {nodad}\n")
    };
    space.sh(&addresses.iter().map(line).collect::<String>());
}

/// What the agent does about the network.
pub struct Agent {
    pub routes: Routes,
    pub firewall: Firewall,
    pub sysctl: Sysctl,
    facts: Facts,
}

impl Agent {
    pub async fn new() -> Self {
        let netlink = Netlink::open().unwrap();
        let mut facts = netlink.facts(TunnelKind::Libipsec).await.unwrap();
        let pods = ["10.233.64.0/18".parse().unwrap()];
        facts.hops = netlink.hops(&facts.links, &pods).await.unwrap();
        Self {
            routes: Routes::new(netlink),
            firewall: Firewall::new(),
            sysctl: Sysctl::new(),
            facts,
        }
    }

    /// One pass in one role.
    pub async fn apply(&mut self, role: Role, config: &NodeConfig, options: &Options) {
        let sysctl = (role.sysctl)(config, &self.facts);
        assert_fine(&pass(&mut self.sysctl, &sysctl).await);
        let routes = (role.routes)(config, &self.facts);
        assert_fine(&pass(&mut self.routes, &routes).await);
        let firewall = (role.firewall)(config, &self.facts, options);
        assert_fine(&pass(&mut self.firewall, &firewall).await);
    }

    /// Packets dropped so far for a reason.
    pub async fn dropped(&self, counter: &str) -> u64 {
        fabedge_agent::firewall::dropped().await.unwrap()[counter].packets
    }
}

/// The constructors of a role.
#[derive(Clone, Copy)]
pub struct Role {
    pub sysctl: fn(&NodeConfig, &Facts) -> DesiredSysctl,
    pub routes: fn(&NodeConfig, &Facts) -> DesiredRoutes,
    pub firewall: fn(&NodeConfig, &Facts, &Options) -> DesiredFirewall,
}

/// Sends ten packets to `address`, and tells how many of them arrive at `at`.
pub fn count(from: &UdpSocket, address: &str, at: &UdpSocket) -> usize {
    counts([(from, address, at)])[0]
}

/// As [`count`], of several at once: that nothing arrives takes time to tell.
pub fn counts<const N: usize>(probes: [(&UdpSocket, &str, &UdpSocket); N]) -> [usize; N] {
    for (_, _, at) in probes {
        drain(at);
    }
    for _ in 0..PROBES {
        for (from, address, _) in probes {
            // A refusal is what some tests are about; it shows as packets that do not arrive.
            drop(from.send_to(b"probe", address));
        }
    }
    let sent = Instant::now();
    let mut arrived = [0; N];
    let some = |arrived: &[usize; N]| arrived.iter().any(|count| (1..PROBES).contains(count));
    let limit = |arrived: &[usize; N]| if some(arrived) { LONG } else { PATIENCE };
    loop {
        // What came while this machine had something else to do counts.
        let late = sent.elapsed() > limit(&arrived);
        for (count, (_, _, at)) in arrived.iter_mut().zip(probes) {
            *count += drain(at);
        }
        if late || arrived.iter().all(|count| *count >= PROBES) {
            return arrived;
        }
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Under which address `at` sees what `from` sends to `address`, after which it answers and `from` hears it; none
/// if it does not arrive.
pub fn seen(from: &UdpSocket, address: &str, at: &UdpSocket) -> Option<IpAddr> {
    drain(at);
    drain(from);
    from.send_to(b"probe", address).ok()?;
    let mut buffer = [0; 16];
    let (_, source) = at.recv_from(&mut buffer).ok()?;
    at.send_to(b"answer", source).unwrap();
    let (_, answered) = from.recv_from(&mut buffer).expect("the answer gets back");
    assert_eq!(
        answered.to_string(),
        address,
        "the answer comes from where the question went"
    );
    Some(source.ip())
}

/// As [`seen`], and it must be.
pub fn assert_seen(from: &UdpSocket, address: &str, at: &UdpSocket, source: &str) {
    for socket in [from, at] {
        socket.set_read_timeout(Some(LONG)).unwrap();
    }
    let seen =
        seen(from, address, at).unwrap_or_else(|| panic!("nothing arrives from {from:?} at {address}"));
    for socket in [from, at] {
        socket.set_read_timeout(Some(PATIENCE)).unwrap();
    }
    assert_eq!(seen.to_string(), source, "from {from:?} to {address}");
}

/// Takes what has arrived, and tells how much that was.
pub fn drain(socket: &UdpSocket) -> usize {
    socket.set_nonblocking(true).unwrap();
    let count = std::iter::from_fn(|| socket.recv(&mut [0; 16]).ok()).count();
    socket.set_nonblocking(false).unwrap();
    count
}
