//! Desired state of [`crate::links`]. Pure.

use std::collections::BTreeSet;

use fabedge_common::config::NodeConfig;

use crate::facts::{Facts, Link, TunnelKind};
use crate::marks;

/// The interfaces that we make, or that are in our way.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Links {
    /// The tunnel device; none on nodes without tunnels, and after cleanup.
    pub tunnel: Option<TunnelDevice>,
    /// Interfaces that an earlier CNI left behind, which have to be down.
    pub aside: BTreeSet<String>,
}

/// What the device that carries the tunnels should be. It is always up.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TunnelDevice {
    /// Whether we make it, or charon does.
    pub kind: TunnelKind,
    /// Its MTU in bytes.
    pub mtu: u32,
}

/// An edge has one tunnel device for all its peers, and no other CNI than ours.
pub fn edge(config: &NodeConfig, facts: &Facts) -> Links {
    Links {
        aside: residue(config, facts),
        ..tunnel(facts)
    }
}

/// Bridges and VXLAN devices of others with an address of this node's pods, as Flannel leaves cni0 and flannel.1:
/// their routes would take what is for the pods on our bridge.
fn residue(config: &NodeConfig, facts: &Facts) -> BTreeSet<String> {
    let ours = [marks::BRIDGE, marks::ANCHOR_DEVICE];
    let is_device_of_cni = |link: &&Link| {
        matches!(link.kind.as_deref(), Some("bridge" | "vxlan")) && !ours.contains(&&*link.name)
    };
    let claims_pods = |link: &&Link| {
        let mut addresses = link.addresses.iter().map(ipnet::IpNet::addr);
        addresses.any(|address| config.endpoint.pod_subnets().any(|net| net.contains(&address)))
    };
    let links = facts.links.values().filter(is_device_of_cni).filter(claims_pods);
    links.map(|link| link.name.clone()).collect()
}

/// A connector has one tunnel device for all its peers.
pub fn connector(facts: &Facts) -> Links {
    tunnel(facts)
}

/// The other cloud nodes hold no tunnels.
pub fn cloud() -> Links {
    Links::default()
}

fn tunnel(facts: &Facts) -> Links {
    Links {
        tunnel: Some(TunnelDevice {
            kind: facts.tunnel,
            mtu: facts.tunnel_mtu(),
        }),
        aside: BTreeSet::new(),
    }
}
