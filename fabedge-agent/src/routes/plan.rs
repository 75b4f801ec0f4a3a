//! Which rules and routes to add, replace and delete. Pure.

use std::collections::{BTreeMap, BTreeSet};

use crate::desired::routes::{Key, Routes, Rule, Target};
use crate::marks;

/// What is there: everybody's rules, and everybody's routes in our tables.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Observed {
    /// Rules.
    pub rules: Vec<ObservedRule>,
    /// Routes of tables 219 to 221.
    pub routes: Vec<ObservedRoute>,
}

impl Observed {
    /// What is seen where these routes are.
    pub fn of(routes: &Routes) -> Self {
        let protocol = marks::ROUTE_PROTOCOL;
        Self {
            rules: routes
                .rules
                .iter()
                .map(|rule| ObservedRule {
                    protocol,
                    rule: *rule,
                })
                .collect(),
            routes: routes
                .routes
                .iter()
                .map(|(key, target)| ObservedRoute {
                    protocol,
                    key: *key,
                    target: Some(target.clone()),
                })
                .collect(),
        }
    }
}

/// A rule of whoever made it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ObservedRule {
    /// Who made it.
    pub protocol: u8,
    /// What it says; a rule that says more than ours ever do is not listed.
    pub rule: Rule,
}

/// A route of whoever made it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ObservedRoute {
    /// Who made it.
    pub protocol: u8,
    /// Table, destination and metric.
    pub key: Key,
    /// What it does; none for what we have no word for.
    pub target: Option<Target>,
}

/// The difference.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Plan {
    /// Routes to add.
    pub add: BTreeMap<Key, Target>,
    /// Routes of ours that lead elsewhere.
    pub replace: BTreeMap<Key, Target>,
    /// Routes of ours that nobody wants.
    pub delete: BTreeSet<Key>,
    /// Rules to add.
    pub add_rules: BTreeSet<Rule>,
    /// Rules of ours that nobody wants.
    pub delete_rules: BTreeSet<Rule>,
}

/// Compares what should be with what is there. What others made is neither counted nor touched.
pub fn plan(desired: &Routes, observed: &Observed) -> Plan {
    let ours: BTreeMap<Key, Option<&Target>> = observed
        .routes
        .iter()
        .filter(|route| route.protocol == marks::ROUTE_PROTOCOL)
        .map(|route| (route.key, route.target.as_ref()))
        .collect();
    let rules: BTreeSet<Rule> = observed
        .rules
        .iter()
        .filter(|rule| rule.protocol == marks::ROUTE_PROTOCOL)
        .map(|rule| rule.rule)
        .collect();
    let mut plan = Plan {
        delete: ours
            .keys()
            .filter(|key| !desired.routes.contains_key(key))
            .copied()
            .collect(),
        add_rules: desired.rules.difference(&rules).copied().collect(),
        delete_rules: rules.difference(&desired.rules).copied().collect(),
        ..Plan::default()
    };
    for (key, target) in &desired.routes {
        match ours.get(key) {
            None => plan.add.insert(*key, target.clone()),
            Some(current) if *current != Some(target) => plan.replace.insert(*key, target.clone()),
            Some(_) => None,
        };
    }
    plan
}
