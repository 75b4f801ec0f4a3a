use std::collections::BTreeSet;

use super::{Flow, Program, Reason, mapped, reqid};

#[test]
fn every_reason_of_every_program_has_an_entry_of_its_own() {
    let keys: BTreeSet<u32> = Program::ALL
        .iter()
        .flat_map(|program| Reason::ALL.iter().map(|reason| reason.index(*program)))
        .collect();
    assert_eq!(keys.len(), Reason::ENTRIES);
    assert_eq!(keys.last().copied(), Some(Reason::ENTRIES as u32 - 1));
}

#[test]
fn numbers_are_positions() {
    for (position, reason) in Reason::ALL.iter().enumerate() {
        assert_eq!(*reason as usize, position, "{}", reason.name());
    }
    for (position, program) in Program::ALL.iter().enumerate() {
        assert_eq!(*program as usize, position, "{}", program.name());
    }
}

#[test]
fn names_are_fit_for_labels_and_unique() {
    let names: BTreeSet<&str> = Reason::ALL.iter().map(|reason| reason.name()).collect();
    assert_eq!(names.len(), Reason::ALL.len());
    for name in names {
        assert!(
            name.bytes().all(|b| b.is_ascii_lowercase() || b == b'_'),
            "{name}"
        );
    }
}

#[test]
fn reqids_are_stable_and_in_range() {
    // Fixed for ever: nodes of different versions need not agree, but a restart must find its own SAs.
    assert_eq!(reqid(""), 0x4000_0000 | ((0x811c_9dc5 ^ 2) & 0x3fff_ffff));
    let mut seen = BTreeSet::new();
    for n in 0..10_000 {
        let id = reqid(&format!("fabedge.edge{n}"));
        assert!((0x4000_0000..=0x7fff_ffff).contains(&id));
        seen.insert(id);
    }
    // 10,000 of 2^30: about 0.05 collisions are to be expected.
    assert!(seen.len() >= 9_998, "{} of 10000 distinct", seen.len());
}

#[test]
fn reversing_twice_is_nothing() {
    let flow = Flow {
        src: mapped([10, 0, 0, 1]),
        dst: mapped([10, 0, 0, 2]),
        src_port: [0, 80],
        dst_port: [200, 1],
        protocol: 6,
        padding: [0; 3],
    };
    assert_eq!(flow.reverse().reverse(), flow);
    assert_eq!(flow.reverse().src, flow.dst);
    assert_eq!(flow.reverse().dst_port, flow.src_port);
}
