//! Nodes as a user brings them up, what is left of them when that is interrupted, and the install guide on them.

use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Instant;

use anyhow::{Context, Result};

use super::{Check, IN_TIME_PATIENCE};
use crate::k8s::nodes::ground::Ground;
use crate::k8s::nodes::layout::NODES;
use crate::k8s::nodes::sheet;
use crate::k8s::state::State;
use crate::k8s::up;
use crate::test;

/// What is typed after `cargo xtask k8s` while nodes are up, whether it works, and what is said.
const TYPED: [(&str, bool, &str); 5] = [
    ("exec edge1 -- hostname", true, "edge1"),
    ("exec edge2 -- ip -brief address", true, "192.31.196.2/24"),
    ("exec master -- false", false, ""),
    ("exec shop -- true", false, "there is no node shop"),
    ("up", false, "cargo xtask k8s down"),
];

impl Check<'_> {
    pub(super) fn guide(&mut self) -> Result<()> {
        self.nodes_are_killed_while_starting()?;
        up(self.places, true, self.interrupt)?;
        let state = State::read(&self.files.folder)?.context("nothing is up")?;
        for (line, works, says) in TYPED {
            self.type_xtask(line, works, says)?;
        }
        let program = self.places.target.join("release/fabedge-lab");
        let mut lab = Command::new(program);
        lab.arg("guide").arg(sheet::path(&self.files));
        self.counts += test::counted(&mut lab)?;
        self.type_xtask("down", true, "is down")?;
        self.no_ground_is_left("nothing of the nodes is left", &state.ground)
    }

    /// `up` has no chance to clean up: `down` does it.
    fn nodes_are_killed_while_starting(&mut self) -> Result<()> {
        let mut up = self
            .xtask("up --nodes")?
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()?;
        // With the first nodes on their way, and the last not yet.
        let some = |state: &State| {
            let started = |name| state.programs.iter().any(|program| program.name == name);
            NODES.iter().any(|node| started(node.name))
        };
        let started = Instant::now();
        let state = loop {
            match State::read(&self.files.folder)? {
                Some(state) if some(&state) => break Some(state),
                _ if started.elapsed() > 10 * IN_TIME_PATIENCE || up.try_wait()?.is_some() => break None,
                _ => std::thread::sleep(std::time::Duration::from_millis(5)),
            }
        };
        self.interrupt.check()?;
        up.kill()?;
        up.wait()?;
        let Some(state) = state else {
            self.tell("k8s up --nodes, killed", Err("no node was started".to_owned()));
            return Ok(());
        };
        self.type_xtask("down", true, "is down")?;
        self.no_ground_is_left("nothing is left of nodes whose start was killed", &state.ground)
    }

    /// No namespace, no cgroup, no process, no folder.
    fn no_ground_is_left(&mut self, name: &str, ground: &Ground) -> Result<()> {
        let mut left = super::running_in(&self.files.folder)?;
        left.extend(
            ground
                .paths()
                .chain([self.files.folder.as_path().to_owned()])
                .filter(|path| Path::exists(path))
                .map(|path| path.display().to_string()),
        );
        self.tell(
            name,
            if left.is_empty() {
                Ok(())
            } else {
                Err(left.join("\n"))
            },
        );
        Ok(())
    }
}
