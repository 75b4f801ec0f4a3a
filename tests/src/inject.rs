//! Plaintext that claims to come from a peer's pod, put onto edge2's LAN by its neighbour.

use std::net::Ipv4Addr;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use rustix::net::{AddressFamily, SendFlags, SocketFlags, SocketType, ipproto};

use crate::place::Place;
use crate::pod::Pod;
use crate::probe::icmp::checksum;
use crate::world::World;
use crate::world::addresses::{EDGE2, LAN_HOST};

/// The UDP port to which injected datagrams go.
const PORT: u16 = 7070;

/// Sends `count` datagrams from edge2's LAN to `victim`, a pod of edge2, with `source` as their sender; gives how
/// many arrived in the pod.
///
/// # Errors
/// When a socket cannot be had.
pub fn from_lan(world: &World, source: Ipv4Addr, victim: &Pod, count: u32) -> Result<u32> {
    let inbox = victim
        .place
        .run(|| std::net::UdpSocket::bind((Ipv4Addr::UNSPECIFIED, PORT)))?
        .with_context(|| format!("receiving in {}", victim.place.name))?;
    inbox
        .set_read_timeout(Some(Duration::from_millis(50)))
        .context("preparing a UDP socket")?;
    let lan = world.router("lan2")?;
    // The neighbour knows the way: the node's own address on the LAN.
    let route = format!("{} via {} dev br0 src {LAN_HOST}", victim.v4, EDGE2.node);
    lan.ip(&format!("route replace {route}"))?;
    let sent = send(lan, source, victim.v4, count);
    let arrived = receive(&inbox, count);
    lan.ip(&format!("route del {}", victim.v4))?;
    sent?;
    Ok(arrived)
}

/// Sends the forged datagrams through a raw socket.
fn send(lan: &Place, source: Ipv4Addr, destination: Ipv4Addr, count: u32) -> Result<()> {
    let socket = lan
        .run(|| {
            rustix::net::socket_with(
                AddressFamily::INET,
                SocketType::RAW,
                SocketFlags::CLOEXEC,
                // IPPROTO_RAW: the IP header is ours to write.
                Some(ipproto::RAW),
            )
        })?
        .context("opening a raw socket in lan2")?;
    for number in 0..count {
        let packet = datagram(source, destination, number);
        let to = std::net::SocketAddr::from((destination, 0));
        rustix::net::sendto(&socket, &packet, SendFlags::empty(), &to).context("injecting a datagram")?;
    }
    Ok(())
}

/// An IPv4 UDP datagram without a UDP checksum, which IPv4 allows.
fn datagram(source: Ipv4Addr, destination: Ipv4Addr, number: u32) -> Vec<u8> {
    let payload = number.to_be_bytes();
    let udp_length = 8 + payload.len() as u16;
    let mut packet = vec![0x45, 0];
    packet.extend((20 + udp_length).to_be_bytes());
    packet.extend([0, 0, 0, 0, 64, 17, 0, 0]);
    packet.extend(source.octets());
    packet.extend(destination.octets());
    let sum = checksum(&packet);
    packet[10..12].copy_from_slice(&sum.to_be_bytes());
    packet.extend(PORT.to_be_bytes());
    packet.extend(PORT.to_be_bytes());
    packet.extend(udp_length.to_be_bytes());
    packet.extend([0, 0]);
    packet.extend(payload);
    packet
}

/// Counts what arrives, at most until `expected` have or a second has passed.
fn receive(inbox: &std::net::UdpSocket, expected: u32) -> u32 {
    let end = Instant::now() + Duration::from_secs(1);
    let mut buffer = [0_u8; 64];
    let mut arrived = 0;
    while arrived < expected && Instant::now() < end {
        // A timeout is no arrival.
        if inbox.recv(&mut buffer).is_ok() {
            arrived += 1;
        }
    }
    arrived
}
