//! Subsystem sysctl.
