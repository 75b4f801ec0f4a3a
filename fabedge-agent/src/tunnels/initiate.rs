//! Brings tunnels up in the background: bounded in flight, with back-off and jitter per peer, until each carries what
//! it should. A peer that has no connection for us yet refuses, and one that still has its older document agrees to
//! less; both pass by themselves.

use std::collections::{BTreeMap, VecDeque};
use std::hash::{BuildHasher, Hasher, RandomState};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::watch;
use tokio::task::{JoinHandle, JoinSet};
use tokio::time::Instant;

use super::messages::Initiate;
use super::plan::{ByName, Need, child_to_initiate, need};
use super::vici::{Connection, Error};
use crate::desired::tunnels;

/// How many initiations charon is busy with on our behalf; each holds one of its threads.
const IN_FLIGHT: usize = 12;

/// How long charon is waited for; it goes on by itself after that.
const PATIENCE: Duration = Duration::from_secs(1);

/// First and longest pause between two attempts.
const BACK_OFF: [Duration; 2] = [Duration::from_millis(200), Duration::from_secs(30)];

/// Longest pause before looking again how an initiation that charon is busy with came out.
const LOOK_AGAIN: Duration = Duration::from_secs(2);

/// For how long a look at charon's SAs tells what to initiate: with thousands of them it takes longer than an initiation.
const FRESH: Duration = Duration::from_secs(1);

/// Connections to bring up, by name.
pub type Targets = tunnels::Connections;

/// What went wrong last, by connection.
pub type Failures = BTreeMap<String, String>;

/// The background task. Dropping it ends it.
#[derive(Debug)]
pub struct Initiator {
    targets: watch::Sender<Targets>,
    failures: Arc<Mutex<Failures>>,
    task: JoinHandle<()>,
}

impl Drop for Initiator {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Initiator {
    /// Starts the task, which asks charon at `socket`.
    pub fn new(socket: PathBuf) -> Self {
        let (targets, receiver) = watch::channel(Targets::new());
        let failures = Arc::new(Mutex::new(Failures::new()));
        let task = tokio::spawn(run(socket, receiver, Arc::clone(&failures)));
        Self {
            targets,
            failures,
            task,
        }
    }

    /// Says what is to be brought up; what is no longer named is left alone. Returns what is new.
    pub fn set(&self, targets: Targets) -> Vec<String> {
        let mut new = Vec::new();
        self.targets.send_if_modified(|current| {
            new.extend(
                targets
                    .iter()
                    .filter(|(name, to)| current.get(*name) != Some(to))
                    .map(|(name, _)| name.clone()),
            );
            let changed = *current != targets;
            *current = targets;
            changed
        });
        new
    }

    /// What went wrong last with each of the connections that are still to be brought up.
    pub fn failures(&self) -> Failures {
        self.failures
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }
}

/// Where one target stands.
struct Progress {
    connection: Arc<tunnels::Connection>,
    attempts: u32,
    due: Instant,
    busy: bool,
}

/// What a look at charon's SAs told.
struct Look {
    since: Instant,
    /// What is to be initiated, and with which child.
    waiting: VecDeque<(String, String)>,
}

async fn run(socket: PathBuf, mut targets: watch::Receiver<Targets>, failures: Arc<Mutex<Failures>>) {
    let mut progress: BTreeMap<String, Progress> = BTreeMap::new();
    let mut attempts: JoinSet<(String, Result<(), Error>)> = JoinSet::new();
    let mut look = Look {
        since: Instant::now(),
        waiting: VecDeque::new(),
    };
    loop {
        adopt(&mut progress, &targets.borrow_and_update(), &failures);
        let next = progress.values().filter(|p| !p.busy).map(|p| p.due).min();
        let full = attempts.len() >= IN_FLIGHT;
        tokio::select! {
            changed = targets.changed() => if changed.is_err() { return },
            Some(done) = attempts.join_next() => {
                if let Ok((name, result)) = done {
                    record(&mut progress, &name, result, &failures);
                }
            }
            () = tokio::time::sleep_until(next.unwrap_or_else(Instant::now)), if next.is_some() && !full => {
                if look.waiting.is_empty() || look.since.elapsed() > FRESH {
                    look.waiting = waiting(&socket, &mut progress, &failures).await;
                    look.since = Instant::now();
                }
                start(&socket, &mut look.waiting, &mut progress, &mut attempts);
            }
        }
    }
}

fn adopt(progress: &mut BTreeMap<String, Progress>, targets: &Targets, failures: &Mutex<Failures>) {
    progress.retain(|name, p| targets.get(name) == Some(&p.connection));
    for (name, connection) in targets {
        progress.entry(name.clone()).or_insert_with(|| Progress {
            connection: connection.clone(),
            attempts: 0,
            due: Instant::now(),
            busy: false,
        });
    }
    failures
        .lock()
        .unwrap_or_else(PoisonError::into_inner)
        .retain(|name, _| targets.contains_key(name));
}

fn record(
    progress: &mut BTreeMap<String, Progress>,
    name: &str,
    result: Result<(), Error>,
    failures: &Mutex<Failures>,
) {
    let Some(p) = progress.get_mut(name) else { return };
    p.busy = false;
    p.due = Instant::now() + pause(p.attempts);
    // A peer that does not answer is asked again for as long as it takes, by charon and then by us: that costs it
    // nothing. One that refuses has work with it.
    if !result.as_ref().is_err_and(is_unanswered) {
        p.attempts = p.attempts.saturating_add(1);
    }
    let mut failures = failures.lock().unwrap_or_else(PoisonError::into_inner);
    match result {
        // It may carry less than it should; that is seen when it is looked at again.
        Ok(()) => {
            failures.remove(name);
        }
        Err(error) => {
            tracing::debug!(connection = name, attempt = p.attempts, error = %error, "the tunnel did not come up");
            failures.insert(name.to_owned(), error.to_string());
        }
    }
}

/// Looks at what charon has, and says what of it that is due is to be initiated.
async fn waiting(
    socket: &Path,
    progress: &mut BTreeMap<String, Progress>,
    failures: &Mutex<Failures>,
) -> VecDeque<(String, String)> {
    let mut waiting = VecDeque::new();
    let now = Instant::now();
    let ikes = match super::observe_ikes(socket).await {
        Ok(ikes) => ikes,
        Err(error) => {
            // The passes report this; here it only takes time.
            tracing::debug!(error = %error, "charon cannot be asked about its SAs");
            for p in progress.values_mut().filter(|p| !p.busy && p.due <= now) {
                p.due = now + LOOK_AGAIN;
            }
            return waiting;
        }
    };
    let by_name = ByName::new(&ikes);
    for (name, p) in progress.iter_mut().filter(|(_, p)| !p.busy && p.due <= now) {
        let ikes = by_name.of(name);
        match need(&p.connection, ikes) {
            Need::Nothing => {
                p.attempts = 0;
                p.due = now + BACK_OFF[1];
                failures
                    .lock()
                    .unwrap_or_else(PoisonError::into_inner)
                    .remove(name);
            }
            Need::Patience => p.due = now + pause(p.attempts.max(2)).min(LOOK_AGAIN),
            Need::Initiation => match child_to_initiate(&p.connection, ikes) {
                Some(child) => waiting.push_back((name.clone(), child)),
                // The next pass closes one of two that carry the same.
                None => p.due = now + pause(p.attempts).min(LOOK_AGAIN),
            },
        }
    }
    waiting
}

/// Starts what is waiting, as much of it as charon is to be busy with.
fn start(
    socket: &Path,
    waiting: &mut VecDeque<(String, String)>,
    progress: &mut BTreeMap<String, Progress>,
    attempts: &mut JoinSet<(String, Result<(), Error>)>,
) {
    while attempts.len() < IN_FLIGHT {
        let Some((name, child)) = waiting.pop_front() else {
            return;
        };
        // It may be no longer wanted, or wanted otherwise.
        let wanted = |p: &&mut Progress| !p.busy && p.connection.children().contains(&child);
        if let Some(p) = progress.get_mut(&name).filter(wanted) {
            p.busy = true;
            attempts.spawn(attempt(socket.to_owned(), name, child));
        }
    }
}

async fn attempt(socket: PathBuf, ike: String, child: String) -> (String, Result<(), Error>) {
    let result = initiate(&socket, &ike, &child).await;
    (ike, result)
}

#[derive(serde::Deserialize)]
struct Log {
    #[serde(default)]
    msg: String,
}

async fn initiate(socket: &Path, ike: &str, child: &str) -> Result<(), Error> {
    let mut said = None;
    let request = Initiate {
        ike,
        child,
        timeout: u32::try_from(PATIENCE.as_millis()).unwrap_or(u32::MAX),
        loglevel: 1,
    };
    let mut connection = Connection::open(socket).await?;
    let result = connection
        .stream("initiate", "control-log", &request, PATIENCE, |log: Log| {
            if is_telling(&log.msg) {
                said = Some(log.msg);
            }
        })
        .await;
    match (result, said) {
        (Err(Error::Refused { command, reason }), Some(said)) => Err(Error::Refused {
            command,
            reason: format!("{reason}: {said}"),
        }),
        (result, _) => result,
    }
}

/// Whether charon is still waiting for the peer's answer.
fn is_unanswered(error: &Error) -> bool {
    matches!(error, Error::Refused { reason, .. } if reason.contains("not established after"))
}

/// Whether a line of charon's log says why an initiation fails.
fn is_telling(line: &str) -> bool {
    [
        "notify error",
        "no trusted",
        "no private key",
        "not found",
        "unable to",
        "constraint",
        "retransmit",
        "expired",
    ]
    .iter()
    .any(|word| line.contains(word))
}

/// The pause before attempt number `attempts` + 1: doubled each time, spread by a quarter either way.
fn pause(attempts: u32) -> Duration {
    let base = BACK_OFF[0].saturating_mul(1 << attempts.min(16)).min(BACK_OFF[1]);
    // Seeded anew by the operating system for every value.
    let random = RandomState::new().build_hasher().finish() % 512;
    base * (768 + u32::try_from(random).unwrap_or(0)) / 1024
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_grow_to_a_limit_and_differ() {
        for attempts in 0..40 {
            let base = BACK_OFF[0].saturating_mul(1 << attempts.min(16)).min(BACK_OFF[1]);
            for _ in 0..50 {
                let pause = pause(attempts);
                assert!(
                    pause >= base * 3 / 4 && pause <= base * 5 / 4,
                    "{attempts}: {pause:?}"
                );
            }
        }
        let distinct: std::collections::BTreeSet<_> = (0..50).map(|_| pause(9)).collect();
        assert!(distinct.len() > 10);
    }
}
