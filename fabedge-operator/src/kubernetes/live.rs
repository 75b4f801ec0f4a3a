//! What the API server has shown so far, kept as what the topology needs of it: a node's heartbeat changes nothing
//! here.

use std::collections::{BTreeMap, BTreeSet};

use k8s_openapi::api::core::v1 as core;
use kube::ResourceExt;
use kube::core::DynamicObject;
use kube::runtime::watcher::Event as Watched;
use serde::de::DeserializeOwned;

use super::publish::Publisher;
use crate::api::{ClusterSpec, CommunitySpec};
use crate::finding::Finding;
use crate::observe::convert;
use crate::observe::manifest::Fault;
use crate::snapshot::{Cluster, ClusterSnapshot, Community, Node};

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
}

/// Everything that was shown.
#[derive(Debug, Default)]
pub struct Live {
    nodes: Seen<(Node, String)>,
    communities: Seen<Community>,
    clusters: Seen<Cluster>,
}

impl Live {
    /// Takes an event; returns whether a pass should look at what it changed.
    pub fn take(&mut self, event: Event, publisher: &mut Publisher) -> bool {
        match event {
            Event::Node(event) => self.nodes.take(*event, "Node", |object: &core::Node| {
                Ok((convert::node(object)?, object.uid().unwrap_or_default()))
            }),
            Event::Community(event) => self.communities.take(event, "Community", |object| {
                convert::community(&spec::<CommunitySpec>(object)?)
            }),
            Event::Cluster(event) => self.clusters.take(event, "Cluster", |object| {
                convert::cluster(&object.name_any(), &spec::<ClusterSpec>(object)?)
            }),
            Event::ConfigMap(event) => publisher.config_map_seen(&event),
            Event::Secret(event) => publisher.secret_seen(&event),
        }
    }

    /// Whether every kind was listed once: until then something that is missing may merely not have come yet.
    pub fn complete(&self) -> bool {
        self.nodes.listed && self.communities.listed && self.clusters.listed
    }

    /// The snapshot, and what is wrong with its objects.
    pub fn snapshot(&self) -> (ClusterSnapshot, Vec<Finding>) {
        let snapshot = ClusterSnapshot {
            nodes: self
                .nodes
                .good
                .iter()
                .map(|(name, (node, _))| (name.clone(), node.clone()))
                .collect(),
            communities: self.communities.good.clone(),
            clusters: self.clusters.good.clone(),
        };
        let bad = [&self.nodes.bad, &self.communities.bad, &self.clusters.bad];
        (
            snapshot,
            bad.into_iter()
                .flat_map(BTreeMap::values)
                .flatten()
                .cloned()
                .collect(),
        )
    }

    /// A node.
    pub fn node(&self, name: &str) -> Option<&Node> {
        self.nodes.good.get(name).map(|(node, _)| node)
    }

    /// `metadata.uid` of a node.
    pub fn node_uid(&self, name: &str) -> Option<&str> {
        self.nodes.good.get(name).map(|(_, uid)| uid.as_str())
    }
}

/// The objects of one kind by name.
#[derive(Debug)]
struct Seen<T> {
    good: BTreeMap<String, T>,
    /// What is wrong with an object; what it said before stays in effect.
    bad: BTreeMap<String, Vec<Finding>>,
    /// Names in the list that is coming in.
    listing: BTreeSet<String>,
    listed: bool,
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
    fn take<K: ResourceExt>(
        &mut self,
        event: Watched<K>,
        kind: &str,
        convert: impl FnOnce(&K) -> Result<T, Vec<Fault>>,
    ) -> bool {
        match event {
            Watched::Init => {
                self.listing.clear();
                false
            }
            Watched::InitApply(object) => {
                self.listing.insert(object.name_any());
                self.apply(&object, kind, convert)
            }
            Watched::InitDone => {
                let first = !std::mem::replace(&mut self.listed, true);
                let before = self.good.len() + self.bad.len();
                self.good.retain(|name, _| self.listing.contains(name));
                self.bad.retain(|name, _| self.listing.contains(name));
                first || before != self.good.len() + self.bad.len()
            }
            Watched::Apply(object) => self.apply(&object, kind, convert),
            Watched::Delete(object) => {
                let name = object.name_any();
                let was_bad = self.bad.remove(&name).is_some();
                self.good.remove(&name).is_some() || was_bad
            }
        }
    }

    fn apply<K: ResourceExt>(
        &mut self,
        object: &K,
        kind: &str,
        convert: impl FnOnce(&K) -> Result<T, Vec<Fault>>,
    ) -> bool {
        let name = object.name_any();
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
        seen.take(event, "Community", |object| {
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
