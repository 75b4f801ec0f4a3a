//! The chart on a real API server, with Helm's own engine: installed, upgraded, uninstalled by the commands that users
//! type. There are no kubelets here, so no pod becomes ready.
//!
//! Needs KUBECONFIG, `helm` and `kubectl` on the PATH, and the operator's program in FABEDGE_OPERATOR:
//! `cargo xtask test --only k8s` has them.
#![allow(clippy::unwrap_used, reason = "a panic is the report of a test")]
#![allow(missing_docs, reason = "a test program")]

mod account;
mod cluster;
mod earlier;
mod life;
mod rendered;
mod rights;
mod upgrade;
