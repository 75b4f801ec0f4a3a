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

use std::fs::File;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use clap::Subcommand;

use crate::image::{self, Image};
use crate::interrupt::Interrupt;
use crate::places::Places;
use crate::setup::{self, kubernetes};
use nodes::ground::Ground;
use plane::Plane;
use programs::Files;
use state::State;

/// The subcommands of `k8s`.
#[derive(Debug, Subcommand)]
pub enum K8s {
    /// Start the control plane and leave it up; prints a line that makes kubectl use it
    ///
    /// The first time, this builds Kubernetes from Debian's source package, which takes some eight minutes.
    Up {
        /// With nodes, in networks of their own: master and node1 in the cloud, edge1 behind a NAT, and edge2
        #[arg(long)]
        nodes: bool,
    },
    /// Run a command on a node
    Exec {
        /// The node: master, node1, edge1 or edge2
        node: String,
        /// The command
        #[arg(last = true, required = true)]
        command: Vec<String>,
    },
    /// End the control plane and its nodes, and remove their data
    Down,
    /// Say what runs; fails unless everything does
    Status,
}

/// Does one of the subcommands; returns the exit code.
pub fn k8s(places: &Places, task: &K8s, interrupt: &Interrupt) -> Result<i32> {
    match task {
        K8s::Up { nodes } => up(places, *nodes, interrupt)?,
        K8s::Exec { node, command } => {
            let state = State::read(&files(places).folder)?.context(NOTHING)?;
            return nodes::exec(&state, node, command);
        }
        K8s::Down => down(places)?,
        K8s::Status => status(places)?,
    }
    Ok(0)
}

/// The files of the control plane that users start.
pub fn files(places: &Places) -> Files {
    Files {
        folder: places.cache.join("k8s"),
        logs: places.cache.join("logs/k8s"),
    }
}

fn up(places: &Places, with_nodes: bool, interrupt: &Interrupt) -> Result<()> {
    if !rustix::process::geteuid().is_root() {
        bail!("the control plane needs root for etcd's tmpfs: `sudo -E cargo xtask k8s up`");
    }
    let _lock = lock(places)?;
    let files = files(places);
    if let Some(state) = State::read(&files.folder)? {
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
    state::remove(&files.folder)?;
    setup::ensure_kubernetes(places)?;
    let programs = kubernetes::folder(places);
    let (seat, ground, images) = if with_nodes {
        setup::ensure_nodes(places)?;
        let images = image::build(places, &Image::ALL.into(), &image::folder(places))?;
        let (seat, ground) = nodes::seat(places)?;
        (seat, ground, images.into_iter().map(|built| built.file).collect())
    } else {
        (plane::on_loopback()?, Ground::default(), Vec::new())
    };
    let mut plane = Plane::start_on(&programs, seat, files.clone(), ground, interrupt)?;
    if with_nodes {
        nodes::start(&mut plane, places, &files, &images, interrupt)?;
    }
    let tools = files.tools();
    tools::lay(places, plane.state(), &tools)?;
    let state = plane.state();
    eprintln!(
        "the control plane is up at {}; `cargo xtask k8s down` ends it",
        state.url
    );
    println!("export KUBECONFIG={}", state.kubeconfig.display());
    println!("export PATH={}:$PATH", tools.display());
    plane.keep()
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

/// Ends the control plane, or what is left of one; returns whether there was any.
pub fn end(places: &Places) -> Result<bool> {
    let _lock = lock(places)?;
    let folder = files(places).folder;
    let found = State::read(&folder)?;
    if let Some(state) = &found {
        state.end()?;
    }
    state::remove(&folder)?;
    Ok(found.is_some())
}

fn status(places: &Places) -> Result<()> {
    let state = State::read(&files(places).folder)?.context(NOTHING)?;
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
    if !ended.is_empty() {
        bail!(
            "{} ended by itself; `cargo xtask k8s down` ends the rest",
            ended.join(", ")
        );
    }
    if !state.complete {
        bail!("it is being started, or the command that started it was killed");
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
