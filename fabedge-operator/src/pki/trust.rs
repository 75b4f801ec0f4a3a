//! What certificates are judged by: the certificates of authorities, of this cluster or of the one it registered with.

use std::collections::BTreeSet;

use time::OffsetDateTime;
use x509_parser::prelude::{FromDer, X509Certificate};

use super::authority::Error;
use super::{inspect, revocation};

/// The certificate of an authority, and those that are trusted beside it while one takes over from another. The first
/// one signs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Trust {
    pem: String,
    der: Vec<u8>,
    others: Vec<Vec<u8>>,
    lists: String,
    revoked: BTreeSet<String>,
    not_before: OffsetDateTime,
    not_after: OffsetDateTime,
}

impl Trust {
    /// Reads the certificates of authorities, PEM, the one first that signs.
    ///
    /// # Errors
    /// When the first one does not parse, is not that of an authority, or is not valid now; or another one is no
    /// certificate at all.
    pub fn read(pem: &str, now: OffsetDateTime) -> Result<Self, Error> {
        let der = inspect::certificate_der(pem).map_err(Error::Certificate)?;
        let (_, parsed) = X509Certificate::from_der(&der).map_err(|e| Error::Certificate(e.to_string()))?;
        if !parsed.is_ca() {
            return Err(Error::NotAnAuthority("basic constraints do not say CA"));
        }
        if parsed
            .key_usage()
            .ok()
            .flatten()
            .is_some_and(|usage| !usage.value.key_cert_sign())
        {
            return Err(Error::NotAnAuthority(
                "key usage does not allow signing certificates",
            ));
        }
        if parsed.subject().iter().any(|rdn| rdn.iter().count() != 1) {
            return Err(Error::NotAnAuthority(
                "its name has parts of more than one attribute",
            ));
        }
        let validity = parsed.validity();
        let (from, until) = (
            validity.not_before.to_datetime(),
            validity.not_after.to_datetime(),
        );
        if now < from || now >= until {
            return Err(Error::NotValid { from, until, now });
        }
        let mut others = Vec::new();
        for other in blocks(pem).skip(1) {
            others.push(inspect::certificate_der(other).map_err(Error::Certificate)?);
        }
        Ok(Self {
            pem: pem.to_owned(),
            not_before: from,
            not_after: until,
            der,
            others,
            lists: String::new(),
            revoked: BTreeSet::new(),
        })
    }

    /// The same, with others beside it.
    pub fn with(&self, others: &[&Trust]) -> Self {
        let mut all = self.clone();
        for other in others {
            if !all.pem.ends_with('\n') {
                all.pem.push('\n');
            }
            all.pem += &other.pem;
            all.others.extend(other.all().map(<[u8]>::to_vec));
        }
        all
    }

    /// The same, with what the authorities have revoked: revocation lists, PEM, or nothing.
    ///
    /// # Errors
    /// When one of them is none, or of another authority.
    pub fn with_lists(self, lists: &str) -> Result<Self, Error> {
        let all: Vec<&[u8]> = self.all().collect();
        let revoked = revocation::named(lists, &all)?;
        Ok(Self {
            lists: lists.to_owned(),
            revoked,
            ..self
        })
    }

    /// One of them alone: the first that `is_it`, if it is fit.
    pub fn only(&self, is_it: impl Fn(&[u8]) -> bool, now: OffsetDateTime) -> Option<Self> {
        let is_it = |text: &&str| inspect::certificate_der(text).is_ok_and(|der| is_it(&der));
        Self::read(blocks(&self.pem).find(is_it)?, now).ok()
    }

    /// Every certificate as DER, the one first that signs.
    pub fn all(&self) -> impl Iterator<Item = &[u8]> {
        std::iter::once(&self.der).chain(&self.others).map(Vec::as_slice)
    }

    /// The revocation lists, PEM; nothing where nothing was revoked yet.
    pub fn lists(&self) -> &str {
        &self.lists
    }

    /// The serial numbers that they name.
    pub(super) fn revoked(&self) -> &BTreeSet<String> {
        &self.revoked
    }

    /// Whether a certificate, PEM, was taken back.
    pub fn revokes(&self, certificate: &str) -> bool {
        revocation::serial_of(certificate).is_some_and(|serial| self.revoked.contains(&serial))
    }

    /// As it was read.
    pub fn pem(&self) -> &str {
        &self.pem
    }

    /// The certificate of the one that signs, as DER.
    pub fn der(&self) -> &[u8] {
        &self.der
    }

    /// When it ends.
    pub fn not_after(&self) -> OffsetDateTime {
        self.not_after
    }

    /// When two thirds of its life are over.
    pub fn renewal(&self) -> OffsetDateTime {
        self.not_before + (self.not_after - self.not_before) * 2 / 3
    }
}

/// The text of every certificate in a text.
fn blocks(pem: &str) -> impl Iterator<Item = &str> {
    let blocks = pem.split_inclusive(END);
    blocks.filter(|block| block.ends_with(END))
}

const END: &str = "-----END CERTIFICATE-----";
