//! Reads certificates and keys: what they say, and whether they belong together.

use rcgen::{KeyPair, PublicKeyData};
use time::OffsetDateTime;
use x509_parser::extensions::{GeneralName, ParsedExtension};
use x509_parser::pem::parse_x509_pem;
use x509_parser::prelude::{FromDer, X509Certificate};

use super::Trust;

/// The first certificate of a PEM text.
///
/// # Errors
/// What is wrong with the text.
pub fn certificate_der(pem: &str) -> Result<Vec<u8>, String> {
    let (_, block) = parse_x509_pem(pem.as_bytes()).map_err(|e| e.to_string())?;
    if block.label != "CERTIFICATE" {
        return Err(format!("it holds a {}", block.label));
    }
    X509Certificate::from_der(&block.contents).map_err(|e| e.to_string())?;
    Ok(block.contents)
}

/// The private key of a PEM text, PKCS#8 or PKCS#1 (as Go writes RSA keys).
///
/// # Errors
/// What is wrong with the text.
pub fn key_pair(pem: &str) -> Result<KeyPair, String> {
    let (_, block) = parse_x509_pem(pem.as_bytes()).map_err(|e| e.to_string())?;
    let pkcs8 = match block.label.as_str() {
        "PRIVATE KEY" => block.contents,
        "RSA PRIVATE KEY" => pkcs8_of_rsa(&block.contents),
        "EC PRIVATE KEY" => {
            return Err("it is in SEC1 form: convert it with `openssl pkcs8 -topk8 -nocrypt`".to_owned());
        }
        other => return Err(format!("it holds a {other}")),
    };
    KeyPair::try_from(pkcs8).map_err(|e| e.to_string())
}

/// PKCS#1 in PKCS#8 (RFC 5958 §2): SEQUENCE { 0, rsaEncryption, OCTET STRING }.
fn pkcs8_of_rsa(pkcs1: &[u8]) -> Vec<u8> {
    const VERSION_AND_ALGORITHM: [u8; 18] = [
        0x02, 0x01, 0x00, 0x30, 0x0d, 0x06, 0x09, 0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x01, 0x01, 0x05,
        0x00,
    ];
    let mut inner = VERSION_AND_ALGORITHM.to_vec();
    inner.extend(tagged(0x04, pkcs1));
    tagged(0x30, &inner)
}

fn tagged(tag: u8, content: &[u8]) -> Vec<u8> {
    let length = content.len().to_be_bytes();
    let length: Vec<u8> = length.into_iter().skip_while(|b| *b == 0).collect();
    let mut der = vec![tag];
    if content.len() >= 128 {
        der.push(0x80 | length.len() as u8);
    }
    der.extend(if length.is_empty() { vec![0] } else { length });
    der.extend(content);
    der
}

/// The public half as SubjectPublicKeyInfo.
pub fn public_key(key: &KeyPair) -> Vec<u8> {
    key.subject_public_key_info()
}

/// Whether `leaf` names `authority` as its issuer and carries its signature.
pub fn verifies(leaf: &[u8], authority: &[u8]) -> bool {
    let (Ok((_, leaf)), Ok((_, authority))) = (
        X509Certificate::from_der(leaf),
        X509Certificate::from_der(authority),
    ) else {
        return false;
    };
    leaf.issuer().as_raw() == authority.subject().as_raw()
        && leaf.verify_signature(Some(authority.public_key())).is_ok()
}

/// The name of whom a certificate (DER) is.
pub(super) fn subject(der: &[u8]) -> String {
    X509Certificate::from_der(der).map_or_else(|_| String::new(), |(_, parsed)| parsed.subject().to_string())
}

/// By which identifier a certificate (DER) says that its key is known.
pub(super) fn key_identifier(der: &[u8]) -> Option<Vec<u8>> {
    let (_, parsed) = X509Certificate::from_der(der).ok()?;
    let mut extensions = parsed.extensions().iter();
    extensions.find_map(|extension| match extension.parsed_extension() {
        ParsedExtension::SubjectKeyIdentifier(id) => Some(id.0.to_vec()),
        _ => None,
    })
}

/// What is to be done about a leaf that is there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It serves until then.
    Keep {
        /// When two thirds of its life are over.
        renew_at: OffsetDateTime,
    },
    /// A new one is needed, for this reason.
    Renew(&'static str),
}

/// Judges the certificate and key that an endpoint has.
pub fn judge(certificate: &str, key: &str, name: &str, trust: &Trust, now: OffsetDateTime) -> Verdict {
    let Ok(der) = certificate_der(certificate) else {
        return Verdict::Renew("its certificate does not parse");
    };
    let Ok((_, leaf)) = X509Certificate::from_der(&der) else {
        return Verdict::Renew("its certificate does not parse");
    };
    let Ok(key) = key_pair(key) else {
        return Verdict::Renew("its key does not parse");
    };
    if public_key(&key) != leaf.public_key().raw {
        return Verdict::Renew("its key is not that of its certificate");
    }
    if !verifies(&der, trust.der()) {
        return Verdict::Renew("its certificate is of another CA");
    }
    if trust.revokes(certificate) {
        return Verdict::Renew("its certificate is revoked");
    }
    let dns_names: Vec<&str> = leaf
        .subject_alternative_name()
        .ok()
        .flatten()
        .into_iter()
        .flat_map(|san| &san.value.general_names)
        .filter_map(|name| match name {
            GeneralName::DNSName(name) => Some(*name),
            _ => None,
        })
        .collect();
    let common_name = leaf
        .subject()
        .iter_common_name()
        .next()
        .and_then(|cn| cn.as_str().ok());
    if common_name != Some(name) || dns_names != [name] {
        return Verdict::Renew("its certificate is in another name");
    }
    let (from, until) = (
        leaf.validity().not_before.to_datetime(),
        leaf.validity().not_after.to_datetime(),
    );
    if now < from {
        return Verdict::Renew("its certificate is of the future");
    }
    let renew_at = renewal(from, until, trust.not_after());
    if now >= renew_at {
        return Verdict::Renew("two thirds of its certificate's life are over");
    }
    Verdict::Keep { renew_at }
}

/// Whether a certificate is good now, as far as its own dates tell.
pub fn is_valid(certificate: &str, now: OffsetDateTime) -> bool {
    let der = certificate_der(certificate).unwrap_or_default();
    X509Certificate::from_der(&der).is_ok_and(|(_, certificate)| {
        let validity = certificate.validity();
        (validity.not_before.to_datetime()..validity.not_after.to_datetime()).contains(&now)
    })
}

/// When a leaf is to be renewed: when two thirds of its life are over. Where its authority ends first, a new one would
/// end then too, so there is nothing to gain by renewing before.
pub(super) fn renewal(
    from: OffsetDateTime,
    until: OffsetDateTime,
    authority_until: OffsetDateTime,
) -> OffsetDateTime {
    if until < authority_until {
        from + (until - from) * 2 / 3
    } else {
        until
    }
}
