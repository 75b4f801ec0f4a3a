//! Key, certificates and revocation lists: read from the mounted files and judged before charon gets them.

use std::collections::BTreeSet;
use std::fmt;
use std::io::ErrorKind;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use ring::digest::{SHA1_FOR_LEGACY_USE_ONLY, digest};
use x509_parser::pem::Pem;
use x509_parser::prelude::{FromDer, X509Certificate};
use x509_parser::time::ASN1Time;

use super::revocations::{self, List, Revoked};

/// Where the files are.
#[derive(Clone, Debug)]
pub struct Paths {
    /// Certificates of the authorities that peers may be certified by, PEM, one or more.
    pub authorities: PathBuf,
    /// This node's certificate, PEM.
    pub certificate: PathBuf,
    /// Its private key, PEM.
    pub key: PathBuf,
    /// What the authorities have revoked, PEM, one list or more; need not be there.
    pub revocations: PathBuf,
}

impl Default for Paths {
    fn default() -> Self {
        Self {
            authorities: "/etc/ipsec.d/cacerts/ca.crt".into(),
            certificate: "/etc/ipsec.d/certs/tls.crt".into(),
            key: "/etc/ipsec.d/private/tls.key".into(),
            revocations: "/etc/ipsec.d/cacerts/ca.crl".into(),
        }
    }
}

impl Paths {
    /// The files in one folder.
    pub fn within(folder: &Path) -> Self {
        Self {
            authorities: folder.join("ca.crt"),
            certificate: folder.join("tls.crt"),
            key: folder.join("tls.key"),
            revocations: folder.join("ca.crl"),
        }
    }
}

/// Why key and certificates are not taken.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A file cannot be read.
    #[error("reading {}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// A file is not what it should be.
    #[error("{} holds no PEM {expected}: {reason}", path.display())]
    Malformed {
        /// The file.
        path: PathBuf,
        /// What should be in it.
        expected: &'static str,
        /// What is wrong.
        reason: String,
    },
    /// Not valid now.
    #[error(
        "the certificate {subject} in {} is valid from {not_before} to {not_after}, and this node's clock says {now}: \
         renew it, or set the clock",
        path.display()
    )]
    Validity {
        /// The file.
        path: PathBuf,
        /// Whose.
        subject: String,
        /// First moment.
        not_before: String,
        /// Last moment.
        not_after: String,
        /// Now.
        now: String,
    },
    /// Signed by somebody else.
    #[error(
        "the certificate {subject} in {} is not signed by an authority in {}: both must come from the same operator",
        path.display(), authorities.display()
    )]
    Authority {
        /// The file.
        path: PathBuf,
        /// Whose.
        subject: String,
        /// The authorities' file.
        authorities: PathBuf,
    },
    /// Another node's.
    #[error(
        "the certificate in {} is that of {subject}, but the document says that this node is {id}",
        path.display()
    )]
    Subject {
        /// The file.
        path: PathBuf,
        /// Whose.
        subject: String,
        /// Own IKE identity.
        id: String,
    },
    /// A revocation list that is signed by somebody else.
    #[error(
        "the certificate revocation list of {issuer} in {} is not signed by an authority in {}: both must come from the \
         same operator",
        path.display(), authorities.display()
    )]
    ListAuthority {
        /// The file.
        path: PathBuf,
        /// Whose.
        issuer: String,
        /// The authorities' file.
        authorities: PathBuf,
    },
    /// A revocation list that charon would not find.
    #[error(
        "the certificate revocation list of {issuer} in {} does not say which key signed it, by which charon finds it: \
         issue it with an authority key identifier",
        path.display()
    )]
    ListKey {
        /// The file.
        path: PathBuf,
        /// Whose.
        issuer: String,
    },
    /// A revocation list of the future, which charon passes over.
    #[error(
        "the certificate revocation list of {issuer} in {} is valid from {from}, and this node's clock says {now}: set \
         the clock",
        path.display()
    )]
    ListDate {
        /// The file.
        path: PathBuf,
        /// Whose.
        issuer: String,
        /// First moment.
        from: String,
        /// Now.
        now: String,
    },
    /// Key and certificate are not a pair.
    #[error("the key in {} does not belong to the certificate in {}: replace both together", key.display(), certificate.display())]
    Mismatch {
        /// The key's file.
        key: PathBuf,
        /// The certificate's file.
        certificate: PathBuf,
    },
}

/// Where key and certificates were read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Origin {
    /// Where they are mounted.
    Mounted,
    /// From the copies on disk.
    Kept,
}

/// The files as they were read.
#[derive(Clone, PartialEq, Eq)]
pub struct Files {
    authorities: Vec<u8>,
    certificate: Vec<u8>,
    key: Vec<u8>,
    /// Empty where there is no such file.
    revocations: Vec<u8>,
    /// The key's mode lets others than its owner read it.
    pub key_exposed: bool,
}

/// Key and certificates that passed every check that can be made without the key itself.
#[derive(Clone, PartialEq, Eq)]
pub struct Material {
    /// Authorities, DER.
    pub authorities: Vec<Vec<u8>>,
    /// Own certificate, DER.
    pub certificate: Vec<u8>,
    /// Own key, PEM.
    pub key: Vec<u8>,
    /// What charon calls the certificate's key: SHA-1 of the public key, in hex.
    pub key_id: String,
    /// Whose certificate it is.
    pub subject: String,
    /// Seconds since the epoch at which it expires.
    pub not_after: i64,
    /// What the authorities have revoked.
    pub lists: Vec<List>,
}

impl fmt::Debug for Material {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Material")
            .field("subject", &self.subject)
            .field("key_id", &self.key_id)
            .field("not_after", &self.not_after)
            .finish_non_exhaustive()
    }
}

impl Material {
    /// Whether charon, once it has this, has nothing of `old` that is of no use any more, but for own certificates.
    pub fn covers(&self, old: &Self) -> bool {
        old.authorities.iter().all(|der| self.authorities.contains(der))
            && old
                .lists
                .iter()
                .all(|old| self.lists.iter().any(|new| new.replaces(old)))
    }
}

impl fmt::Debug for Files {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // A secret is in it.
        f.debug_struct("Files").finish_non_exhaustive()
    }
}

impl Files {
    /// Reads the files.
    ///
    /// # Errors
    /// [`Error::Read`] naming the file.
    pub fn read(paths: &Paths) -> Result<Self, Error> {
        let read = |path: &Path| {
            std::fs::read(path).map_err(|source| Error::Read {
                path: path.to_owned(),
                source,
            })
        };
        let mode = std::fs::metadata(&paths.key)
            .map_err(|source| Error::Read {
                path: paths.key.clone(),
                source,
            })?
            .permissions()
            .mode();
        Ok(Self {
            authorities: read(&paths.authorities)?,
            certificate: read(&paths.certificate)?,
            key: read(&paths.key)?,
            revocations: match read(&paths.revocations) {
                Err(Error::Read { source, .. }) if source.kind() == ErrorKind::NotFound => Vec::new(),
                result => result?,
            },
            key_exposed: mode & 0o077 != 0,
        })
    }

    /// Reads the files, or, where one of them is not there, the copies that [`Files::keep`] made.
    ///
    /// # Errors
    /// [`Error::Read`] naming the file that should be there.
    pub fn read_or_kept(paths: &Paths, copies: Option<&Paths>) -> Result<(Self, Origin), Error> {
        match (Self::read(paths), copies) {
            (Err(Error::Read { path, source }), Some(copies)) if source.kind() == ErrorKind::NotFound => {
                Self::read(copies)
                    .map(|files| (files, Origin::Kept))
                    .map_err(|_| Error::Read { path, source })
            }
            (result, _) => result.map(|files| (files, Origin::Mounted)),
        }
    }

    /// Keeps copies for a start without the cloud, readable for root alone.
    ///
    /// # Errors
    /// Those of the file system.
    pub fn keep(&self, copies: &Paths) -> std::io::Result<()> {
        for (path, content) in [
            (&copies.authorities, &self.authorities),
            (&copies.certificate, &self.certificate),
            (&copies.key, &self.key),
            (&copies.revocations, &self.revocations),
        ] {
            if std::fs::read(path).ok().as_ref() != Some(content) {
                crate::source::write_private(path, content)?;
            }
        }
        Ok(())
    }

    /// Judges what was read, as of `now`; `id` is this node's IKE identity.
    ///
    /// # Errors
    /// See [`Error`].
    pub fn check(&self, paths: &Paths, id: &str, now: SystemTime) -> Result<Material, Error> {
        let authorities = ders(
            &paths.authorities,
            &self.authorities,
            "certificate",
            "CERTIFICATE",
        )?;
        let certificate = ders(
            &paths.certificate,
            &self.certificate,
            "certificate",
            "CERTIFICATE",
        )?
        .swap_remove(0);
        ders(&paths.key, &self.key, "private key", "PRIVATE KEY")?;

        let issuers: Vec<X509Certificate<'_>> = authorities
            .iter()
            .map(|der| parse(&paths.authorities, der))
            .collect::<Result<_, _>>()?;
        let own = parse(&paths.certificate, &certificate)?;
        let subject = own.subject().to_string();
        if dn(&subject) != dn(id) {
            return Err(Error::Subject {
                path: paths.certificate.clone(),
                subject,
                id: id.to_owned(),
            });
        }
        let signed = issuers.iter().any(|issuer| {
            issuer.is_ca()
                && issuer.subject() == own.issuer()
                && own.verify_signature(Some(issuer.public_key())).is_ok()
        });
        if !signed {
            return Err(Error::Authority {
                path: paths.certificate.clone(),
                subject,
                authorities: paths.authorities.clone(),
            });
        }
        let now = timestamp(now);
        if !own.validity().is_valid_at(now) {
            return Err(Error::Validity {
                path: paths.certificate.clone(),
                subject,
                not_before: own.validity().not_before.to_string(),
                not_after: own.validity().not_after.to_string(),
                now: now.to_string(),
            });
        }
        let key_id = digest(
            &SHA1_FOR_LEGACY_USE_ONLY,
            &own.public_key().subject_public_key.data,
        );
        Ok(Material {
            key_id: key_id.as_ref().iter().map(|byte| format!("{byte:02x}")).collect(),
            subject,
            not_after: own.validity().not_after.timestamp(),
            key: self.key.clone(),
            certificate,
            authorities,
            lists: Vec::new(),
        })
    }

    /// What `authorities` (DER) have revoked as of `now`, and what of the file is not fit for use.
    pub fn lists(&self, paths: &Paths, authorities: &[Vec<u8>], now: SystemTime) -> (Vec<List>, Vec<Error>) {
        revocations::parse(
            &paths.revocations,
            &self.revocations,
            &paths.authorities,
            authorities,
            timestamp(now),
        )
    }

    /// What the authorities among these files have revoked, as far as it can be made out.
    pub fn revoked(&self, paths: &Paths, now: SystemTime) -> BTreeSet<Revoked> {
        ders(
            &paths.authorities,
            &self.authorities,
            "certificate",
            "CERTIFICATE",
        )
        .map(|authorities| self.lists(paths, &authorities, now).0)
        .unwrap_or_default()
        .iter()
        .flat_map(List::revoked)
        .collect()
    }
}

/// The PEM blocks of a file whose label ends in `label`; at least one.
pub(super) fn ders(
    path: &Path,
    text: &[u8],
    expected: &'static str,
    label: &str,
) -> Result<Vec<Vec<u8>>, Error> {
    let malformed = |reason: String| Error::Malformed {
        path: path.to_owned(),
        expected,
        reason,
    };
    let mut found = Vec::new();
    for block in Pem::iter_from_buffer(text) {
        let block = block.map_err(|error| malformed(error.to_string()))?;
        if block.label.ends_with(label) {
            found.push(block.contents);
        }
    }
    if found.is_empty() {
        return Err(malformed("there is no such block in it".to_owned()));
    }
    Ok(found)
}

fn parse<'a>(path: &Path, der: &'a [u8]) -> Result<X509Certificate<'a>, Error> {
    X509Certificate::from_der(der)
        .map(|(_, certificate)| certificate)
        .map_err(|error| Error::Malformed {
            path: path.to_owned(),
            expected: "certificate",
            reason: error.to_string(),
        })
}

/// A distinguished name without regard to blanks after commas and around `=`.
pub(super) fn dn(name: &str) -> Vec<(&str, &str)> {
    name.split(',')
        .map(|part| {
            part.split_once('=')
                .map_or((part.trim(), ""), |(key, value)| (key.trim(), value.trim()))
        })
        .collect()
}

fn timestamp(time: SystemTime) -> ASN1Time {
    let seconds = time
        .duration_since(SystemTime::UNIX_EPOCH)
        .map_or(0, |since| since.as_secs());
    i64::try_from(seconds)
        .ok()
        .and_then(|seconds| ASN1Time::from_timestamp(seconds).ok())
        .unwrap_or_else(ASN1Time::now)
}

#[cfg(test)]
mod tests;
