//! The front end over a Kubernetes API: the same topology as [`crate::standalone`], with ConfigMaps and Secrets for
//! files.

mod authority;
mod calico;
pub mod cluster_info;
mod conditions;
mod custom;
mod discover;
mod events;
mod issuer;
mod leader;
mod lease;
mod live;
mod member;
mod members;
mod objects;
mod pods;
mod pools;
mod publish;
mod serve;
mod tell;
pub mod uninstall;
mod watch;

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use fabedge_common::config::CLOUD;
use ipnet::IpNet;
use kube::{Client, Config};
use time::OffsetDateTime;
use tokio::sync::watch as channel;
use tracing::{info, warn};

use crate::api::SettingsSpec;
use crate::args;
use crate::discovery::Filled;
use crate::finding::{Finding, Severity};
use crate::observe::{convert_settings, manifest};
use crate::pki::Authorities;
use crate::reporter::{Reporter, chain};
use crate::snapshot::{CniType, Settings};
use crate::topology::{self, Topology, render};
use issuer::Issuer;
use lease::{Ending, Part};
use live::{Change, Live};
use pods::{Pods, Turn};
use publish::{Publisher, Report};
use serve::Status;
use tell::Teller;

/// Field manager of everything that this operator writes.
const MANAGER: &str = "fabedge-operator";

/// Events that arrive within this time are taken together.
const DEBOUNCE: Duration = Duration::from_millis(20);

/// However quiet the cluster is, everything is compared this often: certificates grow old by themselves.
const FULL_PASS: Duration = Duration::from_secs(300);

/// The pause after a pass in which something failed.
const RETRY: Duration = Duration::from_secs(2);

/// Why the operator ends.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The settings could not be read.
    #[error("reading the settings {}", path.display())]
    Settings {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// The settings are not what they should be.
    #[error("the settings {} are refused:\n  {}", path.display(), findings.join("\n  "))]
    Refused {
        /// The file.
        path: PathBuf,
        /// What is wrong with them.
        findings: Vec<String>,
    },
    /// No API to talk to.
    #[error("finding the Kubernetes API: neither a kubeconfig nor a service account is here")]
    Config(#[source] kube::config::InferConfigError),
    /// The client could not be made.
    #[error("making a client of the Kubernetes API")]
    Client(#[source] kube::Error),
    /// What was published before could not be listed.
    #[error(transparent)]
    Publish(#[from] publish::Error),
    /// It may not go on.
    #[error("{}", match .0 {
        Ending::Replaced => "another operator holds the lease now: this one ends, so that no two write",
        Ending::Cut => "the lease could not be renewed in time, and another operator may hold it: this one ends, so that no \
                        two write",
        Ending::Restored => "the Kubernetes API holds an older state than before, of a backup: this operator ends, to begin \
                             with what is there now",
    })]
    Ended(Ending),
    /// Health and metrics have no port.
    #[error("serving health and metrics at {listen}: is the port in use? (--listen)")]
    Listen {
        /// The address.
        listen: std::net::SocketAddr,
        /// Why.
        source: std::io::Error,
    },
    /// The network API has no port.
    #[error(transparent)]
    Members(#[from] members::Error),
    /// Signals could not be awaited.
    #[error("installing the handler of SIGTERM")]
    Signal(#[source] std::io::Error),
}

/// Runs until SIGTERM or SIGINT.
///
/// # Errors
/// When it cannot start, or another operator has taken over. What was published stays in force.
pub async fn run(args: &args::Run) -> Result<(), Error> {
    let given = given(&args.settings)?;
    let mut stop = crate::signals::Stop::new().map_err(Error::Signal)?;
    let status = Arc::new(Status::default());
    let listener = tokio::net::TcpListener::bind(args.listen)
        .await
        .map_err(|source| Error::Listen {
            listen: args.listen,
            source,
        })?;
    tokio::spawn(serve::serve(listener, Arc::clone(&status)));

    let config = Config::infer().await.map_err(Error::Config)?;
    info!(api = %config.cluster_url, cluster = given.name, namespace = args.namespace, "starting");
    let client = Client::try_from(config.clone()).map_err(Error::Client)?;
    let filled = tokio::select! {
        () = stop.signalled() => return Ok(()),
        filled = discover::settle(&client, &given, &status) => filled,
    };
    let settings = settings(&args.settings, &filled)?;
    // A client of its own: renewing the lease must not wait behind a thousand writes.
    let lease = lease::Lease::new(
        Client::try_from(config).map_err(Error::Client)?,
        &args.namespace,
        args.identity.clone(),
    );
    let (part, mut parts) = channel::channel(Part::Standby);
    let (renewals, renewed) = channel::channel(Instant::now());
    let holder = tokio::spawn(lease.hold(part, renewals));

    // A standby observes too, and so takes over at once.
    let mut operator = Operator::new(client, filled, settings, args, status);
    let outcome = loop {
        tokio::select! {
            () = stop.signalled() => break Ok(()),
            Ok(()) = parts.changed() => {
                let part = *parts.borrow_and_update();
                operator.status.set_leader(matches!(part, Part::Leader { .. }));
                match part {
                    Part::Standby => {}
                    Part::Leader { handed_over } => {
                        info!("leading");
                        if let Err(error) = operator.adopt(!handed_over).await {
                            break Err(error);
                        }
                    }
                    Part::Ended(ending) => break Err(Error::Ended(ending)),
                }
            }
            // Also in the middle of a pass we end with our lead: whoever has it now does the rest.
            done = turn(&mut operator, &renewed) => if done.is_none() { break Err(Error::Ended(Ending::Cut)) },
        }
    };
    // Frees the lease for the next one.
    drop(parts);
    if tokio::time::timeout(RETRY, holder).await.is_err() {
        warn!("the lease could not be given back; another operator waits until it is over");
    }
    info!("stopping; what was published stays");
    outcome
}

/// A turn of the operator; none when it led and its lease is over.
async fn turn(operator: &mut Operator, renewed: &channel::Receiver<Instant>) -> Option<()> {
    if operator.status.leads() {
        lease::while_held(renewed, operator.turn()).await
    } else {
        operator.turn().await;
        Some(())
    }
}

/// Reads the settings, which the chart mounts, and refuses what nothing that the API could tell would mend.
fn given(path: &Path) -> Result<SettingsSpec, Error> {
    let text = std::fs::read_to_string(path).map_err(|source| Error::Settings {
        path: path.to_owned(),
        source,
    })?;
    let object = manifest::settings(&text).map_err(|why| refused(path, vec![why]))?;
    let faults = convert_settings::faults_of_given(&object.spec);
    if faults.is_empty() {
        Ok(object.spec)
    } else {
        Err(refused(path, faults.iter().map(ToString::to_string).collect()))
    }
}

/// The settings, with what was found out beside them where they are refused.
fn settings(path: &Path, filled: &Filled) -> Result<Settings, Error> {
    convert_settings::settings(&filled.spec).map_err(|faults| {
        let faults = faults.iter().map(ToString::to_string);
        refused(path, faults.chain(filled.found.iter().cloned()).collect())
    })
}

fn refused(path: &Path, findings: Vec<String>) -> Error {
    Error::Refused {
        path: path.to_owned(),
        findings,
    }
}

/// Waits for something new from the host; for ever where there is none.
async fn changed(member: &mut Option<member::Member>) {
    match member {
        Some(member) => member.changed().await,
        None => std::future::pending().await,
    }
}

/// What is kept between passes.
struct Operator {
    live: Live,
    watch: watch::Watch,
    publisher: Publisher,
    pods: Pods,
    /// None where they are not kept.
    pools: Option<pools::Pools>,
    teller: Teller,
    settings: Settings,
    filled: Filled,
    authorities: Option<Arc<Authorities>>,
    /// When a step of a rotation of the authority is due.
    authority_due: Option<Instant>,
    /// On a host whose network API is to be served.
    members: Option<members::Members>,
    /// On a member.
    member: Option<member::Member>,
    status: Arc<Status>,
    /// When the next pass is due though nothing has changed.
    next: Instant,
    reporter: Reporter,
}

impl Operator {
    fn new(
        client: Client,
        filled: Filled,
        settings: Settings,
        args: &args::Run,
        status: Arc<Status>,
    ) -> Self {
        let namespace = &args.namespace;
        let keep = settings.cni == CniType::Calico && filled.spec.auto_keep_ip_pools != Some(false);
        let listen = filled
            .spec
            .api_listen
            .as_deref()
            .and_then(|listen| listen.parse().ok());
        let joins = filled.spec.role.as_deref() == Some("member");
        Self {
            member: joins.then(|| member::Member::new(&client, namespace, &filled.spec)),
            members: listen.map(|listen| members::Members::new(&client, args, &settings.cluster, listen)),
            teller: Teller::new(&client, &settings.cluster, &args.identity, Arc::clone(&status)),
            live: Live::new(settings.cni),
            watch: watch::Watch::new(&client, namespace, settings.cni),
            pools: keep.then(|| pools::Pools::new(client.clone())),
            publisher: Publisher::new(client.clone(), namespace),
            pods: Pods::new(client, namespace),
            settings,
            filled,
            authorities: None,
            authority_due: None,
            status,
            next: Instant::now(),
            reporter: Reporter::default(),
        }
    }

    /// Learns what earlier operators published.
    async fn adopt(&mut self, anew: bool) -> Result<(), Error> {
        self.publisher.adopt(anew).await?;
        if let Some(members) = &mut self.members {
            members.lead().await?;
        }
        if let Some(member) = &mut self.member {
            member.lead();
        }
        self.next = Instant::now();
        Ok(())
    }

    /// Waits until a pass is due, and does it.
    async fn turn(&mut self) {
        self.due().await;
        self.pass(OffsetDateTime::now_utc()).await;
    }

    /// Keeps the pods until a pass is due. Cancel-safe: what was seen is not lost.
    async fn due(&mut self) {
        loop {
            let idle = self.next.saturating_duration_since(Instant::now());
            let leads = self.status.leads();
            let complete = self.live.complete() && self.member.as_ref().is_none_or(member::Member::ready);
            tokio::select! {
                event = self.watch.next() => match self.live.take(event, &mut self.publisher) {
                    Change::Everything => {
                        self.teller.hold();
                        self.soon(DEBOUNCE);
                    }
                    Change::Pods => {
                        self.pods.soon();
                        self.teller.soon();
                    }
                    Change::Nothing => {}
                },
                turn = self.pods.turn(), if leads => match turn {
                    Turn::Plan => self.pods.plan(&self.live, OffsetDateTime::now_utc()),
                    Turn::Take(done) => {
                        if self.pods.take(done, &self.live, OffsetDateTime::now_utc()) {
                            // Which reports it.
                            self.soon(RETRY);
                        }
                    }
                },
                turn = self.teller.turn(), if leads => {
                    if self.teller.take(turn, &mut self.live) {
                        self.soon(RETRY);
                    }
                }
                () = changed(&mut self.member), if leads => self.soon(DEBOUNCE),
                () = tokio::time::sleep(idle), if complete && leads => return,
            }
        }
    }

    fn soon(&mut self, time: Duration) {
        self.next = self.next.min(Instant::now() + time);
    }

    /// Computes, and publishes what differs.
    async fn pass(&mut self, now: OffsetDateTime) {
        let started = Instant::now();
        let (mut snapshot, mut findings) = self.live.snapshot();
        findings.extend(self.member.iter().flat_map(|member| member.add_to(&mut snapshot)));
        findings.extend(self.follow_pools());
        findings.extend(members::Members::findings(&self.live));
        let previous = self.publisher.previous();
        let (topology, more) = topology::compute(&snapshot, &self.settings, &previous);
        findings.extend(more);
        // What cannot be read may be a node that seems gone.
        let whole = !findings
            .iter()
            .any(|f| f.problem.object.starts_with("Node") && f.severity == Severity::Error);
        let kept = self.keep_pools(&topology, &mut findings).await;
        let (report, mut failures) = self.publish(&topology, whole, now).await;
        if let Some(member) = &self.member {
            member.report(members::own(&topology, &self.settings));
            self.status.host_heard(member.is_heard());
        }
        if let Some((members, authorities)) = self.members.as_mut().zip(self.authorities.as_ref()) {
            failures.extend(
                members
                    .pass(&self.live, &topology, &self.settings, authorities, now)
                    .await,
            );
        }
        findings.extend(self.pods.want(&topology, &self.live, &self.publisher, whole));
        // At once: a kubelet that is told of a new document fetches it.
        self.pods.plan(&self.live, now);
        failures.extend(self.pods.failures());
        failures.extend(kept);
        self.status
            .pass(&report, &findings, failures.len(), started.elapsed());
        self.next = Instant::now() + if failures.is_empty() { FULL_PASS } else { RETRY };
        self.next = self.authority_due.map_or(self.next, |due| self.next.min(due));
        // Whose pace is its own: who cannot be told is no reason to publish again.
        self.teller.found(&findings, &report.documents, &self.live);
        failures.extend(self.teller.failures());
        self.reporter.report(&findings, &failures);
    }

    /// Where Calico's IP pools say where pods are, they do so also when they change.
    fn follow_pools(&mut self) -> Vec<Finding> {
        let pools = self.live.calico.as_ref().and_then(|calico| calico.pools());
        let Some(pools) = pools.filter(|_| self.filled.follows_pools) else {
            return Vec::new();
        };
        let ranges: BTreeSet<IpNet> = pools.values().filter_map(|pool| pool.in_use()).collect();
        let current: BTreeSet<IpNet> = self.settings.cluster_cidrs.iter().copied().collect();
        if ranges.is_empty() || ranges == current {
            return Vec::new();
        }
        let spec = SettingsSpec {
            cluster_cidr: ranges.iter().map(ToString::to_string).collect(),
            ..self.filled.spec.clone()
        };
        match convert_settings::settings(&spec) {
            Ok(settings) => {
                info!(
                    ranges = spec.cluster_cidr.join(","),
                    "the pods' prefixes follow Calico's IPPools"
                );
                self.settings = settings;
                self.filled.spec = spec;
                Vec::new()
            }
            Err(faults) => faults
                .iter()
                .map(|fault| Finding::error("IPPool", "spec.cidr", fault.to_string()))
                .collect(),
        }
    }

    /// Keeps Calico from masquerading what is for the other side of the connector.
    async fn keep_pools(&self, topology: &Topology, findings: &mut Vec<Finding>) -> Vec<String> {
        let there = self.live.calico.as_ref().and_then(|calico| calico.pools());
        let Some((keeper, there)) = self.pools.as_ref().zip(there) else {
            return Vec::new();
        };
        let (plan, more) = pools::plan(&pools::wanted(&self.settings, topology), there);
        findings.extend(more);
        let failures = keeper.carry_out(&plan).await;
        failures.iter().map(|error| chain(error)).collect()
    }

    /// Who signs certificates now, and what failed: nobody signs, or who signed before goes on, or something is not
    /// revoked.
    async fn issuer(
        &mut self,
        cluster: &str,
        in_use: &BTreeSet<String>,
        now: OffsetDateTime,
    ) -> (Option<Issuer>, Vec<String>) {
        if let Some(member) = &self.member {
            self.publisher.revoke_nothing();
            return match member.host() {
                Ok(host) => (Some(Issuer::Host(host)), Vec::new()),
                Err(why) => (None, vec![why]),
            };
        }
        let known = self.authorities.take();
        let known = known.filter(|known| now < known.current().not_after());
        let fresh = known
            .as_ref()
            .is_some_and(|known| now < known.due() && known.lists_fit(|name| in_use.contains(name)));
        let mut failures = Vec::new();
        let authorities = if fresh && !self.live.authority_changed && !self.publisher.revokes() {
            known
        } else {
            let read = self.publisher.authorities(cluster, in_use, now).await;
            self.live.authority_changed = read.is_err();
            match read {
                Ok(read) => {
                    failures.extend(read.failures.iter().map(|error| chain(error)));
                    Some(Arc::new(read.authorities))
                }
                // The one of before goes on signing, and the next pass looks again.
                Err(error) => {
                    failures.push(chain(&error));
                    known
                }
            }
        };
        self.authority_due = authorities.as_ref().map(|authorities| {
            let due: Duration = (authorities.due() - now).try_into().unwrap_or_default();
            Instant::now() + due.clamp(RETRY, FULL_PASS)
        });
        self.authorities.clone_from(&authorities);
        (authorities.map(Issuer::Own), failures)
    }

    async fn publish(
        &mut self,
        topology: &Topology,
        whole: bool,
        now: OffsetDateTime,
    ) -> (Report, Vec<String>) {
        let documents = render::documents(topology);
        let mut keep = topology.unresolved.clone();
        if topology.cloud.is_some() {
            keep.insert(CLOUD.to_owned());
        }
        if whole {
            self.publisher.leaving(&documents, &keep);
        }
        let in_use = documents.values().map(|document| document.endpoint.name.clone());
        let (issuer, mut failures) = self.issuer(&topology.cluster, &in_use.collect(), now).await;
        let mut report = Report::default();
        if self.settings.cni == CniType::Calico {
            // Ours to give, and the node's before anybody hears of it: another operator could give it away again.
            report = self.publisher.annotate(&self.live, topology).await;
        }
        report.absorb(
            self.publisher
                .publish(&documents, &self.live, issuer.as_ref(), now)
                .await,
        );
        // What is to be revoked first is known by what would be removed.
        if whole && !self.publisher.revokes() {
            report.absorb(self.publisher.prune(&documents, &keep).await);
        }
        report.log();
        failures.extend(report.failures.iter().map(|error| chain(error)));
        (report, failures)
    }
}
