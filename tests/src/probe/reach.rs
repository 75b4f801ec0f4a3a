//! Whether one pod reaches another: ping, UDP and TCP together.

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::thread;
use std::time::Duration;

use anyhow::{Result, anyhow};

use super::responder::PORT;
use super::{Tally, icmp, tcp, udp};
use crate::place::Place;
use crate::pod::Pod;

/// How many echoes and datagrams are tried.
const COUNT: u32 = 3;

/// How much TCP carries.
const BYTES: u64 = 64 * 1024;

/// What got through.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Reach {
    /// ICMP echoes.
    pub ping: Tally,
    /// UDP echoes of 512 bytes.
    pub udp: Tally,
    /// Whether 64 KiB of TCP arrived whole.
    pub tcp: bool,
}

impl Reach {
    /// Everything got through.
    pub fn all(&self) -> bool {
        self.ping.all() && self.udp.all() && self.tcp
    }

    /// Nothing got through.
    pub fn none(&self) -> bool {
        self.ping.none() && self.udp.none() && !self.tcp
    }
}

impl fmt::Display for Reach {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let tcp = if self.tcp { "ok" } else { "none" };
        write!(
            f,
            "ping {}, UDP {}/{}, TCP {tcp}",
            self.ping, self.udp.answered, self.udp.sent
        )
    }
}

/// Tries to reach `to` from `from`; `wait` bounds each single answer.
///
/// # Errors
/// When a socket cannot be had.
pub fn reach(from: &Pod, to: &Pod, v6: bool, wait: Duration) -> Result<Reach> {
    address(&from.place, to.address(v6)?, wait)
}

/// The same for whoever answers at an address.
///
/// # Errors
/// When a socket cannot be had.
pub fn address(from: &Place, address: IpAddr, wait: Duration) -> Result<Reach> {
    let there = SocketAddr::new(address, PORT);
    let ping = icmp::ping(from, address, 56, COUNT, wait)?;
    let udp = udp::exchange(from, there, 512, COUNT, wait)?;
    let tcp = tcp::connect(from, there, wait).is_ok() && tcp::upload(from, there, BYTES).is_ok();
    Ok(Reach { ping, udp, tcp })
}

/// [`reach`] for several pairs at the same time, in their order.
///
/// # Errors
/// When a socket cannot be had.
pub fn at_once(pairs: &[(&Pod, &Pod)], v6: bool, wait: Duration) -> Result<Vec<Reach>> {
    thread::scope(|scope| {
        let threads: Vec<_> = pairs
            .iter()
            .map(|(from, to)| scope.spawn(move || reach(from, to, v6, wait)))
            .collect();
        threads
            .into_iter()
            .map(|thread| thread.join().map_err(|_| anyhow!("a probe panicked"))?)
            .collect()
    })
}

/// Both directions between each pair at the same time.
///
/// # Errors
/// When a socket cannot be had.
pub fn both_ways(pairs: &[(&Pod, &Pod)], v6: bool, wait: Duration) -> Result<Vec<Reach>> {
    let doubled: Vec<_> = pairs.iter().flat_map(|&(a, b)| [(a, b), (b, a)]).collect();
    at_once(&doubled, v6, wait)
}
