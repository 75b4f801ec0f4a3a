//! Desired state of [`crate::cni`]. Pure.
