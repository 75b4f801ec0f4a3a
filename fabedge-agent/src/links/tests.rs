use std::collections::BTreeMap;

use crate::desired::links::{Links, TunnelDevice};
use crate::facts::TunnelKind;
use crate::links::plan::{Change, Device, Plan, Problem, plan};
use crate::marks;

fn wanted(kind: TunnelKind) -> Links {
    Links {
        tunnel: Some(TunnelDevice { kind, mtu: 1400 }),
        ..Links::default()
    }
}

fn ours() -> Device {
    Device {
        index: 7,
        kind: Some("xfrm".to_owned()),
        if_id: Some(marks::IF_ID),
        mtu: 1400,
        up: true,
        alias: None,
    }
}

fn observed(devices: impl IntoIterator<Item = (&'static str, Device)>) -> BTreeMap<String, Device> {
    devices
        .into_iter()
        .map(|(name, device)| (name.to_owned(), device))
        .collect()
}

#[test]
fn a_missing_device_is_made_and_a_right_one_left_alone() {
    let desired = wanted(TunnelKind::Xfrm);
    assert_eq!(
        plan(&desired, &observed([])),
        Plan {
            create: Some(1400),
            ..Plan::default()
        }
    );
    assert_eq!(
        plan(&desired, &observed([(marks::XFRM_DEVICE, ours())])),
        Plan::default()
    );
}

#[test]
fn mtu_and_state_are_set_right() {
    for device in [Device { mtu: 1500, ..ours() }, Device { up: false, ..ours() }] {
        assert_eq!(
            plan(
                &wanted(TunnelKind::Xfrm),
                &observed([(marks::XFRM_DEVICE, device)])
            ),
            Plan {
                change: Some(Change {
                    name: marks::XFRM_DEVICE,
                    index: 7,
                    mtu: 1400
                }),
                ..Plan::default()
            }
        );
    }
}

#[test]
fn a_foreign_interface_of_that_name_is_a_problem_and_survives() {
    for foreign in [
        Device {
            if_id: Some(1),
            ..ours()
        },
        Device {
            kind: Some("dummy".to_owned()),
            if_id: None,
            ..ours()
        },
        Device {
            kind: None,
            if_id: None,
            ..ours()
        },
    ] {
        let observed = observed([(marks::XFRM_DEVICE, foreign)]);
        for desired in [
            Links::default(),
            wanted(TunnelKind::Xfrm),
            wanted(TunnelKind::Libipsec),
        ] {
            let plan = plan(&desired, &observed);
            assert_eq!((plan.delete, &plan.change, plan.create), (None, &None, None));
            if desired == wanted(TunnelKind::Xfrm) {
                let problem = plan.problem.expect("a problem");
                assert!(matches!(problem, Problem::Foreign { .. }));
                assert!(
                    problem.to_string().contains("ip link delete fabedge0"),
                    "{problem}"
                );
            }
        }
    }
}

#[test]
fn charons_tun_is_changed_but_never_made_or_deleted() {
    let tun = Device {
        kind: Some("tun".to_owned()),
        if_id: None,
        up: false,
        ..ours()
    };
    let observed = observed([(marks::LIBIPSEC_DEVICE, tun), (marks::XFRM_DEVICE, ours())]);
    assert_eq!(
        plan(&wanted(TunnelKind::Libipsec), &observed),
        Plan {
            change: Some(Change {
                name: marks::LIBIPSEC_DEVICE,
                index: 7,
                mtu: 1400
            }),
            delete: Some(7),
            ..Plan::default()
        }
    );
    assert_eq!(
        plan(&Links::default(), &observed),
        Plan {
            delete: Some(7),
            ..Plan::default()
        }
    );
    let absent = plan(&wanted(TunnelKind::Libipsec), &BTreeMap::new());
    assert_eq!(
        absent,
        Plan {
            problem: Some(Problem::Missing {
                name: marks::LIBIPSEC_DEVICE
            }),
            ..Plan::default()
        }
    );
}

#[test]
fn what_another_cni_left_is_set_down_and_up_again() {
    let bridge = Device {
        kind: Some("bridge".to_owned()),
        if_id: None,
        ..ours()
    };
    let down = Device {
        up: false,
        alias: Some(marks::ASIDE_ALIAS.to_owned()),
        ..bridge.clone()
    };
    let by_hand = Device {
        up: false,
        ..bridge.clone()
    };
    let desired = Links {
        aside: ["cni0".to_owned()].into(),
        ..Links::default()
    };
    let named = BTreeMap::from([("cni0".to_owned(), 7)]);
    let aside = plan(
        &desired,
        &observed([("cni0", bridge.clone()), ("docker0", bridge)]),
    );
    assert_eq!((aside.aside, aside.restore), (named.clone(), BTreeMap::new()));
    for settled in [&down, &by_hand] {
        assert_eq!(
            plan(&desired, &observed([("cni0", settled.clone())])),
            Plan::default()
        );
    }
    let restored = plan(
        &Links::default(),
        &observed([("cni0", down), ("docker0", by_hand)]),
    );
    assert_eq!((restored.aside, restored.restore), (BTreeMap::new(), named));
}
