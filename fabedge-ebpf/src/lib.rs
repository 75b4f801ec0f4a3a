//! The decisions of the fast path, without the kernel: what a packet is ([`parse`]), where it goes ([`classify`]),
//! and what is changed in it ([`rewrite`]). Compiled into the programs for the kernel, and for the host into tests.
#![cfg_attr(not(test), no_std)]

pub mod classify;
pub mod family;
pub mod parse;
pub mod rewrite;

#[cfg(test)]
mod fixtures;
