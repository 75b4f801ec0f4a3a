//! Packets, made byte by byte.

use std::net::{Ipv4Addr, Ipv6Addr};

/// An Ethernet header in front of an IP packet.
pub fn ethernet(packet: &[u8]) -> Vec<u8> {
    let kind: [u8; 2] = if packet[0] >> 4 == 6 {
        [0x86, 0xdd]
    } else {
        [0x08, 0x00]
    };
    [&[2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2][..], &kind, packet].concat()
}

/// An IPv4 packet.
pub fn ipv4(src: &str, dst: &str, ttl: u8, protocol: u8, payload: &[u8]) -> Vec<u8> {
    let total = u16::try_from(20 + payload.len()).unwrap().to_be_bytes();
    let mut packet = vec![
        0x45, 0, total[0], total[1], 0x12, 0x34, 0x40, 0, ttl, protocol, 0, 0,
    ];
    packet.extend(src.parse::<Ipv4Addr>().unwrap().octets());
    packet.extend(dst.parse::<Ipv4Addr>().unwrap().octets());
    let sum = checksum(&packet);
    packet[10..12].copy_from_slice(&sum.to_be_bytes());
    packet.extend(payload);
    packet
}

/// An IPv6 packet.
pub fn ipv6(src: &str, dst: &str, hops: u8, next: u8, payload: &[u8]) -> Vec<u8> {
    let length = u16::try_from(payload.len()).unwrap().to_be_bytes();
    let mut packet = vec![0x60, 0, 0, 0, length[0], length[1], next, hops];
    packet.extend(src.parse::<Ipv6Addr>().unwrap().octets());
    packet.extend(dst.parse::<Ipv6Addr>().unwrap().octets());
    packet.extend(payload);
    packet
}

/// A UDP datagram. The checksum is left out, which IPv4 allows.
pub fn udp(src: u16, dst: u16, data: &[u8]) -> Vec<u8> {
    let length = u16::try_from(8 + data.len()).unwrap();
    let mut datagram: Vec<u8> = [src, dst, length, 0]
        .iter()
        .flat_map(|word| word.to_be_bytes())
        .collect();
    datagram.extend(data);
    datagram
}

/// The same packet with other bytes at an offset, and a right IPv4 header checksum.
pub fn with(mut packet: Vec<u8>, offset: usize, bytes: &[u8]) -> Vec<u8> {
    packet[offset..offset + bytes.len()].copy_from_slice(bytes);
    if packet[0] >> 4 == 4 {
        let header = usize::from(packet[0] & 0xf) * 4;
        packet[10..12].fill(0);
        if let Some(header) = packet.get(..header) {
            let sum = checksum(header);
            packet[10..12].copy_from_slice(&sum.to_be_bytes());
        }
    }
    packet
}

/// The Internet checksum (RFC 1071).
pub fn checksum(bytes: &[u8]) -> u16 {
    let mut sum: u32 = bytes
        .chunks(2)
        .map(|pair| u32::from(pair[0]) << 8 | u32::from(*pair.get(1).unwrap_or(&0)))
        .sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !(sum as u16)
}
