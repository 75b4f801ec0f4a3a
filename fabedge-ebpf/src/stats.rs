//! Counting: each packet once per hook, under the reason of its verdict.

use fabedge_common::abi::{Program, Reason};
use fabedge_ebpf::{classify::Meta, family::Family, parse::Header};

use crate::{maps, packet::Packet};

/// What one packet adds to a counter.
#[derive(Clone, Copy)]
pub struct Amount {
    packets: u64,
    bytes: u64,
}

impl Amount {
    /// A packet with a header that says how long it is.
    #[inline(always)]
    pub fn with_header<F: Family>(packet: &Packet, header: &Header<F>, meta: &Meta) -> Self {
        let bytes = if header.total != 0 { header.total } else { meta.len };
        Self {
            packets: packet.segments(),
            bytes: u64::from(bytes),
        }
    }

    /// Any packet.
    #[inline(always)]
    pub fn of(packet: &Packet, meta: &Meta) -> Self {
        Self {
            packets: packet.segments(),
            bytes: u64::from(meta.len),
        }
    }

    #[inline(always)]
    pub fn count(self, program: Program, reason: Reason) {
        maps::count(reason.index(program), self.packets, self.bytes);
    }

    #[inline(always)]
    pub fn sent_to(self, reqid: u32) {
        maps::count_sent(reqid, self.packets, self.bytes);
    }

    #[inline(always)]
    pub fn received_from(self, reqid: u32) {
        maps::count_received(reqid, self.packets, self.bytes);
    }
}
