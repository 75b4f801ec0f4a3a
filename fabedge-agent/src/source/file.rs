//! The I/O of [`super`]: reads, watches and stores documents.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use fabedge_common::config::NodeConfig;
use notify::{RecursiveMode, Watcher};
use tokio::sync::{Notify, watch};
use tracing::{debug, info, warn};

use super::{Current, Error, Origin};

/// A document larger than this is not read: 10,000 peers take about 3 MiB.
const MAX_BYTES: u64 = 32 << 20;

/// File events may be lost (an overrun, a file system without inotify); the file is read this often at the least.
const POLL: Duration = Duration::from_secs(5);

/// The two places of a document.
#[derive(Clone, Debug)]
pub struct Paths {
    /// The mounted document.
    pub mounted: PathBuf,
    /// The directory that keeps the last good one.
    pub state_dir: PathBuf,
}

impl Paths {
    fn cached(&self) -> PathBuf {
        self.state_dir.join("tunnels.yaml")
    }
}

/// Follows the document. The receiver starts with the cached one, if there is one, and then sees every document
/// that is taken and every reason why one is not.
pub fn watch(paths: Paths) -> watch::Receiver<Current> {
    let mut current = Current::default();
    match read(&paths.cached()) {
        Ok(config) => {
            info!(
                generation = config.generation,
                "starting from the document on disk"
            );
            current.config = Some((Arc::new(config), Origin::Cache));
        }
        Err(Error::Read { source, .. }) if source.kind() == io::ErrorKind::NotFound => {}
        Err(error) => warn!(error = %crate::status::chain(&error), "the document on disk is of no use"),
    }
    refresh(&mut current, &paths);
    let (sender, receiver) = watch::channel(current);
    tokio::spawn(follow(paths, sender));
    receiver
}

async fn follow(paths: Paths, sender: watch::Sender<Current>) {
    let events = Arc::new(Notify::new());
    let mut watcher = None;
    loop {
        if watcher.is_none() {
            watcher = subscribe(&paths.mounted, Arc::clone(&events));
        }
        tokio::select! {
            () = events.notified() => {}
            () = tokio::time::sleep(POLL) => {}
            () = sender.closed() => return,
        }
        sender.send_if_modified(|current| refresh(current, &paths));
    }
}

/// Watches the directory, not the file: a ConfigMap volume swaps a symbolic link, other writers rename into place.
fn subscribe(file: &Path, events: Arc<Notify>) -> Option<notify::RecommendedWatcher> {
    let result = notify::recommended_watcher(move |event: notify::Result<notify::Event>| {
        if event.is_ok_and(|event| !event.kind.is_access()) {
            events.notify_one();
        }
    })
    .and_then(|mut watcher| {
        watcher.watch(
            file.parent().unwrap_or(Path::new("/")),
            RecursiveMode::NonRecursive,
        )?;
        Ok(watcher)
    });
    result
        .inspect_err(|error| debug!(%error, "cannot watch the document, polling it"))
        .ok()
}

/// Reads the mounted document once; true when something changed.
fn refresh(current: &mut Current, paths: &Paths) -> bool {
    let path = paths.mounted.display().to_string();
    match read(&paths.mounted).and_then(|found| current.take(found, &path)) {
        Ok(config) => {
            let known = current.problem.is_none()
                && current
                    .config
                    .as_ref()
                    .is_some_and(|(c, origin)| Arc::ptr_eq(c, &config) && *origin == Origin::Mounted);
            if known {
                return false;
            }
            info!(
                generation = config.generation,
                peers = config.peers.len(),
                "new document"
            );
            if let Err(error) = store(&paths.cached(), &config) {
                warn!(%error, path = %paths.cached().display(), "cannot keep the document: the node would not survive a reboot without its cloud");
            }
            *current = Current {
                config: Some((config, Origin::Mounted)),
                problem: None,
            };
            true
        }
        Err(error) => {
            let text = crate::status::chain(&error);
            if current
                .problem
                .as_ref()
                .is_some_and(|known| crate::status::chain(known.as_ref()) == text)
            {
                return false;
            }
            warn!(error = text, "no new document");
            current.problem = Some(Arc::new(error));
            true
        }
    }
}

fn read(path: &Path) -> Result<NodeConfig, Error> {
    let name = path.display().to_string();
    let mut text = String::new();
    File::open(path)
        .and_then(|file| file.take(MAX_BYTES).read_to_string(&mut text))
        .map_err(|source| Error::Read {
            path: name.clone(),
            source,
        })?;
    NodeConfig::parse(&text).map_err(|source| Error::Refused { path: name, source })
}

fn store(path: &Path, config: &NodeConfig) -> io::Result<()> {
    let text = config.to_yaml().map_err(io::Error::other)?;
    write_private(path, text.as_bytes())
}

/// Replaces a file as a whole: readers see the old or the new content, also after a power cut. Mode 0600.
///
/// # Errors
/// Those of the file system.
pub fn write_private(path: &Path, content: &[u8]) -> io::Result<()> {
    let dir = path.parent().unwrap_or(Path::new("/"));
    std::fs::create_dir_all(dir)?;
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let temporary = dir.join(format!(".{name}.new"));
    let mut file = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(&temporary)?;
    file.write_all(content)?;
    file.sync_all()?;
    std::fs::rename(&temporary, path)?;
    File::open(dir)?.sync_all()
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    const GOOD: &str = "version: 1\ngeneration: 3\nid: CN=a.edge1\nname: a.edge1\ntype: EdgeNode\nsubnets: [10.1.1.0/24]\n...\n";

    fn generation(receiver: &watch::Receiver<Current>) -> Option<(u64, Origin)> {
        receiver
            .borrow()
            .config
            .as_ref()
            .map(|(config, origin)| (config.generation, *origin))
    }

    #[tokio::test]
    async fn the_last_good_document_survives_bad_ones_and_a_restart() {
        let dir = tempfile::tempdir().unwrap();
        let paths = Paths {
            mounted: dir.path().join("mounted/tunnels.yaml"),
            state_dir: dir.path().join("state"),
        };
        std::fs::create_dir(dir.path().join("mounted")).unwrap();

        let mut receiver = watch(paths.clone());
        assert_eq!(
            generation(&receiver),
            None,
            "nothing is applied before the first document"
        );
        assert!(receiver.borrow().problem.is_some());

        write_private(&paths.mounted, GOOD.as_bytes()).unwrap();
        tokio::time::timeout(POLL * 2, receiver.changed())
            .await
            .unwrap()
            .unwrap();
        assert_eq!(generation(&receiver), Some((3, Origin::Mounted)));
        let mode = std::fs::metadata(paths.cached()).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);

        write_private(&paths.mounted, &GOOD.as_bytes()[..60]).unwrap();
        tokio::time::timeout(POLL * 2, receiver.changed())
            .await
            .unwrap()
            .unwrap();
        assert_eq!(generation(&receiver), Some((3, Origin::Mounted)));
        let problem = receiver.borrow().problem.as_ref().unwrap().to_string();
        assert!(problem.contains("the last good one stays in force"), "{problem}");

        std::fs::remove_file(&paths.mounted).unwrap();
        assert_eq!(
            generation(&watch(paths)),
            Some((3, Origin::Cache)),
            "a restart finds it on disk"
        );
    }
}
