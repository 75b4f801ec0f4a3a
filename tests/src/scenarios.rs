//! What is tried in the lab, a file per subject.

pub mod instruments;

use crate::suite::Suite;

/// Every suite.
pub const SUITES: [&Suite; 1] = [&instruments::SUITE];
