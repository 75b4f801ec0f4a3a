//! Member clusters, on the host: the tokens with which they register, and what the network API reads and writes.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;

use fabedge_common::config::{self, EndpointType};
use futures_util::{StreamExt as _, stream};
use ipnet::IpNet;
use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::Secret;
use kube::api::{Patch, PatchParams, PostParams};
use kube::core::DynamicObject;
use kube::{Api, Client};
use serde_json::json;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;
use tokio::net::TcpListener;
use tokio::sync::watch as channel;
use tokio::task::JoinSet;
use tracing::info;

use super::leader::Label;
use super::live::Live;
use super::{MANAGER, objects, watch};
use crate::api::{ClusterSpec, ClusterStatus, Endpoint, Registration};
use crate::args;
use crate::federation::api::{Registry, Unavailable, View, router};
use crate::federation::listener;
use crate::federation::report::{Others, Owner, Report};
use crate::federation::token::{self, Tokens};
use crate::finding::Finding;
use crate::pki::Authorities;
use crate::reporter::chain;
use crate::snapshot::Settings;
use crate::topology::Topology;

/// Secret with the key that signs tokens.
const SECRET: &str = "fabedge-token-key";
const KEY: &str = "key.pem";

/// A token that nobody has used is replaced when this is left of its life.
const RENEW: time::Duration = time::Duration::hours(4);

/// Tokens that are made and written at a time.
const CONCURRENCY: usize = 16;

/// Attempts to note the use of a token while others write the Cluster.
const ATTEMPTS: usize = 5;

/// Why something about members did not succeed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The port.
    #[error(
        "serving the network API at {listen}: is the port in use? (operator.operatorAPIServer.listenAddress)"
    )]
    Listen {
        /// The address.
        listen: SocketAddr,
        /// Why.
        source: std::io::Error,
    },
    /// The Secret of the key.
    #[error("{action} the Secret {SECRET}")]
    Secret {
        /// What was attempted.
        action: &'static str,
        /// Why it failed.
        source: kube::Error,
    },
    /// The key in it.
    #[error(
        "the Secret {SECRET} has no key that signs tokens: delete it to have a new one made; tokens that nobody has \
             used are then replaced"
    )]
    Key(#[source] token::Error),
    /// A token.
    #[error("making a token for Cluster {0}")]
    Token(String, #[source] token::Error),
    /// It could not be handed out.
    #[error("writing the token of Cluster {0}")]
    Write(String, #[source] kube::Error),
}

/// The Cluster that a token was written into: one that is shown with an earlier generation is shown without it.
#[derive(Debug)]
struct Given {
    uid: String,
    generation: Option<i64>,
}

/// What the leader of a host keeps about members.
#[derive(Debug)]
pub struct Members {
    clusters: Api<DynamicObject>,
    secrets: Api<Secret>,
    cluster: String,
    listen: SocketAddr,
    label: Label,
    tokens: Option<Arc<Tokens>>,
    /// By the name of their cluster, tokens that were written and perhaps not shown yet.
    given: BTreeMap<String, Given>,
    view: channel::Sender<Option<Arc<View>>>,
    serving: JoinSet<()>,
}

impl Members {
    /// Does nothing yet.
    pub fn new(client: &Client, args: &args::Run, cluster: &str, listen: SocketAddr) -> Self {
        Self {
            clusters: watch::custom(client, "Cluster", "clusters"),
            secrets: Api::namespaced(client.clone(), &args.namespace),
            label: Label::new(client, &args.namespace, &args.identity),
            cluster: cluster.to_owned(),
            listen,
            tokens: None,
            given: BTreeMap::new(),
            view: channel::Sender::new(None),
            serving: JoinSet::new(),
        }
    }

    /// Serves the network API, as only a leader does. Calls find it by its label, which it has once there is something to
    /// answer from.
    ///
    /// # Errors
    /// When there is no port.
    pub async fn lead(&mut self) -> Result<(), Error> {
        let listener = TcpListener::bind(self.listen)
            .await
            .map_err(|source| Error::Listen {
                listen: self.listen,
                source,
            })?;
        let registry = Clusters {
            api: self.clusters.clone(),
        };
        let view = self.view.subscribe();
        self.serving.spawn(listener::serve(
            listener,
            self.cluster.clone(),
            view.clone(),
            router(view, registry),
        ));
        info!(listen = %self.listen, "serving the network API");
        Ok(())
    }

    /// What was left out of members' reports.
    pub fn findings(live: &Live) -> impl Iterator<Item = Finding> {
        live.clusters().flat_map(|shown| {
            let object = format!("Cluster {}", shown.name);
            let refused = shown.status.refused.iter();
            refused.map(move |why| Finding::warning(&object, "its report", format!("{why}: left out")))
        })
    }

    /// Hands out tokens, and shows the network API what is so now. Returns what failed.
    pub async fn pass(
        &mut self,
        live: &Live,
        topology: &Topology,
        settings: &Settings,
        authorities: &Arc<Authorities>,
        now: OffsetDateTime,
    ) -> Vec<String> {
        let tokens = match &self.tokens {
            Some(tokens) => Arc::clone(tokens),
            None => match self.open().await {
                Ok(tokens) => Arc::clone(self.tokens.insert(Arc::new(tokens))),
                Err(error) => return vec![chain(&error)],
            },
        };
        self.given.retain(|name, given| {
            live.clusters().any(|shown| {
                shown.name == name && shown.uid == given.uid && shown.generation < given.generation
            })
        });
        let without = live.clusters().filter(|shown| {
            !self.given.contains_key(shown.name)
                && shown.good.is_some_and(|known| {
                    let joined = shown.status.registration.is_some() || !known.endpoints.is_empty();
                    let member = shown.name != self.cluster && !joined;
                    member && wants_token(known.token.as_deref(), &tokens, authorities, now)
                })
        });
        let outcomes: Vec<_> = stream::iter(without)
            .map(async |shown| {
                (
                    shown.name,
                    self.hand_out(shown.name, &tokens, authorities, now).await,
                )
            })
            .buffer_unordered(CONCURRENCY)
            .collect()
            .await;
        let mut failures = Vec::new();
        for (name, outcome) in outcomes {
            match outcome {
                Ok(Some(given)) => _ = self.given.insert(name.to_owned(), given),
                Ok(None) => {}
                Err(error) => failures.push(chain(&error)),
            }
        }
        let view = view(live, topology, settings, authorities, &tokens);
        // Who waits for news looks at it only when there may be some.
        self.view.send_if_modified(|shown| {
            let news = shown.as_deref().is_none_or(|shown| !shown.is_as(&view));
            if news {
                *shown = Some(Arc::new(view));
            }
            news
        });
        let unlabelled = self.label.follow(live.operators()).await;
        failures.extend(unlabelled.iter().map(|error| chain(error)));
        failures
    }

    async fn hand_out(
        &self,
        cluster: &str,
        tokens: &Tokens,
        authorities: &Authorities,
        now: OffsetDateTime,
    ) -> Result<Option<Given>, Error> {
        let token = tokens
            .issue(cluster, authorities.oldest().der(), now)
            .map_err(|e| Error::Token(cluster.to_owned(), e))?;
        let patch = json!({"spec": {"token": token}});
        match self
            .clusters
            .patch(cluster, &params(), &Patch::Merge(&patch))
            .await
        {
            Ok(written) => {
                info!(cluster, "made a token for a cluster that has not registered");
                Ok(Some(Given {
                    uid: written.metadata.uid.unwrap_or_default(),
                    generation: written.metadata.generation,
                }))
            }
            // Gone meanwhile: its watch tells.
            Err(kube::Error::Api(status)) if status.code == 404 => Ok(None),
            Err(source) => Err(Error::Write(cluster.to_owned(), source)),
        }
    }

    /// Loads the key that signs tokens, or makes one where there is none.
    async fn open(&self) -> Result<Tokens, Error> {
        let failed = |action| move |source| Error::Secret { action, source };
        let secret = match self.secrets.get_opt(SECRET).await.map_err(failed("reading"))? {
            Some(secret) => secret,
            None => {
                // A second or so of computing.
                let key = tokio::task::spawn_blocking(token::generate_key)
                    .await
                    .unwrap_or_else(|panic| std::panic::resume_unwind(panic.into_panic()))
                    .map_err(Error::Key)?;
                let made = Secret {
                    metadata: objects::unowned(SECRET),
                    data: Some([(KEY.to_owned(), ByteString(key.into_bytes()))].into()),
                    ..Secret::default()
                };
                // Created, not applied: one that somebody made meanwhile stays.
                match self.secrets.create(&PostParams::default(), &made).await {
                    Ok(secret) => secret,
                    Err(kube::Error::Api(status)) if status.code == 409 => {
                        self.secrets.get(SECRET).await.map_err(failed("reading"))?
                    }
                    Err(source) => return Err(failed("making")(source)),
                }
            }
        };
        Tokens::new(&objects::text(&secret, KEY).unwrap_or_default()).map_err(Error::Key)
    }
}

fn params() -> PatchParams {
    PatchParams {
        field_manager: Some(MANAGER.to_owned()),
        ..PatchParams::default()
    }
}

/// Whether a cluster that has not registered needs another token: it has none, or one that is not of this key and
/// authority, or is about to end.
fn wants_token(token: Option<&str>, tokens: &Tokens, authorities: &Authorities, now: OffsetDateTime) -> bool {
    token
        .and_then(|token| tokens.check(token, now + RENEW).ok())
        .is_none_or(|claims| claims.ca_hash != token::ca_hash(authorities.oldest().der()))
}

/// The prefixes of this cluster.
fn own_cidrs(settings: &Settings) -> Vec<String> {
    let own: Vec<IpNet> = settings
        .pod_ranges()
        .chain(settings.service_cidrs.iter().copied())
        .collect();
    texts(&IpNet::aggregate(&own))
}

/// What this cluster tells its host of itself.
pub fn own(topology: &Topology, settings: &Settings) -> ClusterSpec {
    ClusterSpec {
        cidrs: own_cidrs(settings),
        endpoints: vec![wire(&topology.connector)],
        ..ClusterSpec::default()
    }
}

fn texts(nets: &[IpNet]) -> Vec<String> {
    nets.iter().map(ToString::to_string).collect()
}

/// What the network API answers from.
fn view(
    live: &Live,
    topology: &Topology,
    settings: &Settings,
    authorities: &Arc<Authorities>,
    tokens: &Arc<Tokens>,
) -> View {
    let (snapshot, _) = live.snapshot();
    let mut others = Others::default();
    for net in settings.pod_ranges() {
        others.add(net, Owner::Host("pods"));
    }
    for net in &settings.service_cidrs {
        others.add(*net, Owner::Host("services"));
    }
    for edge in topology.edges.values() {
        for net in &edge.subnets {
            others.add(*net, Owner::Host("pods"));
        }
    }
    for net in &topology.connector.node_subnets {
        others.add(*net, Owner::Host("nodes"));
    }
    let mut cidrs = BTreeMap::from([(topology.cluster.clone(), own_cidrs(settings))]);
    let mut endpoints = vec![wire(&topology.connector)];
    let members = snapshot
        .clusters
        .iter()
        .filter(|(name, _)| **name != topology.cluster);
    for (name, cluster) in members.clone() {
        let nets = cluster.endpoints.iter();
        let nets = nets.flat_map(|endpoint| &endpoint.subnets);
        for net in nets.chain(&cluster.cidrs) {
            others.add(*net, Owner::Member(name.clone()));
        }
        cidrs.insert(name.clone(), texts(&cluster.cidrs));
        endpoints.extend(cluster.endpoints.iter().map(wire));
    }
    View {
        authorities: Arc::clone(authorities),
        addresses: topology
            .connector
            .public_addresses
            .iter()
            .cloned()
            .chain(topology.gateways.iter().map(ToString::to_string))
            .collect(),
        tokens: Arc::clone(tokens),
        clusters: members.map(|(name, _)| name.clone()).collect(),
        communities: snapshot
            .communities
            .into_iter()
            .map(|(name, community)| (name, community.members))
            .collect(),
        endpoints,
        cidrs,
        others,
    }
}

/// An endpoint as the API and custom resources have it.
fn wire(endpoint: &config::Endpoint) -> Endpoint {
    Endpoint {
        id: endpoint.id.clone(),
        name: endpoint.name.clone(),
        public_addresses: endpoint.public_addresses.clone(),
        subnets: texts(&endpoint.subnets),
        node_subnets: texts(&endpoint.node_subnets),
        kind: match endpoint.kind {
            EndpointType::Connector => "Connector".to_owned(),
            // Cloud nodes are nobody's peers: they are never told of.
            EndpointType::EdgeNode | EndpointType::CloudNode => "EdgeNode".to_owned(),
        },
        port: endpoint.port,
    }
}

/// The Clusters, to which the network API writes.
struct Clusters {
    api: Api<DynamicObject>,
}

fn unavailable(error: &kube::Error) -> Unavailable {
    Unavailable(chain(error))
}

impl Registry for Clusters {
    async fn redeem(&self, cluster: &str, id: &str, fingerprint: &str) -> Result<bool, Unavailable> {
        for _ in 0..ATTEMPTS {
            let object = self.api.get(cluster).await.map_err(|e| unavailable(&e))?;
            let status: ClusterStatus = object
                .data
                .get("status")
                .and_then(|status| serde_json::from_value(status.clone()).ok())
                .unwrap_or_default();
            if let Some(known) = status.registration {
                return Ok(known.token == id && known.key == fingerprint);
            }
            let registration = Registration {
                token: id.to_owned(),
                key: fingerprint.to_owned(),
                time: OffsetDateTime::now_utc().format(&Rfc3339).unwrap_or_default(),
            };
            // Only as long as nobody else has written it: two callers with one token must not both be the first.
            let patch = json!({
                "metadata": {"resourceVersion": object.metadata.resource_version},
                "status": {"registration": registration},
            });
            match self
                .api
                .patch_status(cluster, &params(), &Patch::Merge(&patch))
                .await
            {
                Ok(_) => {
                    info!(cluster, "a cluster has registered");
                    return Ok(true);
                }
                Err(kube::Error::Api(status)) if status.code == 409 => {}
                Err(error) => return Err(unavailable(&error)),
            }
        }
        Err(Unavailable(format!(
            "Cluster {cluster} is written to all the time"
        )))
    }

    async fn report(&self, cluster: &str, taken: Report, refused: &[String]) -> Result<(), Unavailable> {
        let object = self.api.get(cluster).await.map_err(|e| unavailable(&e))?;
        let mut spec = json!({"endpoints": taken.endpoints});
        if let Some(cidrs) = taken.cidrs {
            spec["cidrs"] = json!(cidrs);
        }
        let there = object.data.get("spec");
        let known = |field: &str| there.and_then(|spec| spec.get(field)).cloned();
        let same = spec.as_object().is_some_and(|told| {
            told.iter()
                .all(|(field, value)| known(field).unwrap_or_else(|| json!([])) == *value)
        });
        let older = known("endPoints").is_some();
        if older || !same {
            // An older operator's spelling of the same.
            spec["endPoints"] = json!(null);
            let patch = json!({"spec": spec});
            self.api
                .patch(cluster, &params(), &Patch::Merge(&patch))
                .await
                .map_err(|e| unavailable(&e))?;
        }
        let known = object.data.get("status").and_then(|status| status.get("refused"));
        if known.cloned().unwrap_or_else(|| json!([])) != json!(refused) {
            let patch = json!({"status": {"refused": refused}});
            self.api
                .patch_status(cluster, &params(), &Patch::Merge(&patch))
                .await
                .map_err(|e| unavailable(&e))?;
        }
        Ok(())
    }
}
