//! The product on both nodes: charon, the agent, and pods by the agent's own conflist.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use fabedge_common::abi::POD_LEARNING;

use super::ground::{Ground, NODES, PODS, Settings};
use crate::cni::CONF_DIR;
use crate::command;
use crate::lab::{self, Switch, Tunnel, charon, wait_until};
use crate::observe::{self, Packets};
use crate::place::PATIENCE;
use crate::scenarios::product::CONVERGENCE;
use crate::world;
use crate::world::addresses::Role;

/// The nodes, their Community and the facts of their cluster.
const CLUSTER: &str = include_str!("cluster.yaml");

/// Kernel modules that the agent has the kernel load, and that others would profit from.
pub const OFFLOADS: [&str; 2] = ["esp4_offload", "esp6_offload"];

/// Where the programs are.
const PROGRAMS: &str = "/host";

/// Has the operator write the documents and certificates of both nodes below `folder`.
///
/// # Errors
/// When it fails.
pub fn documents(folder: &Path) -> Result<PathBuf> {
    documents_of(folder, CLUSTER)
}

/// The same with more nodes, whose pods are in the lower half of 10.0.0.0/8.
///
/// # Errors
/// When the operator fails.
pub fn more_documents(folder: &Path, nodes: &str) -> Result<PathBuf> {
    let ranges = "clusterCIDR:\n";
    documents_of(
        folder,
        &(CLUSTER.replace(ranges, &format!("{ranges}  - 10.0.0.0/9\n")) + nodes),
    )
}

fn documents_of(folder: &Path, manifests_text: &str) -> Result<PathBuf> {
    let (manifests, documents) = (folder.join("manifests"), folder.join("documents"));
    fs::create_dir_all(&manifests).with_context(|| format!("making {}", manifests.display()))?;
    let file = manifests.join("cluster.yaml");
    fs::write(&file, manifests_text).with_context(|| format!("writing {}", file.display()))?;
    let mut operator = Command::new(format!("{PROGRAMS}/fabedge-operator"));
    operator
        .args(["standalone", "--once", "--out"])
        .args([&documents, &manifests]);
    command::must(&mut operator, PATIENCE)?;
    Ok(documents)
}

/// Brings the product up, with the fast path or without, and has its programs stand still.
///
/// # Errors
/// When something does not come up.
pub fn set_up(settings: &Settings, fast_path: Switch) -> Result<Ground> {
    let mut ground = Ground::of_nodes(settings)?;
    start(&mut ground, Tunnel::Xfrm, fast_path)?;
    for module in OFFLOADS {
        ensure!(is_loaded(module), "the agents have not had {module} loaded");
    }
    settle(&ground, fast_path)?;
    Ok(ground)
}

/// Brings the fast path up with a plain device where charon's TUN would be: nothing is encrypted. The product cannot be
/// told to do that; the agents do not know.
///
/// # Errors
/// When something does not come up.
pub fn set_up_in_the_clear(settings: &Settings) -> Result<Ground> {
    let mut ground = Ground::of_nodes(settings)?;
    start(&mut ground, Tunnel::Libipsec, Switch::On)?;
    ground.join_plain_links()?;
    settle(&ground, Switch::On)?;
    Ok(ground)
}

/// Starts charons and agents, and attaches the pods.
///
/// # Errors
/// When something does not come up.
pub fn start(ground: &mut Ground, tunnel: Tunnel, fast_path: Switch) -> Result<()> {
    let lab = lab::Settings {
        tunnel,
        fast_path,
        programs: PROGRAMS.into(),
        manifests: PathBuf::new(),
        bulk_mib: 0,
        ebpf: Switch::On,
        spread_esp: lab::Spread::default(),
        out: world::DIR.into(),
    };
    let log = |name: &str, of: &str| lab.out.join(format!("{name}-{of}.log"));
    for node in NODES {
        let site = ground.world.site(node.name)?;
        let daemon = charon::start(site, tunnel, &log(node.name, "charon"))?;
        ground.daemons.push(daemon);
    }
    if tunnel == Tunnel::Libipsec {
        ground.lay_plain_links()?;
    }
    for node in NODES {
        let site = ground.world.site(node.name)?;
        let link = site.path(CONF_DIR).join("fabedge.conflist");
        let mut agent = lab::agent(site, Role::Edge, &lab, &log(node.name, "agent"))?;
        agent.wait_until("its conflist was there", CONVERGENCE, || {
            link.symlink_metadata().is_ok()
        })?;
        ground.daemons.push(agent);
    }
    for (pod, node) in PODS.into_iter().zip(NODES) {
        let conflist = ground
            .node(node)?
            .must(&["cat", &format!("{CONF_DIR}/fabedge.conflist")])?;
        ground.attach(pod, node, &conflist)?;
    }
    Ok(())
}

/// Waits until packets go the way that they will be counted on, and has everything else stand still.
fn settle(ground: &Ground, fast_path: Switch) -> Result<()> {
    ground.wait_reach()?;
    if fast_path == Switch::On {
        wait_until("the pods are no longer new to the programs", CONVERGENCE, || {
            let mut learning = false;
            for node in NODES {
                let pods = observe::dump(ground.node(node)?, "pods4")?;
                learning |= pods.len() != 1;
                for pod in pods {
                    let flags = pod["value"]["flags"].as_u64().unwrap_or(0);
                    learning |= flags & u64::from(POD_LEARNING) != 0;
                }
            }
            Ok(!learning)
        })?;
    }
    // What charon and the agent do from time to time is no part of a packet's way.
    std::thread::sleep(Duration::from_secs(1));
    for daemon in &ground.daemons {
        daemon.pause()?;
    }
    Ok(())
}

/// Whether the kernel has a module loaded.
pub fn is_loaded(module: &str) -> bool {
    Path::new("/sys/module").join(module).exists()
}

/// What the programs of both nodes have counted.
///
/// # Errors
/// When their maps cannot be read.
pub fn counted(ground: &Ground) -> Result<Vec<Packets>> {
    NODES
        .iter()
        .map(|node| Packets::read(ground.world.site(node.name)?))
        .collect()
}
