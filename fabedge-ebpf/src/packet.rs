//! One packet in the kernel: its bytes, its metadata, and the few ways to change it.
#![allow(
    unsafe_code,
    reason = "the only file that goes through the context pointer and calls helpers"
)]

use core::mem::MaybeUninit;

use aya_ebpf::{
    bindings::{__sk_buff, BPF_F_RECOMPUTE_CSUM, bpf_xfrm_state},
    helpers::{
        bpf_redirect, bpf_redirect_peer, bpf_skb_change_head, bpf_skb_get_xfrm_state,
        bpf_skb_load_bytes_relative,
    },
    programs::TcContext,
};
use fabedge_common::abi::Pod;
use fabedge_ebpf::{
    classify::{Meta, Sa},
    family::{Family, V4, V6},
    parse::{Bytes, Header},
    rewrite,
};

/// `BPF_HDR_START_NET`: offsets count from the network header. On a tunnel device that is the only way to find it:
/// at TC ingress of an xfrm interface the packet starts with the outer frame's stale Ethernet header, at that of a
/// TUN it does not.
const FROM_NETWORK_HEADER: u32 = 1;

/// Length of an Ethernet header.
const ETHERNET: u32 = 14;

/// How much of a packet is asked to be contiguous when a header is not: Ethernet, IPv6, TCP with options.
const HEADERS: u32 = ETHERNET + 40 + 60;

/// The packet of a hook.
#[derive(Clone, Copy)]
pub struct Packet {
    skb: *mut __sk_buff,
}

/// What a packet is, from the link's point of view.
pub enum Protocol {
    Ipv4,
    Ipv6,
    Other,
}

/// The packet could not be changed for want of memory.
pub struct Unchanged;

impl Packet {
    #[inline(always)]
    pub fn new(ctx: &TcContext) -> Self {
        Self { skb: ctx.skb.skb }
    }

    #[inline(always)]
    fn ctx(&self) -> TcContext {
        TcContext::new(self.skb)
    }

    #[inline(always)]
    pub fn protocol(&self) -> Protocol {
        match (self.ctx().skb.protocol() as u16).to_ne_bytes() {
            V4::ETHER_TYPE => Protocol::Ipv4,
            V6::ETHER_TYPE => Protocol::Ipv6,
            _ => Protocol::Other,
        }
    }

    /// Metadata of a packet with `link` bytes in front of its IP header.
    #[inline(always)]
    pub fn meta(&self, link: u32) -> Meta {
        let skb = self.skb;
        // SAFETY: the context is valid for the program's run; the verifier checks each access.
        let (ifindex, gso_size) = unsafe { ((*skb).ifindex, (*skb).gso_size) };
        Meta {
            ifindex,
            len: self.ctx().len().saturating_sub(link),
            gso_size,
        }
    }

    /// How many packets on the wire this one stands for.
    #[inline(always)]
    pub fn segments(&self) -> u64 {
        // SAFETY: as in `meta`.
        let segments = unsafe { (*self.skb).gso_segs };
        u64::from(segments.max(1))
    }

    /// The stamp that another hook left on the packet: `skb->tc_index`, which nothing else uses and which stays with
    /// the packet through redirect, routing, bridge and fragmentation. A mark would be seen by everybody's rules.
    #[inline(always)]
    pub fn stamp(&self) -> u32 {
        // SAFETY: as in `meta`.
        unsafe { (*self.skb).tc_index }
    }

    #[inline(always)]
    pub fn set_stamp(&self, stamp: u32) {
        // SAFETY: as in `meta`; `tc_index` is writable for classifiers.
        unsafe { (*self.skb).tc_index = stamp }
    }

    /// What decrypted the packet, according to the kernel.
    #[inline(always)]
    pub fn sa(&self) -> Sa {
        let mut state = MaybeUninit::<bpf_xfrm_state>::uninit();
        let size = size_of::<bpf_xfrm_state>() as u32;
        // SAFETY: the helper writes exactly the given size, zeros where it fails.
        if unsafe { bpf_skb_get_xfrm_state(self.skb, 0, state.as_mut_ptr(), size, 0) } == 0 {
            // SAFETY: as above.
            Sa::Reqid(unsafe { state.assume_init() }.reqid)
        } else {
            Sa::None
        }
    }

    /// Takes one hop off a packet that starts with an Ethernet header.
    #[inline(always)]
    pub fn hop<F: Hop>(&self, header: &Header<F>) -> Result<(), Unchanged> {
        F::hop(self, header)
    }

    #[inline(always)]
    fn store<T>(&self, offset: u32, value: &T, flags: u64) -> Result<(), Unchanged> {
        self.ctx()
            .store(offset as usize, value, flags)
            .map_err(|_| Unchanged)
    }

    /// Whether the bytes of the packet start with its IP header.
    #[inline(always)]
    fn starts_with_ip(&self, start: &[u32; 5]) -> bool {
        match self.ctx().load::<[u32; 5]>(0) {
            // Word by word: a comparison of arrays becomes a call of `bcmp`.
            Ok(first) => (0..5).fold(0, |differing, i| differing | (first[i] ^ start[i])) == 0,
            Err(_) => false,
        }
    }

    /// Gives the packet the Ethernet header with which it shall arrive in `pod`.
    #[inline(always)]
    pub fn address_to<F: Family>(&self, header: &Header<F>, pod: &Pod) -> Result<(), Unchanged> {
        if self.starts_with_ip(&header.start) {
            // SAFETY: the context is valid; pointers into the packet are not kept across the call.
            if unsafe { bpf_skb_change_head(self.skb, ETHERNET, 0) } != 0 {
                return Err(Unchanged);
            }
        }
        self.store(
            0,
            &rewrite::ethernet(&pod.pod_mac, &pod.gateway_mac, F::ETHER_TYPE),
            0,
        )
    }

    /// Redirects to an interface's egress.
    #[inline(always)]
    pub fn redirect(&self, ifindex: u32) -> i32 {
        // SAFETY: takes numbers only.
        unsafe { bpf_redirect(ifindex, 0) as i32 }
    }

    /// Redirects to the other side of a veth, as if it had been received there.
    #[inline(always)]
    pub fn redirect_peer(&self, ifindex: u32) -> i32 {
        // SAFETY: takes numbers only.
        unsafe { bpf_redirect_peer(ifindex, 0) as i32 }
    }
}

impl Bytes for Packet {
    #[inline(always)]
    fn load<const N: usize>(&self, offset: u32) -> Option<[u32; N]> {
        let mut words = MaybeUninit::<[u32; N]>::uninit();
        let load = |to: *mut [u32; N]| {
            // SAFETY: the helper fills all `N` words or fails.
            unsafe {
                bpf_skb_load_bytes_relative(
                    self.skb.cast_const().cast(),
                    offset,
                    to.cast(),
                    4 * N as u32,
                    FROM_NETWORK_HEADER,
                )
            }
        };
        if load(words.as_mut_ptr()) != 0 {
            // The helper reads the linear part only; an aggregate may have its headers in a fragment.
            if self.ctx().pull_data(HEADERS.min(self.ctx().len())).is_err() || load(words.as_mut_ptr()) != 0 {
                return None;
            }
        }
        // SAFETY: filled, for the call returned 0.
        Some(unsafe { words.assume_init() })
    }
}

/// How a family counts hops.
pub trait Hop: Family + Sized {
    /// See [`Packet::hop`].
    fn hop(packet: &Packet, header: &Header<Self>) -> Result<(), Unchanged>;
}

impl Hop for V4 {
    #[inline(always)]
    fn hop(packet: &Packet, header: &Header<Self>) -> Result<(), Unchanged> {
        // The header's own checksum balances the change, so a checksum over the whole packet stays as it is.
        packet.store(ETHERNET + 8, &rewrite::hop_v4(header.start[2]), 0)
    }
}

impl Hop for V6 {
    #[inline(always)]
    fn hop(packet: &Packet, header: &Header<Self>) -> Result<(), Unchanged> {
        packet.store(
            ETHERNET + 7,
            &header.ttl.wrapping_sub(1),
            u64::from(BPF_F_RECOMPUTE_CSUM),
        )
    }
}
