//! The layout of everything in a map, held at compile time: a change here is a change of the ABI.

use core::mem::{align_of, offset_of, size_of};

use super::{Counter, Flow, Peer, Pod, Route, SaCpu, SaId, StackFlow, State};

macro_rules! layout {
    ($type:ty, size $size:literal, align $align:literal, $($field:ident at $offset:literal),+) => {
        const _: () = assert!(size_of::<$type>() == $size && align_of::<$type>() == $align);
        $(const _: () = assert!(offset_of!($type, $field) == $offset);)+
    };
}

layout!(Route, size 20, align 4, kind at 0, ifindex at 4, reqid at 8, flags at 12, mtu at 16);
layout!(Pod, size 20, align 4, ifindex at 0, flags at 4, pod_mac at 8, gateway_mac at 14);
layout!(Peer, size 32, align 8, tx_packets at 0, tx_bytes at 8, rx_packets at 16, rx_bytes at 24);
layout!(Counter, size 16, align 8, packets at 0, bytes at 8);
layout!(Flow, size 40, align 8, src at 0, dst at 16, src_port at 32, dst_port at 34, protocol at 36, padding at 37);
layout!(StackFlow, size 4, align 4, seen_by at 0);
layout!(State, size 8, align 4, version at 0, flows_recorded at 4);
layout!(SaId, size 20, align 4, destination at 0, spi at 16);
layout!(SaCpu, size 8, align 4, cpu at 0, reqid at 4);
