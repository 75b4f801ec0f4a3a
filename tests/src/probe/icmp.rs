//! ICMP echo, both families.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicU16, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use rustix::net::sockopt::{Timeout, set_socket_timeout};
use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, ipproto};

use super::Tally;
use crate::place::Place;

/// Identifies the lab's echoes; several probes may run at the same time.
static NEXT_ID: AtomicU16 = AtomicU16::new(0x4c41);

/// Length of an ICMP echo header.
const HEADER: usize = 8;

/// Sends `count` echoes of `size` bytes each to `to`, each given `wait` for its answer.
///
/// # Errors
/// When there is no socket, not when there is no answer or no route.
pub fn ping(from: &Place, to: IpAddr, size: usize, count: u32, wait: Duration) -> Result<Tally> {
    let socket = from
        .run(|| open(to))?
        .with_context(|| format!("opening an ICMP socket in {}", from.name))?;
    let id = NEXT_ID.fetch_add(1, Ordering::Relaxed);
    let mut tally = Tally::default();
    for sequence in 0..count {
        tally.sent += 1;
        let started = Instant::now();
        let packet = echo(to.is_ipv6(), id, sequence as u16, size);
        // No route, or refused by a rule: an echo without an answer.
        if rustix::net::sendto(&socket, &packet, SendFlags::empty(), &SocketAddr::new(to, 0)).is_err() {
            thread::sleep(wait.min(Duration::from_millis(20)));
            continue;
        }
        if answered(&socket, to.is_ipv6(), &packet, started + wait)? {
            tally.count(started.elapsed());
        }
    }
    Ok(tally)
}

fn open(to: IpAddr) -> io::Result<OwnedFd> {
    let (family, protocol) = if to.is_ipv6() {
        (AddressFamily::INET6, ipproto::ICMPV6)
    } else {
        (AddressFamily::INET, ipproto::ICMP)
    };
    let socket = rustix::net::socket_with(family, SocketType::RAW, SocketFlags::CLOEXEC, Some(protocol))?;
    set_socket_timeout(&socket, Timeout::Recv, Some(Duration::from_millis(20)))?;
    Ok(socket)
}

/// An echo request.
fn echo(v6: bool, id: u16, sequence: u16, size: usize) -> Vec<u8> {
    let mut packet = vec![if v6 { 128 } else { 8 }, 0, 0, 0];
    packet.extend(id.to_be_bytes());
    packet.extend(sequence.to_be_bytes());
    packet.extend((0..size).map(|index| index as u8));
    // The kernel fills in ICMPv6's checksum, which covers addresses.
    if !v6 {
        let sum = checksum(&packet);
        packet[2..4].copy_from_slice(&sum.to_be_bytes());
    }
    packet
}

/// Whether the answer to `request` arrives before `end`.
fn answered(socket: &OwnedFd, v6: bool, request: &[u8], end: Instant) -> Result<bool> {
    let mut buffer = vec![0_u8; request.len() + 128];
    while Instant::now() < end {
        let length = match rustix::net::recv(socket, &mut buffer[..], RecvFlags::empty()) {
            Ok((length, _)) => length,
            Err(rustix::io::Errno::AGAIN | rustix::io::Errno::INTR) => continue,
            Err(error) => return Err(error).context("receiving an echo"),
        };
        let packet = &buffer[..length];
        // An IPv4 raw socket gives the IP header too.
        let header = if v6 {
            0
        } else {
            usize::from(packet.first().unwrap_or(&0) & 0xf) * 4
        };
        if packet
            .get(header..)
            .is_some_and(|answer| is_answer(v6, request, answer))
        {
            return Ok(true);
        }
    }
    Ok(false)
}

/// Whether `answer` is the echo reply with `request`'s identity and content.
fn is_answer(v6: bool, request: &[u8], answer: &[u8]) -> bool {
    let reply = if v6 { 129 } else { 0 };
    answer.len() >= HEADER && answer[0] == reply && answer[4..] == request[4..]
}

/// The internet checksum (RFC 1071).
pub fn checksum(bytes: &[u8]) -> u16 {
    let mut sum: u32 = bytes
        .chunks(2)
        .map(|pair| u32::from(u16::from_be_bytes([pair[0], *pair.get(1).unwrap_or(&0)])))
        .sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !(sum as u16)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_packet_with_its_checksum_sums_up_to_zero() {
        for size in [0, 1, 56, 1471] {
            assert_eq!(checksum(&echo(false, 7, 9, size)), 0, "{size}");
        }
    }

    #[test]
    fn only_the_same_identity_and_content_is_an_answer() {
        let request = echo(false, 7, 9, 16);
        let mut answer = request.clone();
        answer[0] = 0;
        assert!(is_answer(false, &request, &answer));
        answer[20] ^= 1;
        assert!(!is_answer(false, &request, &answer));
        assert!(!is_answer(false, &request, &request));
    }
}
