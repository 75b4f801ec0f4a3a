//! Desired state of [`crate::sysctl`]. Pure.
