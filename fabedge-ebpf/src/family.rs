//! The two address families, so that each decision is written once.

/// An address family.
pub trait Family {
    /// An address as words, each with its bytes in network order. Words, because the kernel's BPF machine has no
    /// unaligned access: byte arrays are copied byte by byte.
    type Addr: Copy;
    /// Bytes of the fixed header.
    const HEADER: u32;
    /// EtherType.
    const ETHER_TYPE: [u8; 2];

    /// The address as a flow key holds it: an IPv4 address is mapped.
    fn wide(addr: Self::Addr) -> [u32; 4];

    /// Whether packets to it stay with the stack whatever the routes say: to a group, to all, to this link or to
    /// this host only.
    fn is_local_scope(addr: Self::Addr) -> bool;
}

/// IPv4.
pub struct V4;

/// IPv6.
pub struct V6;

impl Family for V4 {
    type Addr = u32;
    const HEADER: u32 = 20;
    const ETHER_TYPE: [u8; 2] = [0x08, 0x00];

    #[inline(always)]
    fn wide(addr: u32) -> [u32; 4] {
        [0, 0, u32::from_ne_bytes([0, 0, 0xff, 0xff]), addr]
    }

    #[inline(always)]
    fn is_local_scope(addr: u32) -> bool {
        let [a, b, _, _] = addr.to_ne_bytes();
        // 0/8, 127/8, 169.254/16, 224/4, 240/4 with the broadcast address.
        a == 0 || a == 127 || a >= 224 || (a == 169 && b == 254)
    }
}

impl Family for V6 {
    type Addr = [u32; 4];
    const HEADER: u32 = 40;
    const ETHER_TYPE: [u8; 2] = [0x86, 0xdd];

    #[inline(always)]
    fn wide(addr: [u32; 4]) -> [u32; 4] {
        addr
    }

    #[inline(always)]
    fn is_local_scope(addr: [u32; 4]) -> bool {
        let [a, b, _, _] = addr[0].to_ne_bytes();
        // ff00::/8, fe80::/10; 0::/8 holds ::1, :: and mapped addresses.
        a == 0xff || (a == 0xfe && b & 0xc0 == 0x80) || a == 0
    }
}

/// The bytes of an IPv6 address.
#[inline(always)]
pub fn octets(addr: [u32; 4]) -> [u8; 16] {
    let [a, b, c, d] = addr.map(u32::to_ne_bytes);
    [
        a[0], a[1], a[2], a[3], b[0], b[1], b[2], b[3], c[0], c[1], c[2], c[3], d[0], d[1], d[2], d[3],
    ]
}
