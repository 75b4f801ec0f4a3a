//! What a packet is, as far as the decision needs it.

use fabedge_common::abi::{Flow, Reason};

use crate::family::{Family, V4, V6, octets};

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

/// Source and destination port as they stand in the packet; of an ICMP echo the identifier, twice.
#[derive(Clone, Copy)]
pub struct Ports(u32);

/// A [`Flow`] as words, which is how the programs can fill and turn it at little cost.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C, align(8))]
pub struct FlowKey(pub [u32; 10]);

impl FlowKey {
    /// The direction in which the answers go.
    #[inline(always)]
    pub fn reverse(self) -> Self {
        let [a, b, c, d, e, f, g, h, ports, protocol] = self.0;
        Self([e, f, g, h, a, b, c, d, ports.rotate_right(16), protocol])
    }
}

impl From<FlowKey> for Flow {
    fn from(FlowKey([a, b, c, d, e, f, g, h, ports, protocol]): FlowKey) -> Self {
        let [p, q, r, s] = ports.to_ne_bytes();
        Self {
            src: octets([a, b, c, d]),
            dst: octets([e, f, g, h]),
            src_port: [p, q],
            dst_port: [r, s],
            protocol: protocol.to_ne_bytes()[0],
            padding: [0; 3],
        }
    }
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
    /// What tells its flow from others between the same addresses. For headers of which [`Header::unfit`] says nothing
    /// about options or fragments.
    ///
    /// # Errors
    /// [`Reason::IcmpControl`] for ICMP other than echo, [`Reason::Fragment`] behind an IPv6 fragment header,
    /// [`Reason::Malformed`] where the ports are missing.
    #[inline(always)]
    pub fn ports(&self, bytes: &impl Bytes) -> Result<Ports, Reason> {
        match self.protocol {
            TCP | UDP | SCTP | UDP_LITE => {
                let [ports] = bytes.load(F::HEADER).ok_or(Reason::Malformed)?;
                Ok(Ports(ports))
            }
            ICMP | ICMPV6 => {
                let [control, echo] = bytes.load(F::HEADER).ok_or(Reason::Malformed)?;
                match (self.protocol, control.to_ne_bytes()[0]) {
                    (ICMP, 0 | 8) | (ICMPV6, 128 | 129) => {}
                    _ => return Err(Reason::IcmpControl),
                }
                let [a, b, _, _] = echo.to_ne_bytes();
                Ok(Ports(u32::from_ne_bytes([a, b, a, b])))
            }
            FRAGMENT => Err(Reason::Fragment),
            _ => Ok(Ports(0)),
        }
    }

    /// The direction of its flow.
    #[inline(always)]
    pub fn flow(&self, ports: Ports) -> FlowKey {
        let ([a, b, c, d], [e, f, g, h]) = (F::wide(self.src), F::wide(self.dst));
        FlowKey([
            a,
            b,
            c,
            d,
            e,
            f,
            g,
            h,
            ports.0,
            u32::from_ne_bytes([self.protocol, 0, 0, 0]),
        ])
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

#[cfg(test)]
mod tests {
    use fabedge_common::abi::mapped;

    use super::*;
    use crate::fixtures::{icmp, ipv4, ipv6, udp, v4, v6};

    fn key<F: Parse>(packet: &crate::fixtures::Raw) -> FlowKey {
        let header = F::header(packet).unwrap_or_else(|reason| panic!("{reason:?}"));
        let ports = header.ports(packet).unwrap_or_else(|reason| panic!("{reason:?}"));
        header.flow(ports)
    }

    #[test]
    fn words_of_a_flow_are_its_fields_in_order() {
        let key4 = key::<V4>(&ipv4(v4(10, 1, 2, 3), v4(10, 4, 5, 6), UDP, &udp(0x1234, 0x5678)));
        let flow = Flow {
            src: mapped([10, 1, 2, 3]),
            dst: mapped([10, 4, 5, 6]),
            src_port: [0x12, 0x34],
            dst_port: [0x56, 0x78],
            protocol: UDP,
            padding: [0; 3],
        };
        assert_eq!(Flow::from(key4), flow);
        assert_eq!(Flow::from(key4.reverse()), flow.reverse());
        // As the map sees it: the words in memory are the fields in memory.
        let memory: Vec<u8> = key4.0.iter().flat_map(|word| word.to_ne_bytes()).collect();
        let fields = [
            &flow.src[..],
            &flow.dst,
            &flow.src_port,
            &flow.dst_port,
            &[flow.protocol],
            &flow.padding,
        ];
        assert_eq!(memory, fields.concat());
    }

    #[test]
    fn an_echo_and_its_answer_are_one_flow() {
        let (a, b) = (v6(1, 1), v6(2, 2));
        let asked = key::<V6>(&ipv6(a, b, ICMPV6, &icmp(128, 77)));
        let answered = key::<V6>(&ipv6(b, a, ICMPV6, &icmp(129, 77)));
        assert_eq!(asked.reverse(), answered);
        assert_ne!(asked, key::<V6>(&ipv6(a, b, ICMPV6, &icmp(128, 78))));
    }
}
