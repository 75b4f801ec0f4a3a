//! Calico's own manifests, for tests: what its definitions accept is for them to say.

use std::path::PathBuf;

use anyhow::{Result, bail};

use super::python;
use crate::places::Places;

/// A driver of OpenStack's that installs Calico, and so carries the manifests of several of its releases.
const PACKAGE: &str = "magnum-cluster-api==0.38.2";

/// Fetches the manifests when they are not there, and returns their folder, one `v<version>.yaml` each.
pub fn ensure(places: &Places) -> Result<PathBuf> {
    let environment = python::ensure(places, PACKAGE, &["--no-deps"])?;
    for python in environment.join("lib").read_dir()? {
        let folder = python?
            .path()
            .join("site-packages/magnum_cluster_api/manifests/calico");
        if folder.is_dir() {
            return Ok(folder);
        }
    }
    bail!(
        "{PACKAGE} holds no manifests of Calico in {}",
        environment.display()
    )
}
