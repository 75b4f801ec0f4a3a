//! The table that fills in while things happen: one row per check, its outcome and time behind it.

use std::io::{self, IsTerminal, Write};
use std::time::{Duration, Instant};

/// How a row ends.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// As it should be; with what was seen.
    Passed(String),
    /// Not as it should be.
    Failed(String),
    /// Cannot be tried here, and why.
    NotHere(String),
}

/// Width of the first column.
const WIDTH: usize = 58;

/// A table on standard output.
#[derive(Debug)]
pub struct Table {
    started: Instant,
    row: Instant,
    terminal: bool,
    passed: usize,
    failed: Vec<String>,
    not_here: usize,
}

impl Default for Table {
    fn default() -> Self {
        Self {
            started: Instant::now(),
            row: Instant::now(),
            // In a machine the output is no terminal, but may end up at one.
            terminal: io::stdout().is_terminal() || std::env::var_os("FABEDGE_TERMINAL").is_some(),
            passed: 0,
            failed: Vec::new(),
            not_here: 0,
        }
    }
}

impl Table {
    /// A headline between rows.
    pub fn section(&self, title: &str) {
        say(&format!("\n{title}\n"));
    }

    /// Starts a row.
    pub fn begin(&mut self, what: &str) {
        self.row = Instant::now();
        // A terminal sees at once what is being tried; elsewhere the line comes when it is whole.
        if self.terminal {
            say(&format!("  {what:<WIDTH$} ..."));
        }
    }

    /// Ends a row.
    pub fn end(&mut self, what: &str, outcome: &Outcome) {
        let took = self.row.elapsed();
        let (mark, note) = match outcome {
            Outcome::Passed(note) => ("ok", note),
            Outcome::Failed(note) => ("FAILED", note),
            Outcome::NotHere(note) => ("not here", note),
        };
        let back = if self.terminal { "\r" } else { "" };
        say(&format!(
            "{back}  {what:<WIDTH$} {mark:<8} {:>6.1} s  {note}\n",
            took.as_secs_f64()
        ));
        match outcome {
            Outcome::Passed(_) => self.passed += 1,
            Outcome::Failed(_) => self.failed.push(what.to_owned()),
            Outcome::NotHere(_) => self.not_here += 1,
        }
    }

    /// Indented text under the rows: the output of a command that is shown as it is.
    pub fn quote(&self, text: &str) {
        for line in text.trim_end().lines() {
            say(&format!("      {line}\n"));
        }
    }

    /// The closing lines; gives whether nothing failed.
    pub fn close(&self) -> bool {
        if self.not_here > 0 {
            say(&format!("\n{} could not be tried here\n", self.not_here));
        }
        for name in &self.failed {
            say(&format!("failed: {name}\n"));
        }
        say(&format!(
            "\n{} passed, {} failed in {:.0} s\n",
            self.passed,
            self.failed.len(),
            self.started.elapsed().as_secs_f64()
        ));
        self.failed.is_empty()
    }

    /// How long the table has been open.
    pub fn elapsed(&self) -> Duration {
        self.started.elapsed()
    }

    /// Rows that passed and rows that failed.
    pub fn counts(&self) -> (usize, usize) {
        (self.passed, self.failed.len())
    }
}

/// Prints at once. A reader that has gone is no reason to stop: the exit code still tells.
fn say(text: &str) {
    let mut out = io::stdout();
    out.write_all(text.as_bytes()).and_then(|()| out.flush()).ok();
}
