//! The copy of the last good document on disk.

use std::fs::{File, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use fabedge_common::config::{NodeConfig, packed};
use tokio::sync::watch;
use tracing::{info, warn};

use super::{Current, Error, Origin};

/// Where the copy is.
#[derive(Clone, Debug)]
pub(super) struct Cache {
    path: PathBuf,
    /// What is to be kept.
    newest: watch::Sender<Option<Arc<String>>>,
}

impl Cache {
    /// Documents are written beside everything else, for a disk takes its time.
    pub(super) fn new(state_dir: &Path) -> Self {
        let path = state_dir.join(packed::DOCUMENT_KEY);
        let (newest, receiver) = watch::channel(None);
        tokio::spawn(write(path.clone(), receiver));
        Self { path, newest }
    }

    /// What to start from.
    pub(super) fn start(&self) -> Current {
        let mut current = Current::default();
        match self.read() {
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
        current
    }

    fn read(&self) -> Result<NodeConfig, Error> {
        let place = || self.path.display().to_string();
        let text = std::fs::read_to_string(&self.path).map_err(|source| Error::Read {
            place: place(),
            source,
        })?;
        NodeConfig::parse(&text).map_err(|source| Error::Refused {
            place: place(),
            source,
        })
    }

    /// Keeps the text of a document that was taken.
    pub(super) fn keep(&self, text: Arc<String>) {
        self.newest.send_replace(Some(text));
    }
}

async fn write(path: PathBuf, mut newest: watch::Receiver<Option<Arc<String>>>) {
    while newest.changed().await.is_ok() {
        let Some(text) = newest.borrow_and_update().clone() else {
            continue;
        };
        let place = path.clone();
        let written = tokio::task::spawn_blocking(move || write_private(&place, text.as_bytes()));
        if let Err(error) = written.await.map_err(io::Error::other).and_then(|kept| kept) {
            warn!(%error, path = %path.display(), "cannot keep the document: the node would not survive a reboot without its cloud");
        }
    }
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
