//! What to do about the tunnel device and about interfaces in our way. Pure.

use std::collections::BTreeMap;
use std::fmt;

use crate::desired::links::{Links, TunnelDevice};
use crate::facts::TunnelKind;
use crate::marks;

/// An interface.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Device {
    /// Interface index.
    pub index: u32,
    /// `IFLA_INFO_KIND`.
    pub kind: Option<String>,
    /// `if_id` of an xfrm interface.
    pub if_id: Option<u32>,
    /// MTU in bytes.
    pub mtu: u32,
    /// Administratively up.
    pub up: bool,
    /// `IFLA_IFALIAS`.
    pub alias: Option<String>,
}

impl Device {
    fn is_ours(&self) -> bool {
        self.kind.as_deref() == Some("xfrm") && self.if_id == Some(marks::IF_ID)
    }
}

/// Why there is no tunnel device and we do not make one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Problem {
    /// Somebody else's interface has the name of ours.
    Foreign {
        /// Its name.
        name: &'static str,
        /// What it is.
        kind: String,
        /// Its `if_id`.
        if_id: Option<u32>,
    },
    /// charon's TUN is not there.
    Missing {
        /// Its name.
        name: &'static str,
    },
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Foreign { name, kind, if_id } => {
                write!(f, "an interface {name} of kind {kind}")?;
                if let Some(if_id) = if_id {
                    write!(f, " with if_id {if_id:#x}")?;
                }
                write!(
                    f,
                    " exists that is not ours (xfrm with if_id {:#x}): rename or delete it (ip link delete {name})",
                    marks::IF_ID
                )
            }
            Self::Missing { name } => write!(
                f,
                "charon has not made its TUN {name}: is it running, with the plugin kernel-libipsec loaded before \
                 kernel-netlink?"
            ),
        }
    }
}

/// What to do, in this order.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Plan {
    /// Why nothing can be done.
    pub problem: Option<Problem>,
    /// Make the xfrm interface with this MTU, and set it up.
    pub create: Option<u32>,
    /// Change MTU and set up the device of this index.
    pub change: Option<Change>,
    /// Set down, with [`marks::ASIDE_ALIAS`] to know them by: names and indices.
    pub aside: BTreeMap<String, u32>,
    /// Delete our xfrm interface, of this index.
    pub delete: Option<u32>,
    /// Set up again what was set down and is in nobody's way any more: names and indices.
    pub restore: BTreeMap<String, u32>,
}

/// What to change about an existing device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Change {
    /// Interface name.
    pub name: &'static str,
    /// Interface index.
    pub index: u32,
    /// The MTU it should have.
    pub mtu: u32,
}

/// Compares what should be with the interfaces of this node.
pub fn plan(desired: &Links, observed: &BTreeMap<String, Device>) -> Plan {
    let mut plan = Plan::default();
    if let Some(TunnelDevice { kind, mtu }) = desired.tunnel {
        let name = kind.device();
        match (observed.get(name), kind) {
            (Some(device), TunnelKind::Xfrm) if !device.is_ours() => {
                plan.problem = Some(Problem::Foreign {
                    name,
                    kind: device.kind.clone().unwrap_or_else(|| "unknown".to_owned()),
                    if_id: device.if_id,
                });
            }
            (Some(device), _) if device.mtu != mtu || !device.up => {
                plan.change = Some(Change {
                    name,
                    index: device.index,
                    mtu,
                });
            }
            (Some(_), _) => {}
            (None, TunnelKind::Xfrm) => plan.create = Some(mtu),
            (None, TunnelKind::Libipsec) => plan.problem = Some(Problem::Missing { name }),
        }
    }
    let wanted = desired
        .tunnel
        .as_ref()
        .is_some_and(|tunnel| tunnel.kind == TunnelKind::Xfrm);
    plan.delete = observed
        .get(marks::XFRM_DEVICE)
        .filter(|device| device.is_ours() && !wanted)
        .map(|device| device.index);
    for (name, device) in observed {
        let unwanted = desired.aside.contains(name);
        if unwanted && device.up {
            plan.aside.insert(name.clone(), device.index);
        }
        if !unwanted && device.alias.as_deref() == Some(marks::ASIDE_ALIAS) {
            plan.restore.insert(name.clone(), device.index);
        }
    }
    plan
}
