//! `uplink_xdp`: ESP to the CPU of its SA, before anything is made of the packet. Its maps, its frames, its entry points.
#![allow(
    unsafe_code,
    reason = "the frame is behind a pointer of the context, and aya marks reading a map unsafe"
)]

use aya_ebpf::{
    EbpfContext as _,
    bindings::{
        xdp_action::{XDP_DROP, XDP_PASS},
        xdp_md,
    },
    btf_maps::{CpuMap, HashMap},
    helpers::{bpf_get_smp_processor_id, bpf_xdp_get_buff_len},
    macros::{btf_map, xdp},
    programs::XdpContext,
};
use fabedge_common::abi::{Program, Reason, SaCpu, SaId, capacity};
use fabedge_ebpf::{
    family::{Family, V4, V6, octets},
    parse::{Bytes, Parse},
    spread::{self, Associations, Uplink},
};

use crate::maps::{NO_PREALLOC, count};

#[btf_map(name = "sas")]
static SAS: HashMap<SaId, SaCpu, { capacity::SAS }, NO_PREALLOC> = HashMap::new();
/// The kernel takes no more entries than it was built for CPUs, so the agent says how many.
#[btf_map(name = "cpus")]
static CPUS: CpuMap<1> = CpuMap::new();

/// Length of an Ethernet header. What has a VLAN tag is for another device than this.
const ETHERNET: usize = 14;

/// XDP on an uplink.
#[xdp(frags)]
pub fn uplink_xdp(ctx: XdpContext) -> u32 {
    let frame = Frame::of(&ctx);
    match frame.protocol() {
        Some(V4::ETHER_TYPE) => uplink_of::<V4>(&frame),
        Some(V6::ETHER_TYPE) => uplink_of::<V6>(&frame),
        _ => XDP_PASS,
    }
}

#[inline(always)]
fn uplink_of<F: Parse>(frame: &Frame) -> u32
where
    Sas: Associations<F>,
{
    let (reason, action) = match spread::uplink::<F>(frame, || frame.len(), &Sas) {
        Uplink::Pass => return XDP_PASS,
        Uplink::Stay(reason) => (reason, XDP_PASS),
        Uplink::Drop(reason) => (reason, XDP_DROP),
        Uplink::Cpu(cpu) => match CPUS.redirect(cpu, u64::from(XDP_PASS)) {
            Ok(action) => (Reason::OtherCpu, action),
            // That CPU has no queue any more: its SAs are about to get another.
            Err(action) => (Reason::ThisCpu, action),
        },
    };
    count(reason.index(Program::UplinkXdp), 1, u64::from(frame.len()));
    action
}

/// The same on the CPU that the packet was for.
#[xdp(frags, map = "cpumap")]
pub fn uplink_cpu(ctx: XdpContext) -> u32 {
    let len = Frame::of(&ctx).len();
    count(Reason::Arrived.index(Program::UplinkXdp), 1, u64::from(len));
    XDP_PASS
}

/// A frame: its first piece, in which its headers are.
struct Frame {
    ctx: *mut xdp_md,
    start: usize,
    end: usize,
}

impl Frame {
    #[inline(always)]
    fn of(ctx: &XdpContext) -> Self {
        Self {
            ctx: ctx.as_ptr().cast(),
            start: ctx.data(),
            end: ctx.data_end(),
        }
    }

    /// Bytes of all its pieces, from the IP header on.
    #[inline(always)]
    fn len(&self) -> u32 {
        // SAFETY: the context is valid for the program's run.
        let whole = unsafe { bpf_xdp_get_buff_len(self.ctx) };
        (whole as u32).saturating_sub(ETHERNET as u32)
    }

    #[inline(always)]
    fn protocol(&self) -> Option<[u8; 2]> {
        self.read(12)
    }

    #[inline(always)]
    fn read<T>(&self, offset: usize) -> Option<T> {
        let at = self.start + offset;
        if at + size_of::<T>() > self.end {
            return None;
        }
        // SAFETY: within the frame, as the verifier checks again; `T` is an array of integers.
        Some(unsafe { (at as *const T).read_unaligned() })
    }
}

impl Bytes for Frame {
    #[inline(always)]
    fn load<const N: usize>(&self, offset: u32) -> Option<[u32; N]> {
        self.read(ETHERNET + offset as usize)
    }
}

/// The map `sas` as lookups.
struct Sas;

#[inline(always)]
fn find<F: Family>(address: F::Addr, spi: u32) -> Option<u32> {
    let id = SaId {
        destination: octets(F::wide(address)),
        spi: spi.to_ne_bytes(),
    };
    // SAFETY: without preallocation the memory of a removed entry is not used again while the program runs.
    unsafe { SAS.get(&id) }.map(|sa| sa.cpu)
}

impl<F: Family> Associations<F> for Sas {
    #[inline(always)]
    fn cpu(&self, destination: F::Addr, spi: u32) -> Option<u32> {
        find::<F>(destination, spi)
    }

    #[inline(always)]
    fn is_ours(&self, address: F::Addr) -> bool {
        find::<F>(address, 0).is_some()
    }

    #[inline(always)]
    fn this_cpu(&self) -> u32 {
        // SAFETY: takes nothing.
        unsafe { bpf_get_smp_processor_id() }
    }
}
