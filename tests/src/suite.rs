//! A suite: named checks on one lab, each with its outcome and time.

use anyhow::Result;

use crate::lab::Lab;
use crate::table::{Outcome, Table};

/// One check.
#[derive(Clone, Copy)]
pub struct Check {
    /// What `--only` finds it by.
    pub name: &'static str,
    /// Tries it. An error is a failure; everything in it is bounded in time.
    pub run: fn(&mut Lab) -> Result<Outcome>,
}

/// A list of checks and what they stand on.
#[derive(Clone, Copy)]
pub struct Suite {
    /// Its name on the command line.
    pub name: &'static str,
    /// What it is about, in a line.
    pub about: &'static str,
    /// Brings the lab to where the checks start.
    pub prepare: fn(&mut Lab) -> Result<()>,
    /// The checks in their order.
    pub checks: &'static [Check],
}

impl Suite {
    /// Prepares the lab and runs the checks whose names contain one of `only` (all, when that is empty). A check
    /// that fails does not keep the others from running.
    ///
    /// # Errors
    /// When the preparation fails.
    pub fn run(&self, lab: &mut Lab, only: &[String], table: &mut Table) -> Result<()> {
        table.section(&format!("{}: {}", self.name, self.about));
        table.begin("bringing the lab up");
        (self.prepare)(lab)?;
        table.end("bringing the lab up", &Outcome::Passed(String::new()));
        for check in self.checks {
            if only.is_empty() || only.iter().any(|part| check.name.contains(part.as_str())) {
                table.begin(check.name);
                let outcome = (check.run)(lab).unwrap_or_else(|error| Outcome::Failed(format!("{error:#}")));
                table.end(check.name, &outcome);
            }
        }
        Ok(())
    }
}

/// Passed if `good`, else failed; with what was seen either way.
pub fn judge(good: bool, seen: impl Into<String>) -> Outcome {
    if good {
        Outcome::Passed(seen.into())
    } else {
        Outcome::Failed(seen.into())
    }
}
