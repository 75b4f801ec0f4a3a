//! Leader election by a Lease, as client-go does it: a lease is over when its record has not changed for its duration
//! by *our* clock, so that clocks need not agree.

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

/// The pause between two looks at it.
const RETRY: Duration = Duration::from_secs(2);

/// One who wants to lead.
#[derive(Debug)]
pub struct Lease {
    api: Api<coordination::Lease>,
    identity: String,
    /// The record as last seen, and since when it has been so.
    seen: Option<(coordination::LeaseSpec, Instant)>,
}

impl Lease {
    /// A candidate of the name `identity`.
    pub fn new(client: Client, namespace: &str, identity: String) -> Self {
        Self {
            api: Api::namespaced(client, namespace),
            identity,
            seen: None,
        }
    }

    /// Tells `leads` when we do and when we no longer do; gives the lease back once nobody listens any more.
    pub async fn hold(mut self, leads: watch::Sender<bool>) {
        let mut renewed = Instant::now();
        loop {
            let asked = Instant::now();
            // Who was stopped for so long does not go on before it has asked.
            if renewed.elapsed() > DEADLINE {
                leads.send_if_modified(std::mem::take);
            }
            let held = match tokio::time::timeout(DEADLINE / 2, self.attempt()).await {
                Ok(Ok(held)) => {
                    renewed = asked;
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
                    *leads.borrow() && renewed.elapsed() < DEADLINE
                }
            };
            leads.send_if_modified(|leads| std::mem::replace(leads, held) != held);
            tokio::select! {
                () = leads.closed() => break,
                () = tokio::time::sleep(RETRY) => {}
            }
        }
        if *leads.borrow() {
            let freed = self.write(None).await;
            debug!(?freed, "gave the lease back");
        }
    }

    /// Takes or renews the lease; whether it is ours now.
    async fn attempt(&mut self) -> Result<bool, kube::Error> {
        let Some(found) = self.api.get_opt(NAME).await? else {
            let lease = self.record(None, Some(&self.identity), 0);
            return match self.api.create(&PostParams::default(), &lease).await {
                Ok(_) => Ok(true),
                Err(kube::Error::Api(status)) if status.code == 409 => Ok(false),
                Err(error) => Err(error),
            };
        };
        let spec = found.spec.unwrap_or_default();
        let holder = spec.holder_identity.clone().unwrap_or_default();
        let since = match &self.seen {
            Some((last, since)) if *last == spec => *since,
            _ => Instant::now(),
        };
        self.seen = Some((spec, since));
        if holder == self.identity || holder.is_empty() || since.elapsed() > DURATION {
            self.write(Some(found.metadata)).await
        } else {
            Ok(false)
        }
    }

    /// Replaces the record: with us as the holder, or with nobody. Fails quietly when somebody else was quicker.
    async fn write(&self, metadata: Option<ObjectMeta>) -> Result<bool, kube::Error> {
        let (metadata, holder) = match metadata {
            Some(metadata) => (metadata, Some(self.identity.as_str())),
            None => (self.api.get(NAME).await?.metadata, None),
        };
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
