//! Who is where. The numbers agree with `examples/standalone/`.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// What a site's agent is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// An edge node: pods on the agent's own CNI.
    Edge,
    /// The cloud gateway.
    Connector,
    /// Another cloud node.
    Cloud,
}

impl Role {
    /// The agent's subcommand.
    pub fn subcommand(self) -> &'static str {
        match self {
            Self::Edge => "edge",
            Self::Connector => "connector",
            Self::Cloud => "cloud",
        }
    }
}

/// One site's numbers.
#[derive(Clone, Copy, Debug)]
pub struct Numbers {
    /// The node's name.
    pub name: &'static str,
    /// Its role.
    pub role: Role,
    /// The node's address, in a /24.
    pub node: Ipv4Addr,
    /// Its default gateway.
    pub gateway: Ipv4Addr,
    /// Third octet of its pod prefix 10.233.N.0/24 and fourth group of fd00:233:64:N::/64.
    pub pods: u8,
    /// The folder of its documents in what the operator writes.
    pub documents: &'static str,
}

impl Numbers {
    /// The IPv4 pod prefix.
    pub fn pods4(&self) -> String {
        format!("10.233.{}.0/24", self.pods)
    }

    /// The IPv6 pod prefix.
    pub fn pods6(&self) -> String {
        format!("fd00:233:64:{}::/64", self.pods)
    }

    /// The bridge's address in the IPv4 pod prefix.
    pub fn gateway4(&self) -> Ipv4Addr {
        Ipv4Addr::new(10, 233, self.pods, 1)
    }
}

/// The cloud gateway.
pub const CONNECTOR: Numbers = Numbers {
    name: "connector",
    role: Role::Connector,
    node: Ipv4Addr::new(10, 20, 8, 28),
    gateway: Ipv4Addr::new(10, 20, 8, 1),
    pods: 64,
    documents: "connector",
};

/// The other cloud node.
pub const NODE1: Numbers = Numbers {
    name: "node1",
    role: Role::Cloud,
    node: Ipv4Addr::new(10, 20, 8, 23),
    gateway: Ipv4Addr::new(10, 20, 8, 1),
    pods: 65,
    documents: "cloud",
};

/// The edge behind the first NAT.
pub const EDGE1: Numbers = Numbers {
    name: "edge1",
    role: Role::Edge,
    node: Ipv4Addr::new(192, 168, 50, 2),
    gateway: Ipv4Addr::new(192, 168, 50, 1),
    pods: 66,
    documents: "edge1",
};

/// The edge with a reachable address.
pub const EDGE2: Numbers = Numbers {
    name: "edge2",
    role: Role::Edge,
    node: Ipv4Addr::new(172, 16, 2, 2),
    gateway: Ipv4Addr::new(172, 16, 2, 1),
    pods: 67,
    documents: "edge2",
};

/// The edge behind the second NAT, with the same private subnet as the first.
pub const EDGE3: Numbers = Numbers {
    name: "edge3",
    role: Role::Edge,
    node: Ipv4Addr::new(192, 168, 50, 2),
    gateway: Ipv4Addr::new(192, 168, 50, 1),
    pods: 68,
    documents: "edge3",
};

/// Every site.
pub const SITES: [Numbers; 5] = [CONNECTOR, NODE1, EDGE1, EDGE2, EDGE3];

/// The API server's address, on [`NODE1`].
pub const API_SERVER: (Ipv4Addr, u16) = (NODE1.node, 6443);

/// A host on the internet.
pub const INTERNET: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 10);

/// A host beside [`EDGE2`] in its LAN.
pub const LAN_HOST: Ipv4Addr = Ipv4Addr::new(172, 16, 2, 50);

/// The cluster's pod prefix.
pub const CLUSTER4: &str = "10.233.64.0/18";

/// The cluster's IPv6 pod prefix.
pub const CLUSTER6: &str = "fd00:233:64::/56";

/// The service prefix.
pub const SERVICES4: &str = "10.233.0.0/18";

/// Whether an address belongs to pods or services, and so has no business on the WAN. Clusters with real kubelets have
/// their pods where this world has them, in 10.234.64.0/18 those of a second one, and their services in 10.96.0.0/15.
pub fn is_private(address: IpAddr) -> bool {
    let within = |v4: Ipv4Addr, net: [u8; 4], bits: u32| {
        u32::from(v4) >> (32 - bits) == u32::from(Ipv4Addr::from(net)) >> (32 - bits)
    };
    match address {
        // Pods 10.233.64.0/18 and services 10.233.0.0/18 are neighbours: together 10.233.0.0/17.
        IpAddr::V4(v4) => {
            within(v4, [10, 233, 0, 0], 17)
                || within(v4, [10, 234, 64, 0], 18)
                || within(v4, [10, 96, 0, 0], 15)
        }
        IpAddr::V6(v6) => {
            u128::from(v6) >> 72 == u128::from(Ipv6Addr::new(0xfd00, 0x233, 0x64, 0, 0, 0, 0, 0)) >> 72
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use ipnet::IpNet;

    #[test]
    fn private_is_what_the_prefixes_say() {
        let others = ["10.234.64.0/18", "10.96.0.0/16", "10.97.0.0/16"];
        let nets: Vec<IpNet> = [CLUSTER4, CLUSTER6, SERVICES4]
            .iter()
            .chain(&others)
            .map(|net| net.parse().unwrap())
            .collect();
        for address in [
            "10.232.255.255",
            "10.234.63.255",
            "10.234.64.0",
            "10.234.127.255",
            "10.234.128.0",
            "10.95.255.255",
            "10.96.0.0",
            "10.97.255.255",
            "10.98.0.0",
            "10.233.0.0",
            "10.233.63.255",
            "10.233.64.0",
            "10.233.127.255",
            "10.233.128.0",
            "10.20.8.28",
            "fd00:233:64::1",
            "fd00:233:64:ff::1",
            "fd00:233:64:100::1",
            "fd00:233:65::1",
        ] {
            let address: IpAddr = address.parse().unwrap();
            assert_eq!(
                is_private(address),
                nets.iter().any(|net| net.contains(&address)),
                "{address}"
            );
        }
    }
}
