//! The front end over a folder of manifests.

mod operator;
mod watch;

use std::path::{Path, PathBuf};
use std::time::Duration;
use std::{fs, io};

use time::OffsetDateTime;
use tracing::info;

use crate::args;
use crate::finding::Finding;
use crate::observe::memory;
use crate::observe::{self, Memory, Observation};
use crate::publish::{self, Output, files};
use crate::topology::{self, Previous, Topology, render};

/// What the manifests said when they were last good, in the output folder: a restart must not lose it. No node can
/// have that name.
const LAST_GOOD: &str = "_last-good.json";

/// Why a pass came to nothing. What was published before stays.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The folder could not be listed.
    #[error(transparent)]
    Folder(#[from] observe::folder::Error),
    /// Two operators would undo each other's work.
    #[error(
        "{} is held by another operator that writes to the same folder: stop it, or choose another --out",
        path.display()
    )]
    Busy {
        /// The lock file.
        path: PathBuf,
    },
    /// What an earlier process knew could not be read or written.
    #[error("{action} {}", path.display())]
    State {
        /// What was attempted.
        action: &'static str,
        /// On which file.
        path: PathBuf,
        /// Why it failed.
        source: io::Error,
    },
    /// What the process knows could not be serialized.
    #[error(transparent)]
    Memory(#[from] memory::Error),
    /// The output folder could not be read.
    #[error(transparent)]
    Output(#[from] publish::Error),
    /// Signals could not be awaited.
    #[error("installing the handler of SIGTERM")]
    Signal(#[source] io::Error),
}

/// Held while an operator writes to the output folder; freed by the kernel when it ends, however it ends.
const LOCK: &str = "_lock";

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
    let mut memory = match &args.out {
        Some(out) => recall(out)?.unwrap_or_default(),
        None => Memory::default(),
    };
    let observation = memory.absorb(&observe::read(&args.folder)?);
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

/// The memory of an earlier process, if there was one. One that cannot be used is as good as none, and is said.
fn recall(out: &Path) -> Result<Option<Memory>, Error> {
    let path = out.join(LAST_GOOD);
    match fs::read_to_string(&path) {
        Ok(text) => Ok(Memory::restore(&text)
            .inspect_err(|e| tracing::warn!("{}: {e}: going by the manifests alone", path.display()))
            .ok()),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(source) => Err(Error::State {
            action: "reading",
            path,
            source,
        }),
    }
}

/// Takes the output folder for this process, as long as the file lives.
fn lock(out: &Path) -> Result<fs::File, Error> {
    let path = out.join(LOCK);
    let failed = |source| Error::State {
        action: "locking",
        path: path.clone(),
        source,
    };
    files::create_folder(out, 0o755).map_err(failed)?;
    let file = fs::File::create(&path).map_err(failed)?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(fs::TryLockError::WouldBlock) => Err(Error::Busy { path }),
        Err(fs::TryLockError::Error(source)) => Err(failed(source)),
    }
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
    let _lock = lock(&args.out)?;
    // Before the first reading, so that no change falls between the two.
    let mut watch = watch::Watch::new(&args.folder, Duration::from_secs(args.poll)).map_err(Error::Signal)?;
    let mut operator = operator::Operator::new(args)?;
    operator.pass(clock())?;
    if args.once {
        return Ok(operator.failed());
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
