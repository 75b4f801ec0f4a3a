use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use ipnet::IpNet;
use proptest::prelude::*;

use super::plan::{Observed, ObservedRoute, ObservedRule, Plan, plan};
use crate::desired::routes::{Key, Routes, Rule, Target};
use crate::marks;

fn net() -> impl Strategy<Value = IpNet> {
    prop_oneof![
        (0_u8..8).prop_map(|i| IpNet::new([10, i, 0, 0].into(), 16).unwrap()),
        (0_u16..4).prop_map(|i| IpNet::new(IpAddr::from([0xfd00, i, 0, 0, 0, 0, 0, 0]), 64).unwrap()),
    ]
}

fn target() -> impl Strategy<Value = Target> {
    prop_oneof![
        Just(Target::Unreachable),
        Just(Target::Throw),
        (1400_u32..1402, any::<bool>()).prop_map(|(mtu, lock)| Target::Device {
            name: "fabedge0".to_owned(),
            mtu,
            lock,
            src: None
        }),
        Just(Target::Gateway {
            address: [10, 0, 0, 1].into(),
            device: "eth0".to_owned(),
            onlink: false,
            mtu: 1400
        }),
    ]
}

fn key() -> impl Strategy<Value = Key> {
    (
        marks::PROBE_TABLE..=marks::NODE_TABLE,
        net(),
        prop_oneof![Just(50), Just(4096)],
    )
        .prop_map(|(table, destination, metric)| Key {
            table,
            destination,
            metric,
        })
}

fn rule() -> impl Strategy<Value = Rule> {
    let mark = proptest::option::of(Just(marks::PROBE_MARK));
    (219_u32..222, net(), mark, 219_u32..222).prop_map(|(priority, from, mark, table)| Rule {
        priority,
        from,
        mark,
        table,
    })
}

fn routes() -> impl Strategy<Value = Routes> {
    (
        proptest::collection::btree_set(rule(), 0..4),
        proptest::collection::btree_map(key(), target(), 0..12),
    )
        .prop_map(|(rules, routes)| Routes { rules, routes })
}

/// Entries of ours (some as desired, some stale) and of others, with at most one of ours by key.
fn observed() -> impl Strategy<Value = Observed> {
    let protocol = || prop_oneof![Just(marks::ROUTE_PROTOCOL), Just(4_u8), Just(3_u8)];
    (
        proptest::collection::btree_map((protocol(), key()), proptest::option::of(target()), 0..20),
        proptest::collection::btree_set((protocol(), rule()), 0..8),
    )
        .prop_map(|(routes, rules)| Observed {
            routes: routes
                .into_iter()
                .map(|((protocol, key), target)| ObservedRoute {
                    protocol,
                    key,
                    target,
                })
                .collect(),
            rules: rules
                .into_iter()
                .map(|(protocol, rule)| ObservedRule { protocol, rule })
                .collect(),
        })
}

/// The kernel, as far as a plan can tell: additions must be new and changes must hit something of ours.
fn carry_out(plan: &Plan, observed: &Observed) -> Observed {
    let ours = marks::ROUTE_PROTOCOL;
    let mut routes: BTreeMap<(u8, Key), Option<Target>> = observed
        .routes
        .iter()
        .map(|route| ((route.protocol, route.key), route.target.clone()))
        .collect();
    let mut rules: BTreeSet<(u8, Rule)> = observed
        .rules
        .iter()
        .map(|rule| (rule.protocol, rule.rule))
        .collect();
    for (key, target) in &plan.add {
        assert!(
            routes.insert((ours, *key), Some(target.clone())).is_none(),
            "added twice: {key:?}"
        );
    }
    for (key, target) in &plan.replace {
        let before = routes.insert((ours, *key), Some(target.clone()));
        assert!(
            before.is_some_and(|before| before.as_ref() != Some(target)),
            "nothing to replace: {key:?}"
        );
    }
    for key in &plan.delete {
        assert!(
            routes.remove(&(ours, *key)).is_some(),
            "nothing to delete: {key:?}"
        );
    }
    for rule in &plan.add_rules {
        assert!(rules.insert((ours, *rule)), "added twice: {rule:?}");
    }
    for rule in &plan.delete_rules {
        assert!(rules.remove(&(ours, *rule)), "nothing to delete: {rule:?}");
    }
    Observed {
        routes: routes
            .into_iter()
            .map(|((protocol, key), target)| ObservedRoute {
                protocol,
                key,
                target,
            })
            .collect(),
        rules: rules
            .into_iter()
            .map(|(protocol, rule)| ObservedRule { protocol, rule })
            .collect(),
    }
}

fn foreign(observed: &Observed) -> (Vec<&ObservedRoute>, Vec<&ObservedRule>) {
    let mut routes: Vec<_> = observed
        .routes
        .iter()
        .filter(|r| r.protocol != marks::ROUTE_PROTOCOL)
        .collect();
    routes.sort_by_key(|route| (route.protocol, route.key));
    let mut rules: Vec<_> = observed
        .rules
        .iter()
        .filter(|r| r.protocol != marks::ROUTE_PROTOCOL)
        .collect();
    rules.sort_by_key(|rule| (rule.protocol, rule.rule));
    (routes, rules)
}

proptest! {
    #[test]
    fn one_pass_makes_it_so_and_what_others_made_survives(desired in routes(), before in observed()) {
        let after = carry_out(&plan(&desired, &before), &before);
        prop_assert_eq!(foreign(&after), foreign(&before));
        let ours: BTreeMap<Key, Option<Target>> = after
            .routes
            .iter()
            .filter(|route| route.protocol == marks::ROUTE_PROTOCOL)
            .map(|route| (route.key, route.target.clone()))
            .collect();
        let wanted: BTreeMap<Key, Option<Target>> =
            desired.routes.iter().map(|(key, target)| (*key, Some(target.clone()))).collect();
        prop_assert_eq!(ours, wanted);
        prop_assert_eq!(plan(&desired, &after), Plan::default());
    }

    #[test]
    fn cleanup_removes_all_and_only_ours(before in observed()) {
        let after = carry_out(&plan(&Routes::default(), &before), &before);
        prop_assert_eq!(foreign(&after), foreign(&before));
        prop_assert!(after.routes.iter().all(|route| route.protocol != marks::ROUTE_PROTOCOL));
        prop_assert!(after.rules.iter().all(|rule| rule.protocol != marks::ROUTE_PROTOCOL));
    }
}
