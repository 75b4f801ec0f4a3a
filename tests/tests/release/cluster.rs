//! A cluster without FabEdge, and what users type into it.

use std::collections::{BTreeMap, BTreeSet};
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

/// How long anything may take that should be a matter of moments.
pub const PATIENCE: Duration = Duration::from_secs(120);

/// The namespace that the documents use.
pub const NAMESPACE: &str = "fabedge";

/// The top of the repository.
pub fn repository() -> PathBuf {
    std::fs::canonicalize(Path::new(env!("CARGO_MANIFEST_DIR")).join("..")).unwrap()
}

/// The commands of a block of a document, which stand under the mark `<!-- guide: NAME -->`.
pub fn documented(document: &str, name: &str) -> String {
    let text = std::fs::read_to_string(repository().join("docs").join(document)).unwrap();
    let blocks = guides::parse(&text).unwrap_or_else(|fault| panic!("docs/{document}: {fault}"));
    let block = blocks.into_iter().find(|block| block.name == name);
    block
        .unwrap_or_else(|| panic!("docs/{document} has no block {name}"))
        .text
}

/// What was said to a command, and whether it worked.
pub struct Said {
    pub works: bool,
    pub text: String,
}

/// The cluster. FabEdge is removed from it at both ends.
pub struct Cluster {
    folder: tempfile::TempDir,
    kubelet: Option<Child>,
}

/// What kubelets do of which something here depends: pods that are to go, go.
const KUBELET: &str = "
    template='{{range .items}}{{if .metadata.deletionTimestamp}}{{.metadata.name}} {{end}}{{end}}'
    while sleep 0.5; do
        kubectl get pods -n fabedge -o go-template=\"$template\" |
            xargs --no-run-if-empty kubectl delete pods -n fabedge --force --grace-period=0
    done > /dev/null 2>&1";

impl Cluster {
    pub fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        // Where users are: at the top of the repository, with files of their own.
        for name in ["charts", "docs"] {
            symlink(repository().join(name), folder.path().join(name)).unwrap();
        }
        let mut cluster = Self {
            folder,
            kubelet: None,
        };
        cluster.kubelet = Some(cluster.start(KUBELET));
        cluster.clear();
        cluster
    }

    /// Where commands run.
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    fn clear(&self) {
        self.sh("kubectl delete namespace fabedge --ignore-not-found
            kubectl delete crd communities.fabedge.io clusters.fabedge.io --ignore-not-found
            kubectl delete clusterroles,clusterrolebindings -l app.kubernetes.io/name=fabedge
            kubectl delete clusterroles,clusterrolebindings cert fabedge-operator --ignore-not-found
            kubectl delete -n default roles,rolebindings -l app.kubernetes.io/name=fabedge
            kubectl delete -n kube-system roles,rolebindings -l app.kubernetes.io/name=fabedge
            kubectl delete nodes -l release-test
            kubectl delete -n kube-system daemonsets,configmaps -l release-test");
    }

    fn shell(&self, script: &str) -> Command {
        let mut command = Command::new("sh");
        command
            .args(["-euc", script])
            .current_dir(self.folder())
            // What kubectl learns of this server is of no use to another one.
            .env("HOME", self.folder())
            .stdin(Stdio::null());
        command
    }

    /// What a script says, whether it works or not.
    pub fn try_sh(&self, script: &str) -> Said {
        let output = self.shell(&format!("exec 2>&1\n{script}")).output().unwrap();
        Said {
            works: output.status.success(),
            text: String::from_utf8(output.stdout).unwrap(),
        }
    }

    /// What a script says that must work.
    #[track_caller]
    pub fn sh(&self, script: &str) -> String {
        let said = self.try_sh(script);
        assert!(said.works, "{script}\n{}", said.text);
        said.text
    }

    /// A script that goes on.
    pub fn start(&self, script: &str) -> Child {
        self.shell(&format!("exec 2>&1\n{script}"))
            .stdout(Stdio::piped())
            .spawn()
            .unwrap()
    }

    /// JSON that a command prints.
    #[track_caller]
    pub fn json(&self, command: &str) -> Value {
        let text = self.sh(command);
        serde_json::from_str(&text).unwrap_or_else(|error| panic!("{command}: {error}\n{text}"))
    }

    pub fn write(&self, name: &str, text: &str) {
        std::fs::write(self.folder().join(name), text).unwrap();
    }

    /// Writes values.yaml. Nodes here have nobody to clean them, so nobody waits long for that.
    pub fn values(&self, values: &Value) {
        let mut values = values.clone();
        values["uninstall"] = json!({"timeout": "10s"});
        self.write("values.yaml", &values.to_string());
    }

    /// Installs the chart as the documents do.
    #[track_caller]
    pub fn install(&self, values: &Value) -> String {
        self.values(values);
        self.sh(INSTALL)
    }

    /// Makes a Community and a Cluster as users have them: they must be there after everything.
    pub fn users_objects(&self) {
        self.write(
            "users.yaml",
            &json!({"apiVersion": "v1", "kind": "List", "items": [
                {
                    "apiVersion": "fabedge.io/v1alpha1", "kind": "Community", "metadata": {"name": "connectors"},
                    "spec": {"members": ["fabedge.edge1", "fabedge.edge2"]},
                },
                {
                    "apiVersion": "fabedge.io/v1alpha1", "kind": "Cluster", "metadata": {"name": "beijing"},
                    "spec": {"token": "a.b.c", "endPoints": [{
                        "id": "C=CN, O=fabedge.io, CN=beijing.connector", "name": "beijing.connector",
                        "publicAddresses": ["10.20.8.12"], "subnets": ["10.234.64.0/18"],
                        "nodeSubnets": ["10.20.8.12"], "type": "Connector",
                    }]},
                },
            ]})
            .to_string(),
        );
        self.sh("kubectl wait --for=condition=Established --timeout=60s crd/communities.fabedge.io crd/clusters.fabedge.io");
        // The server tells kubectl of them a moment after it has established them.
        self.wait_for("kubectl apply -f users.yaml");
    }

    /// Who these objects are and what they say, by name.
    pub fn users_objects_now(&self) -> BTreeMap<String, Value> {
        let list = self.json("kubectl get communities.fabedge.io,clusters.fabedge.io -o json");
        let items = list["items"].as_array().unwrap().iter();
        items
            .map(|item| {
                let about = json!({"uid": item["metadata"]["uid"], "spec": item["spec"]});
                (title(item), about)
            })
            .collect()
    }

    /// The release's objects as they are in the cluster, without what the cluster itself goes on changing.
    pub fn objects(&self) -> BTreeMap<String, Value> {
        let list = self.json("helm get manifest fabedge -n fabedge | kubectl get -o json -f -");
        let mut objects = BTreeMap::new();
        for mut object in list["items"].as_array().unwrap().clone() {
            let name = title(&object);
            let fields = object.as_object_mut().unwrap();
            fields.remove("status");
            // The token that a controller makes.
            fields.remove("secrets");
            let metadata = fields["metadata"].as_object_mut().unwrap();
            metadata.remove("resourceVersion");
            metadata.remove("managedFields");
            if let Some(annotations) = metadata.get_mut("annotations") {
                // A controller counts in its time; the generation tells of every change.
                let annotations = annotations.as_object_mut().unwrap();
                annotations.remove("deployment.kubernetes.io/revision");
            }
            objects.insert(name, object);
        }
        assert!(objects.len() > 10, "{objects:#?}");
        objects
    }

    /// Waits until a script prints something.
    #[track_caller]
    pub fn wait_for(&self, script: &str) -> String {
        self.wait(script, |text| !text.trim().is_empty())
    }

    /// Waits until a script prints nothing.
    #[track_caller]
    pub fn wait_for_nothing(&self, script: &str) {
        self.wait(script, |text| text.trim().is_empty());
    }

    #[track_caller]
    fn wait(&self, script: &str, good: impl Fn(&str) -> bool) -> String {
        let started = Instant::now();
        loop {
            let said = self.try_sh(script);
            if said.works && good(&said.text) {
                return said.text;
            }
            assert!(
                started.elapsed() < PATIENCE,
                "{script}: not within {PATIENCE:?}: {}",
                said.text
            );
            std::thread::sleep(Duration::from_millis(100));
        }
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        // What is needed to see why stays; the next one clears it away.
        if !std::thread::panicking() {
            self.clear();
        }
        if let Some(mut kubelet) = self.kubelet.take() {
            kubelet.kill().ok();
            kubelet.wait().ok();
        }
    }
}

/// As the documents have it.
pub const INSTALL: &str = "helm install fabedge charts/fabedge --create-namespace -n fabedge -f values.yaml";
pub const UPGRADE: &str = "helm upgrade fabedge charts/fabedge -n fabedge -f values.yaml";

fn title(object: &Value) -> String {
    let text = |pointer| {
        object
            .pointer(pointer)
            .and_then(Value::as_str)
            .unwrap_or_default()
    };
    let namespace = text("/metadata/namespace");
    let place = if [NAMESPACE, ""].contains(&namespace) {
        String::new()
    } else {
        format!("{namespace}/")
    };
    format!("{}/{place}{}", text("/kind"), text("/metadata/name"))
}

/// The names of objects that differ, or that only one side has.
pub fn changed(before: &BTreeMap<String, Value>, after: &BTreeMap<String, Value>) -> BTreeSet<String> {
    let names: BTreeSet<&String> = before.keys().chain(after.keys()).collect();
    names
        .into_iter()
        .filter(|name| before.get(*name) != after.get(*name))
        .cloned()
        .collect()
}

/// The values of the install guide of 0.4.
pub fn guide() -> Value {
    json!({"operator": {
        "connectorPublicAddresses": ["10.20.8.28"],
        "serviceClusterIPRanges": ["10.233.0.0/18"],
        "cluster": {"name": "fabedge", "role": "host"},
        "operatorAPIServer": {"nodePort": 30303},
    }})
}

/// The same in the shape of today.
pub fn today() -> Value {
    json!({
        "cluster": {
            "name": "fabedge",
            "role": "host",
            "connectorPublicAddresses": ["10.20.8.28"],
            "serviceClusterIPRange": ["10.233.0.0/18"],
        },
        "operator": {"service": {"nodePort": 30303}},
    })
}

pub fn calico() -> Value {
    json!({"cluster": {
        "name": "fabedge",
        "connectorPublicAddresses": ["10.20.8.28"],
        "cniType": "calico",
        "edgePodCIDR": "10.10.0.0/16",
    }})
}

pub fn flannel() -> Value {
    json!({"cluster": {"name": "fabedge", "connectorPublicAddresses": ["10.20.8.28"], "cniType": "flannel"}})
}

pub fn member() -> Value {
    json!({"cluster": {
        "name": "beijing",
        "role": "member",
        "connectorPublicAddresses": ["10.20.8.12"],
        "operatorAPIServer": "https://10.20.8.28:30303",
        "initToken": "header.claims.signature",
    }})
}
