use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use ipnet::IpNet;
use proptest::prelude::*;

use super::*;

fn nets(texts: &[&str]) -> BTreeSet<IpNet> {
    texts.iter().map(|text| text.parse().unwrap()).collect()
}

fn connection(peer: u8, version: u8, initiate: bool) -> Connection {
    let remote = nets(&[&format!("10.1.{peer}.0/24"), &format!("10.2.{version}.0/24")]);
    Connection {
        peer: format!("c.e{peer}"),
        local_id: "CN=c.me".into(),
        remote_id: format!("CN=c.e{peer}"),
        remote_addrs: if initiate {
            vec!["192.0.2.1".into()]
        } else {
            Vec::new()
        },
        remote_port: None,
        initiate,
        reqid: 1000 + u32::from(peer),
        if_id: Some(marks::IF_ID),
        child: format!("fabedge-c.e{peer}-{version}"),
        local: nets(&["10.9.0.0/24"]),
        remote,
    }
}

fn child(id: u32, connection: &Connection) -> Child {
    Child {
        name: connection.child.clone(),
        id,
        reqid: connection.reqid,
        state: ChildState::Live,
        spis: [0xc000_0000 + id, 0xd000_0000 + id],
        selectors: Some([connection.local.clone(), connection.remote.clone()]),
        bytes: [0, 0],
    }
}

fn ike(id: u32, name: &str, children: Vec<Child>) -> Ike {
    Ike {
        name: name.to_owned(),
        id,
        state: IkeState::Established,
        state_name: "ESTABLISHED".into(),
        remote: "192.0.2.1:4500".into(),
        established: Some(1),
        creating: false,
        children,
    }
}

fn desired(connections: &[(&str, Connection)]) -> Tunnels {
    Tunnels {
        connections: connections
            .iter()
            .map(|(name, c)| ((*name).to_owned(), Arc::new(c.clone())))
            .collect(),
        problems: Vec::new(),
    }
}

fn ids(doomed: &BTreeSet<Doomed>) -> Vec<u32> {
    doomed.iter().map(|doomed| doomed.id).collect()
}

const NAME: &str = "fabedge-c.e1";

#[test]
fn what_stands_is_left_alone() {
    let wanted = connection(1, 0, true);
    let desired = desired(&[(NAME, wanted.clone())]);
    let actual = Actual {
        connections: BTreeSet::from([NAME.to_owned(), "home".to_owned()]),
        ikes: vec![ike(1, NAME, vec![child(1, &wanted)]), ike(2, "home", Vec::new())],
    };
    assert_eq!(plan(&desired, &desired.connections, &actual), SaPlan::default());
}

#[test]
fn a_changed_selector_set_comes_up_before_the_old_one_goes() {
    let (old, new) = (connection(1, 0, true), connection(1, 1, true));
    let wanted = desired(&[(NAME, new.clone())]);
    let before = Actual {
        connections: BTreeSet::from([NAME.to_owned()]),
        ikes: vec![ike(1, NAME, vec![child(1, &old)])],
    };
    let loaded = desired(&[(NAME, old.clone())]).connections;
    let first = plan(&wanted, &loaded, &before);
    assert_eq!(first.load.keys().collect::<Vec<_>>(), [NAME]);
    assert_eq!(first.initiate.keys().collect::<Vec<_>>(), [NAME]);
    assert!(first.terminate_children.is_empty());

    // The peer still has its old document and agrees to less: both stay.
    let mut narrow = child(2, &new);
    narrow.selectors = Some([new.local.clone(), nets(&["10.1.1.0/24"])]);
    let between = Actual {
        connections: before.connections.clone(),
        ikes: vec![ike(1, NAME, vec![child(1, &old), narrow.clone()])],
    };
    let second = plan(&wanted, &wanted.connections, &between);
    assert!(second.terminate_children.is_empty());
    assert_eq!(second.initiate.len(), 1);

    let after = Actual {
        connections: before.connections,
        ikes: vec![ike(1, NAME, vec![child(1, &old), narrow, child(3, &new)])],
    };
    let third = plan(&wanted, &wanted.connections, &after);
    assert_eq!(ids(&third.terminate_children), [1, 2]);
    assert!(third.initiate.is_empty() && third.load.is_empty());
}

#[test]
fn the_initiator_closes_all_but_the_newest_of_equals() {
    for (initiate, expected) in [(true, vec![1]), (false, vec![])] {
        let c = connection(1, 0, initiate);
        let wanted = desired(&[(NAME, c.clone())]);
        let actual = Actual {
            connections: BTreeSet::from([NAME.to_owned()]),
            ikes: vec![ike(1, NAME, vec![child(1, &c), child(2, &c)])],
        };
        let plan = plan(&wanted, &wanted.connections, &actual);
        assert_eq!(ids(&plan.terminate_children), expected);
        assert_eq!(ids(&excess(&wanted, &actual)), [1]);
    }
}

#[test]
fn what_carries_more_than_it_should_is_excess() {
    let c = connection(1, 0, false);
    let wanted = desired(&[(NAME, c.clone())]);
    let mut wide = child(1, &c);
    wide.selectors = Some([c.local.clone(), nets(&["10.1.0.0/16", "10.2.0.0/24"])]);
    let mut narrow = child(2, &c);
    narrow.selectors = Some([c.local.clone(), nets(&["10.1.1.0/25"])]);
    let mut odd = child(3, &c);
    odd.selectors = None;
    let actual = Actual {
        connections: BTreeSet::from([NAME.to_owned()]),
        ikes: vec![ike(1, NAME, vec![wide, narrow, odd])],
    };
    assert_eq!(ids(&excess(&wanted, &actual)), [1, 3]);
    assert!(
        plan(&wanted, &wanted.connections, &actual)
            .terminate_children
            .is_empty()
    );
}

#[test]
fn only_the_initiator_closes_a_double_ike_sa() {
    for (initiate, expected) in [(true, vec![1]), (false, vec![])] {
        let c = connection(1, 0, initiate);
        let wanted = desired(&[(NAME, c.clone())]);
        let actual = Actual {
            connections: BTreeSet::from([NAME.to_owned()]),
            ikes: vec![ike(1, NAME, vec![child(1, &c)]), ike(2, NAME, vec![child(2, &c)])],
        };
        let plan = plan(&wanted, &wanted.connections, &actual);
        assert_eq!(ids(&plan.terminate_ikes), expected);
        assert!(plan.terminate_children.is_empty());
    }
}

#[test]
fn what_is_on_its_way_to_an_old_address_is_given_up() {
    let old = connection(1, 0, true);
    let new = Connection {
        remote_addrs: vec!["192.0.2.9".into()],
        ..old.clone()
    };
    let wanted = desired(&[(NAME, new)]);
    let connecting = Ike {
        state: IkeState::Connecting,
        ..ike(1, NAME, Vec::new())
    };
    let actual = Actual {
        connections: BTreeSet::from([NAME.to_owned()]),
        ikes: vec![connecting, ike(2, NAME, vec![child(2, &old)])],
    };
    let loaded = desired(&[(NAME, old)]).connections;
    assert_eq!(ids(&plan(&wanted, &loaded, &actual).terminate_ikes), [1]);
    assert!(
        plan(&wanted, &wanted.connections, &actual)
            .terminate_ikes
            .is_empty()
    );
}

#[test]
fn charon_is_not_asked_twice() {
    let c = connection(1, 0, true);
    let connecting = Ike {
        state: IkeState::Connecting,
        ..ike(1, NAME, Vec::new())
    };
    assert_eq!(need(&c, &[]), Need::Initiation);
    assert_eq!(need(&c, &[&connecting]), Need::Patience);
    let creating = Ike {
        creating: true,
        ..ike(1, NAME, Vec::new())
    };
    assert_eq!(need(&c, &[&creating]), Need::Patience);
    let leaving = Ike {
        state: IkeState::Leaving,
        ..ike(1, NAME, vec![child(1, &c)])
    };
    assert_eq!(need(&c, &[&leaving]), Need::Initiation);
}

/// A random world: desired peers, and SAs of ours (wanted, stale) and of others.
fn world() -> impl Strategy<Value = (Tunnels, Connections, Actual)> {
    let peers = proptest::collection::btree_map(0u8..5, (0u8..3, any::<bool>()), 0..5);
    let loaded = proptest::collection::btree_map(0u8..5, 0u8..3, 0..5);
    let states = prop_oneof![
        Just(IkeState::Connecting),
        Just(IkeState::Established),
        Just(IkeState::Leaving)
    ];
    let child_states = prop_oneof![
        Just(ChildState::Pending),
        Just(ChildState::Live),
        Just(ChildState::Leaving)
    ];
    let children = proptest::collection::vec((0u8..3, child_states, any::<[u8; 2]>()), 0..4);
    let ikes = proptest::collection::vec((0u8..5, any::<bool>(), states, children), 0..8);
    let foreign = proptest::collection::btree_set("[a-z]{1,5}", 0..3);
    (peers, loaded, ikes, foreign).prop_map(|(peers, loaded, ikes, foreign)| {
        let name = |peer: u8| format!("fabedge-c.e{peer}");
        let wanted = Tunnels {
            connections: peers
                .iter()
                .map(|(p, (v, i))| (name(*p), Arc::new(connection(*p, *v, *i))))
                .collect(),
            problems: Vec::new(),
        };
        let initiate = |peer: u8| peers.get(&peer).is_some_and(|(_, initiate)| *initiate);
        let loaded: BTreeMap<_, _> = loaded
            .iter()
            .map(|(p, v)| (name(*p), Arc::new(connection(*p, *v, initiate(*p)))))
            .collect();
        let mut next = 0;
        let ikes = ikes
            .into_iter()
            .enumerate()
            .map(|(id, (peer, ours, state, children))| Ike {
                state,
                ..ike(
                    id as u32,
                    &if ours { name(peer) } else { format!("x{peer}") },
                    children
                        .into_iter()
                        .map(|(version, state, [a, b])| {
                            next += 1;
                            let c = connection(peer, version, true);
                            Child {
                                state,
                                spis: [a.into(), b.into()],
                                ..child(next, &c)
                            }
                        })
                        .collect(),
                )
            })
            .collect();
        let connections = loaded.keys().cloned().chain(foreign).collect();
        (wanted, loaded, Actual { connections, ikes })
    })
}

proptest! {
    #[test]
    fn foreign_entries_survive_and_stale_ones_go((wanted, loaded, actual) in world()) {
        let plan = plan(&wanted, &loaded, &actual);
        let foreign = |name: &str| !name.starts_with(marks::CONNECTION_PREFIX);
        prop_assert!(!plan.unload.iter().any(|name| foreign(name)));
        prop_assert!(!plan.terminate_ikes.iter().any(|ike| foreign(&ike.name)));
        let of_others: BTreeSet<u32> = actual
            .ikes
            .iter()
            .filter(|ike| foreign(&ike.name))
            .flat_map(|ike| &ike.children)
            .map(|child| child.id)
            .collect();
        prop_assert!(!plan.terminate_children.iter().any(|child| of_others.contains(&child.id)));
        for name in &actual.connections {
            let stale = !foreign(name) && !wanted.connections.contains_key(name);
            prop_assert_eq!(plan.unload.contains(name), stale);
        }
        for ike in &actual.ikes {
            if !foreign(&ike.name) && !wanted.connections.contains_key(&ike.name) && ike.state != IkeState::Leaving {
                prop_assert!(plan.terminate_ikes.iter().any(|doomed| doomed.id == ike.id));
            }
        }
    }

    #[test]
    fn the_last_working_child_is_never_closed((wanted, loaded, actual) in world()) {
        let plan = plan(&wanted, &loaded, &actual);
        for name in wanted.connections.keys() {
            let live = |ike: &&Ike| ike.name == *name && ike.state == IkeState::Established;
            let children: Vec<(u32, u32)> = actual
                .ikes
                .iter()
                .filter(live)
                .flat_map(|ike| ike.children.iter().map(|child| (ike.id, child)))
                .filter(|(_, child)| child.state == ChildState::Live)
                .map(|(ike, child)| (ike, child.id))
                .collect();
            let kept = children.iter().filter(|(ike, child)| {
                !plan.terminate_ikes.iter().any(|doomed| doomed.id == *ike)
                    && !plan.terminate_children.iter().any(|doomed| doomed.id == *child)
            });
            prop_assert!(children.is_empty() || kept.count() > 0, "{children:?} {plan:?}");
        }
    }

    #[test]
    fn loading_and_initiating_settles((wanted, loaded, actual) in world()) {
        let first = plan(&wanted, &loaded, &actual);
        let mut connections: BTreeSet<String> = actual.connections.difference(&first.unload).cloned().collect();
        connections.extend(first.load.keys().cloned());
        let mut ikes: Vec<Ike> = Vec::new();
        for (id, (name, connection)) in (100..).zip(&wanted.connections) {
            ikes.push(ike(id, name, vec![child(id, connection)]));
        }
        let settled = plan(&wanted, &wanted.connections, &Actual { connections, ikes });
        prop_assert_eq!(settled, SaPlan::default());
    }
}
