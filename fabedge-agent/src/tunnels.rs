//! Subsystem tunnels.
