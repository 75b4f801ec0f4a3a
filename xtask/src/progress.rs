//! One line per step with its seconds, and long output in a log file that a failure names.

use std::fs::{File, OpenOptions};
use std::io::{IsTerminal, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

/// Lines of a failed command's log that the error repeats.
const TAIL_LINES: usize = 15;

/// Runs `work` as one visible step: its name at once, its seconds when it ends.
pub fn step<T>(name: &str, work: impl FnOnce() -> Result<T>) -> Result<T> {
    let started = Instant::now();
    let ticker = Ticker::start(name, started);
    let outcome = work();
    ticker.stop();
    let sign = if outcome.is_ok() { "ok" } else { "FAILED" };
    eprintln!("  {name} ... {sign} ({:.1} s)", started.elapsed().as_secs_f64());
    outcome
}

/// Says that a step begins, and on a terminal keeps its seconds ticking on one line.
struct Ticker {
    stop: Option<(Sender<()>, JoinHandle<()>)>,
}

impl Ticker {
    fn start(name: &str, started: Instant) -> Ticker {
        if !std::io::stderr().is_terminal() {
            eprintln!("  {name} ...");
            return Ticker { stop: None };
        }
        let (sender, receiver) = channel();
        let name = name.to_owned();
        let thread = std::thread::spawn(move || {
            loop {
                eprint!("\r  {name} ... {:.0} s ", started.elapsed().as_secs_f64());
                if receiver.recv_timeout(Duration::from_secs(1)) != Err(RecvTimeoutError::Timeout) {
                    eprint!("\r\x1b[K");
                    return;
                }
            }
        });
        Ticker {
            stop: Some((sender, thread)),
        }
    }

    fn stop(self) {
        if let Some((sender, thread)) = self.stop {
            drop(sender);
            if thread.join().is_err() {
                eprintln!();
            }
        }
    }
}

/// The file that receives the output of long commands.
pub struct Log {
    path: PathBuf,
}

impl Log {
    /// Appends to `path`, whose folder is made when it is missing.
    pub fn at(path: impl Into<PathBuf>) -> Result<Log> {
        let path = path.into();
        if let Some(folder) = path.parent() {
            std::fs::create_dir_all(folder).with_context(|| format!("creating {}", folder.display()))?;
        }
        Ok(Log { path })
    }

    fn open(&self) -> Result<File> {
        OpenOptions::new()
            .create(true)
            .append(true)
            .open(&self.path)
            .with_context(|| format!("opening the log {}", self.path.display()))
    }

    /// Runs a command with its output in the log; an error repeats the end of that output and names the log.
    pub fn run(&self, command: &mut Command) -> Result<()> {
        let mut file = self.open()?;
        writeln!(file, "$ {command:?}")?;
        let before = file.metadata()?.len();
        let status = command
            .stdin(Stdio::null())
            .stdout(file.try_clone()?)
            .stderr(file)
            .status()
            .with_context(|| format!("starting {}", command.get_program().display()))?;
        if status.success() {
            return Ok(());
        }
        bail!(
            "{} ended with {status}; the end of {}:\n{}",
            shown(command),
            self.path.display(),
            tail(&self.path, before)
        )
    }
}

/// The output of a command as text; an error carries what it wrote to stderr.
pub fn output(command: &mut Command) -> Result<String> {
    let output = command
        .stdin(Stdio::null())
        .output()
        .with_context(|| format!("starting {}", command.get_program().display()))?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        bail!("{} ended with {}: {}", shown(command), output.status, said.trim());
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// Runs a command on our own terminal and fails when it fails.
pub fn attached(command: &mut Command) -> Result<()> {
    let status = command
        .stdin(Stdio::null())
        .status()
        .with_context(|| format!("starting {}", command.get_program().display()))?;
    if !status.success() {
        bail!("{} ended with {status}", shown(command));
    }
    Ok(())
}

/// The command as a person would type it.
fn shown(command: &Command) -> String {
    let words = std::iter::once(command.get_program()).chain(command.get_args());
    let mut text = words
        .map(|word| word.to_string_lossy())
        .collect::<Vec<_>>()
        .join(" ");
    if text.chars().count() > 120 {
        text = text.chars().take(117).collect::<String>() + "...";
    }
    text
}

/// The last lines of a file, from `start` on.
pub fn tail(path: &Path, start: u64) -> String {
    let bytes = std::fs::read(path).unwrap_or_default();
    let text = String::from_utf8_lossy(bytes.get(start as usize..).unwrap_or_default()).into_owned();
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(TAIL_LINES)..].join("\n")
}
