//! The main job: cloud and edges reach each other; edges do once a Community joins them, and no longer than that.

use std::time::{Duration, Instant};

use anyhow::Result;

use super::product::{self, CONVERGENCE, SILENCE, WAIT, wait_reach, wait_refused};
use crate::lab::Lab;
use crate::probe::reach::{Reach, both_ways};
use crate::suite::{Check, judge};
use crate::table::Outcome;

/// The Community of the guide: edge1 and edge2.
pub const DIRECT: &str = "node-community.yaml";

/// The Community of edge1 and edge3.
pub const RELAYED: &str = "relay-community.yaml";

/// In the order in which they have to run.
pub const CHECKS: &[Check] = &[
    Check {
        name: "tunnels come up",
        run: product::tunnels_come_up,
    },
    Check {
        name: "cloud pods <-> edge1 pod, both ways at once",
        run: |lab| cloud(lab, "edge1-a"),
    },
    Check {
        name: "cloud pods <-> edge2 pod, both ways at once",
        run: |lab| cloud(lab, "edge2-a"),
    },
    Check {
        name: "cloud pods <-> edge3 pod, both ways at once",
        run: |lab| cloud(lab, "edge3-a"),
    },
    Check {
        name: "edge1 <-> edge2 is refused without a Community",
        run: refused,
    },
    Check {
        name: "edge1 <-> edge2 works with node-community.yaml",
        run: direct,
    },
    Check {
        name: "edge1 <-> edge2 is refused again without it",
        run: withdrawn,
    },
    Check {
        name: "edge1 <-> edge3 works through the relay",
        run: relayed,
    },
];

fn summary(results: &[Reach]) -> String {
    let worst = results.iter().find(|reach| !reach.all());
    match (worst, results.first()) {
        (Some(reach), _) | (None, Some(reach)) => reach.to_string(),
        (None, None) => String::new(),
    }
}

/// Both cloud pods and an edge's, all directions at the same time.
fn cloud(lab: &mut Lab, edge: &str) -> Result<Outcome> {
    let pod = |name| lab.world.pod(name);
    let pairs = [(pod("cloud-a")?, pod(edge)?), (pod("cloud-b")?, pod(edge)?)];
    let results = both_ways(&pairs, false, WAIT)?;
    let best = results.iter().filter_map(|reach| reach.ping.best).min();
    let outcome = judge(results.iter().all(Reach::all), summary(&results));
    if let Some(best) = best {
        lab.figures
            .set(format!("ping_ms_{edge}"), best.as_secs_f64() * 1e3);
    }
    Ok(outcome)
}

/// Edges of no common Community: nothing gets through, and nothing shows on the WAN.
fn refused(lab: &mut Lab) -> Result<Outcome> {
    let before = lab.capture.counts();
    let (one, two) = (lab.world.pod("edge1-a")?, lab.world.pod("edge2-a")?);
    let results = both_ways(&[(one, two)], false, SILENCE)?;
    let leaked = lab.capture.counts().since(&before).plaintext;
    Ok(judge(
        results.iter().all(Reach::none) && leaked == 0,
        format!("{}; {leaked} plaintext packets", summary(&results)),
    ))
}

/// The guide's Community joins edge1 and edge2.
///
/// # Errors
/// When they do not reach each other in time.
pub fn direct(lab: &mut Lab) -> Result<Outcome> {
    joined(lab, DIRECT, "edge2-a", "community_seconds")
}

fn relayed(lab: &mut Lab) -> Result<Outcome> {
    joined(lab, RELAYED, "edge3-a", "relay_seconds")
}

/// How long a new Community may take until its members reach each other: a third of a second natively, under emulation up to
/// five.
const JOINING: Duration = Duration::from_secs(10);

/// Applies a Community and measures until edge1 and `other` reach each other.
fn joined(lab: &mut Lab, manifest: &str, other: &str, figure: &str) -> Result<Outcome> {
    let applied = Instant::now();
    product::apply(lab, manifest)?;
    let (one, other) = (lab.world.pod("edge1-a")?, lab.world.pod(other)?);
    wait_reach(one, other, CONVERGENCE)?;
    wait_reach(other, one, CONVERGENCE)?;
    let took = applied.elapsed();
    let results = both_ways(&[(one, other)], false, WAIT)?;
    let outcome = judge(
        results.iter().all(Reach::all) && took < JOINING,
        format!("after {:.1} s; {}", took.as_secs_f64(), summary(&results)),
    );
    lab.figures.seconds(figure, took);
    Ok(outcome)
}

fn withdrawn(lab: &mut Lab) -> Result<Outcome> {
    let before = lab.capture.counts();
    let removed = Instant::now();
    product::withdraw(lab, DIRECT)?;
    let (one, two) = (lab.world.pod("edge1-a")?, lab.world.pod("edge2-a")?);
    wait_refused(one, two, CONVERGENCE)?;
    wait_refused(two, one, CONVERGENCE)?;
    let took = removed.elapsed();
    let results = both_ways(&[(one, two)], false, SILENCE)?;
    let leaked = lab.capture.counts().since(&before).plaintext;
    let outcome = judge(
        results.iter().all(Reach::none) && leaked == 0,
        format!("after {:.1} s; {leaked} plaintext packets", took.as_secs_f64()),
    );
    lab.figures.seconds("community_removal_seconds", took);
    Ok(outcome)
}
