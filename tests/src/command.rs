//! Runs a command to its end, in bounded time.

use std::io::{Read, Write};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

/// What a command left behind.
#[derive(Clone, Debug)]
pub struct Output {
    /// Its exit code; none when a signal ended it.
    pub code: Option<i32>,
    /// What it wrote to its standard output.
    pub stdout: String,
    /// What it wrote to its standard error.
    pub stderr: String,
}

impl Output {
    /// Whether the exit code was 0.
    pub fn ok(&self) -> bool {
        self.code == Some(0)
    }

    /// Both outputs, for a message to a person.
    pub fn text(&self) -> String {
        format!("{}{}", self.stdout, self.stderr).trim().to_owned()
    }
}

/// Runs `command` with `input` on its standard input, and ends it after `limit`.
///
/// # Errors
/// When it cannot be started, or does not end within `limit`.
pub fn run(command: &mut Command, input: &str, limit: Duration) -> Result<Output> {
    let shown = show(command);
    let mut child = command
        .stdin(if input.is_empty() {
            Stdio::null()
        } else {
            Stdio::piped()
        })
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .with_context(|| format!("starting `{shown}`"))?;
    let stdin = child.stdin.take();
    let stdout = child.stdout.take();
    let stderr = child.stderr.take();
    thread::scope(|scope| {
        let out = scope.spawn(|| slurp(stdout));
        let err = scope.spawn(|| slurp(stderr));
        scope.spawn(move || {
            if let Some(mut pipe) = stdin {
                // A command that ends without reading all of its input says why in its exit code.
                drop(pipe.write_all(input.as_bytes()));
            }
        });
        let code = wait(&mut child, limit);
        if code.is_none() {
            drop(child.kill());
            drop(child.wait());
        }
        let output = |code| Output {
            code,
            stdout: out.join().unwrap_or_default(),
            stderr: err.join().unwrap_or_default(),
        };
        match code {
            Some(code) => Ok(output(code)),
            None => bail!("`{shown}` did not end within {limit:?}: {}", output(None).text()),
        }
    })
}

/// [`run`] without input; a failed command is an error with what it said.
///
/// # Errors
/// As [`run`], and when the exit code is not 0.
pub fn must(command: &mut Command, limit: Duration) -> Result<String> {
    must_with(command, "", limit)
}

/// [`run`]; a failed command is an error with what it said.
///
/// # Errors
/// As [`run`], and when the exit code is not 0.
pub fn must_with(command: &mut Command, input: &str, limit: Duration) -> Result<String> {
    let output = run(command, input, limit)?;
    if output.ok() {
        Ok(output.stdout)
    } else {
        bail!(
            "`{}` failed ({}): {}",
            show(command),
            output.code.map_or("signal".to_owned(), |c| format!("exit {c}")),
            output.text()
        )
    }
}

/// The command line as a person would type it.
pub fn show(command: &Command) -> String {
    std::iter::once(command.get_program())
        .chain(command.get_args())
        .map(|word| word.to_string_lossy())
        .collect::<Vec<_>>()
        .join(" ")
}

/// The exit code, or none while the child runs on after `limit`. The inner option is none for a signal.
#[allow(
    clippy::option_option,
    reason = "ended or not, and then by a code or by a signal"
)]
fn wait(child: &mut Child, limit: Duration) -> Option<Option<i32>> {
    let end = Instant::now() + limit;
    let mut pause = Duration::from_millis(1);
    loop {
        match child.try_wait() {
            Ok(Some(status)) => return Some(status.code()),
            Ok(None) if Instant::now() < end => thread::sleep(pause),
            _ => return None,
        }
        pause = (pause * 2).min(Duration::from_millis(20));
    }
}

/// Reads a pipe to its end; what is not UTF-8 is replaced.
fn slurp(pipe: Option<impl Read>) -> String {
    let mut bytes = Vec::new();
    if let Some(mut pipe) = pipe {
        // What was read before an error is still worth showing.
        drop(pipe.read_to_end(&mut bytes));
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn output_and_code_are_kept() {
        let output = run(
            Command::new("sh").args(["-c", "cat; echo oops >&2; exit 3"]),
            "in",
            Duration::from_secs(10),
        )
        .unwrap();
        assert_eq!(
            (output.code, output.stdout.as_str(), output.stderr.as_str()),
            (Some(3), "in", "oops\n")
        );
    }

    #[test]
    fn a_command_that_hangs_is_ended() {
        let started = Instant::now();
        let error = run(Command::new("sleep").arg("60"), "", Duration::from_millis(50)).unwrap_err();
        assert!(error.to_string().contains("did not end"), "{error}");
        assert!(started.elapsed() < Duration::from_secs(5));
    }
}
