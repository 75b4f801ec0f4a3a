//! `cargo xtask k8s`: a real Kubernetes control plane on this machine: etcd, API server, controller manager and scheduler
//! as processes, with a PKI of their own and RBAC. On loopback without nodes, or in a network with real ones.

pub mod check;
pub mod helm;
pub mod nodes;
pub mod pki;
pub mod plane;
pub mod programs;
pub mod state;
mod tools;

use std::ffi::OsStr;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use clap::Subcommand;

use crate::image::{self, Image};
use crate::interrupt::Interrupt;
use crate::places::Places;
use crate::progress::output;
use crate::setup::{self, kubernetes};
use nodes::layout::{self, Layout};
use nodes::sheet;
use plane::Plane;
use programs::Files;
use state::State;

/// The subcommands of `k8s`.
#[derive(Debug, Subcommand)]
pub enum K8s {
    /// Start the control plane and leave it up; prints a line that makes kubectl use it
    ///
    /// The first time, this builds Kubernetes from Debian's source package, which takes some six minutes.
    Up {
        /// With nodes, in networks of their own: master and node1 in the cloud, edge1 behind a NAT, and edge2
        #[arg(long)]
        nodes: bool,
        /// How many clusters with nodes; the second one, beijing, has a control plane of its own, a master and a node1
        #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u8).range(1..=2), requires = "nodes")]
        clusters: u8,
    },
    /// Run a command on a node
    Exec {
        /// The node: master, node1, edge1 or edge2; beijing.master or beijing.node1 of the second cluster
        node: String,
        /// The command
        #[arg(last = true, required = true)]
        command: Vec<String>,
    },
    /// Make a backup of what the store of a cluster with nodes holds
    Backup {
        /// The cluster: fabedge or beijing
        cluster: String,
        /// The file
        file: PathBuf,
    },
    /// Put a backup in the place of what the store holds
    ///
    /// Control plane and kubelets are started anew: they would not notice.
    Restore {
        /// The cluster: fabedge or beijing
        cluster: String,
        /// The file
        file: PathBuf,
    },
    /// End the control plane and its nodes, and remove their data
    Down,
    /// Say what runs; fails unless everything does
    Status,
}

/// Does one of the subcommands; returns the exit code.
pub fn k8s(places: &Places, task: &K8s, interrupt: &Interrupt) -> Result<i32> {
    match task {
        K8s::Up { nodes: false, .. } => up(places, &[], interrupt)?,
        K8s::Up { clusters, .. } => up(places, &layout::ALL[..usize::from(*clusters)], interrupt)?,
        K8s::Exec { node, command } => return exec(places, node, command),
        K8s::Backup { cluster, file } => back_up(places, cluster, file)?,
        K8s::Restore { cluster, file } => restore(places, cluster, file, interrupt)?,
        K8s::Down => down(places)?,
        K8s::Status => status(places)?,
    }
    Ok(0)
}

/// The files of the control plane that users start; with nodes, that of the first cluster.
pub fn files(places: &Places) -> Files {
    files_of(places, &layout::HOST)
}

/// The files of a cluster's control plane.
pub fn files_of(places: &Places, cluster: &Layout) -> Files {
    let name = if *cluster == layout::HOST {
        "k8s".to_owned()
    } else {
        format!("k8s-{}", cluster.name)
    };
    Files {
        folder: places.cache.join(&name),
        logs: places.cache.join("logs").join(name),
    }
}

/// Starts a control plane without nodes, or one with nodes for each cluster.
fn up(places: &Places, clusters: &[&'static Layout], interrupt: &Interrupt) -> Result<()> {
    if !rustix::process::geteuid().is_root() {
        bail!("the control plane needs root for etcd's tmpfs: `sudo -E cargo xtask k8s up`");
    }
    let _lock = lock(places)?;
    for layout in layout::ALL {
        let folder = files_of(places, layout).folder;
        if let Some(state) = State::read(&folder)? {
            if state.complete && state.lives() {
                bail!(
                    "a control plane is up already at {}: use it with `export KUBECONFIG={}`, or end it with `cargo xtask \
                     k8s down`",
                    state.url,
                    state.kubeconfig.display()
                );
            }
            // Of a command that was killed, or of a time before this machine's last start.
            state.end()?;
        }
        state::remove(&folder)?;
    }
    setup::ensure_kubernetes(places)?;
    let programs = kubernetes::folder(places);
    // Unless all are whole, none stays.
    let mut planes = Vec::new();
    if clusters.is_empty() {
        let (seat, files) = (plane::on_loopback()?, files(places));
        let plane = Plane::start(&programs, seat, files.clone(), interrupt)?;
        planes.push((plane, files));
    } else {
        setup::ensure_nodes(places)?;
        let built = image::build(places, &Image::ALL.into(), &image::folder(places))?;
        let images: Vec<PathBuf> = built.into_iter().map(|built| built.file).collect();
        for layout in clusters {
            if clusters.len() > 1 {
                eprintln!("the cluster {}:", layout.name);
            }
            let files = files_of(places, layout);
            let (seat, ground) = nodes::seat(places, layout)?;
            let mut plane = Plane::start_on(&programs, seat, files.clone(), ground, interrupt)?;
            nodes::start(&mut plane, places, &files, &images, interrupt)?;
            planes.push((plane, files));
        }
    }
    for (plane, files) in planes {
        tools::lay(places, plane.state(), &files.tools())?;
        let state = plane.state();
        eprintln!(
            "the control plane is up at {}; `cargo xtask k8s down` ends it",
            state.url
        );
        println!("export KUBECONFIG={}", state.kubeconfig.display());
        println!("export PATH={}:$PATH", files.tools().display());
        plane.keep()?;
    }
    Ok(())
}

/// Joins two clusters as a story; they go with it unless they are to be kept. Returns its exit code.
pub fn demo(places: &Places, json: Option<&Path>, keep: bool, interrupt: &Interrupt) -> Result<i32> {
    up(places, &layout::ALL, interrupt)?;
    let shown = lab(places, "clusters")
        .args(
            json.into_iter()
                .flat_map(|file| [OsStr::new("--json"), file.as_os_str()]),
        )
        .status()
        .context("starting fabedge-lab");
    if keep {
        eprintln!(
            "both clusters are up: `cargo xtask k8s exec beijing.node1 -- ip route`, `cargo xtask k8s down`"
        );
    } else {
        end(places)?;
    }
    interrupt.check()?;
    let code = shown?.code().unwrap_or(255);
    if code != 0 {
        eprintln!("logs: {}", files(places).logs.display());
    }
    Ok(code)
}

/// A command of the lab's that takes the sheets of both clusters.
fn lab(places: &Places, verb: &str) -> Command {
    let mut command = Command::new(places.target.join("release/fabedge-lab"));
    command
        .arg(verb)
        .args(layout::ALL.map(|layout| sheet::path(&files_of(places, layout))));
    command
}

/// Runs a command on a node, which is one of the first cluster's unless its name says otherwise.
fn exec(places: &Places, node: &str, command: &[String]) -> Result<i32> {
    let (cluster, node) = node.split_once('.').unwrap_or((layout::HOST.name, node));
    let (_, state) = found(places, cluster)?;
    nodes::exec(&state, node, command)
}

/// A cluster with nodes that is up.
fn found(places: &Places, cluster: &str) -> Result<(&'static Layout, State)> {
    let layout = layout::named(cluster).with_context(|| {
        let known = layout::ALL.map(|layout| layout.name).join(" and ");
        format!("there is no cluster {cluster}: there may be {known}")
    })?;
    let state = State::read(&files_of(places, layout).folder)?.context(NOTHING)?;
    Ok((layout, state))
}

fn back_up(places: &Places, cluster: &str, file: &Path) -> Result<()> {
    setup::ensure_backups(places)?;
    let (layout, state) = found(places, cluster)?;
    nodes::needed(&state)?;
    let (seat, _) = nodes::seat(places, layout)?;
    let words = programs::back_up(&seat, file);
    output(Command::new(&words[0]).args(&words[1..])).map(|_| ())
}

fn restore(places: &Places, cluster: &str, file: &Path, interrupt: &Interrupt) -> Result<()> {
    setup::ensure_backups(places)?;
    let _lock = lock(places)?;
    let (layout, state) = found(places, cluster)?;
    nodes::needed(&state)?;
    let file = std::fs::canonicalize(file).with_context(|| format!("finding {}", file.display()))?;
    let (seat, _) = nodes::seat(places, layout)?;
    let programs = kubernetes::folder(places);
    let mut plane = Plane::of(state, &programs, seat, files_of(places, layout), interrupt);
    plane.restore(&file)?;
    for node in layout.nodes {
        let words = ["sh", "-c", "kill $(pidof kubelet)"].map(str::to_owned);
        if nodes::exec(plane.state(), node.name, &words)? != 0 {
            bail!("the kubelet of {} could not be ended", node.name);
        }
    }
    Ok(())
}

const NOTHING: &str = "no control plane is up: start one with `cargo xtask k8s up`";

fn down(places: &Places) -> Result<()> {
    if !end(places)? {
        bail!(NOTHING);
    }
    eprintln!(
        "the control plane is down; its logs: {}",
        files(places).logs.display()
    );
    Ok(())
}

/// Ends every control plane, or what is left of one; returns whether there was any.
pub fn end(places: &Places) -> Result<bool> {
    let _lock = lock(places)?;
    let mut any = false;
    for layout in layout::ALL.into_iter().rev() {
        let folder = files_of(places, layout).folder;
        let found = State::read(&folder)?;
        if let Some(state) = &found {
            state.end()?;
        }
        state::remove(&folder)?;
        any |= found.is_some();
    }
    Ok(any)
}

fn status(places: &Places) -> Result<()> {
    let first = State::read(&files(places).folder)?.context(NOTHING)?;
    let second = State::read(&files_of(places, &layout::MEMBER).folder)?;
    for state in [first].into_iter().chain(second) {
        status_of(&state)?;
    }
    Ok(())
}

fn status_of(state: &State) -> Result<()> {
    println!("{}", state.url);
    println!("export KUBECONFIG={}", state.kubeconfig.display());
    let mut ended = Vec::new();
    for program in &state.programs {
        let how = match program.process.memory() {
            Some(memory) if program.process.lives() => format!("runs, {} MiB", memory / 1024),
            _ => {
                ended.push(program.name.as_str());
                "has ended".to_owned()
            }
        };
        println!(
            "  {:<24} process {:<8} {how:<14} {}",
            program.name,
            program.process.id,
            program.log.display()
        );
    }
    // A program that was about to begin ends with that command, and is recorded already.
    if !state.complete {
        bail!("it is being started, or the command that started it was killed");
    }
    if !ended.is_empty() {
        bail!(
            "{} ended by itself; `cargo xtask k8s down` ends the rest",
            ended.join(", ")
        );
    }
    Ok(())
}

const LOCK_PATIENCE: Duration = Duration::from_secs(3);

/// Held while a control plane is being started or ended.
fn lock(places: &Places) -> Result<File> {
    std::fs::create_dir_all(&places.cache)
        .with_context(|| format!("creating the cache folder {}", places.cache.display()))?;
    let path: PathBuf = places.cache.join("k8s.lock");
    let file = File::create(&path).with_context(|| format!("creating {}", path.display()))?;
    let started = Instant::now();
    // A command that was killed while it started a program holds the lock until that program has begun.
    while file.try_lock().is_err() {
        if started.elapsed() > LOCK_PATIENCE {
            bail!(
                "another xtask is starting or ending the control plane ({} is locked)",
                path.display()
            );
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    Ok(file)
}
