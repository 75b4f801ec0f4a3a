//! Certificate revocation lists: which certificates their authorities have taken back. Pure.

use std::collections::BTreeSet;
use std::path::Path;

use ring::digest::{SHA256, digest};
use x509_parser::prelude::{
    CertificateRevocationList, FromDer, ParsedExtension, X509Certificate, X509Extension,
};
use x509_parser::time::ASN1Time;

use super::credentials::{self, Error};

/// A certificate that is worth nothing any more.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Revoked {
    /// SHA-256 of the public key that signed it; several authorities may bear one name.
    authority: Vec<u8>,
    serial: Vec<u8>,
}

impl Revoked {
    /// Whether `certificate` (DER) is the one, given the `authorities` (DER) that are trusted.
    pub fn is(&self, certificate: &[u8], authorities: &[Vec<u8>]) -> bool {
        let Ok((_, certificate)) = X509Certificate::from_der(certificate) else {
            return false;
        };
        significant(certificate.raw_serial()) == self.serial
            && authorities
                .iter()
                .filter_map(|der| X509Certificate::from_der(der).ok())
                .any(|(_, authority)| {
                    key(&authority) == self.authority
                        && certificate.verify_signature(Some(authority.public_key())).is_ok()
                })
    }
}

/// A list that one of the trusted authorities signed.
#[derive(Clone, PartialEq, Eq)]
pub struct List {
    /// As charon takes it.
    pub der: Vec<u8>,
    /// Whose it is, for people.
    pub issuer: String,
    /// As in [`Revoked`].
    authority: Vec<u8>,
    /// Its number: length, then digits. A later list has a greater one.
    number: (usize, Vec<u8>),
    serials: BTreeSet<Vec<u8>>,
}

impl List {
    /// Whether charon drops `older` by itself when it gets this one.
    pub fn replaces(&self, older: &Self) -> bool {
        self.authority == older.authority && self.number >= older.number
    }

    /// Whether both come from the same authority.
    pub fn of_same_authority(&self, other: &Self) -> bool {
        self.authority == other.authority
    }

    /// Whether the authority is one of `authorities` (DER).
    pub fn is_of(&self, authorities: &[Vec<u8>]) -> bool {
        authorities
            .iter()
            .filter_map(|der| X509Certificate::from_der(der).ok())
            .any(|(_, authority)| key(&authority) == self.authority)
    }

    /// What is on it.
    pub fn revoked(&self) -> impl Iterator<Item = Revoked> {
        self.serials.iter().map(|serial| Revoked {
            authority: self.authority.clone(),
            serial: serial.clone(),
        })
    }
}

/// The lists in the text of the file `path`, as far as they are fit for use at `now`, and why the others are not.
pub fn parse(
    path: &Path,
    text: &[u8],
    authorities_path: &Path,
    authorities: &[Vec<u8>],
    now: ASN1Time,
) -> (Vec<List>, Vec<Error>) {
    // Nobody's certificate was taken back yet.
    if text.trim_ascii().is_empty() {
        return Default::default();
    }
    let mut lists = Vec::new();
    let mut errors = Vec::new();
    match credentials::ders(path, text, "certificate revocation list", "X509 CRL") {
        Ok(ders) => {
            for der in ders {
                match list(path, der, authorities_path, authorities, now) {
                    Ok(list) => lists.push(list),
                    Err(error) => errors.push(error),
                }
            }
        }
        Err(error) => errors.push(error),
    }
    (lists, errors)
}

fn list(
    path: &Path,
    der: Vec<u8>,
    authorities_path: &Path,
    authorities: &[Vec<u8>],
    now: ASN1Time,
) -> Result<List, Error> {
    let (_, parsed) = CertificateRevocationList::from_der(&der).map_err(|error| Error::Malformed {
        path: path.to_owned(),
        expected: "certificate revocation list",
        reason: error.to_string(),
    })?;
    let issuer = parsed.issuer().to_string();
    let signer = authorities
        .iter()
        .filter_map(|der| X509Certificate::from_der(der).ok())
        .map(|(_, authority)| authority)
        .find(|authority| {
            authority.subject() == parsed.issuer() && parsed.verify_signature(authority.public_key()).is_ok()
        });
    let Some(signer) = signer else {
        return Err(Error::ListAuthority {
            path: path.to_owned(),
            issuer,
            authorities: authorities_path.to_owned(),
        });
    };
    let named = key_identifier(parsed.extensions());
    if named.is_none() || named != key_identifier(signer.extensions()) {
        return Err(Error::ListKey {
            path: path.to_owned(),
            issuer,
        });
    }
    if parsed.last_update() > now {
        return Err(Error::ListDate {
            path: path.to_owned(),
            issuer,
            from: parsed.last_update().to_string(),
            now: now.to_string(),
        });
    }
    let number = parsed
        .crl_number()
        .map(|number| significant(&number.to_bytes_be()))
        .unwrap_or_default();
    let authority = key(&signer);
    let serials = parsed
        .iter_revoked_certificates()
        .map(|revoked| significant(revoked.raw_serial()))
        .collect();
    Ok(List {
        issuer,
        authority,
        number: (number.len(), number),
        serials,
        der,
    })
}

/// The key's identifier that an authority's certificate carries, or by which a list refers to it.
fn key_identifier(extensions: &[X509Extension<'_>]) -> Option<Vec<u8>> {
    extensions
        .iter()
        .find_map(|extension| match extension.parsed_extension() {
            ParsedExtension::SubjectKeyIdentifier(id) => Some(id.0.to_vec()),
            ParsedExtension::AuthorityKeyIdentifier(id) => id.key_identifier.as_ref().map(|id| id.0.to_vec()),
            _ => None,
        })
}

fn key(authority: &X509Certificate<'_>) -> Vec<u8> {
    digest(&SHA256, authority.public_key().raw).as_ref().to_vec()
}

/// A number's bytes without zeros in front.
fn significant(bytes: &[u8]) -> Vec<u8> {
    bytes.iter().copied().skip_while(|byte| *byte == 0).collect()
}

#[cfg(test)]
mod tests;
