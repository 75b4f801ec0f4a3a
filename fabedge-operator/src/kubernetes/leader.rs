//! The label by which the network API's Service finds the leader's pod among those of the operator: standbys do not
//! serve, and have none.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::Pod;
use kube::api::{Patch, PatchParams};
use kube::{Api, Client, ResourceExt};
use serde_json::json;
use tracing::info;

use super::MANAGER;

/// The label. The chart's Service selects by it.
pub const LABEL: &str = "fabedge.io/leader";
const YES: &str = "true";

/// A label that could not be changed.
#[derive(Debug, thiserror::Error)]
#[error("{action} the label {LABEL} of Pod {pod}, by which members' calls find the leader")]
pub struct Error {
    action: &'static str,
    pod: String,
    source: kube::Error,
}

/// Whether a pod has the label.
pub fn has(pod: &Pod) -> bool {
    pod.labels().get(LABEL).is_some_and(|value| value == YES)
}

/// What is to be changed where the leader's pod has this name: pods of the operator, and whether they are to have the
/// label. Who led before comes first, lest two have it.
fn plan<'a>(pods: &'a BTreeMap<String, bool>, leader: &str) -> Vec<(&'a str, bool)> {
    let wrong = pods.iter().filter(|(name, has)| (*name == leader) != **has);
    let mut plan: Vec<_> = wrong.map(|(name, has)| (name.as_str(), !has)).collect();
    plan.sort_by_key(|(_, gets)| *gets);
    plan
}

/// Gives the label to the leader's pod, and takes it from the others.
#[derive(Debug)]
pub struct Label {
    pods: Api<Pod>,
    /// Our own pod.
    leader: String,
}

impl Label {
    /// Of who runs in the pod `leader`. Outside of a cluster there is none, and nothing to do.
    pub fn new(client: &Client, namespace: &str, leader: &str) -> Self {
        Self {
            pods: Api::namespaced(client.clone(), namespace),
            leader: leader.to_owned(),
        }
    }

    /// Puts right what differs among the operator's pods; returns what failed.
    pub async fn follow(&self, pods: &BTreeMap<String, bool>) -> Vec<Error> {
        let mut failures = Vec::new();
        for (pod, gets) in plan(pods, &self.leader) {
            let patch = json!({"metadata": {"labels": {LABEL: gets.then_some(YES)}}});
            let params = PatchParams {
                field_manager: Some(MANAGER.to_owned()),
                ..PatchParams::default()
            };
            match self.pods.patch(pod, &params, &Patch::Merge(&patch)).await {
                Ok(_) => info!(pod, leads = gets, "members' calls follow the leader"),
                // Gone meanwhile.
                Err(kube::Error::Api(status)) if status.code == 404 => {}
                Err(source) => failures.push(Error {
                    action: if gets { "setting" } else { "removing" },
                    pod: pod.to_owned(),
                    source,
                }),
            }
        }
        failures
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_leader_has_the_label_and_nobody_else() {
        let pods = |pods: &[(&str, bool)]| -> BTreeMap<String, bool> {
            pods.iter()
                .map(|(name, has)| ((*name).to_owned(), *has))
                .collect()
        };
        assert_eq!(plan(&pods(&[("a", true), ("b", false)]), "a"), []);
        assert_eq!(
            plan(&pods(&[("a", false), ("b", true), ("c", true)]), "a"),
            [("b", false), ("c", false), ("a", true)]
        );
        assert_eq!(plan(&pods(&[("a", true)]), "no pod"), [("a", false)]);
        assert_eq!(plan(&pods(&[]), "no pod"), []);
    }
}
