//! Debian packages: which are missing, installing them, fetching one without installing it.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::progress::{Log, output, step};

/// What the machine itself needs; nothing of it is configured or started.
pub const HOST_PACKAGES: &[&str] = &[
    // The linker of Rust programs, and what bpf-linker is built against.
    "gcc",
    "libc6-dev",
    "pkg-config",
    "zlib1g-dev",
    "libzstd-dev",
    "libxml2-dev",
    "llvm-22-dev",
    "libpolly-22-dev",
    // A compiler with a ready `core` for the BPF target.
    "rustc-web",
    "cargo-web",
    "libstd-rust-web-dev-bpf",
    "rust-web-clippy",
    // Machines.
    "qemu-system-x86",
    "qemu-system-common",
    "ipxe-qemu",
    "mmdebstrap",
    "kmod",
    "xz-utils",
    "util-linux",
    "iproute2",
    // Sources of packages over https.
    "ca-certificates",
];

/// The packages of `wanted` that are not installed.
pub fn missing<'a>(wanted: &[&'a str]) -> Result<Vec<&'a str>> {
    // dpkg-query fails when it does not know one of the names, and still lists the others.
    let listed = Command::new("dpkg-query")
        .args(["-W", "-f", "${Package} ${db:Status-Status}\\n"])
        .args(wanted)
        .output()
        .context("starting dpkg-query")?;
    let listed = String::from_utf8_lossy(&listed.stdout).into_owned();
    let installed: BTreeSet<&str> = listed
        .lines()
        .filter_map(|line| line.strip_suffix(" installed"))
        .collect();
    Ok(wanted
        .iter()
        .copied()
        .filter(|name| !installed.contains(name))
        .collect())
}

/// Installs what is missing of `wanted`.
pub fn install(wanted: &[&str], log: &Log) -> Result<()> {
    let missing = missing(wanted)?;
    if missing.is_empty() {
        return Ok(());
    }
    if !knows(&missing)? {
        update(log)?;
    }
    let name = format!(
        "installing {} Debian packages: {}",
        missing.len(),
        missing.join(" ")
    );
    step(&name, || {
        let mut install = apt_get();
        install
            .args(["install", "--yes", "--no-install-recommends"])
            .args(&missing);
        log.run(&mut install).or_else(|_| {
            // The lists may be older than the mirror: once more with fresh ones.
            log.run(apt_get().arg("update"))?;
            log.run(&mut install)
        })
    })
    .context(
        "the packages above could not be installed; check the network and the sources in /etc/apt (main of \
         bookworm and of bookworm-security is enough), then run `cargo xtask setup` again",
    )
}

/// Whether the package lists know a candidate for every name.
fn knows(names: &[&str]) -> Result<bool> {
    let policy = output(Command::new("apt-cache").arg("policy").args(names))?;
    Ok(policy.lines().filter(|line| known_candidate(line)).count() == names.len())
}

fn known_candidate(line: &str) -> bool {
    line.trim()
        .strip_prefix("Candidate:")
        .is_some_and(|version| version.trim() != "(none)")
}

/// Reads the mirrors' package lists.
pub fn update(log: &Log) -> Result<()> {
    step("reading the package lists of this machine's mirrors", || {
        log.run(apt_get().arg("update"))
    })
    .context("`apt-get update` failed: check the network and the sources in /etc/apt")
}

/// Fetches a package into `folder` without installing it, and returns the file.
pub fn fetch(package: &str, folder: &Path, log: &Log) -> Result<PathBuf> {
    std::fs::create_dir_all(folder)?;
    let mut download = apt_get();
    download.args(["download", package]).current_dir(folder);
    if log.run(&mut download).is_err() {
        update(log)?;
        log.run(&mut download)?;
    }
    let prefix = format!("{package}_");
    for entry in std::fs::read_dir(folder)? {
        let entry = entry?;
        if entry.file_name().to_string_lossy().starts_with(&prefix) {
            return Ok(entry.path());
        }
    }
    bail!(
        "`apt-get download {package}` left no {prefix}*.deb in {}",
        folder.display()
    )
}

/// Unpacks a package into `folder`.
pub fn unpack(package: &Path, folder: &Path, log: &Log) -> Result<()> {
    log.run(Command::new("dpkg").arg("-x").arg(package).arg(folder))
}

/// `apt-get` with what every one of our calls needs.
pub fn apt_get() -> Command {
    let mut command = Command::new("apt-get");
    command
        .env("DEBIAN_FRONTEND", "noninteractive")
        .env("LC_ALL", "C")
        .args([
            "-q",
            "-o",
            "Acquire::Retries=3",
            "-o",
            "DPkg::Lock::Timeout=300",
            // Downloads into the cache folder, where the user `_apt` may not write.
            "-o",
            "APT::Sandbox::User=root",
        ]);
    command
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_candidate_of_none_is_not_known() {
        assert!(known_candidate("  Candidate: 1.96.0+dfsg1-1~deb12u2"));
        assert!(!known_candidate("  Candidate: (none)"));
        assert!(!known_candidate("  Installed: 1.0"));
    }
}
