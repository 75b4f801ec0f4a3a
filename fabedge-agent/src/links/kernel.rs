//! The tunnel device, by rtnetlink.

use std::collections::BTreeMap;

use futures_util::TryStreamExt as _;
use netlink_packet_route::link::{
    InfoData, InfoKind, InfoXfrm, LinkAttribute, LinkFlags, LinkInfo, LinkMessage,
};
use rtnetlink::{LinkMessageBuilder, LinkUnspec, LinkXfrm};

use super::Error;
use super::plan::{Change, Device, Plan};
use crate::marks;
use crate::netlink::{self, Netlink};
use crate::subsystem::Outcome;

/// The interfaces that bear the name of a tunnel device.
pub(super) async fn observe(netlink: &Netlink) -> Result<BTreeMap<String, Device>, netlink::Error> {
    let mut devices = BTreeMap::new();
    let mut links = netlink.handle().link().get().execute();
    while let Some(message) = links
        .try_next()
        .await
        .map_err(|error| netlink::Error::new("listing the interfaces", error))?
    {
        if let Some((name, device)) = device(&message) {
            devices.insert(name, device);
        }
    }
    Ok(devices)
}

fn device(message: &LinkMessage) -> Option<(String, Device)> {
    let mut name = None;
    let mut device = Device {
        index: message.header.index,
        kind: None,
        if_id: None,
        mtu: 0,
        up: message.header.flags.contains(LinkFlags::Up),
    };
    for attribute in &message.attributes {
        match attribute {
            LinkAttribute::IfName(text) => name = Some(text.clone()),
            LinkAttribute::Mtu(mtu) => device.mtu = *mtu,
            LinkAttribute::LinkInfo(infos) => {
                for info in infos {
                    match info {
                        LinkInfo::Kind(kind) => device.kind = Some(kind.to_string()),
                        LinkInfo::Data(InfoData::Xfrm(data)) => {
                            device.if_id = data.iter().find_map(|item| match item {
                                InfoXfrm::IfId(if_id) => Some(*if_id),
                                _ => None,
                            });
                        }
                        _ => {}
                    }
                }
            }
            _ => {}
        }
    }
    name.filter(|name| [marks::XFRM_DEVICE, marks::LIBIPSEC_DEVICE].contains(&name.as_str()))
        .map(|name| (name, device))
}

pub(super) async fn grow(netlink: &Netlink, plan: &Plan) -> Vec<Outcome> {
    let mut outcomes = Vec::new();
    if let Some(problem) = &plan.problem {
        outcomes.push(Outcome::new(
            "use",
            "the tunnel device",
            Err(Error::Problem(problem.clone())),
        ));
    }
    if let Some(mtu) = plan.create {
        outcomes.push(Outcome::new(
            "add",
            format!("link {}", marks::XFRM_DEVICE),
            create(netlink, mtu).await,
        ));
    }
    if let Some(change) = &plan.change {
        let object = format!("link {} (mtu {}, up)", change.name, change.mtu);
        outcomes.push(Outcome::new("change", object, set(netlink, change).await));
    }
    outcomes
}

pub(super) async fn shrink(netlink: &Netlink, plan: &Plan) -> Vec<Outcome> {
    let Some(index) = plan.delete else {
        return Vec::new();
    };
    let result = netlink.handle().link().del(index).execute().await;
    let result = result.map_err(|error| {
        netlink::Error::new(format!("deleting the interface {}", marks::XFRM_DEVICE), error)
    });
    vec![Outcome::new(
        "delete",
        format!("link {}", marks::XFRM_DEVICE),
        result,
    )]
}

async fn create(netlink: &Netlink, mtu: u32) -> Result<(), Error> {
    // No underlying device: the SAs find their own way, over whichever uplink is up.
    let message = LinkMessageBuilder::<LinkXfrm>::new_with_info_kind(InfoKind::Xfrm)
        .name(marks::XFRM_DEVICE)
        .append_info_data(InfoXfrm::IfId(marks::IF_ID))
        .mtu(mtu)
        .up()
        .build();
    netlink
        .handle()
        .link()
        .add(message)
        .execute()
        .await
        .map_err(|error| {
            let error =
                netlink::Error::new(format!("making the xfrm interface {}", marks::XFRM_DEVICE), error);
            // "Unknown device type", when no module answers to the kind.
            if error.errno() == Some(libc::EOPNOTSUPP) {
                Error::Unsupported(error)
            } else {
                error.into()
            }
        })
}

async fn set(netlink: &Netlink, change: &Change) -> Result<(), Error> {
    let message = LinkUnspec::new_with_index(change.index)
        .mtu(change.mtu)
        .up()
        .build();
    netlink
        .handle()
        .link()
        .set(message)
        .execute()
        .await
        .map_err(|error| netlink::Error::new(format!("changing the interface {}", change.name), error).into())
}
