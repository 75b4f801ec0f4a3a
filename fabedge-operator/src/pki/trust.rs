//! What certificates are judged by: the certificate of an authority, of this cluster or of the one it registered with.

use time::OffsetDateTime;
use x509_parser::prelude::{FromDer, X509Certificate};

use super::authority::Error;
use super::inspect;

/// The certificate of an authority.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Trust {
    pem: String,
    der: Vec<u8>,
    not_after: OffsetDateTime,
}

impl Trust {
    /// Reads the certificate of an authority, PEM.
    ///
    /// # Errors
    /// When it does not parse, is not that of an authority, or is not valid now.
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
        Ok(Self {
            pem: pem.to_owned(),
            not_after: until,
            der,
        })
    }

    /// As it was read.
    pub fn pem(&self) -> &str {
        &self.pem
    }

    /// The certificate as DER.
    pub fn der(&self) -> &[u8] {
        &self.der
    }

    /// When it ends.
    pub fn not_after(&self) -> OffsetDateTime {
        self.not_after
    }
}
