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
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, CertificateRevocationListDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use rustls::server::WebPkiClientVerifier;
use rustls::{RootCertStore, ServerConfig};
use time::OffsetDateTime;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, watch};
use tokio_rustls::TlsAcceptor;
use tower::ServiceExt;
use tracing::{debug, warn};

use super::api::{View, peer};
use super::caller::{Caller, server_name};
use super::places::Places;
use crate::pki::authority::Purpose;
use crate::pki::{Authorities, Trust, inspect};
use crate::reporter::chain;

/// Connections at one time.
const CONNECTIONS: usize = 1024;

/// How long TLS may take.
const HANDSHAKE: Duration = Duration::from_secs(5);

/// How long a connection may idle and the head of a request may take: of a caller without a certificate, and of one with,
/// for whom a new connection every few seconds would be the greater load.
const ANONYMOUS_HEAD: Duration = Duration::from_secs(10);
const HEAD: Duration = Duration::from_secs(60);

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
/// were away, with the addresses by which members of earlier versions know it. Client certificates of any authority that
/// is trusted are asked for; one that is not for clients, or no longer good, ends the handshake.
///
/// # Errors
/// When there is no key or certificate, or TLS refuses one.
pub fn tls(
    cluster: &str,
    addresses: &[String],
    authorities: &Authorities,
    now: OffsetDateTime,
) -> Result<Arc<ServerConfig>, Error> {
    let key = KeyPair::generate().map_err(Error::Key)?;
    let authority = authorities.oldest();
    let certificate = authority
        .certify_at(&server_name(cluster), addresses, Purpose::ApiServer, &key, now)
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
    let mut verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), Arc::clone(&provider));
    let lists = authorities.trust().lists();
    if !lists.is_empty() {
        let lists: Result<Vec<_>, _> =
            CertificateRevocationListDer::pem_slice_iter(lists.as_bytes()).collect();
        let lists = lists.map_err(|error| Error::Certificate(error.to_string()))?;
        // Not every authority has revoked something.
        verifier = verifier.with_crls(lists).allow_unknown_revocation_status();
    }
    let verifier = verifier
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
    let places = Places::default();
    let mut shown: Option<Shown> = None;
    let mut look = tokio::time::interval(LOOK);
    loop {
        tokio::select! {
            changed = view.changed() => if changed.is_err() { return },
            _ = look.tick() => {}
            accepted = accept(&listener, &connections), if shown.is_some() => {
                let Some((stream, address, permit)) = accepted else { continue };
                let Some(acceptor) = shown.as_ref().map(|shown| shown.acceptor.clone()) else { continue };
                let (router, places) = (router.clone(), places.clone());
                tokio::spawn(async move {
                    connection(stream, address, acceptor, router, &places).await;
                    drop(permit);
                });
                continue;
            }
        }
        let current = view.borrow_and_update().clone();
        if let Some(current) = current {
            renew(&mut shown, &cluster, &current, OffsetDateTime::now_utc());
        }
    }
}

/// What is shown, what is trusted, and until when.
struct Shown {
    acceptor: TlsAcceptor,
    trust: Trust,
    addresses: Vec<String>,
    renew_at: OffsetDateTime,
}

fn renew(shown: &mut Option<Shown>, cluster: &str, view: &View, now: OffsetDateTime) {
    let trust = view.authorities.trust();
    if let Some(shown) = shown
        && shown.trust == *trust
        && shown.addresses == view.addresses
        && now < shown.renew_at
    {
        return;
    }
    match tls(cluster, &view.addresses, &view.authorities, now) {
        Ok(config) => {
            *shown = Some(Shown {
                acceptor: TlsAcceptor::from(config),
                trust: trust.clone(),
                addresses: view.addresses.clone(),
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
        Ok((stream, address)) => {
            // A small answer waits for nothing. Who is gone already shows when it is read from.
            stream.set_nodelay(true).ok();
            Some((stream, address, permit))
        }
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
    places: &Places,
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
    let (head, stays) = match peer.caller {
        Caller::Anybody => (ANONYMOUS_HEAD, Some(ANONYMOUS_STAY)),
        Caller::Member(_) | Caller::Other(_) => (HEAD, None),
    };
    let Some(_place) = places.take(&peer.caller) else {
        return debug!(%address, caller = ?peer.caller, "no room for another connection of this caller");
    };
    let service = service_fn(move |mut request: Request<Incoming>| {
        request.extensions_mut().insert(peer.clone());
        router.clone().oneshot(request.map(Body::new))
    });
    let serving = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(head)
        .serve_connection(TokioIo::new(stream), service);
    let ended = match stays {
        Some(stay) => tokio::time::timeout(stay, serving).await.unwrap_or(Ok(())),
        None => serving.await,
    };
    if let Err(error) = ended {
        debug!(%address, %error, "a connection to the network API ended");
    }
}
