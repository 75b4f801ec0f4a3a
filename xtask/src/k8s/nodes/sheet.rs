//! What the cluster tells about itself to the suite that follows the guide in it.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use serde::Serialize;

use super::{images, init_of};
use crate::k8s::pki;
use crate::k8s::programs::Files;
use crate::k8s::state::State;
use crate::places::Places;

#[derive(Serialize)]
struct Sheet {
    name: &'static str,
    repo: PathBuf,
    tools: PathBuf,
    kubeconfig: PathBuf,
    xtask: Vec<String>,
    image: &'static str,
    cluster_cidr: &'static str,
    service_cidr: &'static str,
    dns: String,
    api_service: IpAddr,
    networks: BTreeMap<&'static str, PathBuf>,
    nodes: BTreeMap<&'static str, Node>,
    logs: PathBuf,
}

#[derive(Serialize)]
struct Node {
    address: String,
    cloud: bool,
    root: PathBuf,
    cgroup: PathBuf,
}

/// Its file.
pub fn path(files: &Files) -> PathBuf {
    files.folder.join("sheet.json")
}

/// Writes it.
pub fn write(state: &State, places: &Places, files: &Files) -> Result<()> {
    let layout = state.ground.layout()?;
    let mut nodes = BTreeMap::new();
    for node in layout.nodes {
        let described = Node {
            address: node.address.to_string(),
            cloud: node.cloud,
            root: Path::new("/proc").join(init_of(state, node.name)?).join("root"),
            cgroup: state
                .ground
                .cgroup(node.name, "pids")
                .context("no hierarchy has the controller pids")?,
        };
        nodes.insert(node.name, described);
    }
    let xtask = [
        std::env::current_exe().context("finding this program")?,
        "--cache".into(),
        places.cache.clone(),
        "k8s".into(),
    ];
    let sheet = Sheet {
        name: layout.name,
        repo: places.repo.clone(),
        tools: files.tools(),
        kubeconfig: files.kubeconfig(pki::ADMIN),
        xtask: xtask
            .iter()
            .map(|word| word.to_string_lossy().into_owned())
            .collect(),
        image: images::NAME,
        cluster_cidr: layout.cluster_cidr,
        service_cidr: layout.services.range,
        dns: layout.dns.to_string(),
        api_service: layout.services.api,
        networks: layout
            .routers
            .iter()
            .map(|place| (*place, state.ground.network(layout, place)))
            .collect(),
        nodes,
        logs: files.logs.clone(),
    };
    let path = path(files);
    std::fs::write(&path, serde_json::to_string_pretty(&sheet)?)
        .with_context(|| format!("writing {}", path.display()))
}
