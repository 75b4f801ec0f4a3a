//! Documents and certificates -> the output folder. Only what changed is written, each file in one step.

pub mod files;

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::{fs, io};

use fabedge_common::config::{CLOUD, CONNECTOR, NodeConfig};
use ipnet::IpNet;
use time::OffsetDateTime;
use tracing::info;

use crate::pki::Authority;
use crate::pki::authority;
use crate::pki::inspect::{Verdict, judge};
use crate::topology::Previous;

const DOCUMENT: &str = "tunnels.yaml";
const AUTHORITY: &str = "ca.crt";
const CERTIFICATE: &str = "tls.crt";
const KEY: &str = "tls.key";

/// Why something was not published.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A file could not be read, written or removed.
    #[error("{action} {}", path.display())]
    Io {
        /// What was attempted.
        action: &'static str,
        /// On which file or folder.
        path: PathBuf,
        /// Why it failed.
        source: io::Error,
    },
    /// The document could not be written as YAML.
    #[error("writing the document of {name} as YAML")]
    Document {
        /// Whose document.
        name: String,
        /// Why.
        source: fabedge_common::config::Error,
    },
    /// No certificate.
    #[error(transparent)]
    Certificate(authority::Error),
}

/// What a pass did, wherever it published; `E` is what can fail there.
#[derive(Debug)]
pub struct Report<E = Error> {
    /// Local names whose document was written.
    pub documents: Vec<String>,
    /// Local names that got a certificate, and why.
    pub certificates: Vec<(String, &'static str)>,
    /// Local names of which everything was removed.
    pub removed: Vec<String>,
    /// What failed; the rest was done.
    pub failures: Vec<E>,
}

// Derived, it would want a default of `E`.
impl<E> Default for Report<E> {
    fn default() -> Self {
        Self {
            documents: Vec::new(),
            certificates: Vec::new(),
            removed: Vec::new(),
            failures: Vec::new(),
        }
    }
}

impl<E> Report<E> {
    /// Adds another one.
    pub fn absorb(&mut self, other: Self) {
        self.documents.extend(other.documents);
        self.certificates.extend(other.certificates);
        self.removed.extend(other.removed);
        self.failures.extend(other.failures);
    }

    /// Says what was done; what failed is for a [`crate::reporter::Reporter`], which says it once.
    pub fn log(&self) {
        let mut issued: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
        for (name, why) in &self.certificates {
            issued.entry(why).or_default().push(name);
        }
        for (why, names) in issued {
            info!(count = names.len(), first = names[0], why, "issued certificates");
        }
        if let Some(first) = self.documents.first() {
            info!(count = self.documents.len(), first, "wrote documents");
        }
        for name in &self.removed {
            info!(node = name, "removed what was published for a node that is gone");
        }
    }
}

/// The output folder.
#[derive(Clone, Debug)]
pub struct Output {
    folder: PathBuf,
    /// What is known to lie there, so that a pass need not look at what has not changed.
    published: BTreeMap<String, Published>,
}

#[derive(Clone, Debug)]
struct Published {
    document: NodeConfig,
    /// When its certificate is due; none for those that have no certificate.
    renew_at: Option<OffsetDateTime>,
}

impl Output {
    /// An output folder; made when first written to.
    pub fn new(folder: impl Into<PathBuf>) -> Self {
        Self {
            folder: folder.into(),
            published: BTreeMap::new(),
        }
    }

    /// The folder itself.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// Forgets what is known to lie there: the next pass looks at every file.
    pub fn distrust(&mut self) {
        self.published.clear();
    }

    /// What was published before, as far as it can be read: a damaged document is as good as none.
    ///
    /// # Errors
    /// When the folder is there but cannot be listed: that is not the same as empty.
    pub fn previous(&self, cluster: &str) -> Result<Previous, Error> {
        let mut previous = Previous::default();
        for name in self.names()? {
            if name == CONNECTOR || name == CLOUD {
                continue;
            }
            let subnets = fs::read_to_string(self.folder.join(&name).join(DOCUMENT))
                .ok()
                .and_then(|text| NodeConfig::parse(&text).ok())
                .filter(|document| document.endpoint.name == format!("{cluster}.{name}"))
                .map(|document| document.endpoint.subnets)
                .unwrap_or_default();
            if !subnets.is_empty() {
                let subnets: Vec<IpNet> = subnets;
                previous.subnets.insert(name, subnets);
            }
        }
        Ok(previous)
    }

    /// Writes what differs. Without an authority: documents only, and the next pass looks at all of them again.
    pub fn publish(
        &mut self,
        documents: &BTreeMap<String, NodeConfig>,
        authority: Option<&Authority>,
        now: OffsetDateTime,
    ) -> Report {
        let mut report = Report::default();
        for (name, document) in documents {
            let known = self.published.get(name);
            let due = known.and_then(|known| known.renew_at).is_some_and(|at| now >= at);
            if due || known.is_none_or(|known| known.document != *document) {
                self.published.remove(name);
                match self.publish_one(name, document, authority, now, &mut report) {
                    Ok(published) if authority.is_some() => {
                        self.published.insert(name.clone(), published);
                    }
                    Ok(_) => {}
                    Err(e) => report.failures.push(e),
                }
            }
        }
        report
    }

    /// When the next certificate is due.
    pub fn renew_at(&self) -> Option<OffsetDateTime> {
        self.published
            .values()
            .filter_map(|published| published.renew_at)
            .min()
    }

    /// Removes what was published for those who are in neither list.
    pub fn prune(
        &mut self,
        documents: &BTreeMap<String, NodeConfig>,
        keep: &BTreeSet<String>,
        cluster: &str,
        report: &mut Report,
    ) {
        self.published.retain(|name, _| documents.contains_key(name));
        match self.names() {
            Ok(names) => {
                for name in names
                    .into_iter()
                    .filter(|n| !documents.contains_key(n) && !keep.contains(n))
                {
                    match self.remove(&name, cluster) {
                        Ok(true) => report.removed.push(name),
                        Ok(false) => {}
                        Err(e) => report.failures.push(e),
                    }
                }
            }
            Err(e) => report.failures.push(e),
        }
    }

    fn publish_one(
        &self,
        name: &str,
        document: &NodeConfig,
        authority: Option<&Authority>,
        now: OffsetDateTime,
        report: &mut Report,
    ) -> Result<Published, Error> {
        let folder = self.folder.join(name);
        files::create_folder(&folder, 0o755).map_err(io_error("making the folder", &folder))?;
        // Certificates before the document: what the document asks for can be had when it appears.
        let renew_at = match authority {
            Some(authority) if name != CLOUD => {
                Some(self.publish_certificate(name, &document.endpoint.name, authority, now, report)?)
            }
            _ => None,
        };
        let path = folder.join(DOCUMENT);
        let before = read(&path)?;
        if let Some(text) = next_document(document, before.as_deref(), None, now)? {
            files::replace(&path, text.as_bytes(), 0o644).map_err(io_error("writing", &path))?;
            report.documents.push(name.to_owned());
        }
        Ok(Published {
            document: document.clone(),
            renew_at,
        })
    }

    fn publish_certificate(
        &self,
        name: &str,
        full_name: &str,
        authority: &Authority,
        now: OffsetDateTime,
        report: &mut Report,
    ) -> Result<OffsetDateTime, Error> {
        let path = |file| self.folder.join(name).join(file);
        let write = |file, text: &str, mode| {
            let path = path(file);
            files::replace(&path, text.as_bytes(), mode).map_err(io_error("writing", &path))
        };
        if read(&path(AUTHORITY))?.as_deref() != Some(authority.certificate()) {
            write(AUTHORITY, authority.certificate(), 0o644)?;
        }
        let verdict = match (read(&path(CERTIFICATE))?, read(&path(KEY))?) {
            (Some(certificate), Some(key)) => judge(&certificate, &key, full_name, authority.trust(), now),
            _ => Verdict::Renew("it has none"),
        };
        let why = match verdict {
            Verdict::Keep { renew_at } => return Ok(renew_at),
            Verdict::Renew(why) => why,
        };
        let leaf = authority.issue(full_name, now).map_err(Error::Certificate)?;
        write(KEY, &leaf.key, 0o600)?;
        write(CERTIFICATE, &leaf.certificate, 0o644)?;
        report.certificates.push((name.to_owned(), why));
        Ok(authority.renewal(now))
    }

    /// Local names in the folder. Names with a leading `_` or `.` are no node's: those are ours or a person's.
    fn names(&self) -> Result<Vec<String>, Error> {
        let entries = match fs::read_dir(&self.folder) {
            Ok(entries) => entries,
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(e) => return Err(io_error("listing", &self.folder)(e)),
        };
        let mut names = Vec::new();
        for entry in entries {
            let entry = entry.map_err(io_error("listing", &self.folder))?;
            if let Ok(name) = entry.file_name().into_string()
                && !name.starts_with(['_', '.'])
                && entry.path().join(DOCUMENT).is_file()
            {
                names.push(name);
            }
        }
        names.sort();
        Ok(names)
    }

    /// Removes what was published for a node that is gone, and nothing else that may lie in its folder.
    fn remove(&self, name: &str, cluster: &str) -> Result<bool, Error> {
        let folder = self.folder.join(name);
        let mark = format!("name: {cluster}.{name}");
        if !read(&folder.join(DOCUMENT))?.is_some_and(|text| text.lines().any(|line| line == mark)) {
            return Ok(false);
        }
        let mut removed = false;
        for file in [KEY, CERTIFICATE, AUTHORITY, DOCUMENT] {
            let path = folder.join(file);
            match fs::remove_file(&path) {
                Ok(()) => removed = true,
                Err(e) if e.kind() == io::ErrorKind::NotFound => {}
                Err(e) => return Err(io_error("removing", &path)(e)),
            }
        }
        match fs::remove_dir(&folder) {
            Err(e) if e.kind() != io::ErrorKind::DirectoryNotEmpty => Err(io_error("removing", &folder)(e)),
            _ => Ok(removed),
        }
    }
}

/// The text to write, if `document` says something else than `before`: its generation then is higher than any
/// that was published, even where the earlier text is lost. `floor` is the highest that is known to have been.
pub(crate) fn next_document(
    document: &NodeConfig,
    before: Option<&str>,
    floor: Option<u64>,
    now: OffsetDateTime,
) -> Result<Option<String>, Error> {
    let with = |generation| {
        let document = NodeConfig {
            generation,
            ..document.clone()
        };
        document.to_yaml().map_err(|source| Error::Document {
            name: document.endpoint.name.clone(),
            source,
        })
    };
    let published = before.and_then(generation);
    if let Some(generation) = published
        && before == Some(with(generation)?.as_str())
    {
        return Ok(None);
    }
    let clock = u64::try_from(now.unix_timestamp()).unwrap_or_default();
    let highest = published.max(floor);
    with(highest.map_or(clock, |generation| clock.max(generation.saturating_add(1)))).map(Some)
}

/// The generation in a document's text. Without a parser, so that it can be had of a damaged document too.
pub(crate) fn generation(text: &str) -> Option<u64> {
    text.lines()
        .find_map(|line| line.strip_prefix("generation:"))?
        .trim()
        .parse()
        .ok()
}

fn read(path: &Path) -> Result<Option<String>, Error> {
    match fs::read(path) {
        Ok(bytes) => Ok(Some(String::from_utf8_lossy(&bytes).into_owned())),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(e) => Err(io_error("reading", path)(e)),
    }
}

fn io_error(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Error {
    let path = path.to_owned();
    move |source| Error::Io { action, path, source }
}

#[cfg(test)]
mod tests;
