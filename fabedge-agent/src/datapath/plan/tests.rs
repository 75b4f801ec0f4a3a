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
    }
}

/// The state after everything was applied and learned.
fn settled() -> Actual {
    let desired = desired();
    Actual {
        pins: Pins::Ours,
        loaded: true,
        routes: desired.routes,
        pods: desired.pods,
        peers: desired.peers.into_keys().collect(),
        hooks: desired.hooks,
        dead: BTreeSet::new(),
        learned: BTreeSet::new(),
    }
}

fn nothing() -> Actual {
    Actual {
        pins: Pins::Absent,
        loaded: false,
        routes: BTreeMap::new(),
        pods: BTreeMap::new(),
        peers: BTreeSet::new(),
        hooks: BTreeSet::new(),
        dead: BTreeSet::new(),
        learned: BTreeSet::new(),
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
fn from_nothing_everything_is_made_and_pods_learn_first() {
    let plan = plan(&desired(), &nothing());
    assert_eq!(plan.load, Some(Load::Fresh));
    assert_eq!(plan.routes.set, desired().routes);
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
