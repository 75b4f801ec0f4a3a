//! Desired state of [`crate::links`]. Pure.
