//! A program that runs on in a place, with its output in a file.

use std::fs::{self, File};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use rustix::process::{Pid, Signal};

use crate::command;
use crate::place::Place;
use crate::sys;

/// A running program.
#[derive(Debug)]
pub struct Daemon {
    name: String,
    child: Child,
    log: PathBuf,
    /// Where this run's output starts in the log, which earlier runs share.
    log_start: u64,
}

impl Daemon {
    /// Starts `words` in `place`, its output appended to `log`.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn start(
        name: &str,
        place: &Place,
        words: &[&str],
        environment: &[(&str, &str)],
        log: &Path,
    ) -> Result<Self> {
        let (program, arguments) = words.split_first().context("an empty command line")?;
        let output = File::options()
            .create(true)
            .append(true)
            .open(log)
            .with_context(|| format!("opening {}", log.display()))?;
        let log_start = output.metadata().context("measuring a log")?.len();
        let error = output.try_clone().context("sharing a log")?;
        let mut command = Command::new(program);
        command
            .args(arguments)
            .envs(environment.iter().copied())
            .stdin(Stdio::null())
            .stdout(output)
            .stderr(error)
            // A Ctrl-C at the terminal is for the lab, which then ends its programs in order.
            .process_group(0);
        sys::unblock_signals(&mut command);
        let child = place
            .run(|| command.spawn())?
            .with_context(|| format!("starting `{}` in {}", command::show(&command), place.name))?;
        Ok(Self {
            name: name.to_owned(),
            child,
            log: log.to_owned(),
            log_start,
        })
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Whether it still runs.
    ///
    /// # Errors
    /// When the kernel does not say.
    pub fn runs(&mut self) -> Result<bool> {
        Ok(self
            .child
            .try_wait()
            .with_context(|| format!("asking after {}", self.name))?
            .is_none())
    }

    /// What this run wrote so far.
    pub fn output(&self) -> String {
        let bytes = fs::read(&self.log).unwrap_or_default();
        let start = usize::try_from(self.log_start).unwrap_or(0).min(bytes.len());
        String::from_utf8_lossy(&bytes[start..]).into_owned()
    }

    /// Waits until `ready` holds; fails early when the program ends.
    ///
    /// # Errors
    /// When it ends, or is not ready within `limit`; with the end of its output.
    pub fn wait_until(&mut self, what: &str, limit: Duration, mut ready: impl FnMut() -> bool) -> Result<()> {
        let end = Instant::now() + limit;
        while !ready() {
            let runs = self.runs()?;
            if !runs || Instant::now() > end {
                bail!(
                    "{} {} before {what}; the end of {}:\n{}",
                    self.name,
                    if runs {
                        "did not come within the time"
                    } else {
                        "ended"
                    },
                    self.log.display(),
                    tail(&self.output(), 15)
                );
            }
            thread::sleep(Duration::from_millis(10));
        }
        Ok(())
    }

    /// Sends SIGTERM and waits for the end, at most `limit`; gives the exit code.
    ///
    /// # Errors
    /// When it does not end; it is killed then.
    pub fn terminate(mut self, limit: Duration) -> Result<Option<i32>> {
        self.signal(Signal::TERM)?;
        let end = Instant::now() + limit;
        while Instant::now() < end {
            if let Some(status) = self
                .child
                .try_wait()
                .with_context(|| format!("waiting for {}", self.name))?
            {
                return Ok(status.code());
            }
            thread::sleep(Duration::from_millis(5));
        }
        let name = self.name.clone();
        self.kill()?;
        bail!("{name} did not end within {limit:?} of SIGTERM")
    }

    /// Has it stand still, as it is.
    ///
    /// # Errors
    /// When the signal cannot be sent.
    pub fn pause(&self) -> Result<()> {
        self.signal(Signal::STOP)
    }

    /// Has it go on after [`Daemon::pause`].
    ///
    /// # Errors
    /// When the signal cannot be sent.
    pub fn resume(&self) -> Result<()> {
        self.signal(Signal::CONT)
    }

    /// Sends SIGKILL and waits for the end.
    ///
    /// # Errors
    /// When the signal cannot be sent.
    pub fn kill(mut self) -> Result<()> {
        self.child
            .kill()
            .and_then(|()| self.child.wait())
            .with_context(|| format!("killing {}", self.name))?;
        Ok(())
    }

    fn signal(&self, signal: Signal) -> Result<()> {
        let pid = i32::try_from(self.child.id())
            .ok()
            .and_then(Pid::from_raw)
            .with_context(|| format!("{} has no process id", self.name))?;
        rustix::process::kill_process(pid, signal)
            .with_context(|| format!("sending {signal:?} to {}", self.name))
    }

    /// Memory that is resident now, in KiB.
    ///
    /// # Errors
    /// When the program has ended.
    pub fn resident_kib(&self) -> Result<u64> {
        let path = format!("/proc/{}/status", self.child.id());
        let status = fs::read_to_string(&path).with_context(|| format!("reading {path}"))?;
        status
            .lines()
            .find_map(|line| {
                line.strip_prefix("VmRSS:")?
                    .trim()
                    .strip_suffix("kB")?
                    .trim()
                    .parse()
                    .ok()
            })
            .with_context(|| format!("{path} has no VmRSS"))
    }
}

/// The last `lines` lines of a text.
pub fn tail(text: &str, lines: usize) -> String {
    let all: Vec<&str> = text.lines().collect();
    all[all.len().saturating_sub(lines)..].join("\n")
}
