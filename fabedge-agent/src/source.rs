//! Where the document comes from: the mounted file, or a ConfigMap that is watched through the API, and before either
//! the last good one on disk, so that a node which reboots without its cloud comes back by itself.

mod api;
mod cache;
mod file;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

use fabedge_common::config::packed::{self, Members};
use fabedge_common::config::{self, Document, NodeConfig};
use tokio::sync::watch;
use tracing::{info, warn};

pub use api::{ConfigMapName, follow};
pub use cache::write_private;
pub(crate) use file::subscribe;

use cache::Cache;

/// Where the operator puts this node's document.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Place {
    /// A file; where it is not there, the same with `.gz` after its name.
    File(PathBuf),
    /// A ConfigMap of the API.
    ConfigMap(ConfigMapName),
}

/// Why a document was not taken.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The file cannot be read.
    #[error("reading the document {place}")]
    Read {
        /// Which file.
        place: String,
        /// Why.
        source: std::io::Error,
    },
    /// It is not a valid document.
    #[error("the document {place} is refused, the last good one stays in force: {source}")]
    Refused {
        /// Where it is.
        place: String,
        /// Why.
        source: config::Error,
    },
    /// Its generation went back.
    #[error(
        "the document {place} is refused, the last good one stays in force: its generation {found} is older than {current}"
    )]
    Stale {
        /// Where it is.
        place: String,
        /// The generation it has.
        found: u64,
        /// The generation in force.
        current: u64,
    },
    /// It changed without a new generation.
    #[error(
        "the document {place} is refused, the last good one stays in force: generation {generation} has changed its content"
    )]
    Rewritten {
        /// Where it is.
        place: String,
        /// The generation.
        generation: u64,
    },
    /// It is another node's.
    #[error(
        "the document {place} is refused, the last good one stays in force: it is of {found}, this node is {current}; \
         to give the node another name, run `fabedge-agent cleanup` first"
    )]
    Foreign {
        /// Where it is.
        place: String,
        /// Whose it is.
        found: String,
        /// Whose is in force.
        current: String,
    },
    /// The API has not answered since the agent started.
    #[error("the API has not yet told what is in ConfigMap {0}")]
    Waiting(ConfigMapName),
    /// The API knows no such ConfigMap.
    #[error(
        "there is no ConfigMap {0}, the last good document stays in force: the operator makes it once it runs and a node \
         may run the connector"
    )]
    Absent(ConfigMapName),
    /// There is no document in it.
    #[error(
        "the ConfigMap {0} holds neither {plain} nor {compressed}, the last good document stays in force: delete it, and \
         the operator makes it anew",
        plain = packed::DOCUMENT_KEY,
        compressed = packed::COMPRESSED_KEY
    )]
    Empty(ConfigMapName),
    /// The API cannot be asked.
    #[error("watching ConfigMap {map}, the last good document stays in force")]
    Watch {
        /// Which one.
        map: ConfigMapName,
        /// Why.
        source: Box<kube::runtime::watcher::Error>,
    },
    /// There is no API to ask.
    #[error(
        "finding the Kubernetes API for --config-map: neither a kubeconfig nor a service account is here"
    )]
    Config(#[source] Box<kube::config::InferConfigError>),
    /// The client could not be made.
    #[error("making a client of the Kubernetes API")]
    Client(#[source] Box<kube::Error>),
}

/// Where the document in force came from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Origin {
    /// The mounted file.
    Mounted,
    /// The API.
    Api,
    /// The copy on disk; the document's own place has not been read yet, or what is there is not valid.
    Cache,
}

/// The document in force, and what is wrong with the newest one if that is another.
#[derive(Clone, Debug, Default)]
pub struct Current {
    /// The document in force; none before the first valid one.
    pub config: Option<(Arc<NodeConfig>, Origin)>,
    /// Why the newest document is not the one in force.
    pub problem: Option<Arc<Error>>,
    /// Why a newer document would not be seen just now; the one in force is the newest that is known.
    pub outage: Option<Arc<Error>>,
    /// When the document in force was come upon, before it was read.
    pub seen: Option<Instant>,
}

/// Follows the document. The receiver starts with the copy on disk, if there is one, and then sees every document
/// that is taken and every reason why one is not.
///
/// # Errors
/// Where there is no API to ask.
pub async fn watch(place: Place, state_dir: &Path) -> Result<watch::Receiver<Current>, Error> {
    match place {
        Place::File(path) => Ok(file::watch(path, Cache::new(state_dir))),
        Place::ConfigMap(name) => Ok(follow(api::client().await?, name, state_dir, api::LIST_ANEW)),
    }
}

impl Current {
    /// Takes what was found at `place`, or takes down why not; tells whether anything changed.
    fn adopt(
        &mut self,
        seen: Instant,
        found: Result<Found, Error>,
        place: &str,
        origin: Origin,
        cache: &Cache,
    ) -> bool {
        let over = self.outage.take().is_some();
        match found.and_then(|found| Ok((self.take(found.config, place)?, found.text))) {
            Ok((config, text)) => {
                let known = self.problem.is_none()
                    && self
                        .config
                        .as_ref()
                        .is_some_and(|(c, from)| Arc::ptr_eq(c, &config) && *from == origin);
                if known {
                    return over;
                }
                info!(
                    generation = config.generation,
                    peers = config.peers.len(),
                    "new document"
                );
                cache.keep(text);
                self.config = Some((config, origin));
                self.seen = Some(seen);
                self.problem = None;
                true
            }
            Err(error) => self.refuse(error) || over,
        }
    }

    /// Takes down why the newest document is not the one in force; tells whether that is news.
    fn refuse(&mut self, error: Error) -> bool {
        note(&mut self.problem, error, "no new document")
    }

    /// Takes down why a newer document would not be seen; tells whether that is news.
    fn lose_sight(&mut self, error: Error) -> bool {
        note(&mut self.outage, error, "the document is not followed")
    }

    /// What follows when `found` is read at `place`. Pure.
    fn take(&self, found: Arc<NodeConfig>, place: &str) -> Result<Arc<NodeConfig>, Error> {
        let Some((current, _)) = &self.config else {
            return Ok(found);
        };
        let place = place.to_owned();
        if Arc::ptr_eq(&found, current) {
            Ok(found)
        } else if found.endpoint.name != current.endpoint.name {
            let (found, current) = (found.endpoint.name.clone(), current.endpoint.name.clone());
            Err(Error::Foreign {
                place,
                found,
                current,
            })
        } else if found.generation < current.generation {
            Err(Error::Stale {
                place,
                found: found.generation,
                current: current.generation,
            })
        } else if found == *current {
            Ok(Arc::clone(current))
        } else if found.generation == current.generation && found.generation != 0 {
            // A 0.4 document has no generation; there the content alone decides.
            Err(Error::Rewritten {
                place,
                generation: found.generation,
            })
        } else {
            Ok(found)
        }
    }
}

fn note(known: &mut Option<Arc<Error>>, error: Error, what: &str) -> bool {
    let text = crate::status::chain(&error);
    if known
        .as_ref()
        .is_some_and(|known| crate::status::chain(known.as_ref()) == text)
    {
        return false;
    }
    warn!(error = text, "{what}");
    *known = Some(Arc::new(error));
    true
}

/// A valid document.
#[derive(Clone, Debug)]
struct Found {
    config: Arc<NodeConfig>,
    /// As it was found, unpacked.
    text: Arc<String>,
}

impl Found {
    fn of(document: &Document) -> Self {
        Self {
            config: Arc::clone(document.config()),
            text: Arc::clone(document.text()),
        }
    }
}

/// Reads documents one after another, of each what is new in it.
#[derive(Debug, Default)]
struct Reader {
    last: Option<Document>,
    /// What `last` was unpacked from, if it was.
    members: Members,
    /// The text of the one before, as room for that of the next.
    room: Option<Arc<String>>,
}

impl Reader {
    /// The document in the two forms in which it may be there; both are for an instant when it grows or shrinks, and then
    /// the higher generation counts. None where there is neither.
    fn newest(
        &mut self,
        plain: Option<String>,
        compressed: Option<&[u8]>,
    ) -> Result<Option<Found>, config::Error> {
        let plain = plain.map(|text| self.read(text)).transpose()?;
        let compressed = compressed.map(|bytes| self.unpack(bytes)).transpose()?;
        let both = plain.into_iter().chain(compressed);
        Ok(both.max_by_key(|found| found.config.generation))
    }

    /// One file event is seldom alone, and unpacking what is known takes as long as all the rest.
    fn unpack(&mut self, bytes: &[u8]) -> Result<Found, config::Error> {
        let last = match &self.last {
            Some(last) if self.members.bytes() == bytes => return Ok(Found::of(last)),
            last => last.as_ref().map(|last| Arc::clone(last.text())),
        };
        let room = self.room.take().and_then(Arc::into_inner).unwrap_or_default();
        let known = last.as_ref().map_or("", |text| text.as_str());
        let (text, members) = self.members.next(known, bytes, room)?;
        let found = self.read(text)?;
        self.members = members;
        self.room = last;
        Ok(found)
    }

    fn read(&mut self, text: String) -> Result<Found, config::Error> {
        let document = match &mut self.last {
            Some(last) => {
                // After one that is refused, what comes in its place will be more like the last good one.
                if **last.text() != text {
                    last.next(text)?;
                }
                last
            }
            none => none.insert(Document::parse(text)?),
        };
        self.members = Members::default();
        Ok(Found::of(document))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn document(name: &str, generation: u64, subnet: &str) -> Arc<NodeConfig> {
        let config = NodeConfig::parse(&format!(
            "version: 1\ngeneration: {generation}\nid: CN={name}\nname: {name}\ntype: EdgeNode\nsubnets: [{subnet}]\n...\n"
        ));
        Arc::new(config.unwrap())
    }

    fn current(config: Arc<NodeConfig>) -> Current {
        Current {
            config: Some((config, Origin::Mounted)),
            ..Current::default()
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

    #[test]
    fn of_two_forms_the_higher_generation_counts_and_each_must_be_whole() {
        let text = |generation| document("a.edge1", generation, "10.1.1.0/24").to_yaml().unwrap();
        let gzip = |text: &str| {
            let long = format!("# {}\n{text}", "x".repeat(packed::PLAIN_BYTES));
            match packed::pack(long) {
                packed::Packed::Compressed(bytes) => bytes,
                packed::Packed::Plain(_) => panic!("not compressed"),
            }
        };
        let generation = |plain: Option<&str>, compressed: Option<&[u8]>| {
            let newest = Reader::default().newest(plain.map(str::to_owned), compressed);
            newest.unwrap().map(|found| found.config.generation)
        };
        assert_eq!(generation(None, None), None);
        assert_eq!(generation(Some(&text(4)), None), Some(4));
        assert_eq!(generation(None, Some(&gzip(&text(5)))), Some(5));
        for (plain, compressed) in [(4, 5), (5, 4)] {
            assert_eq!(
                generation(Some(&text(plain)), Some(&gzip(&text(compressed)))),
                Some(5)
            );
        }
        let whole = gzip(&text(5));
        let error = Reader::default()
            .newest(Some(text(4)), Some(&whole[..whole.len() - 1]))
            .unwrap_err();
        assert!(matches!(error, config::Error::Damaged(_)), "{error}");
    }
}
