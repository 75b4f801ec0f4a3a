//! Nodes: real kubelets with containerd and runc, each in namespaces of its own, and the control plane in the middle.

pub mod files;
pub mod ground;
mod images;
pub mod init;
pub mod layout;
pub mod sheet;

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use super::pki;
use super::plane::Plane;
use super::programs::{AUTHORITY, Files, Ports, Program, Seat};
use super::state::State;
use crate::interrupt::Interrupt;
use crate::places::{Places, stamp};
use crate::progress::{output, step, tail};
use crate::setup::{kubernetes, root, runtime};
use files::Given;
use ground::Ground;
use init::Order;
use layout::{HUB, Layout, Node};

/// A busy machine may take its time: alone, it is ten seconds.
const PATIENCE: Duration = Duration::from_secs(180);

/// The seat of a control plane with nodes, and the ground of those.
pub fn seat(places: &Places, layout: &Layout) -> Result<(Seat, Ground)> {
    let tag = &stamp([places.cache.to_string_lossy()])[..4];
    let ground = Ground::plan(tag, layout, &root::folder(places))?;
    let seat = Seat {
        namespace: Some(ground.network(layout, HUB)),
        address: layout.api_server.into(),
        services: layout.services,
        ports: Ports {
            api: 443,
            etcd: 2379,
            etcd_peers: 2380,
            controllers: 10257,
            scheduler: 10259,
        },
    };
    Ok((seat, ground))
}

/// Starts every node of a control plane, with images that pods may ask for, and waits until they are ready.
pub fn start(
    plane: &mut Plane,
    places: &Places,
    files: &Files,
    more_images: &[PathBuf],
    interrupt: &Interrupt,
) -> Result<()> {
    let layout = plane.state().ground.layout()?;
    let folder = files.folder.join("nodes");
    std::fs::create_dir_all(&folder).with_context(|| format!("making {}", folder.display()))?;
    let busybox = root::folder(places).join("usr/bin/busybox");
    let mut archives = vec![images::write(&busybox, &folder).context("making the image of the tests' pods")?];
    archives.extend_from_slice(more_images);
    let objects = serde_json::to_string_pretty(&layout.objects())?;
    apply(plane, &folder.join("objects.yaml"), &objects)?;
    step("starting the nodes: containerd, its images, the kubelet", || {
        for node in layout.nodes {
            let place = folder.join(node.name);
            prepare(layout, node, &place, places, files, &archives)?;
            let network = plane.state().ground.network(layout, node.name);
            plane.spawn(&program(node, &place, &network)?)?;
        }
        wait_until_started(plane, layout, &folder, interrupt)
    })?;
    step("giving them pod networks, until they are ready", || {
        apply(plane, &folder.join("flannel.yaml"), &layout.flannel(images::NAME))?;
        wait_until_ready(plane, layout, interrupt)
    })?;
    sheet::write(plane.state(), places, files)
}

/// Fills the folder of a node.
fn prepare(
    layout: &Layout,
    node: &Node,
    place: &Path,
    places: &Places,
    files: &Files,
    archives: &[PathBuf],
) -> Result<()> {
    let read =
        |path: PathBuf| std::fs::read_to_string(&path).with_context(|| format!("reading {}", path.display()));
    let kubelet = pki::kubelet_file(node.name);
    let given = Given {
        node,
        authority: &read(files.certificate(AUTHORITY))?,
        kubeconfig: &read(files.kubeconfig(&kubelet))?,
        dns: layout.dns,
        sandbox: images::NAME,
    };
    for (path, text) in files::files(&given) {
        write(&place.join(init::FILES).join(path.trim_start_matches('/')), &text)?;
    }
    let order = Order {
        name: node.name.to_owned(),
        address: node.address.to_string(),
        root: root::folder(places),
        kubernetes: kubernetes::folder(places),
        runtime: runtime::folder(places),
        images: archives.to_vec(),
        logs: files.logs.clone(),
    };
    write(&place.join(init::ORDER), &serde_json::to_string_pretty(&order)?)?;
    std::fs::create_dir_all(place.join("mount"))?;
    Ok(())
}

/// A node as a program of the control plane's: when it is killed, its PID 1 is, and everything in it.
fn program(node: &Node, place: &Path, network: &Path) -> Result<Program> {
    let text = |path: &Path| path.to_string_lossy().into_owned();
    let mut words = vec!["nsenter".to_owned(), format!("--net={}", text(network))];
    words.extend(
        [
            "unshare",
            "--mount",
            "--uts",
            "--ipc",
            "--cgroup",
            "--pid",
            "--fork",
            "--kill-child",
        ]
        .map(str::to_owned),
    );
    words.push(text(&std::env::current_exe().context("finding this program")?));
    words.extend(["guest".to_owned(), "node".to_owned(), text(place)]);
    Ok(Program {
        name: node.name,
        words,
    })
}

fn wait_until_started(plane: &Plane, layout: &Layout, folder: &Path, interrupt: &Interrupt) -> Result<()> {
    let started = Instant::now();
    let missing = || {
        layout
            .nodes
            .iter()
            .find(|node| !folder.join(node.name).join(init::READY).exists())
    };
    while let Some(node) = missing() {
        plane.check_alive()?;
        interrupt.check()?;
        if started.elapsed() > PATIENCE {
            bail!("{} did not start within {PATIENCE:?}: see its logs", node.name);
        }
        std::thread::sleep(Duration::from_millis(50));
    }
    Ok(())
}

/// Prints the names of nodes that are ready.
const READY_NODES: &str =
    r#"jsonpath={range .items[*]}{.metadata.name}={.status.conditions[?(@.type=="Ready")].status} {end}"#;

fn wait_until_ready(plane: &Plane, layout: &Layout, interrupt: &Interrupt) -> Result<()> {
    let started = Instant::now();
    loop {
        let said = output(&mut plane.kubectl(&["get", "node", "--output", READY_NODES]))?;
        if layout
            .nodes
            .iter()
            .all(|node| said.contains(&format!("{}=True", node.name)))
        {
            return Ok(());
        }
        plane.check_alive()?;
        interrupt.check()?;
        if started.elapsed() > PATIENCE {
            bail!(
                "not every node is ready within {PATIENCE:?}: {said}\n{}",
                output(&mut plane.kubectl(&["get", "pod", "--all-namespaces", "--output=wide"]))?
            );
        }
        std::thread::sleep(Duration::from_millis(200));
    }
}

fn apply(plane: &Plane, file: &Path, text: &str) -> Result<()> {
    write(file, text)?;
    output(&mut plane.kubectl(&["apply", "-f", &file.to_string_lossy()])).map(|_| ())
}

fn write(path: &Path, text: &str) -> Result<()> {
    if let Some(folder) = path.parent() {
        std::fs::create_dir_all(folder).with_context(|| format!("making {}", folder.display()))?;
    }
    std::fs::write(path, text).with_context(|| format!("writing {}", path.display()))
}

/// An error where a control plane has no nodes.
pub fn needed(state: &State) -> Result<()> {
    if !state.ground.is_there() {
        bail!("the control plane that is up has no nodes: end it, then `cargo xtask k8s up --nodes`");
    }
    Ok(())
}

/// Runs a command on a node of a control plane's, on our own terminal; returns its exit code.
pub fn exec(state: &State, name: &str, words: &[String]) -> Result<i32> {
    needed(state)?;
    let layout = state.ground.layout()?;
    if !layout.nodes.iter().any(|node| node.name == name) {
        let known: Vec<&str> = layout.nodes.iter().map(|node| node.name).collect();
        bail!(
            "there is no node {name} in {}: there are {}",
            layout.name,
            known.join(", ")
        );
    }
    let status = Command::new("nsenter")
        .args(["--target", &init_of(state, name)?])
        .args(["--mount", "--uts", "--ipc", "--net", "--pid", "--cgroup", "--"])
        .args(["env", "HOME=/root", &format!("PATH={}", init::PATH)])
        .args(words)
        .status()
        .context("starting nsenter")?;
    Ok(status.code().unwrap_or(255))
}

/// The process that is PID 1 of a node, by its number outside.
fn init_of(state: &State, name: &str) -> Result<String> {
    let program = state.programs.iter().find(|program| program.name == name);
    let program = program.with_context(|| format!("the node {name} has not been started"))?;
    let unshare = program.process.id;
    let children = format!("/proc/{unshare}/task/{unshare}/children");
    let children = std::fs::read_to_string(children).unwrap_or_default();
    let init = children.split_whitespace().next().with_context(|| {
        let log = &program.log;
        format!(
            "{name} has ended; the end of {}:\n{}",
            log.display(),
            tail(log, 0)
        )
    })?;
    Ok(init.to_owned())
}
