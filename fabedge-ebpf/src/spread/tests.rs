use std::collections::BTreeMap;

use fabedge_common::abi::Reason;

use super::{Associations, Uplink, uplink};
use crate::{
    family::{Family, V4, V6, octets},
    fixtures::{Raw, ipv4, ipv6, udp, v4, v6},
    parse::Parse,
};

const ESP: u8 = 50;
const UDP: u8 = 17;
const SPI: u32 = 0xc0de_0001;
const OTHER: u32 = 0xc0de_0002;

/// A node with the addresses 192.0.2.1 and fd00::1:1, and an SA at each for CPU 1 and one for CPU 0, where this runs.
struct Node(BTreeMap<([u8; 16], u32), u32>);

fn node() -> Node {
    let mut sas = BTreeMap::new();
    for address in [V4::wide(here4()), V6::wide(here6())] {
        sas.insert((octets(address), SPI), 1);
        sas.insert((octets(address), OTHER), 0);
    }
    Node(sas)
}

impl<F: Family> Associations<F> for Node {
    fn cpu(&self, destination: F::Addr, spi: u32) -> Option<u32> {
        self.0
            .get(&(octets(F::wide(destination)), u32::from_be(spi)))
            .copied()
    }
    fn is_ours(&self, address: F::Addr) -> bool {
        let address = octets(F::wide(address));
        self.0.keys().any(|(destination, _)| *destination == address)
    }
    fn this_cpu(&self) -> u32 {
        0
    }
}

fn here4() -> u32 {
    v4(192, 0, 2, 1)
}

fn here6() -> [u32; 4] {
    v6(1, 1)
}

/// ESP with this SPI, of `len` bytes.
fn esp(spi: u32, len: usize) -> Vec<u8> {
    let mut bytes = spi.to_be_bytes().to_vec();
    bytes.resize(len, 7);
    bytes
}

/// The same in UDP.
fn in_udp(to: u16, payload: &[u8]) -> Vec<u8> {
    let mut bytes = udp(61_000, to);
    bytes[4..6].copy_from_slice(&(8 + payload.len() as u16).to_be_bytes());
    bytes.extend(payload);
    bytes
}

fn seen<F: Parse>(packet: &Raw) -> Uplink {
    uplink::<F>(packet, || packet.0.len() as u32, &node())
}

/// The verdict on this payload to the node, which is the same in both families.
fn verdict(protocol: u8, payload: &[u8]) -> Uplink {
    let four = seen::<V4>(&ipv4(v4(198, 51, 100, 7), here4(), protocol, payload));
    let six = seen::<V6>(&ipv6(v6(9, 9), here6(), protocol, payload));
    assert_eq!(four, six);
    four
}

/// The same of a payload to somebody else.
fn elsewhere(protocol: u8, payload: &[u8]) -> Uplink {
    let four = seen::<V4>(&ipv4(v4(198, 51, 100, 7), v4(192, 0, 2, 9), protocol, payload));
    let six = seen::<V6>(&ipv6(v6(9, 9), v6(1, 2), protocol, payload));
    assert_eq!(four, six);
    four
}

#[test]
fn esp_goes_to_the_cpu_of_its_sa() {
    assert_eq!(verdict(ESP, &esp(SPI, 100)), Uplink::Cpu(1));
    assert_eq!(verdict(UDP, &in_udp(4500, &esp(SPI, 100))), Uplink::Cpu(1));
    // The least that there can be, and a frame that is padded.
    assert_eq!(verdict(ESP, &esp(SPI, 12)), Uplink::Cpu(1));
    let mut padded = ipv4(v4(198, 51, 100, 7), here4(), ESP, &esp(SPI, 12));
    padded.0.resize(46, 0);
    assert_eq!(seen::<V4>(&padded), Uplink::Cpu(1));
}

#[test]
fn esp_for_this_cpu_stays() {
    let stays = Uplink::Stay(Reason::ThisCpu);
    assert_eq!(verdict(ESP, &esp(OTHER, 100)), stays);
    assert_eq!(verdict(UDP, &in_udp(4500, &esp(OTHER, 100))), stays);
}

#[test]
fn an_unknown_spi_is_counted_where_it_is_to_us() {
    assert_eq!(
        verdict(ESP, &esp(0xc0de_0003, 100)),
        Uplink::Stay(Reason::UnknownSa)
    );
    assert_eq!(elsewhere(ESP, &esp(SPI, 100)), Uplink::Pass);
    assert_eq!(elsewhere(UDP, &in_udp(4500, &esp(SPI, 100))), Uplink::Pass);
}

#[test]
fn malformed_esp_to_us_is_dropped_and_to_others_is_theirs() {
    let mut cut = in_udp(4500, &esp(SPI, 100));
    cut[4..6].copy_from_slice(&300_u16.to_be_bytes());
    for (protocol, payload) in [
        (ESP, esp(SPI, 11)),
        (ESP, vec![1, 2, 3]),
        (ESP, esp(0, 100)),
        (ESP, esp(255, 100)),
        (UDP, in_udp(4500, &esp(255, 100))),
        (UDP, in_udp(4500, &esp(SPI, 8))),
        (UDP, cut),
    ] {
        assert_eq!(verdict(protocol, &payload), Uplink::Drop(Reason::MalformedEsp));
        assert_eq!(elsewhere(protocol, &payload), Uplink::Pass);
    }
    let mut short = ipv4(v4(198, 51, 100, 7), here4(), ESP, &esp(SPI, 100));
    short.0.truncate(60);
    assert_eq!(seen::<V4>(&short), Uplink::Drop(Reason::MalformedEsp));
}

#[test]
fn all_else_is_no_concern_of_ours() {
    let mut ike = vec![0; 4];
    ike.resize(200, 1);
    for (protocol, payload) in [
        (UDP, in_udp(4500, &ike)),
        (UDP, in_udp(4500, &[0xff])),
        (UDP, in_udp(500, &esp(SPI, 100))),
        (UDP, vec![0; 4]),
        (6, esp(SPI, 100)),
        (51, esp(SPI, 100)),
    ] {
        assert_eq!(
            verdict(protocol, &payload),
            Uplink::Pass,
            "{protocol} {payload:?}"
        );
    }
}

#[test]
fn fragments_and_options_are_put_together_first() {
    let whole = || ipv4(v4(198, 51, 100, 7), here4(), ESP, &esp(SPI, 100));
    for (offset, byte) in [(6, 0x20), (7, 3), (0, 0x46)] {
        let mut packet = whole();
        packet.0[offset] = byte;
        assert_eq!(seen::<V4>(&packet), Uplink::Pass, "{offset}");
    }
    // At its end, a hop more or less is nothing to it.
    let mut last = whole();
    last.0[8] = 1;
    assert_eq!(seen::<V4>(&last), Uplink::Cpu(1));
}
