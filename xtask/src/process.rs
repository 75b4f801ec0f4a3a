//! Processes that outlive the command that started them: how a later command recognises and ends them.

use anyhow::{Context, Result};
use rustix::process::{Pid, Signal, kill_process};
use serde::{Deserialize, Serialize};

/// A process, told apart from a later one with the same number.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct Process {
    /// Its number.
    pub id: u32,
    /// When it started, in clock ticks since boot.
    started: u64,
}

impl Process {
    /// A process that lives now.
    pub fn of(id: u32) -> Result<Process> {
        let started = started(id).with_context(|| format!("process {id} ended at once"))?;
        Ok(Process { id, started })
    }

    /// Whether it still runs.
    pub fn lives(&self) -> bool {
        started(self.id) == Some(self.started)
    }

    /// Ends it; nothing happens to another process that has its number now.
    pub fn kill(&self) {
        if self.lives()
            && let Some(pid) = i32::try_from(self.id).ok().and_then(Pid::from_raw)
        {
            // It may have ended by itself between the check and here.
            kill_process(pid, Signal::KILL).unwrap_or_default();
        }
    }

    /// The memory that it occupies, in KiB.
    pub fn memory(&self) -> Option<u64> {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.id)).ok()?;
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
        line.trim().strip_suffix("kB")?.trim().parse().ok()
    }
}

/// The start time of a process that runs. A zombie has ended, unless it is but the first thread that has: the others
/// still hold its files and ports.
fn started(id: u32) -> Option<u64> {
    let stat = std::fs::read_to_string(format!("/proc/{id}/stat")).ok()?;
    start_time(&stat)
}

fn start_time(stat: &str) -> Option<u64> {
    // The name in parentheses may hold anything; after it come the state, as the 18th field the number of threads, as
    // the 20th the start time.
    let (_, fields) = stat.rsplit_once(") ")?;
    let mut fields = fields.split_whitespace();
    let zombie = fields.next() == Some("Z");
    let threads: u32 = fields.nth(16)?.parse().ok()?;
    if zombie && threads <= 1 {
        return None;
    }
    fields.nth(1)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_lives_until_it_is_killed() {
        let mut child = std::process::Command::new("sleep").arg("60").spawn().unwrap();
        let process = Process::of(child.id()).unwrap();
        assert!(process.lives());
        assert!(process.memory().unwrap() > 0);
        let successor = Process {
            id: process.id,
            started: process.started + 1,
        };
        assert!(!successor.lives());
        successor.kill();
        assert!(
            process.lives(),
            "another process with the same number must survive"
        );
        process.kill();
        child.wait().unwrap();
        assert!(!process.lives());
        assert_eq!(process.memory(), None);
    }

    #[test]
    fn a_zombie_has_ended_when_its_last_thread_has() {
        let stat = |state, threads| {
            format!("7 (a) b) {state} 1 7 7 0 -1 4 0 0 0 0 1 2 3 4 20 0 {threads} 0 4711 8 9")
        };
        assert_eq!(start_time(&stat("S", 1)), Some(4711));
        assert_eq!(start_time(&stat("Z", 3)), Some(4711));
        assert_eq!(start_time(&stat("Z", 1)), None);
    }
}
