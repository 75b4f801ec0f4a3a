//! Counts what a test program says it has tried, while its output passes through.

use std::fmt;
use std::io::{Result, Write};

/// What passed and what failed.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Counts {
    /// Tests that passed.
    pub passed: usize,
    /// Those of them that failed before, and passed when they were tried again.
    pub unsteady: usize,
    /// Tests that failed.
    pub failed: usize,
}

impl fmt::Display for Counts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} passed", self.passed)?;
        if self.unsteady > 0 {
            write!(f, " ({} only when tried again)", self.unsteady)?;
        }
        write!(f, ", {} failed", self.failed)
    }
}

impl std::ops::AddAssign for Counts {
    fn add_assign(&mut self, other: Counts) {
        self.passed += other.passed;
        self.unsteady += other.unsteady;
        self.failed += other.failed;
    }
}

/// Passes output on and reads the closing lines in it: `test result: ok. 9 passed; 0 failed; ...` of Rust's test
/// programs, with the list of what failed in front of it, and `9 passed, 0 failed in ...` of the lab.
pub struct Tally<W> {
    to: W,
    line: Vec<u8>,
    counts: Counts,
    failed: Vec<String>,
    in_list: bool,
}

impl<W: Write> Tally<W> {
    /// Counts what goes to `to`.
    pub fn new(to: W) -> Tally<W> {
        Tally {
            to,
            line: Vec::new(),
            counts: Counts::default(),
            failed: Vec::new(),
            in_list: false,
        }
    }

    /// The sum of all closing lines.
    pub fn counts(&self) -> Counts {
        self.counts
    }

    /// The names of Rust tests that failed.
    pub fn failed(self) -> Vec<String> {
        self.failed
    }

    fn read(&mut self) {
        let line = String::from_utf8_lossy(&self.line);
        if let Some(counts) = closing_line(&line) {
            self.counts += counts;
        }
        match line.strip_prefix("    ").filter(|_| self.in_list) {
            Some(name) => self.failed.push(name.trim_end().to_owned()),
            None => self.in_list = line.trim_end() == "failures:",
        }
        self.line.clear();
    }
}

impl<W: Write> Write for Tally<W> {
    fn write(&mut self, bytes: &[u8]) -> Result<usize> {
        let taken = self.to.write(bytes)?;
        for byte in &bytes[..taken] {
            if *byte == b'\n' {
                self.read();
            } else {
                self.line.push(*byte);
            }
        }
        Ok(taken)
    }

    fn flush(&mut self) -> Result<()> {
        self.to.flush()
    }
}

fn closing_line(line: &str) -> Option<Counts> {
    let (rest, divider) = match line.strip_prefix("test result: ") {
        Some(rest) => (rest.split_once(". ")?.1, ';'),
        None => (line, ','),
    };
    let (passed, rest) = rest.split_once(" passed")?;
    let (failed, _) = rest.strip_prefix(divider)?.trim_start().split_once(" failed")?;
    Some(Counts {
        passed: passed.parse().ok()?,
        failed: failed.parse().ok()?,
        ..Counts::default()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn closing_lines_add_up_and_other_lines_do_not_count() {
        let mut shown = Vec::new();
        let mut tally = Tally::new(&mut shown);
        let text = "test a ... ok\ntest result: ok. 9 passed; 1 failed; 0 ignored; finished in 0.1s\n\
                    12 passed, 3 failed in 4 s\nall 7 passed, we hope\n1 passed;";
        for piece in text.as_bytes().chunks(7) {
            tally.write_all(piece).unwrap();
        }
        assert_eq!(
            tally.counts(),
            Counts {
                passed: 21,
                unsteady: 0,
                failed: 4
            }
        );
        assert_eq!(shown, text.as_bytes());
    }

    #[test]
    fn what_failed_is_known_by_name() {
        let mut tally = Tally::new(std::io::sink());
        let text = "test a ... FAILED\nfailures:\n\n---- a stdout ----\n\n    no name\n\nfailures:\n    a\n    b::c\n\n\
                    test result: FAILED. 3 passed; 2 failed; 0 ignored\n    d\n";
        tally.write_all(text.as_bytes()).unwrap();
        assert_eq!(tally.failed(), ["a", "b::c"]);
    }
}
