//! Subsystem routes.
