//! `cargo xtask setup`: everything that the other commands need, on a fresh Debian 12, once.

pub mod apt;
pub mod calico;
mod cpio;
pub mod helm;
pub mod kernels;
pub mod kubernetes;
pub mod linker;
mod python;
pub mod root;
pub mod runtime;
pub mod sources;

use std::path::PathBuf;
use std::process::Command;
use std::time::Instant;

use anyhow::{Result, bail};

use crate::places::Places;
use crate::progress::Log;

/// Installs and makes what is missing; with everything in place it returns at once and says nothing.
pub fn ensure(places: &Places) -> Result<()> {
    let started = Instant::now();
    if complete(places)? {
        return Ok(());
    }
    check_system()?;
    let _lock = places.lock()?;
    eprintln!(
        "setup: filling {} (log: {})",
        places.cache.display(),
        places.log("setup").display()
    );
    let log = Log::at(places.log("setup"))?;
    apt::install(apt::HOST_PACKAGES, &log)?;
    linker::ensure(places, &log)?;
    root::ensure(places, &log)?;
    for version in kernels::Version::ALL {
        kernels::ensure(places, version, &log)?;
    }
    eprintln!("setup: done in {:.1} s", started.elapsed().as_secs_f64());
    Ok(())
}

/// The same for what only Kubernetes needs: nobody else is to wait for it.
pub fn ensure_kubernetes(places: &Places) -> Result<()> {
    if kubernetes::folder(places).exists() {
        return Ok(());
    }
    check_system()?;
    let _lock = places.lock()?;
    eprintln!(
        "setup: building Kubernetes, once, into {} (log: {})",
        kubernetes::folder(places).display(),
        places.log("setup-kubernetes").display()
    );
    let log = Log::at(places.log("setup-kubernetes"))?;
    apt::install(kubernetes::PACKAGES, &log)?;
    kubernetes::ensure(places, &log)
}

/// What only backups of a control plane's store need.
pub fn ensure_backups(places: &Places) -> Result<()> {
    if !apt::missing(kubernetes::BACKUP_PACKAGES)?.is_empty() {
        check_system()?;
        let _lock = places.lock()?;
        apt::install(kubernetes::BACKUP_PACKAGES, &Log::at(places.log("setup"))?)?;
    }
    Ok(())
}

/// What only the fuzzer needs: libFuzzer is C++.
pub fn ensure_fuzzer(places: &Places) -> Result<()> {
    let found = Command::new("c++").arg("--version").output();
    if !found.is_ok_and(|found| found.status.success()) {
        check_system()?;
        let _lock = places.lock()?;
        apt::install(&["g++"], &Log::at(places.log("setup"))?)?;
    }
    Ok(())
}

/// The root folder alone, of which some programs run here, too.
pub fn ensure_root(places: &Places) -> Result<PathBuf> {
    let folder = root::folder(places);
    if !folder.exists() {
        check_system()?;
        let _lock = places.lock()?;
        let log = Log::at(places.log("setup"))?;
        apt::install(apt::HOST_PACKAGES, &log)?;
        root::ensure(places, &log)?;
    }
    Ok(folder)
}

/// The same for what only nodes of Kubernetes need, beside what everybody needs.
pub fn ensure_nodes(places: &Places) -> Result<()> {
    ensure(places)?;
    if runtime::folder(places).exists() {
        return Ok(());
    }
    let _lock = places.lock()?;
    runtime::ensure(places, &Log::at(places.log("setup"))?)
}

fn complete(places: &Places) -> Result<bool> {
    Ok(linker::path(places).exists()
        && root::folder(places).exists()
        && kernels::Version::ALL
            .iter()
            .all(|version| kernels::find(places, *version).image().exists())
        && is_debian_12()
        && apt::missing(apt::HOST_PACKAGES)?.is_empty())
}

/// Whether Debian packages can be installed here.
pub fn check_system() -> Result<()> {
    if !is_debian_12() || std::env::consts::ARCH != "x86_64" {
        bail!(
            "this is not Debian 12 on x86_64: its packages, kernels and tools are what the lab is made of. Use a \
             Debian 12 virtual machine or container (privileged, for namespaces)"
        );
    }
    if !rustix::process::geteuid().is_root() {
        bail!(
            "setup installs packages and makes a root folder: run it as root (`sudo -E cargo xtask setup`)"
        );
    }
    Ok(())
}

fn is_debian_12() -> bool {
    let release = std::fs::read_to_string("/etc/os-release").unwrap_or_default();
    release.lines().any(|line| line == "ID=debian") && release.contains("VERSION_ID=\"12\"")
}
