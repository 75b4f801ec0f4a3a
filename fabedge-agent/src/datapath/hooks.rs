//! What hangs on the devices: our programs, and those of others.

use std::collections::{BTreeMap, BTreeSet};

use aya::programs::SchedClassifier;
use aya::programs::links::{FdLink, PinnedLink};
use futures_util::TryStreamExt;
use netlink_packet_route::link::{LinkAttribute, LinkMessage, LinkXdp};
use netlink_packet_route::tc::{TcAttribute, TcFilterBpfOption, TcHandle, TcMessage, TcOption};
use tracing::debug;

use super::bpffs::{self, Pinboard};
use super::programs::{self, HANDLE, Mode, PRIORITY};
use crate::desired::datapath::{Entry, Hook};

/// Why the hooks cannot be looked at.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The BPF file system.
    #[error(transparent)]
    Bpffs(#[from] bpffs::Error),
    /// rtnetlink's own start.
    #[error("opening a netlink socket")]
    Socket(#[source] std::io::Error),
    /// A dump.
    #[error("listing {what}")]
    Dump {
        /// What was to be listed.
        what: String,
        /// Why it failed.
        source: rtnetlink::Error,
    },
}

/// What was found.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Hooks {
    /// Hooks where a program of ours runs.
    pub ours: BTreeSet<Hook>,
    /// Links of ours to nothing.
    pub dead: BTreeSet<Hook>,
    /// Programs of others on the hooks that we want, in words.
    pub foreign: BTreeSet<String>,
    /// Hooks that somebody else's program has for itself, and which that is.
    pub taken: BTreeMap<Hook, String>,
}

/// Looks at TCX. Links are known by their pins; what `wanted` says of a pin's device gives it its name.
///
/// # Errors
/// When the pins cannot be listed.
pub fn tcx(board: &Pinboard, wanted: &BTreeSet<Hook>) -> Result<Hooks, Error> {
    let mut found = Hooks::default();
    let mut pinned = board.links()?;
    pinned.retain(|pin| !pin.entry.is_xdp());
    for hook in wanted.iter().filter(|hook| !hook.entry.is_xdp()) {
        let had = pinned
            .iter()
            .position(|pin| pin.ifindex == hook.ifindex && pin.entry == hook.entry);
        let ours = had
            .map(|position| pinned.swap_remove(position))
            .and_then(|_| program_of_pin(board, hook));
        let present = match SchedClassifier::query_tcx(&hook.device, programs::direction(hook.entry)) {
            Ok((_, present)) => present,
            Err(error) => {
                debug!(%hook, error = &error as &dyn std::error::Error, "cannot be queried");
                Vec::new()
            }
        };
        for program in &present {
            if Some(program.id()) != ours {
                let name = program.name_as_str().unwrap_or_default();
                found
                    .foreign
                    .insert(format!("program {name} (id {}) beside {hook}", program.id()));
            }
        }
        if ours.is_some_and(|ours| present.iter().any(|program| program.id() == ours)) {
            found.ours.insert(hook.clone());
        } else if had.is_some() {
            found.dead.insert(hook.clone());
        }
    }
    found.dead.extend(pinned);
    Ok(found)
}

/// Looks at XDP: one program per device, ours known by the pin of its link.
///
/// # Errors
/// When pins or devices cannot be listed.
pub async fn xdp(
    board: &Pinboard,
    netlink: &rtnetlink::Handle,
    wanted: &BTreeSet<Hook>,
    found: &mut Hooks,
) -> Result<(), Error> {
    let mut pinned = board.links()?;
    pinned.retain(|pin| pin.entry.is_xdp());
    let wanted: Vec<&Hook> = wanted.iter().filter(|hook| hook.entry.is_xdp()).collect();
    if pinned.is_empty() && wanted.is_empty() {
        return Ok(());
    }
    let present = xdp_programs(netlink).await?;
    for pin in pinned {
        let ours = program_of_pin(board, &pin);
        let hook = wanted.iter().find(|hook| hook.ifindex == pin.ifindex);
        let hook = hook.map_or(pin, |hook| (*hook).clone());
        if ours.is_some() && ours == present.get(&hook.ifindex).copied() {
            found.ours.insert(hook);
        } else {
            found.dead.insert(hook);
        }
    }
    for hook in wanted {
        if let (Some(id), false) = (present.get(&hook.ifindex), found.ours.contains(hook)) {
            found.taken.insert(
                hook.clone(),
                format!("it has an XDP program of somebody else (id {id})"),
            );
        }
    }
    Ok(())
}

/// The XDP programs of all devices, by index.
async fn xdp_programs(netlink: &rtnetlink::Handle) -> Result<BTreeMap<u32, u32>, Error> {
    let program = |attributes: &[LinkAttribute]| {
        attributes.iter().find_map(|attribute| match attribute {
            LinkAttribute::Xdp(xdp) => xdp.iter().find_map(|item| match item {
                LinkXdp::ProgId(id)
                | LinkXdp::DrvProgId(id)
                | LinkXdp::SkbProgId(id)
                | LinkXdp::HwProgId(id)
                    if *id != 0 =>
                {
                    Some(*id)
                }
                _ => None,
            }),
            _ => None,
        })
    };
    let links = links(netlink).await?;
    Ok(links
        .iter()
        .filter_map(|link| Some((link.header.index, program(&link.attributes)?)))
        .collect())
}

fn program_of_pin(board: &Pinboard, hook: &Hook) -> Option<u32> {
    let link = FdLink::from(PinnedLink::from_pin(board.link(hook)).ok()?);
    Some(link.info().ok()?.program_id())
}

/// Looks at the filters of all devices, for kernels without TCX.
///
/// # Errors
/// When devices or filters cannot be listed.
pub async fn clsact(netlink: &rtnetlink::Handle, wanted: &BTreeSet<Hook>) -> Result<Hooks, Error> {
    let mut found = Hooks::default();
    for (ifindex, device) in devices(netlink).await? {
        for ingress in [true, false] {
            let mut handle = netlink.traffic_filter(ifindex as i32);
            let request = if ingress {
                handle.get().ingress()
            } else {
                handle.get().egress()
            };
            let filters: Vec<TcMessage> =
                request
                    .execute()
                    .try_collect()
                    .await
                    .map_err(|source| Error::Dump {
                        what: format!("the filters of {device}"),
                        source,
                    })?;
            let hooks: Vec<&Hook> = wanted
                .iter()
                .filter(|hook| hook.ifindex == ifindex && hook.entry.on_ingress() == ingress)
                .filter(|hook| !hook.entry.is_xdp())
                .collect();
            // A dump lists each preference once more, as an entry without a handle.
            for filter in filters
                .iter()
                .filter(|filter| filter.header.handle != TcHandle::UNSPEC)
            {
                match ours(filter) {
                    Some(entry) => {
                        let hook = Hook {
                            ifindex,
                            entry,
                            device: device.clone(),
                        };
                        found.ours.insert(hook);
                    }
                    None => found.foreign.extend(
                        hooks
                            .iter()
                            .filter_map(|hook| Some(format!("filter {} beside {hook}", kind(filter)?))),
                    ),
                }
            }
        }
    }
    Ok(found)
}

/// The qdiscs of all devices, by index.
///
/// # Errors
/// When they cannot be listed.
pub async fn qdiscs(netlink: &rtnetlink::Handle) -> Result<BTreeMap<u32, BTreeSet<String>>, Error> {
    let messages: Vec<TcMessage> = netlink
        .qdisc()
        .get()
        .execute()
        .try_collect()
        .await
        .map_err(|source| Error::Dump {
            what: "the qdiscs".to_owned(),
            source,
        })?;
    let mut qdiscs: BTreeMap<u32, BTreeSet<String>> = BTreeMap::new();
    for message in &messages {
        if let (Ok(ifindex), Some(kind)) = (u32::try_from(message.header.index), kind(message)) {
            qdiscs.entry(ifindex).or_default().insert(kind.to_owned());
        }
    }
    Ok(qdiscs)
}

/// Opens a connection of our own; it ends when the handle is dropped.
///
/// # Errors
/// When no socket can be had.
pub fn connect() -> Result<rtnetlink::Handle, Error> {
    let (connection, handle, _) = rtnetlink::new_connection().map_err(Error::Socket)?;
    tokio::spawn(connection);
    Ok(handle)
}

/// Looks at the hooks in the way of this kernel.
///
/// # Errors
/// See [`tcx`], [`clsact`] and [`xdp`].
pub async fn find(
    mode: Mode,
    board: &Pinboard,
    netlink: &rtnetlink::Handle,
    wanted: &BTreeSet<Hook>,
) -> Result<Hooks, Error> {
    let mut found = match mode {
        Mode::Tcx => tcx(board, wanted)?,
        Mode::Clsact => clsact(netlink, wanted).await?,
    };
    xdp(board, netlink, wanted, &mut found).await?;
    Ok(found)
}

async fn links(netlink: &rtnetlink::Handle) -> Result<Vec<LinkMessage>, Error> {
    let links = netlink.link().get().execute().try_collect().await;
    links.map_err(|source| Error::Dump {
        what: "the devices".to_owned(),
        source,
    })
}

async fn devices(netlink: &rtnetlink::Handle) -> Result<BTreeMap<u32, String>, Error> {
    let messages = links(netlink).await?;
    let name = |attributes: &[LinkAttribute]| {
        attributes.iter().find_map(|attribute| match attribute {
            LinkAttribute::IfName(name) => Some(name.clone()),
            _ => None,
        })
    };
    Ok(messages
        .iter()
        .filter_map(|link| Some((link.header.index, name(&link.attributes)?)))
        .collect())
}

fn kind(message: &TcMessage) -> Option<&str> {
    message.attributes.iter().find_map(|attribute| match attribute {
        TcAttribute::Kind(kind) => Some(kind.as_str()),
        _ => None,
    })
}

/// The entry point of a filter with our preference, our handle and the name of one of our programs.
fn ours(filter: &TcMessage) -> Option<Entry> {
    let preference = (filter.header.info >> 16) as u16;
    if preference != PRIORITY || u32::from(filter.header.handle) != u32::from(HANDLE) {
        return None;
    }
    let options = filter.attributes.iter().filter_map(|attribute| match attribute {
        TcAttribute::Options(options) => Some(options),
        _ => None,
    });
    options.flatten().find_map(|option| match option {
        TcOption::Bpf(TcFilterBpfOption::ProgName(name)) => {
            Entry::ALL.into_iter().find(|entry| entry.name() == name)
        }
        _ => None,
    })
}

#[cfg(test)]
mod tests {
    use netlink_packet_route::tc::TcHeader;

    use super::*;

    fn filter(preference: u16, handle: u16, name: &str) -> TcMessage {
        let header = TcHeader {
            info: u32::from(preference) << 16,
            handle: TcHandle {
                major: 0,
                minor: handle,
            },
            ..TcHeader::default()
        };
        let options = vec![TcOption::Bpf(TcFilterBpfOption::ProgName(name.to_owned()))];
        TcMessage::from_parts(
            header,
            vec![TcAttribute::Kind("bpf".to_owned()), TcAttribute::Options(options)],
        )
    }

    #[test]
    fn a_filter_is_ours_by_preference_handle_and_name_together() {
        for entry in Entry::ALL {
            assert_eq!(ours(&filter(PRIORITY, HANDLE, entry.name())), Some(entry));
        }
        assert_eq!(ours(&filter(PRIORITY, HANDLE, "cil_from_container")), None);
        assert_eq!(ours(&filter(PRIORITY, 1, "pod_egress")), None);
        assert_eq!(ours(&filter(1, HANDLE, "pod_egress")), None);
    }
}
