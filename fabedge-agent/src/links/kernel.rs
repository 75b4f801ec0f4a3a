//! The tunnel device and interfaces in our way, by rtnetlink.

use std::collections::BTreeMap;

use futures_util::TryStreamExt as _;
use netlink_packet_route::link::{
    InfoData, InfoKind, InfoXfrm, LinkAttribute, LinkFlags, LinkInfo, LinkMessage,
};
use rtnetlink::{LinkMessageBuilder, LinkUnspec, LinkXfrm};
use tracing::warn;

use super::Error;
use super::plan::{Device, Plan};
use crate::marks;
use crate::netlink::{self, Netlink};
use crate::subsystem::Outcome;

/// The interfaces of this node.
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
        alias: None,
    };
    for attribute in &message.attributes {
        match attribute {
            LinkAttribute::IfName(text) => name = Some(text.clone()),
            LinkAttribute::Mtu(mtu) => device.mtu = *mtu,
            LinkAttribute::IfAlias(alias) => device.alias = Some(alias.clone()),
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
    name.map(|name| (name, device))
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
        let message = LinkUnspec::new_with_index(change.index).mtu(change.mtu).up();
        outcomes.push(Outcome::new(
            "change",
            object,
            set(netlink, change.name, message).await,
        ));
    }
    for (name, index) in &plan.aside {
        warn!(
            name,
            "an interface of another CNI has an address of this node's pods: setting it down (`fabedge-agent cleanup` \
             sets it up again)"
        );
        let alias = LinkAttribute::IfAlias(marks::ASIDE_ALIAS.to_owned());
        let message = LinkUnspec::new_with_index(*index)
            .down()
            .append_extra_attribute(alias);
        outcomes.push(Outcome::new(
            "set down",
            format!("link {name}"),
            set(netlink, name, message).await,
        ));
    }
    outcomes
}

pub(super) async fn shrink(netlink: &Netlink, plan: &Plan) -> Vec<Outcome> {
    let mut outcomes = Vec::new();
    if let Some(index) = plan.delete {
        let result = netlink.handle().link().del(index).execute().await;
        let result = result.map_err(|error| {
            netlink::Error::new(format!("deleting the interface {}", marks::XFRM_DEVICE), error)
        });
        outcomes.push(Outcome::new(
            "delete",
            format!("link {}", marks::XFRM_DEVICE),
            result,
        ));
    }
    for (name, index) in &plan.restore {
        let no_alias = LinkAttribute::IfAlias(String::new());
        let message = LinkUnspec::new_with_index(*index)
            .up()
            .append_extra_attribute(no_alias);
        outcomes.push(Outcome::new(
            "set up",
            format!("link {name}"),
            set(netlink, name, message).await,
        ));
    }
    outcomes
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

async fn set(netlink: &Netlink, name: &str, message: LinkMessageBuilder<LinkUnspec>) -> Result<(), Error> {
    let result = netlink.handle().link().set(message.build()).execute().await;
    result.map_err(|error| netlink::Error::new(format!("changing the interface {name}"), error).into())
}
