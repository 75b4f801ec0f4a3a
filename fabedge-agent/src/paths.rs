//! How large a packet each tunnel carries in one piece, measured through the tunnel itself.
//!
//! What an interface says of its MTU ends at the next router, and the ICMP errors that would tell of a narrower link
//! behind it are filtered on many ways. So echo requests of chosen sizes go through the tunnel to an address of the peer's
//! node (RFC 8899 calls that a probe), where the kernel answers. ESP packets around them must not be fragmented, by a
//! rule of our nftables table; those around everything else may be, so that nothing is lost while a path's MTU is not
//! known, or is no longer what it was. What is found limits routes, and so packets that do not fit are answered with
//! "fragmentation needed" by the nodes themselves.

mod echo;
mod search;

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures_util::StreamExt as _;
use futures_util::stream::FuturesUnordered;
use tokio::sync::{Notify, watch};
use tokio::time::Instant;
use tracing::{debug, info};

use crate::desired::paths::Path;
use echo::Echo;
use search::Search;

/// How long what was measured is believed (RFC 8899 §5.1.1).
const BELIEVED: Duration = Duration::from_secs(600);

/// How long until a peer that did not answer is asked again: its first pod makes the address that answers.
const SILENT: Duration = Duration::from_secs(60);

/// So many paths are measured at once.
const AT_ONCE: usize = 16;

/// What is to be measured, by reqid. They may be many, and are held at several places.
pub type Targets = BTreeMap<u32, Arc<Target>>;

/// A path and the tunnel that it goes through.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Target {
    /// The peer's name.
    pub peer: String,
    /// Between which addresses.
    pub path: Path,
    /// Something that is another for other SAs.
    pub sas: u64,
}

/// Measures for as long as it is there.
#[derive(Debug)]
pub struct Paths {
    targets: watch::Sender<Targets>,
    found: Arc<Mutex<BTreeMap<u32, u32>>>,
}

impl Paths {
    /// Measures from now on; `news` is told what a pass should look at.
    pub fn new(news: Arc<Notify>) -> Self {
        let (targets, receiver) = watch::channel(Targets::new());
        let found = Arc::default();
        tokio::spawn(measure_all(receiver, Arc::clone(&found), news));
        Self { targets, found }
    }

    /// What was found, by reqid; also for tunnels that are down by now.
    pub fn found(&self) -> BTreeMap<u32, u32> {
        self.found.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Measures these from now on, at once where they are new or have other SAs.
    pub fn follow(&self, targets: Targets) {
        self.targets.send_if_modified(|known| {
            let other = *known != targets;
            *known = targets;
            other
        });
    }
}

async fn measure_all(
    mut targets: watch::Receiver<Targets>,
    found: Arc<Mutex<BTreeMap<u32, u32>>>,
    news: Arc<Notify>,
) {
    let locked = || found.lock().unwrap_or_else(PoisonError::into_inner);
    let mut due: BTreeMap<u32, (Arc<Target>, Instant)> = BTreeMap::new();
    let mut running = FuturesUnordered::new();
    loop {
        let now = Instant::now();
        for (reqid, (target, when)) in due.iter_mut().filter(|(_, (_, when))| *when <= now) {
            if running.len() == AT_ONCE {
                break;
            }
            // Until it is done; whichever comes later says when again.
            *when = now + BELIEVED;
            let known = locked().get(reqid).copied();
            let (reqid, target) = (*reqid, Arc::clone(target));
            running.push(async move {
                let result = measure(&target.path, known).await;
                (reqid, target, result)
            });
        }
        let next = due.values().map(|(_, when)| *when).min();
        let idle = running.len() < AT_ONCE && next.is_some();
        tokio::select! {
            changed = targets.changed() => {
                if changed.is_err() {
                    return;
                }
                let wanted = targets.borrow_and_update();
                due.retain(|reqid, _| wanted.contains_key(reqid));
                for (reqid, target) in wanted.iter() {
                    if due.get(reqid).is_none_or(|(known, _)| known != target) {
                        due.insert(*reqid, (Arc::clone(target), Instant::now()));
                    }
                }
            }
            Some((reqid, target, result)) = running.next(), if !running.is_empty() => {
                let Some((current, when)) = due.get_mut(&reqid).filter(|(current, _)| *current == target) else {
                    continue;
                };
                let mtu = result.unwrap_or_else(|error| {
                    debug!(peer = current.peer, error = crate::status::chain(&error), "path not measured");
                    None
                });
                let Some(mtu) = mtu else {
                    *when = Instant::now() + SILENT;
                    continue;
                };
                // Packets up to the device's MTU are what is taken for granted.
                let before = locked().insert(reqid, mtu).unwrap_or(current.path.most);
                if before != mtu {
                    info!(peer = current.peer, mtu, before, "the path to a peer has another MTU");
                    news.notify_one();
                }
            }
            () = tokio::time::sleep_until(next.unwrap_or_else(Instant::now)), if idle => {}
        }
    }
}

/// The largest packet that the path carries, as far as it matters; none where nobody answers.
async fn measure(path: &Path, known: Option<u32>) -> Result<Option<u32>, echo::Error> {
    let mut echo = Echo::open(path)?;
    let mut search = Search::new(path.most, known);
    loop {
        let sizes = search.sizes();
        if sizes.is_empty() {
            return Ok(search.found());
        }
        search.learn(&echo.ask(&sizes).await);
    }
}
