//! Subsystem firewall: our nftables table, and the one jump at the head of FORWARD in the iptables backends in use.
//!
//! The table closes the node both ways as a second line behind the routes, and decides which sources are
//! translated. Two things it cannot do from where it is: overrule a drop in another table's FORWARD (hence the
//! jump), and stop a later masquerade by accepting (hence the identity translation).

mod command;
mod forward;
mod listing;
mod plan;
mod ruleset;

use tracing::warn;

use crate::desired;
use crate::subsystem::{self, Outcome, Phase, Subsystem};
pub use command::{Error, dropped, legacy_tables};
pub use forward::{Backend, Family, Jump};
pub use listing::{Count, Listing};
pub use plan::{Applied, Change, Observed, Plan, TablePlan, plan};

/// nftables and FORWARD of this node.
#[derive(Debug, Default)]
pub struct Firewall {
    /// The rules that were applied last, and how nft listed them: what it lists later is compared with this.
    applied: Option<Applied>,
}

impl Firewall {
    /// Manages the network namespace of the calling thread.
    pub fn new() -> Self {
        Self::default()
    }

    async fn change(&mut self, change: &Change) -> Result<(), Error> {
        if let Err(error) = command::load(&change.script).await {
            // Chains of another version of ours, perhaps, which cannot be changed but replaced.
            warn!(error = %error, "cannot change the nftables table {}, replacing it", ruleset::NAME);
            self.applied = None;
            command::load(&change.anew).await?;
        }
        if let Some(rules) = &change.rules {
            self.applied = None;
            let listing = command::list().await?;
            self.applied = listing.map(|listing| Applied {
                rules: rules.clone(),
                listed: listing.rest,
            });
        }
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
            (Phase::Grow, TablePlan::Change(change)) => {
                let object = format!("table {}", ruleset::NAME);
                outcomes.push(Outcome::new("change", object, self.change(change).await));
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
