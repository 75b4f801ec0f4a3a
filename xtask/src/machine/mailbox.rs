//! The mailbox between this side and a machine's PID 1: a folder that both see.
//!
//! `jobs/<id>/` holds `job.json`, then `stdout`, `stderr` and, when the program has ended, `exit`. The folder
//! gets its name when it is complete. A file `kill` in it ends the program. Both sides look again and again:
//! there are no change notices across virtiofs.

use std::fs::File;
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};

use crate::interrupt::Interrupt;

/// What the other side shall run.
#[derive(Debug, Deserialize, Serialize)]
pub struct Order {
    /// The program and its arguments.
    pub command: Vec<String>,
    /// Set on top of the machine's own environment.
    pub env: Vec<(String, String)>,
}

/// A job on the way.
#[derive(Debug)]
pub struct Job {
    folder: PathBuf,
    ended: bool,
}

const PAUSE: Duration = Duration::from_millis(15);
/// How often the machine itself is checked while a job runs.
const CHECK: Duration = Duration::from_millis(500);

impl Job {
    /// Puts an order into the mailbox.
    pub fn post(mailbox: &Path, command: &[String], env: &[(String, String)]) -> Result<Job> {
        // Unique among the processes that use a kept machine, and within this one.
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let id = format!("{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        let jobs = mailbox.join("jobs");
        let part = jobs.join(format!("{id}.part"));
        std::fs::create_dir(&part).with_context(|| format!("creating {}", part.display()))?;
        let order = Order {
            command: command.to_vec(),
            env: env.to_vec(),
        };
        std::fs::write(part.join("job.json"), serde_json::to_vec(&order)?)?;
        for name in ["stdout", "stderr"] {
            File::create(part.join(name))?;
        }
        let folder = jobs.join(id);
        std::fs::rename(&part, &folder).with_context(|| format!("posting {}", folder.display()))?;
        Ok(Job { folder, ended: false })
    }

    /// Passes the output on as it comes and returns the exit code; gives up when `alive` fails.
    pub fn follow(
        mut self,
        out: &mut dyn Write,
        err: &mut dyn Write,
        interrupt: &Interrupt,
        alive: impl Fn() -> Result<()>,
    ) -> Result<i32> {
        let mut stdout = File::open(self.folder.join("stdout"))?;
        let mut stderr = File::open(self.folder.join("stderr"))?;
        let exit = self.folder.join("exit");
        let mut checked = Instant::now();
        loop {
            let ended = exit.exists();
            let moved = pass_on(&mut stdout, out)? + pass_on(&mut stderr, err)?;
            interrupt.check()?;
            if ended {
                self.ended = true;
                let code = std::fs::read_to_string(&exit)?;
                return code
                    .trim()
                    .parse()
                    .with_context(|| format!("{} holds {code:?}", exit.display()));
            }
            if checked.elapsed() > CHECK {
                alive()?;
                checked = Instant::now();
            }
            if moved == 0 {
                std::thread::sleep(PAUSE);
            }
        }
    }
}

impl Drop for Job {
    fn drop(&mut self) {
        let tidied = if self.ended {
            std::fs::remove_dir_all(&self.folder)
        } else {
            File::create(self.folder.join("kill")).map(drop)
        };
        if let Err(problem) = tidied
            && self.folder.exists()
        {
            eprintln!("warning: {}: {problem}", self.folder.display());
        }
    }
}

/// Copies what is new in `from`; returns how much it was.
fn pass_on(from: &mut File, to: &mut dyn Write) -> Result<u64> {
    let mut bytes = Vec::new();
    from.read_to_end(&mut bytes)?;
    to.write_all(&bytes)?;
    to.flush()?;
    Ok(bytes.len() as u64)
}
