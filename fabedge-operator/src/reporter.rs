//! Says what is wrong when it appears, and that it is over when it is; a problem that stays is said once.

use std::collections::BTreeSet;

use tracing::{error, info, warn};

use crate::finding::{Finding, Severity};

/// What was said.
#[derive(Debug, Default)]
pub struct Reporter {
    reported: BTreeSet<String>,
}

impl Reporter {
    /// Takes everything that is wrong now: findings about input, and what could not be done. Returns whether there
    /// are errors among it.
    pub fn report(&mut self, findings: &[Finding], failures: &[String]) -> bool {
        let texts = findings.iter().map(ToString::to_string);
        let now: BTreeSet<String> = texts.chain(failures.iter().cloned()).collect();
        for finding in findings
            .iter()
            .filter(|f| !self.reported.contains(&f.to_string()))
        {
            match finding.severity {
                Severity::Error => error!("{}", finding.text()),
                Severity::Warning => warn!("{}", finding.text()),
            }
        }
        for failure in failures.iter().filter(|f| !self.reported.contains(*f)) {
            error!("{failure}");
        }
        for over in self.reported.difference(&now) {
            info!("no longer: {over}");
        }
        self.reported = now;
        !failures.is_empty() || findings.iter().any(|f| f.severity == Severity::Error)
    }

    /// Takes a failure that leaves everything else as it was.
    pub fn failure(&mut self, text: String) {
        if !self.reported.contains(&text) {
            error!("{text}; what was published stays");
            self.reported.insert(text);
        }
    }
}

/// An error with its causes, on one line.
pub fn chain(error: &dyn std::error::Error) -> String {
    let causes = std::iter::successors(Some(error), |error| error.source());
    causes.map(ToString::to_string).collect::<Vec<_>>().join(": ")
}
