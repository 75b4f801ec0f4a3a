//! What kubelets do, as far as the API sees it: pods run, become ready and end. For every node of a namespace at once.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex};

use futures_util::StreamExt as _;
use k8s_openapi::api::core::v1::Pod;
use kube::api::{DeleteParams, Patch, PatchParams};
use kube::runtime::{WatchStreamExt as _, watcher};
use kube::{Api, ResourceExt as _};
use serde_json::json;

use super::world::World;

#[derive(Default)]
struct State {
    /// Nodes of which nothing is heard.
    offline: BTreeSet<String>,
    /// Pods that begin now do not become ready.
    held: bool,
}

/// Works while the world's runtime does.
#[derive(Clone, Default)]
pub struct Kubelet {
    state: Arc<Mutex<State>>,
}

impl Kubelet {
    pub fn start(world: &World) -> Self {
        let kubelet = Self::default();
        world.runtime.spawn(kubelet.clone().run(world.pods()));
        kubelet
    }

    pub fn lose(&self, node: &str) {
        self.state.lock().unwrap().offline.insert(node.to_owned());
    }

    /// From now on pods do not become ready, or do again, those that have begun meanwhile too.
    pub async fn hold(&self, held: bool, pods: &Api<Pod>) {
        self.state.lock().unwrap().held = held;
        if !held {
            for pod in pods.list(&Default::default()).await.unwrap() {
                self.see(pods, pod).await;
            }
        }
    }

    async fn run(self, pods: Api<Pod>) {
        let watch = watcher(pods.clone(), watcher::Config::default()).default_backoff();
        let seen = watch.applied_objects().filter_map(async |pod| pod.ok());
        // Many kubelets do it at the same time.
        let work = seen.for_each_concurrent(16, async |pod| self.see(&pods, pod).await);
        work.await;
    }

    async fn see(&self, pods: &Api<Pod>, pod: Pod) {
        let name = pod.name_any();
        let node = pod
            .spec
            .as_ref()
            .and_then(|spec| spec.node_name.clone())
            .unwrap_or_default();
        let held = {
            let state = self.state.lock().unwrap();
            if node.is_empty() || state.offline.contains(&node) {
                return;
            }
            state.held
        };
        if pod.metadata.deletion_timestamp.is_some() {
            let now = DeleteParams::default().grace_period(0);
            pods.delete(&name, &now).await.ok();
            return;
        }
        let status = pod.status.unwrap_or_default();
        if matches!(status.phase.as_deref(), Some("Failed" | "Succeeded")) {
            return;
        }
        let ready = status
            .conditions
            .iter()
            .flatten()
            .any(|condition| condition.type_ == "Ready" && condition.status == "True");
        let new = if pod.spec.unwrap_or_default().restart_policy.as_deref() == Some("Never") {
            json!({"phase": "Succeeded"})
        } else if held {
            json!({"phase": "Running"})
        } else {
            json!({"phase": "Running", "conditions": [{"type": "Ready", "status": "True"}]})
        };
        if status.phase.as_deref() != new["phase"].as_str()
            || (!held && !ready && new["conditions"].is_array())
        {
            set_status(pods, &name, new).await;
        }
    }
}

/// Sets a pod's status; one that is gone has none.
pub async fn set_status(pods: &Api<Pod>, name: &str, status: serde_json::Value) {
    let patch = Patch::Merge(json!({"status": status}));
    pods.patch_status(name, &PatchParams::default(), &patch)
        .await
        .ok();
}
