//! What makes the engine look again: the kernel's network and firewall changes, charon's events, pods that come and
//! go, and renewed certificates.

use std::collections::BTreeSet;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use notify::{RecursiveMode, Watcher};
use tokio::sync::Notify;
use tracing::warn;

use super::Subsystems;
use crate::datapath::pods;
use crate::firewall;
use crate::netlink::{self, Changes};
use crate::source::subscribe;

/// How long to wait before a broken source of events is opened again.
const RETRY: Duration = Duration::from_secs(5);

/// The shortest time between two passes because of nftables: kube-proxy writes it whenever an endpoint changes.
const FIREWALL_PAUSE: Duration = Duration::from_secs(2);

/// Starts everything that triggers passes.
pub fn watch(subsystems: &Subsystems, trigger: &Arc<Notify>) {
    let own = subsystems.firewall.port().clone();
    tokio::spawn(watch_changes(
        Changes::network,
        Duration::ZERO,
        Arc::clone(trigger),
    ));
    tokio::spawn(watch_changes(
        move || Changes::nftables(own.clone()),
        FIREWALL_PAUSE,
        Arc::clone(trigger),
    ));
    tokio::spawn(watch_legacy_tables(Arc::clone(trigger)));

    let mut events = subsystems.tunnels.events();
    let sender = Arc::clone(trigger);
    tokio::spawn(async move {
        loop {
            events.next().await;
            sender.notify_one();
        }
    });

    tokio::spawn(watch_credentials(
        subsystems.tunnels.credential_files(),
        Arc::clone(trigger),
    ));

    tokio::spawn(watch_pods(
        subsystems.datapath.cni_state_dir().to_owned(),
        Arc::clone(trigger),
    ));
}

/// Passes on the kernel's notices, with a pause after each; a broken subscription is renewed.
async fn watch_changes(
    open: impl Fn() -> Result<Changes, netlink::Error>,
    pause: Duration,
    trigger: Arc<Notify>,
) {
    loop {
        let error = match open() {
            Ok(mut changes) => loop {
                // The first time for what happened before there was a subscription.
                trigger.notify_one();
                tokio::time::sleep(pause).await;
                if let Err(error) = changes.next().await {
                    break error;
                }
            },
            Err(error) => error,
        };
        warn!(
            error = crate::status::chain(&error),
            "no notice of network changes, subscribing again"
        );
        tokio::time::sleep(RETRY).await;
    }
}

/// The kernel tells nobody of iptables-legacy. That its filter tables come into being is seen this way; what somebody
/// changes in them later waits for the resync.
async fn watch_legacy_tables(trigger: Arc<Notify>) {
    let mut known = firewall::legacy_tables();
    loop {
        tokio::time::sleep(FIREWALL_PAUSE).await;
        let tables = firewall::legacy_tables();
        if tables != known {
            known = tables;
            trigger.notify_one();
        }
    }
}

/// The runtime's result files appear after the plugins are done, so netlink's notice of a new veth comes too early.
/// Their folders appear with the first pod; until then there is nothing to watch.
async fn watch_pods(state_dir: PathBuf, trigger: Arc<Notify>) {
    let mut watched: Vec<(PathBuf, notify::RecommendedWatcher)> = Vec::new();
    loop {
        watched.retain(|(folder, _)| folder.exists());
        for folder in pods::folders(&state_dir) {
            if !folder.exists() || watched.iter().any(|(known, _)| *known == folder) {
                continue;
            }
            let sender = Arc::clone(&trigger);
            let watcher = notify::recommended_watcher(move |event: notify::Result<notify::Event>| {
                if event.is_ok_and(|event| !event.kind.is_access()) {
                    sender.notify_one();
                }
            })
            .and_then(|mut watcher| {
                watcher.watch(&folder, RecursiveMode::NonRecursive)?;
                Ok(watcher)
            });
            match watcher {
                Ok(watcher) => {
                    watched.push((folder, watcher));
                    trigger.notify_one();
                }
                Err(error) => warn!(%error, folder = %folder.display(), "cannot watch for pods"),
            }
        }
        tokio::time::sleep(RETRY).await;
    }
}

/// Passes when key, certificates or revocation lists are replaced. The folders above theirs are watched too: a Secret volume swaps a link
/// in its root.
async fn watch_credentials(files: [PathBuf; 4], trigger: Arc<Notify>) {
    let folders: BTreeSet<&Path> = files
        .iter()
        .flat_map(|file| file.ancestors().skip(1).take(2))
        .collect();
    let events = Arc::new(Notify::new());
    let mut known = files.each_ref().map(|file| stamp(file));
    let mut watcher = None;
    loop {
        if watcher.is_none() {
            // None where a folder is not there, as on a node without tunnels.
            watcher = subscribe(folders.iter().copied(), &events).ok();
        }
        tokio::select! {
            () = events.notified() => {}
            () = tokio::time::sleep(RETRY) => {}
        }
        let now = files.each_ref().map(|file| stamp(file));
        if now != known {
            known = now;
            trigger.notify_one();
        }
    }
}

/// What is another once a file has been written or replaced; none where it is not there.
fn stamp(file: &Path) -> Option<(u64, u64, i64, i64)> {
    let metadata = std::fs::metadata(file).ok()?;
    Some((
        metadata.ino(),
        metadata.size(),
        metadata.ctime(),
        metadata.ctime_nsec(),
    ))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    /// Well below [`RETRY`]: what is seen by then was told and not polled.
    const AT_ONCE: Duration = Duration::from_secs(2);

    /// A Secret volume as the kubelet makes it.
    fn swap(root: &Path, revision: &str) {
        let folder = root.join(revision).join("certs");
        std::fs::create_dir_all(&folder).unwrap();
        std::fs::write(folder.join("tls.crt"), "a certificate").unwrap();
        symlink(revision, root.join("..data_tmp")).unwrap();
        std::fs::rename(root.join("..data_tmp"), root.join("..data")).unwrap();
        let link = root.join("certs");
        if link.symlink_metadata().is_err() {
            symlink("..data/certs", link).unwrap();
        }
    }

    async fn heard(trigger: &Notify, patience: Duration) -> bool {
        tokio::time::timeout(patience, trigger.notified()).await.is_ok()
    }

    #[tokio::test]
    async fn a_renewed_certificate_makes_a_pass_at_once() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path();
        swap(root, "..1");
        let files = ["ca.crt", "tls.crt", "tls.key", "ca.crl"].map(|name| root.join("certs").join(name));
        let trigger = Arc::new(Notify::new());
        let watching = tokio::spawn(watch_credentials(files, Arc::clone(&trigger)));
        assert!(
            !heard(&trigger, Duration::from_millis(200)).await,
            "nothing has happened yet"
        );
        for revision in ["..2", "..3"] {
            let before = std::fs::read_link(root.join("..data")).unwrap();
            swap(root, revision);
            std::fs::remove_dir_all(root.join(before)).unwrap();
            assert!(heard(&trigger, AT_ONCE).await, "{revision}");
        }
        watching.abort();
    }

    #[tokio::test]
    async fn so_does_one_that_is_written_in_its_place() {
        let dir = tempfile::tempdir().unwrap();
        let files = ["ca.crt", "tls.crt", "tls.key", "ca.crl"].map(|name| dir.path().join(name));
        let trigger = Arc::new(Notify::new());
        let watching = tokio::spawn(watch_credentials(files.clone(), Arc::clone(&trigger)));
        for content in ["a certificate", "another certificate"] {
            assert!(!heard(&trigger, Duration::from_millis(200)).await);
            std::fs::write(&files[1], content).unwrap();
            assert!(heard(&trigger, AT_ONCE).await, "{content}");
        }
        watching.abort();
    }
}
