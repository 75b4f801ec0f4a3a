//! The chart, rendered by Helm's own engine: what values say must show in the objects, or be refused by name.
#![allow(clippy::unwrap_used, reason = "a panic is the report of a test")]
#![allow(missing_docs, reason = "a test program")]

mod effects;
mod engine;
mod manifests;
mod refusals;
mod shapes;
mod table;
