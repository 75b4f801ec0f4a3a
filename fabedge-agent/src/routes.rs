//! Subsystem routes: our rules, and our routes in tables 219 to 221.

mod kernel;
mod plan;

use crate::desired;
use crate::netlink::Netlink;
use crate::subsystem::{self, Outcome, Phase, Subsystem};
pub use plan::{Observed, ObservedRoute, ObservedRule, Plan, plan};

/// Rules and routes of this node.
#[derive(Debug)]
pub struct Routes {
    netlink: Netlink,
}

impl Routes {
    /// Manages rules and routes through `netlink`.
    pub fn new(netlink: Netlink) -> Self {
        Self { netlink }
    }

    /// Plans what leads from `before`, which is there, to `after`.
    pub fn change(&self, before: &desired::routes::Routes, after: &desired::routes::Routes) -> Plan {
        plan(after, &Observed::of(before))
    }
}

impl Subsystem for Routes {
    type Desired = desired::routes::Routes;
    type Plan = Plan;

    const NAME: &'static str = "routes";

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
