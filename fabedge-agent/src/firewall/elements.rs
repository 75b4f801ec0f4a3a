//! Elements of our sets, changed over netlink in one transaction: what `nft -f` would do, without the start of a program that
//! first reads all that a set holds.

use std::collections::BTreeSet;
use std::io;
use std::net::IpAddr;

use ipnet::IpNet;
use netlink_packet_core::{
    DefaultNla, Emitable as _, ErrorBuffer, NLA_F_NESTED, NLM_F_ACK, NLM_F_CREATE, NLM_F_REQUEST,
    NLMSG_ERROR, NetlinkBuffer, NetlinkHeader,
};
use netlink_sys::constants::NETLINK_NETFILTER;
use netlink_sys::{Socket, SocketAddr};

use crate::netlink::OwnPort;

/// What changes in a set of the table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Change {
    /// The set.
    pub set: String,
    /// Elements that go, each one that is there.
    pub deleted: BTreeSet<IpNet>,
    /// Elements that come, none of which is there then.
    pub added: BTreeSet<IpNet>,
}

/// The kernel did not take a change, and no part of it.
#[derive(Debug, thiserror::Error)]
#[error("changing elements of nftables sets over netlink")]
pub struct Error(#[source] io::Error);

/// Name and family of our table, as the kernel has them.
const TABLE: &[u8] = b"fabedge\0";
const FAMILY: u8 = libc::NFPROTO_INET as u8;

/// `enum nft_set_elem_list_attributes`, `nft_list_attributes`, `nft_set_elem_attributes`, `nft_data_attributes` and
/// `nft_set_elem_flags` of linux/netfilter/nf_tables.h.
const NFTA_SET_ELEM_LIST_TABLE: u16 = 1;
const NFTA_SET_ELEM_LIST_SET: u16 = 2;
const NFTA_SET_ELEM_LIST_ELEMENTS: u16 = 3;
const NFTA_LIST_ELEM: u16 = 1;
const NFTA_SET_ELEM_KEY: u16 = 1;
const NFTA_SET_ELEM_FLAGS: u16 = 3;
const NFTA_DATA_VALUE: u16 = 1;
const NFT_SET_ELEM_INTERVAL_END: u32 = 1;

/// So many prefixes at most in one message, for an attribute has 64 KiB at most.
const CHUNK: usize = 256;

/// The elements of our table's sets in the network namespace in which they were first changed.
#[derive(Debug, Default)]
pub struct Elements {
    /// It stays open: when it closes, the kernel waits until nobody sees what was deleted any more (`nft_rcv_nl_event` in
    /// net/netfilter/nf_tables_api.c), some ten milliseconds.
    socket: Option<Socket>,
    port: OwnPort,
}

impl Elements {
    /// Changes the sets.
    ///
    /// # Errors
    /// When the kernel refuses any of it; nothing has changed then.
    pub fn change(&mut self, changes: &[Change]) -> Result<(), Error> {
        let (messages, batch) = batch(changes);
        let open = || open(&self.port);
        let socket = self.socket.take().map_or_else(open, Ok).map_err(Error)?;
        let outcome = transact(&socket, &batch, messages).map_err(Error);
        if outcome.is_ok() {
            self.socket = Some(socket);
        } else {
            // Answers may be left in it.
            self.port.set(0);
        }
        outcome
    }

    /// By which the kernel's notices of these changes are known.
    pub fn port(&self) -> &OwnPort {
        &self.port
    }
}

fn open(port: &OwnPort) -> io::Result<Socket> {
    let mut socket = Socket::new(NETLINK_NETFILTER)?;
    port.set(socket.bind_auto()?.port_number());
    socket.connect(&SocketAddr::new(0, 0))?;
    socket.set_non_blocking(true)?;
    Ok(socket)
}

/// The transaction, and how many of its messages are answered.
fn batch(changes: &[Change]) -> (usize, Vec<u8>) {
    let subsystem = libc::NFNL_SUBSYS_NFTABLES as u16;
    let mut messages = Messages::default();
    messages.add(libc::NFNL_MSG_BATCH_BEGIN as u16, 0, (0, subsystem), &[]);
    let mut answered = 0;
    let steps = [
        (libc::NFT_MSG_DELSETELEM, 0, false),
        (libc::NFT_MSG_NEWSETELEM, NLM_F_CREATE, true),
    ];
    // All that goes before anything that comes: one may be a part of the other.
    for (kind, flags, adds) in steps {
        for change in changes {
            let nets: Vec<IpNet> = if adds { &change.added } else { &change.deleted }
                .iter()
                .copied()
                .collect();
            for chunk in nets.chunks(CHUNK) {
                let mut set = change.set.clone().into_bytes();
                set.push(0);
                let elements: Vec<DefaultNla> = chunk.iter().flat_map(interval).collect();
                let attributes = [
                    DefaultNla::new(NFTA_SET_ELEM_LIST_TABLE, TABLE.to_vec()),
                    DefaultNla::new(NFTA_SET_ELEM_LIST_SET, set),
                    nested(NFTA_SET_ELEM_LIST_ELEMENTS, &elements),
                ];
                let kind = subsystem << 8 | kind as u16;
                messages.add(kind, flags | NLM_F_ACK, (FAMILY, 0), &attributes);
                answered += 1;
            }
        }
    }
    messages.add(libc::NFNL_MSG_BATCH_END as u16, 0, (0, subsystem), &[]);
    (answered, messages.bytes)
}

#[derive(Default)]
struct Messages {
    bytes: Vec<u8>,
    count: u32,
}

impl Messages {
    /// Appends one with a `struct nfgenmsg` of this family and resource.
    fn add(&mut self, kind: u16, flags: u16, (family, resource): (u8, u16), attributes: &[DefaultNla]) {
        const GENERIC: usize = 4;
        let mut header = NetlinkHeader::default();
        header.message_type = kind;
        header.flags = NLM_F_REQUEST | flags;
        header.sequence_number = self.count;
        self.count += 1;
        let start = self.bytes.len();
        let body = start + header.buffer_len();
        let length = header.buffer_len() + GENERIC + attributes.buffer_len();
        header.length = length as u32;
        self.bytes.resize(start + length, 0);
        header.emit(&mut self.bytes[start..]);
        self.bytes[body] = family;
        self.bytes[body + 2..][..2].copy_from_slice(&resource.to_be_bytes());
        attributes.emit(&mut self.bytes[body + GENERIC..]);
    }
}

/// An interval set holds where prefixes begin and where they have ended; the last one of all has no end.
fn interval(net: &IpNet) -> impl Iterator<Item = DefaultNla> + use<> {
    let behind: Option<IpAddr> = match net.broadcast() {
        IpAddr::V4(last) => u32::from(last).checked_add(1).map(|next| IpAddr::V4(next.into())),
        IpAddr::V6(last) => u128::from(last)
            .checked_add(1)
            .map(|next| IpAddr::V6(next.into())),
    };
    let begin = element(net.network(), 0);
    [begin]
        .into_iter()
        .chain(behind.map(|behind| element(behind, NFT_SET_ELEM_INTERVAL_END)))
}

fn element(key: IpAddr, flags: u32) -> DefaultNla {
    let key = match key {
        IpAddr::V4(address) => address.octets().to_vec(),
        IpAddr::V6(address) => address.octets().to_vec(),
    };
    let key = nested(NFTA_SET_ELEM_KEY, &[DefaultNla::new(NFTA_DATA_VALUE, key)]);
    let flags = DefaultNla::new(NFTA_SET_ELEM_FLAGS, flags.to_be_bytes().to_vec());
    nested(NFTA_LIST_ELEM, &[flags, key])
}

fn nested(kind: u16, attributes: &[DefaultNla]) -> DefaultNla {
    let mut value = vec![0; attributes.buffer_len()];
    attributes.emit(&mut value);
    DefaultNla::new(kind | NLA_F_NESTED, value)
}

/// Sends a transaction, which the kernel carries out and answers before this returns from sending.
fn transact(socket: &Socket, batch: &[u8], mut answers: usize) -> io::Result<()> {
    socket.send(batch, 0)?;
    while answers > 0 {
        let (bytes, _) = socket.recv_from_full()?;
        let mut rest = &*bytes;
        while !rest.is_empty() {
            let malformed = |error| io::Error::new(io::ErrorKind::InvalidData, error);
            let message = NetlinkBuffer::new_checked(rest).map_err(malformed)?;
            if message.message_type() == NLMSG_ERROR {
                let answer = ErrorBuffer::new_checked(message.payload()).map_err(malformed)?;
                if let Some(code) = answer.code() {
                    return Err(io::Error::from_raw_os_error(-code.get()));
                }
                answers = answers.saturating_sub(1);
            }
            let padded = (message.length() as usize).next_multiple_of(4);
            rest = rest.get(padded..).unwrap_or_default();
        }
    }
    Ok(())
}
