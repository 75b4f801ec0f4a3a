//! The two contracts that FabEdge's parts share, and nothing else: [`abi`] is what the agent and the eBPF
//! programs agree on, [`config`] is the document that the operator publishes and the agent applies.
#![cfg_attr(not(any(feature = "config", test)), no_std)]

pub mod abi;
#[cfg(feature = "config")]
pub mod config;
#[cfg(feature = "config")]
pub mod prefixes;
