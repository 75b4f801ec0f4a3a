//! The modes that are compared: each sets its ground up, from nothing, and says whether packets went its way.

use std::net::Ipv4Addr;

use anyhow::{Result, ensure};
use fabedge_common::abi::Verdict;
use serde_json::json;

use super::ground::{CLOUD, Ground, NODES, Node, PODS, Settings};
use super::product;
use crate::lab::Switch;

/// One of the ways that packets can take.
pub struct Mode {
    /// Its name.
    pub name: &'static str,
    /// Whether its pods are on nodes, on which there can be rules of others.
    pub nodes: bool,
    /// Whether packets are encrypted on their way.
    pub encrypted: bool,
    /// Sets it up; the settings say where and with whose rules.
    pub set_up: fn(&Settings) -> Result<Ground>,
    /// Says whether the nodes have seen the packets in the way that the mode means.
    pub check: fn(&Ground, packets: usize) -> Result<()>,
}

/// The way with the least that it can take: ESP in the pods themselves.
pub const FLOOR: &str = "floor";
/// The predecessor's.
pub const CLASSIC: &str = "classic";
/// Ours by routes and netfilter alone.
pub const SLOW: &str = "slow path";
/// Ours by the eBPF programs.
pub const FAST: &str = "fast path";
/// WireGuard between the nodes.
pub const WIREGUARD: &str = "WireGuard";
/// The floor, the predecessor's and ours without encryption.
pub const PLAIN: [&str; 3] = ["plain floor", "plain classic", "plain fast path"];

/// All modes.
pub const MODES: &[Mode] = &[
    Mode {
        name: FLOOR,
        nodes: false,
        encrypted: true,
        set_up: |_| floor(true),
        check: |_, _| Ok(()),
    },
    Mode {
        name: CLASSIC,
        nodes: true,
        encrypted: true,
        set_up: |settings| classic(settings, true),
        check: |_, _| Ok(()),
    },
    Mode {
        name: SLOW,
        nodes: true,
        encrypted: true,
        set_up: |settings| product::set_up(settings, Switch::Off),
        check: |_, _| Ok(()),
    },
    Mode {
        name: FAST,
        nodes: true,
        encrypted: true,
        set_up: |settings| product::set_up(settings, Switch::On),
        check: went_fast,
    },
    Mode {
        name: WIREGUARD,
        nodes: true,
        encrypted: true,
        set_up: wireguard,
        check: |_, _| Ok(()),
    },
    Mode {
        name: PLAIN[0],
        nodes: false,
        encrypted: false,
        set_up: |_| floor(false),
        check: |_, _| Ok(()),
    },
    Mode {
        name: PLAIN[1],
        nodes: true,
        encrypted: false,
        set_up: |settings| classic(settings, false),
        check: |_, _| Ok(()),
    },
    Mode {
        name: PLAIN[2],
        nodes: true,
        encrypted: false,
        set_up: product::set_up_in_the_clear,
        check: went_fast,
    },
];

/// The cipher of every SA here: the one that the product's charons agree on, so that paths are compared, not ciphers.
const AEAD: &str = "aead rfc4106(gcm(aes)) 0x000102030405060708090a0b0c0d0e0f00010203 128";

/// Two tunnel-mode states, one for each direction.
fn states(spis: [u32; 2], reqids: [u32; 2]) -> String {
    let [a, b] = NODES.map(Node::address);
    let state = |from: Ipv4Addr, to: Ipv4Addr, index: usize| {
        format!(
            "xfrm state add src {from} dst {to} proto esp spi {:#x} reqid {} mode tunnel replay-window 32 flag af-unspec \
             {AEAD}\n",
            spis[index], reqids[index]
        )
    };
    state(a, b, 0) + &state(b, a, 1)
}

/// What goes out by the state from `node`, and what comes in from the other one.
fn policies(node: usize, (own, peer): (&str, &str), reqid: u32, forwarded: bool) -> String {
    let (here, there) = (NODES[node].address(), NODES[1 - node].address());
    let mut lines = format!(
        "xfrm policy add src {own} dst {peer} dir out priority 375423 tmpl src {here} dst {there} proto esp reqid \
         {reqid} mode tunnel\n"
    );
    let directions: &[&str] = if forwarded { &["in", "fwd"] } else { &["in"] };
    for direction in directions {
        lines += &format!(
            "xfrm policy add src {peer} dst {own} dir {direction} priority 375423 tmpl src {there} dst {here} proto esp \
             reqid {reqid} mode tunnel\n"
        );
    }
    lines
}

/// ESP by the pods themselves, which are at the WAN without a node; or nothing of ESP.
fn floor(encrypted: bool) -> Result<Ground> {
    let ground = Ground::of_pods()?;
    for (index, (name, node)) in PODS.into_iter().zip(NODES).enumerate() {
        let (own, peer) = (node.pod(), NODES[1 - index].pod());
        let mut lines = format!(
            "addr add {own}/32 dev lo\nroute add {peer}/32 via {} src {own}\n",
            node.gateway()
        );
        if encrypted {
            lines += &states([0x1001, 0x1002], [1, 1]);
            lines += &policies(index, (&own.to_string(), &peer.to_string()), 1, false);
        }
        ground.world.place(name)?.ip(&lines)?;
    }
    if !encrypted {
        ground.route_pods_on_wan()?;
    }
    Ok(ground)
}

/// The predecessor's node: `classic.rules` with its ipset, table 220 by way of the default gateway behind rule 220, the
/// bridge of its CNI configuration with its MTU, and (by `pkg/tunnel/strongswan/strongswan.go`) three CHILD_SAs per
/// peer, pods to pods, pods to the other's node and back, each with states and policies of its own.
fn classic(settings: &Settings, encrypted: bool) -> Result<Ground> {
    let mut ground = Ground::of_nodes(settings)?;
    if settings.direct && !encrypted {
        ground.lay_direct_link(DIRECT)?;
    }
    for (index, node) in NODES.into_iter().enumerate() {
        let peer = NODES[1 - index];
        let place = ground.node(node)?;
        let mut set = "create FABEDGE-REMOTE-CIDR hash:net\n".to_owned();
        let (peers_node, peers_pods) = (peer.address().to_string(), peer.pods());
        for prefix in CLOUD.into_iter().chain([&*peers_node, &*peers_pods]) {
            set += &format!("add FABEDGE-REMOTE-CIDR {prefix}\n");
        }
        place.must_with(&["ipset", "restore"], &set)?;
        ground.load(node, CLASSIC_RULES)?;
        let direct = settings.direct && !encrypted;
        let mut lines = "rule add pref 220 lookup 220\n".to_owned();
        if direct {
            lines += &format!(
                "addr add {} peer {} dev {DIRECT}\n",
                node.address(),
                peer.address()
            );
        }
        let next_hop = if direct { peer.address() } else { node.gateway() };
        lines += &format!("route add {} via {next_hop} table 220\n", peer.pods());
        if encrypted {
            let own_node = node.address().to_string();
            let pairs = [
                (node.pods(), peer.pods()),
                (own_node, peer.pods()),
                (node.pods(), peer.address().to_string()),
            ];
            // Counted from the first node: its CHILD_SA from nodes to pods is the other's from pods to nodes.
            let order = if index == 0 { [1, 2, 3] } else { [1, 3, 2] };
            for (child, (own, peer)) in order.into_iter().zip(&pairs) {
                lines += &states([0x1000 + child * 2, 0x1001 + child * 2], [child, child]);
                lines += &policies(index, (own, peer), child, true);
            }
        }
        place.ip(&lines)?;
    }
    if !encrypted {
        ground.route_pods_on_wan()?;
    }
    for (pod, node) in PODS.into_iter().zip(NODES) {
        ground.attach(pod, node, &bridge(node, 1400))?;
    }
    Ok(ground)
}

/// The link between the nodes, where there is one.
const DIRECT: &str = "eth1";

const CLASSIC_RULES: &str = include_str!("classic.rules");

/// A conflist whose one plugin in effect is the bridge, like the predecessor's.
fn bridge(node: Node, mtu: u32) -> String {
    json!({
        "cniVersion": "0.3.1",
        "name": "fabedge",
        "plugins": [
            {
                "type": "bridge",
                "bridge": "br-fabedge",
                "isDefaultGateway": true,
                "forceAddress": true,
                "hairpinMode": true,
                "mtu": mtu,
                "ipam": {"type": "host-local", "ranges": [[{"subnet": node.pods()}]]},
            },
            {"type": "portmap", "capabilities": {"portMappings": true}},
            {"type": "bandwidth", "capabilities": {"bandwidth": true}},
        ],
    })
    .to_string()
}

/// The same pods behind the same bridge, and WireGuard between the nodes, as `wg-quick` would set it up.
fn wireguard(settings: &Settings) -> Result<Ground> {
    let mut ground = Ground::of_nodes(settings)?;
    let key = || -> Result<(String, String)> {
        let wan = ground.wan()?;
        let secret = wan.must(&["wg", "genkey"])?;
        let public = wan.must_with(&["wg", "pubkey"], &secret)?;
        Ok((secret.trim().to_owned(), public.trim().to_owned()))
    };
    let keys = [key()?, key()?];
    for (index, node) in NODES.into_iter().enumerate() {
        let peer = NODES[1 - index];
        let place = ground.node(node)?;
        place.ip("link add wg0 mtu 1420 type wireguard")?;
        let (secret, public) = (&keys[index].0, &keys[1 - index].1);
        place.must_with(
            &["wg", "setconf", "wg0", "/dev/stdin"],
            &format!(
                "[Interface]\nListenPort = 51820\nPrivateKey = {secret}\n[Peer]\nPublicKey = {public}\nAllowedIPs = {}\n\
                 Endpoint = {}:51820\n",
                peer.pods(),
                peer.address()
            ),
        )?;
        place.ip(&format!(
            "link set wg0 up\nroute add {} dev wg0 src {}",
            peer.pods(),
            node.address()
        ))?;
    }
    for (pod, node) in PODS.into_iter().zip(NODES) {
        ground.attach(pod, node, &bridge(node, 1420))?;
    }
    Ok(ground)
}

/// Whether the programs carried every packet at both nodes.
fn went_fast(ground: &Ground, packets: usize) -> Result<()> {
    let counted = product::counted(ground)?;
    let decided = counted
        .iter()
        .map(|node| node.decided(Verdict::Fast))
        .sum::<u64>();
    // Each packet once when it leaves its pod and once when it comes out of the tunnel.
    ensure!(
        decided >= 2 * packets as u64,
        "of {packets} packets, {decided} passages of two each went by the fast path"
    );
    Ok(())
}
