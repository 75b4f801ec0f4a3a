//! The notice that links, addresses, routes or rules changed, or that nftables did, without saying how: whoever
//! hears it observes anew.

use std::fmt;
use std::io::{self, ErrorKind};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use rtnetlink::sys::protocols::{NETLINK_NETFILTER, NETLINK_ROUTE};
use rtnetlink::sys::{AsyncSocket as _, AsyncSocketExt as _, SocketAddr, TokioSocket};

use super::Error;

/// `RTNLGRP_*` of `linux/rtnetlink.h`: LINK, IPV4_IFADDR, IPV4_ROUTE, IPV4_RULE, IPV6_IFADDR, IPV6_ROUTE,
/// IPV6_RULE.
const GROUPS: [u32; 7] = [1, 5, 7, 8, 9, 11, 19];

/// `NFNLGRP_NFTABLES` of `linux/netfilter/nfnetlink.h`: tables, chains, rules and sets, those of iptables-nft too.
const NFTABLES: u32 = 7;

/// At most so many notices are taken as one change: a flood of them must not keep the thread.
const BATCH: usize = 4096;

/// `struct nlmsghdr` of linux/netlink.h, whose last field is the port of the socket that asked for the change.
const HEADER: usize = 16;

/// The port of a socket of our own, whose changes are no news to us.
#[derive(Clone, Debug, Default)]
pub struct OwnPort(Arc<AtomicU32>);

impl OwnPort {
    /// Takes down which one it is; 0, the kernel's own: none is open.
    pub(crate) fn set(&self, port: u32) {
        self.0.store(port, Ordering::Relaxed);
    }

    fn sent(&self, header: &[u8; HEADER]) -> bool {
        let [.., a, b, c, d] = *header;
        let port = u32::from_ne_bytes([a, b, c, d]);
        port != 0 && port == self.0.load(Ordering::Relaxed)
    }
}

/// A subscription to the kernel's notices.
pub struct Changes {
    socket: TokioSocket,
    own: OwnPort,
}

impl fmt::Debug for Changes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Changes").finish_non_exhaustive()
    }
}

impl Changes {
    /// Subscribes to links, addresses, routes and rules, in the network namespace of the calling thread.
    ///
    /// # Errors
    /// When the socket cannot be made or bound.
    pub fn network() -> Result<Self, Error> {
        Self::open(NETLINK_ROUTE, &GROUPS, OwnPort::default())
    }

    /// Subscribes to what others than `own` do to nftables, in the network namespace of the calling thread.
    ///
    /// # Errors
    /// When the socket cannot be made or bound.
    pub fn nftables(own: OwnPort) -> Result<Self, Error> {
        Self::open(NETLINK_NETFILTER, &[NFTABLES], own)
    }

    fn open(protocol: isize, groups: &[u32], own: OwnPort) -> Result<Self, Error> {
        let failed = |error: io::Error| Error::new("subscribing to the kernel's network changes", error);
        let mut socket = TokioSocket::new(protocol).map_err(failed)?;
        let groups = groups.iter().fold(0, |mask, group| mask | 1 << (group - 1));
        socket
            .socket_mut()
            .bind(&SocketAddr::new(0, groups))
            .map_err(failed)?;
        Ok(Self { socket, own })
    }

    /// Waits until something has changed since the last call. Everything that is queued counts as one change.
    ///
    /// # Errors
    /// When the socket is broken; an overrun is no error, it is a change.
    pub async fn next(&mut self) -> Result<(), Error> {
        // The rest is of no interest: it is discarded with the header that is read.
        let mut header = [0_u8; HEADER];
        loop {
            let mut changed = false;
            let mut received = self.socket.recv(&mut &mut header[..]).await;
            for _ in 0..BATCH {
                match received {
                    Ok(()) => changed |= !self.own.sent(&header),
                    Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                    Err(error) if error.kind() == ErrorKind::Interrupted => {}
                    // Notices were lost because the queue was full.
                    Err(error) if error.raw_os_error() == Some(libc::ENOBUFS) => changed = true,
                    Err(error) => return Err(Error::new("waiting for the kernel's network changes", error)),
                }
                received = self.socket.socket_ref().recv(&mut &mut header[..], 0).map(|_| ());
            }
            if changed {
                return Ok(());
            }
        }
    }
}
