//! What the API server has shown so far, kept as what the topology needs of it: a node's heartbeat changes nothing
//! here.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use k8s_openapi::api::core::v1 as core;
use kube::ResourceExt;
use kube::core::DynamicObject;
use kube::runtime::watcher::Event as Watched;
use serde::de::DeserializeOwned;

use super::authority;
use super::calico::Calico;
use super::conditions::{Dropped, Shown};
use super::custom::{Custom, Status};
use super::leader;
use super::pods::{AgentPod, ConnectorPod, Template, observed, template};
use super::publish::Publisher;
use crate::api::{ClusterSpec, ClusterStatus, CommunitySpec, CommunityStatus};
use crate::finding::Finding;
use crate::observe::convert;
use crate::observe::manifest::{Fault, Key, Kind};
use crate::snapshot::{Cluster, ClusterSnapshot, CniType, Community, Node};

/// Something that the API server showed.
#[derive(Debug)]
pub enum Event {
    /// A node. Boxed, as it is three times the size of the others.
    Node(Box<Watched<core::Node>>),
    /// A Community. Untyped, so that one that cannot be read costs itself and not the watch.
    Community(Watched<DynamicObject>),
    /// A Cluster, likewise.
    Cluster(Watched<DynamicObject>),
    /// A ConfigMap of ours.
    ConfigMap(Watched<core::ConfigMap>),
    /// A Secret of ours.
    Secret(Watched<core::Secret>),
    /// A pod of ours.
    Pod(Box<Watched<core::Pod>>),
    /// A pod of the connector's Deployment.
    Connector(Box<Watched<core::Pod>>),
    /// A pod of the operator's Deployment.
    Operator(Box<Watched<core::Pod>>),
    /// The PodTemplate of the agents' pods.
    Template(Box<Watched<core::PodTemplate>>),
    /// A block of addresses of Calico's.
    Block(Watched<DynamicObject>),
    /// An IP pool of Calico's.
    Pool(Watched<DynamicObject>),
    /// A kind that the API does not have, by its plural.
    Missing(&'static str),
}

/// What has to be looked at after an event.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Change {
    /// Nothing: it is known, or of no concern.
    Nothing,
    /// The pods: the topology is as it was.
    Pods,
    /// Everything.
    Everything,
}

impl Change {
    fn everything(if_it: bool) -> Self {
        if if_it { Self::Everything } else { Self::Nothing }
    }

    fn pods(if_it: bool) -> Self {
        if if_it { Self::Pods } else { Self::Nothing }
    }
}

/// Everything that was shown.
#[derive(Debug, Default)]
pub struct Live {
    nodes: Seen<LiveNode>,
    communities: Seen<Community>,
    clusters: Seen<Cluster>,
    community_statuses: Custom<CommunityStatus>,
    cluster_statuses: Custom<ClusterStatus>,
    /// Who went with the last change of a Community.
    dropped: BTreeMap<String, Dropped>,
    agents: Seen<AgentPod>,
    /// The newest version of an agent's pod that the watch showed; it shows them in order.
    agents_version: u64,
    connectors: Seen<ConnectorPod>,
    /// The node of the connector; while no pod of it has one, that of the last.
    connector_node: Option<String>,
    /// The operator's own pods, and whether they are labelled as the leader's.
    operators: Seen<bool>,
    templates: Seen<Arc<Template>>,
    /// Somebody has written the authority, or we have: it is to be read again.
    pub authority_changed: bool,
    /// Calico's objects, where it is the network plugin.
    pub calico: Option<Calico>,
}

#[derive(Debug, PartialEq)]
struct LiveNode {
    node: Node,
    uid: String,
    online: bool,
}

impl Live {
    /// Nothing yet.
    pub fn new(cni: CniType) -> Self {
        Self {
            calico: (cni == CniType::Calico).then(Calico::default),
            ..Self::default()
        }
    }

    /// Takes an event; returns what it changed.
    pub fn take(&mut self, event: Event, publisher: &mut Publisher) -> Change {
        match event {
            Event::Node(event) => Change::everything(self.nodes.take(*event, "Node", named, |object| {
                Ok(LiveNode {
                    node: convert::node(object)?,
                    uid: object.uid().unwrap_or_default(),
                    online: observed::online(object),
                })
            })),
            Event::Community(event) => Change::everything(self.community_seen(event)),
            Event::Cluster(event) => {
                let news = self.cluster_statuses.take(&event);
                let changed = self.clusters.take(event, "Cluster", named, |object| {
                    convert::cluster(&object.name_any(), &spec::<ClusterSpec>(object)?)
                });
                self.cluster_statuses
                    .retain(|name| self.clusters.name(name).is_some());
                Change::everything(changed || news)
            }
            Event::ConfigMap(event) => Change::everything(publisher.config_map_seen(&event)),
            Event::Secret(event) => {
                let authority = matches!(&event,
                    Watched::Apply(object) | Watched::Delete(object) if object.name_any() == authority::SECRET);
                self.authority_changed |= authority;
                Change::everything(publisher.secret_seen(&event) || authority)
            }
            Event::Pod(event) => Change::pods(self.agent_seen(*event)),
            Event::Connector(event) => self.connector_seen(*event),
            Event::Operator(event) => Change::everything(
                self.operators
                    .take(*event, "Pod", named, |pod| Ok(leader::has(pod))),
            ),
            Event::Template(event) => Change::everything(self.templates.take(
                *event,
                "PodTemplate",
                |object| Some(object.name_any()).filter(|name| name == template::NAME),
                |object| Template::new(object).map(Arc::new),
            )),
            Event::Block(event) => self.calico_seen(|calico| calico.take_block(event)),
            Event::Pool(event) => self.calico_seen(|calico| calico.take_pool(event)),
            Event::Missing(plural) => self.calico_seen(|calico| calico.take_missing(plural)),
        }
    }

    fn calico_seen(&mut self, take: impl FnOnce(&mut Calico) -> bool) -> Change {
        Change::everything(self.calico.as_mut().is_some_and(take))
    }

    /// Takes notice of a Community, and of who is no longer in it; returns whether it is news.
    fn community_seen(&mut self, event: Watched<DynamicObject>) -> bool {
        let name = match &event {
            Watched::Apply(object) | Watched::InitApply(object) => object.name_any(),
            _ => String::new(),
        };
        let uid = |statuses: &Custom<CommunityStatus>| statuses.get(&name).map(|about| about.uid.clone());
        let before = self.communities.good.get(&name).cloned();
        let of = uid(&self.community_statuses);
        let news = self.community_statuses.take(&event);
        let changed = self.communities.take(event, "Community", named, |object| {
            convert::community(&spec::<CommunitySpec>(object)?)
        });
        self.community_statuses
            .retain(|name| self.communities.name(name).is_some());
        if let Some((before, after)) = before.zip(self.communities.good.get(&name))
            && before != *after
        {
            let about = self.community_statuses.get(&name);
            let generation = about.and_then(|about| about.generation);
            match Dropped::between(&before, after, generation) {
                // Another one of that name replaces nobody.
                Some(dropped) if uid(&self.community_statuses) == of => {
                    self.dropped.insert(name, dropped);
                }
                _ => {
                    self.dropped.remove(&name);
                }
            }
        }
        self.dropped
            .retain(|name, _| self.communities.name(name).is_some());
        changed || news
    }

    fn agent_seen(&mut self, event: Watched<core::Pod>) -> bool {
        if let Watched::Apply(pod) | Watched::InitApply(pod) | Watched::Delete(pod) = &event {
            self.agents_version = self.agents_version.max(observed::version(pod));
        }
        self.agents
            .take(event, "Pod", observed::node_of, |pod| Ok(AgentPod::of(pod)))
    }

    fn connector_seen(&mut self, event: Watched<core::Pod>) -> Change {
        let news = self
            .connectors
            .take(event, "Pod", named, |pod| Ok(ConnectorPod::of(pod)));
        let pods = self.connectors.good.values().filter(|pod| pod.node.is_some());
        let node = pods.max_by_key(|pod| pod.ready).and_then(|pod| pod.node.clone());
        if node.is_some() && node != self.connector_node {
            self.connector_node = node;
            return Change::Everything;
        }
        Change::pods(news)
    }

    /// Whether every kind that the topology is made of was listed once: until then something that is missing may
    /// merely not have come yet.
    pub fn complete(&self) -> bool {
        let calico = self.calico.as_ref().and_then(Calico::awaited);
        let mut listed = [
            self.nodes.listed,
            self.communities.listed,
            self.clusters.listed,
            self.connectors.listed,
        ]
        .into_iter();
        listed.all(|listed| listed) && calico.is_none()
    }

    /// The agents' pods by the name of their node; none before all were listed.
    pub fn agents(&self) -> Option<&BTreeMap<String, AgentPod>> {
        self.agents.listed.then_some(&self.agents.good)
    }

    /// How far the watch of the agents' pods has come.
    pub fn agents_version(&self) -> u64 {
        self.agents_version
    }

    /// Pods of the connector by their names.
    pub fn connectors(&self) -> &BTreeMap<String, ConnectorPod> {
        &self.connectors.good
    }

    /// Whether a pod of the connector is ready; none before they were listed.
    pub fn connector_ready(&self) -> Option<bool> {
        self.connectors
            .listed
            .then(|| self.connectors.good.values().any(|pod| pod.ready))
    }

    /// The operator's own pods, and whether they are labelled as the leader's.
    pub fn operators(&self) -> &BTreeMap<String, bool> {
        &self.operators.good
    }

    /// What agents' pods are made of.
    pub fn template(&self) -> Option<&Arc<Template>> {
        self.templates.good.get(template::NAME)
    }

    /// Whether it was looked for.
    pub fn template_listed(&self) -> bool {
        self.templates.listed
    }

    /// The snapshot, and what is wrong with its objects.
    pub fn snapshot(&self) -> (ClusterSnapshot, Vec<Finding>) {
        let snapshot = ClusterSnapshot {
            nodes: self
                .nodes
                .good
                .iter()
                .map(|(name, known)| (name.clone(), known.node.clone()))
                .collect(),
            communities: self.communities.good.clone(),
            clusters: self.clusters.good.clone(),
            blocks: self.calico.as_ref().and_then(Calico::blocks),
            connector_node: self.connector_node.clone(),
        };
        let bad = [
            &self.nodes.bad,
            &self.communities.bad,
            &self.clusters.bad,
            &self.templates.bad,
        ];
        (
            snapshot,
            bad.into_iter()
                .flat_map(BTreeMap::values)
                .flatten()
                .cloned()
                .chain(self.calico.iter().flat_map(Calico::findings))
                .collect(),
        )
    }

    /// A node.
    pub fn node(&self, name: &str) -> Option<&Node> {
        self.nodes.good.get(name).map(|known| &known.node)
    }

    /// `metadata.uid` of a node.
    pub fn node_uid(&self, name: &str) -> Option<&str> {
        self.nodes.good.get(name).map(|known| known.uid.as_str())
    }

    /// What Events about an object name it by; none when it is not there.
    pub fn event_uid(&self, object: &Key) -> Option<&str> {
        let name = object.name.as_str();
        match object.kind {
            // As kubelet has it: every kubectl looks for that.
            Kind::Node => self.nodes.name(name),
            Kind::Community => self.community_statuses.get(name).map(|about| about.uid.as_str()),
            Kind::Cluster => self.cluster_statuses.get(name).map(|about| about.uid.as_str()),
            Kind::Settings => None,
        }
    }

    /// Every Community, and who went with its last change.
    pub fn communities(
        &self,
    ) -> impl Iterator<Item = (Shown<'_, Community, CommunityStatus>, Option<&Dropped>)> {
        shown(&self.communities, &self.community_statuses).map(|shown| {
            let dropped = self.dropped.get(shown.name);
            (shown, dropped)
        })
    }

    /// Every Cluster.
    pub fn clusters(&self) -> impl Iterator<Item = Shown<'_, Cluster, ClusterStatus>> {
        shown(&self.clusters, &self.cluster_statuses)
    }

    /// What is known of Communities' statuses.
    pub fn community_statuses(&mut self) -> &mut Custom<CommunityStatus> {
        &mut self.community_statuses
    }

    /// What is known of Clusters' statuses.
    pub fn cluster_statuses(&mut self) -> &mut Custom<ClusterStatus> {
        &mut self.cluster_statuses
    }

    /// Whether a node's kubelet is heard of.
    pub fn online(&self, name: &str) -> bool {
        self.nodes.good.get(name).is_some_and(|known| known.online)
    }
}

/// The objects of one kind by name.
#[derive(Debug)]
pub(super) struct Seen<T> {
    pub(super) good: BTreeMap<String, T>,
    /// What is wrong with an object; what it said before stays in effect.
    pub(super) bad: BTreeMap<String, Vec<Finding>>,
    /// Names in the list that is coming in.
    listing: BTreeSet<String>,
    pub(super) listed: bool,
}

impl<T> Default for Seen<T> {
    fn default() -> Self {
        Self {
            good: BTreeMap::new(),
            bad: BTreeMap::new(),
            listing: BTreeSet::new(),
            listed: false,
        }
    }
}

impl<T: PartialEq> Seen<T> {
    /// Takes an event; returns whether it changed anything. `name` is under what an object is kept; without one it
    /// is none of ours.
    pub(super) fn take<K>(
        &mut self,
        event: Watched<K>,
        kind: &str,
        name: impl Fn(&K) -> Option<String>,
        convert: impl FnOnce(&K) -> Result<T, Vec<Fault>>,
    ) -> bool {
        match event {
            Watched::Init => {
                self.listing.clear();
                false
            }
            Watched::InitApply(object) => {
                let Some(name) = name(&object) else { return false };
                self.listing.insert(name.clone());
                self.apply(name, &object, kind, convert)
            }
            Watched::InitDone => {
                let first = !std::mem::replace(&mut self.listed, true);
                let before = self.good.len() + self.bad.len();
                self.good.retain(|name, _| self.listing.contains(name));
                self.bad.retain(|name, _| self.listing.contains(name));
                first || before != self.good.len() + self.bad.len()
            }
            Watched::Apply(object) => match name(&object) {
                Some(name) => self.apply(name, &object, kind, convert),
                None => false,
            },
            Watched::Delete(object) => {
                let Some(name) = name(&object) else { return false };
                let was_bad = self.bad.remove(&name).is_some();
                self.good.remove(&name).is_some() || was_bad
            }
        }
    }

    /// The name itself, of an object that is there.
    fn name(&self, name: &str) -> Option<&str> {
        let good = self.good.get_key_value(name).map(|(name, _)| name);
        let bad = || self.bad.get_key_value(name).map(|(name, _)| name);
        good.or_else(bad).map(String::as_str)
    }

    fn apply<K>(
        &mut self,
        name: String,
        object: &K,
        kind: &str,
        convert: impl FnOnce(&K) -> Result<T, Vec<Fault>>,
    ) -> bool {
        match convert(object) {
            Ok(value) => {
                let was_bad = self.bad.remove(&name).is_some();
                let same = self.good.get(&name) == Some(&value);
                if !same {
                    self.good.insert(name, value);
                }
                !same || was_bad
            }
            Err(faults) => {
                let finding =
                    |fault: Fault| Finding::error(format!("{kind} {name}"), fault.field, fault.message);
                let findings: Vec<Finding> = faults.into_iter().map(finding).collect();
                self.bad.insert(name, findings.clone()) != Some(findings)
            }
        }
    }
}

fn shown<'a, T: PartialEq, S: Status>(
    seen: &'a Seen<T>,
    statuses: &'a Custom<S>,
) -> impl Iterator<Item = Shown<'a, T, S>> {
    statuses.iter().map(|(name, about)| Shown {
        name,
        uid: &about.uid,
        generation: about.generation,
        good: seen.good.get(name),
        malformed: seen.bad.get(name).map(Vec::as_slice).unwrap_or_default(),
        status: &about.status,
    })
}

pub(super) fn named(object: &impl ResourceExt) -> Option<String> {
    Some(object.name_any())
}

/// The spec of an object of ours; what is not there is as good as empty.
fn spec<S: DeserializeOwned + Default>(object: &DynamicObject) -> Result<S, Vec<Fault>> {
    match object.data.get("spec") {
        None | Some(serde_json::Value::Null) => Ok(S::default()),
        Some(spec) => {
            serde_json::from_value(spec.clone()).map_err(|e| vec![Fault::new("spec", e.to_string())])
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn community(name: &str, spec: serde_json::Value) -> DynamicObject {
        serde_json::from_value(json!({
            "apiVersion": "fabedge.io/v1alpha1", "kind": "Community", "metadata": {"name": name}, "spec": spec,
        }))
        .unwrap()
    }

    fn take(seen: &mut Seen<Community>, event: Watched<DynamicObject>) -> bool {
        seen.take(event, "Community", named, |object| {
            convert::community(&spec::<CommunitySpec>(object)?)
        })
    }

    #[test]
    fn what_cannot_be_read_leaves_what_it_said_before() {
        let mut seen = Seen::default();
        let good = json!({"members": ["a.edge1", "a.edge2"]});
        assert!(take(&mut seen, Watched::Apply(community("one", good.clone()))));
        assert!(
            !take(&mut seen, Watched::Apply(community("one", good.clone()))),
            "nothing new"
        );
        assert!(take(
            &mut seen,
            Watched::Apply(community("one", json!({"members": "a.edge1"})))
        ));
        assert_eq!(seen.good["one"].members, ["a.edge1", "a.edge2"]);
        assert!(seen.bad["one"][0].to_string().contains("Community one"));
        assert!(take(&mut seen, Watched::Apply(community("one", good))), "mended");
        assert!(seen.bad.is_empty());
    }

    #[test]
    fn who_is_dropped_by_a_change_is_known_until_the_next() {
        let mut live = Live::default();
        let mut see = |uid: &str, generation: i64, members: &[&str]| {
            let mut object = community("connectors", json!({"members": members}));
            object.metadata.uid = Some(uid.to_owned());
            object.metadata.generation = Some(generation);
            assert!(live.community_seen(Watched::Apply(object)));
            let mut all = live.communities();
            let dropped = all.next().unwrap().1.cloned();
            dropped.map(|dropped| (dropped.generation, dropped.members, dropped.all))
        };
        assert_eq!(see("7", 1, &["a.edge1", "a.edge2"]), None);
        let dropped = vec!["a.edge1".to_owned(), "a.edge2".to_owned()];
        let connectors = ["a.connector", "b.connector"];
        assert_eq!(see("7", 2, &connectors), Some((Some(2), dropped, true)));
        assert_eq!(see("7", 3, &["a.connector", "b.connector", "c.connector"]), None);
        // Unreadable in between.
        assert_eq!(see("7", 4, &["edge1"]), None);
        let dropped = vec!["b.connector".to_owned(), "c.connector".to_owned()];
        assert_eq!(see("7", 5, &["a.connector"]), Some((Some(5), dropped, false)));
        // Deleted and made anew, without our seeing the one or the other.
        assert_eq!(see("8", 1, &["a.edge1"]), None);
    }

    #[test]
    fn the_connector_is_where_it_was_until_it_is_elsewhere() {
        let mut live = Live::default();
        let pod = |name: &str, node: &str| -> core::Pod {
            serde_json::from_value(
                json!({"metadata": {"name": name}, "spec": {"containers": [], "nodeName": node}}),
            )
            .unwrap()
        };
        let mut leaving = pod("a", "node1");
        leaving.metadata.deletion_timestamp =
            Some(serde_json::from_value(json!("2026-01-02T03:04:05Z")).unwrap());
        let mut see = |event| (live.connector_seen(event), live.snapshot().0.connector_node);
        let node = |name: &str| Some(name.to_owned());
        assert_eq!(
            see(Watched::Apply(pod("a", "node1"))),
            (Change::Everything, node("node1"))
        );
        assert_eq!(
            see(Watched::Apply(leaving.clone())),
            (Change::Pods, node("node1"))
        );
        assert_eq!(see(Watched::Delete(leaving)), (Change::Pods, node("node1")));
        assert_eq!(
            see(Watched::Apply(pod("b", "master"))),
            (Change::Everything, node("master"))
        );
    }

    #[test]
    fn what_a_new_list_lacks_is_gone() {
        let mut seen = Seen::default();
        for name in ["one", "two"] {
            take(&mut seen, Watched::Apply(community(name, json!({}))));
        }
        assert!(!take(&mut seen, Watched::Init));
        assert!(!take(&mut seen, Watched::InitApply(community("two", json!({})))));
        assert_eq!(seen.good.len(), 2, "until the list is whole");
        assert!(take(&mut seen, Watched::InitDone));
        assert_eq!(seen.good.keys().collect::<Vec<_>>(), ["two"]);
        assert!(take(&mut seen, Watched::Delete(community("two", json!({})))));
        assert!(seen.good.is_empty());
    }
}
