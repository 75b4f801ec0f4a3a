//! One pass after the other: what is kept between them, and what is said of them.

use std::path::PathBuf;

use fabedge_common::config::CLOUD;
use time::{Duration, OffsetDateTime};

use super::{Error, LAST_GOOD, compute, recall};
use crate::args;
use crate::finding::Finding;
use crate::observe::{self, Memory, Observation};
use crate::pki::{Authority, store};
use crate::publish::{Output, Report, files};
use crate::reporter::{Reporter, chain};
use crate::topology::{Previous, Topology, render};

/// However quiet the folder is, every file of the output is checked and mended this often.
const FULL_PASS: Duration = Duration::minutes(5);

/// The end of the CA is announced this long before.
const CA_WARNING: Duration = Duration::days(180);

/// What a pass needs of the passes before it.
pub(super) struct Operator {
    folder: PathBuf,
    ca_dir: PathBuf,
    output: Output,
    memory: Memory,
    saved: String,
    authority: Option<Authority>,
    previous: Option<Previous>,
    last: Option<Observation>,
    /// When there is something to do though the folder is quiet.
    due: Option<OffsetDateTime>,
    next_full_pass: Option<OffsetDateTime>,
    /// When the pass before was.
    passed: Option<OffsetDateTime>,
    reporter: Reporter,
    failed: bool,
}

impl Operator {
    /// Picks up where an earlier process left off.
    pub(super) fn new(args: &args::Standalone) -> Result<Self, Error> {
        Ok(Self {
            folder: args.folder.clone(),
            ca_dir: args.ca_dir.clone().unwrap_or_else(|| args.out.join("_ca")),
            output: Output::new(&args.out),
            memory: recall(&args.out)?.unwrap_or_default(),
            saved: String::new(),
            authority: None,
            previous: None,
            last: None,
            due: None,
            next_full_pass: None,
            passed: None,
            reporter: Reporter::default(),
            failed: false,
        })
    }

    /// Whether the last pass had errors.
    pub(super) fn failed(&self) -> bool {
        self.failed
    }

    /// Observes, computes, publishes what differs.
    pub(super) fn pass(&mut self, now: OffsetDateTime) -> Result<(), Error> {
        let observation = self.memory.absorb(&observe::read(&self.folder)?);
        // What was issued by a clock that has been put back since may be good in the future only.
        if self.passed.replace(now).is_some_and(|before| now < before) {
            self.next_full_pass = None;
            self.last = None;
        }
        if self.last.as_ref() == Some(&observation) && self.due.is_some_and(|at| now < at) {
            return Ok(());
        }
        // Until it is known that the pass succeeds, the next one may not take anything as done.
        self.last = None;
        if self.next_full_pass.is_none_or(|at| now >= at) {
            self.output.distrust();
            self.authority = None;
            self.previous = None;
            self.next_full_pass = Some(now + FULL_PASS);
        }
        let mut findings = observation.findings.clone();
        let mut failures = Vec::new();
        if let Some(settings) = &observation.settings {
            let previous = match self.previous.take() {
                Some(previous) => previous,
                None => self.output.previous(&settings.cluster)?,
            };
            if let Some((topology, more)) = compute(&observation, &previous) {
                findings.extend(more);
                let authority = self.authority(&topology.cluster, now);
                let report = self.publish(&topology, authority.as_ref().ok(), observation.incomplete, now);
                failures = report.failures.iter().map(|e| chain(e)).collect();
                match authority {
                    Ok(authority) => {
                        findings.extend(ending(&authority, now));
                        self.authority = Some(authority);
                    }
                    Err(e) => failures.push(chain(&e)),
                }
                self.previous = Some(remembered(&topology, previous));
            }
        }
        self.save()?;
        self.failed = self.reporter.report(&findings, &failures);
        self.due = self
            .next_full_pass
            .into_iter()
            .chain(self.output.renew_at())
            .min();
        self.last = failures.is_empty().then_some(observation);
        Ok(())
    }

    fn authority(&mut self, cluster: &str, now: OffsetDateTime) -> Result<Authority, store::Error> {
        match self.authority.take() {
            Some(authority) if now < authority.not_after() => Ok(authority),
            _ => store::open(&self.ca_dir, cluster, now),
        }
    }

    /// Without an authority the documents are published all the same: certificates that were issued go on working.
    fn publish(
        &mut self,
        topology: &Topology,
        authority: Option<&Authority>,
        incomplete: bool,
        now: OffsetDateTime,
    ) -> Report {
        let documents = render::documents(topology);
        let mut report = self.output.publish(&documents, authority, now);
        // What cannot be read may be the manifest of a node that seems gone.
        if !incomplete {
            let mut keep = topology.unresolved.clone();
            if topology.cloud.is_some() {
                keep.insert(CLOUD.to_owned());
            }
            self.output
                .prune(&documents, &keep, &topology.cluster, &mut report);
        }
        report.log();
        report
    }

    fn save(&mut self) -> Result<(), Error> {
        let text = self.memory.save()?;
        if text != self.saved {
            let path = self.output.folder().join(LAST_GOOD);
            let failed = |source| Error::State {
                action: "writing",
                path: path.clone(),
                source,
            };
            files::create_folder(self.output.folder(), 0o755).map_err(failed)?;
            files::replace(&path, text.as_bytes(), 0o600).map_err(failed)?;
            self.saved = text;
        }
        Ok(())
    }

    /// Says that a pass came to nothing.
    pub(super) fn report_failure(&mut self, e: &Error) {
        self.failed = true;
        self.reporter.failure(chain(e));
    }
}

/// Every certificate ends with its authority, so an end in sight has to be known in time.
fn ending(authority: &Authority, now: OffsetDateTime) -> Option<Finding> {
    (authority.not_after() - now < CA_WARNING).then(|| {
        Finding::warning(
            "CA",
            "notAfter",
            format!(
                "it ends on {}, and every certificate with it: replace ca.crt and ca.key in time, and see that \
                 every node gets the new files",
                authority.not_after().date()
            ),
        )
    })
}

/// What each edge has now; one with a problem keeps what it had.
fn remembered(topology: &Topology, previous: Previous) -> Previous {
    let mut subnets = previous.subnets;
    subnets.retain(|name, _| topology.unresolved.contains(name));
    subnets.extend(
        topology
            .edges
            .iter()
            .map(|(name, edge)| (name.clone(), edge.subnets.clone())),
    );
    Previous { subnets }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use clap::Parser as _;

    use super::*;
    use crate::args::{Cli, Command};
    use crate::pki::inspect::is_valid;

    #[test]
    fn what_a_clock_that_was_ahead_has_issued_is_issued_anew() {
        let folder = tempfile::tempdir().unwrap();
        let example = Path::new(env!("CARGO_MANIFEST_DIR")).join("../examples/standalone");
        let out = folder.path().join("out");
        let words = [
            "fabedge-operator".as_ref(),
            "standalone".as_ref(),
            example.as_os_str(),
            "--out".as_ref(),
            out.as_os_str(),
        ];
        let Command::Standalone(args) = Cli::parse_from(words).command else {
            panic!("not what was asked for")
        };
        let mut operator = Operator::new(&args).unwrap();
        let now = OffsetDateTime::now_utc();
        operator.pass(now).unwrap();
        let file = out.join("edge1").join("tls.crt");
        std::fs::remove_file(&file).unwrap();
        operator.pass(now + Duration::hours(3)).unwrap();
        let certificate = || std::fs::read_to_string(&file).unwrap();
        assert!(!is_valid(&certificate(), now));
        operator.pass(now + Duration::seconds(1)).unwrap();
        assert!(is_valid(&certificate(), now));
    }
}
