//! The mounted document.

use std::ffi::OsString;
use std::fs::File;
use std::io::{self, ErrorKind, Read as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use fabedge_common::config::{self, packed};
use notify::{RecursiveMode, Watcher as _};
use tokio::sync::{Notify, watch};
use tracing::debug;

use super::cache::Cache;
use super::{Current, Error, Found, Origin, Reader};

/// File events may be lost (an overrun, a file system without inotify); the file is read this often at the least.
const POLL: Duration = Duration::from_secs(5);

/// Follows the file.
pub(super) fn watch(path: PathBuf, cache: Cache) -> watch::Receiver<Current> {
    let mut current = cache.start();
    let mut reader = Reader::default();
    refresh(&mut current, &mut reader, &path, &cache);
    let (sender, receiver) = watch::channel(current);
    tokio::spawn(follow(path, cache, reader, sender));
    receiver
}

async fn follow(path: PathBuf, cache: Cache, mut reader: Reader, sender: watch::Sender<Current>) {
    let events = Arc::new(Notify::new());
    let mut watcher = None;
    loop {
        if watcher.is_none() {
            // The folder, not the file: a ConfigMap volume swaps a symbolic link, other writers rename into place.
            watcher = subscribe(path.parent(), &events)
                .inspect_err(|error| debug!(%error, "cannot watch the document, polling it"))
                .ok();
        }
        tokio::select! {
            () = events.notified() => {}
            () = tokio::time::sleep(POLL) => {}
            () = sender.closed() => return,
        }
        sender.send_if_modified(|current| refresh(current, &mut reader, &path, &cache));
    }
}

/// Notifies of everything that happens in `folders` but reading.
pub(crate) fn subscribe<'a>(
    folders: impl IntoIterator<Item = &'a Path>,
    events: &Arc<Notify>,
) -> notify::Result<notify::RecommendedWatcher> {
    let events = Arc::clone(events);
    let mut watcher = notify::recommended_watcher(move |event: notify::Result<notify::Event>| {
        if event.is_ok_and(|event| !event.kind.is_access()) {
            events.notify_one();
        }
    })?;
    for folder in folders {
        watcher.watch(folder, RecursiveMode::NonRecursive)?;
    }
    Ok(watcher)
}

/// Reads the mounted document once; true when something changed.
fn refresh(current: &mut Current, reader: &mut Reader, path: &Path, cache: &Cache) -> bool {
    let place = path.display().to_string();
    let seen = Instant::now();
    current.adopt(seen, read(reader, path), &place, Origin::Mounted, cache)
}

/// The document in the form in which it is there.
fn read(reader: &mut Reader, path: &Path) -> Result<Found, Error> {
    let mut compressed = OsString::from(path);
    compressed.push(".gz");
    let compressed = PathBuf::from(compressed);
    let mut once = || {
        let plain = content(path)?;
        let packed = content(&compressed)?;
        let place = if plain.is_none() {
            compressed.as_path()
        } else {
            path
        };
        let found = match plain.map(String::from_utf8).transpose() {
            Ok(text) => reader.newest(text, packed.as_deref()),
            Err(error) => Err(config::Error::Syntax(error.to_string())),
        };
        found.map_err(|source| Error::Refused {
            place: place.display().to_string(),
            source,
        })
    };
    match once()? {
        Some(found) => Ok(found),
        // The volume may have been swapped between the two looks, from one form to the other.
        None => once()?.ok_or_else(|| Error::Read {
            place: path.display().to_string(),
            source: ErrorKind::NotFound.into(),
        }),
    }
}

/// What is in a file; none where it is not there.
fn content(path: &Path) -> Result<Option<Vec<u8>>, Error> {
    let mut bytes = Vec::new();
    let read = File::open(path).and_then(|file| file.take(packed::MAX_BYTES + 1).read_to_end(&mut bytes));
    let failed = |source| Error::Read {
        place: path.display().to_string(),
        source,
    };
    match read {
        Ok(_) if bytes.len() as u64 > packed::MAX_BYTES => {
            Err(failed(io::Error::other(config::Error::TooLarge)))
        }
        Ok(_) => Ok(Some(bytes)),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
        Err(error) => Err(failed(error)),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{PermissionsExt as _, symlink};

    use super::super::write_private;
    use super::*;

    const GOOD: &str = "version: 1\ngeneration: 3\nid: CN=a.edge1\nname: a.edge1\ntype: EdgeNode\nsubnets: [10.1.1.0/24]\n...\n";

    fn generation(receiver: &watch::Receiver<Current>) -> Option<(u64, Origin)> {
        receiver
            .borrow()
            .config
            .as_ref()
            .map(|(config, origin)| (config.generation, *origin))
    }

    async fn news(receiver: &mut watch::Receiver<Current>) {
        tokio::time::timeout(POLL * 2, receiver.changed())
            .await
            .unwrap()
            .unwrap();
    }

    #[tokio::test]
    async fn the_last_good_document_survives_bad_ones_and_a_restart() {
        let dir = tempfile::tempdir().unwrap();
        let mounted = dir.path().join("mounted/tunnels.yaml");
        let state = dir.path().join("state");
        std::fs::create_dir(dir.path().join("mounted")).unwrap();

        let mut receiver = watch(mounted.clone(), Cache::new(&state));
        assert_eq!(
            generation(&receiver),
            None,
            "nothing is applied before the first document"
        );
        assert!(receiver.borrow().problem.is_some());

        write_private(&mounted, GOOD.as_bytes()).unwrap();
        news(&mut receiver).await;
        assert_eq!(generation(&receiver), Some((3, Origin::Mounted)));
        // It is written beside everything else.
        let kept = state.join("tunnels.yaml");
        for _ in 0..500 {
            if kept.exists() {
                break;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        let mode = std::fs::metadata(&kept).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);

        write_private(&mounted, &GOOD.as_bytes()[..60]).unwrap();
        news(&mut receiver).await;
        assert_eq!(generation(&receiver), Some((3, Origin::Mounted)));
        let problem = receiver.borrow().problem.as_ref().unwrap().to_string();
        assert!(problem.contains("the last good one stays in force"), "{problem}");

        std::fs::remove_file(&mounted).unwrap();
        assert_eq!(
            generation(&watch(mounted, Cache::new(&state))),
            Some((3, Origin::Cache)),
            "a restart finds it on disk"
        );
    }

    /// A ConfigMap volume as the kubelet makes it: what is seen are links into a folder that is swapped as a whole.
    struct Volume(PathBuf);

    impl Volume {
        fn swap(&self, revision: &str, name: &str, content: &[u8]) {
            let folder = self.0.join(revision);
            std::fs::create_dir_all(&folder).unwrap();
            std::fs::write(folder.join(name), content).unwrap();
            symlink(revision, self.0.join("..data_tmp")).unwrap();
            std::fs::rename(self.0.join("..data_tmp"), self.0.join("..data")).unwrap();
            let link = self.0.join(name);
            if link.symlink_metadata().is_err() {
                symlink(Path::new("..data").join(name), link).unwrap();
            }
        }
    }

    #[tokio::test]
    async fn a_document_may_grow_out_of_its_plain_form_and_back() {
        let dir = tempfile::tempdir().unwrap();
        let mounted = dir.path().join("etc/tunnels.yaml");
        let volume = Volume(dir.path().join("etc"));
        let text = |generation: u64| GOOD.replace("generation: 3", &format!("generation: {generation}"));
        let long = format!("# {}\n{}", "x".repeat(packed::PLAIN_BYTES), text(4));
        let packed::Packed::Compressed(bytes) = packed::pack(long) else {
            panic!("not compressed");
        };
        volume.swap("..1", packed::DOCUMENT_KEY, text(3).as_bytes());
        let mut receiver = watch(mounted, Cache::new(&dir.path().join("state")));
        assert_eq!(generation(&receiver), Some((3, Origin::Mounted)));
        volume.swap("..2", packed::COMPRESSED_KEY, &bytes);
        news(&mut receiver).await;
        assert_eq!(generation(&receiver), Some((4, Origin::Mounted)));
        volume.swap("..3", packed::DOCUMENT_KEY, text(5).as_bytes());
        news(&mut receiver).await;
        assert_eq!(generation(&receiver), Some((5, Origin::Mounted)));

        volume.swap("..4", packed::COMPRESSED_KEY, &bytes[..bytes.len() - 9]);
        news(&mut receiver).await;
        assert_eq!(generation(&receiver), Some((5, Origin::Mounted)));
        let problem = receiver.borrow().problem.as_ref().unwrap().to_string();
        assert!(
            problem.contains("etc/tunnels.yaml.gz is refused") && problem.contains("truncated"),
            "{problem}"
        );
    }
}
