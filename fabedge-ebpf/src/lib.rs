//! The decisions of the fast path, without the kernel: what a packet is ([`parse`]), where it goes ([`classify`]),
//! what is changed in it ([`rewrite`]), and which CPU decrypts it ([`spread`]). Compiled into the programs for the
//! kernel, and for the host into tests.
#![cfg_attr(not(test), no_std)]

pub mod classify;
pub mod family;
pub mod parse;
pub mod rewrite;
pub mod spread;

#[cfg(test)]
mod fixtures;
