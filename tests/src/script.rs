//! Poking at a lab that is up: scripts that find its names in their environment, and the answers they get.

use std::path::Path;
use std::process::{Command, ExitCode};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result};

use crate::command::show;
use crate::probe::responder::{PORT, Responder};
use crate::world::World;
use crate::world::addresses::API_SERVER;

/// Runs a script with `FABEDGE_SITES`, `FABEDGE_PODS`, `FABEDGE_ROUTERS` (names), `FABEDGE_ADDRESS_<pod>` (`-` as
/// `_`) and `FABEDGE_LAB` (this program, for `exec`) in its environment.
///
/// # Errors
/// When no lab is up, or the script cannot be started.
pub fn run(script: &Path, arguments: &[String]) -> Result<ExitCode> {
    let world = World::open()?;
    let text = std::fs::read_to_string(script).with_context(|| format!("reading {}", script.display()))?;
    let interpreter = text
        .lines()
        .next()
        .and_then(|line| line.strip_prefix("#!"))
        .unwrap_or("/bin/sh");
    let mut words = interpreter.split_whitespace();
    let mut command = Command::new(words.next().context("an empty interpreter line")?);
    command.args(words).arg(script).args(arguments);
    let join = |names: Vec<&String>| names.into_iter().cloned().collect::<Vec<_>>().join(" ");
    command
        .env("FABEDGE_SITES", join(world.sites.keys().collect()))
        .env("FABEDGE_PODS", join(world.pods.keys().collect()))
        .env("FABEDGE_ROUTERS", join(world.routers.keys().collect()))
        .env(
            "FABEDGE_LAB",
            std::env::current_exe().context("finding the lab's own program")?,
        );
    for (name, pod) in &world.pods {
        command.env(
            format!("FABEDGE_ADDRESS_{}", name.replace('-', "_")),
            pod.v4.to_string(),
        );
    }
    let status = command
        .status()
        .with_context(|| format!("running `{}`", show(&command)))?;
    let code = status.code().and_then(|code| u8::try_from(code).ok());
    Ok(ExitCode::from(code.unwrap_or(1)))
}

/// Answers in every pod, on the internet and as the API server, until ended.
///
/// # Errors
/// When no lab is up, or a port cannot be had.
pub fn serve() -> Result<ExitCode> {
    let world = World::open()?;
    let mut responders = Vec::new();
    for pod in world.pods.values() {
        responders.push(Responder::start(&pod.place, PORT)?);
    }
    responders.push(Responder::start(world.router("internet")?, PORT)?);
    responders.push(Responder::start(world.place("node1")?, API_SERVER.1)?);
    loop {
        thread::sleep(Duration::from_secs(3600));
    }
}
