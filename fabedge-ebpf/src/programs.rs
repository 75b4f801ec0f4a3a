//! The programs. A packet that is left to the stack goes on with `TC_ACT_UNSPEC`, so that programs of others on the
//! same hook see it too (`TC_ACT_OK` would end a TCX chain).
//!
//! Each family has a function of its own that is not inlined, for both together would need more than the 512 bytes of
//! stack that Linux 6.1 grants.

use aya_ebpf::{
    bindings::{TC_ACT_SHOT, TC_ACT_UNSPEC},
    macros::classifier,
    programs::TcContext,
};
use fabedge_common::abi::{Program, Reason, STAMP_FAST, STAMP_PLAIN};
use fabedge_ebpf::{
    classify::{self, Egress, Ingress, Meta, Sa, Stack, Tables},
    family::{V4, V6},
    parse::Parse,
};

use crate::{
    maps::Maps,
    packet::{Hop, Packet, Protocol},
    stats::Amount,
};

const NEXT: i32 = TC_ACT_UNSPEC;
const DROP: i32 = TC_ACT_SHOT;

/// Bytes in front of the IP header: of a pod's veth, and of a tunnel device (see [`Packet`] on what is really there).
const LINK: u32 = 14;
const NO_LINK: u32 = 0;

#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
#[allow(
    unsafe_code,
    reason = "the kernel reads the licence from this symbol; GPL helpers need it"
)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";

/// TC ingress of the host side of a pod's veth: packets that the pod sends.
#[classifier]
pub fn pod_egress(ctx: TcContext) -> i32 {
    let packet = Packet::new(&ctx);
    match packet.protocol() {
        Protocol::Ipv4 => pod_egress_of::<V4>(packet),
        Protocol::Ipv6 => pod_egress_of::<V6>(packet),
        Protocol::Other => unparsed(&packet, Program::PodEgress, Reason::NotIp, &packet.meta(LINK)),
    }
}

#[inline(never)]
pub fn pod_egress_of<F: Parse + Hop>(packet: Packet) -> i32
where
    Maps: Tables<F>,
{
    let meta = packet.meta(LINK);
    let header = match F::header(&packet) {
        Ok(header) => header,
        Err(reason) => return unparsed(&packet, Program::PodEgress, reason, &meta),
    };
    let amount = Amount::with_header(&packet, &header, &meta);
    match classify::pod_egress::<F>(&header, &packet, &meta, &Maps) {
        Egress::Tunnel(route) => match packet.hop(&header) {
            Ok(()) => {
                amount.count(Program::PodEgress, Reason::Tunnel);
                amount.sent_to(route.reqid);
                packet.set_stamp(STAMP_FAST);
                packet.redirect(route.ifindex)
            }
            Err(_) => to_stack(&packet, Program::PodEgress, Reason::Rewrite.into(), amount),
        },
        Egress::Stack(stack) => to_stack(&packet, Program::PodEgress, stack, amount),
    }
}

/// TC ingress of the xfrm interface: packets that the kernel decrypted.
#[classifier]
pub fn tunnel_ingress(ctx: TcContext) -> i32 {
    let packet = Packet::new(&ctx);
    match packet.protocol() {
        Protocol::Ipv4 => tunnel_ingress_of::<V4, true>(packet),
        Protocol::Ipv6 => tunnel_ingress_of::<V6, true>(packet),
        Protocol::Other => unparsed(
            &packet,
            Program::TunnelIngress,
            Reason::NotIp,
            &packet.meta(NO_LINK),
        ),
    }
}

/// TC ingress of kernel-libipsec's TUN: packets that charon decrypted. Which SA did is not known here.
#[classifier]
pub fn tun_ingress(ctx: TcContext) -> i32 {
    let packet = Packet::new(&ctx);
    match packet.protocol() {
        Protocol::Ipv4 => tunnel_ingress_of::<V4, false>(packet),
        Protocol::Ipv6 => tunnel_ingress_of::<V6, false>(packet),
        Protocol::Other => unparsed(
            &packet,
            Program::TunnelIngress,
            Reason::NotIp,
            &packet.meta(NO_LINK),
        ),
    }
}

#[inline(never)]
pub fn tunnel_ingress_of<F: Parse + Hop, const XFRM: bool>(packet: Packet) -> i32
where
    Maps: Tables<F>,
{
    let sa = if XFRM { packet.sa() } else { Sa::Unknown };
    let meta = packet.meta(NO_LINK);
    let header = match F::header(&packet) {
        Ok(header) => header,
        Err(reason) => return unparsed(&packet, Program::TunnelIngress, reason, &meta),
    };
    let amount = Amount::with_header(&packet, &header, &meta);
    let source = Tables::<F>::route(&Maps, header.src);
    let verdict = classify::tunnel_ingress::<F>(&header, &packet, sa, source.as_ref(), &Maps);
    if let (Some(route), Ingress::Pod(_) | Ingress::Stack(_)) = (source, &verdict) {
        amount.received_from(route.reqid);
    }
    match verdict {
        Ingress::Pod(pod) => {
            if packet.address_to(&header, pod).is_err() {
                return to_stack(&packet, Program::TunnelIngress, Reason::Rewrite.into(), amount);
            }
            if packet.hop(&header).is_err() {
                // Too late for the stack: the packet has its new link header.
                amount.count(Program::TunnelIngress, Reason::Rewrite);
                return DROP;
            }
            amount.count(Program::TunnelIngress, Reason::Pod);
            packet.redirect_peer(pod.ifindex)
        }
        Ingress::Stack(stack) => to_stack(&packet, Program::TunnelIngress, stack, amount),
        Ingress::Drop(reason) => {
            amount.count(Program::TunnelIngress, reason);
            DROP
        }
    }
}

/// TC egress of the tunnel device: packets on their way into a tunnel, by the stack or past it.
#[classifier]
pub fn tunnel_egress(ctx: TcContext) -> i32 {
    let packet = Packet::new(&ctx);
    let stamp = packet.stamp();
    packet.set_stamp(0);
    match packet.protocol() {
        // Counted by `pod_egress`.
        Protocol::Ipv4 | Protocol::Ipv6 if stamp == STAMP_FAST => NEXT,
        Protocol::Ipv4 => tunnel_egress_of::<V4>(packet, stamp),
        Protocol::Ipv6 => tunnel_egress_of::<V6>(packet, stamp),
        Protocol::Other => unparsed(
            &packet,
            Program::TunnelEgress,
            Reason::NotIp,
            &packet.meta(NO_LINK),
        ),
    }
}

#[inline(never)]
fn tunnel_egress_of<F: Parse>(packet: Packet, stamp: u32) -> i32
where
    Maps: Tables<F>,
{
    let meta = packet.meta(NO_LINK);
    let header = match F::header(&packet) {
        Ok(header) => header,
        Err(reason) => return unparsed(&packet, Program::TunnelEgress, reason, &meta),
    };
    let amount = Amount::with_header(&packet, &header, &meta);
    let destination = Tables::<F>::route(&Maps, header.dst);
    if let Some(route) = destination {
        amount.sent_to(route.reqid);
    }
    let reason = match stamp {
        STAMP_PLAIN => Reason::Carried,
        _ => classify::tunnel_egress::<F>(&header, &packet, destination, &Maps),
    };
    amount.count(Program::TunnelEgress, reason);
    NEXT
}

/// TC egress of the host side of a pod's veth: packets that the stack delivers to the pod. What the fast path
/// delivers does not pass here.
#[classifier]
pub fn pod_ingress(ctx: TcContext) -> i32 {
    let packet = Packet::new(&ctx);
    let stamp = packet.stamp();
    packet.set_stamp(0);
    match packet.protocol() {
        Protocol::Ipv4 => pod_ingress_of::<V4>(packet, stamp),
        Protocol::Ipv6 => pod_ingress_of::<V6>(packet, stamp),
        Protocol::Other => unparsed(&packet, Program::PodIngress, Reason::NotIp, &packet.meta(LINK)),
    }
}

#[inline(never)]
fn pod_ingress_of<F: Parse>(packet: Packet, stamp: u32) -> i32
where
    Maps: Tables<F>,
{
    let meta = packet.meta(LINK);
    let header = match F::header(&packet) {
        Ok(header) => header,
        Err(reason) => return unparsed(&packet, Program::PodIngress, reason, &meta),
    };
    let amount = Amount::with_header(&packet, &header, &meta);
    let reason = match stamp {
        STAMP_PLAIN => Reason::Carried,
        _ => classify::pod_ingress::<F>(&header, &packet, &Maps),
    };
    amount.count(Program::PodIngress, reason);
    NEXT
}

#[inline(always)]
fn to_stack(packet: &Packet, program: Program, stack: Stack, amount: Amount) -> i32 {
    amount.count(program, stack.reason);
    packet.set_stamp(if stack.plain { STAMP_PLAIN } else { 0 });
    NEXT
}

/// A packet that no decision can be made about.
#[inline(always)]
fn unparsed(packet: &Packet, program: Program, reason: Reason, meta: &Meta) -> i32 {
    Amount::of(packet, meta).count(program, reason);
    packet.set_stamp(0);
    NEXT
}
