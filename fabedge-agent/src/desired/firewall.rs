//! Desired state of [`crate::firewall`]. Pure.
