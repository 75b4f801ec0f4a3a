//! The authority: makes itself, loads what is there, issues leaves. No files and no clock: PEM in, PEM out.

use std::fmt;

use rcgen::{
    BasicConstraints, CertificateParams, CertificateRevocationListParams, DistinguishedName, DnType, DnValue,
    ExtendedKeyUsagePurpose, IsCa, Issuer, KeyIdMethod, KeyPair, KeyUsagePurpose, PublicKeyData,
    RevokedCertParams, SanType, SerialNumber,
};
use time::{Duration, OffsetDateTime};
use x509_parser::prelude::{FromDer, X509Certificate};

use super::revocation::{Serials, octets};
use super::{Trust, inspect};

/// How long a leaf lives.
pub const LEAF_LIFETIME: Duration = Duration::days(90);

/// How long a new authority lives.
pub const AUTHORITY_LIFETIME: Duration = Duration::days(3653);

/// Validity begins this long before the issue, for clocks of edges that are behind.
const BACKDATE: Duration = Duration::hours(1);

/// id-kp-ipsecIKE (RFC 4945 §5.1.3.12). And nothing more: an IPsec certificate must not open an API.
const IPSEC_IKE: [u64; 9] = [1, 3, 6, 1, 5, 5, 7, 3, 17];

/// What a certificate is for: one thing each, so that none opens what it was not made for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Purpose {
    /// IKE, for an endpoint.
    Ipsec,
    /// Calling the network API, for a member cluster.
    ApiClient,
    /// Serving the network API, for the host cluster.
    ApiServer,
}

impl Purpose {
    fn usage(self) -> ExtendedKeyUsagePurpose {
        match self {
            Self::Ipsec => ExtendedKeyUsagePurpose::Other(IPSEC_IKE.to_vec()),
            Self::ApiClient => ExtendedKeyUsagePurpose::ClientAuth,
            Self::ApiServer => ExtendedKeyUsagePurpose::ServerAuth,
        }
    }
}

/// Why the authority is refused, or why it cannot issue.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The certificate is not one.
    #[error("the CA certificate does not parse: {0}")]
    Certificate(String),
    /// The key is not one that can be used.
    #[error("the CA key does not parse: {0}; it must be PKCS#8 or PKCS#1 PEM, RSA or ECDSA P-256/P-384")]
    Key(String),
    /// Two halves of different authorities.
    #[error("the CA key is not that of the CA certificate")]
    Mismatch,
    /// A leaf, say.
    #[error("the CA certificate is not that of an authority: {0}")]
    NotAnAuthority(&'static str),
    /// Too late, or too early.
    #[error("the CA certificate is valid from {from} to {until}, and now it is {now}")]
    NotValid {
        /// Begin.
        from: OffsetDateTime,
        /// End.
        until: OffsetDateTime,
        /// The time of the attempt.
        now: OffsetDateTime,
    },
    /// The library refused.
    #[error("issuing the certificate of {name}")]
    Issue {
        /// Whose.
        name: String,
        /// Why.
        source: rcgen::Error,
    },
    /// What was issued does not hold against the authority.
    #[error("the certificate issued to {0} does not verify against the CA: replace the CA")]
    SelfCheck(String),
    /// What is kept of revocations is broken.
    #[error(
        "the entry `revoked` has the line {0:?}, which is not a serial number, a time, authorities and perhaps a name: mend it, \
         or take it out if that certificate is to be good again"
    )]
    Revoked(String),
    /// Revocation lists that cannot be used.
    #[error("the revocation lists do not fit the authorities: {0}")]
    List(String),
    /// The authority cannot revoke.
    #[error(
        "{authority} cannot sign a revocation list, so its certificates are good until they end: replace it, by \
         `kubectl annotate secret -n fabedge fabedge-ca fabedge.io/rotate-ca=600`"
    )]
    CannotRevoke {
        /// Its name.
        authority: String,
        /// Why.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
}

/// A certificate authority that can issue.
pub struct Authority {
    trust: Trust,
    issuer: Issuer<'static, KeyPair>,
}

/// A leaf certificate with its key.
#[derive(Clone, PartialEq, Eq)]
pub struct Leaf {
    /// The certificate.
    pub certificate: String,
    /// PKCS#8 private key.
    pub key: String,
}

// No key in logs.
impl fmt::Debug for Authority {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Authority")
            .field("not_after", &self.not_after())
            .finish_non_exhaustive()
    }
}

impl fmt::Debug for Leaf {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Leaf")
            .field("certificate", &self.certificate)
            .finish_non_exhaustive()
    }
}

impl Authority {
    /// Makes a new authority for a cluster: its certificate and key.
    ///
    /// # Errors
    /// When the library or the random source fails.
    pub fn generate(cluster: &str, now: OffsetDateTime) -> Result<Leaf, Error> {
        // The space keeps it apart from every endpoint's name.
        Self::generate_as(format!("{cluster} CA"), now)
    }

    /// Makes the next authority of a cluster. Its name is another one, for what issued a certificate is looked up by
    /// name.
    ///
    /// # Errors
    /// As [`Self::generate`].
    pub fn generate_successor(cluster: &str, now: OffsetDateTime) -> Result<Leaf, Error> {
        Self::generate_as(format!("{cluster} CA {}", now.unix_timestamp()), now)
    }

    fn generate_as(name: String, now: OffsetDateTime) -> Result<Leaf, Error> {
        let issue = |source| Error::Issue {
            name: name.clone(),
            source,
        };
        let key = KeyPair::generate().map_err(issue)?;
        let mut params = params(&name, now - BACKDATE, now - BACKDATE + AUTHORITY_LIFETIME).map_err(issue)?;
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let certificate = params.self_signed(&key).map_err(issue)?;
        Ok(Leaf {
            certificate: certificate.pem(),
            key: key.serialize_pem(),
        })
    }

    /// Takes an existing authority, of this operator or of the predecessor (RSA).
    ///
    /// # Errors
    /// When the certificate or the key does not parse, they do not belong together, the certificate is not that
    /// of an authority, or it is not valid now.
    pub fn load(certificate: &str, key: &str, now: OffsetDateTime) -> Result<Self, Error> {
        let trust = Trust::read(certificate, now)?;
        let (_, parsed) =
            X509Certificate::from_der(trust.der()).map_err(|e| Error::Certificate(e.to_string()))?;
        let key = inspect::key_pair(key).map_err(Error::Key)?;
        if inspect::public_key(&key) != parsed.public_key().raw {
            return Err(Error::Mismatch);
        }
        let issuer = Issuer::from_ca_cert_der(&trust.der().into(), key)
            .map_err(|e| Error::Certificate(e.to_string()))?;
        Ok(Self { trust, issuer })
    }

    /// What its certificates are judged by.
    pub fn trust(&self) -> &Trust {
        &self.trust
    }

    /// The authority's certificate.
    pub fn certificate(&self) -> &str {
        self.trust.pem()
    }

    /// When the authority ends.
    pub fn not_after(&self) -> OffsetDateTime {
        self.trust.not_after()
    }

    /// The authority's certificate as DER.
    pub fn der(&self) -> &[u8] {
        self.trust.der()
    }

    /// When a leaf that is issued now is to be renewed.
    pub fn renewal(&self, now: OffsetDateTime) -> OffsetDateTime {
        let (from, until) = self.validity(now);
        inspect::renewal(from, until, self.not_after())
    }

    fn validity(&self, now: OffsetDateTime) -> (OffsetDateTime, OffsetDateTime) {
        let from = now - BACKDATE;
        (from, (from + LEAF_LIFETIME).min(self.not_after()))
    }

    /// Issues a certificate and a new key to the endpoint `name`, as [`Authority::certify`].
    ///
    /// # Errors
    /// As there.
    pub fn issue(&self, name: &str, now: OffsetDateTime) -> Result<Leaf, Error> {
        let key = KeyPair::generate().map_err(|source| Error::Issue {
            name: name.to_owned(),
            source,
        })?;
        Ok(Leaf {
            certificate: self.certify(name, Purpose::Ipsec, &key, now)?,
            key: key.serialize_pem(),
        })
    }

    /// Certifies that `key` is that of `name`: the distinguished name `C=CN, O=fabedge.io, CN=<name>` and the same
    /// name as DNS name. The certificate never outlives the authority.
    ///
    /// # Errors
    /// When the library refuses the name, or the authority's name is one that cannot be written as it was.
    pub fn certify(
        &self,
        name: &str,
        purpose: Purpose,
        key: &impl PublicKeyData,
        now: OffsetDateTime,
    ) -> Result<String, Error> {
        self.certify_at(name, &[], purpose, key, now)
    }

    /// The same for something that is also known by addresses or DNS names; what is neither is left out.
    ///
    /// # Errors
    /// As there.
    pub fn certify_at(
        &self,
        name: &str,
        addresses: &[String],
        purpose: Purpose,
        key: &impl PublicKeyData,
        now: OffsetDateTime,
    ) -> Result<String, Error> {
        let issue = |source| Error::Issue {
            name: name.to_owned(),
            source,
        };
        let (from, until) = self.validity(now);
        let mut params = params(name, from, until).map_err(issue)?;
        params.subject_alt_names = vec![SanType::DnsName(name.try_into().map_err(issue)?)];
        let others = addresses.iter().filter_map(|text| match text.parse() {
            Ok(address) => Some(SanType::IpAddress(address)),
            Err(_) => Some(SanType::DnsName(text.as_str().try_into().ok()?)),
        });
        params.subject_alt_names.extend(others);
        params.is_ca = IsCa::ExplicitNoCa;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![purpose.usage()];
        params.use_authority_key_identifier_extension = true;
        let certificate = params.signed_by(key, &self.issuer).map_err(issue)?;
        // An authority of elsewhere may have a name that comes out otherwise than it went in.
        if !inspect::verifies(certificate.der(), self.der()) {
            return Err(Error::SelfCheck(name.to_owned()));
        }
        Ok(certificate.pem())
    }

    /// A revocation list, PEM, that names `serials`. It does not end before the authority does.
    ///
    /// # Errors
    /// When the authority may not sign lists, or its certificate does not tell by which identifier its key is known, as
    /// those of other makers may.
    pub(super) fn list(&self, number: u64, serials: &Serials, now: OffsetDateTime) -> Result<String, Error> {
        let cannot = |source| Error::CannotRevoke {
            authority: inspect::subject(self.der()),
            source,
        };
        let key = inspect::key_identifier(self.der())
            .ok_or_else(|| cannot("its certificate has no subject key identifier".into()))?;
        let revoked = serials.iter().map(|(serial, time)| RevokedCertParams {
            serial_number: SerialNumber::from(octets(serial)),
            revocation_time: *time,
            reason_code: None,
            invalidity_date: None,
        });
        let list = CertificateRevocationListParams {
            this_update: now - BACKDATE,
            next_update: self.not_after(),
            crl_number: SerialNumber::from(number),
            issuing_distribution_point: None,
            revoked_certs: revoked.collect(),
            key_identifier_method: KeyIdMethod::PreSpecified(key),
        };
        let signed = list.signed_by(&self.issuer).and_then(|list| list.pem());
        signed.map_err(|error| cannot(error.into()))
    }
}

fn params(
    name: &str,
    from: OffsetDateTime,
    until: OffsetDateTime,
) -> Result<CertificateParams, rcgen::Error> {
    let mut params = CertificateParams::default();
    params.not_before = from;
    params.not_after = until;
    // strongSwan compares names with their string types, and writes plain ASCII as PrintableString.
    let mut subject = DistinguishedName::new();
    for (kind, text) in [
        (DnType::CountryName, "CN"),
        (DnType::OrganizationName, "fabedge.io"),
        (DnType::CommonName, name),
    ] {
        subject.push(kind, DnValue::PrintableString(text.try_into()?));
    }
    params.distinguished_name = subject;
    Ok(params)
}

#[cfg(test)]
#[path = "tests.rs"]
mod tests;
