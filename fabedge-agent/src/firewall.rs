//! Subsystem firewall: our nftables table, and the one jump at the head of FORWARD in the iptables backends in use.
//!
//! The table closes the node both ways as a second line behind the routes, and decides which sources are
//! translated. Two things it cannot do from where it is: overrule a drop in another table's FORWARD (hence the
//! jump), and stop a later masquerade by accepting (hence the identity translation).

mod command;
mod elements;
mod forward;
mod listing;
mod plan;
mod ruleset;
pub(crate) mod sets;

use std::collections::{BTreeMap, BTreeSet};

use ipnet::IpNet;
use tracing::warn;

use crate::desired;
use crate::desired::firewall::Table;
use crate::netlink::OwnPort;
use crate::subsystem::{self, Outcome, Phase, Subsystem};
pub use command::{Error, dropped, legacy_tables};
use elements::Elements;
pub use forward::{Backend, Family, Jump};
pub use listing::{Count, Listing};
pub use plan::{Applied, Change, Observed, Plan, TablePlan, plan};

/// nftables and FORWARD of this node.
#[derive(Debug, Default)]
pub struct Firewall {
    /// The rules that were applied last, and how nft listed them: what it lists later is compared with this.
    applied: Option<Applied>,
    /// What the sets of the table held when it was as it should be.
    standing: BTreeMap<String, BTreeSet<IpNet>>,
    elements: Elements,
}

impl Firewall {
    /// Manages the network namespace of the calling thread.
    pub fn new() -> Self {
        Self::default()
    }

    /// Leads from `before` to `after`, which hold only that in which the sets of whole tables differ; none where the table
    /// was not as it should be, or rules would have to change.
    pub fn change(&mut self, before: &Table, after: &Table) -> Option<Plan> {
        let mut standing = std::mem::take(&mut self.standing);
        let changes = ruleset::change(&mut standing, before, after)?;
        self.standing = standing;
        Some(Plan {
            table: if changes.is_empty() {
                TablePlan::Keep
            } else {
                TablePlan::Elements(changes)
            },
            forward: Vec::new(),
            missing: Vec::new(),
        })
    }

    /// By which [`Changes::nftables`](crate::netlink::Changes::nftables) knows changes that this made to elements alone: a pass
    /// follows them anyway.
    pub fn port(&self) -> &OwnPort {
        self.elements.port()
    }

    async fn carry_out(&mut self, change: &Change) -> Result<(), Error> {
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
        let observed = command::observe().await?;
        let plan = plan(desired, &observed, self.applied.as_ref());
        self.standing.clear();
        if let (TablePlan::Keep, Some(listing)) = (&plan.table, observed.listing) {
            let sets = listing.sets.into_iter();
            self.standing = sets.filter_map(|(name, nets)| Some((name, nets?))).collect();
        }
        Ok(plan)
    }

    async fn apply(&mut self, plan: &Plan, phase: Phase) -> Vec<Outcome> {
        let mut outcomes = Vec::new();
        match (phase, &plan.table) {
            (Phase::Grow, TablePlan::Change(change)) => {
                let object = format!("table {}", ruleset::NAME);
                outcomes.push(Outcome::new("change", object, self.carry_out(change).await));
            }
            (Phase::Grow, TablePlan::Elements(changes)) => {
                let object = format!("sets of the table {}", ruleset::NAME);
                outcomes.push(Outcome::new("change", object, self.elements.change(changes)));
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
