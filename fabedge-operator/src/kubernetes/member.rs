//! This cluster as a member: it registers with its host by a token, has its certificates signed there, tells what its
//! connector is, and hears of the others it may talk to. A host that is away changes nothing that stands.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::{ConfigMap, Secret};
use kube::api::{Patch, PatchParams};
use kube::{Api, Client};
use rand_core::{OsRng, RngCore as _};
use rcgen::KeyPair;
use time::OffsetDateTime;
use tokio::sync::watch as channel;
use tokio::task::JoinSet;
use tracing::{info, warn};

use super::{MANAGER, objects};
use crate::api::{ClusterSpec, SettingsSpec};
use crate::federation::caller::client_name;
use crate::federation::host::{self, Host};
use crate::federation::news::News;
use crate::federation::token::{self, Said};
use crate::finding::Finding;
use crate::pki::inspect::{self, Verdict, judge};
use crate::pki::{Leaf, Trust};
use crate::reporter::chain;
use crate::snapshot::ClusterSnapshot;

/// Secret with the client certificate of this cluster, its key, and the CA of the host.
const SECRET: &str = "api-client-tls";

/// ConfigMap with what the host told last, by which a restart while the host is away changes nothing.
const CONFIG_MAP: &str = "fabedge-host";
const NEWS: &str = "endpoints-and-communities.json";

/// How long the host may let a question for news wait.
const WAIT: Duration = Duration::from_secs(50);

/// How often a host is asked that answers such questions at once, as 0.4 does.
const POLL: Duration = Duration::from_secs(10);

/// The least time between two questions.
const PACE: Duration = Duration::from_millis(200);

/// The report is repeated this often: the host may have been restored from a time before it.
const REPORT: Duration = Duration::from_secs(600);

/// The pauses between attempts grow from the first to the last.
const FIRST_PAUSE: Duration = Duration::from_secs(1);
const LAST_PAUSE: Duration = Duration::from_secs(10);

/// When a certificate could not be renewed, and is good still.
const RENEW_AGAIN: time::Duration = time::Duration::minutes(10);

/// Why this cluster is not registered, or does not hear of others.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
enum Error {
    #[error("reading the token with which this cluster registers, {}", path.display())]
    TokenFile { path: PathBuf, source: std::io::Error },
    #[error("there is no token with which this cluster can register: set cluster.initToken")]
    NoToken,
    #[error("the token with which this cluster registers, cluster.initToken, is not one")]
    Token(#[source] token::Refusal),
    #[error(
        "the token in cluster.initToken lets in cluster {sub}, but this one is called {own}: take the one of the Cluster \
         {own} in the host"
    )]
    TokenOfAnother { sub: String, own: String },
    #[error(
        "the token does not tell by which CA the host is known, as those of FabEdge 0.4 do not: set \
         cluster.operatorCAHash to the SHA-256 of the host's CA certificate, which \
         `openssl x509 -in ca.crt -outform der | sha256sum` prints"
    )]
    NoHash,
    #[error("registering with the host")]
    Register(#[source] host::Error),
    #[error(transparent)]
    Host(#[from] host::Error),
    #[error("the answer of the host about endpoints and communities is not one")]
    News(#[source] serde_json::Error),
    #[error("the key in the Secret {SECRET} cannot be used: delete the Secret to register anew: {0}")]
    Key(String),
    #[error("making a key")]
    NewKey(#[source] rcgen::Error),
    #[error("{action} {object}")]
    Api {
        action: &'static str,
        object: &'static str,
        source: kube::Error,
    },
}

fn api(action: &'static str, object: &'static str) -> impl FnOnce(kube::Error) -> Error {
    move |source| Error::Api {
        action,
        object,
        source,
    }
}

/// What the session with the host has come to.
#[derive(Clone, Debug, Default)]
struct Told {
    /// What was kept of earlier was looked at.
    restored: bool,
    /// Signs certificates; there once this cluster is registered.
    host: Option<Arc<Host>>,
    news: News,
    /// What the host leaves out of our report.
    refused: Vec<String>,
    /// Why the host is not heard of.
    trouble: Option<String>,
}

/// What the leader of a member keeps about its host.
#[derive(Debug)]
pub struct Member {
    cluster: String,
    told: channel::Receiver<Told>,
    own: channel::Sender<Option<ClusterSpec>>,
    /// Until it leads.
    session: Option<Session>,
    running: JoinSet<()>,
}

impl Member {
    /// Does nothing yet.
    pub fn new(client: &Client, namespace: &str, spec: &SettingsSpec) -> Self {
        let (told, hears) = channel::channel(Told::default());
        let (own, tells) = channel::channel(None);
        Self {
            cluster: spec.name.clone(),
            told: hears,
            own,
            session: Some(Session {
                secrets: Api::namespaced(client.clone(), namespace),
                maps: Api::namespaced(client.clone(), namespace),
                cluster: spec.name.clone(),
                address: spec.operator_api_server.clone().unwrap_or_default(),
                token_file: spec.init_token_file.clone().map(PathBuf::from),
                ca_hash: spec.operator_ca_hash.clone(),
                own: tells,
                told,
                current: None,
                kept: String::new(),
            }),
            running: JoinSet::new(),
        }
    }

    /// Begins to talk to the host, as only a leader does.
    pub fn lead(&mut self) {
        if let Some(session) = self.session.take() {
            self.running.spawn(session.run());
        }
    }

    /// Waits for something new. Cancel-safe.
    pub async fn changed(&mut self) {
        if self.told.changed().await.is_err() {
            // The session has ended, which it does with the process alone.
            std::future::pending::<()>().await;
        }
    }

    /// Whether it is known what the host told last. Until then others would seem gone.
    pub fn ready(&self) -> bool {
        self.told.borrow().restored
    }

    /// What signs certificates.
    ///
    /// # Errors
    /// Why there is nothing yet.
    pub fn host(&self) -> Result<Arc<Host>, String> {
        let told = self.told.borrow();
        told.host.clone().ok_or_else(|| {
            let why = told.trouble.clone();
            why.unwrap_or_else(|| "this cluster is being registered with its host".to_owned())
        })
    }

    /// Whether the host answers.
    pub fn is_heard(&self) -> bool {
        let told = self.told.borrow();
        told.host.is_some() && told.trouble.is_none()
    }

    /// Tells the host what this cluster is.
    pub fn report(&self, spec: ClusterSpec) {
        self.own.send_if_modified(|own| {
            let news = own.as_ref() != Some(&spec);
            *own = Some(spec);
            news
        });
    }

    /// Adds what the host tells to what the API server shows.
    pub fn add_to(&self, snapshot: &mut ClusterSnapshot) -> Vec<Finding> {
        let told = self.told.borrow();
        let mut findings = told.news.merge(&self.cluster, snapshot);
        let own = format!("Cluster {}", self.cluster);
        findings.extend(
            told.refused
                .iter()
                .map(|why| Finding::error(&own, "its report", format!("the host leaves out {why}"))),
        );
        if let Some(trouble) = told.trouble.as_ref().filter(|_| told.host.is_some()) {
            let field = "spec.operatorAPIServer";
            let why = format!("{trouble}; what stands goes on");
            findings.push(Finding::warning("Settings", field, why));
        }
        findings
    }
}

/// Talks to the host until the process ends.
#[derive(Debug)]
struct Session {
    secrets: Api<Secret>,
    maps: Api<ConfigMap>,
    cluster: String,
    address: String,
    token_file: Option<PathBuf>,
    ca_hash: Option<String>,
    own: channel::Receiver<Option<ClusterSpec>>,
    told: channel::Sender<Told>,
    current: Option<Entered>,
    /// What the ConfigMap holds.
    kept: String,
}

/// As whom this cluster calls its host.
#[derive(Clone, Debug)]
struct Entered {
    host: Arc<Host>,
    renew_at: OffsetDateTime,
}

/// What the Secret holds.
#[derive(Debug, Default)]
struct Kept {
    certificate: Option<String>,
    key: Option<String>,
    authority: Option<String>,
    lists: Option<String>,
}

impl Session {
    async fn run(mut self) {
        let mut pause = FIRST_PAUSE;
        loop {
            let Err(error) = self.serve(&mut pause).await else {
                continue;
            };
            let trouble = chain(&error);
            self.told.send_if_modified(|told| {
                let news = told.trouble.as_ref() != Some(&trouble);
                told.trouble = Some(trouble);
                news
            });
            // Some of it by chance, lest all members come back to the host at once.
            let chance = pause.mul_f64(f64::from(OsRng.next_u32()) / f64::from(u32::MAX));
            tokio::time::sleep(pause / 2 + chance / 2).await;
            pause = (pause * 2).min(LAST_PAUSE);
        }
    }

    /// Registers if need be, then hears and tells until something goes wrong or the certificate is to be renewed.
    async fn serve(&mut self, pause: &mut Duration) -> Result<(), Error> {
        let now = OffsetDateTime::now_utc();
        if !self.told.borrow().restored {
            self.restore().await?;
        }
        let entered = match self.current.clone().filter(|entered| now < entered.renew_at) {
            Some(entered) => entered,
            None => {
                let entered = self.enter(now).await?;
                self.told
                    .send_modify(|told| told.host = Some(Arc::clone(&entered.host)));
                self.current.insert(entered).clone()
            }
        };
        let tells = tell(&entered.host, self.own.clone(), &self.told);
        let outcome = tokio::select! {
            outcome = hear(&entered, &self.maps, &mut self.kept, &self.told, pause) => outcome?,
            outcome = tells => match outcome? {},
        };
        if let Heard::Authority(trust) = outcome {
            info!(until = %trust.not_after(), "the host has another CA, or has revoked something");
            self.keep(None, None, Some(&trust)).await?;
        }
        self.current = None;
        Ok(())
    }

    /// Takes up what the host told before this operator started.
    async fn restore(&mut self) -> Result<(), Error> {
        let map = self.maps.get_opt(CONFIG_MAP).await;
        let map = map.map_err(api("reading", "the ConfigMap fabedge-host"))?;
        self.kept = map.and_then(|map| map.data?.remove(NEWS)).unwrap_or_default();
        let news = News::read(&self.kept).unwrap_or_default();
        self.told.send_modify(|told| {
            told.restored = true;
            told.news = news;
        });
        Ok(())
    }

    /// The host, as whom it knows this cluster: by the certificate that is kept, by another one for it once that grows
    /// old, or by the token.
    async fn enter(&self, now: OffsetDateTime) -> Result<Entered, Error> {
        let name = client_name(&self.cluster);
        let kept = self.kept_identity().await?;
        let lists = kept.lists.as_deref().unwrap_or_default();
        let trust = kept
            .authority
            .as_deref()
            .and_then(|pem| Trust::read(pem, now).ok())
            // Lists that do not fit are asked for anew.
            .map(|trust| trust.clone().with_lists(lists).unwrap_or(trust));
        let leaf = kept
            .certificate
            .clone()
            .zip(kept.key.clone())
            .map(|(certificate, key)| Leaf { certificate, key });
        let Some((trust, leaf)) = trust.zip(leaf) else {
            return self.register(&name, kept.key, now).await;
        };
        let verdict = judge(&leaf.certificate, &leaf.key, &name, &trust, now);
        let why = match verdict {
            Verdict::Keep { renew_at } => {
                let host = Host::new(&self.address, trust, Some(&leaf))?;
                return Ok(Entered {
                    host: Arc::new(host),
                    renew_at,
                });
            }
            Verdict::Renew(why) => why,
        };
        info!(why, "the client certificate of this cluster is to be renewed");
        if !inspect::is_valid(&leaf.certificate, now) || trust.revokes(&leaf.certificate) {
            return self.register(&name, kept.key, now).await;
        }
        let host = Host::new(&self.address, trust.clone(), Some(&leaf))?;
        match host.issue(&name, now).await {
            Ok((leaf, renew_at)) => {
                self.keep(Some(&leaf.certificate), Some(&leaf.key), None).await?;
                let host = Host::new(&self.address, trust, Some(&leaf))?;
                Ok(Entered {
                    host: Arc::new(host),
                    renew_at,
                })
            }
            Err(error) => {
                let error = chain(&error);
                warn!(
                    error,
                    "the client certificate of this cluster could not be renewed yet"
                );
                Ok(Entered {
                    host: Arc::new(host),
                    renew_at: now + RENEW_AGAIN,
                })
            }
        }
    }

    /// Asks for the first certificate by the token. The key is kept before: the host notes for which key a token was
    /// used, so that only who lost its answer can ask again.
    async fn register(&self, name: &str, key: Option<String>, now: OffsetDateTime) -> Result<Entered, Error> {
        let path = self.token_file.clone().ok_or(Error::NoToken)?;
        let token = tokio::fs::read_to_string(&path).await;
        let token = token.map_err(|source| Error::TokenFile { path, source })?;
        let token = token.trim();
        if token.is_empty() {
            return Err(Error::NoToken);
        }
        let said = Said::read(token).map_err(Error::Token)?;
        if let Some(sub) = said.sub.filter(|sub| *sub != self.cluster) {
            let own = self.cluster.clone();
            return Err(Error::TokenOfAnother { sub, own });
        }
        let hash = self.ca_hash.clone().or(said.ca_hash).ok_or(Error::NoHash)?;
        let key = match key {
            Some(key) => inspect::key_pair(&key).map_err(Error::Key)?,
            None => {
                let key = KeyPair::generate().map_err(Error::NewKey)?;
                self.keep(None, Some(&key.serialize_pem()), None).await?;
                key
            }
        };
        let trust = host::pinned(&self.address, &hash, now)
            .await
            .map_err(Error::Register)?;
        // Those beside it, while the host's CA is being replaced.
        let stranger = Host::new(&self.address, trust, None)?;
        let trust = stranger.authority(now).await.map_err(Error::Register)?;
        let stranger = Host::new(&self.address, trust.clone(), None)?;
        let (leaf, renew_at) = stranger
            .certify(name, &key, Some(token), now)
            .await
            .map_err(Error::Register)?;
        self.keep(Some(&leaf.certificate), Some(&leaf.key), Some(&trust))
            .await?;
        info!(address = self.address, "registered with the host");
        let host = Host::new(&self.address, trust, Some(&leaf))?;
        Ok(Entered {
            host: Arc::new(host),
            renew_at,
        })
    }

    async fn kept_identity(&self) -> Result<Kept, Error> {
        let secret = self.secrets.get_opt(SECRET).await;
        let Some(secret) = secret.map_err(api("reading", "the Secret api-client-tls"))? else {
            return Ok(Kept::default());
        };
        let entry = |name| objects::text(&secret, name).filter(|text| !text.is_empty());
        Ok(Kept {
            certificate: entry(objects::CERTIFICATE),
            key: entry(objects::KEY),
            authority: entry(objects::AUTHORITY),
            lists: entry(objects::LISTS),
        })
    }

    /// Keeps what is given; the rest stays as it is.
    async fn keep(
        &self,
        certificate: Option<&str>,
        key: Option<&str>,
        authority: Option<&Trust>,
    ) -> Result<(), Error> {
        let before = self.kept_identity().await?;
        let entry = |name: &str, new: Option<&str>, old: Option<String>| {
            let text = new.map(str::to_owned).or(old).unwrap_or_default();
            (name.to_owned(), ByteString(text.into_bytes()))
        };
        let secret = Secret {
            metadata: objects::unowned(SECRET),
            type_: Some("kubernetes.io/tls".to_owned()),
            data: Some(BTreeMap::from([
                entry(objects::CERTIFICATE, certificate, before.certificate),
                entry(objects::KEY, key, before.key),
                entry(objects::AUTHORITY, authority.map(Trust::pem), before.authority),
                entry(objects::LISTS, authority.map(Trust::lists), before.lists),
            ])),
            ..Secret::default()
        };
        let params = PatchParams::apply(MANAGER).force();
        let written = self.secrets.patch(SECRET, &params, &Patch::Apply(&secret)).await;
        written
            .map(|_| ())
            .map_err(api("writing", "the Secret api-client-tls"))
    }
}

/// Why the host is listened to no longer.
enum Heard {
    /// The certificate is to be renewed.
    Renewal,
    /// The host has another CA now.
    Authority(Trust),
}

/// Hears what the host tells.
async fn hear(
    entered: &Entered,
    maps: &Api<ConfigMap>,
    kept: &mut String,
    told: &channel::Sender<Told>,
    pause: &mut Duration,
) -> Result<Heard, Error> {
    let host = &entered.host;
    let mut tag: Option<String> = None;
    loop {
        let now = OffsetDateTime::now_utc();
        if now >= entered.renew_at {
            return Ok(Heard::Renewal);
        }
        let heard = host.news(tag.as_deref(), WAIT).await?;
        *pause = FIRST_PAUSE;
        if let Some((text, newer)) = heard {
            let news = News::read(&text).map_err(Error::News)?;
            tag = newer;
            told.send_if_modified(|told| {
                let changed = told.news != news || told.trouble.is_some();
                told.trouble = None;
                told.news = news;
                changed
            });
            if *kept != text {
                match keep_news(maps, &text).await {
                    Ok(()) => *kept = text,
                    Err(error) => warn!(
                        error = chain(&error),
                        "after a restart without the host others are forgotten"
                    ),
                }
            }
        }
        let trust = host.authority(now).await?;
        if trust != *host.trust() {
            return Ok(Heard::Authority(trust));
        }
        tokio::time::sleep(if tag.is_some() { PACE } else { POLL }).await;
    }
}

async fn keep_news(maps: &Api<ConfigMap>, text: &str) -> Result<(), Error> {
    let map = ConfigMap {
        metadata: objects::unowned(CONFIG_MAP),
        data: Some(BTreeMap::from([(NEWS.to_owned(), text.to_owned())])),
        ..ConfigMap::default()
    };
    let params = PatchParams::apply(MANAGER).force();
    let written = maps.patch(CONFIG_MAP, &params, &Patch::Apply(&map)).await;
    written
        .map(|_| ())
        .map_err(api("writing", "the ConfigMap fabedge-host"))
}

/// Tells the host what this cluster is: at once, when that changes, and now and then.
async fn tell(
    host: &Host,
    mut own: channel::Receiver<Option<ClusterSpec>>,
    told: &channel::Sender<Told>,
) -> Result<std::convert::Infallible, Error> {
    loop {
        let spec = own.borrow_and_update().clone();
        if let Some(spec) = spec {
            let refused = host.report(&spec).await?;
            told.send_if_modified(|told| {
                let news = told.refused != refused;
                told.refused = refused;
                news
            });
        }
        if let Ok(Err(_)) = tokio::time::timeout(REPORT, own.changed()).await {
            // The operator has ended.
            return std::future::pending().await;
        }
    }
}
