//! What a packet is, as far as the decision needs it.

use fabedge_common::abi::{Flow, Reason};

use crate::family::{Family, V4, V6};

const ICMP: u8 = 1;
const TCP: u8 = 6;
const UDP: u8 = 17;
const ICMPV6: u8 = 58;
const FRAGMENT: u8 = 44;
const SCTP: u8 = 132;
const UDP_LITE: u8 = 136;

/// Where bytes come from; offsets count from the IP header.
pub trait Bytes {
    /// `N` words at `offset`, bytes in the order of the packet; none where the packet is shorter.
    fn load<const N: usize>(&self, offset: u32) -> Option<[u32; N]>;
}

/// The fixed IP header.
pub struct Header<F: Family> {
    /// Source address.
    pub src: F::Addr,
    /// Destination address.
    pub dst: F::Addr,
    /// TTL or hop limit.
    pub ttl: u8,
    /// Transport protocol (IPv6: what follows the fixed header).
    pub protocol: u8,
    /// Why the packet cannot take the fast path because of this header alone.
    pub unfit: Option<Reason>,
    /// A fragment that is not the first: it starts with payload, not with a transport header.
    pub later_fragment: bool,
    /// Length of the packet by its own account; 0 for an aggregate of more than 64 KiB.
    pub total: u32,
    /// The first 20 bytes, as they are.
    pub start: [u32; 5],
}

/// A family whose header can be read.
pub trait Parse: Family + Sized {
    /// Reads the fixed header.
    fn header(bytes: &impl Bytes) -> Result<Header<Self>, Reason>;
}

impl Parse for V4 {
    #[inline(always)]
    fn header(bytes: &impl Bytes) -> Result<Header<Self>, Reason> {
        let start: [u32; 5] = bytes.load(0).ok_or(Reason::Malformed)?;
        let [version, _, total_high, total_low] = start[0].to_ne_bytes();
        let [_, _, fragment_high, fragment_low] = start[1].to_ne_bytes();
        let [ttl, protocol, _, _] = start[2].to_ne_bytes();
        if version >> 4 != 4 || version & 0xf < 5 {
            return Err(Reason::Malformed);
        }
        let later_fragment = fragment_high & 0x1f != 0 || fragment_low != 0;
        let more_fragments = fragment_high & 0x20 != 0;
        let unfit = if version & 0xf != 5 {
            Some(Reason::Options)
        } else if later_fragment || more_fragments {
            Some(Reason::Fragment)
        } else if ttl <= 1 {
            Some(Reason::Ttl)
        } else {
            None
        };
        let total = u32::from(u16::from_be_bytes([total_high, total_low]));
        Ok(Header {
            src: start[3],
            dst: start[4],
            ttl,
            protocol,
            unfit,
            later_fragment,
            total,
            start,
        })
    }
}

impl Parse for V6 {
    #[inline(always)]
    fn header(bytes: &impl Bytes) -> Result<Header<Self>, Reason> {
        let words: [u32; 10] = bytes.load(0).ok_or(Reason::Malformed)?;
        let [version, _, _, _] = words[0].to_ne_bytes();
        let [payload_high, payload_low, protocol, ttl] = words[1].to_ne_bytes();
        if version >> 4 != 6 {
            return Err(Reason::Malformed);
        }
        let unfit = match protocol {
            FRAGMENT => Some(Reason::Fragment),
            // Hop-by-hop, routing, ESP, AH, none, destination options, mobility, HIP, shim6, experiments.
            0 | 43 | 50 | 51 | 59 | 60 | 135 | 139 | 140 | 253 | 254 => Some(Reason::Options),
            _ if ttl <= 1 => Some(Reason::Ttl),
            _ => None,
        };
        let total = match u16::from_be_bytes([payload_high, payload_low]) {
            0 => 0,
            payload => u32::from(payload) + Self::HEADER,
        };
        Ok(Header {
            src: [words[2], words[3], words[4], words[5]],
            dst: [words[6], words[7], words[8], words[9]],
            ttl,
            protocol,
            unfit,
            later_fragment: false,
            total,
            start: [words[0], words[1], words[2], words[3], words[4]],
        })
    }
}

impl<F: Family> Header<F> {
    /// The direction of its flow. For headers of which [`Header::unfit`] says nothing about options or fragments.
    ///
    /// # Errors
    /// [`Reason::IcmpControl`] for ICMP other than echo, [`Reason::Fragment`] behind an IPv6 fragment header,
    /// [`Reason::Malformed`] where the ports are missing.
    #[inline(always)]
    pub fn flow(&self, bytes: &impl Bytes) -> Result<Flow, Reason> {
        let (src_port, dst_port) = match self.protocol {
            TCP | UDP | SCTP | UDP_LITE => {
                let [ports] = bytes.load(F::HEADER).ok_or(Reason::Malformed)?;
                let [a, b, c, d] = ports.to_ne_bytes();
                ([a, b], [c, d])
            }
            ICMP | ICMPV6 => {
                let [control, echo] = bytes.load(F::HEADER).ok_or(Reason::Malformed)?;
                match (self.protocol, control.to_ne_bytes()[0]) {
                    (ICMP, 0 | 8) | (ICMPV6, 128 | 129) => {}
                    _ => return Err(Reason::IcmpControl),
                }
                let [a, b, _, _] = echo.to_ne_bytes();
                ([a, b], [a, b])
            }
            FRAGMENT => return Err(Reason::Fragment),
            _ => ([0; 2], [0; 2]),
        };
        Ok(Flow {
            src: F::wide(self.src),
            dst: F::wide(self.dst),
            src_port,
            dst_port,
            protocol: self.protocol,
            padding: [0; 3],
        })
    }

    /// Bytes of the transport header in front of each segment of a GSO packet.
    #[inline(always)]
    pub fn segment_header(&self, bytes: &impl Bytes) -> u32 {
        match self.protocol {
            TCP => bytes
                .load(F::HEADER + 12)
                .map_or(60, |[word]| u32::from(word.to_ne_bytes()[0] >> 4) * 4),
            _ => 8,
        }
    }
}
