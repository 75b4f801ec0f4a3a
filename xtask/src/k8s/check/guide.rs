//! Nodes as a user brings them up, what is left of them when that is interrupted, and the install guide on them.

use std::process::Stdio;
use std::time::Instant;

use anyhow::{Context, Result};

use super::{Check, IN_TIME_PATIENCE};
use crate::k8s::nodes::ground::Ground;
use crate::k8s::nodes::layout::{self, MEMBER};
use crate::k8s::state::State;
use crate::k8s::{files_of, lab, up};
use crate::test;

/// What is typed after `cargo xtask k8s` while nodes are up, whether it works, and what is said.
const TYPED: [(&str, bool, &str); 7] = [
    ("exec edge1 -- hostname", true, "edge1"),
    ("exec edge2 -- ip -brief address", true, "192.31.196.2/24"),
    ("exec master -- false", false, ""),
    ("exec beijing.node1 -- ip -brief address", true, "10.30.8.28/24"),
    (
        "exec shanghai.node1 -- true",
        false,
        "there is no cluster shanghai",
    ),
    ("exec shop -- true", false, "there is no node shop"),
    ("up", false, "cargo xtask k8s down"),
];

impl Check<'_> {
    pub(super) fn guide(&mut self) -> Result<()> {
        self.nodes_are_killed_while_starting()?;
        up(self.places, &layout::ALL, self.interrupt)?;
        let mut grounds = Vec::new();
        for layout in layout::ALL {
            let state = State::read(&files_of(self.places, layout).folder)?;
            grounds.push(state.context("nothing is up")?.ground);
        }
        for (line, works, says) in TYPED {
            self.type_xtask(line, works, says)?;
        }
        let mut lab = lab(self.places, "guide");
        self.counts += test::counted(&mut lab)?;
        self.type_xtask("down", true, "is down")?;
        self.no_ground_is_left("nothing of the nodes is left", &grounds)
    }

    /// `up` has no chance to clean up: `down` does it.
    fn nodes_are_killed_while_starting(&mut self) -> Result<()> {
        let mut up = self
            .xtask("up --nodes --clusters 2")?
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()?;
        // With nodes of the second cluster on their way.
        let some = |state: &State| {
            let started = |name| state.programs.iter().any(|program| program.name == name);
            MEMBER.nodes.iter().any(|node| started(node.name))
        };
        let started = Instant::now();
        let state = loop {
            match State::read(&files_of(self.places, &MEMBER).folder)? {
                Some(state) if some(&state) => break Some(state),
                _ if started.elapsed() > 4 * IN_TIME_PATIENCE || up.try_wait()?.is_some() => break None,
                _ => std::thread::sleep(std::time::Duration::from_millis(5)),
            }
        };
        self.interrupt.check()?;
        up.kill()?;
        up.wait()?;
        let (Some(second), Some(first)) = (state, State::read(&self.files.folder)?) else {
            self.tell("k8s up --nodes, killed", Err("no node was started".to_owned()));
            return Ok(());
        };
        self.type_xtask("down", true, "is down")?;
        let grounds = [first.ground, second.ground];
        self.no_ground_is_left("nothing is left of nodes whose start was killed", &grounds)
    }

    /// No namespace, no cgroup, no process, no folder.
    fn no_ground_is_left(&mut self, name: &str, grounds: &[Ground]) -> Result<()> {
        let outcome = self.in_time(|| {
            let mut left = Vec::new();
            let mut paths: Vec<_> = grounds.iter().flat_map(Ground::paths).collect();
            for layout in layout::ALL {
                let folder = files_of(self.places, layout).folder;
                left.extend(super::running_in(&folder)?);
                paths.push(folder);
            }
            paths.retain(|path| path.exists());
            left.extend(paths.iter().map(|path| path.display().to_string()));
            Ok((left.is_empty(), left.join("\n")))
        })?;
        self.tell(name, outcome);
        Ok(())
    }
}
