//! The loop: what triggers a pass, in which order the subsystems take part in it, and what is reported.
//!
//! A pass is level-triggered. It observes the host anew, so a pass that changed something is followed by another
//! one until nothing is left to do: the first may make the tunnel device, the second routes to it.

mod pass;
pub mod triggers;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use fabedge_common::config::{NodeConfig, Via};
use futures_util::FutureExt as _;
use tokio::sync::{Notify, watch};
use tracing::{info, warn};

use crate::args::Role;
use crate::memory;
use crate::source::{self, Current, Origin};
use crate::status::Status;
pub use pass::Subsystems;

/// Events that arrive within this time are taken together.
const DEBOUNCE: Duration = Duration::from_millis(50);

/// How many times as long as a pass took it is until the next one, if nothing but notices asks for it.
const PAUSES: u32 = 2;

/// After this many passes in a row that all changed something, the engine waits for the next event or resync:
/// somebody else keeps changing what we change.
const MAX_CONSECUTIVE: u32 = 8;

/// How the engine runs.
#[derive(Debug)]
pub struct Settings {
    /// The role.
    pub role: Role,
    /// What the desired state depends on besides document and host.
    pub options: crate::desired::Options,
    /// Where the status goes.
    pub run_dir: PathBuf,
    /// The longest time between two passes.
    pub resync: Duration,
}

/// Runs until `stop` resolves. What was applied stays applied: a restart loses no packet.
///
/// `trigger` tells that something happened that a pass should look at; `status` receives a value after every
/// pass.
pub async fn run(
    settings: Settings,
    mut subsystems: Subsystems,
    mut source: watch::Receiver<Current>,
    trigger: Arc<Notify>,
    status: watch::Sender<Status>,
    stop: impl Future<Output = ()>,
) {
    let mut reporter = Reporter {
        settings,
        status,
        known: BTreeMap::new(),
        generation: None,
        passes: 0,
    };
    let mut consecutive = 0;
    let mut large = false;
    tokio::pin!(stop);
    loop {
        let current = source.borrow_and_update().clone();
        let started = Instant::now();
        let changed = match &current.config {
            Some((config, origin)) => {
                let Settings { role, options, .. } = &reporter.settings;
                let report = match subsystems.change(*role, config, options).await {
                    Some(report) => {
                        // The look at what was changed is the first of those that follow.
                        consecutive = 0;
                        report
                    }
                    None => {
                        // Whatever was told of until now, this pass will see.
                        let _ = trigger.notified().now_or_never();
                        let report = subsystems.reconcile(*role, config, options).await;
                        large |= report.changed;
                        report
                    }
                };
                let changed = report.changed;
                if reporter.generation != Some(config.generation) && report.problems.is_empty() {
                    reporter.generation = Some(config.generation);
                    let seconds = current.seen.map(|seen| seen.elapsed().as_secs_f64());
                    info!(generation = config.generation, seconds, "document applied");
                }
                reporter.report(&current, Some((config, *origin)), report, started.elapsed());
                changed
            }
            None => {
                reporter.report(&current, None, pass::Report::default(), Duration::ZERO);
                false
            }
        };
        if large && !changed {
            // Nothing is left to do for now. What a change by itself took the next one takes again.
            memory::give_back();
            large = false;
        }
        consecutive = if changed { consecutive + 1 } else { 0 };
        // With thousands of peers a pass takes its time, and notices come all the while. The first look at what was changed
        // does not wait: changes to the document are carried out one by one only once all is known to be in place.
        let pause = match consecutive {
            1 => DEBOUNCE,
            _ => DEBOUNCE.max(started.elapsed() * PAUSES),
        };
        let wait = if changed && consecutive < MAX_CONSECUTIVE {
            pause
        } else {
            subsystems
                .next_attempt()
                .unwrap_or(reporter.settings.resync)
                .min(reporter.settings.resync)
        };
        tokio::select! {
            () = &mut stop => return,
            result = source.changed() => if result.is_err() { return },
            () = trigger.notified() => tokio::select! {
                () = &mut stop => return,
                result = source.changed() => if result.is_err() { return },
                () = tokio::time::sleep(pause) => {}
            },
            () = tokio::time::sleep(wait) => {}
        }
    }
}

/// Turns reports into status and log lines; a problem is logged when it appears and when it is gone, not at
/// every pass.
struct Reporter {
    settings: Settings,
    status: watch::Sender<Status>,
    known: BTreeMap<String, Vec<String>>,
    /// Of the document that was applied last.
    generation: Option<u64>,
    passes: u64,
}

impl Reporter {
    fn report(
        &mut self,
        current: &Current,
        config: Option<(&Arc<NodeConfig>, Origin)>,
        report: pass::Report,
        took: Duration,
    ) {
        for (subsystem, problems) in &report.problems {
            if self.known.get(subsystem) != Some(problems) {
                for problem in problems {
                    warn!(subsystem, problem, "degraded");
                }
            }
        }
        for subsystem in self
            .known
            .keys()
            .filter(|name| !report.problems.contains_key(*name))
        {
            info!(subsystem, "works again");
        }
        self.known.clone_from(&report.problems);
        self.passes += u64::from(config.is_some());

        let told = |error: &Arc<source::Error>| crate::status::chain(error.as_ref());
        let relayed = config
            .iter()
            .flat_map(|(config, _)| &config.peers)
            .filter(|p| p.via == Via::Relay);
        let status = Status {
            role: self.settings.role.name().to_owned(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            name: config.map(|(config, _)| config.endpoint.name.clone()),
            generation: config.map_or(0, |(config, _)| config.generation),
            origin: config.map(|(_, origin)| origin),
            document_problem: current.problem.as_ref().map(told),
            document_outage: current.outage.as_ref().map(told),
            tunnel: report.tunnel,
            fast_path: report.fast_path,
            foreign_programs: report.foreign_programs,
            spread: report.spread,
            problems: report.problems,
            peers: report
                .peers
                .map_or_else(|| Arc::clone(&self.status.borrow().peers), Arc::new),
            relayed: relayed.map(|peer| peer.endpoint.name.clone()).collect(),
            passes: self.passes,
            pass_seconds: took.as_secs_f64(),
            updated: SystemTime::now()
                .duration_since(UNIX_EPOCH)
                .map_or(0, |since| since.as_secs()),
        };
        if let Err(error) = status.write(&self.settings.run_dir) {
            warn!(%error, dir = %self.settings.run_dir.display(), "cannot write the status");
        }
        self.status.send_replace(status);
    }
}
