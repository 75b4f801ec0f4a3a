//! The BPF file system: where maps and links are pinned, so that they outlive the agent.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use fabedge_common::abi::map;
use rustix::fs::statfs;
use rustix::mount::{MountFlags, mount};

use crate::desired::datapath::{Entry, Hook};

/// `BPF_FS_MAGIC` of linux/magic.h.
const MAGIC: u64 = 0xcafe_4a11;

/// Folder of the maps that take over from those of another ABI version. bpffs allows no dot in a name.
const NEXT: &str = "next";

/// What is wrong with the BPF file system.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// It is not mounted, and cannot be.
    #[error(
        "{} is not a BPF file system, and mounting one there failed: mount it on the host (`mount -t bpf bpf {0}`) and \
         hand it to the agent's container", at.display()
    )]
    Mount {
        /// Where it is expected.
        at: PathBuf,
        /// Why mounting failed.
        source: rustix::io::Errno,
    },
    /// A folder or a pin.
    #[error("{attempted} {}", path.display())]
    Path {
        /// What was attempted.
        attempted: &'static str,
        /// On which path.
        path: PathBuf,
        /// Why it failed.
        source: io::Error,
    },
}

impl Error {
    fn path(attempted: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        let path = path.to_path_buf();
        move |source| Self::Path {
            attempted,
            path,
            source,
        }
    }
}

/// Our folder on the BPF file system.
#[derive(Clone, Debug)]
pub struct Pinboard {
    dir: PathBuf,
}

impl Pinboard {
    /// The folder at `dir`, which need not exist yet.
    pub fn new(dir: PathBuf) -> Self {
        Self { dir }
    }

    /// Makes the folder, and mounts the file system that it lies on where nobody has.
    ///
    /// # Errors
    /// When either fails.
    pub fn prepare(&self) -> Result<(), Error> {
        let root = self.dir.parent().unwrap_or(&self.dir);
        if !is_bpffs(root) {
            let flags = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
            mount("bpf", root, "bpf", flags, None).map_err(|source| Error::Mount {
                at: root.to_path_buf(),
                source,
            })?;
        }
        let links = self.dir.join("links");
        fs::create_dir_all(&links).map_err(Error::path("making the folder", &links))
    }

    /// Where the map `name` is pinned.
    pub fn map(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }

    /// Where maps wait that are to take over.
    pub fn next(&self) -> Self {
        Self {
            dir: self.dir.join(NEXT),
        }
    }

    /// Makes that place, empty.
    ///
    /// # Errors
    /// When an abandoned folder of an earlier attempt cannot be replaced.
    pub fn prepare_next(&self) -> Result<Self, Error> {
        let next = self.next();
        next.remove_maps()?;
        fs::create_dir_all(&next.dir).map_err(Error::path("making the folder", &next.dir))?;
        Ok(next)
    }

    /// Puts the maps of [`Self::prepare_next`] in the place of the present ones, each by an atomic rename.
    ///
    /// # Errors
    /// When a rename fails; the next attempt starts over.
    pub fn adopt_next(&self) -> Result<(), Error> {
        let next = self.dir.join(NEXT);
        for name in map::ALL {
            let from = next.join(name);
            fs::rename(&from, self.map(name)).map_err(Error::path("moving into place the pin", &from))?;
        }
        remove_dir(&next)
    }

    /// Removes the pins of all maps.
    ///
    /// # Errors
    /// When a pin cannot be removed.
    pub fn remove_maps(&self) -> Result<(), Error> {
        for name in map::ALL {
            remove_file(&self.map(name))?;
        }
        remove_dir(&self.dir.join(NEXT))?;
        remove_dir(&self.dir.join("links"))?;
        remove_dir(&self.dir)
    }

    /// Whether the folder is there with nothing pinned in it, as after somebody pinned while it was being removed.
    pub fn is_bare(&self) -> bool {
        let folders = [self.dir.join("links"), self.dir.join(NEXT)];
        let entries = |path: &Path| -> Option<Vec<PathBuf>> {
            let entries = fs::read_dir(path).ok()?;
            Some(entries.flatten().map(|entry| entry.path()).collect())
        };
        entries(&self.dir).is_some_and(|found| {
            let empty = |path: &PathBuf| entries(path).is_some_and(|inside| inside.is_empty());
            found.iter().all(|path| folders.contains(path) && empty(path))
        })
    }

    /// Where the link of a hook is pinned.
    pub fn link(&self, hook: &Hook) -> PathBuf {
        self.dir
            .join("links")
            .join(format!("{}-{}", hook.entry.name(), hook.ifindex))
    }

    /// Removes the pin of a hook's link, and so detaches the program.
    ///
    /// # Errors
    /// When the pin cannot be removed.
    pub fn remove_link(&self, hook: &Hook) -> Result<(), Error> {
        remove_file(&self.link(hook))
    }

    /// The pinned links; their devices are known by index only.
    ///
    /// # Errors
    /// When the folder exists but cannot be read.
    pub fn links(&self) -> Result<Vec<Hook>, Error> {
        let dir = self.dir.join("links");
        let entries = match fs::read_dir(&dir) {
            Ok(entries) => entries,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => return Err(Error::path("reading the folder", &dir)(error)),
        };
        let mut hooks = Vec::new();
        for entry in entries {
            let entry = entry.map_err(Error::path("reading the folder", &dir))?;
            hooks.extend(entry.file_name().to_str().and_then(parse_link));
        }
        Ok(hooks)
    }
}

fn parse_link(name: &str) -> Option<Hook> {
    let (entry, ifindex) = name.rsplit_once('-')?;
    let entry = Entry::ALL.into_iter().find(|known| known.name() == entry)?;
    Some(Hook {
        ifindex: ifindex.parse().ok()?,
        entry,
        device: format!("#{ifindex}"),
    })
}

fn is_bpffs(path: &Path) -> bool {
    // The type of `f_type` differs between architectures.
    statfs(path).is_ok_and(|stat| u64::try_from(stat.f_type).is_ok_and(|magic| magic & 0xffff_ffff == MAGIC))
}

fn remove_file(path: &Path) -> Result<(), Error> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(Error::path("removing the pin", path)(error))
        }
        _ => Ok(()),
    }
}

/// Removes a folder, unless somebody else keeps something in it.
fn remove_dir(path: &Path) -> Result<(), Error> {
    use io::ErrorKind::{DirectoryNotEmpty, NotFound};
    match fs::remove_dir(path) {
        Err(error) if !matches!(error.kind(), NotFound | DirectoryNotEmpty) => {
            Err(Error::path("removing the folder", path)(error))
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_link_pins_are_read_back() {
        let board = Pinboard::new(PathBuf::from("/sys/fs/bpf/fabedge"));
        for entry in Entry::ALL {
            let hook = Hook {
                ifindex: 42,
                entry,
                device: "#42".to_owned(),
            };
            let path = board.link(&hook);
            assert_eq!(
                parse_link(path.file_name().unwrap().to_str().unwrap()),
                Some(hook)
            );
        }
        for foreign in ["", "pod_egress", "pod_egress-", "pod_egress-x", "other-3"] {
            assert_eq!(parse_link(foreign), None, "{foreign}");
        }
    }

    #[test]
    fn a_folder_is_bare_while_nothing_is_pinned_in_it() {
        let dir = tempfile::tempdir().unwrap();
        let board = Pinboard::new(dir.path().join("fabedge"));
        assert!(!board.is_bare(), "it is not there");
        fs::create_dir_all(dir.path().join("fabedge/links")).unwrap();
        assert!(board.is_bare());
        let others = dir.path().join("fabedge/others");
        fs::create_dir(&others).unwrap();
        assert!(!board.is_bare(), "what is in it is somebody else's");
        fs::remove_dir(&others).unwrap();
        fs::write(dir.path().join("fabedge/links/pod_egress-3"), "").unwrap();
        assert!(!board.is_bare());
        fs::remove_file(dir.path().join("fabedge/links/pod_egress-3")).unwrap();
        board.remove_maps().unwrap();
        assert!(!dir.path().join("fabedge").exists());
    }

    #[test]
    fn a_folder_that_is_no_bpffs_is_known_as_such() {
        let dir = tempfile::tempdir().unwrap();
        assert!(!is_bpffs(dir.path()));
    }
}
