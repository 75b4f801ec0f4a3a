//! A namespace, nodes and operators for one test; gone when dropped.

use std::fmt::Debug;
use std::io::{Read as _, Write as _};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use fabedge_common::config::{NodeConfig, packed};
use fabedge_operator::api::{Cluster, Community, CommunitySpec};
use k8s_openapi::api::core::v1::{ConfigMap, Event, Namespace, Node, Pod, PodTemplate, Secret};
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::api::{DeleteParams, ListParams, Patch, PatchParams, PostParams};
use kube::{Api, Client, ResourceExt as _};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::json;
use tokio::runtime::Runtime;

/// How long anything may take that should be a matter of moments: no promise, so a machine with other work may take its time.
pub const PATIENCE: Duration = Duration::from_secs(90);

pub struct World {
    pub name: &'static str,
    pub client: Client,
    pub runtime: Runtime,
    /// Calico's cluster: edges get their prefixes from a pool of ours.
    pub calico: bool,
    /// What the settings say otherwise; null takes a field out.
    pub settings: serde_json::Value,
    /// Where operators serve health and metrics.
    pub listen: String,
    /// Nothing is taken away at the end: the whole cluster goes then.
    pub last: bool,
    folder: tempfile::TempDir,
    operators: Vec<Child>,
}

impl World {
    /// Makes sure of the definitions, and makes a namespace. `name` is one that no other test uses.
    pub fn new(name: &'static str) -> Self {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        let client = runtime
            .block_on(Client::try_default())
            .expect("KUBECONFIG names an API server; `cargo xtask test --only k8s` starts one");
        let world = Self {
            name,
            client,
            runtime,
            calico: false,
            settings: json!({}),
            listen: "127.0.0.1:0".to_owned(),
            last: false,
            folder: tempfile::tempdir().unwrap(),
            operators: Vec::new(),
        };
        world.runtime.block_on(world.prepare());
        world
    }

    async fn prepare(&self) {
        let definitions: Api<CustomResourceDefinition> = Api::all(self.client.clone());
        for definition in fabedge_operator::crds::definitions().unwrap() {
            let object: serde_json::Value = serde_saphyr::from_str(&definition.yaml).unwrap();
            let name = object["metadata"]["name"].as_str().unwrap();
            let params = PatchParams::apply("tests").force();
            definitions
                .patch(name, &params, &Patch::Apply(&object))
                .await
                .unwrap();
            let established = kube::runtime::conditions::is_crd_established();
            let wait = kube::runtime::wait::await_condition(definitions.clone(), name, established);
            tokio::time::timeout(PATIENCE, wait).await.unwrap().unwrap();
        }
        let namespace: Namespace = serde_json::from_value(json!({"metadata": {"name": self.name}})).unwrap();
        let namespaces: Api<Namespace> = Api::all(self.client.clone());
        // One of an earlier run may still be on its way out.
        let made = async || {
            namespaces
                .create(&PostParams::default(), &namespace)
                .await
                .map(drop)
        };
        self.wait_to_see("the namespace is made", made, Result::is_ok)
            .await
            .unwrap();
    }

    /// Name of the `number`th edge of this world.
    pub fn edge(&self, number: usize) -> String {
        format!("{}-edge{number}", self.name)
    }

    pub fn maps(&self) -> Api<ConfigMap> {
        Api::namespaced(self.client.clone(), self.name)
    }

    pub fn secrets(&self) -> Api<Secret> {
        Api::namespaced(self.client.clone(), self.name)
    }

    pub fn pods(&self) -> Api<Pod> {
        Api::namespaced(self.client.clone(), self.name)
    }

    /// The pod of an edge's agent.
    pub async fn pod(&self, number: usize) -> Option<Pod> {
        let name = format!("fabedge-agent-{}", self.edge(number));
        self.pods().get_opt(&name).await.unwrap()
    }

    /// Makes or changes the PodTemplate: the image and an argument of its agent.
    pub async fn template(&self, image: &str, argument: &str) {
        let object: PodTemplate = serde_json::from_value(json!({
            "metadata": {"name": "fabedge-agent"},
            "template": {
                "metadata": {"labels": {"fabedge.io/app": "fabedge-agent"}},
                "spec": {
                    "automountServiceAccountToken": false,
                    "hostNetwork": true,
                    "tolerations": [{"operator": "Exists"}],
                    "initContainers": [{"name": "environment-prepare", "image": image, "command": ["true"]}],
                    "containers": [
                        {
                            "name": "agent", "image": image, "command": ["fabedge-agent"], "args": ["edge", argument],
                            "volumeMounts": [
                                {"name": "config", "mountPath": "/etc/fabedge"},
                                {"name": "tls", "mountPath": "/etc/ipsec.d"},
                                {"name": "state", "mountPath": "/var/lib/fabedge"},
                            ],
                        },
                        {"name": "strongswan", "image": "strongswan:1"},
                    ],
                    "volumes": [
                        {"name": "config", "configMap": {"name": "fabedge-agent-config"}},
                        {"name": "tls", "secret": {"secretName": "fabedge-agent-tls"}},
                        {"name": "state", "hostPath": {"path": "/var/lib/fabedge"}},
                    ],
                },
            },
        }))
        .unwrap();
        let templates: Api<PodTemplate> = Api::namespaced(self.client.clone(), self.name);
        let params = PatchParams::apply("tests").force();
        templates
            .patch("fabedge-agent", &params, &Patch::Apply(&object))
            .await
            .unwrap();
    }

    /// Annotates a node.
    pub async fn annotate(&self, number: usize, key: &str, value: &str) {
        let patch = json!({"metadata": {"annotations": {key: value}}});
        self.nodes()
            .patch(&self.edge(number), &PatchParams::default(), &Patch::Merge(patch))
            .await
            .unwrap();
    }

    pub fn communities(&self) -> Api<Community> {
        Api::all(self.client.clone())
    }

    pub fn nodes(&self) -> Api<Node> {
        Api::all(self.client.clone())
    }

    /// Makes an edge, whose pod prefix is 10.64.0.0/10's `number`th /24.
    pub async fn add_edge(&self, number: usize) {
        let subnet = subnet(number);
        let node: Node = serde_json::from_value(json!({
            "metadata": {
                "name": self.edge(number),
                "labels": {"test": self.name, format!("{}/edge", self.name): ""},
                "annotations": {"fabedge.io/node-public-addresses": format!("198.51.{}.{}", number / 256, number % 256)},
            },
            "spec": {"podCIDR": subnet, "podCIDRs": [subnet]},
            "status": status(format!("172.20.{}.{}", number / 256, number % 256)),
        }))
        .unwrap();
        self.nodes().create(&PostParams::default(), &node).await.unwrap();
    }

    /// Makes a node that may run the connector.
    pub async fn add_connector(&self) {
        let node: Node = serde_json::from_value(json!({
            "metadata": {
                "name": format!("{}-cloud", self.name),
                "labels": {"test": self.name, format!("{}/connector", self.name): ""},
            },
            "spec": {"podCIDR": "10.32.0.0/24", "podCIDRs": ["10.32.0.0/24"]},
            "status": status("172.19.0.1".to_owned()),
        }))
        .unwrap();
        self.nodes().create(&PostParams::default(), &node).await.unwrap();
    }

    /// Creates or replaces a Community of edges.
    pub async fn join(&self, name: &str, edges: &[usize]) {
        let members = edges
            .iter()
            .map(|number| format!("{}.{}", self.name, self.edge(*number)))
            .collect();
        let community = Community::new(&format!("{}-{name}", self.name), CommunitySpec { members });
        let params = PatchParams::apply("tests").force();
        let name = community.metadata.name.clone().unwrap();
        self.communities()
            .patch(&name, &params, &Patch::Apply(&community))
            .await
            .unwrap();
    }

    /// Starts an operator; returns its place among [`Self::operator`]s.
    pub fn start(&mut self, identity: &str) -> usize {
        self.start_as(identity, None)
    }

    /// The same as another account.
    pub fn start_as(&mut self, identity: &str, kubeconfig: Option<&str>) -> usize {
        let settings = self.folder.path().join("settings.yaml");
        let mut text = json!({
            "apiVersion": "fabedge.io/v1alpha1", "kind": "Settings", "metadata": {"name": "settings"},
            "spec": {
                "name": self.name, "cniType": "flannel",
                "edgeLabels": [format!("{}/edge", self.name)],
                "connectorLabels": [format!("{}/connector", self.name)],
                "connectorPublicAddresses": ["203.0.113.1"],
                "clusterCIDR": ["10.0.0.0/8"], "serviceClusterIPRange": ["172.21.0.0/16"],
            },
        });
        if self.calico {
            let spec = &mut text["spec"];
            spec["cniType"] = json!("calico");
            spec["clusterCIDR"] = json!(["10.32.0.0/16"]);
            spec["edgePodCIDR"] = json!("10.128.0.0/16");
        }
        for (field, value) in self.settings.as_object().unwrap() {
            text["spec"][field] = value.clone();
        }
        let spec = text["spec"].as_object_mut().unwrap();
        spec.retain(|_, value| !value.is_null());
        std::fs::write(&settings, text.to_string()).unwrap();
        let log = std::fs::File::create(self.log(identity)).unwrap();
        let mut operator = Command::new(env!("CARGO_BIN_EXE_fabedge-operator"));
        if let Some(text) = kubeconfig {
            let file = self.folder.path().join(format!("{identity}.kubeconfig"));
            std::fs::write(&file, text).unwrap();
            operator.env("KUBECONFIG", file);
        }
        let child = operator
            .args([
                "run",
                "--namespace",
                self.name,
                "--identity",
                identity,
                "--listen",
                &self.listen,
                "--settings",
            ])
            .arg(&settings)
            .stdin(Stdio::null())
            .stderr(log)
            .spawn()
            .unwrap();
        self.operators.push(child);
        self.operators.len() - 1
    }

    fn log(&self, identity: &str) -> PathBuf {
        self.folder.path().join(format!("{identity}.log"))
    }

    pub fn said(&self, identity: &str) -> String {
        std::fs::read_to_string(self.log(identity)).unwrap()
    }

    pub fn operator(&mut self, place: usize) -> &mut Child {
        &mut self.operators[place]
    }

    /// SIGTERM, as kubelet ends a container; returns whether it ended well.
    pub fn terminate(&mut self, place: usize) -> bool {
        self.signal(place, Signal::TERM);
        self.ended(place).success()
    }

    /// Waits until an operator has ended, by itself or by a signal.
    pub fn ended(&mut self, place: usize) -> ExitStatus {
        let started = Instant::now();
        loop {
            if let Some(status) = self.operators[place].try_wait().unwrap() {
                return status;
            }
            assert!(started.elapsed() < PATIENCE, "it goes on for {PATIENCE:?}");
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    pub fn signal(&self, place: usize, signal: Signal) {
        kill_process(Pid::from_child(&self.operators[place]), signal).unwrap();
    }

    /// The document of a local name, and the version of its ConfigMap.
    pub async fn document(&self, map: &str) -> Option<(NodeConfig, String)> {
        let map = self.maps().get_opt(map).await.unwrap()?;
        let version = map.resource_version()?;
        Some((NodeConfig::parse(&text(map)?).unwrap(), version))
    }

    /// Names of an edge's peers, the connector first.
    pub async fn peers(&self, number: usize) -> Vec<String> {
        let map = format!("fabedge-agent-config-{}", self.edge(number));
        let document = self.document(&map).await;
        document.map_or_else(Vec::new, |(document, _)| {
            document
                .peers
                .iter()
                .map(|peer| peer.endpoint.name.clone())
                .collect()
        })
    }

    /// Versions of everything that the operator has made.
    pub async fn versions(&self) -> Vec<(Option<String>, Option<String>)> {
        let ours = ListParams::default().labels("fabedge.io/created-by");
        let maps = self.maps().list(&ours).await.unwrap();
        let secrets = self.secrets().list(&ours).await.unwrap();
        let maps = maps.items.into_iter().map(|map| map.metadata);
        let metadata = maps.chain(secrets.items.into_iter().map(|secret| secret.metadata));
        metadata.map(|meta| (meta.name, meta.resource_version)).collect()
    }

    /// Has operators serve health and metrics where [`Self::get`] asks for them.
    pub fn listen(&mut self) {
        self.listen = format!("127.0.0.1:{}", free_port());
    }

    /// Status and body of what an operator serves.
    pub fn get(&self, path: &str) -> Option<(u16, String)> {
        let mut stream = TcpStream::connect(&self.listen).ok()?;
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        let request = format!("GET {path} HTTP/1.1\r\nHost: test\r\nConnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).ok()?;
        let mut text = String::new();
        stream.read_to_string(&mut text).ok()?;
        let code = text.split(' ').nth(1)?.parse().ok()?;
        let (_, body) = text.split_once("\r\n\r\n")?;
        Some((code, body.to_owned()))
    }

    /// Waits until the operator has nothing more to write.
    pub async fn settle(&self) {
        let started = Instant::now();
        let mut before = self.versions().await;
        loop {
            // Longer than it waits to try again what failed.
            tokio::time::sleep(Duration::from_secs(3)).await;
            let now = self.versions().await;
            if now == before {
                return;
            }
            assert!(
                started.elapsed() < PATIENCE,
                "the operator goes on writing: {before:?}, then {now:?}"
            );
            before = now;
        }
    }

    /// Waits until `holds`; returns how long that took.
    pub async fn wait_until<F: Future<Output = bool>>(&self, what: &str, holds: impl Fn() -> F) -> Duration {
        let started = Instant::now();
        while !holds().await {
            assert!(started.elapsed() < PATIENCE, "{what}: not within {PATIENCE:?}");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        started.elapsed()
    }

    /// Waits until what is seen is good, and returns that; what was seen last is told when it does not become good.
    pub async fn wait_to_see<T: Debug, F: Future<Output = T>>(
        &self,
        what: &str,
        look: impl Fn() -> F,
        good: impl Fn(&T) -> bool,
    ) -> T {
        let started = Instant::now();
        loop {
            let seen = look().await;
            if good(&seen) {
                return seen;
            }
            assert!(
                started.elapsed() < PATIENCE,
                "{what}: not within {PATIENCE:?}: {seen:?}"
            );
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }
}

/// A port that nobody has, and that nobody is given who does not ask for it: those of connections are higher.
pub fn free_port() -> u16 {
    let first = std::process::id() as u16 % 8000;
    let ports = (first..8000).chain(0..first).map(|port| 20_000 + port);
    let mut free = ports.filter(|port| TcpListener::bind((Ipv4Addr::LOCALHOST, *port)).is_ok());
    free.next().unwrap()
}

/// The pod prefix of the `number`th edge.
pub fn subnet(number: usize) -> String {
    format!("10.{}.{}.0/24", 64 + number / 256, number % 256)
}

/// The document in a ConfigMap.
pub fn text(mut map: ConfigMap) -> Option<String> {
    match map
        .binary_data
        .take()
        .unwrap_or_default()
        .remove("tunnels.yaml.gz")
    {
        Some(bytes) => Some(packed::unpack(&bytes.0).unwrap()),
        None => map.data?.remove("tunnels.yaml"),
    }
}

/// The status of a node as its kubelet would report it: of a node that is not ready a controller says that its pods are
/// not.
fn status(address: String) -> serde_json::Value {
    json!({
        "addresses": [{"type": "InternalIP", "address": address}],
        "conditions": [{"type": "Ready", "status": "True"}],
    })
}

impl Drop for World {
    fn drop(&mut self) {
        for operator in &mut self.operators {
            operator.kill().ok();
            operator.wait().ok();
        }
        if std::thread::panicking()
            && let Ok(logs) = std::fs::read_dir(self.folder.path())
        {
            for log in logs
                .flatten()
                .filter(|log| log.path().extension().is_some_and(|ext| ext == "log"))
            {
                eprintln!(
                    "-- {}\n{}",
                    log.path().display(),
                    std::fs::read_to_string(log.path()).unwrap_or_default()
                );
            }
        }
        if std::thread::panicking() {
            self.runtime.block_on(self.tell_what_is_there());
        }
        if self.last {
            return;
        }
        let mine = ListParams::default().labels(&format!("test={}", self.name));
        let (nodes, communities, pods) = (self.nodes(), self.communities(), self.pods());
        let clusters: Api<Cluster> = Api::all(self.client.clone());
        let events: Api<Event> = Api::namespaced(self.client.clone(), "default");
        let namespaces: Api<Namespace> = Api::all(self.client.clone());
        let name = self.name;
        self.runtime.block_on(async move {
            let params = DeleteParams::default();
            // No kubelet says that they have ended, and the namespace would wait for that.
            let now = DeleteParams::default().grace_period(0);
            pods.delete_collection(&now, &ListParams::default()).await.ok();
            nodes.delete_collection(&params, &mine).await.ok();
            for community in communities
                .list(&ListParams::default())
                .await
                .into_iter()
                .flatten()
            {
                let community = community.metadata.name.unwrap_or_default();
                if community.starts_with(&format!("{name}-")) {
                    communities.delete(&community, &params).await.ok();
                }
            }
            for cluster in clusters.list(&ListParams::default()).await.into_iter().flatten() {
                let cluster = cluster.metadata.name.unwrap_or_default();
                if cluster.starts_with(&format!("{name}-")) {
                    clusters.delete(&cluster, &params).await.ok();
                }
            }
            for event in events.list(&ListParams::default()).await.into_iter().flatten() {
                let of = event.involved_object.name.unwrap_or_default();
                if of.starts_with(&format!("{name}-")) {
                    let event = event.metadata.name.unwrap_or_default();
                    events.delete(&event, &params).await.ok();
                }
            }
            namespaces.delete(name, &params).await.ok();
        });
    }
}
