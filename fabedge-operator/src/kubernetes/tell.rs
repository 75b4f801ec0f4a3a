//! Statuses and Events -> the API server. Only what differs is written, a few requests at a time, and beside the
//! passes over the topology: no document waits for them.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

use fabedge_common::config::CONNECTOR;
use k8s_openapi::api::core::v1::Event;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use k8s_openapi::jiff::Timestamp;
use kube::api::{DynamicObject, Patch, PatchParams, PostParams};
use kube::{Api, Client};
use serde_json::json;
use tokio::task::JoinSet;

use super::conditions::{self, Agent, Facts};
use super::events::{self, Book, Note, Saying};
use super::live::Live;
use super::serve::{Status, Told};
use super::{MANAGER, watch};
use crate::api::{API_VERSION, ClusterStatus, CommunityStatus};
use crate::finding::Finding;
use crate::observe::manifest::{Key, Kind};
use crate::reporter::chain;

/// Requests under way at a time, beside those of the passes.
const CONCURRENCY: usize = 16;

/// The least time between two plans: statuses need not follow every pod.
const PACE: Duration = Duration::from_millis(500);

/// A document takes so long to be applied, at most: kubelet looks for it once its pod is nudged, and asks the agent.
const ON_ITS_WAY: Duration = Duration::from_secs(3);

/// The pauses after something failed: the first, and the longest, for each is twice the one before.
const PAUSES: (Duration, Duration) = (Duration::from_secs(2), Duration::from_secs(300));

/// Field manager of statuses. API servers before 1.22 know a manager's fields by its name alone, so that one which
/// applied an object's status would no longer own what it had applied to its spec.
const STATUS_MANAGER: &str = "fabedge-operator-status";

/// Why something was not told.
#[derive(Debug, thiserror::Error)]
enum Error {
    #[error("writing the status of {object}")]
    Status { object: Key, source: kube::Error },
    #[error("writing an Event about {object}")]
    Event { object: Key, source: kube::Error },
}

/// A status that differs from the one that is there.
#[derive(Debug)]
pub struct Change {
    object: Key,
    uid: String,
    status: Wanted,
    /// What to say of it once it is written.
    notes: Vec<Note>,
}

#[derive(Debug)]
enum Wanted {
    Community(CommunityStatus),
    Cluster(ClusterStatus),
}

/// What is to be done next.
#[derive(Debug)]
pub enum Turn {
    /// Plan.
    Plan,
    /// Take notice of a request that is over.
    Take(Box<Outcome>),
}

/// What came of a request.
#[derive(Debug)]
pub enum Outcome {
    /// A status, and the version that it made.
    Status(Box<Change>, Result<Option<String>, kube::Error>),
    /// An Event.
    Event(Note, Result<Counted, kube::Error>),
}

/// An Event that is there.
#[derive(Clone, Copy, Debug)]
pub struct Counted {
    count: i32,
    /// Whether we wrote it, rather than an operator before us.
    wrote: bool,
}

/// What failed, and when it is tried again.
#[derive(Debug)]
struct Failing {
    /// None where nobody can mend it: the object went while we wrote.
    text: Option<String>,
    retry: Instant,
    pause: Duration,
}

/// Tells users what became of their objects.
#[derive(Debug)]
pub struct Teller {
    communities: Api<DynamicObject>,
    clusters: Api<DynamicObject>,
    events: Api<Event>,
    /// Name of this replica.
    instance: String,
    /// Name of the cluster.
    cluster: String,
    metrics: Arc<Status>,
    /// What the last pass found; none while what it looked at is no longer so.
    findings: Option<Vec<Finding>>,
    /// When documents were written, by local name, as long as they are on their way.
    written: BTreeMap<String, Instant>,
    book: Book,
    queue: VecDeque<Change>,
    sayings: VecDeque<Saying>,
    running: JoinSet<Outcome>,
    /// Whose status is being written.
    busy: BTreeSet<Key>,
    /// Whose status was written last: the next plan begins behind it, so that everybody has a turn.
    last: Option<Key>,
    /// Statuses by object, and Events under none.
    failing: BTreeMap<Option<Key>, Failing>,
    planned: Option<Instant>,
    /// When to plan again.
    next: Option<Instant>,
}

impl Teller {
    /// Touches nothing yet.
    pub fn new(client: &Client, cluster: &str, instance: &str, metrics: Arc<Status>) -> Self {
        Self {
            communities: watch::custom(client, "Community", "communities"),
            clusters: watch::custom(client, "Cluster", "clusters"),
            events: Api::namespaced(client.clone(), events::NAMESPACE),
            instance: instance.to_owned(),
            cluster: cluster.to_owned(),
            metrics,
            findings: None,
            written: BTreeMap::new(),
            book: Book::new(Instant::now()),
            queue: VecDeque::new(),
            sayings: VecDeque::new(),
            running: JoinSet::new(),
            busy: BTreeSet::new(),
            last: None,
            failing: BTreeMap::new(),
            planned: None,
            next: None,
        }
    }

    /// Takes what a pass found, and whose document it wrote.
    pub fn found(&mut self, findings: &[Finding], documents: &[String], live: &Live) {
        let now = Instant::now();
        self.findings = Some(findings.to_vec());
        self.written
            .extend(documents.iter().map(|name| (name.clone(), now)));
        self.soon();
        if self.next.is_some_and(|next| next <= now) {
            self.plan(live);
        }
    }

    /// Something changed that a pass has to look at first.
    pub fn hold(&mut self) {
        self.findings = None;
    }

    /// Something changed that a status tells.
    pub fn soon(&mut self) {
        let at = self.planned.map_or_else(Instant::now, |planned| planned + PACE);
        self.at(at);
    }

    fn at(&mut self, at: Instant) {
        self.next = Some(self.next.map_or(at, |next| next.min(at)));
    }

    /// Resolves when it is time to plan, or a request is over. Cancel-safe.
    pub async fn turn(&mut self) -> Turn {
        let next = self.next.filter(|_| self.findings.is_some());
        let due = async {
            match next {
                Some(next) => tokio::time::sleep_until(next.into()).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            done = finished(&mut self.running) => Turn::Take(Box::new(done)),
            () = due => Turn::Plan,
        }
    }

    /// Compares what there is to tell with what was told.
    fn plan(&mut self, live: &Live) {
        let now = Instant::now();
        let Some(findings) = self.findings.take() else {
            return;
        };
        (self.planned, self.next) = (Some(now), None);
        self.failing.retain(|object, _| {
            object
                .as_ref()
                .is_none_or(|object| live.event_uid(object).is_some())
        });
        self.written.retain(|_, at| now < *at + ON_ITS_WAY);
        if let Some(agents) = self.agents(live) {
            self.queue = self.changes(live, &Facts::new(&self.cluster, &findings, &agents), now);
        }
        if !self.fails(None, now) {
            let holding = events::of_findings(&findings, |object| live.event_uid(object));
            let due = self.book.holding(holding, now);
            if due.sayings.is_empty() {
                self.failing.remove(&None);
            }
            self.sayings.extend(due.sayings);
            if let Some(again) = due.again {
                self.at(again);
            }
        }
        let applied = self.written.values().map(|at| *at + ON_ITS_WAY);
        let retries = self.failing.values().map(|failing| failing.retry);
        if let Some(again) = applied.chain(retries).filter(|at| *at > now).min() {
            self.at(again);
        }
        self.findings = Some(findings);
        self.start();
    }

    /// How each agent stands to its newest document; none before the pods were listed.
    fn agents(&self, live: &Live) -> Option<BTreeMap<String, Agent>> {
        let state = |name: &str, ready| match (ready, self.written.contains_key(name)) {
            (false, _) => Agent::NotReady,
            (true, true) => Agent::Behind,
            (true, false) => Agent::Ready,
        };
        let pods = live.agents()?.iter();
        let mut agents: BTreeMap<String, Agent> = pods
            .map(|(name, pod)| (name.clone(), state(name, pod.ready)))
            .collect();
        agents.insert(CONNECTOR.to_owned(), state(CONNECTOR, live.connector_ready()?));
        Some(agents)
    }

    /// Statuses that are not what they should be.
    fn changes(&self, live: &Live, facts: &Facts<'_>, now: Instant) -> VecDeque<Change> {
        let at = Timestamp::now().strftime("%Y-%m-%dT%H:%M:%SZ").to_string();
        let communities = live.communities().filter_map(|(shown, dropped)| {
            let status = conditions::community(&shown, dropped, facts, &at);
            (status != *shown.status).then(|| Change {
                object: key(Kind::Community, shown.name),
                uid: shown.uid.to_owned(),
                notes: events::of_transition(shown.name, shown.uid, shown.status, &status),
                status: Wanted::Community(status),
            })
        });
        let clusters = live.clusters().filter_map(|shown| {
            let status = conditions::cluster(&shown, facts, &at);
            (status != *shown.status).then(|| Change {
                object: key(Kind::Cluster, shown.name),
                uid: shown.uid.to_owned(),
                notes: Vec::new(),
                status: Wanted::Cluster(status),
            })
        });
        // Kind by kind, and by name in each: as keys are ordered.
        let mut changes: Vec<Change> = communities
            .chain(clusters)
            .filter(|change| !self.busy.contains(&change.object) && !self.fails(Some(&change.object), now))
            .collect();
        let behind = changes.partition_point(|change| Some(&change.object) <= self.last.as_ref());
        changes.rotate_left(behind);
        changes.into()
    }

    /// Whether it failed, and is not to be tried yet.
    fn fails(&self, object: Option<&Key>, now: Instant) -> bool {
        self.failing
            .get(&object.cloned())
            .is_some_and(|failing| failing.retry > now)
    }

    fn start(&mut self) {
        while self.running.len() < CONCURRENCY {
            if let Some(saying) = self.sayings.pop_front() {
                let (api, instance) = (self.events.clone(), self.instance.clone());
                self.running.spawn(async move {
                    let result = say(&api, &instance, &saying).await;
                    Outcome::Event(saying.note, result)
                });
            } else if let Some(change) = self.queue.pop_front() {
                self.busy.insert(change.object.clone());
                self.last = Some(change.object.clone());
                let api = match change.status {
                    Wanted::Community(_) => self.communities.clone(),
                    Wanted::Cluster(_) => self.clusters.clone(),
                };
                self.running.spawn(async move {
                    let result = write(&api, &change).await;
                    Outcome::Status(Box::new(change), result)
                });
            } else {
                return;
            }
        }
    }

    /// Takes its turn; returns whether there is a failure to report.
    pub fn take(&mut self, turn: Turn, live: &mut Live) -> bool {
        let now = Instant::now();
        let Turn::Take(outcome) = turn else {
            self.plan(live);
            return false;
        };
        let failed = match *outcome {
            Outcome::Status(change, result) => {
                self.busy.remove(&change.object);
                self.status_written(*change, result, live, now)
            }
            Outcome::Event(note, result) => {
                self.metrics
                    .told(Told::Event, result.as_ref().ok().map(|counted| counted.wrote));
                match result {
                    Ok(counted) => {
                        self.failing.remove(&None);
                        self.book.said(&note, counted.count);
                        false
                    }
                    Err(source) => {
                        let object = note.object.clone();
                        self.book.forget(&note);
                        self.failed(None, Some(&Error::Event { object, source }), now);
                        true
                    }
                }
            }
        };
        self.start();
        if self.running.is_empty() {
            // Who was being written is not in a plan, whatever changed meanwhile.
            self.soon();
        }
        failed
    }

    fn status_written(
        &mut self,
        change: Change,
        result: Result<Option<String>, kube::Error>,
        live: &mut Live,
        now: Instant,
    ) -> bool {
        let Change {
            object,
            uid,
            status,
            notes,
        } = change;
        match result {
            Ok(version) => {
                let version = version.as_deref();
                self.metrics.told(Told::Status, Some(true));
                self.failing.remove(&Some(object.clone()));
                match status {
                    Wanted::Community(status) => {
                        live.community_statuses()
                            .written(&object.name, &uid, status, version);
                    }
                    Wanted::Cluster(status) => {
                        live.cluster_statuses()
                            .written(&object.name, &uid, status, version);
                    }
                }
                if !self.fails(None, now) {
                    self.sayings.extend(self.book.happened(notes, now));
                }
                false
            }
            // Gone, or another one of that name by now: its watch tells.
            Err(kube::Error::Api(status)) if status.code == 404 || status.code == 409 => {
                self.failed(Some(object), None, now);
                false
            }
            Err(source) => {
                self.metrics.told(Told::Status, None);
                let error = Error::Status {
                    object: object.clone(),
                    source,
                };
                self.failed(Some(object), Some(&error), now);
                true
            }
        }
    }

    fn failed(&mut self, what: Option<Key>, error: Option<&Error>, now: Instant) {
        let before = self.failing.get(&what);
        if before.is_some_and(|before| before.retry > now) {
            // One of several that were under way: one pause for all.
            return;
        }
        let pause = before.map_or(PAUSES.0, |failing| (failing.pause * 2).min(PAUSES.1));
        let failing = Failing {
            text: error.map(|error| chain(error)),
            retry: now + pause,
            pause,
        };
        self.failing.insert(what, failing);
        self.at(now + pause);
    }

    /// What cannot be told at present.
    pub fn failures(&self) -> impl Iterator<Item = String> + '_ {
        self.failing.values().filter_map(|failing| failing.text.clone())
    }
}

/// The next request that is over.
async fn finished(running: &mut JoinSet<Outcome>) -> Outcome {
    match running.join_next().await {
        Some(Ok(outcome)) => outcome,
        // Never aborted, and a panic is not ours to hide.
        Some(Err(error)) => std::panic::resume_unwind(error.into_panic()),
        None => std::future::pending().await,
    }
}

/// Applies a status; the uid keeps it from another object of the same name.
async fn write(api: &Api<DynamicObject>, change: &Change) -> Result<Option<String>, kube::Error> {
    let status = match &change.status {
        Wanted::Community(status) => json!(status),
        // Without what the network API writes: it may be newer.
        Wanted::Cluster(status) => json!(ClusterStatus {
            registration: None,
            refused: Vec::new(),
            ..status.clone()
        }),
    };
    let name = &change.object.name;
    let object = json!({
        "apiVersion": API_VERSION,
        "kind": format!("{:?}", change.object.kind),
        "metadata": {"name": name, "uid": change.uid},
        "status": status,
    });
    let params = PatchParams::apply(STATUS_MANAGER).force();
    let written = api.patch_status(name, &params, &Patch::Apply(&object)).await?;
    Ok(written.metadata.resource_version)
}

/// Makes an Event, or counts it up where it is there already.
async fn say(api: &Api<Event>, instance: &str, saying: &Saying) -> Result<Counted, kube::Error> {
    let at = Timestamp::now();
    let name = saying.note.name();
    let again = async |count: i32| {
        let counted = Counted {
            count: count.saturating_add(1),
            wrote: true,
        };
        let patch = json!({"count": counted.count, "lastTimestamp": Time(at)});
        let patched = self::patch(api, &name, patch).await;
        patched.map(|event| event.map(|_| counted))
    };
    // What was said before may have been forgotten since.
    if let Some(count) = saying.count
        && let Some(counted) = again(count).await?
    {
        return Ok(counted);
    }
    let event = saying.note.event(instance, Time(at));
    match api.create(&PostParams::default(), &event).await {
        Err(kube::Error::Api(status)) if status.code == 409 => {}
        created => {
            return created.map(|_| Counted {
                count: 1,
                wrote: true,
            });
        }
    }
    // An operator before this one said it. A patch of nothing reads it, and needs no further permission.
    let found = patch(api, &name, json!({})).await?;
    let count = found.and_then(|event| event.count).unwrap_or(1);
    if saying.happened
        && let Some(counted) = again(count).await?
    {
        return Ok(counted);
    }
    Ok(Counted { count, wrote: false })
}

/// Patches an Event; none when it is not there.
async fn patch(api: &Api<Event>, name: &str, patch: serde_json::Value) -> Result<Option<Event>, kube::Error> {
    let params = PatchParams {
        field_manager: Some(MANAGER.to_owned()),
        ..PatchParams::default()
    };
    match api.patch(name, &params, &Patch::Merge(patch)).await {
        Err(kube::Error::Api(status)) if status.code == 404 => Ok(None),
        patched => patched.map(Some),
    }
}

fn key(kind: Kind, name: &str) -> Key {
    Key {
        kind,
        name: name.to_owned(),
    }
}
