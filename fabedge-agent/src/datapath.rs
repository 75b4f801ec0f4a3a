//! Subsystem datapath.
