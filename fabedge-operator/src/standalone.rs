//! The front end over a folder of manifests.

mod watch;

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::time::Duration;

use fabedge_common::config::CLOUD;
use time::OffsetDateTime;
use tracing::{error, info, warn};

use crate::args;
use crate::finding::{Finding, Severity};
use crate::observe::{self, Memory, Observation};
use crate::pki::{Authority, store};
use crate::publish::{self, Output, Report};
use crate::topology::{self, Previous, Topology, render};

/// However quiet the folder is, the output is checked and mended this often.
const FULL_PASS: time::Duration = time::Duration::minutes(5);

/// Why a pass came to nothing. What was published before stays.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The folder could not be listed.
    #[error(transparent)]
    Folder(#[from] observe::folder::Error),
    /// No authority.
    #[error(transparent)]
    Authority(#[from] store::Error),
    /// The output folder could not be read.
    #[error(transparent)]
    Output(#[from] publish::Error),
    /// Signals could not be awaited.
    #[error("installing the handler of SIGTERM")]
    Signal(#[source] std::io::Error),
}

/// What `render` prints.
#[derive(Debug)]
pub struct Rendered {
    /// Documents as YAML, in the order of their local names.
    pub documents: Vec<String>,
    /// Problems.
    pub findings: Vec<Finding>,
}

/// One pass without effects.
///
/// # Errors
/// When a folder cannot be listed, or there is no document of the name that was asked for.
pub fn render(args: &args::Render) -> anyhow::Result<Rendered> {
    let observation = Memory::default().absorb(&observe::read(&args.folder)?);
    let mut findings = observation.findings.clone();
    let mut documents = Vec::new();
    if let Some(settings) = &observation.settings {
        let previous = match &args.out {
            Some(out) => Output::new(out).previous(&settings.cluster)?,
            None => Previous::default(),
        };
        if let Some((topology, more)) = compute(&observation, &previous) {
            findings.extend(more);
            let all = render::documents(&topology);
            if let Some(only) = args.only.as_ref().filter(|only| !all.contains_key(*only)) {
                let names: Vec<_> = all.keys().cloned().collect();
                anyhow::bail!("there is no document {only}; there are {}", names.join(", "));
            }
            let wanted = all
                .iter()
                .filter(|(name, _)| args.only.as_ref().is_none_or(|only| only == *name));
            for (_, document) in wanted {
                documents.push(document.to_yaml()?);
            }
        }
    }
    findings.sort();
    Ok(Rendered { documents, findings })
}

/// The topology, with findings that tell where the object stands.
fn compute(observation: &Observation, previous: &Previous) -> Option<(Topology, Vec<Finding>)> {
    let settings = observation.settings.as_ref()?;
    let (topology, mut findings) = topology::compute(&observation.snapshot, settings, previous);
    for finding in &mut findings {
        finding.place = observation.places.get(&finding.problem.object).cloned();
    }
    Some((topology, findings))
}

/// Runs until SIGTERM or SIGINT, or for one pass with `--once`. True when the last pass had errors.
///
/// # Errors
/// When the first pass cannot be made at all. Later ones are tried again.
pub async fn run(args: &args::Standalone, clock: impl Fn() -> OffsetDateTime) -> Result<bool, Error> {
    // Before the first reading, so that no change falls between the two.
    let mut watch = watch::Watch::new(&args.folder, Duration::from_secs(args.poll)).map_err(Error::Signal)?;
    let mut operator = Operator::new(args);
    operator.pass(clock())?;
    if args.once {
        return Ok(operator.failed);
    }
    info!(folder = %args.folder.display(), out = %args.out.display(), "watching");
    while watch.changed().await {
        if let Err(e) = operator.pass(clock()) {
            operator.report_failure(&e);
        }
    }
    info!("stopping; the output stays");
    Ok(false)
}

/// What a pass needs of the passes before it.
struct Operator {
    folder: PathBuf,
    ca_dir: PathBuf,
    output: Output,
    memory: Memory,
    authority: Option<Authority>,
    last: Option<Observation>,
    reported: BTreeSet<String>,
    next_full_pass: Option<OffsetDateTime>,
    failed: bool,
}

impl Operator {
    fn new(args: &args::Standalone) -> Self {
        Self {
            folder: args.folder.clone(),
            ca_dir: args.ca_dir.clone().unwrap_or_else(|| args.out.join("_ca")),
            output: Output::new(&args.out),
            memory: Memory::default(),
            authority: None,
            last: None,
            reported: BTreeSet::new(),
            next_full_pass: None,
            failed: false,
        }
    }

    fn pass(&mut self, now: OffsetDateTime) -> Result<(), Error> {
        let observation = self.memory.absorb(&observe::read(&self.folder)?);
        let quiet = self.last.as_ref() == Some(&observation);
        if quiet && !self.failed_to_publish() && self.next_full_pass.is_some_and(|at| now < at) {
            return Ok(());
        }
        let mut findings = observation.findings.clone();
        let mut failures = Vec::new();
        if let Some(settings) = &observation.settings {
            let previous = self.output.previous(&settings.cluster)?;
            if let Some((topology, more)) = compute(&observation, &previous) {
                findings.extend(more);
                let report = self.publish(&topology, now)?;
                failures = report.failures.iter().map(|e| chain(e)).collect();
                let full_pass = now + FULL_PASS;
                self.next_full_pass = Some(report.renew_at.map_or(full_pass, |at| at.min(full_pass)));
            }
        }
        self.report(&findings, &failures);
        self.last = failures.is_empty().then_some(observation);
        Ok(())
    }

    fn failed_to_publish(&self) -> bool {
        self.last.is_none()
    }

    fn publish(&mut self, topology: &Topology, now: OffsetDateTime) -> Result<Report, Error> {
        let authority = match self.authority.take() {
            Some(authority) if now < authority.not_after() => authority,
            _ => store::open(&self.ca_dir, &topology.cluster, now)?,
        };
        let mut keep = topology.unresolved.clone();
        if topology.cloud.is_some() {
            keep.insert(CLOUD.to_owned());
        }
        let documents = render::documents(topology);
        let report = self
            .output
            .publish(&documents, &keep, &topology.cluster, &authority, now);
        self.authority = Some(authority);
        for (name, why) in &report.certificates {
            info!(node = name, why, "issued a certificate");
        }
        for name in &report.documents {
            info!(node = name, "wrote the document");
        }
        for name in &report.removed {
            info!(node = name, "removed the files of a node that is gone");
        }
        Ok(report)
    }

    /// Says what is new, and what is over; a problem that stays is said once.
    fn report(&mut self, findings: &[Finding], failures: &[String]) {
        let now: BTreeSet<String> = findings
            .iter()
            .map(ToString::to_string)
            .chain(failures.iter().cloned())
            .collect();
        for finding in findings
            .iter()
            .filter(|f| !self.reported.contains(&f.to_string()))
        {
            match finding.severity {
                Severity::Error => error!("{}", without_severity(finding)),
                Severity::Warning => warn!("{}", without_severity(finding)),
            }
        }
        for failure in failures.iter().filter(|f| !self.reported.contains(*f)) {
            error!("{failure}");
        }
        for over in self.reported.difference(&now) {
            info!("no longer: {over}");
        }
        self.failed = !failures.is_empty() || findings.iter().any(|f| f.severity == Severity::Error);
        self.reported = now;
    }

    /// A pass that came to nothing.
    fn report_failure(&mut self, e: &Error) {
        let text = chain(e);
        if self.reported.insert(text.clone()) {
            error!("{text}; what was published stays");
        }
        self.last = None;
    }
}

fn without_severity(finding: &Finding) -> String {
    match &finding.place {
        Some(place) => format!("{place}: {}", finding.problem),
        None => finding.problem.to_string(),
    }
}

/// An error with its causes.
fn chain(e: &dyn std::error::Error) -> String {
    let mut text = e.to_string();
    let mut next = e.source();
    while let Some(cause) = next {
        text = format!("{text}: {cause}");
        next = cause.source();
    }
    text
}
