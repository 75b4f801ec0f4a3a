//! The demo: the main job, what can be seen of it, and what breaking things costs.

use std::path::Path;

use anyhow::Result;
use serde_json::json;

use crate::lab::{Lab, Settings};
use crate::scenarios::{DEMO, product};
use crate::suite::run_checks;
use crate::table::{Outcome, Table};

/// Runs it; gives whether all was as it should be.
///
/// # Errors
/// When the world or the programs do not come up, or the figures cannot be written.
pub fn run(settings: &Settings, json: Option<&Path>, keep: bool) -> Result<bool> {
    let mut table = Table::default();
    table.section(
        "A small world: edge1 and edge3 behind NATs with the same subnet, edge2, two cloud nodes, a WAN",
    );
    let mut lab = Lab::build(settings)?;
    table.begin("operator, charon, agents and pods start");
    if let Err(error) = product::bring_up(&mut lab) {
        let outcome = Outcome::Failed(format!("{error:#}"));
        table.end("operator, charon, agents and pods start", &outcome);
        table.close();
        return Ok(false);
    }
    table.end(
        "operator, charon, agents and pods start",
        &Outcome::Passed(String::new()),
    );
    for (title, checks) in DEMO {
        table.section(title);
        run_checks(checks.iter(), &mut lab, &mut table);
    }
    let good = table.close();
    lab.figures
        .set("tunnel", format!("{:?}", settings.tunnel).to_lowercase());
    lab.figures.set("seconds", table.elapsed().as_secs());
    let (passed, failed) = table.counts();
    lab.figures
        .set("checks", json!({"passed": passed, "failed": failed}));
    if let Some(file) = json {
        lab.figures.write(file)?;
    }
    if keep {
        lab.keep()?;
    }
    Ok(good)
}
