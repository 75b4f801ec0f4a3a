//! Desired state of [`crate::datapath`]. Pure.
