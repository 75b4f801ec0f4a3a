//! A suite: named checks on one lab, each with its outcome and time.

use anyhow::Result;

use crate::lab::{Lab, Settings};
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
    /// What it wants otherwise than the command line says.
    pub settings: fn(&mut Settings),
    /// Brings the lab to where the checks start.
    pub prepare: fn(&mut Lab) -> Result<()>,
    /// The checks in their order, by section.
    pub checks: &'static [&'static [Check]],
}

impl Suite {
    /// Every check.
    pub fn all(&self) -> impl Iterator<Item = &'static Check> {
        self.checks.iter().flat_map(|section| section.iter())
    }

    /// Prepares the lab and runs the checks whose names contain one of `only` (all, when that is empty). A check
    /// that fails does not keep the others from running.
    ///
    /// # Errors
    /// When the preparation fails.
    pub fn run(&self, lab: &mut Lab, only: &[String], table: &mut Table) -> Result<()> {
        table.section(&format!("{}: {}", self.name, self.about));
        (self.prepare)(lab)?;
        let chosen = self
            .all()
            .filter(|check| only.is_empty() || only.iter().any(|part| check.name.contains(part.as_str())));
        run_checks(chosen, lab, table);
        Ok(())
    }
}

/// Runs checks in their order, a row each.
pub fn run_checks<'a>(checks: impl Iterator<Item = &'a Check>, lab: &mut Lab, table: &mut Table) {
    for check in checks {
        table.begin(check.name);
        let outcome = (check.run)(lab).unwrap_or_else(|error| Outcome::Failed(format!("{error:#}")));
        table.end(check.name, &outcome);
        for text in lab.take_quotes() {
            table.quote(&text);
        }
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
