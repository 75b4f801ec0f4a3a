//! A steady stream of numbered datagrams, to tell what an event cost: packets lost, and for how long nothing came.

use std::fmt;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow};

use super::udp;
use crate::observe;
use crate::place::Place;
use crate::pod::Pod;

/// How long datagrams may still be under way after the last was sent.
const GRACE: Duration = Duration::from_millis(700);

/// Bytes that may wait for the receiver: seconds' worth, so that a machine that is busy elsewhere loses nothing here
/// and only the network's losses count.
const QUEUE: usize = 16 << 20;

/// A running stream.
#[derive(Debug)]
pub struct Stream {
    stop: Arc<AtomicBool>,
    sent: Arc<AtomicU64>,
    received: Arc<AtomicU64>,
    sender: JoinHandle<Vec<u64>>,
    receiver: JoinHandle<Arrivals>,
    started: Instant,
    to: Place,
    /// What sockets there had thrown away before.
    overflowed: u64,
}

/// What came, in the order of arrival.
#[derive(Debug, Default)]
struct Arrivals {
    numbers: Vec<(u64, Instant)>,
}

/// What became of a stream.
#[derive(Clone, Copy, Debug)]
pub struct Report {
    /// Datagrams that the socket took.
    pub sent: u64,
    /// Datagrams that arrived, doubles not counted.
    pub received: u64,
    /// Sent and never seen.
    pub lost: u64,
    /// Doubles.
    pub doubled: u64,
    /// Datagrams that the receiving socket had no room for: lost, but not by the network.
    pub overflowed: u64,
    /// The longest time between two arrivals.
    pub longest_gap: Duration,
    /// Datagrams per second that were sent.
    pub rate: f64,
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} of {} lost at {:.0}/s, {} doubled, longest gap {} ms",
            self.lost,
            self.sent,
            self.rate,
            self.doubled,
            self.longest_gap.as_millis()
        )?;
        if self.overflowed > 0 {
            write!(f, ", {} found no room at the receiver", self.overflowed)?;
        }
        Ok(())
    }
}

impl Stream {
    /// Starts `rate` datagrams of `size` bytes per second from one place to an address of another.
    ///
    /// # Errors
    /// When a socket cannot be had.
    pub fn start(from: &Place, to: &Place, address: IpAddr, rate: u32, size: usize) -> Result<Self> {
        let inbound = to
            .run(|| -> io::Result<UdpSocket> {
                let any: IpAddr = if address.is_ipv6() {
                    Ipv6Addr::UNSPECIFIED.into()
                } else {
                    Ipv4Addr::UNSPECIFIED.into()
                };
                let socket = UdpSocket::bind((any, 0))?;
                socket.set_read_timeout(Some(Duration::from_millis(50)))?;
                rustix::net::sockopt::set_socket_recv_buffer_size_force(&socket, QUEUE)?;
                Ok(socket)
            })?
            .with_context(|| format!("receiving a stream in {}", to.name))?;
        let port = inbound.local_addr().context("asking for a port")?.port();
        let target = SocketAddr::new(address, port);
        let overflowed = overflows(to)?;
        let outbound = udp::open(from, target)?;
        let stop = Arc::new(AtomicBool::new(false));
        let sent = Arc::new(AtomicU64::new(0));
        let received = Arc::new(AtomicU64::new(0));
        let sender = thread::spawn({
            let (stop, sent) = (Arc::clone(&stop), Arc::clone(&sent));
            move || send(&outbound, target, rate, size, &stop, &sent)
        });
        let receiver = thread::spawn({
            let (stop, received) = (Arc::clone(&stop), Arc::clone(&received));
            move || receive(&inbound, &stop, &received)
        });
        Ok(Self {
            stop,
            sent,
            received,
            sender,
            receiver,
            started: Instant::now(),
            to: to.clone(),
            overflowed,
        })
    }

    /// How many were sent so far.
    pub fn sent(&self) -> u64 {
        self.sent.load(Ordering::Relaxed)
    }

    /// How many arrived so far, doubles included.
    pub fn received(&self) -> u64 {
        self.received.load(Ordering::Relaxed)
    }

    /// Waits until `count` more have arrived, at most `limit`; gives the time that took.
    pub fn wait_for(&self, count: u64, limit: Duration) -> Option<Duration> {
        let (started, goal) = (Instant::now(), self.received() + count);
        while started.elapsed() < limit {
            if self.received() >= goal {
                return Some(started.elapsed());
            }
            thread::sleep(Duration::from_millis(2));
        }
        None
    }

    /// Ends the stream and counts.
    ///
    /// # Errors
    /// When one of its threads panicked, or the kernel's counters cannot be read.
    pub fn finish(self) -> Result<Report> {
        self.stop.store(true, Ordering::Relaxed);
        let elapsed = self.started.elapsed();
        let sent = self.sender.join().map_err(|_| anyhow!("the sender panicked"))?;
        let arrivals = self
            .receiver
            .join()
            .map_err(|_| anyhow!("the receiver panicked"))?;
        Ok(Report {
            overflowed: overflows(&self.to)? - self.overflowed,
            ..report(&sent, &arrivals.numbers, elapsed)
        })
    }
}

/// Datagrams that sockets of a place had no room for so far.
fn overflows(place: &Place) -> Result<u64> {
    observe::snmp(place, "Udp", "RcvbufErrors")
}

/// Streams between two pods, both ways.
#[derive(Debug)]
pub struct Pair {
    /// From the one to the other.
    pub up: Stream,
    /// And back.
    pub down: Stream,
}

/// What became of both.
#[derive(Clone, Copy, Debug)]
pub struct Reports {
    /// From the one to the other.
    pub up: Report,
    /// And back.
    pub down: Report,
}

impl Reports {
    /// What was lost either way.
    pub fn lost(&self) -> u64 {
        self.up.lost + self.down.lost
    }
}

impl fmt::Display for Reports {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "up {}; down {}", self.up, self.down)
    }
}

impl Pair {
    /// Starts `rate` small datagrams per second each way.
    ///
    /// # Errors
    /// When a socket cannot be had.
    pub fn start(one: &Pod, other: &Pod, rate: u32) -> Result<Self> {
        Ok(Self {
            up: Stream::start(&one.place, &other.place, other.v4.into(), rate, 64)?,
            down: Stream::start(&other.place, &one.place, one.v4.into(), rate, 64)?,
        })
    }

    /// Waits until it flows both ways.
    ///
    /// # Errors
    /// When it does not within `limit`.
    pub fn wait(&self, when: &str, limit: Duration) -> Result<()> {
        for (way, stream) in [("up", &self.up), ("down", &self.down)] {
            stream
                .wait_for(100, limit)
                .with_context(|| format!("nothing flows {way} {when} within {limit:?}"))?;
        }
        Ok(())
    }

    /// Ends both and counts.
    ///
    /// # Errors
    /// As [`Stream::finish`].
    pub fn finish(self) -> Result<Reports> {
        Ok(Reports {
            up: self.up.finish()?,
            down: self.down.finish()?,
        })
    }
}

/// Sends numbered datagrams at a steady pace; gives the numbers that the socket took.
fn send(
    socket: &UdpSocket,
    to: SocketAddr,
    rate: u32,
    size: usize,
    stop: &AtomicBool,
    sent: &AtomicU64,
) -> Vec<u64> {
    let started = Instant::now();
    let mut taken = Vec::new();
    let mut payload = vec![0_u8; size.max(8)];
    let mut number = 0_u64;
    while !stop.load(Ordering::Relaxed) {
        let due = (started.elapsed().as_secs_f64() * f64::from(rate)) as u64;
        // Time that could not be kept is not made up for: a burst would overrun queues and be counted as loss.
        number = number.max(due.saturating_sub(10));
        while number < due {
            payload[..8].copy_from_slice(&number.to_be_bytes());
            if socket.send_to(&payload, to).is_ok() {
                taken.push(number);
                sent.fetch_add(1, Ordering::Relaxed);
            }
            number += 1;
        }
        thread::sleep(Duration::from_micros(500));
    }
    taken
}

/// Takes datagrams until a while after the stop.
fn receive(socket: &UdpSocket, stop: &AtomicBool, received: &AtomicU64) -> Arrivals {
    let mut arrivals = Arrivals::default();
    let mut buffer = vec![0_u8; 65536];
    let mut end = None;
    loop {
        if end.is_none() && stop.load(Ordering::Relaxed) {
            end = Some(Instant::now() + GRACE);
        }
        if end.is_some_and(|end| Instant::now() > end) {
            return arrivals;
        }
        if let Ok(length) = socket.recv(&mut buffer)
            && let Some(number) = buffer[..length].first_chunk()
        {
            arrivals
                .numbers
                .push((u64::from_be_bytes(*number), Instant::now()));
            received.fetch_add(1, Ordering::Relaxed);
        }
    }
}

fn report(sent: &[u64], arrivals: &[(u64, Instant)], elapsed: Duration) -> Report {
    let mut numbers: Vec<u64> = arrivals.iter().map(|(number, _)| *number).collect();
    numbers.sort_unstable();
    numbers.dedup();
    let lost = sent
        .iter()
        .filter(|number| numbers.binary_search(number).is_err())
        .count();
    let longest_gap = arrivals
        .windows(2)
        .map(|pair| pair[1].1 - pair[0].1)
        .max()
        .unwrap_or_default();
    Report {
        sent: sent.len() as u64,
        received: numbers.len() as u64,
        lost: lost as u64,
        doubled: (arrivals.len() - numbers.len()) as u64,
        overflowed: 0,
        longest_gap,
        rate: sent.len() as f64 / elapsed.as_secs_f64().max(1e-9),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn losses_doubles_and_gaps_are_told_apart() {
        let start = Instant::now();
        let at = |ms| start + Duration::from_millis(ms);
        let arrivals = [(0, at(0)), (2, at(1)), (2, at(2)), (1, at(3)), (5, at(90))];
        let report = report(&[0, 1, 2, 3, 4, 5], &arrivals, Duration::from_secs(1));
        assert_eq!((report.sent, report.received, report.lost), (6, 4, 2));
        assert_eq!(report.doubled, 1);
        assert_eq!(report.longest_gap, Duration::from_millis(87));
    }
}
