//! The folder of a machine and the file by which a later process finds it again.

use std::fs::File;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};

use super::vm;
use crate::process::Process;

/// What another process must know of a running machine.
#[derive(Debug, Deserialize, Serialize)]
pub struct State {
    /// The repository whose commands made it.
    pub repo: PathBuf,
    /// The kernel as users write it.
    pub kernel: String,
    /// It outlives the process that booted it.
    pub keep: bool,
    /// Its processes on this machine; when one ends, the machine has ended.
    pub processes: Vec<Process>,
}

impl State {
    /// Writes the state into the machine's folder.
    pub fn write(&self, folder: &Path) -> Result<()> {
        let path = folder.join("state.json");
        std::fs::write(&path, serde_json::to_string_pretty(self)?)
            .with_context(|| format!("writing {}", path.display()))
    }

    fn read(folder: &Path) -> Option<State> {
        serde_json::from_slice(&std::fs::read(folder.join("state.json")).ok()?).ok()
    }

    fn lives(&self) -> bool {
        self.processes.iter().all(Process::lives)
    }
}

/// A new folder and its lock, which this process holds as long as it lives.
pub fn new_folder(machines: &Path) -> Result<(PathBuf, File)> {
    for number in 0.. {
        let folder = machines.join(format!("{}-{number}", std::process::id()));
        if !folder.exists() {
            std::fs::create_dir_all(&folder).with_context(|| format!("creating {}", folder.display()))?;
            let lock = File::create(folder.join("lock"))?;
            lock.lock()?;
            return Ok((folder, lock));
        }
    }
    unreachable!("there are more numbers than folders")
}

/// Removes a machine's folder.
pub fn remove(folder: &Path) {
    vm::tidy(folder);
    if let Err(problem) = std::fs::remove_dir_all(folder) {
        eprintln!("warning: removing {}: {problem}", folder.display());
    }
}

/// Removes folders of machines that ended without anybody to clean up after them.
pub fn sweep(machines: &Path) {
    for folder in folders(machines) {
        let ours_alone = File::open(folder.join("lock")).is_ok_and(|lock| lock.try_lock().is_ok());
        let state = State::read(&folder);
        if !ours_alone || state.as_ref().is_some_and(|state| state.keep && state.lives()) {
            continue;
        }
        // A guest whose maker was killed dies with it; what is left of one is ended here.
        for process in state.iter().flat_map(|state| &state.processes) {
            process.kill();
        }
        remove(&folder);
    }
}

/// Ends the machines that outlive their makers.
pub fn end_kept(machines: &Path) {
    for state in folders(machines)
        .iter()
        .filter_map(|folder| State::read(folder))
        .filter(|state| state.keep)
    {
        for process in &state.processes {
            process.kill();
        }
    }
}

/// The kept machine of a repository, if one runs.
pub fn kept(machines: &Path, repo: &Path) -> Result<Option<(PathBuf, State)>> {
    Ok(folders(machines).into_iter().find_map(|folder| {
        let state = State::read(&folder)?;
        (state.keep && state.repo == repo && state.lives()).then_some((folder, state))
    }))
}

/// The folders of all machines.
pub fn folders(machines: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(machines).into_iter().flatten();
    let mut folders: Vec<PathBuf> = entries.filter_map(|entry| Some(entry.ok()?.path())).collect();
    folders.sort();
    folders
}
