//! The agents' pods: one for every edge that has a document and a certificate, made of the chart's PodTemplate.
//!
//! They are kept beside the passes over the topology: a thousand pods that come up do not hold up a document.

pub mod observed;
pub mod plan;
pub mod template;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

use fabedge_common::config::CONNECTOR;
use k8s_openapi::api::core::v1::Pod;
use kube::api::{DeleteParams, Patch, PatchParams, PostParams, Preconditions};
use kube::{Api, Client, ResourceExt};
use serde_json::json;
use time::OffsetDateTime;
use tokio::task::JoinSet;
use tracing::{debug, info};

use super::live::Live;
use super::publish::Publisher;
use super::{MANAGER, RETRY, objects};
use crate::finding::Finding;
use crate::reporter::chain;
use crate::topology::Topology;
pub use observed::{AgentPod, ConnectorPod};
use plan::{Action, Plan, State, Want};
use template::Arguments;
pub use template::Template;

/// Requests under way at a time, beside those of the passes.
const CONCURRENCY: usize = 16;

/// Pods' events that arrive within this time are taken together: when thousands come up, they never end.
const DEBOUNCE: Duration = Duration::from_millis(100);

/// For how long the watch is waited for after a change.
const SETTLING: Duration = Duration::from_secs(2);

/// Why a pod is not as it should be.
#[derive(Debug, thiserror::Error)]
enum Error {
    #[error("{action} Pod {pod}")]
    Api {
        action: &'static str,
        pod: String,
        source: kube::Error,
    },
    #[error("making Pod {0}: one of that name is there that the operator did not make: delete it")]
    Foreign(String),
}

/// What came of an action.
#[derive(Debug)]
pub struct Done {
    node: String,
    action: Action,
    /// The version that the pod then had.
    result: Result<Option<u64>, Error>,
}

/// What is to be done next.
#[derive(Debug)]
pub enum Turn {
    /// [`Pods::plan`].
    Plan,
    /// [`Pods::take`] of this.
    Take(Done),
}

/// Keeps them.
#[derive(Debug)]
pub struct Pods {
    api: Api<Pod>,
    template: Option<Arc<Template>>,
    wanted: BTreeMap<String, Want>,
    /// Arguments of those who have any.
    arguments: BTreeMap<String, Arguments>,
    keep: Option<BTreeSet<String>>,
    /// Hash of the connector's certificate.
    certificate: Option<String>,
    queue: VecDeque<(Action, String)>,
    running: JoinSet<Done>,
    busy: BTreeSet<String>,
    /// Nodes whose pod was changed, to which version and when, until the watch has shown it.
    settling: BTreeMap<String, (u64, Instant)>,
    touched: BTreeMap<String, OffsetDateTime>,
    /// What failed, and when.
    failures: BTreeMap<String, (String, Instant)>,
    /// When to plan again.
    next: Option<Instant>,
    /// How many wait to be replaced.
    waiting: usize,
    /// Made and patched since it was said.
    made: usize,
    patched: usize,
}

impl Pods {
    /// Keeps the pods of `namespace`; touches nothing yet.
    pub fn new(client: Client, namespace: &str) -> Self {
        Self {
            api: Api::namespaced(client, namespace),
            template: None,
            wanted: BTreeMap::new(),
            arguments: BTreeMap::new(),
            keep: None,
            certificate: None,
            queue: VecDeque::new(),
            running: JoinSet::new(),
            busy: BTreeSet::new(),
            settling: BTreeMap::new(),
            touched: BTreeMap::new(),
            failures: BTreeMap::new(),
            next: None,
            waiting: 0,
            made: 0,
            patched: 0,
        }
    }

    /// Takes what a pass computed; returns what is wrong with the input. `whole` says that no node is left out
    /// because it could not be read.
    pub fn want(
        &mut self,
        topology: &Topology,
        live: &Live,
        publisher: &Publisher,
        whole: bool,
    ) -> Vec<Finding> {
        let mut findings = Vec::new();
        self.template = live.template().cloned();
        if self.template.is_none() && live.template_listed() {
            findings.push(Finding::error(
                format!("PodTemplate {}", template::NAME),
                "metadata.name",
                "is missing or cannot be used, so no agent's pod is made or changed: install the chart's again (helm \
                 upgrade)",
            ));
        }
        self.wanted.clear();
        self.arguments.clear();
        for name in topology.edges.keys() {
            let Some((node, uid)) = live.node(name).zip(live.node_uid(name)) else {
                continue;
            };
            let (arguments, wrong) = template::arguments(name, &node.arguments);
            findings.extend(wrong);
            let Some(document) = publisher.published(name) else {
                continue;
            };
            let want = Want {
                node: uid.to_owned(),
                online: live.online(name),
                hash: self.template.as_ref().map(|template| template.hash(&arguments)),
                document: document.to_owned(),
            };
            self.wanted.insert(name.clone(), want);
            if !arguments.is_empty() {
                self.arguments.insert(name.clone(), arguments);
            }
        }
        let edges = topology.edges.keys().chain(&topology.unresolved);
        self.keep = whole.then(|| edges.cloned().collect());
        self.certificate = publisher.certified(CONNECTOR);
        self.touched
            .retain(|name, _| self.wanted.contains_key(name) || live.connectors().contains_key(name));
        self.next = Some(Instant::now());
        findings
    }

    /// Has the pods looked at, in a moment.
    pub fn soon(&mut self) {
        self.within(DEBOUNCE);
    }

    fn within(&mut self, time: Duration) {
        let at = Instant::now() + time;
        self.next = Some(self.next.map_or(at, |next| next.min(at)));
    }

    /// Resolves when it is time to plan, or an action is over. Cancel-safe.
    pub async fn turn(&mut self) -> Turn {
        let next = self.next;
        let due = async {
            match next {
                Some(next) => tokio::time::sleep_until(next.into()).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            done = finished(&mut self.running) => Turn::Take(done),
            () = due => Turn::Plan,
        }
    }

    /// Plans, and begins with what is to be done.
    pub fn plan(&mut self, live: &Live, now: OffsetDateTime) {
        self.next = None;
        let Some(pods) = live.agents() else { return };
        let connectors = live.connectors();
        self.failures.retain(|name, _| {
            pods.contains_key(name) || self.wanted.contains_key(name) || connectors.contains_key(name)
        });
        let failed = |(_, since): &(String, Instant)| since.elapsed() < RETRY;
        // The answers themselves are no news: the watch may have shown later versions, or that the pod is gone.
        let shown = live.agents_version();
        self.settling
            .retain(|_, (version, since)| *version > shown && since.elapsed() < SETTLING);
        if !self.settling.is_empty() {
            self.within(SETTLING);
        }
        let mut busy = self.busy.clone();
        busy.extend(self.settling.keys().cloned());
        busy.extend(
            self.failures
                .iter()
                .filter(|(_, failure)| failed(failure))
                .map(|(name, _)| name.clone()),
        );
        let state = State {
            wanted: &self.wanted,
            keep: self.keep.as_ref(),
            pods,
            connectors,
            certificate: self.certificate.as_deref(),
            busy: &busy,
            touched: &self.touched,
        };
        let Plan {
            actions,
            next,
            waiting,
        } = plan::plan(&state, now);
        if waiting != self.waiting {
            debug!(waiting, "pods are being replaced");
            self.waiting = waiting;
        }
        // What failed before and is no longer needed is over.
        self.failures
            .retain(|name, failure| failed(failure) || actions.iter().any(|(_, other)| other == name));
        self.queue = actions.into();
        if let Some(next) = next {
            self.within((next - now).try_into().unwrap_or_default());
        }
        self.begin(live);
    }

    /// Begins actions, as many as may be under way.
    fn begin(&mut self, live: &Live) {
        while self.running.len() < CONCURRENCY {
            let Some((action, node)) = self.queue.pop_front() else {
                break;
            };
            let uid = live
                .agents()
                .and_then(|pods| pods.get(&node))
                .map(|pod| pod.uid.clone());
            let job = self.job(&action, &node, uid);
            self.busy.insert(node.clone());
            self.running.spawn(async move {
                let result = job.await;
                Done { node, action, result }
            });
        }
    }

    fn job(
        &self,
        action: &Action,
        node: &str,
        uid: Option<String>,
    ) -> impl Future<Output = Result<Option<u64>, Error>> + use<> {
        let api = self.api.clone();
        let name = match action {
            Action::TouchConnector(_) => node.to_owned(),
            _ => format!("{}{node}", template::PREFIX),
        };
        let arguments = self.arguments.get(node).cloned().unwrap_or_default();
        let work = match action {
            Action::Create => {
                let want = self.wanted.get(node).zip(self.template.as_ref());
                want.map(|(want, template)| {
                    Work::Create(Box::new(template.pod(
                        node,
                        &want.node,
                        &arguments,
                        &want.document,
                    )))
                })
            }
            Action::Patch => self
                .template
                .as_ref()
                .map(|template| Work::Patch(template.images(&arguments))),
            Action::Touch(text) | Action::TouchConnector(text) => {
                let annotations = json!({template::DOCUMENT_HASH: text});
                Some(Work::Patch(json!({"metadata": {"annotations": annotations}})))
            }
            Action::Delete(_) => Some(Work::Delete(uid)),
        };
        async move {
            match work {
                Some(work) => work.run(&api, name).await,
                None => Ok(None),
            }
        }
    }

    /// Takes notice of what came of an action, and begins the next. Returns whether it failed.
    pub fn take(&mut self, done: Done, live: &Live, now: OffsetDateTime) -> bool {
        let Done { node, action, result } = done;
        self.busy.remove(&node);
        let failed = match result {
            Ok(version) => {
                self.failures.remove(&node);
                if let Some(version) = version {
                    self.settling.insert(node.clone(), (version, Instant::now()));
                }
                self.note(&action, node, now);
                false
            }
            Err(error) => {
                self.failures.insert(node, (chain(&error), Instant::now()));
                self.within(RETRY);
                true
            }
        };
        self.begin(live);
        self.soon();
        if self.running.is_empty() {
            let (made, patched) = (std::mem::take(&mut self.made), std::mem::take(&mut self.patched));
            if made > 0 {
                info!(count = made, "made agents' pods");
            }
            if patched > 0 {
                info!(count = patched, "gave new images to agents' pods");
            }
        }
        failed
    }

    fn note(&mut self, action: &Action, node: String, now: OffsetDateTime) {
        match action {
            Action::Create => self.made += 1,
            Action::Patch => self.patched += 1,
            Action::Touch(text) | Action::TouchConnector(text) => {
                debug!(node, text, "told a kubelet of its document");
                self.touched.insert(node, now);
            }
            Action::Delete(why) => info!(node, why, waiting = self.waiting, "deleted the agent's pod"),
        }
    }

    /// What could not be done.
    pub fn failures(&self) -> impl Iterator<Item = String> + '_ {
        self.failures.values().map(|(text, _)| text.clone())
    }
}

async fn finished(running: &mut JoinSet<Done>) -> Done {
    loop {
        match running.join_next().await {
            Some(Ok(done)) => return done,
            // No task of ours panics or is cancelled.
            Some(Err(error)) => tracing::error!(%error, "a task ended early"),
            None => std::future::pending().await,
        }
    }
}

/// A request.
enum Work {
    Create(Box<Pod>),
    Patch(serde_json::Value),
    Delete(Option<String>),
}

impl Work {
    /// Does it; returns which version the watch will show.
    async fn run(self, api: &Api<Pod>, name: String) -> Result<Option<u64>, Error> {
        let failed = |action| {
            let pod = name.clone();
            move |source| Error::Api { action, pod, source }
        };
        let gone = |error: &kube::Error, codes: &[u16]| matches!(error, kube::Error::Api(status) if codes.contains(&status.code));
        let seen = |pod| Ok(Some(observed::version(&pod)));
        match self {
            Self::Create(pod) => {
                let params = PostParams {
                    field_manager: Some(MANAGER.to_owned()),
                    ..PostParams::default()
                };
                match api.create(&params, &pod).await {
                    Ok(pod) => seen(pod),
                    Err(error) if gone(&error, &[409]) => {
                        let found = api.get_opt(&name).await.map_err(failed("reading"))?;
                        match found {
                            // The watch is behind.
                            Some(pod) if is_ours(&pod) => seen(pod),
                            Some(_) => Err(Error::Foreign(name)),
                            None => Ok(None),
                        }
                    }
                    Err(error) => Err(failed("making")(error)),
                }
            }
            Self::Patch(patch) => {
                let params = PatchParams {
                    field_manager: Some(MANAGER.to_owned()),
                    ..PatchParams::default()
                };
                // Patched, not applied: applying would make one that has just gone.
                match api.patch(&name, &params, &Patch::Strategic(patch)).await {
                    Ok(pod) => seen(pod),
                    Err(error) if gone(&error, &[404]) => Ok(None),
                    Err(error) => Err(failed("patching")(error)),
                }
            }
            Self::Delete(uid) => {
                let params = DeleteParams {
                    preconditions: Some(Preconditions {
                        uid,
                        ..Preconditions::default()
                    }),
                    ..DeleteParams::default()
                };
                match api.delete(&name, &params).await {
                    Ok(either) => Ok(either.left().as_ref().map(observed::version)),
                    // Somebody was quicker; perhaps there is another one of its name.
                    Err(error) if gone(&error, &[404, 409]) => Ok(None),
                    Err(error) => Err(failed("deleting")(error)),
                }
            }
        }
    }
}

fn is_ours(pod: &Pod) -> bool {
    pod.labels()
        .get(objects::CREATED_BY)
        .is_some_and(|by| by == MANAGER)
}
