//! `cargo xtask k8s`: a real Kubernetes control plane on this machine, without nodes: etcd, API server, controller
//! manager and scheduler as processes on loopback, with a PKI of their own and RBAC.

pub mod check;
pub mod helm;
pub mod pki;
pub mod plane;
pub mod programs;
pub mod state;

use std::fs::File;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use clap::Subcommand;

use crate::interrupt::Interrupt;
use crate::places::Places;
use crate::setup::{self, kubernetes};
use plane::Plane;
use programs::Files;
use state::State;

/// The subcommands of `k8s`.
#[derive(Debug, Subcommand)]
pub enum K8s {
    /// Start the control plane and leave it up; prints a line that makes kubectl use it
    ///
    /// The first time, this builds Kubernetes from Debian's source package, which takes some eight minutes.
    Up,
    /// End the control plane and remove its data
    Down,
    /// Say what runs; fails unless everything does
    Status,
}

/// Does one of the subcommands.
pub fn k8s(places: &Places, task: &K8s, interrupt: &Interrupt) -> Result<()> {
    match task {
        K8s::Up => up(places, interrupt),
        K8s::Down => down(places),
        K8s::Status => status(places),
    }
}

/// The files of the control plane that users start.
pub fn files(places: &Places) -> Files {
    Files {
        folder: places.cache.join("k8s"),
        logs: places.cache.join("logs/k8s"),
    }
}

fn up(places: &Places, interrupt: &Interrupt) -> Result<()> {
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
    let plane = Plane::start(
        &kubernetes::folder(places),
        plane::on_loopback()?,
        files,
        interrupt,
    )?;
    let state = plane.state();
    eprintln!(
        "the control plane is up at {}; a kubectl of its version: {}; `cargo xtask k8s down` ends it",
        state.url,
        state.kubectl.display()
    );
    println!("export KUBECONFIG={}", state.kubeconfig.display());
    plane.keep();
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
