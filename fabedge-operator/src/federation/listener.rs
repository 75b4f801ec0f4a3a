//! TLS in front of the network API: bounded in connections and in time, so that slow or many callers keep nobody out.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::http::Request;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use rcgen::KeyPair;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use rustls::server::WebPkiClientVerifier;
use rustls::{RootCertStore, ServerConfig};
use time::OffsetDateTime;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, watch};
use tokio_rustls::TlsAcceptor;
use tower::ServiceExt;
use tracing::{debug, warn};

use super::api::{View, peer};
use super::caller::server_name;
use crate::pki::authority::Purpose;
use crate::pki::{Authorities, Trust, inspect};
use crate::reporter::chain;

/// Connections at one time, and those of them whose caller has shown no certificate.
const CONNECTIONS: usize = 1024;
const ANONYMOUS: usize = 64;

/// How long TLS may take.
const HANDSHAKE: Duration = Duration::from_secs(5);

/// How long the head of a request may take, and a connection may idle between two.
const HEAD: Duration = Duration::from_secs(10);

/// How long a caller without a certificate may stay.
const ANONYMOUS_STAY: Duration = Duration::from_secs(30);

/// How often the certificate is looked at.
const LOOK: Duration = Duration::from_secs(3600);

/// Why there is no TLS.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// No key, or no certificate.
    #[error("making the certificate of the network API")]
    Issue(#[source] crate::pki::authority::Error),
    /// No key.
    #[error("making a key for the network API")]
    Key(#[source] rcgen::Error),
    /// TLS refuses what it was given.
    #[error("setting up TLS of the network API")]
    Tls(#[source] rustls::Error),
    /// TLS refuses the authority.
    #[error("setting up TLS of the network API: the CA cannot check client certificates")]
    Verifier(#[source] rustls::server::VerifierBuilderError),
    /// What was issued cannot be read back.
    #[error("reading the certificate of the network API: {0}")]
    Certificate(String),
}

/// What callers are shown: a new key with a new certificate of the authority that all of them trust, however long they
/// were away. Client certificates of any authority that is trusted are asked for; one that is not for clients, or no longer good, ends the handshake.
///
/// # Errors
/// When there is no key or certificate, or TLS refuses one.
pub fn tls(
    cluster: &str,
    authorities: &Authorities,
    now: OffsetDateTime,
) -> Result<Arc<ServerConfig>, Error> {
    let key = KeyPair::generate().map_err(Error::Key)?;
    let authority = authorities.oldest();
    let certificate = authority
        .certify(&server_name(cluster), Purpose::ApiServer, &key, now)
        .map_err(Error::Issue)?;
    let chain = vec![
        CertificateDer::from(inspect::certificate_der(&certificate).map_err(Error::Certificate)?),
        CertificateDer::from(authority.der().to_vec()),
    ];
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut roots = RootCertStore::empty();
    for der in authorities.trust().all() {
        roots
            .add(CertificateDer::from(der.to_vec()))
            .map_err(Error::Tls)?;
    }
    let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), Arc::clone(&provider))
        .allow_unauthenticated()
        .build()
        .map_err(Error::Verifier)?;
    let config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(Error::Tls)?
        .with_client_cert_verifier(verifier)
        .with_single_cert(
            chain,
            PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der())),
        )
        .map_err(Error::Tls)?;
    Ok(Arc::new(config))
}

/// Serves until it is dropped. Before the first view nobody is answered.
pub async fn serve(
    listener: TcpListener,
    cluster: String,
    mut view: watch::Receiver<Option<Arc<View>>>,
    router: Router,
) {
    let connections = Arc::new(Semaphore::new(CONNECTIONS));
    let anonymous = Arc::new(Semaphore::new(ANONYMOUS));
    let mut shown: Option<Shown> = None;
    let mut look = tokio::time::interval(LOOK);
    loop {
        tokio::select! {
            changed = view.changed() => if changed.is_err() { return },
            _ = look.tick() => {}
            accepted = accept(&listener, &connections), if shown.is_some() => {
                let Some((stream, address, permit)) = accepted else { continue };
                let Some(acceptor) = shown.as_ref().map(|shown| shown.acceptor.clone()) else { continue };
                let (router, anonymous) = (router.clone(), Arc::clone(&anonymous));
                tokio::spawn(async move {
                    connection(stream, address, acceptor, router, &anonymous).await;
                    drop(permit);
                });
                continue;
            }
        }
        let current = view.borrow_and_update().clone();
        if let Some(current) = current {
            renew(
                &mut shown,
                &cluster,
                &current.authorities,
                OffsetDateTime::now_utc(),
            );
        }
    }
}

/// What is shown, what is trusted, and until when.
struct Shown {
    acceptor: TlsAcceptor,
    trust: Trust,
    renew_at: OffsetDateTime,
}

fn renew(shown: &mut Option<Shown>, cluster: &str, authorities: &Authorities, now: OffsetDateTime) {
    if let Some(shown) = shown
        && shown.trust == *authorities.trust()
        && now < shown.renew_at
    {
        return;
    }
    match tls(cluster, authorities, now) {
        Ok(config) => {
            *shown = Some(Shown {
                acceptor: TlsAcceptor::from(config),
                trust: authorities.trust().clone(),
                renew_at: now + crate::pki::authority::LEAF_LIFETIME * 2 / 3,
            });
        }
        Err(error) => warn!(error = chain(&error), "the network API keeps what it shows"),
    }
}

/// The next connection, once there is room for it. Cancel-safe.
async fn accept(
    listener: &TcpListener,
    connections: &Arc<Semaphore>,
) -> Option<(TcpStream, SocketAddr, tokio::sync::OwnedSemaphorePermit)> {
    let permit = Arc::clone(connections).acquire_owned().await.ok()?;
    match listener.accept().await {
        Ok((stream, address)) => Some((stream, address, permit)),
        Err(error) => {
            // Out of descriptors, say: the next one would fail at once, too.
            warn!(%error, "a connection to the network API could not be accepted");
            tokio::time::sleep(Duration::from_millis(100)).await;
            None
        }
    }
}

async fn connection(
    stream: TcpStream,
    address: SocketAddr,
    acceptor: TlsAcceptor,
    router: Router,
    anonymous: &Semaphore,
) {
    let stream = match tokio::time::timeout(HANDSHAKE, acceptor.accept(stream)).await {
        Ok(Ok(stream)) => stream,
        Ok(Err(error)) => return debug!(%address, %error, "no TLS with a caller of the network API"),
        Err(_) => return debug!(%address, "a caller of the network API was too slow for TLS"),
    };
    let certificate = stream
        .get_ref()
        .1
        .peer_certificates()
        .and_then(|chain| chain.first());
    let peer = peer(address, certificate.map(AsRef::as_ref));
    let stays = certificate.is_none().then_some(ANONYMOUS_STAY);
    // Who has a certificate finds room whatever those do who have none.
    let _room = match stays {
        Some(_) => match anonymous.try_acquire() {
            Ok(room) => Some(room),
            Err(_) => return debug!(%address, "no room for another caller without a certificate"),
        },
        None => None,
    };
    let service = service_fn(move |mut request: Request<Incoming>| {
        request.extensions_mut().insert(peer.clone());
        router.clone().oneshot(request.map(Body::new))
    });
    let serving = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD)
        .serve_connection(TokioIo::new(stream), service);
    let ended = match stays {
        Some(stay) => tokio::time::timeout(stay, serving).await.unwrap_or(Ok(())),
        None => serving.await,
    };
    if let Err(error) = ended {
        debug!(%address, %error, "a connection to the network API ended");
    }
}
