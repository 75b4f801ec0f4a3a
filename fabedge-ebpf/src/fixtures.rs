//! Packets for the tests, made byte by byte.

use std::{
    cell::RefCell,
    collections::{BTreeMap, BTreeSet},
};

use fabedge_common::abi::{Flow, Pod, Program, Route};

use crate::{
    classify::Tables,
    family::{Family, V4, V6, octets},
    parse::{Bytes, FlowKey},
};

/// A packet from its IP header on.
pub struct Raw(pub Vec<u8>);

impl Bytes for Raw {
    fn load<const N: usize>(&self, offset: u32) -> Option<[u32; N]> {
        let start = offset as usize;
        let bytes = self.0.get(start..start + 4 * N)?;
        let mut words = [0; N];
        for (word, chunk) in words.iter_mut().zip(bytes.chunks(4)) {
            *word = u32::from_ne_bytes([chunk[0], chunk[1], chunk[2], chunk[3]]);
        }
        Some(words)
    }
}

/// An IPv4 address as the programs hold it.
pub fn v4(a: u8, b: u8, c: u8, d: u8) -> u32 {
    u32::from_ne_bytes([a, b, c, d])
}

/// An IPv6 address as the programs hold it: `fd00::<net>:<host>`.
pub fn v6(net: u8, host: u8) -> [u32; 4] {
    let mut bytes = [0; 16];
    bytes[0] = 0xfd;
    bytes[13] = net;
    bytes[15] = host;
    [0, 4, 8, 12].map(|i| u32::from_ne_bytes([bytes[i], bytes[i + 1], bytes[i + 2], bytes[i + 3]]))
}

/// An IPv4 packet with this payload.
pub fn ipv4(src: u32, dst: u32, protocol: u8, payload: &[u8]) -> Raw {
    let total = (20 + payload.len()) as u16;
    let mut bytes = vec![0x45, 0];
    bytes.extend(total.to_be_bytes());
    bytes.extend([0, 1, 0x40, 0, 64, protocol, 0, 0]);
    bytes.extend(src.to_ne_bytes());
    bytes.extend(dst.to_ne_bytes());
    bytes.extend(payload);
    Raw(bytes)
}

/// An IPv6 packet with this payload.
pub fn ipv6(src: [u32; 4], dst: [u32; 4], protocol: u8, payload: &[u8]) -> Raw {
    let mut bytes = vec![0x60, 0, 0, 0];
    bytes.extend((payload.len() as u16).to_be_bytes());
    bytes.extend([protocol, 64]);
    bytes.extend(octets(src));
    bytes.extend(octets(dst));
    bytes.extend(payload);
    Raw(bytes)
}

/// A UDP header with these ports and no payload.
pub fn udp(src: u16, dst: u16) -> Vec<u8> {
    [src, dst, 8, 0]
        .iter()
        .flat_map(|word| word.to_be_bytes())
        .collect()
}

/// A TCP header of 32 bytes (with timestamps) with these ports.
pub fn tcp(src: u16, dst: u16) -> Vec<u8> {
    let mut bytes: Vec<u8> = [src, dst].iter().flat_map(|word| word.to_be_bytes()).collect();
    bytes.resize(32, 0);
    bytes[12] = 8 << 4;
    bytes
}

/// An ICMP header with this type and identifier.
pub fn icmp(kind: u8, id: u16) -> Vec<u8> {
    let mut bytes = vec![kind, 0, 0, 0];
    bytes.extend(id.to_be_bytes());
    bytes.extend([0, 1]);
    bytes
}

/// Maps of the test: exact prefixes are enough, since the longest-prefix match is the kernel's.
#[derive(Default)]
pub struct Model {
    /// Routes by the bytes that all addresses of the prefix share.
    pub routes: BTreeMap<Vec<u8>, Route>,
    /// Pods by address.
    pub pods: BTreeMap<[u8; 16], Pod>,
    /// Flows that the stack carries.
    pub flows: RefCell<BTreeSet<Flow>>,
}

impl Model {
    fn longest(&self, addr: &[u8]) -> Option<&Route> {
        self.routes
            .iter()
            .filter(|(prefix, _)| addr.starts_with(prefix))
            .max_by_key(|(prefix, _)| prefix.len())
            .map(|(_, route)| route)
    }
}

impl Tables<V4> for Model {
    fn route(&self, addr: u32) -> Option<Route> {
        self.longest(&addr.to_ne_bytes()).copied()
    }
    fn pod(&self, addr: u32) -> Option<&Pod> {
        self.pods.get(&octets(V4::wide(addr)))
    }
    fn stack_carries_any(&self) -> bool {
        !self.flows.borrow().is_empty()
    }
    fn stack_carries(&self, flow: &FlowKey) -> bool {
        self.flows.borrow().contains(&Flow::from(*flow))
    }
    fn record(&self, flow: &FlowKey, _: Program) -> bool {
        self.flows.borrow_mut().insert(Flow::from(*flow))
    }
}

impl Tables<V6> for Model {
    fn route(&self, addr: [u32; 4]) -> Option<Route> {
        self.longest(&octets(addr)).copied()
    }
    fn pod(&self, addr: [u32; 4]) -> Option<&Pod> {
        self.pods.get(&octets(addr))
    }
    fn stack_carries_any(&self) -> bool {
        !self.flows.borrow().is_empty()
    }
    fn stack_carries(&self, flow: &FlowKey) -> bool {
        self.flows.borrow().contains(&Flow::from(*flow))
    }
    fn record(&self, flow: &FlowKey, _: Program) -> bool {
        self.flows.borrow_mut().insert(Flow::from(*flow))
    }
}
