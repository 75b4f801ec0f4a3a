//! Which CPU decrypts a packet that arrived on an uplink. Pure: the map is behind [`Associations`], so that the host can
//! test every decision.

use fabedge_common::abi::Reason;

use crate::{
    family::{Family, V4},
    parse::{Bytes, Parse},
};

const ESP: u8 = 50;
const UDP: u8 = 17;

/// Where charon receives IKE and ESP in UDP (RFC 3948).
const NAT_TRAVERSAL: u16 = 4500;

/// SPI, sequence number, and the least that a trailer is padded to (RFC 4303 §2.4).
const ESP_LEAST: u32 = 12;

/// SPIs that IANA reserves end here (RFC 4303 §2.1).
const RESERVED: u32 = 255;

/// The inbound SAs of this node, as lookups.
pub trait Associations<F: Family> {
    /// The CPU of an SA; the SPI as it stands in the packet.
    fn cpu(&self, destination: F::Addr, spi: u32) -> Option<u32>;
    /// Whether SAs of ours end at this address.
    fn is_ours(&self, address: F::Addr) -> bool;
    /// The CPU on which this runs.
    fn this_cpu(&self) -> u32;
}

/// Verdict of `uplink_xdp`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Uplink {
    /// No ESP for us: nothing to count.
    Pass,
    /// ESP that stays on this CPU.
    Stay(Reason),
    /// ESP for this CPU.
    Cpu(u32),
    /// Nowhere.
    Drop(Reason),
}

/// An ESP packet, or what claims to be one.
struct Esp<F: Family> {
    destination: F::Addr,
    /// None where it can be no SA's.
    spi: Option<u32>,
}

/// A packet; `len` says how many bytes there are from the IP header on, where that is to be known.
#[inline(always)]
pub fn uplink<F: Parse>(bytes: &impl Bytes, len: impl FnOnce() -> u32, sas: &impl Associations<F>) -> Uplink {
    let Some(Esp { destination, spi }) = esp::<F>(bytes, len) else {
        return Uplink::Pass;
    };
    let cpu = spi.and_then(|spi| sas.cpu(destination, spi));
    match (cpu, spi) {
        // Here it can still be decrypted in GRO.
        (Some(cpu), _) if cpu == sas.this_cpu() => Uplink::Stay(Reason::ThisCpu),
        (Some(cpu), _) => Uplink::Cpu(cpu),
        (None, _) if !sas.is_ours(destination) => Uplink::Pass,
        (None, Some(_)) => Uplink::Stay(Reason::UnknownSa),
        (None, None) => Uplink::Drop(Reason::MalformedEsp),
    }
}

/// The ESP in a packet. That in fragments, and behind options, is seen when the stack has put it together.
#[inline(always)]
fn esp<F: Parse>(bytes: &impl Bytes, len: impl FnOnce() -> u32) -> Option<Esp<F>> {
    let header = F::header(bytes).ok()?;
    if header.protocol != ESP && header.protocol != UDP {
        return None;
    }
    match header.unfit {
        // To IPv6 ESP itself is an extension.
        Some(Reason::Options) if F::ETHER_TYPE == V4::ETHER_TYPE => return None,
        Some(Reason::Fragment) => return None,
        _ => {}
    }
    let payload = header.total.checked_sub(F::HEADER)?;
    let (spi, length) = match header.protocol {
        UDP => {
            let [ports, length_and_sum] = bytes.load(F::HEADER)?;
            let [_, _, high, low] = ports.to_ne_bytes();
            if u16::from_be_bytes([high, low]) != NAT_TRAVERSAL {
                return None;
            }
            let [high, low, _, _] = length_and_sum.to_ne_bytes();
            let length = u32::from(u16::from_be_bytes([high, low])).checked_sub(8)?;
            // A shorter one keeps a NAT's mapping alive; zero stands in front of IKE.
            let [spi] = bytes
                .load(F::HEADER + 8)
                .filter(|[spi]| *spi != 0 && length >= 4)?;
            let fits = length + 8 <= payload;
            (Some(spi), if fits { length } else { 0 })
        }
        _ => (bytes.load(F::HEADER).map(|[spi]| spi), payload),
    };
    let whole = length >= ESP_LEAST && header.total <= len();
    Some(Esp {
        destination: header.dst,
        spi: spi.filter(|spi| whole && u32::from_be(*spi) > RESERVED),
    })
}

#[cfg(test)]
mod tests;
