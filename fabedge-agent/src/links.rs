//! Subsystem links.
