//! Who may talk to whom, without any of what makes it so.

use std::time::Duration;

use anyhow::Result;

use crate::lab::Lab;
use crate::probe::icmp;
use crate::scenarios::communities::{DIRECT, RELAYED};

/// What decides it: the Communities in force.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Model {
    /// edge1 and edge2.
    direct: bool,
    /// edge1 and edge3.
    relayed: bool,
}

/// The pods that ask and are asked.
const PAIRS: [(&str, &str); 9] = [
    ("cloud-a", "edge1-a"),
    ("cloud-b", "edge1-a"),
    ("edge2-a", "cloud-a"),
    ("edge2-a", "cloud-b"),
    ("cloud-b", "edge3-a"),
    ("edge3-a", "cloud-a"),
    ("edge1-a", "edge2-a"),
    ("edge1-a", "edge3-a"),
    ("edge2-a", "edge3-a"),
];

impl Model {
    /// Puts a Community in force, or out of it.
    pub fn toggle(&mut self, manifest: &str) {
        match manifest {
            DIRECT => self.direct ^= true,
            RELAYED => self.relayed ^= true,
            _ => {}
        }
    }

    /// Allows what another allows.
    pub fn join(&mut self, other: &Self) {
        self.direct |= other.direct;
        self.relayed |= other.relayed;
    }

    /// Every pair, and whether it talks.
    pub fn pairs(&self) -> impl Iterator<Item = (&'static str, &'static str, bool)> {
        let Self { direct, relayed } = *self;
        PAIRS.into_iter().map(move |(from, to)| {
            let talk = match (from, to) {
                ("edge1-a", "edge2-a") => direct,
                ("edge1-a", "edge3-a") => relayed,
                ("edge2-a", "edge3-a") => false,
                _ => true,
            };
            (from, to, talk)
        })
    }

    /// The pairs that may not talk.
    pub fn refused(&self) -> impl Iterator<Item = (&'static str, &'static str)> {
        self.pairs()
            .filter(|(_, _, talk)| !talk)
            .map(|(from, to, _)| (from, to))
    }
}

/// Whether an echo comes back.
///
/// # Errors
/// When none can be sent.
pub fn ask(lab: &Lab, from: &str, to: &str) -> Result<bool> {
    const WAIT: Duration = Duration::from_millis(300);
    let (from, to) = (lab.world.pod(from)?, lab.world.pod(to)?);
    Ok(icmp::ping(&from.place, to.v4.into(), 56, 1, WAIT)?.all())
}
