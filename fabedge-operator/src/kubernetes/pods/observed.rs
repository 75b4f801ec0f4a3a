//! Pods and nodes of the API -> the little of them that is kept.

use k8s_openapi::api::core::v1::{Node, Pod};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kube::ResourceExt;
use time::OffsetDateTime;

use super::template;
use crate::kubernetes::objects;

/// What is known of an agent's pod.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct AgentPod {
    /// `metadata.uid`.
    pub uid: String,
    /// `metadata.uid` of the node that it goes with.
    pub owner: Option<String>,
    /// When it was made.
    pub created: Option<OffsetDateTime>,
    /// When it is to be gone, once it was deleted.
    pub deleted: Option<OffsetDateTime>,
    /// It is, by its own word: the newest document that it has got is applied.
    pub ready: bool,
    /// It will not run again: it succeeded, failed or was evicted.
    pub ended: bool,
    /// What it was made of, see [`template::Hash`].
    pub hash: String,
    /// Which document its kubelet was told of, see [`super::plan`].
    pub document: String,
}

impl AgentPod {
    /// Takes what matters.
    pub fn of(pod: &Pod) -> Self {
        Self {
            uid: pod.uid().unwrap_or_default(),
            owner: objects::owner(pod),
            created: moment(pod.metadata.creation_timestamp.as_ref()),
            deleted: moment(pod.metadata.deletion_timestamp.as_ref()),
            ready: ready(pod),
            ended: ended(pod),
            hash: annotation(pod, template::SPEC_HASH),
            document: annotation(pod, template::DOCUMENT_HASH),
        }
    }
}

/// What is known of a pod of the connector.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ConnectorPod {
    /// It has applied the newest document that it has got.
    pub ready: bool,
    /// Where it runs, or is going to; none once it is on its way out.
    pub node: Option<String>,
    /// Which certificate its kubelet was told of, see [`super::plan`].
    pub certificate: String,
}

impl ConnectorPod {
    /// Takes what matters.
    pub fn of(pod: &Pod) -> Self {
        let leaves = pod.metadata.deletion_timestamp.is_some() || ended(pod);
        let node = pod.spec.as_ref().and_then(|spec| spec.node_name.clone());
        Self {
            ready: ready(pod),
            node: node.filter(|_| !leaves),
            certificate: annotation(pod, template::DOCUMENT_HASH),
        }
    }
}

fn annotation(pod: &Pod, key: &str) -> String {
    pod.annotations().get(key).cloned().unwrap_or_default()
}

/// The node whose agent a pod runs, if it runs one.
pub fn node_of(pod: &Pod) -> Option<String> {
    pod.metadata
        .name
        .as_deref()?
        .strip_prefix(template::PREFIX)
        .map(str::to_owned)
}

/// A pod's version; a later one is a higher number.
pub fn version(pod: &Pod) -> u64 {
    let version = pod.resource_version();
    version
        .and_then(|version| version.parse().ok())
        .unwrap_or_default()
}

/// Whether a pod works, and is to go on with that.
pub fn ready(pod: &Pod) -> bool {
    let conditions = pod
        .status
        .iter()
        .flat_map(|status| status.conditions.iter().flatten());
    pod.metadata.deletion_timestamp.is_none()
        && !ended(pod)
        && conditions
            .filter(|condition| condition.type_ == "Ready")
            .any(|condition| condition.status == "True")
}

fn ended(pod: &Pod) -> bool {
    let phase = pod.status.as_ref().and_then(|status| status.phase.as_deref());
    matches!(phase, Some("Failed" | "Succeeded"))
}

/// Whether a node's kubelet is heard of. A node that is not ready may well be: it lacks a CNI configuration until its
/// agent runs.
pub fn online(node: &Node) -> bool {
    let conditions = node
        .status
        .iter()
        .flat_map(|status| status.conditions.iter().flatten());
    conditions
        .filter(|condition| condition.type_ == "Ready")
        .all(|condition| condition.status != "Unknown")
}

fn moment(time: Option<&Time>) -> Option<OffsetDateTime> {
    OffsetDateTime::from_unix_timestamp(time?.0.as_second()).ok()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn pod(status: serde_json::Value) -> Pod {
        serde_json::from_value(json!({
            "metadata": {
                "name": "fabedge-agent-edge1", "uid": "p",
                "creationTimestamp": "2026-01-02T03:04:05Z",
                "annotations": {"fabedge.io/pod-spec-hash": "a-b", "fabedge.io/document-hash": "c"},
                "ownerReferences": [{"apiVersion": "v1", "kind": "Node", "name": "edge1", "uid": "n"}],
            },
            "status": status,
        }))
        .unwrap()
    }

    #[test]
    fn of_a_pod_its_state_and_its_hashes_are_kept() {
        let running = pod(json!({"phase": "Running", "conditions": [{"type": "Ready", "status": "True"}]}));
        assert_eq!(node_of(&running).as_deref(), Some("edge1"));
        let known = AgentPod::of(&running);
        assert_eq!((known.uid.as_str(), known.owner.as_deref()), ("p", Some("n")));
        assert_eq!((known.hash.as_str(), known.document.as_str()), ("a-b", "c"));
        assert!(known.ready && !known.ended && known.deleted.is_none());
        assert_eq!(known.created.unwrap().unix_timestamp(), 1_767_323_045);

        for (phase, ready, ended) in [
            ("Running", "False", false),
            ("Pending", "Unknown", false),
            ("Failed", "True", true),
            ("Succeeded", "False", true),
        ] {
            let known = AgentPod::of(&pod(
                json!({"phase": phase, "conditions": [{"type": "Ready", "status": ready}]}),
            ));
            assert_eq!((known.ready, known.ended), (false, ended), "{phase}");
        }
        let mut leaving = running;
        leaving.metadata.deletion_timestamp = leaving.metadata.creation_timestamp.clone();
        assert!(!ready(&leaving));
    }

    #[test]
    fn a_node_is_offline_when_nothing_is_heard_of_it() {
        for (status, heard) in [
            (json!({}), true),
            (json!({"conditions": [{"type": "Ready", "status": "True"}]}), true),
            (
                json!({"conditions": [{"type": "Ready", "status": "False"}]}),
                true,
            ),
            (
                json!({"conditions": [{"type": "Ready", "status": "Unknown"}]}),
                false,
            ),
        ] {
            let node: Node = serde_json::from_value(json!({"metadata": {}, "status": status})).unwrap();
            assert_eq!(online(&node), heard, "{status}");
        }
    }
}
