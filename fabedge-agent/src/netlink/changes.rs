//! The notice that links, addresses, routes or rules changed, or that nftables did, without saying how: whoever
//! hears it observes anew.

use std::fmt;
use std::io::{self, ErrorKind};

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

/// A subscription to the kernel's notices.
pub struct Changes {
    socket: TokioSocket,
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
        Self::open(NETLINK_ROUTE, &GROUPS)
    }

    /// Subscribes to nftables, in the network namespace of the calling thread.
    ///
    /// # Errors
    /// When the socket cannot be made or bound.
    pub fn nftables() -> Result<Self, Error> {
        Self::open(NETLINK_NETFILTER, &[NFTABLES])
    }

    fn open(protocol: isize, groups: &[u32]) -> Result<Self, Error> {
        let failed = |error: io::Error| Error::new("subscribing to the kernel's network changes", error);
        let mut socket = TokioSocket::new(protocol).map_err(failed)?;
        let groups = groups.iter().fold(0, |mask, group| mask | 1 << (group - 1));
        socket
            .socket_mut()
            .bind(&SocketAddr::new(0, groups))
            .map_err(failed)?;
        Ok(Self { socket })
    }

    /// Waits until something has changed since the last call. Everything that is queued counts as one change.
    ///
    /// # Errors
    /// When the socket is broken; an overrun is no error, it is a change.
    pub async fn next(&mut self) -> Result<(), Error> {
        // The content is of no interest: the rest of a datagram is discarded with its first byte.
        let mut received = self.socket.recv(&mut &mut [0_u8; 1][..]).await;
        for _ in 0..BATCH {
            match received {
                Ok(_) => {}
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(()),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                // Notices were lost because the queue was full.
                Err(error) if error.raw_os_error() == Some(libc::ENOBUFS) => {}
                Err(error) => return Err(Error::new("waiting for the kernel's network changes", error)),
            }
            received = self
                .socket
                .socket_ref()
                .recv(&mut &mut [0_u8; 1][..], 0)
                .map(|_| ());
        }
        Ok(())
    }
}
