//! What is tried in the lab, a file per subject, and the suites that are made of it.

pub mod cleanup;
pub mod communities;
pub mod faults;
pub mod instruments;
pub mod loss;
pub mod mtu;
pub mod product;
pub mod reports;
pub mod traffic;
pub mod translation;

use anyhow::Result;

use crate::lab::{Lab, Switch};
use crate::suite::{Check, Suite};

/// Everything that works, with the fast path as the command line says.
pub const CONNECTIVITY: Suite = Suite {
    name: "connectivity",
    about: "what has to get through, and what must not",
    settings: |_| {},
    prepare: product::bring_up,
    checks: &[
        communities::CHECKS,
        REJOIN,
        traffic::CHECKS,
        translation::CHECKS,
        reports::CHECKS,
    ],
};

/// The same by the kernel's slow path alone.
pub const SLOW_PATH: Suite = Suite {
    name: "slow-path",
    about: "the same with the fast path off",
    settings: |settings| settings.fast_path = Switch::Off,
    prepare: product::bring_up,
    checks: CONNECTIVITY.checks,
};

/// The same where the kernel lets agents load no program.
pub const NO_EBPF: Suite = Suite {
    name: "no-ebpf",
    about: "the same with agents that may not use eBPF",
    settings: |settings| {
        settings.fast_path = Switch::Off;
        settings.ebpf = Switch::Off;
    },
    prepare: product::bring_up,
    checks: &[
        &[reports::REFUSED],
        communities::CHECKS,
        REJOIN,
        traffic::CHECKS,
        translation::CHECKS,
        reports::CHECKS,
    ],
};

/// What breaks.
pub const FAULTS: Suite = Suite {
    name: "faults",
    about: "what breaks, and what it costs",
    settings: |_| {},
    prepare: faults::prepare,
    checks: &[loss::RESTARTS, faults::CHECKS, reports::CHECKS],
};

/// Every suite of `fabedge-lab suite`.
pub const SUITES: [&Suite; 8] = [
    &instruments::SUITE,
    &CONNECTIVITY,
    &SLOW_PATH,
    &NO_EBPF,
    &FAULTS,
    &loss::SUITE,
    &mtu::SUITE,
    &cleanup::SUITE,
];

/// The Community of edge1 and edge2 was taken away to see that it is; what follows wants it back.
const REJOIN: &[Check] = &[Check {
    name: "edge1 <-> edge2 works again with the Community",
    run: communities::direct,
}];

/// The demo: a title and the checks under it.
pub const DEMO: [(&str, &[Check]); 5] = [
    ("Cloud and edges, Communities", communities::CHECKS),
    ("Which way packets take, and what can be seen of them", SHOWN),
    ("What costs no packet", loss::RESTARTS),
    ("What breaks", faults::CHECKS),
    ("What the WAN saw in all that time", reports::WAN),
];

/// What the demo shows between the main job and the faults.
const SHOWN: &[Check] = &[
    REJOIN[0],
    traffic::IPV6,
    traffic::FAST_SHARE,
    reports::CHECKS[0],
    reports::CHECKS[1],
    reports::CHECKS[2],
    reports::CHECKS[3],
    reports::CHECKS[4],
];

/// Leaves the world in the state in which somebody can look around: everything up, both Communities in force.
///
/// # Errors
/// When something does not come up.
pub fn everything(lab: &mut Lab) -> Result<()> {
    faults::prepare(lab)?;
    product::ensure(lab, communities::RELAYED)?;
    product::wait_reach(
        lab.world.pod("edge1-a")?,
        lab.world.pod("edge3-a")?,
        product::CONVERGENCE,
    )?;
    Ok(())
}
