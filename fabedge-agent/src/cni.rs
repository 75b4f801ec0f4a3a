//! Subsystem cni.
