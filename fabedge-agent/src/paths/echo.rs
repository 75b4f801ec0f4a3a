//! ICMP echo requests of chosen sizes through a tunnel.

use std::collections::BTreeSet;
use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use rustix::net::sockopt::{
    Ipv4PathMtuDiscovery, Ipv6PathMtuDiscovery, set_ip_mtu_discover, set_ipv6_mtu_discover,
};
use socket2::{Domain, Protocol, Socket, Type};
use tokio::net::UdpSocket;
use tokio::time::{Instant, timeout_at};

use crate::desired::paths::Path;
use crate::marks;

/// How long the first answer may take.
const FIRST: Duration = Duration::from_secs(1);

/// By how much a later answer may be later than it should be.
const JITTER: Duration = Duration::from_millis(200);

/// ICMP's header (RFC 792, RFC 4443 §4.1).
const HEADER: usize = 8;

/// Why a path cannot be measured.
#[derive(Debug, thiserror::Error)]
#[error("{attempted} (echo requests need CAP_NET_RAW)")]
pub struct Error {
    attempted: String,
    source: io::Error,
}

/// A socket for one path.
#[derive(Debug)]
pub struct Echo {
    /// A raw socket; tokio's type only reads and writes.
    socket: UdpSocket,
    path: Path,
    /// How long an answer took at most.
    delay: Option<Duration>,
}

impl Echo {
    /// Opens it.
    ///
    /// # Errors
    /// When it cannot be had: without the right to, or while address or device are not there.
    pub fn open(path: &Path) -> Result<Self, Error> {
        let open = || -> io::Result<UdpSocket> {
            let v6 = path.from.is_ipv6();
            let (domain, protocol) = if v6 {
                (Domain::IPV6, Protocol::ICMPV6)
            } else {
                (Domain::IPV4, Protocol::ICMPV4)
            };
            let socket = Socket::new(domain, Type::RAW.nonblocking().cloexec(), Some(protocol))?;
            // Whatever the routes say: through the tunnel, or not at all.
            socket.bind_device(Some(path.device.as_bytes()))?;
            socket.set_mark(marks::PROBE_MARK)?;
            // Larger than the route says, too.
            if v6 {
                set_ipv6_mtu_discover(&socket, Ipv6PathMtuDiscovery::PROBE)?;
            } else {
                set_ip_mtu_discover(&socket, Ipv4PathMtuDiscovery::PROBE)?;
            }
            socket.bind(&SocketAddr::new(path.from, 0).into())?;
            socket.connect(&SocketAddr::new(path.to, 0).into())?;
            UdpSocket::from_std(socket.into())
        };
        let socket = open().map_err(|source| Error {
            attempted: format!(
                "opening a socket from {} to {} by {}",
                path.from, path.to, path.device
            ),
            source,
        })?;
        Ok(Self {
            socket,
            path: path.clone(),
            delay: None,
        })
    }

    /// Sends packets of these sizes; which of them were answered.
    pub async fn ask(&mut self, sizes: &[u32]) -> BTreeSet<u32> {
        let started = Instant::now();
        for size in sizes {
            let request = request(self.path.to.is_ipv6(), *size);
            // Refused where the kernel itself knows that it is too large: not answered.
            if let Err(error) = self.socket.send(&request).await {
                tracing::trace!(%error, size, to = %self.path.to, "not sent");
            }
        }
        let mut answered = BTreeSet::new();
        let mut buffer = vec![0; 65536];
        while answered.len() < sizes.len() {
            let patience = self.delay.map_or(FIRST, |delay| 3 * delay + JITTER);
            let Ok(received) = timeout_at(started + patience, self.socket.recv(&mut buffer)).await else {
                break;
            };
            let size = match received {
                Ok(length) => answer(self.path.to.is_ipv6(), &buffer[..length]),
                // About one of ours: an answer that does not come.
                Err(error) => {
                    tracing::trace!(%error, to = %self.path.to, "an error instead of an answer");
                    None
                }
            };
            if let Some(size) = size {
                answered.insert(size);
                self.delay = self.delay.max(Some(started.elapsed()));
            }
        }
        answered
    }
}

/// Identifies our requests among others of this node.
fn identifier() -> [u8; 2] {
    (std::process::id() as u16).to_be_bytes()
}

/// A request that becomes a packet of `size` bytes; its sequence number is the size.
fn request(v6: bool, size: u32) -> Vec<u8> {
    let around = if v6 { 40 } else { 20 };
    let mut message = vec![0; (size as usize).saturating_sub(around).max(HEADER)];
    message[0] = if v6 { 128 } else { 8 };
    message[4..6].copy_from_slice(&identifier());
    message[6..8].copy_from_slice(&(size as u16).to_be_bytes());
    if !v6 {
        // The kernel computes ICMPv6's.
        let sum = checksum(&message);
        message[2..4].copy_from_slice(&sum.to_be_bytes());
    }
    message
}

/// The size of the packet that `bytes` answers, if it is an answer of ours.
fn answer(v6: bool, bytes: &[u8]) -> Option<u32> {
    // With IPv4 a raw socket gives the header too.
    let message = if v6 {
        bytes
    } else {
        bytes.get(usize::from(bytes.first()? & 0xf) * 4..)?
    };
    let header: &[u8; HEADER] = message.first_chunk()?;
    let kind = if v6 { 129 } else { 0 };
    let size = u16::from_be_bytes([header[6], header[7]]);
    (header[0] == kind && header[4..6] == identifier()).then_some(size.into())
}

/// RFC 1071.
fn checksum(bytes: &[u8]) -> u16 {
    let words = bytes
        .chunks(2)
        .map(|pair| u32::from(pair[0]) << 8 | pair.get(1).map_or(0, |low| u32::from(*low)));
    let sum = words.fold(0, |sum, word| {
        let sum = sum + word;
        (sum & 0xffff) + (sum >> 16)
    });
    !(sum as u16)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_has_its_size_and_an_answer_tells_it() {
        for (v6, around, reply) in [(false, 20, 0), (true, 40, 129)] {
            let mut message = request(v6, 1301);
            assert_eq!(message.len() + around, 1301);
            assert!(v6 || checksum(&message) == 0);
            message[0] = reply;
            let packet = if v6 {
                message.clone()
            } else {
                [[0x45; 1].as_slice(), &[0; 19], &message].concat()
            };
            assert_eq!(answer(v6, &packet), Some(1301));
            let others = message[4] ^ 0xff;
            let mut packet = packet;
            let at = packet.len() - message.len() + 4;
            packet[at] = others;
            assert_eq!(answer(v6, &packet), None, "somebody else's");
            assert_eq!(answer(v6, &packet[..3]), None);
        }
    }
}
