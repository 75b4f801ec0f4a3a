//! What was good last time. An object whose document is malformed now keeps its last good form, for a slip of the
//! pen must not take a working site down.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::folder::Files;
use super::manifest::{self, Key, Kind, Object, Outcome};
use crate::finding::{Finding, Place, Severity};
use crate::snapshot::{ClusterSnapshot, Settings};

/// The form in which [`Memory`] is written. A change of meaning takes a new number.
const VERSION: u32 = 1;

/// The objects of the last pass.
#[derive(Debug, Default)]
pub struct Memory {
    objects: BTreeMap<Key, Good>,
    /// What each file said, so that one that has not changed is not parsed again.
    parsed: BTreeMap<String, Parsed>,
}

#[derive(Debug)]
struct Parsed {
    digest: [u8; 32],
    outcomes: Vec<Outcome>,
}

/// What outlives the process.
#[derive(Serialize, Deserialize)]
struct Saved {
    version: u32,
    objects: Vec<(Key, Good)>,
}

/// Why a saved memory is not taken.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// Damaged.
    #[error("the saved objects do not parse")]
    Syntax(#[from] serde_json::Error),
    /// Of another release.
    #[error("the saved objects have version {0}, and this is {VERSION}")]
    Version(u32),
}

/// An object and where it stood.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Good {
    file: String,
    line: u64,
    object: Object,
}

/// One pass over the folder.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Observation {
    /// The objects.
    pub snapshot: ClusterSnapshot,
    /// The settings, when there are any.
    pub settings: Option<Settings>,
    /// What is wrong with the input.
    pub findings: Vec<Finding>,
    /// Something could not be read, so an object that is missing here may nevertheless be meant to be there.
    pub incomplete: bool,
    /// Where each object stands, by its name in findings (`Node edge1`).
    pub places: BTreeMap<String, Place>,
}

impl Memory {
    /// The memory of an earlier process.
    ///
    /// # Errors
    /// When the text is not what [`Self::save`] wrote.
    pub fn restore(text: &str) -> Result<Self, Error> {
        let saved: Saved = serde_json::from_str(text)?;
        if saved.version != VERSION {
            return Err(Error::Version(saved.version));
        }
        Ok(Self {
            objects: saved.objects.into_iter().collect(),
            ..Self::default()
        })
    }

    /// What a later process has to know.
    ///
    /// # Errors
    /// None for what this module holds; the signature is the serializer's.
    pub fn save(&self) -> Result<String, Error> {
        let objects = self
            .objects
            .iter()
            .map(|(key, good)| (key.clone(), good.clone()))
            .collect();
        Ok(serde_json::to_string(&Saved {
            version: VERSION,
            objects,
        })?)
    }

    /// Takes a new reading of the folder.
    pub fn absorb(&mut self, files: &Files) -> Observation {
        self.parsed.retain(|file, _| files.contains_key(file));
        let mut findings = Vec::new();
        let mut objects: BTreeMap<Key, Good> = BTreeMap::new();
        let mut bad_keys: BTreeSet<Key> = BTreeSet::new();
        let mut bad_files: BTreeSet<&str> = BTreeSet::new();
        for (file, text) in files {
            let text = match text {
                Ok(text) => text,
                Err(e) => {
                    bad_files.insert(file);
                    findings.push(Finding::error("file", "content", e.as_str()).at(file, 0));
                    continue;
                }
            };
            let digest: [u8; 32] = Sha256::digest(text).into();
            if self.parsed.get(file).is_none_or(|parsed| parsed.digest != digest) {
                let outcomes = manifest::parse(file, text);
                self.parsed.insert(file.clone(), Parsed { digest, outcomes });
            }
            let outcomes = self.parsed.get(file).map(|parsed| parsed.outcomes.clone());
            for outcome in outcomes.unwrap_or_default() {
                match outcome {
                    Outcome::Good(key, line, object) => {
                        let good = Good {
                            file: file.clone(),
                            line,
                            object,
                        };
                        if let Some(old) = objects.get(&key) {
                            findings.push(replaced(&key, old, &good));
                        }
                        objects.insert(key, good);
                    }
                    Outcome::Bad(key, problems) => {
                        findings.extend(problems);
                        match key {
                            Some(key) => _ = bad_keys.insert(key),
                            None => _ = bad_files.insert(file),
                        }
                    }
                    Outcome::Ignored(problems) => findings.extend(problems),
                }
            }
        }
        for (key, good) in std::mem::take(&mut self.objects) {
            if !objects.contains_key(&key) && (bad_keys.contains(&key) || bad_files.contains(&*good.file)) {
                findings.push(
                    Finding::warning(key.to_string(), "document", "its last good form stays in effect")
                        .at(&good.file, 0),
                );
                objects.insert(key, good);
            }
        }
        self.objects = objects;
        let incomplete = !(bad_files.is_empty() && bad_keys.is_empty());
        Observation {
            incomplete,
            ..self.observation(findings)
        }
    }

    fn observation(&self, mut findings: Vec<Finding>) -> Observation {
        let mut observation = Observation::default();
        for (key, good) in &self.objects {
            let name = key.name.clone();
            observation.places.insert(
                key.to_string(),
                Place {
                    file: good.file.clone(),
                    line: good.line,
                },
            );
            match &good.object {
                Object::Node(node) => _ = observation.snapshot.nodes.insert(name, node.clone()),
                Object::Community(community) => {
                    observation.snapshot.communities.insert(name, community.clone());
                }
                Object::Cluster(cluster) => {
                    observation.snapshot.clusters.insert(name, cluster.clone());
                }
                Object::Settings(settings) if observation.settings.is_none() => {
                    observation.settings = Some(settings.clone());
                }
                Object::Settings(_) => findings.push(
                    Finding::error(
                        key.to_string(),
                        "metadata.name",
                        "a folder holds the Settings of one cluster, and another object has them: remove one",
                    )
                    .at(&good.file, good.line),
                ),
            }
        }
        if observation.settings.is_none() && !findings.iter().any(about_settings) {
            findings.push(Finding::error(
                "Settings",
                "kind",
                "the folder holds no Settings object, so the cluster has no name: add one",
            ));
        }
        observation.findings = findings;
        observation
    }
}

fn about_settings(finding: &Finding) -> bool {
    finding.severity == Severity::Error && finding.problem.object.starts_with("Settings")
}

/// As `kubectl apply` of a folder has it: the later document wins. Said aloud, and for communities with the
/// members that it costs.
fn replaced(key: &Key, old: &Good, new: &Good) -> Finding {
    let mut message = format!("replaces the one in {}:{}", old.file, old.line);
    if let (Object::Community(old), Object::Community(new)) = (&old.object, &new.object) {
        let dropped: Vec<_> = old
            .members
            .iter()
            .filter(|m| !new.members.contains(m))
            .cloned()
            .collect();
        if !dropped.is_empty() {
            message = format!("{message} and drops its members {}", dropped.join(", "));
        }
    }
    let mend = match key.kind {
        Kind::Community => "give one of the two another name if both are meant",
        Kind::Node | Kind::Cluster | Kind::Settings => "remove one of the two",
    };
    Finding::warning(key.to_string(), "metadata.name", format!("{message}: {mend}")).at(&new.file, new.line)
}

#[cfg(test)]
#[path = "memory_tests.rs"]
mod tests;
