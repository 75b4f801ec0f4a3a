//! What the agent reports about itself: one value, written after every pass, read by `fabedge-agent status`, by
//! the health endpoints and by the metrics.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::path::Path;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::source::{Current, Origin};
use crate::tunnels::report::PeerReport;

/// The agent's own account of the node.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Status {
    /// `edge`, `connector` or `cloud`.
    pub role: String,
    /// Agent version.
    pub version: String,
    /// Name of the endpoint, once there is a document.
    pub name: Option<String>,
    /// Generation of the document in force.
    pub generation: u64,
    /// Where the document in force came from.
    pub origin: Option<Origin>,
    /// Why the newest document is not the one in force.
    pub document_problem: Option<String>,
    /// Why a newer document would not be seen just now.
    #[serde(default)]
    pub document_outage: Option<String>,
    /// The tunnel device.
    pub tunnel: Option<String>,
    /// `on`, `off`, or why the kernel's slow path carries everything.
    pub fast_path: String,
    /// eBPF programs of others on the hooks of the fast path: they do not see what goes past the stack.
    #[serde(default)]
    pub foreign_programs: BTreeSet<String>,
    /// Whether ESP that arrives on an uplink is spread over CPUs, or why not; on connectors.
    #[serde(default)]
    pub spread: BTreeMap<String, String>,
    /// Problems of the last pass, by subsystem; a subsystem without any is not listed.
    pub problems: BTreeMap<String, Vec<String>>,
    /// Peers with a tunnel of their own, by name: those that the last look at all of them saw.
    #[serde(with = "shared")]
    pub peers: Arc<BTreeMap<String, PeerReport>>,
    /// Names of the peers that are reached through the connector.
    pub relayed: Vec<String>,
    /// Passes since the start.
    pub passes: u64,
    /// Seconds that the last pass took.
    pub pass_seconds: f64,
    /// Unix time of the last pass, in seconds.
    pub updated: u64,
}

impl Status {
    /// Whether `newest`, of which a pass may not yet have heard, is applied: that is what a Community's `Ready x/y`
    /// counts.
    ///
    /// # Errors
    /// Says why not.
    pub fn has_applied(&self, newest: &Current) -> Result<(), String> {
        self.ready()?;
        if let Some(problem) = &newest.problem {
            return Err(chain(problem.as_ref()));
        }
        match &newest.config {
            Some((config, _)) if config.generation != self.generation => Err(format!(
                "generation {} is there and not applied yet, generation {} is",
                config.generation, self.generation
            )),
            _ => Ok(()),
        }
    }

    /// Whether the last pass applied the newest document that it knew.
    ///
    /// # Errors
    /// Says why not.
    pub fn ready(&self) -> Result<(), String> {
        if self.generation == 0 && self.name.is_none() {
            return Err(self
                .document_problem
                .clone()
                .unwrap_or_else(|| "no document yet".to_owned()));
        }
        if let Some(problem) = &self.document_problem {
            return Err(problem.clone());
        }
        match self.problems.iter().next() {
            Some((subsystem, problems)) => Err(format!("{subsystem}: {}", problems.join("; "))),
            None => Ok(()),
        }
    }

    /// Reads what [`Status::write`] wrote.
    ///
    /// # Errors
    /// Where no agent has reported, or the report cannot be read.
    pub fn read(run_dir: &Path) -> anyhow::Result<Self> {
        use anyhow::Context;
        let path = run_dir.join("status.json");
        let text = std::fs::read(&path).with_context(|| {
            format!(
                "reading {}: does fabedge-agent run here, and are you root?",
                path.display()
            )
        })?;
        serde_json::from_slice(&text).with_context(|| format!("parsing {}", path.display()))
    }

    /// Replaces the report on disk.
    ///
    /// # Errors
    /// Those of the file system.
    pub fn write(&self, run_dir: &Path) -> std::io::Result<()> {
        let text = serde_json::to_vec_pretty(self)?;
        crate::source::write_private(&run_dir.join("status.json"), &text)
    }
}

impl fmt::Display for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let none = || "(none)".to_owned();
        let ready = self.ready();
        writeln!(
            f,
            "endpoint   {}  ({})",
            self.name.clone().unwrap_or_else(none),
            self.role
        )?;
        let origin = match self.origin {
            Some(Origin::Mounted) => "mounted",
            Some(Origin::Api) => "from the API",
            Some(Origin::Cache) => "from the copy on disk",
            None => "none",
        };
        writeln!(f, "document   generation {}, {origin}", self.generation)?;
        if let Some(outage) = &self.document_outage {
            writeln!(f, "outage     {outage}")?;
        }
        writeln!(
            f,
            "ready      {}",
            ready.err().map_or("yes".to_owned(), |why| format!("no: {why}"))
        )?;
        writeln!(f, "tunnel     {}", self.tunnel.clone().unwrap_or_else(none))?;
        writeln!(f, "fast path  {}", self.fast_path)?;
        for program in &self.foreign_programs {
            writeln!(f, "beside it  {program}")?;
        }
        for (uplink, how) in &self.spread {
            writeln!(f, "ESP        {uplink}: {how}")?;
        }
        for (subsystem, problems) in &self.problems {
            for problem in problems {
                writeln!(f, "problem    {subsystem}: {problem}")?;
            }
        }
        for (name, peer) in self.peers.iter() {
            let state = peer.ike_state.as_deref().unwrap_or("down");
            write!(
                f,
                "peer       {name:<28} {state:<12} {} CHILD_SA",
                peer.children.len()
            )?;
            if let Some(remote) = &peer.remote {
                write!(f, "  {remote}")?;
            }
            if let Some(mtu) = peer.path_mtu {
                write!(f, "  MTU {mtu}")?;
            }
            if let Some(error) = peer.error.as_ref().filter(|_| !peer.ready) {
                write!(f, "  {error}")?;
            }
            writeln!(f)?;
        }
        for name in &self.relayed {
            writeln!(f, "peer       {name:<28} through the connector")?;
        }
        Ok(())
    }
}

/// An error with all its causes on one line.
pub fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        let cause_text = cause.to_string();
        // Some errors print their cause themselves.
        if !text.contains(&cause_text) {
            text.push_str(": ");
            text.push_str(&cause_text);
        }
        next = cause.source();
    }
    text
}

/// What several reports have in common, on the wire like any other.
mod shared {
    use std::sync::Arc;

    use serde::{Deserialize, Deserializer, Serialize, Serializer};

    pub fn serialize<T: Serialize, S: Serializer>(value: &Arc<T>, serializer: S) -> Result<S::Ok, S::Error> {
        value.as_ref().serialize(serializer)
    }

    pub fn deserialize<'de, T: Deserialize<'de>, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<Arc<T>, D::Error> {
        T::deserialize(deserializer).map(Arc::new)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use fabedge_common::config::NodeConfig;

    use super::*;
    use crate::source::Error;

    #[test]
    fn ready_means_that_the_newest_document_is_applied() {
        let mut status = Status::default();
        assert_eq!(status.ready(), Err("no document yet".to_owned()));
        status.name = Some("a.edge1".to_owned());
        status.generation = 4;
        assert_eq!(status.ready(), Ok(()));
        status
            .problems
            .insert("routes".to_owned(), vec!["no such device".to_owned()]);
        assert_eq!(status.ready(), Err("routes: no such device".to_owned()));
        status.problems.clear();
        // The newest document that is known is applied all the same.
        status.document_outage = Some("no route to the API".to_owned());
        assert_eq!(status.ready(), Ok(()));
        assert!(status.to_string().contains("outage     no route to the API"));
        status.document_problem = Some("truncated".to_owned());
        assert_eq!(status.ready(), Err("truncated".to_owned()));
    }

    #[test]
    fn a_document_that_no_pass_has_applied_yet_makes_not_ready() {
        let document = |generation| {
            let text = format!(
                "version: 1\ngeneration: {generation}\nid: CN=a\nname: a.edge1\ntype: EdgeNode\nsubnets: [10.1.1.0/24]\n...\n"
            );
            Arc::new(NodeConfig::parse(&text).unwrap())
        };
        let status = Status {
            name: Some("a.edge1".to_owned()),
            generation: 4,
            ..Status::default()
        };
        let mut newest = Current {
            config: Some((document(4), Origin::Mounted)),
            ..Current::default()
        };
        assert_eq!(status.has_applied(&newest), Ok(()));
        newest.config = Some((document(5), Origin::Mounted));
        let why = status.has_applied(&newest).unwrap_err();
        assert!(why.contains("generation 5 is there and not applied yet"), "{why}");
        newest.config = Some((document(4), Origin::Mounted));
        newest.problem = Some(Arc::new(Error::Stale {
            place: "f".to_owned(),
            found: 3,
            current: 4,
        }));
        assert!(status.has_applied(&newest).is_err(), "a refused one, just seen");
    }

    #[test]
    fn a_report_is_read_back() {
        let dir = tempfile::tempdir().unwrap();
        let status = Status {
            name: Some("a.edge1".to_owned()),
            passes: 3,
            ..Status::default()
        };
        status.write(dir.path()).unwrap();
        assert_eq!(Status::read(dir.path()).unwrap(), status);
        assert!(status.to_string().contains("a.edge1"));
    }
}
