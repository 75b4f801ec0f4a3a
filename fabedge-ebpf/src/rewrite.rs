//! What the fast path changes in a packet: what a router changes, the hop count and the link header.

/// TTL, protocol and checksum (bytes 8 to 11 of the IPv4 header) after one hop.
///
/// RFC 1624: with the TTL in the upper byte of its 16-bit word, one hop less means 0x0100 more in the checksum,
/// with the carry folded in.
#[inline(always)]
pub fn hop_v4(word: u32) -> u32 {
    let [ttl, protocol, high, low] = word.to_ne_bytes();
    let sum = u32::from(u16::from_be_bytes([high, low])) + 0x0100;
    let [high, low] = ((sum + (sum >> 16)) as u16).to_be_bytes();
    u32::from_ne_bytes([ttl.wrapping_sub(1), protocol, high, low])
}

/// An Ethernet header.
#[inline(always)]
pub fn ethernet(to: &[u8; 6], from: &[u8; 6], ether_type: [u8; 2]) -> [u8; 14] {
    [
        to[0],
        to[1],
        to[2],
        to[3],
        to[4],
        to[5],
        from[0],
        from[1],
        from[2],
        from[3],
        from[4],
        from[5],
        ether_type[0],
        ether_type[1],
    ]
}

#[cfg(test)]
mod tests {
    use super::hop_v4;

    fn checksum(header: &[u8]) -> u16 {
        let mut sum: u32 = header
            .chunks(2)
            .map(|pair| u32::from(u16::from_be_bytes([pair[0], pair[1]])))
            .sum();
        while sum > 0xffff {
            sum = (sum & 0xffff) + (sum >> 16);
        }
        !(sum as u16)
    }

    #[test]
    fn the_checksum_stays_right_for_every_ttl_and_every_carry() {
        for ttl in 2..=255u8 {
            for id in [0u16, 1, 0x00ff, 0x1234, 0x8000, 0xfeff, 0xff00, 0xffff] {
                let mut header = [
                    0x45, 0, 0, 84, 0, 0, 0x40, 0, ttl, 17, 0, 0, 10, 0, 0, 1, 10, 0, 1, 2,
                ];
                header[4..6].copy_from_slice(&id.to_be_bytes());
                let sum = checksum(&header);
                header[10..12].copy_from_slice(&sum.to_be_bytes());
                assert_eq!(checksum(&header), 0, "the test's own header");
                let word = u32::from_ne_bytes([header[8], header[9], header[10], header[11]]);
                header[8..12].copy_from_slice(&hop_v4(word).to_ne_bytes());
                assert_eq!(header[8], ttl - 1);
                assert_eq!(header[9], 17);
                assert_eq!(checksum(&header), 0, "ttl {ttl} id {id:#x}");
            }
        }
    }
}
