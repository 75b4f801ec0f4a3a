//! What the fast path does with a packet, what others could do in its place, and each without the part that is measured.
//!
//! `BPF_PROG_TEST_RUN` repeats one packet. So that destinations differ, every program draws one from a list, in the
//! same way; the programs `draw_*` and `write_*` do only that, and what they take is subtracted.
#![allow(
    unsafe_code,
    reason = "values of maps are shared with other CPUs and the agent; aya marks that unsafe"
)]

use aya_ebpf::{
    btf_maps::{Array, HashMap, PerCpuArray, lpm_trie::Key},
    macros::{btf_map, classifier},
    programs::TcContext,
};
use fabedge_common::abi::{Route, capacity};
use fabedge_ebpf::{
    classify::Tables,
    family::{V4, V6, octets},
};

use crate::{
    maps::{self, Maps},
    packet::Packet,
    programs,
};

/// Bytes in front of the IP header.
const ETHERNET: usize = 14;

/// A destination and the prefix that it is in: address, network, length.
type Draw4 = [u32; 3];
type Draw6 = [u32; 9];

#[btf_map(name = "draws4")]
static DRAWS4: Array<Draw4, { capacity::ROUTES }> = Array::new();
#[btf_map(name = "draws6")]
static DRAWS6: Array<Draw6, { capacity::ROUTES }> = Array::new();
/// Which draws are taken: as many as this plus one. 0: always the same.
#[btf_map(name = "last_draw")]
static LAST_DRAW: Array<u32, 1> = Array::new();
#[btf_map(name = "drawn")]
static DRAWN: PerCpuArray<u32, 1> = PerCpuArray::new();
/// Network and length -> route.
#[btf_map(name = "hash4")]
static HASH4: HashMap<[u32; 2], Route, { capacity::ROUTES }> = HashMap::new();
#[btf_map(name = "hash6")]
static HASH6: HashMap<[u32; 5], Route, { capacity::ROUTES }> = HashMap::new();

#[inline(always)]
fn next() -> Option<u32> {
    let last = *LAST_DRAW.get(0)?;
    let drawn = DRAWN.get_ptr_mut(0)?;
    // SAFETY: the element of this CPU, on which one test runs at a time.
    let number = unsafe {
        *drawn = (*drawn).wrapping_add(1);
        *drawn
    };
    Some(number & last)
}

#[inline(always)]
fn draw4() -> Option<&'static Draw4> {
    DRAWS4.get(next()?)
}

#[inline(always)]
fn draw6() -> Option<&'static Draw6> {
    DRAWS6.get(next()?)
}

/// What a program returns of a route: enough that it has to be read.
#[inline(always)]
fn seen(route: Option<&Route>) -> i32 {
    route.map_or(-1, |route| (route.reqid & 0xffff) as i32)
}

/// Nothing.
#[classifier]
pub fn empty(_: TcContext) -> i32 {
    0
}

/// Only draws.
#[classifier]
pub fn draw_ipv4(_: TcContext) -> i32 {
    draw4().map_or(-1, |[addr, ..]| (*addr & 0xffff) as i32)
}

/// The kernel's trie.
#[classifier]
pub fn trie_ipv4(_: TcContext) -> i32 {
    let Some([addr, ..]) = draw4() else { return -1 };
    seen(maps::ROUTES4.get(&Key::new(32, addr.to_ne_bytes())))
}

/// A hash, asked with the right prefix.
#[classifier]
pub fn hash_ipv4(_: TcContext) -> i32 {
    let Some([_, network, length]) = draw4() else {
        return -1;
    };
    // SAFETY: nobody changes the map meanwhile.
    seen(unsafe { HASH4.get(&[*network, *length]) })
}

/// The forwarding table.
#[classifier]
pub fn ours_ipv4(_: TcContext) -> i32 {
    let Some([addr, ..]) = draw4() else { return -1 };
    seen(Tables::<V4>::route(&Maps, *addr).as_ref())
}

/// Only draws.
#[classifier]
pub fn draw_ipv6(_: TcContext) -> i32 {
    draw6().map_or(-1, |[addr, ..]| (*addr & 0xffff) as i32)
}

/// The kernel's trie.
#[classifier]
pub fn trie_ipv6(_: TcContext) -> i32 {
    let Some([a, b, c, d, ..]) = draw6() else {
        return -1;
    };
    seen(maps::ROUTES6.get(&Key::new(128, octets([*a, *b, *c, *d]))))
}

/// A hash, asked with the right prefix.
#[classifier]
pub fn hash_ipv6(_: TcContext) -> i32 {
    let Some([.., a, b, c, d, length]) = draw6() else {
        return -1;
    };
    // SAFETY: nobody changes the map meanwhile.
    seen(unsafe { HASH6.get(&[*a, *b, *c, *d, *length]) })
}

/// The forwarding table.
#[classifier]
pub fn ours_ipv6(_: TcContext) -> i32 {
    let Some([a, b, c, d, ..]) = draw6() else {
        return -1;
    };
    seen(Tables::<V6>::route(&Maps, [*a, *b, *c, *d]).as_ref())
}

/// Where the drawn address is written.
#[derive(Clone, Copy)]
enum Side {
    Source,
    Destination,
}

/// Writes the draw into the packet, and puts back the hop count that an earlier run took off.
#[inline(always)]
fn write4(ctx: &TcContext, side: Side) -> bool {
    let Some([addr, ..]) = draw4() else { return false };
    // 10.255.0.2, the pod.
    let pod = u32::from_ne_bytes([10, 255, 0, 2]);
    let ttl = u32::from_ne_bytes([64, 17, 0, 0]);
    let words = match side {
        Side::Source => [ttl, *addr, pod],
        Side::Destination => [ttl, pod, *addr],
    };
    ctx.store(ETHERNET + 8, &words, 0).is_ok()
}

/// The same of IPv6: next header and hop limit, and the addresses behind.
#[inline(always)]
fn write6(ctx: &TcContext, side: Side) -> bool {
    let Some([a, b, c, d, ..]) = draw6() else {
        return false;
    };
    // fdff::2, the pod.
    let [e, f, g, h] = [[0xfd, 0xff, 0, 0], [0; 4], [0; 4], [0, 0, 0, 2]].map(u32::from_ne_bytes);
    let hops = u32::from_ne_bytes([0, 8, 17, 64]);
    let words = match side {
        Side::Source => [hops, *a, *b, *c, *d, e, f, g, h],
        Side::Destination => [hops, e, f, g, h, *a, *b, *c, *d],
    };
    ctx.store(ETHERNET + 4, &words, 0).is_ok()
}

/// Only writes the draw.
#[classifier]
pub fn write_ipv4(ctx: TcContext) -> i32 {
    i32::from(write4(&ctx, Side::Destination))
}

/// All that is done with what a pod sends.
#[classifier]
pub fn egress_ipv4(ctx: TcContext) -> i32 {
    if !write4(&ctx, Side::Destination) {
        return -1;
    }
    programs::pod_egress_of::<V4>(Packet::new(&ctx))
}

/// All that is done with what came out of a tunnel.
#[classifier]
pub fn ingress_ipv4(ctx: TcContext) -> i32 {
    if !write4(&ctx, Side::Source) {
        return -1;
    }
    programs::tunnel_ingress_of::<V4, false>(Packet::new(&ctx))
}

/// Only writes the draw.
#[classifier]
pub fn write_ipv6(ctx: TcContext) -> i32 {
    i32::from(write6(&ctx, Side::Destination))
}

/// All that is done with what a pod sends.
#[classifier]
pub fn egress_ipv6(ctx: TcContext) -> i32 {
    if !write6(&ctx, Side::Destination) {
        return -1;
    }
    programs::pod_egress_of::<V6>(Packet::new(&ctx))
}

/// All that is done with what came out of a tunnel.
#[classifier]
pub fn ingress_ipv6(ctx: TcContext) -> i32 {
    if !write6(&ctx, Side::Source) {
        return -1;
    }
    programs::tunnel_ingress_of::<V6, false>(Packet::new(&ctx))
}
