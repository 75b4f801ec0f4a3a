//! Subsystem tunnels: charon's connections, credentials and SAs, over VICI. charon owns its SAs; what is ours is what
//! bears [`crate::marks::CONNECTION_PREFIX`] in its name.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::desired::tunnels as desired;
use crate::facts::TunnelKind;
use crate::netlink::{self, Netlink};
use crate::subsystem::{self, Outcome, Phase, Subsystem};

pub mod anchors;
mod apply;
pub mod credentials;
pub mod events;
pub mod initiate;
pub mod leftovers;
pub mod messages;
mod offload;
pub mod peers;
pub mod plan;
pub mod report;
pub mod revocations;
mod trust;
pub mod vici;

use credentials::{Files, Material, Paths};
use initiate::Initiator;
use leftovers::Leftovers;
use messages::{Conns, ListSa, Stats};
use peers::Peers;
use plan::{Actual, Doomed, Ike, SaPlan};
use report::Report;
use revocations::Revoked;
use vici::{Connection, Empty};

/// The plugin that makes charon perform ESP itself.
const LIBIPSEC_PLUGIN: &str = "kernel-libipsec";

/// How long charon may take to list its SAs: some 0.1 ms each, and it waits for those that are being changed.
const LIST_LIMIT: Duration = Duration::from_secs(20);

/// How long the other end has for closing what it should, and SAs of a killed charon for being replaced.
const GRACE: Duration = Duration::from_secs(30);

/// Where things are.
#[derive(Clone, Debug)]
pub struct Options {
    /// charon's VICI socket.
    pub socket: PathBuf,
    /// Key and certificates.
    pub paths: Paths,
    /// Where copies of them are kept for a start without the cloud.
    pub copies: Option<Paths>,
    /// Where the certificates of peers are kept.
    pub peers: Option<PathBuf>,
    /// Who must perform ESP; none: whoever charon is set up for.
    pub kind: Option<TunnelKind>,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            socket: "/var/run/charon.vici".into(),
            paths: Paths::default(),
            copies: None,
            peers: None,
            kind: None,
        }
    }
}

/// What the subsystem cannot do without.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// charon cannot be asked.
    #[error(transparent)]
    Vici(#[from] vici::Error),
    /// charon is set up for the other kind of tunnel.
    #[error(
        "this node was told to have {wanted}, but charon is set up for {found}: start it with {}",
        conf_name(wanted)
    )]
    Kind {
        /// As told.
        wanted: &'static str,
        /// As found.
        found: &'static str,
    },
    /// Key or certificates are not fit for use.
    #[error(transparent)]
    Credentials(#[from] credentials::Error),
    /// The kernel's IPsec states or policies.
    #[error(transparent)]
    Leftovers(#[from] leftovers::Error),
    /// Links, addresses or routes.
    #[error(transparent)]
    Netlink(#[from] netlink::Error),
    /// An earlier action of the same pass found charon gone.
    #[error("charon is gone; the next pass tries again")]
    Gone,
}

fn kind_name(kind: TunnelKind) -> &'static str {
    match kind {
        TunnelKind::Xfrm => "ESP in the kernel (xfrm)",
        TunnelKind::Libipsec => "ESP in charon (libipsec)",
    }
}

fn conf_name(wanted: &str) -> &'static str {
    if wanted == kind_name(TunnelKind::Xfrm) {
        "strongswan.conf"
    } else {
        "strongswan-libipsec.conf"
    }
}

/// One life of charon.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Instance {
    pid: Option<i32>,
    since: String,
}

/// The subsystem.
#[derive(Debug)]
pub struct Tunnels {
    options: Options,
    vici: Option<Connection>,
    instance: Option<Instance>,
    kind: Option<TunnelKind>,
    /// What charon got from us in this life of it.
    loaded: desired::Connections,
    material: Option<Material>,
    initiator: Option<Initiator>,
    peers: Option<Peers>,
    /// Certificates on which no SA rests any more, since they were revoked.
    enforced: Option<BTreeSet<Revoked>>,
    netlink: Option<Netlink>,
    /// It was said that others can read the private key.
    warned: bool,
    /// What was read where it is mounted, to be kept once charon has taken it.
    fresh: Option<Files>,
    /// Since when this life of charon lasts, as long as the kernel may hold what an earlier one left.
    sweeping: Option<Instant>,
    /// Since when children are here that should not be.
    excess: BTreeMap<Doomed, Instant>,
    /// Connections as last desired and SAs as last seen.
    report: Report,
}

/// The difference.
#[derive(Debug, Default, PartialEq)]
pub struct Plan {
    /// Key and certificates to load.
    pub credentials: Option<Material>,
    /// Why the files' key and certificates are not taken; older ones stay in use.
    pub refused: Option<String>,
    /// Why revocation lists are not taken; older ones stay in use.
    pub flaws: Vec<String>,
    /// IKE_SAs that may rest on a certificate that was revoked.
    pub barred: BTreeSet<Doomed>,
    /// Connections and SAs.
    pub sas: SaPlan,
    /// Nothing is said about other connections than these.
    pub partial: bool,
    /// The key to take from charon, as it is of no use any more.
    pub unload_key: Option<String>,
    /// Addresses that charon needs to perform ESP itself.
    pub anchors: anchors::Plan,
    /// States and policies that a killed charon left in the kernel.
    pub leftovers: Leftovers,
}

impl Tunnels {
    /// The subsystem, not yet connected.
    pub fn new(options: Options) -> Self {
        Self {
            options,
            vici: None,
            instance: None,
            kind: None,
            loaded: BTreeMap::new(),
            material: None,
            initiator: None,
            peers: None,
            enforced: None,
            netlink: None,
            warned: false,
            fresh: None,
            sweeping: None,
            excess: BTreeMap::new(),
            report: Report::default(),
        }
    }

    /// Who performs ESP here, as charon is set up.
    ///
    /// # Errors
    /// When charon cannot be asked, or is not set up as this node was told to have it.
    pub async fn tunnel_kind(&mut self) -> Result<TunnelKind, Error> {
        self.connect().await?;
        let found = self.kind.ok_or(Error::Gone)?;
        match self.options.kind {
            Some(wanted) if wanted != found => Err(Error::Kind {
                wanted: kind_name(wanted),
                found: kind_name(found),
            }),
            _ => Ok(found),
        }
    }

    /// Who is to perform ESP while charon cannot be asked: as forced, or as charon was set up last.
    pub fn expected_kind(&self) -> Option<TunnelKind> {
        self.options.kind.or(self.kind)
    }

    /// When something is due that no event announces; none: nothing is.
    pub fn next_attempt(&self) -> Option<Duration> {
        let due = |since: &Instant| GRACE.checked_sub(since.elapsed());
        let first = self.excess.values().chain(&self.sweeping).filter_map(due).min()?;
        // A moment later, so that it is over by then. What is still here after that waits for the resync.
        Some(first + Duration::from_millis(100))
    }

    /// The files with key, certificates and revocation lists, to be watched.
    pub fn credential_files(&self) -> [PathBuf; 4] {
        let Paths {
            authorities,
            certificate,
            key,
            revocations,
        } = self.options.paths.clone();
        [authorities, certificate, key, revocations]
    }

    /// What charon reports by itself, as reasons for a pass.
    pub fn events(&self) -> events::Events {
        events::Events::new(self.options.socket.clone())
    }

    /// How the tunnels stood when the last pass observed them; nothing until the next one does, for it is given away.
    pub fn report(&mut self) -> Report {
        let mut report = std::mem::take(&mut self.report);
        if let Some(initiator) = &self.initiator {
            report.add_failures(&initiator.failures());
        }
        report
    }

    /// Leads from `before`, which charon has, to `after`; none where that is more than to give charon connections, and to
    /// take them from it. What becomes of SAs the next pass sees.
    pub fn change(&self, before: &desired::Tunnels, after: &desired::Tunnels) -> Option<Plan> {
        let sound = before.problems.is_empty() && after.problems.is_empty() && self.material.is_some();
        let has = |(name, connection)| self.loaded.get(name) == Some(connection);
        if !sound || !before.connections.iter().all(has) {
            return None;
        }
        let differs = |(name, connection): &(&String, &Arc<desired::Connection>)| {
            before.connections.get(*name) != Some(*connection)
        };
        let load = after.connections.iter().filter(differs);
        let gone = before.connections.keys();
        let gone = gone.filter(|name| !after.connections.contains_key(*name));
        let sas = SaPlan {
            load: load
                .map(|(name, connection)| (name.clone(), connection.clone()))
                .collect(),
            unload: gone.cloned().collect(),
            ..SaPlan::default()
        };
        Some(Plan {
            sas,
            partial: true,
            ..Plan::default()
        })
    }

    /// Makes sure of a connection, and notices when it leads to another life of charon.
    async fn connect(&mut self) -> Result<&mut Connection, vici::Error> {
        let usable = self.vici.take_if(|vici| vici.usable());
        let vici = match usable {
            Some(vici) => vici,
            None => {
                let mut vici = Connection::open(&self.options.socket).await?;
                let stats: Stats = vici.call("stats", &Empty {}).await?;
                let instance = Instance {
                    pid: vici.charon_pid(),
                    since: stats.uptime.since,
                };
                let another = self.instance.as_ref() != Some(&instance);
                if another {
                    tracing::info!(pid = instance.pid, since = instance.since, "charon answers");
                    self.loaded.clear();
                    self.material = None;
                    self.excess.clear();
                    self.sweeping = Some(Instant::now());
                    self.instance = Some(instance);
                }
                self.kind = Some(if stats.plugins.iter().any(|plugin| plugin == LIBIPSEC_PLUGIN) {
                    TunnelKind::Libipsec
                } else {
                    TunnelKind::Xfrm
                });
                if another && self.kind == Some(TunnelKind::Xfrm) {
                    let modules = offload::load();
                    tracing::info!(
                        ?modules,
                        "ESP goes through the kernel's GRO and GSO as far as it has modules for it"
                    );
                }
                vici
            }
        };
        let Options { socket, peers, .. } = &self.options;
        self.peers
            .get_or_insert_with(|| Peers::new(socket.clone(), peers.clone()));
        Ok(self.vici.insert(vici))
    }

    async fn observe(&mut self) -> Result<Actual, vici::Error> {
        let vici = self.connect().await?;
        let conns: Conns = vici.call("get-conns", &Empty {}).await?;
        Ok(Actual {
            connections: conns.conns.into_iter().collect(),
            ikes: list_ikes(vici).await?,
        })
    }

    /// What charon and the kernel hold, and what of the latter is to go.
    async fn observe_all(&mut self, desired: &desired::Tunnels) -> Result<(Actual, Leftovers), Error> {
        let connected = self.connect().await.map(|_| ());
        if let (Err(vici::Error::Absent { .. }), true) = (&connected, desired.connections.is_empty()) {
            // Without a charon nothing of ours can be in use, and nothing is wanted.
            return Ok((Actual::default(), leftovers::list().unwrap_or_default()));
        }
        connected?;
        if self.sweeping.is_none() || self.kind != Some(TunnelKind::Xfrm) {
            return Ok((self.observe().await?, Leftovers::default()));
        }
        // In this order: what charon installs in between is in neither.
        let listed = leftovers::list()?;
        let actual = self.observe().await?;
        let unknown = listed.unknown(&actual.ikes);
        if unknown.is_empty() {
            self.sweeping = None;
        }
        if self.sweeping.is_some_and(|since| since.elapsed() > GRACE) {
            return Ok((actual, unknown));
        }
        let wanted = desired
            .connections
            .values()
            .map(|connection| connection.reqid)
            .collect();
        let replaced = unknown.replaced(&wanted, &actual.ikes);
        Ok((actual, replaced))
    }

    /// The addresses that charon lacks or has too many of.
    async fn plan_anchors(&mut self, desired: &desired::Tunnels) -> Result<anchors::Plan, netlink::Error> {
        if self.kind == Some(TunnelKind::Xfrm) && !anchors::wanted(desired) {
            return Ok(anchors::Plan::default());
        }
        let netlink = self.netlink()?;
        Ok(anchors::plan(desired, &anchors::observe(&netlink).await?))
    }

    fn netlink(&mut self) -> Result<Netlink, netlink::Error> {
        let netlink = match self.netlink.take() {
            Some(netlink) => netlink,
            None => Netlink::open()?,
        };
        Ok(self.netlink.insert(netlink).clone())
    }

    /// Children that should not be and that have been here for long.
    fn overdue(&mut self, desired: &desired::Tunnels, actual: &Actual) -> Vec<Doomed> {
        let excess = plan::excess(desired, actual);
        self.excess.retain(|child, _| excess.contains(child));
        for child in excess {
            self.excess.entry(child).or_insert_with(Instant::now);
        }
        let overdue = self.excess.iter().filter(|(_, since)| since.elapsed() > GRACE);
        overdue.map(|(child, _)| child.clone()).collect()
    }
}

impl Subsystem for Tunnels {
    type Desired = desired::Tunnels;
    type Plan = Plan;

    const NAME: &'static str = "tunnels";

    async fn plan(&mut self, desired: &Self::Desired) -> Result<Self::Plan, subsystem::Error> {
        let observed = self.observe_all(desired).await;
        let none = Actual::default();
        // Nothing is known of the SAs of a charon that does not answer.
        self.report = Report::new(desired, observed.as_ref().map_or(&none, |(actual, _)| actual));
        let (actual, leftovers) = observed?;
        let mut plan = Plan {
            leftovers,
            anchors: self.plan_anchors(desired).await?,
            ..Plan::default()
        };
        plan.barred = self.barred(desired, &actual).await?;
        match desired.connections.values().next() {
            None => plan.unload_key = self.material.as_ref().map(|material| material.key_id.clone()),
            Some(connection) => match self.read_credentials(&connection.local_id) {
                Ok((material, flaws)) => {
                    plan.credentials = Some(material).filter(|new| self.material.as_ref() != Some(new));
                    plan.flaws = flaws;
                }
                Err(error) => plan.refused = Some(chain(&error)),
            },
        }
        let none = BTreeMap::new();
        let trust = |material: &Material| material.authorities.clone();
        let same_trust = plan.credentials.is_none()
            || plan.credentials.as_ref().map(trust) == self.material.as_ref().map(trust);
        plan.sas = plan::plan(desired, if same_trust { &self.loaded } else { &none }, &actual);
        plan.sas.terminate_children.extend(self.overdue(desired, &actual));
        if self.material.is_none() && plan.credentials.is_none() {
            // Without an authority of ours to pin, charon would accept any that it has.
            plan.sas.load.clear();
            plan.sas.initiate.clear();
        }
        Ok(plan)
    }

    async fn apply(&mut self, plan: &Self::Plan, phase: Phase) -> Vec<Outcome> {
        match phase {
            Phase::Grow => self.grow(plan).await,
            Phase::Shrink => self.shrink(plan).await,
        }
    }
}

/// The IKE_SAs of the charon at `socket`.
pub(crate) async fn observe_ikes(socket: &Path) -> Result<Vec<Ike>, vici::Error> {
    list_ikes(&mut Connection::open(socket).await?).await
}

async fn list_ikes(vici: &mut Connection) -> Result<Vec<Ike>, vici::Error> {
    let mut ikes = Vec::new();
    vici.stream("list-sas", "list-sa", &Empty {}, LIST_LIMIT, |sas: ListSa| {
        ikes.extend(sas.into_iter().map(|(name, sa)| Ike::new(&name, sa)));
    })
    .await?;
    Ok(ikes)
}

/// An error with its causes, on one line.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text.push_str(": ");
        text.push_str(&cause.to_string());
        source = cause.source();
    }
    text
}
