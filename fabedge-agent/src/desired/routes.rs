//! Desired state of [`crate::routes`]. Pure.
