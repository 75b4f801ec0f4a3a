//! The host cluster as a member calls it.
//!
//! The member knows the host by its CA, and by what only a host has: a server certificate of that CA in the name
//! `<host>.fabedge-operator`. The address that it dials, a NodePort of any node, proves nothing and is not looked at.

mod verify;

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use axum::body::Bytes;
use axum::http::{HeaderName, Method, Request, StatusCode, Uri, header};
use http_body_util::{BodyExt as _, Full, Limited};
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::{TokioExecutor, TokioTimer};
use rcgen::{CertificateParams, DistinguishedName, DnType, KeyPair};
use rustls::ClientConfig;
use rustls::RootCertStore;
use rustls::client::WebPkiServerVerifier;
use rustls::crypto::CryptoProvider;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use time::OffsetDateTime;

use super::api::LEFT_OUT;
use super::token::ca_hash;
use crate::api::ClusterSpec;
use crate::pki::inspect::{self, Verdict, judge};
use crate::pki::{Leaf, Trust};
use verify::Server;

/// How long a call may take.
const CALL: Duration = Duration::from_secs(10);

/// How long connecting may take.
const CONNECT: Duration = Duration::from_secs(5);

/// Connections that nobody uses are closed before the host does it.
const IDLE: Duration = Duration::from_secs(5);

/// The most that an answer may hold, in bytes.
const ANSWER: usize = 8 * 1024 * 1024;

/// The most of a refusal that is told on.
const REFUSAL: usize = 2000;

/// Why a call did not succeed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// Not one at which a host can be.
    #[error(
        "cluster.operatorAPIServer {0:?} is not an address of a host: write https://10.20.8.28:30303, say"
    )]
    Address(String),
    /// Nobody answers there, or not who should.
    #[error("calling the host at {address}")]
    Unreachable {
        /// The address.
        address: String,
        /// Why.
        source: hyper_util::client::legacy::Error,
    },
    /// It takes too long.
    #[error("calling the host at {0}: no answer in time")]
    Timeout(String),
    /// The last call did not succeed either, and the next attempt is under way.
    #[error("the host at {0} does not answer at present")]
    Away(String),
    /// The host says no.
    #[error("the host at {address} refuses {call} ({status}): {why}")]
    Refused {
        /// The address.
        address: String,
        /// What was asked.
        call: String,
        /// HTTP status.
        status: StatusCode,
        /// What it says.
        why: String,
    },
    /// It says something else than it should.
    #[error("the answer of the host at {address} to {call} is not usable: {why}")]
    Answer {
        /// The address.
        address: String,
        /// What was asked.
        call: String,
        /// What is wrong.
        why: String,
    },
    /// Somebody else answers there.
    #[error(
        "the CA that {address} shows is not the one that was pinned, SHA-256 {pinned}: is that the address of another \
         host, or is the token of another host?"
    )]
    OtherAuthority {
        /// The address.
        address: String,
        /// The hash in the token, or in cluster.operatorCAHash.
        pinned: String,
    },
    /// TLS refuses what it was given.
    #[error("setting up TLS towards the host")]
    Tls(#[source] rustls::Error),
    /// TLS refuses the authority.
    #[error("setting up TLS towards the host: its CA cannot check server certificates")]
    Verifier(#[source] rustls::client::VerifierBuilderError),
    /// What is kept of an earlier registration cannot be read.
    #[error("reading the client certificate: {0}")]
    Identity(String),
    /// No key, or no request.
    #[error("making a certificate signing request for {name}")]
    Request {
        /// The name.
        name: String,
        /// Why.
        source: rcgen::Error,
    },
}

type Connector = HttpsConnector<HttpConnector>;

/// The host cluster's network API.
pub struct Host {
    address: String,
    client: Client<Connector, Full<Bytes>>,
    trust: Trust,
    away: AtomicBool,
}

// A client says much, and nothing that helps.
impl fmt::Debug for Host {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Host")
            .field("address", &self.address)
            .finish_non_exhaustive()
    }
}

/// Asks who is at an address for its CA, whoever it is, and takes the one with the hash that is known.
///
/// # Errors
/// When nobody answers, or the CA is another one.
pub async fn pinned(address: &str, hash: &str, now: OffsetDateTime) -> Result<Trust, Error> {
    let address = base(address)?;
    let config = builder()?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(Server::any(provider())))
        .with_no_client_auth();
    let answer = ask(&client(config), &address, Call::get("/api/ca-cert")).await?;
    let pem = answer.text(&address, "for its CA", StatusCode::OK)?;
    let other = || Error::OtherAuthority {
        address: address.clone(),
        pinned: hash.to_owned(),
    };
    let known = trust(&address, &pem, now).map_err(|_| other())?;
    known
        .only(|der| ca_hash(der).eq_ignore_ascii_case(hash), now)
        .ok_or_else(other)
}

impl Host {
    /// The host at an address, with the CA by which it is known, and the certificate with which this member calls it,
    /// once it has one.
    ///
    /// # Errors
    /// When the address, the CA or the certificate cannot be used.
    pub fn new(address: &str, trust: Trust, identity: Option<&Leaf>) -> Result<Self, Error> {
        let mut roots = RootCertStore::empty();
        for der in trust.all() {
            roots
                .add(CertificateDer::from(der.to_vec()))
                .map_err(Error::Tls)?;
        }
        let verifier = WebPkiServerVerifier::builder_with_provider(Arc::new(roots), provider())
            .build()
            .map_err(Error::Verifier)?;
        let config = builder()?
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(Server::host(verifier, provider())));
        let config = match identity {
            None => config.with_no_client_auth(),
            Some(leaf) => {
                let certificate = inspect::certificate_der(&leaf.certificate).map_err(Error::Identity)?;
                let key = inspect::key_pair(&leaf.key).map_err(Error::Identity)?;
                let key = PrivatePkcs8KeyDer::from(key.serialize_der());
                config
                    .with_client_auth_cert(vec![CertificateDer::from(certificate)], PrivateKeyDer::Pkcs8(key))
                    .map_err(Error::Tls)?
            }
        };
        Ok(Self {
            address: base(address)?,
            client: client(config),
            trust,
            away: AtomicBool::new(false),
        })
    }

    /// The CA by which the host is known, which is also that of every endpoint.
    pub fn trust(&self) -> &Trust {
        &self.trust
    }

    /// Has a new key certified in a name of this cluster, and tells when it is to be renewed.
    ///
    /// # Errors
    /// When the host does not answer or refuses, or what it signs is not what was asked for.
    pub async fn issue(&self, name: &str, now: OffsetDateTime) -> Result<(Leaf, OffsetDateTime), Error> {
        let key = KeyPair::generate().map_err(request_failed(name))?;
        self.certify(name, &key, None, now).await
    }

    /// Has a key certified, as [`Self::issue`]. A token shows who asks where there is no certificate yet.
    ///
    /// # Errors
    /// As there.
    pub async fn certify(
        &self,
        name: &str,
        key: &KeyPair,
        token: Option<&str>,
        now: OffsetDateTime,
    ) -> Result<(Leaf, OffsetDateTime), Error> {
        if self.away.load(Ordering::Relaxed) {
            return Err(Error::Away(self.address.clone()));
        }
        let mut call = Call {
            body: request(name, key).map_err(request_failed(name))?.into(),
            ..Call::new(Method::POST, "/api/sign-cert")
        };
        if let Some(token) = token {
            call.headers
                .push((header::AUTHORIZATION, format!("Bearer {token}")));
        }
        let what = format!("to sign {name}");
        let answer = self.ask(call).await?;
        let leaf = Leaf {
            certificate: answer.text(&self.address, &what, StatusCode::OK)?,
            key: key.serialize_pem(),
        };
        match judge(&leaf.certificate, &leaf.key, name, &self.trust, now) {
            Verdict::Keep { renew_at } => Ok((leaf, renew_at)),
            Verdict::Renew(why) => Err(Error::Answer {
                address: self.address.clone(),
                call: what,
                why: why.to_owned(),
            }),
        }
    }

    /// Tells what this cluster is; returns what the host leaves out of it.
    ///
    /// # Errors
    /// When the host does not answer, or refuses all of it.
    pub async fn report(&self, spec: &ClusterSpec) -> Result<Vec<String>, Error> {
        let call = Call {
            headers: vec![(header::CONTENT_TYPE, "application/json".to_owned())],
            body: serde_json::json!({"spec": spec}).to_string().into(),
            ..Call::new(Method::PUT, "/api/cluster")
        };
        let answer = self.ask(call).await?;
        if answer.status == StatusCode::BAD_REQUEST
            && let Some(lines) = answer.body.strip_prefix(LEFT_OUT)
        {
            return Ok(lines.lines().map(str::to_owned).collect());
        }
        answer
            .text(&self.address, "the report", StatusCode::NO_CONTENT)
            .map(|_| Vec::new())
    }

    /// What the host tells, and the tag by which it knows it. To who knows the tag it answers when there is another, or
    /// with nothing when `wait` is over. An older host has no tags, and answers at once.
    ///
    /// # Errors
    /// When the host does not answer, or refuses.
    pub async fn news(
        &self,
        known: Option<&str>,
        wait: Duration,
    ) -> Result<Option<(String, Option<String>)>, Error> {
        let mut call = Call::get("/api/endpoints-and-communities");
        if let Some(tag) = known {
            call.headers.push((header::IF_NONE_MATCH, tag.to_owned()));
            let prefer = format!("wait={}", wait.as_secs());
            call.headers.push((HeaderName::from_static("prefer"), prefer));
            call.limit = wait + CALL;
        }
        let answer = self.ask(call).await?;
        if answer.status == StatusCode::NOT_MODIFIED {
            return Ok(None);
        }
        let tag = answer.tag.clone();
        let text = answer.text(&self.address, "for endpoints and communities", StatusCode::OK)?;
        Ok(Some((text, tag)))
    }

    /// The CA that the host has now and what it has revoked, told over a connection that its CA of before vouches for.
    ///
    /// # Errors
    /// When the host does not answer, or answers something else.
    pub async fn authority(&self, now: OffsetDateTime) -> Result<Trust, Error> {
        let what = "for its CA";
        let answer = self.ask(Call::get("/api/ca-cert")).await?;
        let trust = trust(
            &self.address,
            &answer.text(&self.address, what, StatusCode::OK)?,
            now,
        )?;
        let what = "for what it has revoked";
        let answer = self.ask(Call::get("/api/ca-crl")).await?;
        if answer.status == StatusCode::NOT_FOUND {
            // An older host revokes nothing.
            return Ok(trust);
        }
        let lists = answer.text(&self.address, what, StatusCode::OK)?;
        trust.with_lists(&lists).map_err(|error| Error::Answer {
            address: self.address.clone(),
            call: what.to_owned(),
            why: error.to_string(),
        })
    }

    async fn ask(&self, call: Call) -> Result<Answer, Error> {
        let answer = ask(&self.client, &self.address, call).await;
        let away = matches!(answer, Err(Error::Unreachable { .. } | Error::Timeout(_)));
        self.away.store(away, Ordering::Relaxed);
        answer
    }
}

/// One call.
struct Call {
    method: Method,
    path: &'static str,
    headers: Vec<(HeaderName, String)>,
    body: Bytes,
    limit: Duration,
}

impl Call {
    fn new(method: Method, path: &'static str) -> Self {
        Self {
            method,
            path,
            headers: Vec::new(),
            body: Bytes::new(),
            limit: CALL,
        }
    }

    fn get(path: &'static str) -> Self {
        Self::new(Method::GET, path)
    }
}

/// What came back, whatever it says.
struct Answer {
    status: StatusCode,
    tag: Option<String>,
    body: String,
}

impl Answer {
    /// The body, when the status is the one that says yes.
    fn text(self, address: &str, call: &str, yes: StatusCode) -> Result<String, Error> {
        if self.status == yes {
            return Ok(self.body);
        }
        Err(Error::Refused {
            address: address.to_owned(),
            call: call.to_owned(),
            status: self.status,
            why: self.body.trim().chars().take(REFUSAL).collect(),
        })
    }
}

async fn ask(client: &Client<Connector, Full<Bytes>>, address: &str, call: Call) -> Result<Answer, Error> {
    let unusable = |why: String| Error::Answer {
        address: address.to_owned(),
        call: call.path.to_owned(),
        why,
    };
    let mut request = Request::builder()
        .method(call.method)
        .uri(format!("{address}{}", call.path));
    for (name, value) in call.headers {
        request = request.header(name, value);
    }
    // A header is refused here: a token file with a line break in the middle, say.
    let request = request
        .body(Full::new(call.body))
        .map_err(|error| unusable(error.to_string()))?;
    let answering = async {
        let response = client
            .request(request)
            .await
            .map_err(|source| Error::Unreachable {
                address: address.to_owned(),
                source,
            })?;
        let (status, tag) = (response.status(), response.headers().get(header::ETAG));
        let tag = tag.and_then(|tag| tag.to_str().ok()).map(str::to_owned);
        let body = Limited::new(response.into_body(), ANSWER).collect().await;
        let body = body.map_err(|error| unusable(error.to_string()))?.to_bytes();
        let body = String::from_utf8(body.into()).map_err(|error| unusable(error.to_string()))?;
        Ok(Answer { status, tag, body })
    };
    tokio::time::timeout(call.limit, answering)
        .await
        .unwrap_or_else(|_| Err(Error::Timeout(address.to_owned())))
}

/// `https://host:port` of what was written, with or without a slash at its end.
fn base(address: &str) -> Result<String, Error> {
    let uri = address.trim().parse::<Uri>().ok();
    let good = uri.filter(|uri| uri.scheme_str() == Some("https") && matches!(uri.path(), "" | "/"));
    let authority = good.as_ref().and_then(Uri::authority);
    authority
        .map(|authority| format!("https://{authority}"))
        .ok_or_else(|| Error::Address(address.to_owned()))
}

fn request(name: &str, key: &KeyPair) -> Result<String, rcgen::Error> {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, name);
    params.serialize_request(key)?.pem()
}

fn request_failed(name: &str) -> impl FnOnce(rcgen::Error) -> Error {
    move |source| Error::Request {
        name: name.to_owned(),
        source,
    }
}

fn trust(address: &str, pem: &str, now: OffsetDateTime) -> Result<Trust, Error> {
    Trust::read(pem, now).map_err(|error| Error::Answer {
        address: address.to_owned(),
        call: "for its CA".to_owned(),
        why: error.to_string(),
    })
}

fn provider() -> Arc<CryptoProvider> {
    Arc::new(rustls::crypto::ring::default_provider())
}

fn builder() -> Result<rustls::ConfigBuilder<ClientConfig, rustls::WantsVerifier>, Error> {
    ClientConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()
        .map_err(Error::Tls)
}

fn client(config: ClientConfig) -> Client<Connector, Full<Bytes>> {
    let mut tcp = HttpConnector::new();
    tcp.enforce_http(false);
    tcp.set_connect_timeout(Some(CONNECT));
    let connector = HttpsConnectorBuilder::new()
        .with_tls_config(config)
        .https_only()
        .enable_http1()
        .wrap_connector(tcp);
    Client::builder(TokioExecutor::new())
        .pool_timer(TokioTimer::new())
        .pool_idle_timeout(IDLE)
        .build(connector)
}
