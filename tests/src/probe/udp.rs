//! UDP datagrams of a chosen size, answered by a responder.

use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

use super::Tally;
use super::responder::WHO;
use crate::place::Place;

/// Opens a UDP socket in `place` that can talk to addresses like `peer`.
///
/// # Errors
/// When the socket cannot be had.
pub fn open(place: &Place, peer: SocketAddr) -> Result<UdpSocket> {
    place
        .run(|| -> io::Result<UdpSocket> {
            if peer.is_ipv6() {
                UdpSocket::bind((Ipv6Addr::UNSPECIFIED, 0))
            } else {
                UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))
            }
        })?
        .with_context(|| format!("opening a UDP socket in {}", place.name))
}

/// Sends `count` datagrams of `size` bytes to a responder at `to`, each given `wait` for its echo.
///
/// # Errors
/// When there is no socket, not when there is no answer.
pub fn exchange(from: &Place, to: SocketAddr, size: usize, count: u32, wait: Duration) -> Result<Tally> {
    let socket = open(from, to)?;
    let mut tally = Tally::default();
    for number in 0..count {
        tally.sent += 1;
        let mut payload: Vec<u8> = (0..size).map(|index| (index as u32 ^ number) as u8).collect();
        let head = payload.len().min(4);
        payload[..head].copy_from_slice(&number.to_be_bytes()[..head]);
        let started = Instant::now();
        if ask(&socket, to, &payload, wait, |answer| answer == payload).is_some() {
            tally.count(started.elapsed());
        }
    }
    Ok(tally)
}

/// The address by which a responder at `to` sees datagrams from here; none without an answer within `wait`.
///
/// # Errors
/// When there is no socket.
pub fn who(from: &Place, to: SocketAddr, wait: Duration) -> Result<Option<SocketAddr>> {
    let socket = open(from, to)?;
    let answer = ask(&socket, to, WHO, wait, |_| true);
    Ok(answer.and_then(|bytes| String::from_utf8(bytes).ok()?.parse().ok()))
}

/// Sends one datagram and waits for an answer that is `right`. Errors of the network are no answer.
fn ask(
    socket: &UdpSocket,
    to: SocketAddr,
    payload: &[u8],
    wait: Duration,
    right: impl Fn(&[u8]) -> bool,
) -> Option<Vec<u8>> {
    let end = Instant::now() + wait;
    let mut buffer = vec![0_u8; 65536];
    socket.send_to(payload, to).ok()?;
    loop {
        let left = end.checked_duration_since(Instant::now())?;
        socket
            .set_read_timeout(Some(left.max(Duration::from_millis(1))))
            .ok()?;
        match socket.recv_from(&mut buffer) {
            Ok((length, from)) if from == to && right(&buffer[..length]) => {
                return Some(buffer[..length].to_vec());
            }
            _ => {}
        }
    }
}
