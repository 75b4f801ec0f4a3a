//! What makes the engine look again: the kernel's network changes, charon's events, pods that come and go.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use notify::{RecursiveMode, Watcher};
use tokio::sync::Notify;
use tracing::warn;

use super::Subsystems;
use crate::datapath::pods;
use crate::netlink::Changes;

/// How long to wait before a broken source of events is opened again.
const RETRY: Duration = Duration::from_secs(5);

/// Starts everything that triggers passes.
///
/// # Errors
/// When the kernel's changes cannot be subscribed to.
pub fn watch(subsystems: &Subsystems, trigger: &Arc<Notify>) -> Result<(), crate::netlink::Error> {
    let mut changes = Changes::open()?;
    let sender = Arc::clone(trigger);
    tokio::spawn(async move {
        loop {
            if let Err(error) = changes.next().await {
                warn!(
                    error = crate::status::chain(&error),
                    "no notice of network changes, subscribing again"
                );
                tokio::time::sleep(RETRY).await;
                if let Ok(again) = Changes::open() {
                    changes = again;
                }
            }
            sender.notify_one();
        }
    });

    let mut events = subsystems.tunnels.events();
    let sender = Arc::clone(trigger);
    tokio::spawn(async move {
        loop {
            events.next().await;
            sender.notify_one();
        }
    });

    tokio::spawn(watch_pods(
        subsystems.datapath.cni_state_dir().to_owned(),
        Arc::clone(trigger),
    ));
    Ok(())
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
