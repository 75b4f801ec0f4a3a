//! What an operator told about the objects of a world, and what has it tell.

use std::process::Command;
use std::time::{Duration, Instant};

use fabedge_common::config::NodeConfig;
use fabedge_operator::api::{Cluster, Condition, ConditionStatus};
use k8s_openapi::api::core::v1::{Event, Pod};
use kube::api::{ListParams, Patch, PatchParams, PostParams};
use kube::{Api, ResourceExt as _};
use serde_json::json;

use super::kubelet::set_status;
use super::world::{PATIENCE, World, text};

impl World {
    pub fn clusters(&self) -> Api<Cluster> {
        Api::all(self.client.clone())
    }

    /// Applies a Community with any members.
    pub async fn community(&self, name: &str, members: &[&str]) {
        let object = json!({
            "apiVersion": "fabedge.io/v1alpha1", "kind": "Community",
            "metadata": {"name": format!("{}-{name}", self.name)}, "spec": {"members": members},
        });
        self.communities()
            .patch(
                &format!("{}-{name}", self.name),
                &PatchParams::apply("tests").force(),
                &Patch::Apply(object),
            )
            .await
            .unwrap();
    }

    /// Applies a Cluster whose connector has a prefix.
    pub async fn cluster(&self, name: &str, subnet: Option<&str>) {
        let name = format!("{}-{name}", self.name);
        let endpoints: Vec<_> = subnet
            .iter()
            .map(|subnet| {
                json!({
                    "id": format!("C=CN, O=fabedge.io, CN={name}.connector"), "name": format!("{name}.connector"),
                    "type": "Connector", "publicAddresses": ["203.0.113.99"], "subnets": [subnet],
                })
            })
            .collect();
        let object = json!({
            "apiVersion": "fabedge.io/v1alpha1", "kind": "Cluster", "metadata": {"name": name},
            "spec": {"endpoints": endpoints},
        });
        let params = PatchParams::apply("tests").force();
        self.clusters()
            .patch(&name, &params, &Patch::Apply(object))
            .await
            .unwrap();
    }

    /// Has the agent of an edge say whether it is ready, as kubelet would.
    pub async fn agent(&self, number: usize, ready: bool) {
        self.wait_until("the operator makes its pod", async || {
            self.pod(number).await.is_some()
        })
        .await;
        let name = format!("fabedge-agent-{}", self.edge(number));
        set_status(&self.pods(), &name, readiness(ready)).await;
    }

    /// The same of the connector, whose pod is a Deployment's.
    pub async fn connector(&self, ready: bool) {
        self.pod_of("fabedge-connector", "fabedge-connector-1", readiness(ready))
            .await;
    }

    /// A pod of one of the chart's Deployments, on the connector's node, as its kubelet would report it.
    pub async fn pod_of(&self, app: &str, name: &str, status: serde_json::Value) {
        let object = json!({
            "apiVersion": "v1", "kind": "Pod",
            "metadata": {"name": name, "labels": {"fabedge.io/app": app}},
            "spec": {
                "automountServiceAccountToken": false, "nodeName": format!("{}-cloud", self.name),
                "containers": [{"name": "main", "image": "none"}],
            },
        });
        let pod: Pod = serde_json::from_value(object).unwrap();
        // The account that every pod has is made by a controller, in its time.
        self.wait_until("a pod can be made", async || {
            self.pods().create(&PostParams::default(), &pod).await.is_ok()
        })
        .await;
        set_status(&self.pods(), name, status).await;
    }

    /// `x/y` of a Community, and its condition: `True MembersReady: 2/2 members ready`.
    pub async fn told(&self, community: &str, kind: &str) -> (String, String) {
        let name = format!("{}-{community}", self.name);
        let status = self.communities().get(&name).await.unwrap().status;
        let status = status.unwrap_or_default();
        (status.ready.unwrap_or_default(), said(&status.conditions, kind))
    }

    /// Waits until a Community's condition is told so: `x/y` and the condition as [`Self::told`] has them.
    pub async fn wait_until_told(
        &self,
        what: &str,
        (community, kind): (&str, &str),
        so: impl Fn(&str, &str) -> bool,
    ) {
        let what = format!("{what}: {kind} of Community {community}");
        self.wait_to_see(
            &what,
            async || self.told(community, kind).await,
            |(ready, text)| so(ready, text),
        )
        .await;
    }

    /// The same of a Cluster's condition.
    pub async fn wait_until_cluster_told(
        &self,
        what: &str,
        (cluster, kind): (&str, &str),
        so: impl Fn(&str) -> bool,
    ) {
        let what = format!("{what}: {kind} of Cluster {cluster}");
        let told = async || self.cluster_told(cluster, kind).await;
        self.wait_to_see(&what, told, |text| so(text)).await;
    }

    /// Waits for an Event that begins so, and says that.
    pub async fn wait_for_event(&self, (kind, name): (&str, &str), begins: &str, says: &str) {
        let what = format!("an Event of {kind} {name}: {begins}: {says}");
        let good = |events: &Vec<String>| {
            let mut events = events.iter();
            events.any(|event| event.starts_with(begins) && event.contains(says))
        };
        self.wait_to_see(&what, async || self.events(kind, name).await, good)
            .await;
    }

    pub async fn cluster_told(&self, name: &str, kind: &str) -> String {
        let name = format!("{}-{name}", self.name);
        let status = self.clusters().get(&name).await.unwrap().status;
        said(&status.unwrap_or_default().conditions, kind)
    }

    /// Events about an object of ours: `Warning Pending: ...`.
    pub async fn events(&self, kind: &str, name: &str) -> Vec<String> {
        let events: Api<Event> = Api::namespaced(self.client.clone(), "default");
        let fields = format!(
            "involvedObject.kind={kind},involvedObject.name={}-{name}",
            self.name
        );
        let list = events.list(&ListParams::default().fields(&fields)).await.unwrap();
        let word = |word: Option<String>| word.unwrap_or_default();
        list.items
            .into_iter()
            .map(|event| {
                format!(
                    "{} {}: {}",
                    word(event.type_),
                    word(event.reason),
                    word(event.message)
                )
            })
            .collect()
    }

    /// Versions of every status and Event about objects of ours.
    pub async fn told_versions(&self) -> Vec<(String, String)> {
        let mut versions = Vec::new();
        let ours = |name: &str| name.starts_with(&format!("{}-", self.name));
        let events: Api<Event> = Api::namespaced(self.client.clone(), "default");
        for event in events.list(&ListParams::default()).await.unwrap() {
            let of = event.involved_object.name.unwrap_or_default();
            if ours(&of) {
                versions.push((
                    event.metadata.name.unwrap(),
                    event.metadata.resource_version.unwrap(),
                ));
            }
        }
        let communities = self.communities().list(&ListParams::default()).await.unwrap();
        let clusters = self.clusters().list(&ListParams::default()).await.unwrap();
        let metadata = communities
            .into_iter()
            .map(|object| object.metadata)
            .chain(clusters.into_iter().map(|object| object.metadata));
        for meta in metadata {
            let name = meta.name.unwrap();
            if ours(&name) {
                versions.push((name, meta.resource_version.unwrap()));
            }
        }
        versions
    }

    /// Waits until nothing more is told.
    pub async fn silence(&self) -> Vec<(String, String)> {
        let started = Instant::now();
        let mut before = self.told_versions().await;
        loop {
            // Longer than a document is on its way, which is 3 s.
            tokio::time::sleep(Duration::from_secs(6)).await;
            let now = self.told_versions().await;
            if now == before {
                return now;
            }
            assert!(
                started.elapsed() < PATIENCE,
                "it goes on telling: {before:?}, then {now:?}"
            );
            before = now;
        }
    }

    /// For who looks for the cause of a failure: what the API holds of this world.
    pub async fn tell_what_is_there(&self) {
        let all = ListParams::default();
        let ours = |name: &str| name.starts_with(&format!("{}-", self.name));
        let communities = self.communities().list(&all).await.into_iter().flatten();
        let communities = communities.filter(|one| ours(&one.name_any()));
        tell(communities.map(|one| format!("Community {}: {:?} {:?}", one.name_any(), one.spec, one.status)));
        let clusters = self.clusters().list(&all).await.into_iter().flatten();
        // Without the tokens.
        let clusters = clusters.filter(|one| ours(&one.name_any()));
        tell(clusters.map(|one| format!("Cluster {}: {:?}", one.name_any(), one.status)));
        let events: Api<Event> = Api::namespaced(self.client.clone(), "default");
        let events = events.list(&all).await.into_iter().flatten();
        let events = events.map(|event| (event.involved_object.name.unwrap_or_default(), event.message));
        let events = events.filter(|(of, _)| ours(of));
        tell(events.map(|(of, message)| format!("Event of {of}: {message:?}")));
        let maps = self.maps().list(&all).await.into_iter().flatten();
        let documents = maps.filter_map(|map| {
            let name = map.name_any();
            let document = NodeConfig::parse(&text(map)?).ok()?;
            let peers: Vec<String> = document
                .peers
                .into_iter()
                .map(|peer| peer.endpoint.name.clone())
                .collect();
            let few = &peers[..peers.len().min(8)];
            Some(format!(
                "ConfigMap {name}: generation {}, {} peers {few:?}",
                document.generation,
                peers.len()
            ))
        });
        tell(documents);
        let pods = self.pods().list(&all).await.into_iter().flatten();
        tell(pods.map(|pod| {
            let status = pod.status.clone().unwrap_or_default();
            let conditions = status.conditions.iter().flatten();
            let conditions: Vec<_> = conditions.map(|one| (&one.type_, &one.status)).collect();
            format!(
                "Pod {}: {:?} {conditions:?} {:?}",
                pod.name_any(),
                status.phase,
                pod.annotations()
            )
        }));
    }

    pub fn kubectl(&self, arguments: &[&str]) -> String {
        let output = Command::new("kubectl").args(arguments).output().unwrap();
        assert!(
            output.status.success(),
            "{}",
            String::from_utf8_lossy(&output.stderr)
        );
        String::from_utf8(output.stdout).unwrap()
    }
}

/// Some of many lines.
fn tell(lines: impl Iterator<Item = String>) {
    const MOST: usize = 20;
    let lines: Vec<String> = lines.collect();
    for line in lines.iter().take(MOST) {
        eprintln!("-- {line}");
    }
    if lines.len() > MOST {
        eprintln!("-- and {} more like it", lines.len() - MOST);
    }
}

fn readiness(ready: bool) -> serde_json::Value {
    let status = if ready { "True" } else { "False" };
    json!({"phase": "Running", "conditions": [{"type": "Ready", "status": status}]})
}

pub fn said(conditions: &[Condition], kind: &str) -> String {
    conditions
        .iter()
        .find(|condition| condition.kind == kind)
        .map(|c| {
            let status = match c.status {
                ConditionStatus::True => "True",
                ConditionStatus::False => "False",
                ConditionStatus::Unknown => "Unknown",
            };
            format!("{status} {}: {}", c.reason, c.message)
        })
        .unwrap_or_default()
}
