//! containerd and runc, for nodes: Debian's packages, unpacked and never installed, for installed they would be started.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use super::apt;
use crate::places::{Places, fill_once, stamp};
use crate::progress::{Log, step};

const PACKAGES: &[&str] = &["containerd", "runc"];

/// Raise it when the way of making the folder changes.
const RECIPE: &str = "1";

/// Where the packages are unpacked.
pub fn folder(places: &Places) -> PathBuf {
    let parts = PACKAGES.iter().copied().chain([RECIPE]);
    places.cache.join(format!("runtime-{}", stamp(parts)))
}

/// Fetches and unpacks them unless they are there.
pub fn ensure(places: &Places, log: &Log) -> Result<()> {
    let done = folder(places);
    if done.exists() {
        return Ok(());
    }
    step(&format!("fetching {}", PACKAGES.join(" and ")), || {
        fill_once(&done, |part| make(part, log))
    })
    .context("the container runtime could not be set up")
}

fn make(folder: &Path, log: &Log) -> Result<()> {
    let fetched = folder.join("fetched");
    for package in PACKAGES {
        let file = apt::fetch(package, &fetched, log)?;
        apt::unpack(&file, folder, log)?;
    }
    std::fs::remove_dir_all(&fetched).with_context(|| format!("removing {}", fetched.display()))
}
