//! The authority's files.

use std::path::{Path, PathBuf};
use std::{fs, io};

use time::OffsetDateTime;

use super::Authority;
use super::authority;
use crate::publish::files;

const CERTIFICATE: &str = "ca.crt";
const KEY: &str = "ca.key";

/// Why there is no authority.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A file could not be read or written.
    #[error("{action} {}", path.display())]
    Io {
        /// What was attempted.
        action: &'static str,
        /// On which file.
        path: PathBuf,
        /// Why it failed.
        source: io::Error,
    },
    /// Half of it is missing.
    #[error(
        "{} is there, but {} is not: put it back, or move the first away to have a new CA made, which every node \
         must then get", there.display(), missing.display()
    )]
    Half {
        /// The file that is there.
        there: PathBuf,
        /// The one that is not.
        missing: PathBuf,
    },
    /// What is there is not an authority that can be used. It is never overwritten.
    #[error(
        "the CA in {} is refused and left as it is: mend it, or move both files away to have a new CA made, which \
         every node must then get", folder.display()
    )]
    Refused {
        /// The CA's folder.
        folder: PathBuf,
        /// Why.
        source: authority::Error,
    },
    /// Making a new one failed.
    #[error("making a CA")]
    Generate(#[source] authority::Error),
}

/// Loads the authority from `folder`, or makes one where there is none.
///
/// # Errors
/// When there is half of one, one that cannot be used, or the files cannot be read or written. What is there is
/// never overwritten.
pub fn open(folder: &Path, cluster: &str, now: OffsetDateTime) -> Result<Authority, Error> {
    let (certificate_path, key_path) = (folder.join(CERTIFICATE), folder.join(KEY));
    let certificate = read(&certificate_path)?;
    let key = read(&key_path)?;
    let (certificate, key) = match (certificate, key) {
        (Some(certificate), Some(key)) => (certificate, key),
        (Some(_), None) => {
            return Err(Error::Half {
                there: certificate_path,
                missing: key_path,
            });
        }
        (None, Some(_)) => {
            return Err(Error::Half {
                there: key_path,
                missing: certificate_path,
            });
        }
        (None, None) => {
            let new = Authority::generate(cluster, now).map_err(Error::Generate)?;
            files::create_folder(folder, 0o700).map_err(|source| Error::Io {
                action: "making the folder",
                path: folder.to_owned(),
                source,
            })?;
            // The key first: a certificate without a key is of no use, and is refused above.
            for (path, text, mode) in [
                (&key_path, &new.key, 0o600),
                (&certificate_path, &new.certificate, 0o644),
            ] {
                files::replace_synced(path, text.as_bytes(), mode).map_err(|source| Error::Io {
                    action: "writing",
                    path: path.clone(),
                    source,
                })?;
            }
            (new.certificate, new.key)
        }
    };
    Authority::load(&certificate, &key, now).map_err(|source| Error::Refused {
        folder: folder.to_owned(),
        source,
    })
}

fn read(path: &Path) -> Result<Option<String>, Error> {
    match fs::read_to_string(path) {
        Ok(text) => Ok(Some(text)),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(source) => Err(Error::Io {
            action: "reading",
            path: path.to_owned(),
            source,
        }),
    }
}
