use std::collections::BTreeSet;

use proptest::prelude::*;

use super::plan::{FORWARD4, FORWARD6, Observed, accept_ra, rp_filter};
use super::{Write, plan};
use crate::desired::sysctl::Sysctl;

fn desired() -> Sysctl {
    Sysctl {
        forward4: true,
        forward6: true,
        advertised: BTreeSet::from(["eth0".to_owned()]),
        asymmetric: BTreeSet::from(["fabedge0".to_owned()]),
    }
}

fn observed(values: [(&str, i64); 5]) -> Observed {
    values
        .into_iter()
        .map(|(parameter, value)| (parameter.to_owned(), value))
        .collect()
}

#[test]
fn router_advertisements_are_kept_before_forwarding_starts() {
    let observed = observed([
        (FORWARD4, 0),
        (FORWARD6, 0),
        (&accept_ra("eth0"), 1),
        (&rp_filter("all"), 1),
        (&rp_filter("fabedge0"), 0),
    ]);
    let writes: Vec<(String, i64)> = plan(&desired(), &observed)
        .writes
        .into_iter()
        .map(|Write { parameter, value }| (parameter, value))
        .collect();
    assert_eq!(
        writes,
        [
            (accept_ra("eth0"), 2),
            (FORWARD4.to_owned(), 1),
            (FORWARD6.to_owned(), 1),
            (rp_filter("fabedge0"), 2)
        ]
    );
}

#[test]
fn what_suffices_is_left_alone() {
    for (accept, all, own) in [(0, 0, 0), (2, 2, 1), (2, 1, 2), (0, 2, 0)] {
        let observed = observed([
            (FORWARD4, 1),
            (FORWARD6, 1),
            (&accept_ra("eth0"), accept),
            (&rp_filter("all"), all),
            (&rp_filter("fabedge0"), own),
        ]);
        assert!(
            plan(&desired(), &observed).writes.is_empty(),
            "accept_ra {accept} rp_filter {all} {own}"
        );
    }
}

#[test]
fn what_does_not_exist_is_not_written() {
    assert!(plan(&desired(), &Observed::new()).writes.is_empty());
}

proptest! {
    #[test]
    fn a_value_is_only_ever_raised_and_one_pass_is_enough(
        values in proptest::array::uniform5(0_i64..=2),
        wanted in any::<(bool, bool)>(),
    ) {
        let desired = Sysctl { forward4: wanted.0, forward6: wanted.1, ..desired() };
        let mut observed = observed([
            (FORWARD4, values[0]),
            (FORWARD6, values[1]),
            (&accept_ra("eth0"), values[2]),
            (&rp_filter("all"), values[3]),
            (&rp_filter("fabedge0"), values[4]),
        ]);
        for Write { parameter, value } in plan(&desired, &observed).writes {
            let before = observed.insert(parameter, value);
            prop_assert!(before.is_some_and(|before| before < value));
        }
        prop_assert!(plan(&desired, &observed).writes.is_empty());
        prop_assert!(!wanted.0 || observed[FORWARD4] > 0);
        prop_assert!(observed[&rp_filter("all")].max(observed[&rp_filter("fabedge0")]) != 1);
    }
}
