//! The network API of the host cluster, which members call.
//!
//! One layer stands in front of every route and lets through whom [`ADMISSION`] names; what is not in there is not
//! found. Handlers see who was let in, never a header or a certificate.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use axum::body::HttpBody as _;
use axum::extract::rejection::{BytesRejection, StringRejection};
use axum::extract::{DefaultBodyLimit, Request, State};
use axum::http::{HeaderMap, Method, StatusCode, header};
use axum::middleware::{Next, from_fn_with_state};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post, put};
use axum::{Extension, Router};
use serde::Serialize;
use sha2::{Digest, Sha256};
use time::OffsetDateTime;
use tokio::sync::watch;
use tracing::{debug, info, warn};

use super::caller::{Caller, client_name};
use super::failures::Failures;
use super::report::{self, Others, Report};
use super::token::{Claims, Tokens};
use crate::api::Endpoint;
use crate::observe::convert::is_name;
use crate::pki::Authorities;
use crate::pki::authority::{self, Purpose};
use crate::pki::request::{self, hex};
use crate::pki::revocation;
use crate::reporter::chain;

/// Header in which members of FabEdge 0.4 name their cluster. It decides nothing, and must not contradict.
const CLUSTER: &str = "x-fabedge-cluster";

/// The most that a body may hold, in bytes.
pub const BODY: usize = 256 * 1024;

/// How long a request may take, its body included.
const REQUEST: Duration = Duration::from_secs(15);

/// How long one may wait for news besides, at most (`Prefer: wait=<seconds>`, RFC 7240).
const WAIT: Duration = Duration::from_secs(55);

/// What a reply begins with that names what was left out of a report.
pub const LEFT_OUT: &str = "left out, the rest is taken:\n";

/// Whom a route lets in.
#[derive(Clone, Copy, Debug)]
enum Admits {
    /// Anybody.
    Anybody,
    /// A member by its certificate, or who brings a token.
    MemberOrToken,
    /// A member by its certificate.
    Member,
}

/// Who may call what.
const ADMISSION: [(Method, &str, Admits); 7] = [
    (Method::GET, "/api/ca-cert", Admits::Anybody),
    (Method::GET, "/api/ca-crl", Admits::Anybody),
    (Method::POST, "/api/sign-cert", Admits::MemberOrToken),
    (Method::PUT, "/api/cluster", Admits::Member),
    (Method::PUT, "/api/endpoints", Admits::Member),
    (Method::GET, "/api/endpoints-and-communities", Admits::Member),
    (Method::GET, "/api/cidrs", Admits::Member),
];

/// Who was let in.
#[derive(Clone, Debug)]
enum Admitted {
    Anybody,
    Member(String),
    Token(Claims),
}

/// What the API answers from.
#[derive(Debug)]
pub struct View {
    /// What signs certificates.
    pub authorities: Arc<Authorities>,
    /// Addresses or DNS names at which the API is reached.
    pub addresses: Vec<String>,
    /// What checks tokens.
    pub tokens: Arc<Tokens>,
    /// Clusters that are registered here.
    pub clusters: BTreeSet<String>,
    /// Communities and their members.
    pub communities: BTreeMap<String, Vec<String>>,
    /// The endpoints of every cluster that others may talk to, ours included.
    pub endpoints: Vec<Endpoint>,
    /// The prefixes of every cluster, ours included.
    pub cidrs: BTreeMap<String, Vec<String>>,
    /// Which prefix is whose.
    pub others: Others,
}

impl View {
    /// Whether answers from it are those from the other one.
    pub fn is_as(&self, other: &Self) -> bool {
        let Self {
            authorities,
            addresses,
            tokens,
            clusters,
            communities,
            endpoints,
            cidrs,
            others,
        } = self;
        Arc::ptr_eq(authorities, &other.authorities)
            && Arc::ptr_eq(tokens, &other.tokens)
            && *addresses == other.addresses
            && *clusters == other.clusters
            && *communities == other.communities
            && *endpoints == other.endpoints
            && *cidrs == other.cidrs
            && *others == other.others
    }
}

/// Where the API writes to.
pub trait Registry: Send + Sync + 'static {
    /// Notes that the token `id` of a cluster was used for this key, unless it was for another; returns whether it is
    /// this key's.
    fn redeem(
        &self,
        cluster: &str,
        id: &str,
        fingerprint: &str,
    ) -> impl Future<Output = Result<bool, Unavailable>> + Send;

    /// Takes what a cluster says of itself, as far as it may, and what was left out of it.
    fn report(
        &self,
        cluster: &str,
        taken: Report,
        refused: &[String],
    ) -> impl Future<Output = Result<(), Unavailable>> + Send;
}

/// The registry cannot be written to now.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct Unavailable(pub String);

/// Who is at the other end of a connection, as TLS tells it.
#[derive(Clone, Debug)]
pub struct Peer {
    /// Its address; behind a NodePort that of a node.
    pub address: SocketAddr,
    /// What its certificate says.
    pub caller: Caller,
}

struct Host<R> {
    view: watch::Receiver<Option<Arc<View>>>,
    registry: R,
    failures: Mutex<Failures>,
}

impl<R> Host<R> {
    fn view(&self) -> Result<Arc<View>, Answer> {
        self.view
            .borrow()
            .clone()
            .ok_or_else(|| Answer::new(StatusCode::SERVICE_UNAVAILABLE, "not ready yet"))
    }
}

/// An answer that is no success: its status, and why.
#[derive(Debug)]
struct Answer {
    status: StatusCode,
    why: String,
    retry_after: Option<Duration>,
}

impl Answer {
    fn new(status: StatusCode, why: impl Into<String>) -> Self {
        let retry_after = (status == StatusCode::SERVICE_UNAVAILABLE).then_some(Duration::from_secs(2));
        Self {
            status,
            why: why.into(),
            retry_after,
        }
    }
}

impl IntoResponse for Answer {
    fn into_response(self) -> Response {
        let mut response = (self.status, self.why + "\n").into_response();
        if let Some(seconds) = self.retry_after.map(|time| time.as_secs().max(1)) {
            response.headers_mut().insert(header::RETRY_AFTER, seconds.into());
        }
        response
    }
}

impl From<Unavailable> for Answer {
    fn from(error: Unavailable) -> Self {
        warn!(%error, "the network API could not write");
        Self::new(
            StatusCode::SERVICE_UNAVAILABLE,
            "the host's Kubernetes API cannot be written to now",
        )
    }
}

/// The routes. Every request must carry a [`Peer`] as extension.
pub fn router<R: Registry>(view: watch::Receiver<Option<Arc<View>>>, registry: R) -> Router {
    let host = Arc::new(Host {
        view,
        registry,
        failures: Mutex::default(),
    });
    Router::new()
        .route("/api/ca-cert", get(ca_cert::<R>))
        .route("/api/ca-crl", get(ca_crl::<R>))
        .route("/api/sign-cert", post(sign_cert::<R>))
        .route("/api/cluster", put(cluster::<R>))
        .route("/api/endpoints", put(endpoints::<R>))
        .route("/api/endpoints-and-communities", get(communities::<R>))
        .route("/api/cidrs", get(cidrs::<R>))
        .layer(DefaultBodyLimit::max(BODY))
        .layer(from_fn_with_state(Arc::clone(&host), admit::<R>))
        .with_state(host)
}

/// Lets through whom [`ADMISSION`] names, and nobody else; ends what takes too long.
async fn admit<R: Registry>(State(host): State<Arc<Host<R>>>, mut request: Request, next: Next) -> Response {
    let admitted = match admission(&host, &request) {
        Ok(admitted) => admitted,
        Err(answer) => return answer.into_response(),
    };
    request.extensions_mut().insert(admitted);
    let limit = match *request.method() {
        Method::GET => REQUEST + WAIT,
        _ => REQUEST,
    };
    match tokio::time::timeout(limit, next.run(request)).await {
        Ok(response) => response,
        Err(_) => Answer::new(StatusCode::REQUEST_TIMEOUT, "the request took too long").into_response(),
    }
}

fn admission<R: Registry>(host: &Host<R>, request: &Request) -> Result<Admitted, Answer> {
    let path = request.uri().path();
    let admits = ADMISSION
        .iter()
        .find(|(method, known, _)| *known == path && method == request.method());
    let Some((_, _, admits)) = admits else {
        let known = ADMISSION.iter().any(|(_, known, _)| *known == path);
        return Err(if known {
            Answer::new(StatusCode::METHOD_NOT_ALLOWED, "no such method here")
        } else {
            Answer::new(StatusCode::NOT_FOUND, "no such path")
        });
    };
    // What says so itself is not read; what does not is cut off at the limit.
    if request.body().size_hint().lower() > BODY as u64 {
        return Err(Answer::new(
            StatusCode::PAYLOAD_TOO_LARGE,
            format!("a body may have {BODY} bytes"),
        ));
    }
    let peer = request
        .extensions()
        .get::<Peer>()
        .ok_or_else(|| Answer::new(StatusCode::FORBIDDEN, "nobody is known to call"))?;
    let admitted = match (admits, &peer.caller) {
        (Admits::Anybody, _) => return Ok(Admitted::Anybody),
        (_, Caller::Other(name)) => {
            return Err(Answer::new(
                StatusCode::FORBIDDEN,
                format!("the certificate of {name:?} is not that of a member cluster"),
            ));
        }
        (_, Caller::Member(cluster)) => Admitted::Member(cluster.clone()),
        (Admits::Member, Caller::Anybody) => {
            return Err(Answer::new(
                StatusCode::UNAUTHORIZED,
                "a client certificate of a member cluster is needed",
            ));
        }
        (Admits::MemberOrToken, Caller::Anybody) => Admitted::Token(bearer(host, peer, request.headers())?),
    };
    let (cluster, view) = (
        match &admitted {
            Admitted::Member(cluster) => cluster,
            Admitted::Token(claims) => &claims.sub,
            Admitted::Anybody => return Ok(admitted),
        },
        host.view()?,
    );
    let mut claimed = request.headers().get_all(CLUSTER).iter();
    if claimed.any(|claimed| claimed.as_bytes() != cluster.as_bytes()) {
        return Err(Answer::new(
            StatusCode::FORBIDDEN,
            format!("the header {CLUSTER} is not {cluster:?}, for whom you showed to speak"),
        ));
    }
    if !view.clusters.contains(cluster) {
        return Err(Answer::new(
            StatusCode::NOT_FOUND,
            format!("there is no Cluster {cluster} here: it was never registered, or was removed"),
        ));
    }
    Ok(admitted)
}

/// What the token of a caller without a certificate says. A good one counts however often others fail, for behind a
/// NodePort all may have one address.
fn bearer<R: Registry>(host: &Host<R>, peer: &Peer, headers: &HeaderMap) -> Result<Claims, Answer> {
    let (address, now) = (peer.address.ip(), Instant::now());
    let token = headers
        .get(header::AUTHORIZATION)
        .and_then(|value| value.to_str().ok())
        .and_then(|value| value.split_once(' '))
        .filter(|(scheme, _)| scheme.eq_ignore_ascii_case("bearer"))
        .map(|(_, token)| token.trim());
    let refused = match token {
        None => "a client certificate of a member cluster, or a token, is needed".to_owned(),
        Some(token) => match host.view()?.tokens.check(token, OffsetDateTime::now_utc()) {
            Ok(claims) => return Ok(claims),
            Err(refusal) => refusal.to_string(),
        },
    };
    let mut failures = host.failures.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(left) = failures.must_wait(address, now) {
        return Err(Answer {
            retry_after: Some(left),
            ..Answer::new(
                StatusCode::TOO_MANY_REQUESTS,
                "too many failures from this address",
            )
        });
    }
    failures.count(address, now);
    Err(Answer::new(StatusCode::UNAUTHORIZED, refused))
}

async fn ca_cert<R: Registry>(State(host): State<Arc<Host<R>>>) -> Result<Response, Answer> {
    let pem = host.view()?.authorities.trust().pem().to_owned();
    Ok(([(header::CONTENT_TYPE, "application/x-pem-file")], pem).into_response())
}

/// What the authorities have revoked: nothing, as long as nothing was. Public, as lists are (RFC 5280 §5).
async fn ca_crl<R: Registry>(State(host): State<Arc<Host<R>>>) -> Result<Response, Answer> {
    let pem = host.view()?.authorities.trust().lists().to_owned();
    Ok(([(header::CONTENT_TYPE, "application/x-pem-file")], pem).into_response())
}

async fn sign_cert<R: Registry>(
    State(host): State<Arc<Host<R>>>,
    Extension(admitted): Extension<Admitted>,
    body: Result<String, StringRejection>,
) -> Result<Response, Answer> {
    let body = body.map_err(|rejection| Answer::new(rejection.status(), rejection.body_text()))?;
    let request = request::read(&body).map_err(|error| {
        let status = match error {
            request::Error::OtherName(_) => StatusCode::FORBIDDEN,
            _ => StatusCode::BAD_REQUEST,
        };
        Answer::new(status, error.to_string())
    })?;
    let name = &request.name;
    let purpose = match &admitted {
        Admitted::Member(cluster) if *name == client_name(cluster) => Purpose::ApiClient,
        Admitted::Member(cluster) if is_endpoint_of(cluster, name) => Purpose::Ipsec,
        Admitted::Token(claims) if *name == client_name(&claims.sub) => {
            let ours = host
                .registry
                .redeem(&claims.sub, &claims.jti, &request.fingerprint)
                .await?;
            if !ours {
                return Err(Answer::new(
                    StatusCode::FORBIDDEN,
                    "the token was used already, for another key: have a new one made by `kubectl delete` and \
                     `kubectl apply` of the Cluster in the host",
                ));
            }
            Purpose::ApiClient
        }
        Admitted::Member(cluster) => return Err(not_yours(name, cluster)),
        Admitted::Token(claims) => return Err(not_yours(name, &client_name(&claims.sub))),
        Admitted::Anybody => return Err(not_yours(name, "nobody")),
    };
    let certificate = host
        .view()?
        .authorities
        .current()
        .certify(name, purpose, &request.key, OffsetDateTime::now_utc())
        .map_err(|error| {
            warn!(error = chain(&error), "the network API could not sign");
            let status = match error {
                authority::Error::SelfCheck(_) => StatusCode::SERVICE_UNAVAILABLE,
                _ => StatusCode::BAD_REQUEST,
            };
            Answer::new(status, chain(&error))
        })?;
    // By which it can be revoked once nobody has it any more.
    let serial = revocation::serial_of(&certificate).unwrap_or_default();
    info!(%name, ?purpose, serial, "signed a certificate for a member cluster");
    Ok(([(header::CONTENT_TYPE, "application/x-pem-file")], certificate).into_response())
}

fn not_yours(name: &str, whose: &str) -> Answer {
    Answer::new(
        StatusCode::FORBIDDEN,
        format!("{name:?} is not a name that {whose} can have a certificate for"),
    )
}

/// Whether a name is that of an endpoint of this cluster: `<cluster>.<node>` or `<cluster>.connector`, and none of the
/// names that mean something else.
fn is_endpoint_of(cluster: &str, name: &str) -> bool {
    name.strip_prefix(cluster)
        .and_then(|rest| rest.strip_prefix('.'))
        .is_some_and(|node| {
            is_name(node) && !["fabedge-client", "fabedge-operator", "mediator"].contains(&node)
        })
}

async fn cluster<R: Registry>(
    State(host): State<Arc<Host<R>>>,
    Extension(admitted): Extension<Admitted>,
    body: Result<axum::body::Bytes, BytesRejection>,
) -> Result<StatusCode, Answer> {
    take(&host, &admitted, body, Report::of_cluster).await
}

async fn endpoints<R: Registry>(
    State(host): State<Arc<Host<R>>>,
    Extension(admitted): Extension<Admitted>,
    body: Result<axum::body::Bytes, BytesRejection>,
) -> Result<StatusCode, Answer> {
    take(&host, &admitted, body, Report::of_endpoints).await
}

async fn take<R: Registry>(
    host: &Host<R>,
    admitted: &Admitted,
    body: Result<axum::body::Bytes, BytesRejection>,
    read: fn(&[u8]) -> Result<Report, report::Error>,
) -> Result<StatusCode, Answer> {
    let body = body.map_err(|rejection| Answer::new(rejection.status(), rejection.body_text()))?;
    let Admitted::Member(cluster) = admitted else {
        return Err(Answer::new(StatusCode::FORBIDDEN, "only a member reports"));
    };
    let report = read(&body).map_err(|error| Answer::new(StatusCode::BAD_REQUEST, error.to_string()))?;
    let (taken, refused) = report.judge(cluster, &host.view()?.others);
    host.registry.report(cluster, taken, &refused).await?;
    if refused.is_empty() {
        return Ok(StatusCode::NO_CONTENT);
    }
    // It is said in an Event and in a condition, and once each.
    debug!(
        cluster,
        refused = refused.join("; "),
        "a part of a member's report is left out"
    );
    Err(Answer::new(
        StatusCode::BAD_REQUEST,
        format!("{LEFT_OUT}{}", refused.join("\n")),
    ))
}

/// What a member hears of others.
#[derive(Debug, Serialize)]
struct News<'a> {
    communities: BTreeMap<&'a str, &'a [String]>,
    endpoints: Vec<&'a Endpoint>,
    /// Whose are which prefixes: what is for others must not leave in the clear, whoever may talk to them.
    cidrs: BTreeMap<&'a str, &'a [String]>,
}

impl<'a> News<'a> {
    /// Of the communities that one of its endpoints is in, and of those who are in them: of nothing else but prefixes.
    fn of(view: &'a View, cluster: &str) -> Self {
        let own = |name: &str| name.split_once('.').is_some_and(|(whose, _)| whose == cluster);
        let communities: BTreeMap<&str, &[String]> = view
            .communities
            .iter()
            .filter(|(_, members)| members.iter().any(|name| own(name)))
            .map(|(name, members)| (name.as_str(), members.as_slice()))
            .collect();
        let names: BTreeSet<&str> = communities
            .values()
            .flat_map(|members| members.iter())
            .map(String::as_str)
            .collect();
        let endpoints = view
            .endpoints
            .iter()
            .filter(|endpoint| !own(&endpoint.name) && names.contains(endpoint.name.as_str()))
            .collect();
        Self {
            communities,
            endpoints,
            cidrs: view
                .cidrs
                .iter()
                .filter(|(name, _)| *name != cluster)
                .map(|(name, nets)| (name.as_str(), nets.as_slice()))
                .collect(),
        }
    }
}

async fn communities<R: Registry>(
    State(host): State<Arc<Host<R>>>,
    Extension(admitted): Extension<Admitted>,
    headers: HeaderMap,
) -> Result<Response, Answer> {
    let Admitted::Member(cluster) = admitted else {
        return Err(Answer::new(StatusCode::FORBIDDEN, "only a member is told"));
    };
    let text = |view: &View| serde_json::to_string(&News::of(view, &cluster)).unwrap_or_default();
    news(&host, &headers, text).await
}

async fn cidrs<R: Registry>(
    State(host): State<Arc<Host<R>>>,
    headers: HeaderMap,
) -> Result<Response, Answer> {
    news(&host, &headers, |view| {
        serde_json::to_string(&view.cidrs).unwrap_or_default()
    })
    .await
}

/// Answers at once, or, to who has the newest (`If-None-Match`) and wants to wait (`Prefer: wait=<seconds>`), when there
/// is news.
async fn news<R: Registry>(
    host: &Host<R>,
    headers: &HeaderMap,
    text: impl Fn(&View) -> String,
) -> Result<Response, Answer> {
    let header_text = |name| headers.get(name).and_then(|value| value.to_str().ok());
    let known = header_text(header::IF_NONE_MATCH.as_str());
    let wait = header_text("prefer")
        .and_then(|value| value.strip_prefix("wait="))
        .and_then(|seconds| seconds.parse().ok())
        .map_or(Duration::ZERO, |seconds| Duration::from_secs(seconds).min(WAIT));
    let until = tokio::time::Instant::now() + wait;
    let mut changes = host.view.clone();
    loop {
        changes.mark_unchanged();
        let view = host.view()?;
        let text = text(&view);
        // Who waits is also to learn at once of another CA, and of what is revoked, for which it asks then.
        let hash = Sha256::new()
            .chain_update(&text)
            .chain_update(view.authorities.trust().pem())
            .chain_update(view.authorities.trust().lists());
        let tag = format!("\"{}\"", &hex(&hash.finalize())[..32]);
        if known != Some(tag.as_str()) {
            let headers = [
                (header::CONTENT_TYPE, "application/json".to_owned()),
                (header::ETAG, tag),
            ];
            return Ok((headers, text).into_response());
        }
        match tokio::time::timeout_at(until, changes.changed()).await {
            Ok(Ok(())) => {}
            Ok(Err(_)) | Err(_) => return Ok(StatusCode::NOT_MODIFIED.into_response()),
        }
    }
}

/// The certificate's verdict is TLS's; this only names the caller.
pub fn peer(address: SocketAddr, certificate: Option<&[u8]>) -> Peer {
    Peer {
        address,
        caller: Caller::of(certificate),
    }
}

#[cfg(test)]
#[path = "tests.rs"]
mod tests;
