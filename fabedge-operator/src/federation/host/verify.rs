//! How a member knows its host's server.

use std::sync::Arc;

use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::CryptoProvider;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{CertificateError, DigitallySignedStruct, SignatureScheme};
use time::OffsetDateTime;
use x509_parser::prelude::{FromDer, X509Certificate};

use crate::federation::caller::SERVER;
use crate::observe::convert::is_label;

/// Whom a member takes for its host.
#[derive(Debug)]
pub(super) struct Server {
    /// By whom a host's certificate must be signed; none: whoever answers is taken.
    signer: Option<Arc<WebPkiServerVerifier>>,
    provider: Arc<CryptoProvider>,
}

impl Server {
    /// A host. The one check that is ours: in whose name its certificate is. The rest is webpki's.
    pub fn host(signer: Arc<WebPkiServerVerifier>, provider: Arc<CryptoProvider>) -> Self {
        let signer = Some(signer);
        Self { signer, provider }
    }

    /// Whoever answers. Only for asking for what is then checked by its hash.
    pub fn any(provider: Arc<CryptoProvider>) -> Self {
        let signer = None;
        Self { signer, provider }
    }
}

/// The name of a host in its certificate, `<host>.fabedge-operator`. Nobody else can have such a one: members are
/// certified for nothing that ends so.
fn host_name(certificate: &[u8]) -> Option<ServerName<'static>> {
    let (_, certificate) = X509Certificate::from_der(certificate).ok()?;
    let name = certificate.subject().iter_common_name().next()?.as_str().ok()?;
    let (cluster, rest) = name.split_once('.')?;
    (is_label(cluster) && rest == SERVER)
        .then(|| ServerName::try_from(name.to_owned()).ok())
        .flatten()
}

/// The error without the time of the attempt, which would make another one of each.
fn without_now(error: rustls::Error) -> rustls::Error {
    let at = |time: UnixTime| {
        let seconds = i64::try_from(time.as_secs()).unwrap_or(i64::MAX);
        OffsetDateTime::from_unix_timestamp(seconds)
            .map_or_else(|_| seconds.to_string(), |time| time.to_string())
    };
    let why = match error {
        rustls::Error::InvalidCertificate(CertificateError::ExpiredContext { not_after, .. }) => {
            format!("good until {} only", at(not_after))
        }
        rustls::Error::InvalidCertificate(CertificateError::NotValidYetContext { not_before, .. }) => {
            format!("good from {} on only", at(not_before))
        }
        error => return error,
    };
    rustls::Error::General(format!("the server's certificate is {why}"))
}

impl ServerCertVerifier for Server {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _dialled: &ServerName<'_>,
        ocsp: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let Some(signer) = &self.signer else {
            return Ok(ServerCertVerified::assertion());
        };
        let name = host_name(end_entity).ok_or_else(|| {
            rustls::Error::General(format!(
                "the server's certificate is not that of a host, <host>.{SERVER}"
            ))
        })?;
        signer
            .verify_server_cert(end_entity, intermediates, &name, ocsp, now)
            .map_err(without_now)
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        rustls::crypto::verify_tls12_signature(
            message,
            certificate,
            signed,
            &self.provider.signature_verification_algorithms,
        )
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        rustls::crypto::verify_tls13_signature(
            message,
            certificate,
            signed,
            &self.provider.signature_verification_algorithms,
        )
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider
            .signature_verification_algorithms
            .supported_schemes()
    }
}
