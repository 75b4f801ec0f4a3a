//! Leader election by a Lease, as client-go does it: a lease is over when its record has not changed for its duration
//! by *our* clock, so that clocks need not agree.

use std::future::poll_fn;
use std::pin::pin;
use std::task::Poll;
use std::time::{Duration, Instant};

use k8s_openapi::api::coordination::v1 as coordination;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::MicroTime;
use k8s_openapi::jiff::Timestamp;
use kube::api::{ObjectMeta, PostParams};
use kube::{Api, Client};
use tokio::sync::watch;
use tracing::{debug, warn};

/// Name of the Lease.
pub const NAME: &str = "fabedge-operator-leader";

/// For how long a record that does not change keeps others out.
const DURATION: Duration = Duration::from_secs(15);

/// For how long the holder goes on without being able to renew.
const DEADLINE: Duration = Duration::from_secs(10);

/// For how long a lease that was given back counts as that.
const AWHILE: Duration = Duration::from_secs(60);

/// The pause between two looks at it.
const RETRY: Duration = Duration::from_secs(2);

/// What one who wants to lead is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    /// Another one leads, or nobody yet.
    Standby,
    /// The leader.
    Leader {
        /// The last one gave the lease back just now: nothing can have happened meanwhile but what is seen. Otherwise the API
        /// server may hold an older state than agents have seen.
        handed_over: bool,
    },
    /// Nothing any more.
    Ended(Ending),
}

/// Why a candidate ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ending {
    /// It led, and another one holds the lease now.
    Replaced,
    /// It led, and could not renew the lease in time.
    Cut,
    /// The API server holds an older state than before: somebody brought a backup back. Watches that began before would not
    /// notice what is changed now, for changes are numbered from the backup's number on.
    Restored,
}

/// Goes on with `work` for as long as the lease was `renewed` in time by our clock; none once it was not. Who was stopped,
/// and another one leads meanwhile, must not write before it has noticed.
pub async fn while_held<T>(renewed: &watch::Receiver<Instant>, work: impl Future<Output = T>) -> Option<T> {
    let mut work = pin!(work);
    poll_fn(|context| {
        if renewed.borrow().elapsed() > DEADLINE {
            Poll::Ready(None)
        } else {
            work.as_mut().poll(context).map(Some)
        }
    })
    .await
}

/// One who wants to lead.
#[derive(Debug)]
pub struct Lease {
    api: Api<coordination::Lease>,
    identity: String,
    /// The record as last seen, and since when it has been so.
    seen: Option<(coordination::LeaseSpec, Instant)>,
    /// The highest version of the record. It is a number, and one for all objects, in every API server that there is.
    version: u64,
    /// When the last leader gave the lease back, if it did.
    given_back: Option<Timestamp>,
}

/// Whose the lease is.
enum Held {
    Ours,
    Others,
    /// Nobody can tell.
    Unknown,
    /// It is one that was there before the last one.
    Before,
}

impl Lease {
    /// A candidate of the name `identity`.
    pub fn new(client: Client, namespace: &str, identity: String) -> Self {
        Self {
            api: Api::namespaced(client, namespace),
            identity,
            seen: None,
            version: 0,
            given_back: None,
        }
    }

    /// Tells what we are, and since when the lease was renewed last; gives it back once nobody listens any more.
    pub async fn hold(mut self, part: watch::Sender<Part>, renewed: watch::Sender<Instant>) {
        let is_leader = || matches!(*part.borrow(), Part::Leader { .. });
        loop {
            let asked = Instant::now();
            // Who was stopped for so long does not go on before it has asked.
            if is_leader() && renewed.borrow().elapsed() > DEADLINE {
                part.send_replace(Part::Ended(Ending::Cut));
                return;
            }
            let held = match tokio::time::timeout(DEADLINE / 2, self.attempt()).await {
                Ok(Ok(held)) => {
                    renewed.send_replace(asked);
                    held
                }
                failed => {
                    if let Ok(Err(error)) = failed {
                        warn!(
                            error = crate::reporter::chain(&error),
                            "the lease {NAME} cannot be asked for"
                        );
                    }
                    // Nobody else may take it before its duration is over.
                    Held::Unknown
                }
            };
            match held {
                Held::Ours if !is_leader() => {
                    let ago = self.given_back.map(|at| Timestamp::now().duration_since(at));
                    let handed_over = ago.is_some_and(|ago| ago.unsigned_abs() < AWHILE);
                    part.send_replace(Part::Leader { handed_over });
                }
                Held::Unknown if is_leader() && renewed.borrow().elapsed() >= DEADLINE => {
                    part.send_replace(Part::Ended(Ending::Cut));
                    return;
                }
                Held::Others if is_leader() => {
                    part.send_replace(Part::Ended(Ending::Replaced));
                    return;
                }
                Held::Before => {
                    part.send_replace(Part::Ended(Ending::Restored));
                    return;
                }
                Held::Ours | Held::Others | Held::Unknown => {}
            }
            tokio::select! {
                () = part.closed() => break,
                () = tokio::time::sleep(RETRY) => {}
            }
        }
        if is_leader() && renewed.borrow().elapsed() <= DEADLINE {
            let freed = self.give_back().await;
            debug!(?freed, "gave the lease back");
        }
    }

    /// Gives back what is ours. One that was there before our last one is not: who comes next must hear of no lead that was
    /// handed over in a store of which agents have seen more.
    async fn give_back(&self) -> Result<bool, kube::Error> {
        let found = self.api.get(NAME).await?;
        let holder = found.spec.as_ref().and_then(|spec| spec.holder_identity.as_ref());
        if self.version_of(&found.metadata) < self.version || holder != Some(&self.identity) {
            return Ok(false);
        }
        self.write(found.metadata, None).await
    }

    /// The version of a record; that of the last one where it is no number.
    fn version_of(&self, metadata: &ObjectMeta) -> u64 {
        let version = metadata.resource_version.as_ref();
        version.and_then(|text| text.parse().ok()).unwrap_or(self.version)
    }

    /// Takes or renews the lease.
    async fn attempt(&mut self) -> Result<Held, kube::Error> {
        let Some(found) = self.api.get_opt(NAME).await? else {
            let lease = self.record(None, Some(&self.identity), 0);
            return match self.api.create(&PostParams::default(), &lease).await {
                Ok(_) => Ok(Held::Ours),
                Err(kube::Error::Api(status)) if status.code == 409 => Ok(Held::Others),
                Err(error) => Err(error),
            };
        };
        let version = self.version_of(&found.metadata);
        if version < self.version {
            return Ok(Held::Before);
        }
        self.version = version;
        let spec = found.spec.unwrap_or_default();
        let holder = spec.holder_identity.clone().unwrap_or_default();
        let since = match &self.seen {
            Some((last, since)) if *last == spec => *since,
            _ => Instant::now(),
        };
        let renewed = spec.renew_time.as_ref().map(|time| time.0);
        self.seen = Some((spec, since));
        if holder == self.identity || holder.is_empty() || since.elapsed() > DURATION {
            self.given_back = renewed.filter(|_| holder.is_empty());
            let ours = self.write(found.metadata, Some(&self.identity)).await?;
            Ok(if ours { Held::Ours } else { Held::Others })
        } else {
            Ok(Held::Others)
        }
    }

    /// Replaces the record: with this holder, or with nobody. Fails quietly when somebody else was quicker.
    async fn write(&self, metadata: ObjectMeta, holder: Option<&str>) -> Result<bool, kube::Error> {
        let before = self.seen.as_ref().map(|(spec, _)| spec);
        let transitions = before.and_then(|spec| spec.lease_transitions).unwrap_or(0);
        let changes = before.and_then(|spec| spec.holder_identity.as_deref()) != holder;
        let lease = self.record(Some(metadata), holder, transitions + i32::from(changes));
        match self.api.replace(NAME, &PostParams::default(), &lease).await {
            Ok(_) => Ok(true),
            Err(kube::Error::Api(status)) if status.code == 409 => Ok(false),
            Err(error) => Err(error),
        }
    }

    fn record(
        &self,
        metadata: Option<ObjectMeta>,
        holder: Option<&str>,
        transitions: i32,
    ) -> coordination::Lease {
        let now = Some(MicroTime(Timestamp::now()));
        coordination::Lease {
            metadata: metadata.unwrap_or_else(|| ObjectMeta {
                name: Some(NAME.to_owned()),
                ..ObjectMeta::default()
            }),
            spec: Some(coordination::LeaseSpec {
                holder_identity: Some(holder.unwrap_or_default().to_owned()),
                lease_duration_seconds: i32::try_from(DURATION.as_secs()).ok(),
                acquire_time: now.clone(),
                renew_time: now,
                lease_transitions: Some(transitions),
                ..coordination::LeaseSpec::default()
            }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn work_ends_with_the_lease() {
        let (renewals, renewed) = watch::channel(Instant::now());
        assert_eq!(while_held(&renewed, async { 1 }).await, Some(1));
        let long_ago = Instant::now().checked_sub(DEADLINE + Duration::from_secs(1));
        renewals.send_replace(long_ago.unwrap());
        let work = async { panic!("another one leads by now") };
        assert_eq!(while_held::<()>(&renewed, work).await, None);
    }
}
