//! The tunnel between edge1 and edge2 over IPv6, whose routers never fragment.

use std::fs;

use anyhow::{Context as _, Result, ensure};

use super::{ETHERNET, Icmp, TO_EDGE1, forget, lost, measure_between, not_told, set};
use crate::lab::charon::swanctl;
use crate::lab::{Lab, Tunnel, wait_until};
use crate::scenarios::product::{CONVERGENCE, wait_reach};
use crate::suite::judge;
use crate::table::Outcome;

/// The ends of the tunnel, and their pods.
const ENDS: (&str, &str) = ("edge1", "edge2");
const PODS: (&str, &str) = ("edge1-a", "edge2-a");

/// Where edge2 says that it can be reached, and where it can be now.
const ADDRESSES: (&str, &str) = ("172.16.2.2", "fd00:16:2::2");

/// The way between the two, place by place, as what `ip` is told after `add` and `del`.
const WAY: [(&str, &[&str]); 4] = [
    (
        "edge1",
        &[
            "address # fd00:50::2/64 dev eth0",
            "route # fd00:16:2::/64 via fd00:50::1",
        ],
    ),
    (
        "nat1",
        &[
            "address # fd00:50::1/64 dev in0",
            "address # fd00:16:1::2/64 dev out0",
            "route # fd00:16:2::/64 via fd00:16:1::1",
        ],
    ),
    (
        "wan",
        &[
            "address # fd00:16:1::1/64 dev nat1",
            "address # fd00:16:2::1/64 dev lan2",
            "route # fd00:50::/64 via fd00:16:1::2",
        ],
    ),
    (
        "edge2",
        &[
            "address # fd00:16:2::2/64 dev eth0",
            "route # fd00:50::/64 via fd00:16:2::1",
        ],
    ),
];

/// Moves the tunnel, has its link narrower and narrower, and moves it back.
pub(super) fn swept(lab: &mut Lab) -> Result<Outcome> {
    for router in ["nat1", "wan"] {
        lab.world
            .router(router)?
            .sysctl(&["net/ipv6/conf/all/forwarding=1"])?;
    }
    way(lab, "add")?;
    let result = move_to(lab, ADDRESSES.0, ADDRESSES.1).and_then(|()| narrower(lab));
    let widened = set(lab, TO_EDGE1, ETHERNET, Icmp::Heard).and_then(|()| forget(lab));
    let back = move_to(lab, ADDRESSES.1, ADDRESSES.0);
    way(lab, "del")?;
    let bad = result?;
    widened.and(back)?;
    Ok(judge(bad.is_empty(), bad.join("; ")))
}

fn way(lab: &Lab, action: &str) -> Result<()> {
    WAY.iter().try_for_each(|(place, lines)| {
        let mut lines: Vec<String> = lines.iter().map(|line| line.replace('#', action)).collect();
        if action == "del" {
            lines.reverse();
        }
        lab.world.place(place)?.ip(&lines.join("\n"))
    })
}

/// Has edge2 reached at another address, by a new tunnel: one that works stays where it is.
fn move_to(lab: &Lab, from: &str, to: &str) -> Result<()> {
    let file = lab.manifests().join("nodes.yaml");
    let text = fs::read_to_string(&file).with_context(|| format!("reading {}", file.display()))?;
    let annotation = |address: &str| format!("node-public-addresses: {address:?}");
    let plain = format!("node-public-addresses: {from}\n");
    let other = text
        .replace(&annotation(from), &annotation(to))
        .replace(&plain, &format!("{}\n", annotation(to)));
    ensure!(
        other != text,
        "no node of {} has the address {from}",
        file.display()
    );
    let new = file.with_extension("new");
    fs::write(&new, other).with_context(|| format!("writing {}", new.display()))?;
    fs::rename(&new, &file).with_context(|| format!("replacing {}", file.display()))?;

    let edge = lab.world.site(ENDS.0)?;
    wait_until("charon knows the other address", CONVERGENCE, || {
        Ok(swanctl(edge, &["--list-conns"])?.contains(to))
    })?;
    swanctl(edge, &["--terminate", "--ike", "fabedge-fabedge.edge2"])?;
    wait_until("the tunnel goes to the other address", CONVERGENCE, || {
        Ok(swanctl(edge, &["--list-sas"])?.contains(to))
    })?;
    wait_reach(lab.world.pod(PODS.0)?, lab.world.pod(PODS.1)?, CONVERGENCE)?;
    Ok(())
}

fn narrower(lab: &Lab) -> Result<Vec<String>> {
    measure_between(lab, ENDS, 1400..=1400)?;
    let mut bad = lost(lab, &[PODS], 1400)?;
    for mtu in [1400, 1280] {
        set(lab, TO_EDGE1, mtu, Icmp::Heard)?;
        let at = |problem: String| format!("at {mtu}: {problem}");
        bad.extend(lost(lab, &[PODS], 1400)?.into_iter().map(at));
        // charon's ESP goes in fragments as soon as the kernel hears.
        if lab.settings.tunnel == Tunnel::Xfrm {
            // IPv6 40 and ESP 34, with its IV, ICV and trailer; no UDP, as there is no NAT.
            measure_between(lab, ENDS, mtu - 86..=mtu - 74)?;
            bad.extend(not_told(lab, PODS)?.into_iter().map(at));
            bad.extend(lost(lab, &[PODS], 1400)?.into_iter().map(at));
        }
    }
    Ok(bad)
}
