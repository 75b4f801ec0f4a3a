//! One file's text -> its objects, document by document, so that one malformed document costs only itself.

use k8s_openapi::api::core::v1 as core;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_saphyr::Spanned;

use super::{convert, convert_settings};
use crate::finding::Finding;
use crate::{api, snapshot};

/// The kinds that are read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize, Deserialize)]
pub enum Kind {
    /// `v1` Node.
    Node,
    /// `fabedge.io/v1alpha1` Community.
    Community,
    /// `fabedge.io/v1alpha1` Cluster.
    Cluster,
    /// `fabedge.io/v1alpha1` Settings.
    Settings,
}

/// What names an object: kind and name.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize, Deserialize)]
pub struct Key {
    /// Kind.
    pub kind: Kind,
    /// `metadata.name`.
    pub name: String,
}

impl std::fmt::Display for Key {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:?} {}", self.kind, self.name)
    }
}

/// An object that was read whole.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, Deserialize)]
pub enum Object {
    /// A node.
    Node(snapshot::Node),
    /// A community.
    Community(snapshot::Community),
    /// Another cluster.
    Cluster(snapshot::Cluster),
    /// The settings.
    Settings(snapshot::Settings),
}

/// What became of one document (or one item of a List).
#[derive(Clone, Debug)]
pub enum Outcome {
    /// An object, and the line at which it begins.
    Good(Key, u64, Object),
    /// Not an object that can be used. `key` when at least its kind and name could be read, so that it is known
    /// whose last good form stands in for it.
    Bad(Option<Key>, Vec<Finding>),
    /// Not for us: a foreign kind, an empty document.
    Ignored(Vec<Finding>),
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase")]
struct TypeMeta {
    #[serde(default)]
    api_version: Option<String>,
    #[serde(default)]
    kind: Option<String>,
    #[serde(default)]
    metadata: Option<NameMeta>,
}

#[derive(Default, Deserialize)]
struct NameMeta {
    #[serde(default)]
    name: Option<String>,
}

#[derive(Deserialize)]
struct List {
    #[serde(default)]
    items: Vec<Spanned<serde_json::Value>>,
}

/// Reads all documents of a file.
pub fn parse(file: &str, text: &str) -> Vec<Outcome> {
    documents(text.strip_prefix('\u{feff}').unwrap_or(text))
        .into_iter()
        .flat_map(|(line, text)| document(file, line, text))
        .collect()
}

/// Reads the Settings object of a file that holds nothing else.
///
/// # Errors
/// What is wrong with it, and on which line.
pub fn settings(text: &str) -> Result<api::Settings, String> {
    let object: api::Settings = yaml(text).map_err(|e| {
        let (line, message) = located(&e, 1);
        format!("line {line}: {message}")
    })?;
    if (object.api_version.as_str(), object.kind.as_str()) != (api::API_VERSION, "Settings") {
        return Err(format!(
            "it holds {} {}, expected {} Settings",
            object.api_version,
            object.kind,
            api::API_VERSION
        ));
    }
    Ok(object)
}

/// Cuts a stream into documents with their first lines. YAML lets `---` and `...` at the start of a line mean
/// nothing else, not even inside a block scalar (YAML 1.2 §9.1.2), so this needs no parser, and a malformed
/// document cannot take its neighbours along.
fn documents(text: &str) -> Vec<(u64, &str)> {
    let mut found = Vec::new();
    let (mut start, mut start_line) = (0, 1);
    let mut at = 0;
    for (number, line) in (1..).zip(text.split_inclusive('\n')) {
        let is = |mark: &str| {
            line.strip_prefix(mark)
                .is_some_and(|rest| rest.is_empty() || rest.starts_with([' ', '\t', '\r', '\n']))
        };
        if is("---") || is("...") {
            found.push((start_line, &text[start..at]));
            // Content may follow `---` on its line: keep the line, it reads the same.
            (start, start_line) = if is("---") {
                (at, number)
            } else {
                (at + line.len(), number + 1)
            };
        }
        at += line.len();
    }
    found.push((start_line, &text[start..]));
    found
}

fn document(file: &str, line: u64, text: &str) -> Vec<Outcome> {
    let blank = |line: &str| {
        let line = line.strip_prefix("---").unwrap_or(line).trim();
        line.is_empty() || line.starts_with(['#', '%'])
    };
    if text.lines().all(blank) {
        return Vec::new();
    }
    let meta: TypeMeta = match yaml(text) {
        Ok(meta) => meta,
        Err(e) => {
            let (at, message) = located(&e, line);
            let finding = Finding::error(
                "document",
                "YAML",
                format!("{message}; mend the document, the others are not affected"),
            );
            return vec![Outcome::Bad(None, vec![finding.at(file, at)])];
        }
    };
    let first = line + text.lines().take_while(|l| blank(l)).count() as u64;
    if meta.kind.as_deref().is_some_and(|kind| kind.ends_with("List")) {
        return match yaml::<List>(text) {
            Ok(list) => list
                .items
                .into_iter()
                .map(|item| {
                    let at = item.referenced.line().max(1) + line - 1;
                    let meta = serde_json::from_value(item.value.clone()).unwrap_or_default();
                    object(file, at, &meta, |_| item.value.clone())
                })
                .collect(),
            Err(e) => {
                let (at, message) = located(&e, line);
                let finding = Finding::error("List", "items", message);
                vec![Outcome::Bad(None, vec![finding.at(file, at)])]
            }
        };
    }
    vec![object(file, first, &meta, |_| Text { text, line })]
}

/// Where a typed object is read from: a document's text, or an item of a List.
trait Source {
    fn read<T: DeserializeOwned>(self) -> Result<T, (Option<u64>, String)>;
}

struct Text<'a> {
    text: &'a str,
    line: u64,
}

impl Source for Text<'_> {
    fn read<T: DeserializeOwned>(self) -> Result<T, (Option<u64>, String)> {
        yaml(self.text).map_err(|e| {
            let (line, message) = located(&e, self.line);
            (Some(line), message)
        })
    }
}

impl Source for serde_json::Value {
    fn read<T: DeserializeOwned>(self) -> Result<T, (Option<u64>, String)> {
        serde_json::from_value(self).map_err(|e| (None, e.to_string()))
    }
}

fn object<S: Source>(file: &str, line: u64, meta: &TypeMeta, source: impl FnOnce(()) -> S) -> Outcome {
    let (kind, expected) = match meta.kind.as_deref() {
        Some("Node") => (Kind::Node, "v1"),
        Some("Community") => (Kind::Community, api::API_VERSION),
        Some("Cluster") => (Kind::Cluster, api::API_VERSION),
        Some("Settings") => (Kind::Settings, api::API_VERSION),
        Some(other) => return foreign(file, line, meta, other),
        None => {
            let finding = Finding::error("document", "kind", "is missing: write `kind: Node`, say");
            return Outcome::Bad(None, vec![finding.at(file, line)]);
        }
    };
    let named = meta.metadata.as_ref().and_then(|m| m.name.clone());
    let Some(name) = named.filter(|name| !name.is_empty()) else {
        let finding = Finding::error(format!("{kind:?}"), "metadata.name", "is missing");
        return Outcome::Bad(None, vec![finding.at(file, line)]);
    };
    let key = Key { kind, name };
    if meta.api_version.as_deref() != Some(expected) {
        let found = meta.api_version.as_deref().unwrap_or_default();
        // Cluster and the like are kinds of other groups too.
        if !found.is_empty() && kind != Kind::Node && !found.starts_with("fabedge.io/") {
            return foreign(file, line, meta, &format!("{kind:?}"));
        }
        let message = format!("is {found:?}, expected {expected}");
        let finding = Finding::error(key.to_string(), "apiVersion", message);
        return Outcome::Bad(Some(key), vec![finding.at(file, line)]);
    }
    let source = source(());
    let converted = match kind {
        Kind::Node => read(source, |o: &core::Node| convert::node(o).map(Object::Node)),
        Kind::Community => read(source, |o: &api::Manifest<api::CommunitySpec>| {
            convert::community(&o.spec).map(Object::Community)
        }),
        // Without a spec when it has just been made to get a token.
        Kind::Cluster => read(source, |o: &api::Manifest<Option<api::ClusterSpec>>| {
            convert::cluster(&key.name, &o.spec.clone().unwrap_or_default()).map(Object::Cluster)
        }),
        Kind::Settings => read(source, |o: &api::Settings| {
            convert_settings::of_folder(&o.spec).map(Object::Settings)
        }),
    };
    match converted {
        Ok(object) => Outcome::Good(key, line, object),
        Err(faults) => {
            let name = key.to_string();
            let finding = |fault: Fault| {
                let at = fault.line.unwrap_or(line);
                Finding::error(name.as_str(), fault.field, fault.message).at(file, at)
            };
            let findings = faults.into_iter().map(finding).collect();
            Outcome::Bad(Some(key), findings)
        }
    }
}

/// Something wrong with one field, before it is known whose.
#[derive(Debug)]
pub struct Fault {
    /// Line, where the parser knows it.
    pub line: Option<u64>,
    /// Which field.
    pub field: String,
    /// What is wrong, and what to do about it.
    pub message: String,
}

impl std::fmt::Display for Fault {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}: {}", self.field, self.message)
    }
}

impl Fault {
    /// A fault of `field`.
    pub fn new(field: impl Into<String>, message: impl Into<String>) -> Self {
        Self {
            line: None,
            field: field.into(),
            message: message.into(),
        }
    }
}

fn read<S: Source, T: DeserializeOwned>(
    source: S,
    convert: impl FnOnce(&T) -> Result<Object, Vec<Fault>>,
) -> Result<Object, Vec<Fault>> {
    let typed = source.read::<T>().map_err(|(line, message)| {
        vec![Fault {
            line,
            field: "fields".to_owned(),
            message,
        }]
    })?;
    convert(&typed)
}

fn foreign(file: &str, line: u64, meta: &TypeMeta, kind: &str) -> Outcome {
    let name = meta.metadata.as_ref().and_then(|m| m.name.as_deref());
    let object = format!("{kind} {}", name.unwrap_or_default());
    let version = meta.api_version.as_deref().unwrap_or_default();
    let message = format!("{version} {kind} is not one of Node, Community, Cluster, Settings and List");
    // In our own group it is a slip of the pen, and something that was meant to work does not.
    let finding = if version.starts_with("fabedge.io/") {
        Finding::error(object.trim_end(), "kind", format!("{message}: mend the kind"))
    } else {
        Finding::warning(object.trim_end(), "kind", format!("{message}: ignored"))
    };
    Outcome::Ignored(vec![finding.at(file, line)])
}

fn yaml<T: DeserializeOwned>(text: &str) -> Result<T, serde_saphyr::Error> {
    // The budget is for hostile input. This is the administrator's own, and a List of ten thousand real nodes has
    // millions of events; aliases, the one way in which small input grows large, stay limited.
    let options = serde_saphyr::options! {
        with_snippet: false,
        strict_booleans: true,
        budget: serde_saphyr::budget! { max_events: usize::MAX, max_nodes: usize::MAX },
    };
    serde_saphyr::from_str_with_options(text, options)
}

/// The line of an error within its file, and what it says.
fn located(error: &serde_saphyr::Error, first: u64) -> (u64, String) {
    let mut message = error.without_snippet().to_string();
    let Some(location) = error.location() else {
        return (first, message);
    };
    // Counted from the document's first line, which is of no use to who reads the file.
    let within = format!(" at line {}, column {}", location.line(), location.column());
    if let Some(at) = message.rfind(&within) {
        message.replace_range(at..at + within.len(), "");
    }
    (first + location.line().max(1) - 1, message)
}
