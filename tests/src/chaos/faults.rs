//! What goes wrong, or what somebody does: how, and how it is mended.

pub mod acts;

use std::fmt;
use std::str::FromStr;

use anyhow::{Context, Result};

use super::model::Model;
use crate::lab::{Lab, Tunnel};
use crate::scenarios::communities::{DIRECT, RELAYED};
use crate::world::network::remap_nat;
use acts::{
    an_entry, document, end, expired_certificate, fair_weather, full_disk, good_certificate, good_document,
    mtu, nat_address, new_certificate, no_entries, older, on, ours, partition, rejoin, rekey,
    revoked_certificate, toggle, turn_clock, weather,
};

/// One fault.
#[derive(Clone, Copy)]
pub struct Fault {
    /// What happens.
    pub kind: &'static Kind,
    /// To whom.
    pub target: &'static str,
}

impl Fault {
    /// Whether the node takes what is forged until its agent has put back what is gone.
    pub fn opens(&self) -> bool {
        self.kind.thing == NFTABLES
    }

    /// Whether it is not to be in a schedule with another: it is about the same thing, so that what mends the one may not mend
    /// the other, or both take away what closes the node where the other's is gone.
    pub fn meets(&self, other: &Self) -> bool {
        let opens = |one: &Self, other: &Self| one.opens() && CLOSES_OR_REPAIRS.contains(&other.kind.thing);
        self.target == other.target
            && (self.kind.thing == other.kind.thing || opens(self, other) || opens(other, self))
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.kind.name, self.target)
    }
}

impl fmt::Debug for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl PartialEq for Fault {
    fn eq(&self, other: &Self) -> bool {
        self.kind.name == other.kind.name && self.target == other.target
    }
}

impl Eq for Fault {}

impl FromStr for Fault {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> Result<Self> {
        let (name, target) = text
            .split_once(' ')
            .with_context(|| format!("`{text}` names no target"))?;
        let kind = KINDS
            .iter()
            .find(|kind| kind.name == name)
            .with_context(|| format!("there is no fault `{name}`"))?;
        let known = kind.targets.iter().find(|known| **known == target);
        let target =
            known.with_context(|| format!("`{name}` knows no `{target}`, only {:?}", kind.targets))?;
        Ok(Self { kind, target })
    }
}

/// A kind of faults.
pub struct Kind {
    /// Its name.
    pub name: &'static str,
    /// What it is about, together with a target.
    pub thing: &'static str,
    /// To whom it happens.
    pub targets: &'static [&'static str],
    /// What it changes of who may talk.
    pub change: fn(&mut Model, &str),
    /// Has it happen.
    pub act: fn(&mut Lab, &str) -> Result<()>,
    /// Mends it, whatever happened meanwhile.
    pub mend: fn(&mut Lab, &str) -> Result<()>,
}

const TUNNELLED: &[&str] = &["edge1", "edge2", "edge3", "connector"];
const NODES: &[&str] = &["edge1", "edge2", "edge3", "connector", "node1"];
const UPLINKS: &[&str] = &["nat1", "nat3", "lan2", "cloud"];
const NATS: &[&str] = &["nat1", "nat3"];
const PEERS_OF_CONNECTOR: &[&str] = &["edge1", "edge2", "edge3"];

/// The fault after which peers hold SAs that the charon at the other end does not know.
pub const KILL_CHARON: &str = "kill-charon";

const NFTABLES: &str = "nftables";

/// While somebody has taken away the table that closes a node, the rest has to, until the agent has put it back.
const CLOSES_OR_REPAIRS: &[&str] = &["agent", "rules", "routes", "device"];

/// A kind that changes nothing of who may talk.
const fn kind(
    name: &'static str,
    thing: &'static str,
    targets: &'static [&'static str],
    act: fn(&mut Lab, &str) -> Result<()>,
    mend: fn(&mut Lab, &str) -> Result<()>,
) -> Kind {
    Kind {
        name,
        thing,
        targets,
        change: |_, _| {},
        act,
        mend,
    }
}

/// Nothing is left to be mended.
fn by_itself(_: &mut Lab, _: &str) -> Result<()> {
    Ok(())
}

/// Every kind.
pub const KINDS: &[Kind] = &[
    // Programs.
    kind(
        KILL_CHARON,
        "charon",
        TUNNELLED,
        |lab, site| end(lab, &format!("{site}/charon"), true),
        Lab::start_charon,
    ),
    kind(
        "stop-charon",
        "charon",
        TUNNELLED,
        |lab, site| end(lab, &format!("{site}/charon"), false),
        Lab::start_charon,
    ),
    kind(
        "pause-charon",
        "charon",
        TUNNELLED,
        |lab, site| lab.daemon(&format!("{site}/charon"))?.pause(),
        |lab, site| lab.daemon(&format!("{site}/charon"))?.resume(),
    ),
    kind(
        "kill-agent",
        "agent",
        NODES,
        |lab, site| end(lab, &format!("{site}/agent"), true),
        Lab::start_agent,
    ),
    kind(
        "stop-agent",
        "agent",
        NODES,
        |lab, site| end(lab, &format!("{site}/agent"), false),
        Lab::start_agent,
    ),
    kind(
        "pause-agent",
        "agent",
        NODES,
        |lab, site| lab.daemon(&format!("{site}/agent"))?.pause(),
        |lab, site| lab.daemon(&format!("{site}/agent"))?.resume(),
    ),
    kind(
        "kill",
        "operator",
        &["operator"],
        |lab, name| end(lab, name, true),
        |lab, _| lab.start_operator(),
    ),
    // The underlay.
    kind(
        "loss",
        "weather",
        UPLINKS,
        |lab, link| weather(lab, link, "loss 20%"),
        fair_weather,
    ),
    kind(
        "delay",
        "weather",
        UPLINKS,
        |lab, link| weather(lab, link, "delay 100ms 50ms"),
        fair_weather,
    ),
    kind(
        "reorder",
        "weather",
        UPLINKS,
        |lab, link| weather(lab, link, "delay 20ms reorder 25% 50%"),
        fair_weather,
    ),
    kind(
        "duplicate",
        "weather",
        UPLINKS,
        |lab, link| weather(lab, link, "duplicate 20%"),
        fair_weather,
    ),
    kind("partition", "way", UPLINKS, partition, rejoin),
    kind(
        "rebind",
        "nat",
        NATS,
        |lab, nat| remap_nat(lab.world.router(nat)?, Some((20_000, 60_000))),
        by_itself,
    ),
    kind(
        "new-address",
        "nat",
        NATS,
        |lab, nat| nat_address(lab, nat, 77),
        |lab, nat| nat_address(lab, nat, 2),
    ),
    kind(
        "mtu-1400",
        "mtu",
        UPLINKS,
        |lab, link| mtu(lab, link, 1400),
        |lab, link| mtu(lab, link, 1500),
    ),
    // The node.
    kind("full-disk", "disk", NODES, full_disk, |lab, site| {
        on(lab, site, "umount -l /var/lib/fabedge")
    }),
    kind(
        "no-bpffs",
        "bpffs",
        NODES,
        |lab, site| on(lab, site, "umount -l /sys/fs/bpf"),
        |lab, site| {
            on(
                lab,
                site,
                "mountpoint -q /sys/fs/bpf || mount -t bpf bpf /sys/fs/bpf",
            )
        },
    ),
    // A foreign hand, which takes away what is ours, and adds to it.
    kind(
        "no-table",
        NFTABLES,
        NODES,
        |lab, site| on(lab, site, "nft delete table inet fabedge"),
        by_itself,
    ),
    kind(
        "no-rules",
        "rules",
        NODES,
        |lab, site| on(lab, site, "ip rule del pref 220; ip -6 rule del pref 220"),
        by_itself,
    ),
    kind(
        "no-routes",
        "routes",
        NODES,
        |lab, site| {
            on(
                lab,
                site,
                &format!(
                    "ip route flush table 220 {0}; ip -6 route flush table 220 {0}",
                    ours()
                ),
            )
        },
        by_itself,
    ),
    kind(
        "no-device",
        "device",
        TUNNELLED,
        |lab, site| match lab.settings.tunnel {
            Tunnel::Xfrm => on(lab, site, "ip link del fabedge0"),
            // charon's own, which nobody else can make again.
            Tunnel::Libipsec => on(lab, site, "ip link set ipsec0 down"),
        },
        by_itself,
    ),
    kind(
        "a-route",
        "routes",
        TUNNELLED,
        |lab, site| {
            on(
                lab,
                site,
                &format!("ip route add 10.98.0.0/16 dev lo table 220 {}", ours()),
            )
        },
        by_itself,
    ),
    kind("no-entries", "entries", TUNNELLED, no_entries, by_itself),
    kind("an-entry", "entries", TUNNELLED, an_entry, by_itself),
    // The clock, which all nodes have in common here.
    kind(
        "clock-ahead",
        "clock",
        &["machine"],
        |lab, _| turn_clock(lab, "+3 hours"),
        |lab, _| turn_clock(lab, "-3 hours"),
    ),
    kind(
        "clock-back",
        "clock",
        &["machine"],
        |lab, _| turn_clock(lab, "-3 hours"),
        |lab, _| turn_clock(lab, "+3 hours"),
    ),
    // Documents and certificates.
    kind(
        "torn-document",
        "document",
        NODES,
        |lab, site| document(lab, site, &|text| Ok(text[..text.len() / 2].to_owned())),
        good_document,
    ),
    kind(
        "old-document",
        "document",
        NODES,
        |lab, site| document(lab, site, &older),
        good_document,
    ),
    kind(
        "new-certificate",
        "certificate",
        TUNNELLED,
        new_certificate,
        by_itself,
    ),
    kind(
        "expired-certificate",
        "certificate",
        TUNNELLED,
        expired_certificate,
        good_certificate,
    ),
    kind(
        "revoked-certificate",
        "certificate",
        PEERS_OF_CONNECTOR,
        revoked_certificate,
        new_certificate,
    ),
    // Keys.
    kind(
        "rekey-ike",
        "charon",
        PEERS_OF_CONNECTOR,
        |lab, site| rekey(lab, site, "fabedge.connector"),
        by_itself,
    ),
    // Who may talk.
    Kind {
        name: "community",
        thing: "community",
        targets: &[DIRECT, RELAYED],
        change: Model::toggle,
        act: toggle,
        mend: by_itself,
    },
];
