//! What a cluster's own configuration says about it: texts and objects in, facts out. Pure.

pub mod documents;
pub mod evidence;
pub mod fill;
pub mod sources;
pub mod words;

pub use evidence::Evidence;
pub use fill::{Filled, Seen, fill};
pub use words::Words;

#[cfg(test)]
mod tests;
