//! A site: one node, with a network namespace and a mount namespace of its own in which the paths of a node
//! (`/run`, `/var/lib/fabedge`, `/etc/cni/net.d`, `/sys/fs/bpf` ...) are private, so that programs need no lab
//! options. Everything a site writes to them is a plain file under its [`Site::root`].

use std::fs;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result};
use rustix::mount::{MountFlags, MountPropagationFlags};
use serde::{Deserialize, Serialize};

use crate::place::{NETNS_DIR, Place};
use crate::sys;

/// The paths that every site has for itself.
const PRIVATE: [&str; 5] = [
    "/var/lib/fabedge",
    "/var/lib/cni",
    "/etc/cni/net.d",
    "/etc/ipsec.d",
    "/run",
];

/// Where a site finds its document and certificates.
pub const CONFIG_DIR: &str = "/etc/fabedge";

/// One node.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Site {
    /// Where its commands run.
    pub place: Place,
    /// The folder that holds its private paths.
    pub root: PathBuf,
}

impl Site {
    /// Makes the site in a network namespace that exists, with its private paths under `root` and with `config`
    /// (a folder that may be filled later) read-only at [`CONFIG_DIR`].
    ///
    /// # Errors
    /// When a mount fails.
    pub fn create(network: Place, root: &Path, config: &Path) -> Result<Self> {
        for path in PRIVATE {
            make(&within(root, path))?;
            make(Path::new(path))?;
        }
        make(&within(root, NETNS_DIR))?;
        make(config)?;
        make(Path::new(CONFIG_DIR))?;
        // A process keeps the mount namespace. A bind mount could not: the kernel lets a mount namespace be mounted
        // only in an older one, and since 6.18 it compares ids for that which are not in the order of creation.
        let keeper = network
            .run(|| {
                mounts(root, config)?;
                Command::new("sleep")
                    .arg("infinity")
                    .stdin(Stdio::null())
                    .process_group(0)
                    .spawn()
                    .context("starting a process to keep the mounts")
            })?
            .with_context(|| format!("making the mounts of {}", network.name))?;
        let mounts = PathBuf::from(format!("/proc/{}/ns/mnt", keeper.id()));
        Ok(Self {
            place: Place {
                mounts: Some(mounts),
                ..network
            },
            root: root.to_owned(),
        })
    }

    /// Where a path of the site is seen from outside of it, if it is one of its private ones.
    pub fn path(&self, inside: &str) -> PathBuf {
        within(&self.root, inside)
    }
}

/// `inside` below `root`.
fn within(root: &Path, inside: &str) -> PathBuf {
    root.join(inside.trim_start_matches('/'))
}

/// Makes a directory and what is above it.
fn make(path: &Path) -> Result<()> {
    fs::create_dir_all(path).with_context(|| format!("making {}", path.display()))
}

/// Gives the calling thread a mount namespace with the site's private paths.
fn mounts(root: &Path, config: &Path) -> Result<()> {
    sys::new_mounts().context("making a mount namespace")?;
    // Slave, not private: names of network namespaces that are made later have to arrive here.
    rustix::mount::mount_change(
        "/",
        MountPropagationFlags::REC | MountPropagationFlags::DOWNSTREAM,
    )
    .context("parting from the machine's mounts")?;
    rustix::mount::mount_bind(NETNS_DIR, within(root, NETNS_DIR))
        .with_context(|| format!("mounting {NETNS_DIR}"))?;
    rustix::mount::mount_bind(config, CONFIG_DIR).with_context(|| format!("mounting {CONFIG_DIR}"))?;
    rustix::mount::mount_remount(CONFIG_DIR, MountFlags::BIND | MountFlags::RDONLY, c"")
        .with_context(|| format!("making {CONFIG_DIR} read-only"))?;
    for path in PRIVATE {
        rustix::mount::mount_bind_recursive(within(root, path), path)
            .with_context(|| format!("mounting {path}"))?;
    }
    // sysfs shows the network namespace of whoever mounts it.
    rustix::mount::mount("sysfs", "/sys", "sysfs", MountFlags::empty(), None).context("mounting /sys")?;
    rustix::mount::mount("bpf", "/sys/fs/bpf", "bpf", MountFlags::empty(), None)
        .context("mounting /sys/fs/bpf")?;
    Ok(())
}
