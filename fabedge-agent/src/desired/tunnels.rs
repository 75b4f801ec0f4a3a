//! Desired state of [`crate::tunnels`]. Pure.
