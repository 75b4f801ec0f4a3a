//! What a killed charon left in the kernel: states and policies with our `if_id` that the next charon does not know.

use std::collections::BTreeSet;
use std::io;
use std::net::IpAddr;

use ipnet::IpNet;
use netlink_packet_core::{
    NLM_F_ACK, NLM_F_DUMP, NLM_F_REQUEST, NetlinkHeader, NetlinkMessage, NetlinkPayload,
};
use netlink_packet_xfrm::policy::DelGetMessage as PolicyId;
use netlink_packet_xfrm::state::{DelGetMessage as StateId, GetDumpMessage};
use netlink_packet_xfrm::{Address, Selector, UserPolicyId, UserSaId, XfrmAttrs, XfrmMessage};
use netlink_sys::constants::NETLINK_XFRM;
use netlink_sys::{Socket, SocketAddr};

use super::plan::{ChildState, Ike};
use crate::marks;

/// `XFRM_POLICY_OUT` of the kernel; 0 is in, 2 is forward.
const OUT: u8 = 1;

/// What could not be asked of, or done in, the kernel.
#[derive(Debug, thiserror::Error)]
#[error("{attempted}")]
pub struct Error {
    attempted: String,
    source: io::Error,
}

/// One IPsec state.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct State {
    /// Where it leads.
    pub destination: IpAddr,
    /// Its SPI.
    pub spi: u32,
    /// `IPPROTO_ESP`.
    pub protocol: u8,
    /// Its reqid.
    pub reqid: u32,
}

/// One IPsec policy.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Policy {
    /// Source selector.
    pub source: IpNet,
    /// Destination selector.
    pub destination: IpNet,
    /// Direction, as the kernel numbers them.
    pub direction: u8,
    /// Reqid of the states it asks for.
    pub reqid: u32,
}

/// States and policies.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Leftovers {
    /// States.
    pub states: BTreeSet<State>,
    /// Policies.
    pub policies: BTreeSet<Policy>,
}

impl Leftovers {
    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.states.is_empty() && self.policies.is_empty()
    }

    /// Those of `self` that charon does not know. `self` must have been listed before `ikes`: what charon installed
    /// in between is in neither. Pure.
    pub fn unknown(&self, ikes: &[Ike]) -> Self {
        let children = || ikes.iter().flat_map(|ike| &ike.children);
        let spis: BTreeSet<u32> = children().flat_map(|child| child.spis).collect();
        let covered = |policy: &Policy| {
            let (local, remote) = if policy.direction == OUT {
                (policy.source, policy.destination)
            } else {
                (policy.destination, policy.source)
            };
            children()
                .filter(|child| child.reqid == policy.reqid)
                .any(|child| {
                    child.selectors.as_ref().is_none_or(|[locals, remotes]| {
                        locals.iter().any(|net| net.contains(&local))
                            && remotes.iter().any(|net| net.contains(&remote))
                    })
                })
        };
        Self {
            states: self
                .states
                .iter()
                .filter(|state| !spis.contains(&state.spi))
                .copied()
                .collect(),
            policies: self
                .policies
                .iter()
                .filter(|policy| !covered(policy))
                .copied()
                .collect(),
        }
    }

    /// Those of `self` that may go now: of peers that are not `wanted` (reqids), or that have a new CHILD_SA. The
    /// others still carry traffic, for the peer does not know yet that charon was killed. Pure.
    pub fn replaced(&self, wanted: &BTreeSet<u32>, ikes: &[Ike]) -> Self {
        let live: BTreeSet<u32> = ikes
            .iter()
            .flat_map(|ike| &ike.children)
            .filter(|child| child.state == ChildState::Live)
            .map(|child| child.reqid)
            .collect();
        let goes = |reqid: &u32| !wanted.contains(reqid) || live.contains(reqid);
        Self {
            states: self
                .states
                .iter()
                .filter(|state| goes(&state.reqid))
                .copied()
                .collect(),
            policies: self
                .policies
                .iter()
                .filter(|policy| goes(&policy.reqid))
                .copied()
                .collect(),
        }
    }
}

/// Every state with our `if_id`.
///
/// # Errors
/// When the kernel cannot list them.
pub fn states() -> Result<BTreeSet<State>, Error> {
    let mut states = BTreeSet::new();
    dump(XfrmMessage::GetDumpSa(GetDumpMessage::default()), |message| {
        if let XfrmMessage::AddSa(sa) = message
            && is_ours(&sa.nlas)
        {
            states.insert(State {
                destination: address(&sa.user_sa_info.id.daddr, sa.user_sa_info.family),
                spi: sa.user_sa_info.id.spi,
                protocol: sa.user_sa_info.id.proto,
                reqid: sa.user_sa_info.reqid,
            });
        }
    })
    .map_err(failed("states"))?;
    Ok(states)
}

fn failed(what: &str) -> impl FnOnce(io::Error) -> Error {
    let attempted = format!("listing the kernel's IPsec {what}");
    move |source| Error { attempted, source }
}

/// Every state and policy with our `if_id`.
///
/// # Errors
/// When the kernel cannot list them.
pub fn list() -> Result<Leftovers, Error> {
    let mut found = Leftovers {
        states: states()?,
        policies: BTreeSet::new(),
    };
    dump(XfrmMessage::GetPolicy(PolicyId::default()), |message| {
        if let XfrmMessage::AddPolicy(policy) = message
            && is_ours(&policy.nlas)
        {
            let info = &policy.user_policy_info;
            let reqid = policy.nlas.iter().find_map(|attribute| match attribute {
                XfrmAttrs::Template(templates) => templates.first().map(|template| template.reqid),
                _ => None,
            });
            let selector = &info.selector;
            let source = net(&selector.saddr, selector.prefixlen_s, selector.family);
            let destination = net(&selector.daddr, selector.prefixlen_d, selector.family);
            if let (Some(source), Some(destination)) = (source, destination) {
                let reqid = reqid.unwrap_or(0);
                found.policies.insert(Policy {
                    source,
                    destination,
                    direction: info.direction,
                    reqid,
                });
            }
        }
    })
    .map_err(failed("policies"))?;
    Ok(found)
}

/// Deletes one state.
///
/// # Errors
/// When the kernel refuses; that it is gone already is no error.
pub fn delete_state(state: &State) -> Result<(), Error> {
    let mut id = UserSaId {
        spi: state.spi,
        proto: state.protocol,
        ..UserSaId::default()
    };
    id.destination(&state.destination);
    delete(XfrmMessage::DeleteSa(StateId {
        user_sa_id: id,
        nlas: Vec::new(),
    }))
    .map_err(|source| Error {
        attempted: format!(
            "deleting the IPsec state {:#x} to {}",
            state.spi, state.destination
        ),
        source,
    })
}

/// Deletes one policy.
///
/// # Errors
/// When the kernel refuses; that it is gone already is no error.
pub fn delete_policy(policy: &Policy) -> Result<(), Error> {
    let mut selector = Selector::default();
    selector.source_prefix(&policy.source.addr(), policy.source.prefix_len());
    selector.destination_prefix(&policy.destination.addr(), policy.destination.prefix_len());
    let id = UserPolicyId {
        selector,
        direction: policy.direction,
        ..UserPolicyId::default()
    };
    // Part of a policy's identity, so that others' with the same selectors are safe.
    let nlas = vec![XfrmAttrs::IfId(marks::IF_ID)];
    delete(XfrmMessage::DeletePolicy(PolicyId {
        user_policy_id: id,
        nlas,
    }))
    .map_err(|source| Error {
        attempted: format!(
            "deleting the IPsec policy {} -> {}",
            policy.source, policy.destination
        ),
        source,
    })
}

fn is_ours(attributes: &[XfrmAttrs]) -> bool {
    attributes.contains(&XfrmAttrs::IfId(marks::IF_ID))
}

fn address(address: &Address, family: u16) -> IpAddr {
    if i32::from(family) == libc::AF_INET {
        address.to_ipv4().into()
    } else {
        address.to_ipv6().into()
    }
}

fn net(bytes: &Address, length: u8, family: u16) -> Option<IpNet> {
    IpNet::new(address(bytes, family), length).ok()
}

fn delete(message: XfrmMessage) -> io::Result<()> {
    match talk(message, NLM_F_ACK, |_| {}) {
        Err(error) if matches!(error.raw_os_error(), Some(libc::ESRCH | libc::ENOENT)) => Ok(()),
        result => result,
    }
}

fn dump(message: XfrmMessage, each: impl FnMut(XfrmMessage)) -> io::Result<()> {
    talk(message, NLM_F_DUMP, each)
}

/// One request and its answers. The kernel answers at once, so this does not wait.
///
/// Not by `netlink-proto`, which logs every message it carries, and states hold keys.
pub(super) fn talk(message: XfrmMessage, flags: u16, mut each: impl FnMut(XfrmMessage)) -> io::Result<()> {
    let mut socket = Socket::new(NETLINK_XFRM)?;
    socket.bind_auto()?;
    socket.connect(&SocketAddr::new(0, 0))?;
    let mut header = NetlinkHeader::default();
    header.flags = NLM_F_REQUEST | flags;
    let mut request = NetlinkMessage::new(header, NetlinkPayload::from(message));
    request.finalize();
    let mut buffer = vec![0; request.buffer_len()];
    request.serialize(&mut buffer);
    socket.send(&buffer, 0)?;
    loop {
        let (packet, _) = socket.recv_from_full()?;
        let mut rest = packet.as_slice();
        while !rest.is_empty() {
            let message = NetlinkMessage::<XfrmMessage>::deserialize(rest).map_err(io::Error::other)?;
            match message.payload {
                NetlinkPayload::Done(_) => return Ok(()),
                NetlinkPayload::Error(error) if error.code.is_none() => return Ok(()),
                NetlinkPayload::Error(error) => return Err(error.to_io()),
                NetlinkPayload::InnerMessage(inner) => each(inner),
                _ => {}
            }
            // Messages are padded to four bytes.
            let length = (message.header.length as usize).next_multiple_of(4);
            rest = rest.get(length.max(4)..).unwrap_or_default();
        }
    }
}

#[cfg(test)]
mod tests;
