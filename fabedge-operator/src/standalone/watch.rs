//! Waits for changes of the folder: notified ones, and a slow poll for what notification misses (network file
//! systems, a folder that was replaced).

use std::io;
use std::path::Path;
use std::time::Duration;

use notify::{RecommendedWatcher, RecursiveMode, Watcher};
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep_until, timeout_at};
use tracing::{debug, warn};

use crate::signals::Stop;

/// An editor writes a file in several steps; this long nothing may happen before it is read.
const SETTLE: Duration = Duration::from_millis(100);

/// And this long at most, however busy the folder is.
const SETTLE_AT_MOST: Duration = Duration::from_secs(1);

/// Wakes up when there may be something new.
pub(super) struct Watch {
    /// None when the system has no watch to give: the poll alone remains.
    watcher: Option<RecommendedWatcher>,
    events: mpsc::Receiver<()>,
    poll: Duration,
    stop: Stop,
}

impl Watch {
    /// Begins to watch.
    pub(super) fn new(folder: &Path, poll: Duration) -> io::Result<Self> {
        // One is enough: an event says no more than "look again".
        let (sender, events) = mpsc::channel(1);
        let watcher = notify::recommended_watcher(move |event: notify::Result<notify::Event>| {
            // Our own reading is an access, not a change.
            if !matches!(&event, Ok(event) if event.kind.is_access()) {
                // Full: somebody has said so already.
                sender.try_send(()).ok();
            }
        })
        .and_then(|mut watcher| {
            watcher.watch(folder, RecursiveMode::NonRecursive)?;
            Ok(watcher)
        })
        .inspect_err(|e| {
            warn!(
                "no change notification for {}, polling only: {e}",
                folder.display()
            )
        })
        .ok();
        Ok(Self {
            watcher,
            events,
            poll,
            stop: Stop::new()?,
        })
    }

    /// Waits for the next change or poll. False when it is time to stop.
    pub(super) async fn changed(&mut self) -> bool {
        let poll = Instant::now() + self.poll;
        let notified = self.watcher.is_some();
        tokio::select! {
            () = self.stop.signalled() => return false,
            () = sleep_until(poll) => return true,
            // None: the watcher is gone, the poll is what remains.
            Some(()) = self.events.recv(), if notified => {}
        }
        let end = Instant::now() + SETTLE_AT_MOST;
        loop {
            let quiet = end.min(Instant::now() + SETTLE);
            match timeout_at(quiet, self.events.recv()).await {
                Ok(Some(())) if Instant::now() < end => debug!("the folder is still changing"),
                _ => break,
            }
        }
        true
    }
}
