//! Counting instructions: under `qemu -icount` the machine's one clock advances by a nanosecond per instruction, so
//! the time between the first packet and the last is what they took, on both nodes, in the WAN and in the pods.

use std::fs;
use std::io;
use std::net::{Ipv4Addr, SocketAddrV4, UdpSocket};
use std::time::Instant;

use anyhow::{Context, Result, bail};

use crate::place::Place;

/// Where datagrams are received.
const PORT: u16 = 9999;
/// Bytes of an IPv4 and a UDP header.
pub const HEADERS: usize = 28;
/// How many datagrams are on the way at once when they go one way.
const BURST: usize = 16;
/// How often nothing may have arrived before a datagram counts as lost.
const PATIENCE: u32 = 50_000;
/// Datagrams in front of those that count: neighbours, flows and caches are settled then.
const WARM_UP: usize = 48;

/// One end: a pod, or what stands for it.
#[derive(Clone, Debug)]
pub struct End {
    /// Where its sockets are.
    pub place: Place,
    /// Its address.
    pub address: Ipv4Addr,
}

/// Which way packets go.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Way {
    /// From one pod to the other, several on the way at once.
    OneWay,
    /// One to the other pod, then one back.
    RoundTrip,
}

impl Way {
    /// Both.
    pub const ALL: [Self; 2] = [Self::OneWay, Self::RoundTrip];

    /// As results name it.
    pub fn name(self) -> &'static str {
        match self {
            Self::OneWay => "one way",
            Self::RoundTrip => "request/response",
        }
    }
}

/// What was counted, per packet.
#[derive(Clone, Copy, Debug)]
pub struct Count {
    /// Instructions, of everything that the machine did.
    pub instructions: f64,
    /// Bytes that a packet from the first end to the second had on the WAN's link, Ethernet header included.
    pub wire: f64,
    /// How often a socket was asked in vain.
    pub vain: f64,
}

/// Two sockets that know each other.
struct Pair {
    ends: [UdpSocket; 2],
    payload: Vec<u8>,
    buffer: Vec<u8>,
    vain: u64,
}

/// Sends `packets` IP packets of `size` bytes between the ends and says what one took. `wan` is the router between
/// them and `link` its interface towards the first.
///
/// # Errors
/// When a packet is lost, or a socket cannot be had.
pub fn count(ends: &[End; 2], wan: (&Place, &str), size: usize, way: Way, packets: usize) -> Result<Count> {
    let mut pair = Pair::open(ends, size)?;
    pair.exchange(way, WARM_UP)?;
    pair.vain = 0;
    let before = received(wan)?;
    let started = Instant::now();
    pair.exchange(way, packets)?;
    let instructions = started.elapsed().as_nanos() as f64;
    let bytes = received(wan)? - before;
    // Of a round trip one packet comes this way.
    let sent = match way {
        Way::OneWay => packets,
        Way::RoundTrip => packets / 2,
    };
    Ok(Count {
        instructions: instructions / packets as f64,
        wire: bytes as f64 / sent as f64,
        vain: pair.vain as f64 / packets as f64,
    })
}

impl Pair {
    fn open(ends: &[End; 2], size: usize) -> Result<Self> {
        let open = |end: &End| -> Result<UdpSocket> {
            let socket = end
                .place
                .run(|| UdpSocket::bind(SocketAddrV4::new(end.address, PORT)))?;
            socket.with_context(|| format!("opening a socket in {}", end.place.name))
        };
        let sockets = [open(&ends[0])?, open(&ends[1])?];
        for (socket, other) in sockets.iter().zip(ends.iter().rev()) {
            socket
                .connect(SocketAddrV4::new(other.address, PORT))
                .and_then(|()| socket.set_nonblocking(true))
                .with_context(|| format!("connecting a socket to {}", other.address))?;
        }
        Ok(Self {
            ends: sockets,
            payload: vec![7; size - HEADERS],
            buffer: vec![0; 2048],
            vain: 0,
        })
    }

    fn exchange(&mut self, way: Way, packets: usize) -> Result<()> {
        let (burst, directions): (usize, &[(usize, usize)]) = match way {
            Way::OneWay => (BURST, &[(0, 1)]),
            Way::RoundTrip => (1, &[(0, 1), (1, 0)]),
        };
        for _ in 0..packets / burst / directions.len() {
            for &(from, to) in directions {
                for _ in 0..burst {
                    self.ends[from]
                        .send(&self.payload)
                        .context("sending a datagram")?;
                }
                for _ in 0..burst {
                    self.receive(to)?;
                }
            }
        }
        Ok(())
    }

    fn receive(&mut self, end: usize) -> Result<()> {
        for _ in 0..PATIENCE {
            match self.ends[end].recv(&mut self.buffer) {
                Ok(length) if length == self.payload.len() => return Ok(()),
                Ok(length) => bail!(
                    "a datagram of {length} bytes arrived, {} were sent",
                    self.payload.len()
                ),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    self.vain += 1;
                    // Whoever has work to do for the packet, a kernel thread perhaps, shall get the processor.
                    std::thread::yield_now();
                }
                Err(error) => return Err(error).context("receiving a datagram"),
            }
        }
        bail!("a datagram of {} bytes was lost", self.payload.len())
    }
}

/// Bytes that an interface of a place has received; asked without starting a program.
fn received((place, link): (&Place, &str)) -> Result<u64> {
    let table = place
        .run(|| fs::read_to_string("/proc/thread-self/net/dev"))?
        .with_context(|| format!("reading the interfaces of {}", place.name))?;
    table
        .lines()
        .find_map(|line| line.trim().strip_prefix(link)?.strip_prefix(':'))
        .and_then(|counters| counters.split_whitespace().next()?.parse().ok())
        .with_context(|| format!("{} has no interface {link}", place.name))
}
