//! What makes the engine look again: the kernel's network and firewall changes, charon's events, pods that come and
//! go.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use notify::{RecursiveMode, Watcher};
use tokio::sync::Notify;
use tracing::warn;

use super::Subsystems;
use crate::datapath::pods;
use crate::firewall;
use crate::netlink::{self, Changes};

/// How long to wait before a broken source of events is opened again.
const RETRY: Duration = Duration::from_secs(5);

/// The shortest time between two passes because of nftables: kube-proxy writes it whenever an endpoint changes.
const FIREWALL_PAUSE: Duration = Duration::from_secs(2);

/// Starts everything that triggers passes.
pub fn watch(subsystems: &Subsystems, trigger: &Arc<Notify>) {
    tokio::spawn(watch_changes(
        Changes::network,
        Duration::ZERO,
        Arc::clone(trigger),
    ));
    tokio::spawn(watch_changes(
        Changes::nftables,
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

    tokio::spawn(watch_pods(
        subsystems.datapath.cni_state_dir().to_owned(),
        Arc::clone(trigger),
    ));
}

/// Passes on the kernel's notices, with a pause after each; a broken subscription is renewed.
async fn watch_changes(open: fn() -> Result<Changes, netlink::Error>, pause: Duration, trigger: Arc<Notify>) {
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
