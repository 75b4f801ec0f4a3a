//! What is left on a node after `fabedge-agent cleanup`: nothing.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{Context, Result};

use super::product;
use crate::lab::Lab;
use crate::observe::configuration;
use crate::suite::{Check, Suite, judge};
use crate::table::Outcome;
use crate::world::addresses::{Role, SITES};

/// The suite.
pub const SUITE: Suite = Suite {
    name: "cleanup",
    about: "what agents leave on their nodes",
    settings: |_| {},
    prepare: |_| Ok(()),
    checks: &[&[Check {
        name: "nothing is left after cleanup",
        run: nothing_left,
    }]],
};

type Nodes = BTreeMap<&'static str, BTreeMap<&'static str, String>>;

fn observe(lab: &Lab) -> Result<Nodes> {
    SITES
        .iter()
        .map(|numbers| Ok((numbers.name, configuration(&lab.world.site(numbers.name)?.place)?)))
        .collect()
}

/// Configuration before anything of ours ran, and after everything was stopped and cleaned up.
fn nothing_left(lab: &mut Lab) -> Result<Outcome> {
    // The cloud's own CNI leaves its bridge behind its last pod; that is not ours to judge.
    for numbers in SITES.iter().filter(|numbers| numbers.role != Role::Edge) {
        let name = format!("{}-first", numbers.name);
        lab.add_pod(&name, numbers.name)?;
        lab.remove_pod(&name)?;
    }
    let before = observe(lab)?;
    product::bring_up(lab)?;
    product::tunnels_come_up(lab)?;
    for (pod, _) in product::PODS {
        lab.remove_pod(pod)?;
    }
    let mut problems = Vec::new();
    for numbers in &SITES {
        let limit = Duration::from_secs(20);
        let code = lab
            .take_daemon(&format!("{}/agent", numbers.name))?
            .terminate(limit)?;
        if code != Some(0) {
            problems.push(format!("the agent of {} ended with {code:?}", numbers.name));
        }
        let program = lab.settings.programs.join("fabedge-agent");
        let words = [&*program.to_string_lossy(), "cleanup"];
        let output = lab
            .world
            .site(numbers.name)?
            .place
            .output(&words, Duration::from_secs(60))?;
        if !output.ok() {
            problems.push(format!("cleanup on {}: {}", numbers.name, output.text()));
        }
        if numbers.role != Role::Cloud {
            lab.take_daemon(&format!("{}/charon", numbers.name))?
                .terminate(limit)?;
        }
    }
    let after = observe(lab)?;
    for (site, parts) in &before {
        let now = after.get(site).with_context(|| format!("{site} is gone"))?;
        for (part, text) in parts {
            let difference = difference(text, &now[part]);
            if !difference.is_empty() {
                problems.push(format!("{part} of {site}: {difference}"));
            }
        }
    }
    Ok(judge(problems.is_empty(), problems.join("; ")))
}

/// Lines that came and lines that went.
pub fn difference(before: &str, after: &str) -> String {
    let came = after
        .lines()
        .filter(|line| !before.lines().any(|other| other == *line))
        .map(|line| format!("+{line}"));
    let went = before
        .lines()
        .filter(|line| !after.lines().any(|other| other == *line))
        .map(|line| format!("-{line}"));
    came.chain(went).collect::<Vec<_>>().join(", ")
}
