//! What a packet is. Pure.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use crate::world::addresses::is_private;

/// What a packet on the WAN is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Kind {
    /// ESP over IP.
    Esp,
    /// ESP in UDP.
    EspInUdp,
    /// IKE.
    Ike,
    /// A NAT keepalive.
    Keepalive,
    /// It shows an address of a pod or a service; described.
    Plaintext(String),
    /// Anything else.
    Other,
}

/// How many headers in headers are followed.
const DEPTH: usize = 4;

const ETH_IPV4: u16 = 0x0800;
const ETH_IPV6: u16 = 0x86dd;

/// The parts of an IP header that matter here.
struct Header<'a> {
    source: IpAddr,
    destination: IpAddr,
    protocol: u8,
    /// What follows; empty for a fragment that is not the first.
    payload: &'a [u8],
}

/// Classifies a packet of `length` bytes of which `bytes` are known, from the network header on.
pub fn classify(protocol: u16, bytes: &[u8], length: usize) -> Kind {
    let outer = match protocol {
        ETH_IPV4 | ETH_IPV6 => header(bytes),
        _ => None,
    };
    let Some(outer) = outer else {
        return Kind::Other;
    };
    if let Some(sample) = exposed(bytes, DEPTH) {
        return Kind::Plaintext(sample);
    }
    match outer.protocol {
        50 => Kind::Esp,
        17 => udp(outer.payload, length),
        _ => Kind::Other,
    }
}

/// UDP on IKE's ports.
fn udp(payload: &[u8], length: usize) -> Kind {
    let Some((ports, rest)) = payload.split_first_chunk::<8>() else {
        return Kind::Other;
    };
    let source = u16::from_be_bytes([ports[0], ports[1]]);
    let destination = u16::from_be_bytes([ports[2], ports[3]]);
    let uses = |port| source == port || destination == port;
    if uses(500) {
        return Kind::Ike;
    }
    if !uses(4500) {
        return Kind::Other;
    }
    match rest {
        [0, 0, 0, 0, ..] => Kind::Ike,
        // Short packets are padded by no one here, but the length field is the authority.
        [0xff, ..] if u16::from_be_bytes([ports[4], ports[5]]) == 9 => Kind::Keepalive,
        _ if length >= 8 => Kind::EspInUdp,
        _ => Kind::Other,
    }
}

/// Reads an IP header of either family.
fn header(bytes: &[u8]) -> Option<Header<'_>> {
    match bytes.first()? >> 4 {
        4 => {
            let fixed: &[u8; 20] = bytes.first_chunk()?;
            let first = u16::from_be_bytes([fixed[6], fixed[7]]) & 0x1fff == 0;
            let after = bytes.get(usize::from(fixed[0] & 0xf) * 4..).unwrap_or_default();
            Some(Header {
                source: Ipv4Addr::from(<[u8; 4]>::try_from(&fixed[12..16]).ok()?).into(),
                destination: Ipv4Addr::from(<[u8; 4]>::try_from(&fixed[16..20]).ok()?).into(),
                protocol: fixed[9],
                payload: if first { after } else { &[] },
            })
        }
        6 => {
            let fixed: &[u8; 40] = bytes.first_chunk()?;
            Some(Header {
                source: Ipv6Addr::from(<[u8; 16]>::try_from(&fixed[8..24]).ok()?).into(),
                destination: Ipv6Addr::from(<[u8; 16]>::try_from(&fixed[24..40]).ok()?).into(),
                protocol: fixed[6],
                payload: &bytes[40..],
            })
        }
        _ => None,
    }
}

/// Describes the packet if it, or one that it carries or quotes, has the address of a pod or a service.
fn exposed(bytes: &[u8], depth: usize) -> Option<String> {
    let header = header(bytes)?;
    if is_private(header.source) || is_private(header.destination) {
        return Some(format!(
            "{} -> {} protocol {}",
            header.source, header.destination, header.protocol
        ));
    }
    let depth = depth.checked_sub(1)?;
    let inner = match header.protocol {
        // IP in IP, both families.
        4 | 41 => header.payload,
        // GRE, without and with its optional fields (RFC 2890): two flag bytes, EtherType, then four each.
        47 => {
            let flags = *header.payload.first()?;
            let optional = [0x80, 0x20, 0x10].iter().filter(|bit| flags & **bit != 0).count();
            header.payload.get(4 + 4 * optional..)?
        }
        // An ICMP error quotes the packet that caused it.
        1 if matches!(header.payload.first()?, 3 | 5 | 11 | 12) => header.payload.get(8..)?,
        58 if matches!(header.payload.first()?, 1..=4) => header.payload.get(8..)?,
        // VXLAN on its port and on Linux' older one: 8 of UDP, 8 of VXLAN, 14 of Ethernet.
        17 if matches!(header.payload.get(2..4)?, [0x12, 0xb5] | [0x21, 0x18]) => header.payload.get(30..)?,
        _ => return None,
    };
    exposed(inner, depth)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ip4(source: [u8; 4], destination: [u8; 4], protocol: u8, payload: &[u8]) -> Vec<u8> {
        let mut packet = vec![0x45, 0, 0, 0, 0, 0, 0, 0, 64, protocol, 0, 0];
        packet.extend(source);
        packet.extend(destination);
        packet.extend(payload);
        packet
    }

    fn udp4(source: u16, destination: u16, payload: &[u8]) -> Vec<u8> {
        let mut datagram = Vec::new();
        datagram.extend(source.to_be_bytes());
        datagram.extend(destination.to_be_bytes());
        datagram.extend((payload.len() as u16 + 8).to_be_bytes());
        datagram.extend([0, 0]);
        datagram.extend(payload);
        ip4([172, 16, 1, 2], [10, 20, 8, 28], 17, &datagram)
    }

    fn of(packet: &[u8]) -> Kind {
        classify(ETH_IPV4, packet, packet.len())
    }

    const POD: [u8; 4] = [10, 233, 66, 2];
    const HOST: [u8; 4] = [172, 16, 2, 2];

    #[test]
    fn tunnels_are_told_apart() {
        assert_eq!(of(&ip4(HOST, [10, 20, 8, 28], 50, &[1; 40])), Kind::Esp);
        assert_eq!(of(&udp4(40001, 4500, &[1; 40])), Kind::EspInUdp);
        assert_eq!(of(&udp4(4500, 4500, &[0, 0, 0, 0, 9, 9])), Kind::Ike);
        assert_eq!(of(&udp4(500, 500, &[7; 40])), Kind::Ike);
        assert_eq!(of(&udp4(4500, 4500, &[0xff])), Kind::Keepalive);
        assert_eq!(of(&udp4(4500, 4500, &[0xff; 40])), Kind::EspInUdp);
        assert_eq!(of(&udp4(53, 53, &[1; 40])), Kind::Other);
        assert_eq!(classify(0x0806, &[0; 28], 28), Kind::Other);
    }

    #[test]
    fn a_pod_address_shows_through_every_wrapping() {
        let plain = ip4(HOST, POD, 17, &[0; 8]);
        let wrapped =
            |protocol, before: &[u8]| ip4(HOST, [10, 20, 8, 28], protocol, &[before, &plain].concat());
        let mut vxlan = vec![0x12, 0xb5];
        vxlan.extend([0x12, 0xb5]);
        vxlan.extend([0; 26]);
        for packet in [
            plain.clone(),
            ip4(POD, HOST, 6, &[]),
            wrapped(4, &[]),
            wrapped(47, &[0, 0, 8, 0]),
            wrapped(47, &[0x20, 0, 8, 0, 0, 0, 0, 1]),
            wrapped(1, &[3, 4, 0, 0, 0, 0, 0, 0]),
            wrapped(17, &vxlan),
        ] {
            assert!(matches!(of(&packet), Kind::Plaintext(_)), "{packet:?}");
        }
        let mut six = vec![0x60, 0, 0, 0, 0, 0, 58, 64];
        six.extend("fd00:20:8::28".parse::<Ipv6Addr>().unwrap().octets());
        six.extend("fd00:233:64:66::2".parse::<Ipv6Addr>().unwrap().octets());
        assert!(matches!(classify(ETH_IPV6, &six, 40), Kind::Plaintext(_)));
    }

    #[test]
    fn what_is_cut_short_is_no_panic() {
        let packet = ip4(HOST, [10, 20, 8, 28], 1, &[3, 4, 0, 0, 0, 0, 0, 0, 0x45]);
        for length in 0..packet.len() {
            assert_eq!(of(&packet[..length]), Kind::Other);
        }
    }
}
