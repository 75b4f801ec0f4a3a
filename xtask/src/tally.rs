//! Counts what a test program says it has tried, while its output passes through.

use std::io::{Result, Write};

/// What passed and what failed.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Counts {
    /// Tests that passed.
    pub passed: usize,
    /// Tests that failed.
    pub failed: usize,
}

impl std::ops::AddAssign for Counts {
    fn add_assign(&mut self, other: Counts) {
        self.passed += other.passed;
        self.failed += other.failed;
    }
}

/// Passes output on and reads the closing lines in it: `test result: ok. 9 passed; 0 failed; ...` of Rust's test
/// programs and `9 passed, 0 failed in ...` of the lab.
pub struct Tally<W> {
    to: W,
    line: Vec<u8>,
    counts: Counts,
}

impl<W: Write> Tally<W> {
    /// Counts what goes to `to`.
    pub fn new(to: W) -> Tally<W> {
        Tally {
            to,
            line: Vec::new(),
            counts: Counts::default(),
        }
    }

    /// The sum of all closing lines.
    pub fn counts(&self) -> Counts {
        self.counts
    }
}

impl<W: Write> Write for Tally<W> {
    fn write(&mut self, bytes: &[u8]) -> Result<usize> {
        let taken = self.to.write(bytes)?;
        for byte in &bytes[..taken] {
            if *byte == b'\n' {
                if let Some(counts) = closing_line(&String::from_utf8_lossy(&self.line)) {
                    self.counts += counts;
                }
                self.line.clear();
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
                failed: 4
            }
        );
        assert_eq!(shown, text.as_bytes());
    }
}
