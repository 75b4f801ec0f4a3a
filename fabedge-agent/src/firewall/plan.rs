//! What to do about nftables and FORWARD. Pure.

use std::collections::BTreeMap;

use super::forward::{Backend, Family, Jump, change};
use crate::desired::firewall::{Firewall, Table};

/// What is there.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Observed {
    /// Our table as nft lists it, without counts; none where there is no such table.
    pub listing: Option<String>,
    /// The filter tables of the iptables backends in use, as `iptables-save` prints them.
    pub filters: BTreeMap<(Backend, Family), String>,
    /// Backends in use whose commands are not installed, told so that a person can mend it.
    pub missing: Vec<String>,
}

/// What was applied last.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Applied {
    /// Our table.
    pub table: Table,
    /// How nft listed it right after.
    pub listing: String,
}

/// The difference.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Plan {
    /// About our table.
    pub table: TablePlan,
    /// About FORWARD.
    pub forward: Vec<Jump>,
    /// What cannot be planned for want of a command.
    pub missing: Vec<String>,
}

/// About our table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TablePlan {
    /// It is as it should be.
    Keep,
    /// Replace it as a whole.
    Replace(Box<Table>),
    /// Delete it.
    Delete,
}

/// Compares what should be with what is there. Our table counts as unchanged while nft lists it as it did right
/// after we applied the same content; after a restart it is replaced once, atomically.
pub fn plan(desired: &Firewall, observed: &Observed, applied: Option<&Applied>) -> Plan {
    let table = match (&desired.table, &observed.listing) {
        (Some(table), Some(listing))
            if applied.is_some_and(|last| last.table == *table && last.listing == *listing) =>
        {
            TablePlan::Keep
        }
        (Some(table), _) => TablePlan::Replace(Box::new(table.clone())),
        (None, Some(_)) => TablePlan::Delete,
        (None, None) => TablePlan::Keep,
    };
    let forward = observed
        .filters
        .iter()
        .filter_map(|((backend, family), save)| change(*backend, *family, &desired.forward, save))
        .collect();
    let missing = if desired.forward.is_empty() {
        Vec::new()
    } else {
        observed.missing.clone()
    };
    Plan {
        table,
        forward,
        missing,
    }
}
