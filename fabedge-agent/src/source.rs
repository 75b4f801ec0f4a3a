//! Where the document comes from: the mounted file, and before that the last good one on disk, so that a node
//! which reboots without its cloud comes back by itself.

mod file;

use std::sync::Arc;

use fabedge_common::config::NodeConfig;

pub use file::{Paths, watch, write_private};

/// Why a document was not taken.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The file cannot be read.
    #[error("reading the document {path}")]
    Read {
        /// Which file.
        path: String,
        /// Why.
        source: std::io::Error,
    },
    /// It is not a valid document.
    #[error("the document {path} is refused, the last good one stays in force: {source}")]
    Refused {
        /// Which file.
        path: String,
        /// Why.
        source: fabedge_common::config::Error,
    },
    /// Its generation went back.
    #[error(
        "the document {path} is refused, the last good one stays in force: its generation {found} is older than {current}"
    )]
    Stale {
        /// Which file.
        path: String,
        /// The generation it has.
        found: u64,
        /// The generation in force.
        current: u64,
    },
    /// It changed without a new generation.
    #[error(
        "the document {path} is refused, the last good one stays in force: generation {generation} has changed its content"
    )]
    Rewritten {
        /// Which file.
        path: String,
        /// The generation.
        generation: u64,
    },
    /// It is another node's.
    #[error(
        "the document {path} is refused, the last good one stays in force: it is of {found}, this node is {current}; \
         to give the node another name, run `fabedge-agent cleanup` first"
    )]
    Foreign {
        /// Which file.
        path: String,
        /// Whose it is.
        found: String,
        /// Whose is in force.
        current: String,
    },
}

/// Where the document in force came from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Origin {
    /// The mounted file.
    Mounted,
    /// The copy on disk; the mounted file has not been read yet, or is not valid.
    Cache,
}

/// The document in force, and what is wrong with the newest one if that is another.
#[derive(Clone, Debug, Default)]
pub struct Current {
    /// The document in force; none before the first valid one.
    pub config: Option<(Arc<NodeConfig>, Origin)>,
    /// Why the newest document is not the one in force.
    pub problem: Option<Arc<Error>>,
}

impl Current {
    /// What follows when `found` is read from `path`. Pure; the caller stores a changed document.
    fn take(&self, found: NodeConfig, path: &str) -> Result<Arc<NodeConfig>, Error> {
        let Some((current, _)) = &self.config else {
            return Ok(Arc::new(found));
        };
        let path = path.to_owned();
        if found.endpoint.name != current.endpoint.name {
            let (found, current) = (found.endpoint.name, current.endpoint.name.clone());
            Err(Error::Foreign { path, found, current })
        } else if found.generation < current.generation {
            Err(Error::Stale {
                path,
                found: found.generation,
                current: current.generation,
            })
        } else if found == **current {
            Ok(Arc::clone(current))
        } else if found.generation == current.generation && found.generation != 0 {
            // A 0.4 document has no generation; there the content alone decides.
            Err(Error::Rewritten {
                path,
                generation: found.generation,
            })
        } else {
            Ok(Arc::new(found))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn document(name: &str, generation: u64, subnet: &str) -> NodeConfig {
        NodeConfig::parse(&format!(
            "version: 1\ngeneration: {generation}\nid: CN={name}\nname: {name}\ntype: EdgeNode\nsubnets: [{subnet}]\n...\n"
        ))
        .unwrap()
    }

    fn current(config: NodeConfig) -> Current {
        Current {
            config: Some((Arc::new(config), Origin::Mounted)),
            problem: None,
        }
    }

    #[test]
    fn a_generation_never_goes_back() {
        let now = current(document("a.edge1", 5, "10.1.1.0/24"));
        assert!(matches!(
            now.take(document("a.edge1", 4, "10.1.2.0/24"), "f"),
            Err(Error::Stale {
                found: 4,
                current: 5,
                ..
            })
        ));
        assert!(matches!(
            now.take(document("a.edge1", 5, "10.1.2.0/24"), "f"),
            Err(Error::Rewritten { generation: 5, .. })
        ));
        now.take(document("a.edge1", 5, "10.1.1.0/24"), "f").unwrap();
        assert_eq!(
            now.take(document("a.edge1", 6, "10.1.2.0/24"), "f")
                .unwrap()
                .generation,
            6
        );
    }

    #[test]
    fn another_nodes_document_is_refused() {
        let now = current(document("a.edge1", 5, "10.1.1.0/24"));
        assert!(matches!(
            now.take(document("a.edge2", 9, "10.1.2.0/24"), "f"),
            Err(Error::Foreign { .. })
        ));
    }

    #[test]
    fn a_document_of_the_predecessor_may_change_without_a_generation() {
        let now = current(document("a.edge1", 0, "10.1.1.0/24"));
        now.take(document("a.edge1", 0, "10.1.2.0/24"), "f").unwrap();
    }
}
