//! Certificate signing requests (PKCS#10, RFC 2986): who asks for which name, and proof that the key is the asker's.

use rcgen::SubjectPublicKeyInfo;
use sha2::{Digest, Sha256};
use x509_parser::certification_request::X509CertificationRequest;
use x509_parser::extensions::{GeneralName, ParsedExtension};
use x509_parser::pem::parse_x509_pem;
use x509_parser::prelude::FromDer;
use x509_parser::public_key::PublicKey;

/// The fewest bits of an RSA key.
const RSA_BITS: usize = 2048;

/// Bits of the curves.
const EC_BITS: [usize; 2] = [256, 384];

/// A request that was checked. Of what it asks for, only the name and the key are taken.
#[derive(Debug)]
pub struct Request {
    /// Its common name.
    pub name: String,
    /// The public key to certify.
    pub key: SubjectPublicKeyInfo,
    /// SHA-256 of the SubjectPublicKeyInfo, 64 hexadecimal digits.
    pub fingerprint: String,
}

/// Why a request is refused.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[non_exhaustive]
pub enum Error {
    /// Something else than a request.
    #[error("the body is not a certificate signing request in PEM: {0}")]
    Malformed(String),
    /// Whoever sent it does not have the key.
    #[error("the request is not signed with the key that it names")]
    Signature,
    /// A key that is too weak, or of a kind that is not in use here.
    #[error("its key is neither RSA of {RSA_BITS} bits or more nor ECDSA P-256 or P-384")]
    Key,
    /// Not one name.
    #[error("its subject must have one common name, and has {0}")]
    CommonName(usize),
    /// A second name, which the asker may not have.
    #[error("it asks for {0} beside its common name: a certificate has one name")]
    OtherName(String),
}

/// Reads and checks a request.
///
/// # Errors
/// When it is malformed, is not signed by its own key, or asks for more than one name.
pub fn read(pem: &str) -> Result<Request, Error> {
    let (_, block) = parse_x509_pem(pem.as_bytes()).map_err(|e| Error::Malformed(e.to_string()))?;
    if !matches!(
        block.label.as_str(),
        "CERTIFICATE REQUEST" | "NEW CERTIFICATE REQUEST"
    ) {
        return Err(Error::Malformed(format!("it holds a {}", block.label)));
    }
    let (rest, request) =
        X509CertificationRequest::from_der(&block.contents).map_err(|e| Error::Malformed(e.to_string()))?;
    if !rest.is_empty() {
        return Err(Error::Malformed("something follows the request".to_owned()));
    }
    request.verify_signature().map_err(|_| Error::Signature)?;
    let info = &request.certification_request_info;
    match info.subject_pki.parsed() {
        Ok(PublicKey::RSA(key)) if key.key_size() >= RSA_BITS => {}
        Ok(PublicKey::EC(point)) if EC_BITS.contains(&point.key_size()) => {}
        _ => return Err(Error::Key),
    }
    let key = SubjectPublicKeyInfo::from_der(info.subject_pki.raw).map_err(|_| Error::Key)?;

    let names: Vec<_> = info.subject.iter_common_name().collect();
    let [name] = names.as_slice() else {
        return Err(Error::CommonName(names.len()));
    };
    let name = name.as_str().map_err(|e| Error::Malformed(e.to_string()))?;
    let alternatives = request
        .requested_extensions()
        .into_iter()
        .flatten()
        .filter_map(|extension| match extension {
            ParsedExtension::SubjectAlternativeName(names) => Some(&names.general_names),
            _ => None,
        })
        .flatten();
    for other in alternatives {
        if *other != GeneralName::DNSName(name) {
            return Err(Error::OtherName(other.to_string()));
        }
    }
    Ok(Request {
        name: name.to_owned(),
        fingerprint: hex(&Sha256::digest(info.subject_pki.raw)),
        key,
    })
}

/// Hexadecimal digits, two for each byte.
pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use rcgen::{CertificateParams, DnType, KeyPair, SanType};

    use super::*;

    fn request(names: &[&str], alternatives: &[&str]) -> (String, KeyPair) {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::default();
        params.distinguished_name = rcgen::DistinguishedName::new();
        for name in names {
            params.distinguished_name.push(DnType::CommonName, *name);
        }
        params.subject_alt_names = alternatives
            .iter()
            .map(|name| SanType::DnsName((*name).try_into().unwrap()))
            .collect();
        let request = params.serialize_request(&key).unwrap();
        (request.pem().unwrap(), key)
    }

    #[test]
    fn a_request_tells_its_name_and_key() {
        let (pem, _) = request(&["beijing.connector"], &[]);
        let one = read(&pem).unwrap();
        assert_eq!(one.name, "beijing.connector");
        assert_eq!(one.fingerprint.len(), 64);
        let (pem, _) = request(&["beijing.connector"], &["beijing.connector"]);
        assert_ne!(read(&pem).unwrap().fingerprint, one.fingerprint, "another key");
    }

    #[test]
    fn a_key_that_is_weak_or_out_of_use_is_refused() {
        for (algorithm, good) in [
            (&rcgen::PKCS_ECDSA_P256_SHA256, true),
            (&rcgen::PKCS_ECDSA_P384_SHA384, true),
            (&rcgen::PKCS_ED25519, false),
        ] {
            let key = KeyPair::generate_for(algorithm).unwrap();
            let request = CertificateParams::new(vec![]).unwrap().serialize_request(&key);
            let read = read(&request.unwrap().pem().unwrap());
            assert_eq!(read.err(), (!good).then_some(Error::Key), "{algorithm:?}");
        }
    }

    #[test]
    fn names_beside_the_common_name_are_refused() {
        let (pem, _) = request(
            &["beijing.connector"],
            &["beijing.connector", "fabedge.connector"],
        );
        assert!(matches!(read(&pem), Err(Error::OtherName(name)) if name.contains("fabedge.connector")));
        let (pem, _) = request(&[], &[]);
        assert_eq!(read(&pem).unwrap_err(), Error::CommonName(0));
    }

    #[test]
    fn a_request_that_its_key_did_not_sign_is_refused() {
        let (pem, _) = request(&["beijing.connector"], &[]);
        let (_, block) = parse_x509_pem(pem.as_bytes()).unwrap();
        let at = block.contents.windows(7).position(|w| w == b"beijing").unwrap();
        let mut der = block.contents.clone();
        der[at..at + 7].copy_from_slice(b"shangha");
        let forged = pem_of("CERTIFICATE REQUEST", &der);
        assert_eq!(read(&forged).unwrap_err(), Error::Signature);
    }

    #[test]
    fn anything_else_is_refused() {
        for text in [
            "",
            "hello",
            "-----BEGIN CERTIFICATE REQUEST-----\nAAAA\n-----END CERTIFICATE REQUEST-----\n",
        ] {
            assert!(matches!(read(text), Err(Error::Malformed(_))), "{text:?}");
        }
        let key = KeyPair::generate().unwrap();
        assert!(matches!(read(&key.serialize_pem()), Err(Error::Malformed(_))));
    }

    fn pem_of(label: &str, der: &[u8]) -> String {
        let lines = base64::Engine::encode(&base64::prelude::BASE64_STANDARD, der);
        format!("-----BEGIN {label}-----\n{lines}\n-----END {label}-----\n")
    }
}
