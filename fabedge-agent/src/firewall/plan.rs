//! What to do about nftables and FORWARD. Pure.

use std::collections::BTreeMap;

use super::elements;
use super::forward::{Backend, Family, Jump, change};
use super::listing::Listing;
use super::ruleset;
use crate::desired::firewall::{Firewall, Table};

/// What is there.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Observed {
    /// Our table; none where there is no such table.
    pub listing: Option<Listing>,
    /// The filter tables of the iptables backends in use, as `iptables-save` prints them.
    pub filters: BTreeMap<(Backend, Family), String>,
    /// Backends in use whose commands are not installed, told so that a person can mend it.
    pub missing: Vec<String>,
}

/// The rules that were applied last.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Applied {
    /// As we wrote them.
    pub rules: String,
    /// As nft listed them right after: nft writes them in its own way, which differs from version to version.
    pub listed: String,
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
    /// Change it in one transaction.
    Change(Change),
    /// Change some elements of its sets.
    Elements(Vec<elements::Change>),
    /// Delete it.
    Delete,
}

/// How to change our table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Change {
    /// What leads there from what is listed.
    pub script: String,
    /// What leads there from anything, if that fails.
    pub anew: String,
    /// The rules, if the script has them; else only elements of sets change.
    pub rules: Option<String>,
}

/// Compares what should be with what is there. Rules count as unchanged while nft lists them as it did right after
/// we applied the same ones; after a restart they are written once more. Elements are compared one by one.
pub fn plan(desired: &Firewall, observed: &Observed, applied: Option<&Applied>) -> Plan {
    let table = match (&desired.table, &observed.listing) {
        (Some(table), listing) => change_table(table, listing.as_ref(), applied),
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

fn change_table(table: &Table, listing: Option<&Listing>, applied: Option<&Applied>) -> TablePlan {
    let rules = ruleset::rules(table);
    let elements = ruleset::elements(table, listing);
    let stands =
        |listing: &Listing| applied.is_some_and(|last| last.rules == rules && last.listed == listing.rest);
    let (script, rules) = match listing {
        Some(listing) if stands(listing) => (elements, None),
        Some(listing) => (
            format!("{rules}{elements}{}", ruleset::removal(listing)),
            Some(rules),
        ),
        None => (format!("{rules}{elements}"), Some(rules)),
    };
    if script.is_empty() {
        return TablePlan::Keep;
    }
    TablePlan::Change(Change {
        script,
        anew: ruleset::anew(table),
        rules,
    })
}
