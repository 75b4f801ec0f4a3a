//! Desired state of [`crate::links`]. Pure.

use crate::facts::{Facts, TunnelKind};

/// The tunnel device; none on nodes without tunnels, and after cleanup.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Links {
    /// The tunnel device.
    pub tunnel: Option<TunnelDevice>,
}

/// What the device that carries the tunnels should be. It is always up.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TunnelDevice {
    /// Whether we make it, or charon does.
    pub kind: TunnelKind,
    /// Its MTU in bytes.
    pub mtu: u32,
}

/// An edge has one tunnel device for all its peers.
pub fn edge(facts: &Facts) -> Links {
    tunnel(facts)
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
    }
}
