//! The eBPF programs on this kernel: tables of packets through `BPF_PROG_TEST_RUN`, and the whole subsystem between
//! veths and a TUN. Each test has network and mount namespaces and a BPF file system of its own. Needs root; without
//! it, or without the object, these tests fail.

#![allow(clippy::unwrap_used, reason = "a panic is how a test reports")]

mod lifecycle;
mod node;
mod packets;
mod replace;
mod sandbox;
mod table;
mod traffic;
mod tun;
mod uplink;
mod xfrm;
