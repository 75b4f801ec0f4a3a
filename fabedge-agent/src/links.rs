//! Subsystem links: the tunnel device, and what an earlier CNI left in its way.

mod kernel;
mod plan;

use crate::netlink::{self, Netlink};
use crate::subsystem::{self, Outcome, Phase, Subsystem};
use crate::{desired, marks};
pub use plan::{Device, Plan, Problem, plan};

/// The tunnel device of this node.
#[derive(Debug)]
pub struct Links {
    netlink: Netlink,
}

impl Links {
    /// Manages the tunnel device through `netlink`.
    pub fn new(netlink: Netlink) -> Self {
        Self { netlink }
    }
}

/// What could not be done about the tunnel device.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Refused before trying.
    #[error("{0}")]
    Problem(Problem),
    /// The kernel has no such kind of interface.
    #[error(
        "this kernel has no xfrm interfaces (CONFIG_XFRM_INTERFACE, module xfrm_interface): load the module, or let \
         charon encrypt in userspace with --tunnel libipsec"
    )]
    Unsupported(#[source] netlink::Error),
    /// The kernel refused.
    #[error(transparent)]
    Netlink(#[from] netlink::Error),
}

/// Deletes the bridge that the CNI plugin made by our conflist, whoever is attached to it: it has the address that the
/// bridge of the next CNI is to have, and the route to it. Only for cleanup, after which pods here have no network anyway.
///
/// # Errors
/// When links cannot be listed, or the bridge cannot be deleted.
pub async fn delete_bridge(netlink: &Netlink) -> Result<(), Error> {
    let links = netlink.links().await?;
    let Some(bridge) = links.get(marks::BRIDGE) else {
        return Ok(());
    };
    if bridge.kind.as_deref() != Some("bridge") {
        return Ok(());
    }
    let deleted = netlink.handle().link().del(bridge.index).execute().await;
    deleted
        .map_err(|error| netlink::Error::new(format!("deleting the bridge {}", marks::BRIDGE), error).into())
}

impl Subsystem for Links {
    type Desired = desired::links::Links;
    type Plan = Plan;

    const NAME: &'static str = "links";

    async fn plan(&mut self, desired: &Self::Desired) -> Result<Plan, subsystem::Error> {
        Ok(plan(desired, &kernel::observe(&self.netlink).await?))
    }

    async fn apply(&mut self, plan: &Plan, phase: Phase) -> Vec<Outcome> {
        match phase {
            Phase::Grow => kernel::grow(&self.netlink, plan).await,
            Phase::Shrink => kernel::shrink(&self.netlink, plan).await,
        }
    }
}

#[cfg(test)]
mod tests;
