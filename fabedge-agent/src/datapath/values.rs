//! Lets the values of [`fabedge_common::abi`] pass through aya's maps.
#![allow(
    unsafe_code,
    reason = "aya asks for an unsafe marker on what it copies to and from the kernel"
)]

use fabedge_common::abi::{Counter, Flow, Peer, Pod, Route, SaCpu, SaId, StackFlow, State};

/// A value of the kernel ABI.
#[derive(Clone, Copy, Debug)]
#[repr(transparent)]
pub struct Value<T>(pub T);

/// Types of the kernel ABI, and nothing else: the safety of [`Value`] depends on it.
pub trait Abi: Copy + 'static {}

impl Abi for Counter {}
impl Abi for Flow {}
impl Abi for Peer {}
impl Abi for Pod {}
impl Abi for Route {}
impl Abi for SaCpu {}
impl Abi for SaId {}
impl Abi for StackFlow {}
impl Abi for State {}

// SAFETY: the types above are `repr(C)`, have no padding (their sizes and offsets are asserted at compile time) and
// consist of integers and arrays of integers, so every bit pattern is a value.
unsafe impl<T: Abi> aya::Pod for Value<T> {}
