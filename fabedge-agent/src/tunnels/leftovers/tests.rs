use proptest::prelude::*;

use super::super::plan::{Child, IkeState};
use super::*;

fn child(spi: u32, reqid: u32, state: ChildState) -> Child {
    Child {
        name: "fabedge-f.edge1-00000000".into(),
        id: spi,
        reqid,
        state,
        spis: [spi, spi + 1],
        selectors: Some([
            BTreeSet::from(["10.9.0.0/24".parse().unwrap()]),
            BTreeSet::from(["10.1.0.0/16".parse().unwrap()]),
        ]),
        bytes: [0, 0],
    }
}

fn ikes(children: Vec<Child>) -> Vec<Ike> {
    vec![Ike {
        name: "fabedge-f.edge1".into(),
        id: 1,
        state: IkeState::Established,
        state_name: "ESTABLISHED".into(),
        remote: String::new(),
        established: None,
        creating: false,
        children,
    }]
}

fn state(spi: u32, reqid: u32) -> State {
    State {
        destination: "192.0.2.1".parse().unwrap(),
        spi,
        protocol: 50,
        reqid,
    }
}

fn policy(source: &str, destination: &str, direction: u8, reqid: u32) -> Policy {
    Policy {
        source: source.parse().unwrap(),
        destination: destination.parse().unwrap(),
        direction,
        reqid,
    }
}

#[test]
fn what_charon_knows_stays() {
    let listed = Leftovers {
        states: BTreeSet::from([state(10, 7), state(11, 7), state(20, 7), state(30, 8)]),
        policies: BTreeSet::from([
            policy("10.9.0.0/24", "10.1.0.0/17", OUT, 7),
            policy("10.1.0.0/17", "10.9.0.0/24", 2, 7),
            policy("10.1.0.0/17", "10.9.0.0/24", OUT, 7),
            policy("10.9.0.0/24", "10.2.0.0/24", OUT, 7),
            policy("10.9.0.0/24", "10.1.0.0/17", OUT, 8),
        ]),
    };
    let ikes = ikes(vec![child(10, 7, ChildState::Live)]);
    let unknown = listed.unknown(&ikes);
    assert_eq!(unknown.states, BTreeSet::from([state(20, 7), state(30, 8)]));
    assert_eq!(
        unknown.policies,
        BTreeSet::from([
            policy("10.1.0.0/17", "10.9.0.0/24", OUT, 7),
            policy("10.9.0.0/24", "10.2.0.0/24", OUT, 7),
            policy("10.9.0.0/24", "10.1.0.0/17", OUT, 8),
        ])
    );
}

#[test]
fn leftovers_carry_traffic_until_they_are_replaced() {
    let unknown = Leftovers {
        states: BTreeSet::from([state(1, 7), state(2, 8)]),
        policies: BTreeSet::new(),
    };
    let wanted = BTreeSet::from([7]);
    let of = |reqid| Leftovers {
        states: BTreeSet::from([state(reqid - 6, reqid)]),
        policies: BTreeSet::new(),
    };
    assert_eq!(unknown.replaced(&wanted, &[]), of(8));
    let pending = ikes(vec![child(50, 7, ChildState::Pending)]);
    assert_eq!(unknown.replaced(&wanted, &pending), of(8));
    let live = ikes(vec![child(50, 7, ChildState::Live)]);
    assert_eq!(unknown.replaced(&wanted, &live), unknown);
}

proptest! {
    #[test]
    fn a_known_spi_is_never_a_leftover(spis in proptest::collection::vec(0u32..40, 0..12), known in proptest::collection::vec(0u32..40, 0..6)) {
        let listed = Leftovers {
            states: spis.iter().map(|spi| state(*spi, 7)).collect(),
            policies: BTreeSet::new(),
        };
        let ikes = ikes(known.iter().map(|spi| child(*spi, 7, ChildState::Leaving)).collect());
        let unknown = listed.unknown(&ikes);
        for state in &listed.states {
            let is_known = known.iter().any(|spi| [*spi, spi + 1].contains(&state.spi));
            prop_assert_eq!(unknown.states.contains(state), !is_known);
        }
    }
}
