//! Subsystem firewall: our nftables table, and the one jump at the head of FORWARD in the iptables backends in use.
//!
//! The table closes the node both ways as a second line behind the routes, and decides which sources are
//! translated. Two things it cannot do from where it is: overrule a drop in another table's FORWARD (hence the
//! jump), and stop a later masquerade by accepting (hence the identity translation).

mod command;
mod forward;
mod plan;
mod ruleset;

use std::collections::BTreeMap;

use crate::desired;
use crate::subsystem::{self, Outcome, Phase, Subsystem};
pub use command::Error;
pub use forward::{Backend, Family, Jump};
pub use plan::{Applied, Observed, Plan, TablePlan, plan};
pub use ruleset::{Count, render};

/// nftables and FORWARD of this node.
#[derive(Debug, Default)]
pub struct Firewall {
    /// What was applied last, and how nft lists it: what it lists later is compared with this.
    applied: Option<Applied>,
}

impl Firewall {
    /// Manages the network namespace of the calling thread.
    pub fn new() -> Self {
        Self::default()
    }

    /// Packets and bytes dropped so far, by reason.
    ///
    /// # Errors
    /// When nft cannot be asked.
    pub async fn dropped(&self) -> Result<BTreeMap<String, Count>, Error> {
        command::counters().await
    }

    async fn replace(&mut self, table: &desired::firewall::Table) -> Result<(), Error> {
        // What was counted so far goes into the new table.
        let counted = command::counters().await.unwrap_or_default();
        self.applied = None;
        command::load(&render(table, &counted)).await?;
        let listing = command::list().await?;
        self.applied = listing.map(|listing| Applied {
            table: table.clone(),
            listing,
        });
        Ok(())
    }
}

impl Subsystem for Firewall {
    type Desired = desired::firewall::Firewall;
    type Plan = Plan;

    const NAME: &'static str = "firewall";

    async fn plan(&mut self, desired: &Self::Desired) -> Result<Plan, subsystem::Error> {
        Ok(plan(desired, &command::observe().await?, self.applied.as_ref()))
    }

    async fn apply(&mut self, plan: &Plan, phase: Phase) -> Vec<Outcome> {
        let mut outcomes = Vec::new();
        match (phase, &plan.table) {
            (Phase::Grow, TablePlan::Replace(table)) => {
                outcomes.push(Outcome::new("replace", ruleset::NAME, self.replace(table).await));
            }
            (Phase::Shrink, TablePlan::Delete) => {
                self.applied = None;
                outcomes.push(Outcome::new("delete", ruleset::NAME, command::delete().await));
            }
            _ => {}
        }
        for jump in plan.forward.iter().filter(|jump| jump.phase == phase) {
            let object = format!("jump to {} ({})", crate::marks::IPTABLES_CHAIN, jump.name());
            outcomes.push(Outcome::new(jump.action(), object, command::restore(jump).await));
        }
        if phase == Phase::Grow {
            for missing in &plan.missing {
                outcomes.push(Outcome::new("add", "jump in FORWARD", Err(missing.clone())));
            }
        }
        outcomes
    }
}

#[cfg(test)]
mod tests;
