//! Subsystem firewall.
