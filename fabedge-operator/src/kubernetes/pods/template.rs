//! The chart's PodTemplate and a node -> the pod of the node's agent. Pure.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{Container, Pod, PodSpec, PodTemplate};
use serde_json::{Value, json};

use crate::api::ARGUMENT;
use crate::finding::Finding;
use crate::kubernetes::objects;
use crate::observe::manifest::Fault;

/// Name of the PodTemplate, and label `fabedge.io/app` of the pods.
pub const NAME: &str = "fabedge-agent";
/// What a pod's name begins with; the node's follows.
pub const PREFIX: &str = "fabedge-agent-";
/// The container to which a node's own arguments go.
pub const AGENT: &str = "agent";

/// Annotation of a pod: what it was made of.
pub const SPEC_HASH: &str = "fabedge.io/pod-spec-hash";
/// Annotation of a pod: which document its kubelet was told of.
pub const DOCUMENT_HASH: &str = "fabedge.io/document-hash";

/// Goes into every hash: raised when something else is made of the same PodTemplate.
const FORM: &str = "1";

/// A PodTemplate that can be used.
#[derive(Clone, Debug, PartialEq)]
pub struct Template {
    labels: BTreeMap<String, String>,
    annotations: BTreeMap<String, String>,
    spec: PodSpec,
    /// Of all this but the images.
    rest: String,
    /// Of the images.
    images: String,
}

/// What a pod was made of: the images apart from the rest, for they can be changed in a pod that runs.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Hash {
    /// Of everything but the images.
    pub rest: String,
    /// Of the images.
    pub images: String,
}

impl Hash {
    /// As in the annotation.
    pub fn text(&self) -> String {
        format!("{}-{}", self.rest, self.images)
    }
}

/// Options of a node's own, by their names without dashes.
pub type Arguments = BTreeMap<String, String>;

impl Template {
    /// Takes a PodTemplate.
    ///
    /// # Errors
    /// When no agent's pod can be made of it.
    pub fn new(object: &PodTemplate) -> Result<Self, Vec<Fault>> {
        let template = object.template.clone().unwrap_or_default();
        let spec = template.spec.unwrap_or_default();
        if !spec.containers.iter().any(|container| container.name == AGENT) {
            return Err(vec![Fault::new(
                "template.spec.containers",
                format!("has none of the name {AGENT}: install the chart's PodTemplate again (helm upgrade)"),
            )]);
        }
        let meta = template.metadata.unwrap_or_default();
        let labels = meta.labels.unwrap_or_default();
        let annotations = meta.annotations.unwrap_or_default();
        let mut images = Vec::new();
        let mut bare = spec.clone();
        for container in containers(&mut bare) {
            images.push(container.name.clone());
            images.push(container.image.take().unwrap_or_default());
        }
        // As a value, whose keys are sorted: the order of a type's fields is no reason to replace pods.
        let text = |value: serde_json::Result<Value>| match value {
            Ok(value) => Ok(value.to_string()),
            Err(error) => Err(vec![Fault::new("template", error.to_string())]),
        };
        let texts = [
            FORM.to_owned(),
            text(serde_json::to_value(&labels))?,
            text(serde_json::to_value(&annotations))?,
            text(serde_json::to_value(&bare))?,
        ];
        Ok(Self {
            rest: objects::digest(texts.iter().map(String::as_str)),
            images: objects::digest(images.iter().map(String::as_str)),
            labels,
            annotations,
            spec,
        })
    }

    /// What a pod with these arguments is made of.
    pub fn hash(&self, arguments: &Arguments) -> Hash {
        let options = arguments.iter().flat_map(|(name, value)| [name.as_str(), value]);
        Hash {
            rest: if arguments.is_empty() {
                self.rest.clone()
            } else {
                objects::digest([self.rest.as_str()].into_iter().chain(options))
            },
            images: self.images.clone(),
        }
    }

    /// The pod of a node's agent. `uid` is the node's, `document` the hash of its document.
    pub fn pod(&self, node: &str, uid: &str, arguments: &Arguments, document: &str) -> Pod {
        let mut metadata = objects::of_node(format!("{PREFIX}{node}"), node, uid);
        let mut labels = self.labels.clone();
        labels.insert(objects::APP.to_owned(), NAME.to_owned());
        // Ours last, for by them we know our own.
        labels.extend(metadata.labels.take().unwrap_or_default());
        let mut annotations = self.annotations.clone();
        annotations.insert(SPEC_HASH.to_owned(), self.hash(arguments).text());
        annotations.insert(DOCUMENT_HASH.to_owned(), document.to_owned());
        metadata.labels = Some(labels);
        metadata.annotations = Some(annotations);

        let mut spec = self.spec.clone();
        spec.node_name = Some(node.to_owned());
        for volume in spec.volumes.iter_mut().flatten() {
            if let Some(map) = &mut volume.config_map {
                own(&mut map.name, objects::NODE_CONFIG, node);
            }
            if let Some(name) = volume
                .secret
                .as_mut()
                .and_then(|secret| secret.secret_name.as_mut())
            {
                own(name, objects::NODE_TLS, node);
            }
        }
        for container in spec
            .containers
            .iter_mut()
            .filter(|container| container.name == AGENT)
        {
            let args = container.args.take().unwrap_or_default();
            container.args = Some(with_options(args, arguments));
        }
        Pod {
            metadata,
            spec: Some(spec),
            status: None,
        }
    }

    /// The change of a running pod's images to the template's, as a strategic merge patch.
    pub fn images(&self, arguments: &Arguments) -> Value {
        let images = |containers: &[Container]| -> Vec<Value> {
            let image = |container: &Container| json!({"name": container.name, "image": container.image});
            containers.iter().map(image).collect()
        };
        json!({
            "metadata": {"annotations": {SPEC_HASH: self.hash(arguments).text()}},
            "spec": {
                "containers": images(&self.spec.containers),
                "initContainers": images(self.spec.init_containers.as_deref().unwrap_or_default()),
            },
        })
    }
}

fn containers(spec: &mut PodSpec) -> impl Iterator<Item = &mut Container> {
    spec.init_containers
        .iter_mut()
        .flatten()
        .chain(&mut spec.containers)
}

/// Gives a volume the node's own object where the template names that of all.
fn own(name: &mut String, prefix: &str, node: &str) {
    if prefix.strip_suffix('-') == Some(name) {
        *name = format!("{prefix}{node}");
    }
}

/// The template's arguments with these options in place of its own of the same names.
fn with_options(args: Vec<String>, options: &Arguments) -> Vec<String> {
    let mut kept = Vec::new();
    let mut args = args.into_iter().peekable();
    while let Some(arg) = args.next() {
        let option = arg.strip_prefix("--");
        let (name, joined) = option.map_or(("", true), |option| match option.split_once('=') {
            Some((name, _)) => (name, true),
            None => (option, false),
        });
        if !options.contains_key(name) {
            kept.push(arg);
        } else if !joined && args.peek().is_some_and(|next| !next.starts_with("--")) {
            // Its value.
            args.next();
        }
    }
    kept.extend(options.iter().map(|(name, value)| format!("--{name}={value}")));
    kept
}

/// The options in a node's annotations; what cannot be one is reported and left out.
pub fn arguments(node: &str, given: &BTreeMap<String, String>) -> (Arguments, Vec<Finding>) {
    let mut arguments = Arguments::new();
    let mut findings = Vec::new();
    for (name, value) in given {
        let why = if !is_option(name) {
            "is not the name of an option of the agent (lower-case letters, digits and dashes, `log`, say)"
        } else if value.contains(char::is_control) {
            "has a value with a control character, a line break perhaps"
        } else {
            arguments.insert(name.clone(), value.clone());
            continue;
        };
        findings.push(Finding::error(
            format!("Node {node}"),
            format!("metadata.annotations[{ARGUMENT}{name}]"),
            format!("{why}: mend or remove it; the agent runs without it"),
        ));
    }
    (arguments, findings)
}

fn is_option(name: &str) -> bool {
    name.starts_with(|c: char| c.is_ascii_lowercase())
        && !name.ends_with('-')
        && name
            .bytes()
            .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
}

#[cfg(test)]
mod tests;
