//! The chart rendered by Helm's engine, and the objects that come of it.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

use serde::Deserialize;
use serde_json::{Value, json};

/// The oldest Kubernetes that the chart is for.
const KUBERNETES: &str = "v1.18.0";

/// Where the chart is rendered to.
pub const NAMESPACE: &str = "edges";

/// The engine, a process that lives as long as a test.
pub struct Helm {
    child: Child,
    requests: Option<ChildStdin>,
    answers: BufReader<ChildStdout>,
}

#[derive(Deserialize)]
struct Answer {
    #[serde(default)]
    manifests: BTreeMap<String, String>,
    #[serde(default)]
    lint: Vec<String>,
    error: Option<String>,
}

/// What a chart becomes: every object by `Kind/name`, and the text for the user.
#[derive(Clone, Debug, PartialEq)]
pub struct Rendered {
    pub objects: BTreeMap<String, Value>,
    pub notes: String,
}

/// The path of a file of the chart.
pub fn chart() -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../charts/fabedge");
    path.to_str().unwrap().to_owned()
}

impl Helm {
    pub fn start() -> Self {
        let python = std::env::var("FABEDGE_HELM_PYTHON")
            .expect("FABEDGE_HELM_PYTHON is not set: run `cargo xtask test --only chart`");
        let mut child = Command::new(python)
            .arg(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/chart/helm.py"))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            // Says of every refusal that it is one.
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        Self {
            requests: child.stdin.take(),
            answers: BufReader::new(child.stdout.take().unwrap()),
            child,
        }
    }

    /// Renders the chart; the error is what `helm template` ends with. A chart that can be rendered has no lint.
    pub fn render(&mut self, values: &Value) -> Result<Rendered, String> {
        let request = json!({
            "chart": chart(),
            "values": values.to_string(),
            "namespace": NAMESPACE,
            "kubernetes": KUBERNETES,
        });
        writeln!(self.requests.as_mut().unwrap(), "{request}").unwrap();
        let mut line = String::new();
        self.answers.read_line(&mut line).unwrap();
        let answer: Answer =
            serde_json::from_str(&line).unwrap_or_else(|e| panic!("the engine says {line:?}: {e}"));
        if let Some(error) = answer.error {
            return Err(error);
        }
        assert!(answer.lint.is_empty(), "{values}: {:#?}", answer.lint);
        let mut rendered = Rendered {
            objects: BTreeMap::new(),
            notes: String::new(),
        };
        for (file, text) in answer.manifests {
            if file.ends_with("NOTES.txt") {
                rendered.notes = text;
                continue;
            }
            for document in text.split("\n---\n").filter(|text| !text.trim().is_empty()) {
                let object: Value =
                    serde_saphyr::from_str(document).unwrap_or_else(|e| panic!("{file}: {e}\n{document}"));
                let before = rendered.objects.insert(name(&object), object);
                assert!(before.is_none(), "{file}: {before:?} is there twice");
            }
        }
        Ok(rendered)
    }

    /// Renders what must be renderable.
    #[track_caller]
    pub fn objects(&mut self, values: &Value) -> BTreeMap<String, Value> {
        match self.render(values) {
            Ok(rendered) => rendered.objects,
            Err(error) => panic!("{values}: {error}"),
        }
    }
}

impl Drop for Helm {
    fn drop(&mut self) {
        // Its loop ends with its input.
        self.requests = None;
        if let Err(error) = self.child.wait() {
            eprintln!("waiting for the engine: {error}");
        }
    }
}

fn name(object: &Value) -> String {
    let text = |pointer| object.pointer(pointer).and_then(Value::as_str).unwrap();
    format!("{}/{}", text("/kind"), text("/metadata/name"))
}

/// The settings that the operator reads.
pub fn settings(objects: &BTreeMap<String, Value>) -> Value {
    let text = objects["ConfigMap/fabedge-operator-settings"]["data"]["settings.yaml"]
        .as_str()
        .unwrap();
    serde_saphyr::from_str(text).unwrap()
}

/// Values with one more, at a path with dots.
pub fn with(values: &Value, path: &str, value: Value) -> Value {
    let mut all = values.clone();
    let mut here = &mut all;
    for key in path.split('.') {
        if !here.is_object() {
            *here = json!({});
        }
        here = &mut here[key];
    }
    *here = value;
    all
}

/// Values without the one at a path with dots.
pub fn without(values: &Value, path: &str) -> Value {
    let mut values = values.clone();
    let (parent, key) = path.rsplit_once('.').unwrap();
    let parent = values.pointer_mut(&format!("/{}", parent.replace('.', "/")));
    if let Some(parent) = parent.and_then(Value::as_object_mut) {
        parent.remove(key);
    }
    values
}

/// The values of the install guide of 0.4.
pub fn guide() -> Value {
    json!({
        "operator": {
            "connectorPublicAddresses": ["10.20.8.28"],
            "serviceClusterIPRanges": ["10.233.0.0/18"],
            "cluster": {"name": "fabedge", "role": "host"},
            "operatorAPIServer": {"nodePort": 30303},
        }
    })
}

/// The least that a host needs.
pub fn host() -> Value {
    json!({"cluster": {"name": "fabedge", "connectorPublicAddresses": ["10.20.8.28"]}})
}

/// The least that a host with Calico needs.
pub fn calico() -> Value {
    with(
        &with(&host(), "cluster.cniType", json!("calico")),
        "cluster.edgePodCIDR",
        json!("10.10.0.0/16"),
    )
}

/// The least that a member needs.
pub fn member() -> Value {
    json!({"cluster": {
        "name": "beijing",
        "role": "member",
        "connectorPublicAddresses": ["10.20.8.12"],
        "operatorAPIServer": "https://10.20.8.28:30303",
        "initToken": "header.claims.signature",
    }})
}
