use fabedge_common::abi::POD_SHAPED;

use super::*;
use crate::desired::datapath::Entry;

fn route(reqid: u32) -> Route {
    Route {
        kind: 1,
        ifindex: 3,
        reqid,
        flags: 0,
        mtu: 1400,
    }
}

fn pod(flags: u32) -> Pod {
    Pod {
        ifindex: 5,
        flags,
        pod_mac: [1; 6],
        gateway_mac: [2; 6],
    }
}

fn hook(ifindex: u32, entry: Entry) -> Hook {
    Hook {
        ifindex,
        entry,
        device: format!("d{ifindex}"),
    }
}

fn net(text: &str) -> IpNet {
    text.parse().unwrap()
}

fn addr(text: &str) -> IpAddr {
    text.parse().unwrap()
}

fn desired() -> Datapath {
    Datapath {
        enabled: true,
        routes: BTreeMap::from([(net("10.1.0.0/24"), route(1)), (net("fd00:1::/64"), route(1))]),
        pods: BTreeMap::from([(addr("10.9.0.2"), pod(0)), (addr("fd00:9::2"), pod(0))]),
        peers: BTreeMap::from([(1, "a.b".to_owned())]),
        hooks: BTreeSet::from([hook(3, Entry::TunnelEgress), hook(5, Entry::PodEgress)]),
        ..Datapath::default()
    }
}

/// The state after everything was applied and learned.
fn settled() -> Actual {
    let desired = desired();
    Actual {
        pins: Pins::Ours,
        bare: false,
        loaded: true,
        routes: desired.routes,
        compiled: true,
        pods: desired.pods,
        peers: desired.peers.into_keys().collect(),
        hooks: desired.hooks,
        dead: BTreeSet::new(),
        learned: BTreeSet::new(),
        barred: BTreeSet::new(),
        sas: BTreeMap::new(),
        cpus: BTreeSet::new(),
    }
}

fn nothing() -> Actual {
    Actual {
        pins: Pins::Absent,
        bare: false,
        loaded: false,
        routes: BTreeMap::new(),
        compiled: false,
        pods: BTreeMap::new(),
        peers: BTreeSet::new(),
        hooks: BTreeSet::new(),
        dead: BTreeSet::new(),
        learned: BTreeSet::new(),
        barred: BTreeSet::new(),
        sas: BTreeMap::new(),
        cpus: BTreeSet::new(),
    }
}

fn idle(plan: &Plan) -> bool {
    !plan.grows() && !plan.shrinks()
}

#[test]
fn what_is_as_it_should_be_is_left_alone() {
    assert!(idle(&plan(&desired(), &settled())));
    assert!(idle(&plan(&Datapath::default(), &nothing())));
}

#[test]
fn routes_that_could_not_be_compiled_are_tried_again() {
    let actual = Actual {
        compiled: false,
        ..settled()
    };
    let plan = plan(&desired(), &actual);
    assert!(plan.compile && plan.grows() && !plan.shrinks());
    assert_eq!((plan.load, plan.routes), (None, Changes::default()));
}

#[test]
fn from_nothing_everything_is_made_and_pods_learn_first() {
    let plan = plan(&desired(), &nothing());
    assert_eq!(plan.load, Some(Load::Fresh));
    assert_eq!(plan.routes.set, desired().routes);
    assert!(plan.compile);
    assert_eq!(plan.attach, desired().hooks);
    assert!(plan.pods.set.values().all(|entry| *entry == pod(POD_LEARNING)));
    assert_eq!(plan.pods.set.len(), 2);
    assert!(!plan.shrinks());
}

#[test]
fn a_new_agent_takes_over_without_touching_what_is_right() {
    let actual = Actual {
        loaded: false,
        ..settled()
    };
    let plan = plan(&desired(), &actual);
    assert_eq!(plan.load, Some(Load::Reuse));
    assert_eq!(plan.keep, desired().hooks);
    assert!(plan.compile, "who knows whether the agent before us came to it");
    assert_eq!(
        (plan.routes, plan.pods, plan.peers, plan.attach, plan.detach),
        (
            Changes::default(),
            Changes::default(),
            Changes::default(),
            BTreeSet::new(),
            BTreeSet::new()
        )
    );
}

#[test]
fn maps_of_another_version_are_replaced_as_a_whole() {
    let actual = Actual {
        pins: Pins::Other("ABI version 7".to_owned()),
        hooks: desired().hooks,
        ..nothing()
    };
    let plan = plan(&desired(), &actual);
    assert_eq!(
        plan.load,
        Some(Load::Migrate {
            found: "ABI version 7".to_owned()
        })
    );
    assert_eq!(plan.keep, desired().hooks);
    assert_eq!(plan.routes.set, desired().routes);
    assert!(
        plan.pods.set.values().all(|entry| *entry == pod(POD_LEARNING)),
        "the record of flows is lost"
    );
    assert!(!plan.unpin);
}

#[test]
fn pods_leave_school_when_they_have_learned() {
    let mut actual = settled();
    for entry in actual.pods.values_mut() {
        *entry = pod(POD_LEARNING);
    }
    assert!(idle(&plan(&desired(), &actual)), "not yet");
    actual.learned.insert(addr("10.9.0.2"));
    let plan = plan(&desired(), &actual);
    assert_eq!(plan.pods.set, BTreeMap::from([(addr("10.9.0.2"), pod(0))]));
}

#[test]
fn a_pod_that_became_another_learns_anew() {
    let mut actual = settled();
    actual.pods.insert(addr("10.9.0.2"), Pod { ifindex: 4, ..pod(0) });
    actual.pods.insert(addr("fd00:9::2"), pod(POD_SHAPED));
    let plan = plan(&desired(), &actual);
    assert!(plan.pods.set.values().all(|entry| *entry == pod(POD_LEARNING)));
    assert_eq!(plan.pods.set.len(), 2);
}

#[test]
fn only_what_changed_is_written_and_what_is_stale_goes() {
    let mut actual = settled();
    actual.routes.insert(net("10.1.0.0/24"), route(2));
    actual.routes.insert(net("10.7.0.0/24"), route(1));
    actual.pods.insert(addr("10.9.0.7"), pod(0));
    actual.peers.insert(7);
    actual.hooks.insert(hook(6, Entry::PodEgress));
    actual.dead.insert(hook(8, Entry::PodIngress));
    let plan = plan(&desired(), &actual);
    assert_eq!(plan.routes.set, BTreeMap::from([(net("10.1.0.0/24"), route(1))]));
    assert_eq!(plan.routes.remove, BTreeSet::from([net("10.7.0.0/24")]));
    assert_eq!(plan.pods.remove, BTreeSet::from([addr("10.9.0.7")]));
    assert_eq!(plan.peers.remove, BTreeSet::from([7]));
    assert_eq!(
        plan.detach,
        BTreeSet::from([hook(6, Entry::PodEgress), hook(8, Entry::PodIngress)])
    );
    assert_eq!(plan.attach, BTreeSet::new());
}

#[test]
fn a_link_that_died_is_made_anew_and_not_removed_after() {
    let mut actual = settled();
    let dead = hook(5, Entry::PodEgress);
    actual.hooks.remove(&dead);
    actual.dead.insert(dead.clone());
    let plan = plan(&desired(), &actual);
    assert_eq!(plan.attach, BTreeSet::from([dead]));
    assert_eq!(plan.detach, BTreeSet::new());
}

#[test]
fn off_means_that_all_and_only_ours_goes() {
    let plan = plan(&Datapath::default(), &settled());
    assert_eq!(plan.detach, desired().hooks);
    assert!(plan.unpin);
    assert!(!plan.grows());
}

mod convergence {
    use proptest::collection::{btree_map, btree_set};
    use proptest::prelude::*;

    use super::*;

    fn nets() -> impl Strategy<Value = IpNet> {
        prop_oneof![
            (0..6u8).prop_map(|n| net(&format!("10.{n}.0.0/16"))),
            (0..6u8).prop_map(|n| net(&format!("fd00:{n}::/64"))),
        ]
    }

    fn addresses() -> impl Strategy<Value = IpAddr> {
        prop_oneof![
            (0..6u8).prop_map(|n| addr(&format!("10.9.0.{n}"))),
            (0..6u8).prop_map(|n| addr(&format!("fd00:9::{n}"))),
        ]
    }

    fn hooks() -> impl Strategy<Value = BTreeSet<Hook>> {
        btree_set(
            (0..4u32, 0..Entry::ALL.len()).prop_map(|(device, n)| hook(device, Entry::ALL[n])),
            0..8,
        )
    }

    prop_compose! {
        fn any_desired()(
            enabled in prop::bool::weighted(0.8),
            routes in btree_map(nets(), (1..4u32).prop_map(route), 0..8),
            pods in btree_map(addresses(), prop_oneof![Just(pod(0)), Just(pod(POD_SHAPED))], 0..8),
            peers in btree_map(1..4u32, Just("a.b".to_owned()), 0..3),
            hooks in hooks(),
        ) -> Datapath {
            let spread = Default::default();
            if enabled { Datapath { enabled, routes, pods, peers, hooks, spread } } else { Datapath::default() }
        }
    }

    prop_compose! {
        fn any_actual()(
            state in 0..3,
            loaded in any::<bool>(),
            bare in any::<bool>(),
            compiled in any::<bool>(),
            routes in btree_map(nets(), (1..4u32).prop_map(route), 0..8),
            pods in btree_map(addresses(), (0..4u32).prop_map(pod), 0..8),
            peers in btree_set(1..4u32, 0..3),
            hooks in hooks(),
            dead in hooks(),
        ) -> Actual {
            let dead = dead.difference(&hooks).cloned().collect();
            match state {
                0 => Actual { bare, hooks, dead, ..nothing() },
                1 => Actual { pins: Pins::Other("ABI version 7".to_owned()), hooks, dead, ..nothing() },
                _ => Actual { pins: Pins::Ours, bare: false, loaded, compiled, routes, pods, peers, hooks, dead, learned: BTreeSet::new(), ..settled() },
            }
        }
    }

    /// What carrying out a plan makes of the kernel, as a model.
    fn carried_out(plan: &Plan, mut actual: Actual) -> Actual {
        if plan.load.is_some() {
            actual.loaded = true;
            actual.pins = Pins::Ours;
            actual.bare = false;
        }
        actual.routes.extend(plan.routes.set.clone());
        actual.compiled |= plan.compile;
        actual.pods.extend(plan.pods.set.clone());
        actual.peers.extend(plan.peers.set.keys());
        actual.hooks.extend(plan.attach.clone());
        actual.routes.retain(|net, _| !plan.routes.remove.contains(net));
        actual.pods.retain(|addr, _| !plan.pods.remove.contains(addr));
        actual.peers.retain(|reqid| !plan.peers.remove.contains(reqid));
        actual.hooks.retain(|hook| !plan.detach.contains(hook));
        actual
            .dead
            .retain(|hook| !plan.detach.contains(hook) && !plan.attach.contains(hook));
        if plan.unpin {
            actual = Actual {
                hooks: actual.hooks,
                dead: actual.dead,
                ..nothing()
            };
        }
        actual.learned = actual.pods.keys().copied().collect();
        actual
    }

    proptest! {
        #[test]
        fn two_passes_lead_from_anything_to_what_is_wanted(desired in any_desired(), actual in any_actual()) {
            let first = plan(&desired, &actual);
            // No pod skips its time of learning, and only what was found can be removed.
            for (addr, entry) in &first.pods.set {
                prop_assert!(entry.flags & POD_LEARNING != 0, "{addr}");
            }
            prop_assert!(first.detach.iter().all(|hook| actual.hooks.contains(hook) || actual.dead.contains(hook)));
            prop_assert!(first.attach.is_disjoint(&first.detach));
            prop_assert!(first.compile || first.routes.set.is_empty(), "what is set is also compiled");

            let between = carried_out(&first, actual);
            let last = carried_out(&plan(&desired, &between), between);
            prop_assert!(idle(&plan(&desired, &last)));
            prop_assert_eq!(&last.routes, &desired.routes);
            prop_assert_eq!(&last.pods, &desired.pods);
            prop_assert_eq!(&last.hooks, &desired.hooks);
            prop_assert!(last.dead.is_empty() && !last.bare);
        }
    }
}
