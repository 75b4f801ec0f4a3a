//! What nodes stand on and what outlives their processes: network namespaces and cgroups. The control plane's state
//! records it before it is made, so that any later command can take it away.

use std::collections::BTreeSet;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use serde::{Deserialize, Serialize};

use super::layout::{self, HUB, Layout};
use crate::k8s::pki::{self, Identity};
use crate::progress::{output, step};

/// Where network namespaces have their names.
const NAMESPACES: &str = "/run/netns";

/// The kernel takes its time to end everything that was in a cgroup.
const EMPTY_PATIENCE: Duration = Duration::from_secs(20);

/// The weight of a node among everything on this machine, where a process that is in no cgroup has 1024.
const SHARES: &str = "16384";

/// The ground of one lab; the default is that of none.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
pub struct Ground {
    /// Tells this lab's namespaces and cgroups from those of another cache.
    tag: String,
    /// The cluster's name.
    cluster: String,
    /// Names of network namespaces.
    networks: Vec<String>,
    /// The cgroups of the nodes: name of the node, folder.
    cgroups: Vec<(String, PathBuf)>,
    /// A root folder with Debian's network tools.
    root: PathBuf,
}

impl Ground {
    /// The ground of a cluster in a lab with this tag, on this machine's cgroup hierarchies.
    pub fn plan(tag: &str, layout: &Layout, root: &Path) -> Result<Ground> {
        let mounts = std::fs::read_to_string("/proc/self/mountinfo").context("reading the mount table")?;
        let hierarchies = hierarchies(&mounts);
        for needed in ["cpu", "cpuset", "devices", "memory", "pids"] {
            if !hierarchies.iter().any(|one| one.has(needed)) {
                bail!(
                    "the controller {needed} is in no cgroup v1 hierarchy at /sys/fs/cgroup, and nodes of Kubernetes \
                     1.20 want that: boot with systemd.unified_cgroup_hierarchy=0"
                );
            }
        }
        let cgroups = layout.nodes.iter().flat_map(|node| {
            let name = layout.namespace(tag, node.name);
            let folders: Vec<_> = hierarchies
                .iter()
                .map(|one| (node.name.to_owned(), one.place.join(&name)))
                .collect();
            folders
        });
        Ok(Ground {
            tag: tag.to_owned(),
            cluster: layout.name.to_owned(),
            networks: layout
                .places()
                .map(|place| layout.namespace(tag, place))
                .collect(),
            cgroups: cgroups.collect(),
            root: root.to_owned(),
        })
    }

    /// Whether nodes can stand on it.
    pub fn is_there(&self) -> bool {
        !self.networks.is_empty()
    }

    /// Who the kubelets of its nodes are.
    pub fn kubelets(&self) -> Vec<Identity> {
        let nodes: BTreeSet<&str> = self.cgroups.iter().map(|(node, _)| node.as_str()).collect();
        nodes.into_iter().map(pki::kubelet).collect()
    }

    /// The cluster that it is for, if it is for any.
    pub fn layout(&self) -> Result<&'static Layout> {
        layout::named(&self.cluster).with_context(|| format!("no cluster is called {:?}", self.cluster))
    }

    /// The file of a place's network namespace.
    pub fn network(&self, layout: &Layout, place: &str) -> PathBuf {
        Path::new(NAMESPACES).join(layout.namespace(&self.tag, place))
    }

    /// Everything of it that has a path.
    pub fn paths(&self) -> impl Iterator<Item = PathBuf> {
        let networks = self.networks.iter().map(|name| Path::new(NAMESPACES).join(name));
        networks.chain(self.cgroups.iter().map(|(_, folder)| folder.clone()))
    }

    /// The cgroup of a node in the hierarchy of a controller that has one of its own.
    pub fn cgroup(&self, node: &str, controller: &str) -> Option<PathBuf> {
        let found = self.cgroups.iter().find(|(owner, folder)| {
            owner == node && folder.parent().is_some_and(|above| above.ends_with(controller))
        });
        found.map(|(_, folder)| folder.clone())
    }

    /// Makes all of it.
    pub fn lay(&self) -> Result<()> {
        if !self.is_there() {
            return Ok(());
        }
        let layout = self.layout()?;
        step("making the networks and cgroups of the nodes", || {
            for name in &self.networks {
                output(Command::new("ip").args(["netns", "add", name]))?;
            }
            // From within one of them, so that the machine's own network sees none of it.
            self.ip(layout, HUB, &layout.lines_of_links(&self.tag))?;
            for (place, lines) in layout.configurations() {
                self.ip(layout, place, &lines)?;
            }
            for place in layout.places() {
                for (name, value) in layout.sysctls(place) {
                    let line = format!("echo {value} > /proc/sys/net/ipv4/{name}");
                    output(self.entering(layout, place).args(["sh", "-ec", &line]))?;
                }
                if let Some(rules) = layout.rules(place) {
                    let mut nft = self.entering(layout, place);
                    fed(nft.arg("chroot").arg(&self.root).args(["nft", "-f", "-"]), &rules)?;
                }
            }
            self.cgroups.iter().try_for_each(|(_, folder)| new_cgroup(folder))
        })
    }

    /// Puts a process into the cgroups of the node that it is going to be.
    pub fn admit(&self, node: &str, process: u32) -> Result<()> {
        for (_, folder) in self.cgroups.iter().filter(|(owner, _)| owner == node) {
            let file = folder.join("cgroup.procs");
            std::fs::write(&file, process.to_string())
                .with_context(|| format!("moving process {process} by {}", file.display()))?;
        }
        Ok(())
    }

    /// Takes away what is left of it, when every process of its nodes has been killed.
    pub fn remove(&self) -> Result<()> {
        let started = Instant::now();
        for (_, folder) in &self.cgroups {
            while let Err(problem) = remove_cgroup(folder) {
                if started.elapsed() > EMPTY_PATIENCE {
                    return Err(problem).with_context(|| format!("removing the cgroup {}", folder.display()));
                }
                std::thread::sleep(Duration::from_millis(20));
            }
        }
        for name in &self.networks {
            if Path::new(NAMESPACES).join(name).exists() {
                output(Command::new("ip").args(["netns", "delete", name]))?;
            }
        }
        Ok(())
    }

    fn ip(&self, layout: &Layout, place: &str, lines: &str) -> Result<()> {
        let namespace = layout.namespace(&self.tag, place);
        fed(Command::new("ip").args(["-n", &namespace, "-batch", "-"]), lines)
    }

    /// A command in the network of a place; its words are still to come.
    fn entering(&self, layout: &Layout, place: &str) -> Command {
        let mut command = Command::new("nsenter");
        command.arg(format!("--net={}", self.network(layout, place).display()));
        command
    }
}

/// A cgroup v1 hierarchy.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Hierarchy {
    /// Where it is mounted.
    pub place: PathBuf,
    /// Its controllers, or its name (`name=systemd`), as mount(8) wants them.
    pub options: String,
}

impl Hierarchy {
    fn has(&self, controller: &str) -> bool {
        self.options.split(',').any(|option| option == controller)
    }
}

/// The cgroup v1 hierarchies of a mount table.
pub fn hierarchies(mountinfo: &str) -> Vec<Hierarchy> {
    let mut found: Vec<Hierarchy> = Vec::new();
    for line in mountinfo.lines() {
        let Some((left, right)) = line.split_once(" - ") else {
            continue;
        };
        let (Some(place), mut right) = (left.split(' ').nth(4), right.split(' ')) else {
            continue;
        };
        if right.next() != Some("cgroup") || !place.starts_with("/sys/fs/cgroup/") {
            continue;
        }
        let options = right.nth(1).unwrap_or_default();
        let of_the_mount = ["rw", "ro", "xattr", "clone_children"];
        let options: Vec<&str> = options
            .split(',')
            .filter(|option| !of_the_mount.contains(option) && !option.starts_with("release_agent="))
            .collect();
        let hierarchy = Hierarchy {
            place: place.into(),
            options: options.join(","),
        };
        // A hierarchy may be mounted twice.
        if found.iter().all(|known| known.options != hierarchy.options) {
            found.push(hierarchy);
        }
    }
    found
}

fn new_cgroup(folder: &Path) -> Result<()> {
    std::fs::create_dir_all(folder).with_context(|| format!("making the cgroup {}", folder.display()))?;
    // No process may enter a cgroup for which nobody has said on which processors it runs.
    for name in ["cpuset.cpus", "cpuset.mems"] {
        let (file, above) = (folder.join(name), folder.join("..").join(name));
        if file.exists() {
            std::fs::read(&above)
                .and_then(|value| std::fs::write(&file, value))
                .with_context(|| format!("setting {}", file.display()))?;
        }
    }
    // As many processors as it may want, whatever else runs on this machine: a node's charon has packets to encrypt.
    let shares = folder.join("cpu.shares");
    if shares.exists() {
        std::fs::write(&shares, SHARES).with_context(|| format!("setting {}", shares.display()))?;
    }
    Ok(())
}

/// Removes a cgroup with those below it, all of which must be empty; their files go by themselves.
fn remove_cgroup(folder: &Path) -> std::io::Result<()> {
    if !folder.exists() {
        return Ok(());
    }
    for entry in std::fs::read_dir(folder)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            remove_cgroup(&entry.path())?;
        }
    }
    std::fs::remove_dir(folder)
}

/// Runs a command with a text on its input.
fn fed(command: &mut Command, text: &str) -> Result<()> {
    let shown = format!("{command:?}");
    let mut child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .with_context(|| format!("starting {shown}"))?;
    let written = child.stdin.take().map(|mut pipe| pipe.write_all(text.as_bytes()));
    let done = child.wait_with_output().with_context(|| shown.clone())?;
    if !done.status.success() {
        bail!(
            "{shown} ended with {}: {}",
            done.status,
            String::from_utf8_lossy(&done.stderr).trim()
        );
    }
    written.transpose().with_context(|| shown)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hierarchies_are_mounted_again_by_their_controllers() {
        let mounts = "\
30 29 0:26 / /sys/fs/cgroup/cpu,cpuacct rw,relatime shared:9 - cgroup cgroup rw,cpu,cpuacct
31 29 0:27 / /sys/fs/cgroup/systemd rw - cgroup cgroup rw,xattr,release_agent=/lib/agent,name=systemd
32 29 0:28 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw
33 29 0:26 / /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu,cpuacct
34 29 0:30 / /mnt/other rw - cgroup cgroup rw,memory
";
        assert_eq!(
            hierarchies(mounts),
            [
                Hierarchy {
                    place: "/sys/fs/cgroup/cpu,cpuacct".into(),
                    options: "cpu,cpuacct".to_owned()
                },
                Hierarchy {
                    place: "/sys/fs/cgroup/systemd".into(),
                    options: "name=systemd".to_owned()
                },
            ]
        );
        assert!(hierarchies(mounts)[0].has("cpuacct") && !hierarchies(mounts)[0].has("memory"));
    }

    #[test]
    fn the_ground_of_no_nodes_is_nothing() {
        let none = Ground::default();
        assert!(!none.is_there() && none.kubelets().is_empty());
        none.lay().unwrap();
        none.admit("edge1", 0).unwrap();
        none.remove().unwrap();
    }

    #[test]
    fn cgroups_go_with_those_below_them() {
        let folder = tempfile::tempdir().unwrap();
        let node = folder.path().join("node");
        std::fs::create_dir_all(node.join("kubepods/pod1/container")).unwrap();
        remove_cgroup(&node).unwrap();
        assert!(!node.exists());
        remove_cgroup(&node).unwrap();
    }
}
