//! The lab: a small world in network namespaces in which the real programs run, for the demo and for the tests.
//!
//! It wants to be root in a machine of its own (a virtual machine or fresh namespaces); see `cargo xtask lab`.

pub mod bench;
pub mod capture;
pub mod chaos;
pub mod cni;
pub mod command;
pub mod daemon;
pub mod demo;
pub mod ending;
pub mod figures;
pub mod guide;
pub mod inject;
pub mod lab;
pub mod observe;
pub mod place;
pub mod pod;
pub mod probe;
pub mod scenarios;
pub mod script;
pub mod site;
pub mod suite;
pub mod sys;
pub mod table;
pub mod world;
