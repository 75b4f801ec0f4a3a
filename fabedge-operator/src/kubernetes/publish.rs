//! Documents and certificates -> ConfigMaps and Secrets. Only what differs is written, a few at a time.

use std::collections::{BTreeMap, BTreeSet};

use fabedge_common::config::{CLOUD, CONNECTOR, NodeConfig};
use futures_util::{StreamExt as _, stream};
use ipnet::IpNet;
use k8s_openapi::api::core::v1::{ConfigMap, Node, Secret};
use kube::api::{DeleteParams, ListParams, Patch, PatchParams};
use kube::runtime::watcher::Event;
use kube::{Api, Client, ResourceExt};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::json;
use time::OffsetDateTime;

use super::authority::{self, Opened};
use super::issuer::{self, Issuer};
use super::live::Live;
use super::{MANAGER, objects};
use crate::api::SUBNETS;
use crate::pki::inspect::{Verdict, judge};
use crate::pki::{Leaf, revocation};
use crate::publish::{generation, next_document};
use crate::topology::{Previous, Topology};

/// Requests under way at a time: more make the API server slower for everybody.
const CONCURRENCY: usize = 16;

/// Objects in a page of a list.
const PAGE: u32 = 500;

/// Why something was not published.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The API refused, or did not answer.
    #[error("{action} {object}")]
    Api {
        /// What was attempted.
        action: &'static str,
        /// On which object.
        object: String,
        /// Why it failed.
        source: kube::Error,
    },
    /// The document could not be written as YAML.
    #[error(transparent)]
    Document(crate::publish::Error),
    /// No certificate.
    #[error(transparent)]
    Certificate(issuer::Error),
}

fn api(action: &'static str, object: impl Into<String>) -> impl FnOnce(kube::Error) -> Error {
    let object = object.into();
    move |source| Error::Api {
        action,
        object,
        source,
    }
}

/// What a pass did.
pub type Report = crate::publish::Report<Error>;

/// What the API server is known to hold under a local name.
#[derive(Clone, Debug, Default)]
struct Known {
    /// The ConfigMap's document.
    text: Option<String>,
    /// The highest generation that was there.
    generation: Option<u64>,
    /// The owner of both objects.
    node: Option<String>,
    /// The pod prefixes in the document.
    subnets: Vec<IpNet>,
    /// What the text says apart from its generation, once compared.
    document: Option<NodeConfig>,
    certificate: Option<Tls>,
    renew_at: Option<OffsetDateTime>,
    /// Of both objects, once they are known to be as they should be.
    hash: Option<String>,
    /// Somebody changed an object: it is read before it is judged.
    suspect: bool,
    /// The document needs a new generation, whatever it says.
    anew: bool,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Tls {
    authority: String,
    /// Revocation lists.
    lists: String,
    leaf: Leaf,
}

impl Tls {
    fn of(secret: &Secret) -> Option<Self> {
        Some(Self {
            authority: objects::text(secret, objects::AUTHORITY)?,
            lists: objects::text(secret, objects::LISTS).unwrap_or_default(),
            leaf: Leaf {
                certificate: objects::text(secret, objects::CERTIFICATE)?,
                key: objects::text(secret, objects::KEY)?,
            },
        })
    }
}

impl Tls {
    /// All of it that is no secret.
    fn texts(&self) -> [&str; 3] {
        [&self.authority, &self.lists, &self.leaf.certificate]
    }
}

impl Known {
    /// Whether the authorities beside the certificate, and what they have revoked, are what is so now.
    fn trusts(&self, issuer: Option<&Issuer>) -> bool {
        let have = self.certificate.as_ref();
        issuer.is_none_or(|issuer| {
            let trust = issuer.trust();
            have.is_some_and(|have| have.authority == trust.pem() && have.lists == trust.lists())
        })
    }

    /// The serial number of the certificate, and whose it is.
    fn revocation(&self) -> Option<(String, String)> {
        revocation::revocation_of(&self.certificate.as_ref()?.leaf.certificate)
    }

    fn hash(&self) -> Option<String> {
        let (text, tls) = self.text.as_deref().zip(self.certificate.as_ref())?;
        Some(objects::digest([&[text], &tls.texts()[..]].concat()))
    }

    fn take_config_map(&mut self, object: &ConfigMap) {
        self.text = objects::document(object);
        self.generation = self.generation.max(self.text.as_deref().and_then(generation));
        self.node = objects::owner(object);
        self.document = None;
        let parsed = self.text.as_deref().and_then(|text| NodeConfig::parse(text).ok());
        self.subnets = parsed
            .map(|document| document.endpoint.subnets)
            .unwrap_or_default();
    }
}

/// Writes to the API server, and knows what is there.
#[derive(Debug)]
pub struct Publisher {
    maps: Api<ConfigMap>,
    secrets: Api<Secret>,
    nodes: Api<Node>,
    /// By local name; none until [`Self::adopt`].
    known: Option<BTreeMap<String, Known>>,
    /// Certificates to revoke: serial numbers, and whose they are.
    revoked: BTreeMap<String, String>,
}

impl Publisher {
    /// Publishes into `namespace`; touches nothing yet.
    pub fn new(client: Client, namespace: &str) -> Self {
        Self {
            maps: Api::namespaced(client.clone(), namespace),
            secrets: Api::namespaced(client.clone(), namespace),
            nodes: Api::all(client),
            known: None,
            revoked: BTreeMap::new(),
        }
    }

    /// Learns what was published before. Every document is to be written anew where agents may have seen newer ones than
    /// are here, of a time before a backup was brought back: they would refuse these as old.
    ///
    /// # Errors
    /// When it cannot be listed: that is not the same as nothing.
    pub async fn adopt(&mut self, anew: bool) -> Result<(), Error> {
        let mut known: BTreeMap<String, Known> = BTreeMap::new();
        list(&self.maps, "ConfigMaps", |object: ConfigMap| {
            if let Some(local) = objects::local_of_config_map(&object.name_any()) {
                let known = known.entry(local.to_owned()).or_default();
                known.take_config_map(&object);
                known.anew = anew;
            }
        })
        .await?;
        list(&self.secrets, "Secrets", |object: Secret| {
            if let Some(local) = objects::local_of_secret(&object.name_any()) {
                known.entry(local.to_owned()).or_default().certificate = Tls::of(&object);
            }
        })
        .await?;
        self.known = Some(known);
        Ok(())
    }

    /// Takes notice of a ConfigMap of ours; returns whether it is not as we left it.
    pub fn config_map_seen(&mut self, event: &Event<ConfigMap>) -> bool {
        let (object, gone) = match event {
            Event::Apply(object) | Event::InitApply(object) => (object, false),
            Event::Delete(object) => (object, true),
            Event::Init | Event::InitDone => return false,
        };
        let name = object.name_any();
        let known = self.known.as_mut().zip(objects::local_of_config_map(&name));
        let Some(known) = known.and_then(|(known, local)| known.get_mut(local)) else {
            return false;
        };
        known.suspect |=
            gone || known.text != objects::document(object) || known.node != objects::owner(object);
        known.suspect
    }

    /// Takes notice of a Secret of ours; returns whether it is not as we left it.
    pub fn secret_seen(&mut self, event: &Event<Secret>) -> bool {
        let (object, gone) = match event {
            Event::Apply(object) | Event::InitApply(object) => (object, false),
            Event::Delete(object) => (object, true),
            Event::Init | Event::InitDone => return false,
        };
        let name = object.name_any();
        let known = self.known.as_mut().zip(objects::local_of_secret(&name));
        let Some(known) = known.and_then(|(known, local)| known.get_mut(local)) else {
            return false;
        };
        known.suspect |= gone || known.certificate != Tls::of(object);
        if gone {
            self.revoked.extend(known.revocation());
        }
        known.suspect
    }

    /// What each edge has now.
    pub fn previous(&self) -> Previous {
        let edges = self
            .known
            .iter()
            .flatten()
            .filter(|(name, known)| *name != CONNECTOR && *name != CLOUD && !known.subnets.is_empty());
        Previous {
            subnets: edges
                .map(|(name, known)| (name.clone(), known.subnets.clone()))
                .collect(),
        }
    }

    /// A hash of what a node's agent is to go by, once both objects are there.
    pub fn published(&self, name: &str) -> Option<&str> {
        self.known.as_ref()?.get(name)?.hash.as_deref()
    }

    /// A hash of the certificate that a node's agent is to go by, of what it trusts, and of what is revoked.
    pub fn certified(&self, name: &str) -> Option<String> {
        let tls = self.known.as_ref()?.get(name)?.certificate.as_ref()?;
        Some(objects::digest(tls.texts()))
    }

    /// Those whose certificates are worth nothing once they are pruned: see [`Self::prune`].
    pub fn leaving(&mut self, documents: &BTreeMap<String, NodeConfig>, keep: &BTreeSet<String>) {
        let leaving = self.known.iter().flatten();
        let leaving = leaving.filter(|(name, _)| !documents.contains_key(*name) && !keep.contains(*name));
        self.revoked
            .extend(leaving.filter_map(|(_, known)| known.revocation()));
    }

    /// Whether there are certificates to revoke: of Secrets that somebody deleted, and of nodes that leave.
    pub fn revokes(&self) -> bool {
        !self.revoked.is_empty()
    }

    /// Where another cluster's authority signs, nothing can be revoked here.
    pub fn revoke_nothing(&mut self) {
        self.revoked.clear();
    }

    /// The cluster's authorities, once they have revoked what is to be revoked, and what of it failed.
    ///
    /// # Errors
    /// See [`authority::open`].
    pub async fn authorities(
        &mut self,
        cluster: &str,
        in_use: &BTreeSet<String>,
        now: OffsetDateTime,
    ) -> Result<Opened, authority::Error> {
        let certificates = self.revoked.iter();
        let certificates: Vec<_> = certificates
            .map(|(serial, name)| (serial.clone(), Some(name.clone())))
            .collect();
        let revoke = authority::Revoke {
            certificates: &certificates,
            in_use,
        };
        let opened = authority::open(&self.secrets, cluster, &revoke, now).await?;
        self.revoked.clear();
        Ok(opened)
    }

    /// Writes each edge's pod prefixes into the annotation of its node.
    pub async fn annotate(&self, live: &Live, topology: &Topology) -> Report {
        let differs =
            |name: &str, subnets: &[IpNet]| live.node(name).is_some_and(|node| node.subnets != subnets);
        let jobs = topology
            .edges
            .iter()
            .filter(|(name, edge)| differs(name, &edge.subnets))
            .map(|(name, edge)| async move {
                let subnets: Vec<String> = edge.subnets.iter().map(ToString::to_string).collect();
                // Merged, not applied: applying would make a node that has just been deleted.
                let patch = json!({"metadata": {"annotations": {SUBNETS: subnets.join(",")}}});
                let params = PatchParams {
                    field_manager: Some(MANAGER.to_owned()),
                    ..PatchParams::default()
                };
                match self.nodes.patch(name, &params, &Patch::Merge(patch)).await {
                    Ok(_) => None,
                    Err(kube::Error::Api(status)) if status.code == 404 => None,
                    Err(source) => Some(api("annotating", format!("Node {name}"))(source)),
                }
            });
        let failures: Vec<Option<Error>> = stream::iter(jobs).buffer_unordered(CONCURRENCY).collect().await;
        Report {
            failures: failures.into_iter().flatten().collect(),
            ..Report::default()
        }
    }

    /// Writes what differs. Without an issuer: documents only, and the next pass looks at all of them again.
    pub async fn publish(
        &mut self,
        documents: &BTreeMap<String, NodeConfig>,
        live: &Live,
        issuer: Option<&Issuer>,
        now: OffsetDateTime,
    ) -> Report {
        let mut report = Report::default();
        let Some(known) = &self.known else { return report };
        let settled = |name: &str, document: &NodeConfig| {
            known.get(name).is_some_and(|known| {
                !known.suspect
                    && known.document.as_ref() == Some(document)
                    && known.node.as_deref() == live.node_uid(name)
                    && known.renew_at.is_none_or(|at| now < at)
                    && (name == CLOUD || known.renew_at.is_some() && known.trusts(issuer))
            })
        };
        let publisher = &*self;
        let jobs = documents
            .iter()
            .filter(|(name, document)| !settled(name, document))
            .map(|(name, document)| {
                let known = known.get(name).cloned().unwrap_or_default();
                async move {
                    let done = publisher
                        .publish_one(name, document, known, live.node_uid(name), issuer, now)
                        .await;
                    (name, done)
                }
            });
        let done: Vec<_> = stream::iter(jobs).buffer_unordered(CONCURRENCY).collect().await;
        for (name, done) in done {
            match done {
                Ok(done) => {
                    if done.wrote_document {
                        report.documents.push(name.clone());
                    }
                    report
                        .certificates
                        .extend(done.issued.map(|why| (name.clone(), why)));
                    report.failures.extend(done.failure);
                    self.known
                        .get_or_insert_default()
                        .insert(name.clone(), done.known);
                }
                Err(error) => report.failures.push(error),
            }
        }
        report
    }

    async fn publish_one(
        &self,
        name: &str,
        document: &NodeConfig,
        mut known: Known,
        node: Option<&str>,
        issuer: Option<&Issuer>,
        now: OffsetDateTime,
    ) -> Result<Done, Error> {
        let (map, secret) = (objects::config_map_name(name), objects::secret_name(name));
        if known.suspect {
            let found = self
                .maps
                .get_opt(&map)
                .await
                .map_err(api("reading", format!("ConfigMap {map}")))?;
            known.take_config_map(&found.unwrap_or_default());
            let found = self
                .secrets
                .get_opt(&secret)
                .await
                .map_err(api("reading", format!("Secret {secret}")))?;
            known.certificate = found.as_ref().and_then(Tls::of);
            known.suspect = false;
        }
        let moved = known.node.as_deref() != node;
        // Certificates before the document: what the document asks for can be had when it appears. Without one the
        // document comes all the same.
        let (mut issued, mut failure) = (None, None);
        if let Some(issuer) = issuer.filter(|_| name != CLOUD) {
            let have = known.certificate.take();
            let certified = certify(have.clone(), &document.endpoint.name, issuer, now).await;
            if let Some(tls) = certified
                .tls
                .as_ref()
                .filter(|tls| moved || have.as_ref() != Some(tls))
            {
                let object = objects::secret(name, node, &tls.authority, &tls.lists, &tls.leaf);
                apply(&self.secrets, &secret, &object).await?;
            }
            known.renew_at = Some(certified.renew_at);
            known.certificate = certified.tls;
            match certified.issued {
                Ok(why) => issued = why,
                Err(error) => failure = Some(Error::Certificate(error)),
            }
        }
        let before = known.text.as_deref().filter(|_| !known.anew);
        let next = next_document(document, before, known.generation, now).map_err(Error::Document)?;
        let wrote_document = next.is_some();
        if let Some(text) = next.or_else(|| known.text.clone().filter(|_| moved)) {
            apply(&self.maps, &map, &objects::config_map(name, node, &text)).await?;
            known.generation = known.generation.max(generation(&text));
            known.text = Some(text);
            known.anew = false;
        }
        known.node = node.map(str::to_owned);
        known.subnets.clone_from(&document.endpoint.subnets);
        known.document = Some(document.clone());
        known.hash = known.hash();
        Ok(Done {
            known,
            wrote_document,
            issued,
            failure,
        })
    }

    /// Removes what was published for those who are in neither list.
    pub async fn prune(
        &mut self,
        documents: &BTreeMap<String, NodeConfig>,
        keep: &BTreeSet<String>,
    ) -> Report {
        let mut report = Report::default();
        let Some(known) = &self.known else { return report };
        let publisher = &*self;
        let jobs = known
            .keys()
            .filter(|name| !documents.contains_key(*name) && !keep.contains(*name))
            .map(|name| async move {
                let (map, secret) = (objects::config_map_name(name), objects::secret_name(name));
                let removed = match remove(&publisher.maps, &map).await {
                    Ok(()) => remove(&publisher.secrets, &secret).await,
                    failed => failed,
                };
                (name.clone(), removed)
            });
        let done: Vec<_> = stream::iter(jobs).buffer_unordered(CONCURRENCY).collect().await;
        for (name, removed) in done {
            match removed {
                Ok(()) => {
                    self.known.get_or_insert_default().remove(&name);
                    report.removed.push(name);
                }
                Err(error) => report.failures.push(error),
            }
        }
        report
    }
}

/// The certificate that an endpoint has now.
struct Certified {
    tls: Option<Tls>,
    renew_at: OffsetDateTime,
    /// Why it is a new one; or why there is none, or no newer one.
    issued: Result<Option<&'static str>, issuer::Error>,
}

/// Keeps the certificate that is there, or has another one issued. Where that fails what is there stays.
async fn certify(have: Option<Tls>, name: &str, issuer: &Issuer, now: OffsetDateTime) -> Certified {
    let trust = issuer.trust();
    let verdict = match &have {
        None => Verdict::Renew("it has none"),
        Some(tls) => {
            let (leaf, name, trust) = (tls.leaf.clone(), name.to_owned(), trust.clone());
            // Computes for some tenths of a millisecond: others go on writing meanwhile.
            let work = move || judge(&leaf.certificate, &leaf.key, &name, &trust, now);
            let work = tokio::task::spawn_blocking(work).await;
            work.unwrap_or_else(|error| std::panic::resume_unwind(error.into_panic()))
        }
    };
    let why = match verdict {
        Verdict::Keep { renew_at } => {
            let tls = have.map(|tls| Tls {
                authority: trust.pem().to_owned(),
                lists: trust.lists().to_owned(),
                ..tls
            });
            return Certified {
                tls,
                renew_at,
                issued: Ok(None),
            };
        }
        Verdict::Renew(why) => why,
    };
    match issuer.issue(name, now).await {
        Ok((leaf, renew_at)) => Certified {
            tls: Some(Tls {
                authority: trust.pem().to_owned(),
                lists: trust.lists().to_owned(),
                leaf,
            }),
            renew_at,
            issued: Ok(Some(why)),
        },
        Err(error) => Certified {
            tls: have,
            // Every pass tries again.
            renew_at: now,
            issued: Err(error),
        },
    }
}

/// What became of one document.
struct Done {
    known: Known,
    wrote_document: bool,
    issued: Option<&'static str>,
    /// Why there is no certificate, or no newer one.
    failure: Option<Error>,
}

async fn apply<K>(to: &Api<K>, name: &str, object: &K) -> Result<(), Error>
where
    K: Clone + std::fmt::Debug + Serialize + DeserializeOwned,
{
    // Whoever else has a hand in these fields is wrong: they are the operator's.
    let params = PatchParams::apply(MANAGER).force();
    let result = to.patch(name, &params, &Patch::Apply(object)).await;
    result.map(|_| ()).map_err(api("writing", name))
}

async fn remove<K>(from: &Api<K>, name: &str) -> Result<(), Error>
where
    K: Clone + std::fmt::Debug + DeserializeOwned,
{
    match from.delete(name, &DeleteParams::default()).await {
        Err(kube::Error::Api(status)) if status.code == 404 => Ok(()),
        result => result.map(|_| ()).map_err(api("removing", name)),
    }
}

/// Everything of ours, page by page: together they would be large.
async fn list<K>(from: &Api<K>, what: &'static str, mut take: impl FnMut(K)) -> Result<(), Error>
where
    K: Clone + std::fmt::Debug + DeserializeOwned,
{
    let labels = format!("{}={MANAGER}", objects::CREATED_BY);
    let mut params = ListParams::default().labels(&labels).limit(PAGE);
    loop {
        let page = from.list(&params).await.map_err(api("listing", what))?;
        page.items.into_iter().for_each(&mut take);
        match page.metadata.continue_.filter(|token| !token.is_empty()) {
            Some(token) => params.continue_token = Some(token),
            None => return Ok(()),
        }
    }
}
