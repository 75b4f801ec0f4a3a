//! Probes: traffic made and judged by the lab itself, from sockets inside the places, so that a check costs
//! packets and not processes.

pub mod icmp;
pub mod reach;
pub mod responder;
pub mod stream;
pub mod tcp;
pub mod udp;

use std::fmt;
use std::time::Duration;

/// How many of something that was sent came back.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Tally {
    /// Sent.
    pub sent: u32,
    /// Answered, and answered right.
    pub answered: u32,
    /// The quickest answer.
    pub best: Option<Duration>,
}

impl Tally {
    /// Everything that was sent was answered.
    pub fn all(&self) -> bool {
        self.sent > 0 && self.answered == self.sent
    }

    /// Nothing was answered.
    pub fn none(&self) -> bool {
        self.sent > 0 && self.answered == 0
    }

    /// Counts one answer.
    fn count(&mut self, took: Duration) {
        self.answered += 1;
        self.best = Some(self.best.map_or(took, |best| best.min(took)));
    }
}

impl fmt::Display for Tally {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.answered, self.sent)?;
        match self.best {
            Some(best) => write!(f, " in {:.1} ms", best.as_secs_f64() * 1e3),
            None => Ok(()),
        }
    }
}
