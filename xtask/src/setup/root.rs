//! The Debian root folder that every machine starts from.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};

use super::{apt, sources};
use crate::places::{Places, fill_once, stamp};
use crate::progress::{Log, step};

/// What sites, pods and tests use.
const PACKAGES: &[&str] = &[
    // One charon per site, and userspace ESP.
    "charon-systemd",
    "libcharon-extra-plugins",
    "libstrongswan-standard-plugins",
    "strongswan-swanctl",
    // The network and its tools.
    "bpftool",
    "conntrack",
    "containernetworking-plugins",
    "ethtool",
    "iproute2",
    "ipset",
    "iptables",
    "nftables",
    "tcpdump",
    "wireguard-tools",
    // Probes.
    "curl",
    "iperf3",
    "iputils-ping",
    "iputils-tracepath",
    "netcat-openbsd",
    "python3-minimal",
    "traceroute",
    // The rest.
    "busybox-static",
    "kmod",
    "procps",
    "strace",
];

/// Raise it when the way of making the folder changes.
const RECIPE: &str = "3";

/// Where the root folder of this recipe is.
pub fn folder(places: &Places) -> PathBuf {
    let parts = PACKAGES.iter().copied().chain(["promtool", RECIPE]);
    places.cache.join(format!("root-{}", stamp(parts)))
}

/// Makes the root folder unless it stands.
pub fn ensure(places: &Places, log: &Log) -> Result<()> {
    let done = folder(places);
    if done.exists() {
        return Ok(());
    }
    step(
        &format!("unpacking a Debian root folder with {} packages", PACKAGES.len()),
        || fill_once(&done, |part| make(part, places, log)),
    )
    .context("the Debian root folder could not be made")
}

fn make(folder: &Path, places: &Places, log: &Log) -> Result<()> {
    let mut command = Command::new("mmdebstrap");
    command.args(["--mode=root", "--variant=minbase", "--format=directory"]);
    command.arg(format!("--include={}", PACKAGES.join(",")));
    for path in ["doc", "man", "locale", "info"] {
        command.arg(format!("--dpkgopt=path-exclude=/usr/share/{path}/*"));
    }
    command.arg("bookworm").arg(folder);
    command.args(
        sources::read(Path::new("/etc/apt"))?
            .iter()
            .map(sources::Source::line),
    );
    log.run(&mut command)?;

    // promtool alone: its package would bring a server and its web pages.
    let work = places.cache.join("work");
    let package = apt::fetch("prometheus", &work.join("fetched"), log)?;
    let unpacked = work.join("prometheus");
    apt::unpack(&package, &unpacked, log)?;
    std::fs::copy(unpacked.join("usr/bin/promtool"), folder.join("usr/bin/promtool"))
        .context("copying promtool out of the package prometheus")?;
    std::fs::remove_dir_all(&work).with_context(|| format!("removing {}", work.display()))?;

    // Mount points of every machine; the folder itself is never written again.
    for name in ["host", "out", "box"] {
        std::fs::create_dir(folder.join(name))?;
    }
    std::fs::remove_dir_all(folder.join("var/cache/apt"))?;
    std::fs::remove_dir_all(folder.join("var/lib/apt/lists"))?;
    Ok(())
}
