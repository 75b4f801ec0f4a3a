//! Where things are: the repository, cargo's target folder, the one cache folder.

use std::fs::File;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use sha2::{Digest, Sha256};

/// The folders that every command works with.
#[derive(Clone, Debug)]
pub struct Places {
    /// The top of the repository.
    pub repo: PathBuf,
    /// Cargo's target folder.
    pub target: PathBuf,
    /// Everything that `cargo xtask setup` fetches and makes; `cargo xtask clean` removes it.
    pub cache: PathBuf,
}

impl Places {
    /// Finds the folders. `cache` is what the user asked for; the default lies in cargo's target folder.
    pub fn find(cache: Option<PathBuf>) -> Result<Places> {
        // Cargo sets the variable when it runs us; a copy of the binary knows where it was compiled.
        let crate_folder = std::env::var_os("CARGO_MANIFEST_DIR")
            .map_or_else(|| PathBuf::from(env!("CARGO_MANIFEST_DIR")), PathBuf::from);
        let repo = crate_folder
            .parent()
            .context("xtask has no parent folder")?
            .to_owned();
        // We run from <target>/<profile>/xtask, wherever the user's configuration puts <target>.
        let target = std::env::current_exe()
            .ok()
            .and_then(|exe| Some(exe.parent()?.parent()?.to_owned()))
            .filter(|folder| folder.join("CACHEDIR.TAG").exists())
            .unwrap_or_else(|| repo.join("target"));
        let cache = std::path::absolute(cache.unwrap_or_else(|| target.join("lab")))?;
        Ok(Places { repo, target, cache })
    }

    /// The compiled eBPF object that the agent embeds.
    pub fn ebpf_object(&self) -> PathBuf {
        self.target.join("bpf/fabedge-ebpf.o")
    }

    /// The compiled eBPF object of what the benchmark compares.
    pub fn bench_object(&self) -> PathBuf {
        self.target.join("bpf/fabedge-bench.o")
    }

    /// Where long commands write.
    pub fn log(&self, name: &str) -> PathBuf {
        self.cache.join("logs").join(format!("{name}.log"))
    }

    /// Where machines keep their state.
    pub fn machines(&self) -> PathBuf {
        self.cache.join("machines")
    }

    /// Holds the cache for one process at a time while it is being filled.
    pub fn lock(&self) -> Result<File> {
        std::fs::create_dir_all(&self.cache)
            .with_context(|| format!("creating the cache folder {}", self.cache.display()))?;
        let path = self.cache.join("lock");
        let file = File::create(&path).with_context(|| format!("creating {}", path.display()))?;
        if file.try_lock().is_err() {
            eprintln!("  waiting for another xtask that fills {}", self.cache.display());
            file.lock()
                .with_context(|| format!("locking {}", path.display()))?;
        }
        Ok(file)
    }
}

/// A short name for contents: the same recipe gives the same folder, another recipe another one.
pub fn stamp<S: AsRef<str>>(parts: impl IntoIterator<Item = S>) -> String {
    let mut hash = Sha256::new();
    for part in parts {
        hash.update(part.as_ref());
        hash.update([0]);
    }
    hash.finalize()
        .iter()
        .take(6)
        .map(|byte| format!("{byte:02x}"))
        .collect()
}

/// Fills the folder `done` through `fill`, which gets an empty folder of another name: the final name appears
/// only when everything in it stands. A second call returns at once.
pub fn fill_once(done: &Path, fill: impl FnOnce(&Path) -> Result<()>) -> Result<()> {
    if done.exists() {
        return Ok(());
    }
    let part = done.with_extension("part");
    if part.exists() {
        std::fs::remove_dir_all(&part).with_context(|| format!("removing {}", part.display()))?;
    }
    std::fs::create_dir_all(&part).with_context(|| format!("creating {}", part.display()))?;
    fill(&part)?;
    std::fs::rename(&part, done).with_context(|| format!("naming {}", done.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stamp_depends_on_every_part_and_on_where_parts_end() {
        assert_eq!(stamp(["a", "b"]), stamp(["a", "b"]));
        assert_ne!(stamp(["a", "b"]), stamp(["ab"]));
        assert_ne!(stamp(["a", "b"]), stamp(["a", "c"]));
    }

    #[test]
    fn a_folder_that_failed_to_fill_is_filled_again() {
        let base = std::env::temp_dir().join(format!("xtask-fill-{}", std::process::id()));
        let done = base.join("root-1");
        assert!(fill_once(&done, |_| anyhow::bail!("no network")).is_err());
        assert!(!done.exists());
        fill_once(&done, |part| Ok(std::fs::write(part.join("file"), "1")?)).unwrap();
        assert!(done.join("file").exists());
        fill_once(&done, |_| anyhow::bail!("must not run again")).unwrap();
        std::fs::remove_dir_all(base).unwrap();
    }
}
