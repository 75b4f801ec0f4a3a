//! `fabedge-operator uninstall`: ends the operator, has every node cleaned by a pod that runs the agent's `cleanup`, and
//! removes what the operator made. Definitions and custom resources stay.

mod cleanup_pod;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::{StreamExt as _, stream};
use k8s_openapi::api::apps::v1::{DaemonSet, Deployment};
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::{ConfigMap, Event, Node, Pod, PodSpec, PodTemplate, Secret};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use k8s_openapi::jiff::Timestamp;
use kube::api::{ApiResource, DeleteParams, DynamicObject, ListParams, PostParams};
use kube::core::GroupVersionKind;
use kube::{Api, Client, Config, Resource, ResourceExt};
use serde::de::DeserializeOwned;

use super::events::{self, Note};
use super::pods::{observed, template};
use super::{MANAGER, authority, lease, objects};
use crate::args;
use crate::observe::manifest::{Key, Kind};
use crate::reporter::chain;
use cleanup_pod as cleanup;

/// Nodes that are being cleaned at a time: for most of it their kubelets are waited for.
const NODES: usize = 64;

/// Requests under way at a time when many objects are removed.
const CONCURRENCY: usize = 16;

/// The pause between two looks at something that takes its time.
const PAUSE: Duration = Duration::from_millis(500);

/// For how long the operator's pods are waited for: one on a node that is off never goes.
const OPERATOR_PATIENCE: Duration = Duration::from_secs(40);

/// What is left of the time, at most, for removing what the operator made.
const RESERVE: Duration = Duration::from_secs(30);

/// What the nodes' pods are called by, in label `fabedge.io/app`.
const OPERATOR: &str = "fabedge-operator";
const CONNECTOR: &str = "fabedge-connector";
const CLOUD_AGENT: &str = "fabedge-cloud-agent";

/// Why an uninstallation stopped. It can be started again, and goes on where it was.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// No API to talk to.
    #[error("finding the Kubernetes API: neither a kubeconfig nor a service account is here")]
    Config(#[source] kube::config::InferConfigError),
    /// The client could not be made.
    #[error("making a client of the Kubernetes API")]
    Client(#[source] kube::Error),
    /// The API refused, or did not answer.
    #[error("{action} {object}")]
    Api {
        /// What was attempted.
        action: &'static str,
        /// On which object.
        object: String,
        /// Why it failed.
        source: kube::Error,
    },
}

fn api(action: &'static str, object: impl fmt::Display) -> impl FnOnce(kube::Error) -> Error {
    let object = object.to_string();
    move |source| Error::Api {
        action,
        object,
        source,
    }
}

/// Why there is an Event about a node.
const NOT_CLEANED: &str = "NotCleaned";

/// How it went on one node.
#[derive(Debug)]
enum Outcome {
    Cleaned,
    Failed(String),
    Offline,
    Silent(&'static str),
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const MEND: &str = "to finish, run `fabedge-agent cleanup` there";
        match self {
            Self::Cleaned => f.write_str("cleaned"),
            Self::Failed(why) => write!(f, "cleaning failed, {MEND}: {why}"),
            Self::Offline => write!(f, "offline: {MEND} once it is back"),
            Self::Silent(what) => write!(f, "{what} in time: {MEND}"),
        }
    }
}

/// Uninstalls. What happens is told on stdout.
///
/// # Errors
/// When the API refuses something. That a node cannot be reached is none.
pub async fn run(args: &args::Uninstall) -> Result<(), Error> {
    let config = Config::infer().await.map_err(Error::Config)?;
    let client = Client::try_from(config).map_err(Error::Client)?;
    let time = Duration::from_secs(args.timeout);
    let uninstall = Uninstall {
        client,
        namespace: args.namespace.clone(),
        deadline: Instant::now() + time - RESERVE.min(time / 4),
    };
    uninstall.all().await
}

struct Uninstall {
    client: Client,
    namespace: String,
    /// When nodes are no longer waited for.
    deadline: Instant,
}

/// What is to be done on one node.
struct Task {
    node: String,
    /// Of its Node, if there is one.
    uid: Option<String>,
    /// Whether it is heard of.
    online: bool,
    /// Its agents' pods, and whether there is nobody else to take them down.
    pods: Vec<(String, bool)>,
    spec: Arc<PodSpec>,
}

impl Uninstall {
    async fn all(&self) -> Result<(), Error> {
        // First of all, for it makes again what is removed.
        self.delete_workloads::<Deployment>("Deployment", OPERATOR)
            .await?;
        self.operator_gone().await?;
        let tasks = self.tasks().await?;
        self.delete_workloads::<Deployment>("Deployment", CONNECTOR)
            .await?;
        self.delete_workloads::<DaemonSet>("DaemonSet", CLOUD_AGENT)
            .await?;

        println!("nodes to clean: {}", tasks.len());
        let jobs = tasks.into_iter().map(|task| async move {
            let outcome = self.clean(&task).await;
            let outcome = outcome.unwrap_or_else(|error| Outcome::Failed(chain(&error)));
            println!("{}: {outcome}", task.node);
            let cleaned = matches!(outcome, Outcome::Cleaned);
            if let (Some(uid), false) = (&task.uid, cleaned) {
                self.tell(&task.node, uid, &outcome).await;
            }
            cleaned
        });
        let cleaned: Vec<bool> = stream::iter(jobs).buffer_unordered(NODES).collect().await;
        let left = cleaned.iter().filter(|cleaned| !**cleaned).count();
        if left > 0 {
            println!("{left} of {} nodes were not cleaned: see above", cleaned.len());
        }
        self.remove_objects().await
    }

    /// Deletes what keeps pods of a component running.
    async fn delete_workloads<K>(&self, kind: &'static str, app: &str) -> Result<(), Error>
    where
        K: Resource<DynamicType = (), Scope = kube::core::NamespaceResourceScope>
            + Clone
            + fmt::Debug
            + DeserializeOwned,
    {
        let workloads: Api<K> = self.namespaced();
        for name in self
            .names(&workloads, kind, &format!("{}={app}", objects::APP))
            .await?
        {
            delete(&workloads, kind, &name, &DeleteParams::background()).await?;
            println!("deleted {kind} {name}");
        }
        Ok(())
    }

    async fn operator_gone(&self) -> Result<(), Error> {
        let pods: Api<Pod> = self.namespaced();
        let until = (Instant::now() + OPERATOR_PATIENCE).min(self.deadline);
        loop {
            // Not that of the Job in which this runs.
            let labels = format!("{}={OPERATOR},!job-name", objects::APP);
            let left = self.names(&pods, "Pods", &labels).await?;
            if left.is_empty() {
                return Ok(());
            }
            if Instant::now() > until {
                println!(
                    "pods of the operator that do not end, and are left to themselves: {}",
                    left.join(", ")
                );
                return Ok(());
            }
            tokio::time::sleep(PAUSE).await;
        }
    }

    /// Which nodes have to be cleaned: those with a pod of an agent, and edges whose pod an earlier attempt has taken
    /// down.
    async fn tasks(&self) -> Result<Vec<Task>, Error> {
        let mut ran = Ran::default();
        let pods: Api<Pod> = self.namespaced();
        let apps = format!(
            "{} in ({}, {CONNECTOR}, {CLOUD_AGENT})",
            objects::APP,
            template::NAME
        );
        pages(&pods, "Pods", &apps, |pod| {
            let spec = pod.spec.clone().unwrap_or_default();
            if let (Some(node), Some(cleanup)) = (&spec.node_name, cleanup::spec(&spec)) {
                // Those of a Deployment that is gone would come back while its ReplicaSet is still there.
                let alone = pod.labels().contains_key(objects::CREATED_BY);
                ran.add(node.clone(), Some((pod.name_any(), alone)), cleanup);
            }
        })
        .await?;
        let cleaning = format!("{}={}", objects::APP, cleanup::APP);
        pages(&pods, "Pods", &cleaning, |pod| {
            let spec = pod.spec.clone().unwrap_or_default();
            if let (Some(node), Some(cleanup)) = (&spec.node_name, cleanup::spec(&spec)) {
                ran.add(node.clone(), None, cleanup);
            }
        })
        .await?;
        let templates: Api<PodTemplate> = self.namespaced();
        let template = templates
            .get_opt(template::NAME)
            .await
            .map_err(api("reading", format!("PodTemplate {}", template::NAME)))?;
        let template = template.and_then(|object| cleanup::spec(&object.template?.spec?));
        if let Some(template) = template {
            let maps: Api<ConfigMap> = self.namespaced();
            for map in self.names(&maps, "ConfigMaps", &ours()).await? {
                if let Some(node) = map.strip_prefix(objects::NODE_CONFIG) {
                    ran.add(node.to_owned(), None, template.clone());
                }
            }
        }
        let mut nodes = BTreeMap::new();
        pages(&Api::<Node>::all(self.client.clone()), "Nodes", "", |node| {
            let known = (node.uid().unwrap_or_default(), observed::online(node));
            nodes.insert(node.name_any(), known);
        })
        .await?;
        let task = |(node, (pods, spec)): (String, Agents)| {
            let (uid, online) = nodes.remove(&node).unzip();
            Task {
                uid,
                online: online.unwrap_or(false),
                node,
                pods,
                spec,
            }
        };
        Ok(ran.nodes.into_iter().map(task).collect())
    }

    /// Takes the agent down and removes its traces.
    async fn clean(&self, task: &Task) -> Result<Outcome, Error> {
        let pods: Api<Pod> = self.namespaced();
        let now = DeleteParams::default().grace_period(0);
        let (Some(uid), true) = (&task.uid, task.online) else {
            for (name, _) in &task.pods {
                delete(&pods, "Pod", name, &now).await?;
            }
            return Ok(Outcome::Offline);
        };
        // They stop as they do otherwise: charon takes leave of its peers.
        for (name, _) in task.pods.iter().filter(|(_, alone)| *alone) {
            delete(&pods, "Pod", name, &DeleteParams::default()).await?;
        }
        for (name, _) in &task.pods {
            if self
                .wait(&pods, name, |pod| pod.is_none().then_some(()))
                .await?
                .is_none()
            {
                delete(&pods, "Pod", name, &now).await?;
                return Ok(Outcome::Silent("its agent was not stopped"));
            }
        }
        let pod = cleanup::pod(&task.node, uid, &task.spec);
        let name = pod.name_any();
        match pods.create(&PostParams::default(), &pod).await {
            // Of an earlier attempt.
            Err(kube::Error::Api(status)) if status.code == 409 => {}
            result => _ = result.map_err(api("making", format!("Pod {name}")))?,
        }
        let outcome = self.wait(&pods, &name, ended).await?;
        delete(&pods, "Pod", &name, &now).await?;
        Ok(outcome.unwrap_or(Outcome::Silent("it did not clean up")))
    }

    /// Says of a node that it is not clean, where that can be read when the Job is gone with its log.
    async fn tell(&self, node: &str, uid: &str, outcome: &Outcome) {
        let object = Key {
            kind: Kind::Node,
            name: node.to_owned(),
        };
        let message = format!("FabEdge was uninstalled; {outcome}");
        let event =
            Note::new(object, uid, true, NOT_CLEANED, &message).event(MANAGER, Time(Timestamp::now()));
        let events: Api<Event> = Api::namespaced(self.client.clone(), events::NAMESPACE);
        match events.create(&PostParams::default(), &event).await {
            // An earlier attempt said it.
            Err(kube::Error::Api(status)) if status.code == 409 => {}
            Err(error) => println!("writing an Event about Node {node}: {}", chain(&error)),
            Ok(_) => {}
        }
    }

    /// Looks at a pod until something can be told of it; none when time is over.
    async fn wait<T>(
        &self,
        pods: &Api<Pod>,
        name: &str,
        tell: impl Fn(Option<&Pod>) -> Option<T>,
    ) -> Result<Option<T>, Error> {
        loop {
            let pod = pods
                .get_opt(name)
                .await
                .map_err(api("reading", format!("Pod {name}")))?;
            let told = tell(pod.as_ref());
            if told.is_some() || Instant::now() > self.deadline {
                return Ok(told);
            }
            tokio::time::sleep(PAUSE).await;
        }
    }

    /// Removes what the operator made.
    async fn remove_objects(&self) -> Result<(), Error> {
        let now = DeleteParams::default().grace_period(0);
        self.remove::<Pod>("Pod", &ours(), &now).await?;
        self.remove::<ConfigMap>("ConfigMap", &ours(), &DeleteParams::default())
            .await?;
        self.remove::<Secret>("Secret", &ours(), &DeleteParams::default())
            .await?;
        delete(
            &self.namespaced::<Secret>(),
            "Secret",
            authority::SECRET,
            &DeleteParams::default(),
        )
        .await?;
        delete(
            &self.namespaced::<Lease>(),
            "Lease",
            lease::NAME,
            &DeleteParams::default(),
        )
        .await?;
        let kind = GroupVersionKind::gvk("crd.projectcalico.org", "v1", "IPPool");
        let kind = ApiResource::from_gvk_with_plural(&kind, "ippools");
        let pools: Api<DynamicObject> = Api::all_with(self.client.clone(), &kind);
        match self.names(&pools, "IPPools", &ours()).await {
            Ok(names) => {
                for name in names {
                    delete(&pools, "IPPool", &name, &DeleteParams::default()).await?;
                    println!("deleted IPPool {name}");
                }
            }
            // Without Calico there are none, and with Flannel none that we may see.
            Err(Error::Api {
                source: kube::Error::Api(status),
                ..
            }) if matches!(status.code, 403 | 404) => {}
            Err(error) => return Err(error),
        }
        println!("done; definitions, Communities and Clusters stay");
        Ok(())
    }

    async fn remove<K>(&self, kind: &'static str, labels: &str, how: &DeleteParams) -> Result<(), Error>
    where
        K: Resource<DynamicType = (), Scope = kube::core::NamespaceResourceScope>
            + Clone
            + fmt::Debug
            + DeserializeOwned,
    {
        let objects: Api<K> = self.namespaced();
        let names = self.names(&objects, kind, labels).await?;
        let count = names.len();
        let jobs = names.iter().map(|name| delete(&objects, kind, name, how));
        let done: Vec<Result<(), Error>> = stream::iter(jobs).buffer_unordered(CONCURRENCY).collect().await;
        done.into_iter().collect::<Result<(), Error>>()?;
        if count > 0 {
            println!("deleted {count} of kind {kind}");
        }
        Ok(())
    }

    fn namespaced<K>(&self) -> Api<K>
    where
        K: Resource<DynamicType = (), Scope = kube::core::NamespaceResourceScope>,
    {
        Api::namespaced(self.client.clone(), &self.namespace)
    }

    /// Names of the objects with these labels.
    async fn names<K>(&self, api: &Api<K>, what: &'static str, labels: &str) -> Result<Vec<String>, Error>
    where
        K: Clone + fmt::Debug + DeserializeOwned,
    {
        let mut names = Vec::new();
        let mut params = ListParams::default().labels(labels).limit(PAGE);
        loop {
            let page = api
                .list_metadata(&params)
                .await
                .map_err(self::api("listing", what))?;
            names.extend(page.items.into_iter().filter_map(|object| object.metadata.name));
            match page.metadata.continue_.filter(|token| !token.is_empty()) {
                Some(token) => params.continue_token = Some(token),
                None => return Ok(names),
            }
        }
    }
}

/// Objects in a page of a list.
const PAGE: u32 = 100;

/// The pods of a node's agents, and what cleans up after them.
type Agents = (Vec<(String, bool)>, Arc<PodSpec>);

/// The same by node. What the pods of ten thousand edges are cleaned by is the same.
#[derive(Default)]
struct Ran {
    nodes: BTreeMap<String, Agents>,
    specs: Vec<Arc<PodSpec>>,
}

impl Ran {
    fn add(&mut self, node: String, pod: Option<(String, bool)>, spec: PodSpec) {
        let spec = match self.specs.iter().find(|known| ***known == spec) {
            Some(known) => Arc::clone(known),
            None => {
                let new = Arc::new(spec);
                self.specs.push(Arc::clone(&new));
                new
            }
        };
        let (pods, _) = self.nodes.entry(node).or_insert_with(|| (Vec::new(), spec));
        pods.extend(pod);
    }
}

/// The label of what the operator made.
fn ours() -> String {
    format!("{}={MANAGER}", objects::CREATED_BY)
}

/// What a cleanup pod has come to, once it has.
fn ended(pod: Option<&Pod>) -> Option<Outcome> {
    let Some(pod) = pod else {
        return Some(Outcome::Failed("its pod was deleted by somebody else".to_owned()));
    };
    let status = pod.status.as_ref()?;
    match status.phase.as_deref() {
        Some("Succeeded") => Some(Outcome::Cleaned),
        Some("Failed") => {
            let containers = status.container_statuses.iter().flatten();
            let said: BTreeSet<&str> = containers
                .filter_map(|container| container.state.as_ref()?.terminated.as_ref()?.message.as_deref())
                .chain(status.message.as_deref())
                .chain(status.reason.as_deref())
                .map(str::trim)
                .collect();
            Some(Outcome::Failed(said.into_iter().collect::<Vec<_>>().join("; ")))
        }
        _ => None,
    }
}

async fn delete<K>(from: &Api<K>, kind: &str, name: &str, how: &DeleteParams) -> Result<(), Error>
where
    K: Clone + fmt::Debug + DeserializeOwned,
{
    match from.delete(name, how).await {
        Err(kube::Error::Api(status)) if status.code == 404 => Ok(()),
        result => result
            .map(|_| ())
            .map_err(api("deleting", format!("{kind} {name}"))),
    }
}

/// Calls `see` with every object that has these labels, page by page, so that few are in memory at a time.
async fn pages<K>(
    from: &Api<K>,
    what: &'static str,
    labels: &str,
    mut see: impl FnMut(&K),
) -> Result<(), Error>
where
    K: Clone + fmt::Debug + DeserializeOwned,
{
    let mut params = ListParams::default().labels(labels).limit(PAGE);
    loop {
        let page = from.list(&params).await.map_err(api("listing", what))?;
        page.items.iter().for_each(&mut see);
        match page.metadata.continue_.filter(|token| !token.is_empty()) {
            Some(token) => params.continue_token = Some(token),
            None => return Ok(()),
        }
    }
}
