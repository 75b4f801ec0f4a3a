//! Manifests -> snapshot and findings.

pub mod convert;
pub mod convert_settings;
pub mod folder;
pub mod manifest;
pub mod memory;

pub use folder::read;
pub use memory::{Memory, Observation};
