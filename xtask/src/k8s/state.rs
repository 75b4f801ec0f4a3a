//! What a later command must know of a control plane that runs.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use serde::{Deserialize, Serialize};

use super::nodes::ground::Ground;
use crate::process::Process;

/// A killed process is gone when the kernel has taken its memory apart.
const END_PATIENCE: Duration = Duration::from_secs(20);

/// A control plane, as its folder records it.
#[derive(Debug, Deserialize, Serialize)]
pub struct State {
    /// The API server's address.
    pub url: String,
    /// How the administrator reaches it.
    pub kubeconfig: PathBuf,
    /// A client of its version.
    pub kubectl: PathBuf,
    /// Everything was up once: nobody is starting it any more.
    pub complete: bool,
    /// What was started, in this order.
    pub programs: Vec<Started>,
    /// What nodes stand on, if there are any.
    #[serde(default)]
    pub ground: Ground,
}

/// A program that was started.
#[derive(Debug, Deserialize, Serialize)]
pub struct Started {
    /// As messages name it.
    pub name: String,
    /// What it wrote.
    pub log: PathBuf,
    /// Its process.
    pub process: Process,
}

impl State {
    /// Records it. The file is there whole or not at all, whenever another process looks.
    pub fn write(&self, folder: &Path) -> Result<()> {
        let (path, part) = (file(folder), folder.join("state.part"));
        std::fs::write(&part, serde_json::to_string_pretty(self)?)
            .and_then(|()| std::fs::rename(&part, &path))
            .with_context(|| format!("writing {}", path.display()))
    }

    /// The control plane of a folder, whether it runs or not.
    pub fn read(folder: &Path) -> Result<Option<State>> {
        let path = file(folder);
        if !path.exists() {
            return Ok(None);
        }
        let text = std::fs::read(&path).with_context(|| format!("reading {}", path.display()))?;
        serde_json::from_slice(&text)
            .map(Some)
            .with_context(|| format!("reading {}", path.display()))
    }

    /// Whether anything of it runs.
    pub fn lives(&self) -> bool {
        self.programs.iter().any(|program| program.process.lives())
    }

    /// Ends what runs of it, waits until it is gone, and takes its ground away. Its data is worth nothing, so nobody is asked
    /// to save it.
    pub fn end(&self) -> Result<()> {
        end(&self.programs)?;
        self.ground.remove()
    }

    /// Ends the programs of these names, and forgets them.
    pub fn end_some(&mut self, names: &[&str]) -> Result<()> {
        let (some, others) = self
            .programs
            .drain(..)
            .partition(|program| names.contains(&program.name.as_str()));
        self.programs = others;
        end(&some)
    }
}

fn end(programs: &[Started]) -> Result<()> {
    // The last one first: nobody complains of a missing server into a log.
    for program in programs.iter().rev() {
        program.process.kill();
    }
    let started = Instant::now();
    while let Some(program) = programs.iter().find(|program| program.process.lives()) {
        if started.elapsed() > END_PATIENCE {
            bail!(
                "{} (process {}) still runs {END_PATIENCE:?} after it was killed",
                program.name,
                program.process.id
            );
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    Ok(())
}

fn file(folder: &Path) -> PathBuf {
    folder.join("state.json")
}

/// Removes everything of a control plane but its logs.
pub fn remove(folder: &Path) -> Result<()> {
    if folder.exists() {
        std::fs::remove_dir_all(folder).with_context(|| format!("removing {}", folder.display()))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_control_plane_is_found_again_and_ended() {
        let folder = tempfile::tempdir().unwrap();
        assert!(State::read(folder.path()).unwrap().is_none());
        let mut children: Vec<_> = ["etcd", "kube-apiserver"]
            .map(|_| std::process::Command::new("sleep").arg("60").spawn().unwrap())
            .into();
        let state = State {
            url: "https://127.0.0.1:1".to_owned(),
            kubeconfig: "/k".into(),
            kubectl: "/bin/kubectl".into(),
            complete: true,
            programs: children
                .iter()
                .map(|child| Started {
                    name: "sleep".to_owned(),
                    log: "/log".into(),
                    process: Process::of(child.id()).unwrap(),
                })
                .collect(),
            ground: Ground::default(),
        };
        state.write(folder.path()).unwrap();

        let found = State::read(folder.path()).unwrap().unwrap();
        assert!(found.lives());
        found.end().unwrap();
        assert!(!found.lives());
        for child in &mut children {
            child.wait().unwrap();
        }
        remove(folder.path()).unwrap();
        assert!(State::read(folder.path()).unwrap().is_none());
        remove(folder.path()).unwrap();
    }

    #[test]
    fn an_unreadable_state_is_not_an_absent_one() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(file(folder.path()), "{").unwrap();
        assert!(State::read(folder.path()).is_err());
    }
}
