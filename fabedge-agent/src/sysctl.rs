//! Subsystem sysctl: what the kernel must be willing to do so that routes and rules have an effect.

mod file;
mod plan;

use crate::desired;
use crate::subsystem::{self, Outcome, Phase, Subsystem};
pub use plan::{Observed, Plan, Write, plan};

/// Kernel parameters below `/proc/sys/net`.
#[derive(Debug, Default)]
pub struct Sysctl;

impl Sysctl {
    /// Manages the parameters of the network namespace of the calling thread.
    pub fn new() -> Self {
        Self
    }
}

/// A parameter that could not be read or written.
#[derive(Debug, thiserror::Error)]
#[error("{action} /proc/sys/{parameter}")]
pub struct Error {
    action: &'static str,
    parameter: String,
    source: std::io::Error,
}

impl Subsystem for Sysctl {
    type Desired = desired::sysctl::Sysctl;
    type Plan = Plan;

    const NAME: &'static str = "sysctl";

    async fn plan(&mut self, desired: &Self::Desired) -> Result<Plan, subsystem::Error> {
        Ok(plan(desired, &file::observe(desired)?))
    }

    async fn apply(&mut self, plan: &Plan, phase: Phase) -> Vec<Outcome> {
        match phase {
            Phase::Grow => file::write(plan),
            // Whether somebody else forwards by now cannot be known, so nothing is taken back.
            Phase::Shrink => Vec::new(),
        }
    }
}

#[cfg(test)]
mod tests;
