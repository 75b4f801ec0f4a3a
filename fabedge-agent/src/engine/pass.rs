//! One pass: observe the host, compute the desired state, let every subsystem grow in order, then shrink in reverse.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use fabedge_common::abi;
use fabedge_common::config::{EndpointType, NodeConfig};
use ipnet::IpNet;
use tracing::{debug, info};

use crate::args::Role;
use crate::cni::Cni;
use crate::datapath::{Datapath, reception};
use crate::desired::change::{Change, Others};
use crate::desired::datapath::LocalPods;
use crate::desired::paths::Path;
use crate::desired::{self, Desired, Options};
use crate::facts::{Facts, TunnelKind};
use crate::firewall::Firewall;
use crate::links::Links;
use crate::marks;
use crate::netlink::Netlink;
use crate::paths::{Paths, Target};
use crate::routes::Routes;
use crate::subsystem::{Error, Outcome, Phase, Subsystem};
use crate::sysctl::Sysctl;
use crate::tunnels::Tunnels;
use crate::tunnels::report::PeerReport;

/// All subsystems, in the order in which they grow.
#[derive(Debug)]
pub struct Subsystems {
    /// Where the host is observed.
    pub netlink: Netlink,
    /// Kernel parameters.
    pub sysctl: Sysctl,
    /// The tunnel device.
    pub links: Links,
    /// Rules and routes.
    pub routes: Routes,
    /// nftables and the FORWARD jump.
    pub firewall: Firewall,
    /// charon's connections.
    pub tunnels: Tunnels,
    /// eBPF programs and maps.
    pub datapath: Datapath,
    /// The CNI configuration.
    pub cni: Cni,
    /// How large a packet the tunnels carry.
    pub paths: Paths,
    /// What is in force, as long as nothing is known to be otherwise.
    pub settled: Option<Settled>,
}

/// What the last pass saw of the host, and what was in force when nothing was left to do.
#[derive(Debug)]
pub struct Settled {
    config: Arc<NodeConfig>,
    facts: Facts,
    pods: LocalPods,
    /// What is said of the document's peers.
    others: Others,
    /// When the first change was carried out since then.
    unseen: Option<Instant>,
}

/// So long changes may be carried out one by one without a look at the whole.
const UNSEEN: Duration = Duration::from_secs(5);

/// What one pass did.
#[derive(Debug, Default)]
pub struct Report {
    /// Whether anything was changed.
    pub changed: bool,
    /// What went wrong, by subsystem.
    pub problems: BTreeMap<String, Vec<String>>,
    /// The tunnel device.
    pub tunnel: Option<String>,
    /// State of the fast path.
    pub fast_path: String,
    /// Programs of others on the hooks of the fast path.
    pub foreign_programs: BTreeSet<String>,
    /// Whether ESP is spread over CPUs, by uplink.
    pub spread: BTreeMap<String, String>,
    /// Tunnels by peer; none: nobody looked.
    pub peers: Option<BTreeMap<String, PeerReport>>,
}

impl Report {
    fn problem(&mut self, subsystem: &str, problem: String) {
        self.problems
            .entry(subsystem.to_owned())
            .or_default()
            .push(problem);
    }

    fn add(&mut self, subsystem: &'static str, outcomes: Vec<Outcome>) {
        for Outcome {
            action,
            object,
            result,
        } in outcomes
        {
            match result {
                Ok(()) => {
                    self.changed = true;
                    debug!(subsystem, action, object, "done");
                }
                Err(error) => {
                    let why = crate::status::chain(error.as_ref());
                    self.problem(subsystem, format!("{action} {object}: {why}"));
                }
            }
        }
    }

    fn works(&self, subsystem: &str) -> bool {
        !self.problems.contains_key(subsystem)
    }
}

impl Subsystems {
    /// Carries out by itself the change to a document that differs from the one in force by little, on the belief that
    /// all is as the last pass left it; none where that will not do. A pass that looks at everything has to follow.
    pub async fn change(
        &mut self,
        role: Role,
        config: &Arc<NodeConfig>,
        options: &Options,
    ) -> Option<Report> {
        let mut settled = self.settled.take()?;
        let unseen = settled.unseen.unwrap_or_else(Instant::now);
        if Arc::ptr_eq(&settled.config, config) || unseen.elapsed() > UNSEEN {
            return None;
        }
        let change = Change::new(&settled.config, config, &mut settled.others)?;
        let state = |config| Desired::new(role, config, &settled.facts, &settled.pods, options);
        let (before, after) = (state(&change.before), state(&change.after));
        let same = before.sysctl == after.sysctl
            && before.links == after.links
            && before.cni == after.cni
            && before.firewall.forward == after.firewall.forward;
        let (Some(was), Some(is), true) = (&before.firewall.table, &after.firewall.table, same) else {
            return None;
        };
        let tunnels = self.tunnels.change(&before.tunnels, &after.tunnels)?;
        let firewall = self.firewall.change(was, is)?;
        let datapath = self.datapath.change(&before.datapath, &after.datapath);
        let routes = self.routes.change(&before.routes, &after.routes);

        let mut report = Report {
            changed: true,
            ..Report::default()
        };
        report.add(Routes::NAME, self.routes.apply(&routes, Phase::Grow).await);
        report.add(Firewall::NAME, self.firewall.apply(&firewall, Phase::Grow).await);
        // charon works while the table of routes is compiled.
        let (grown, [set, removed]) = tokio::join!(self.tunnels.apply(&tunnels, Phase::Grow), async {
            [
                self.datapath.apply(&datapath, Phase::Grow).await,
                self.datapath.apply(&datapath, Phase::Shrink).await,
            ]
        });
        report.add(Tunnels::NAME, grown);
        report.add(Datapath::NAME, set);
        report.add(Datapath::NAME, removed);
        report.add(Tunnels::NAME, self.tunnels.apply(&tunnels, Phase::Shrink).await);
        report.add(Routes::NAME, self.routes.apply(&routes, Phase::Shrink).await);
        self.tell(&mut report, &settled.facts, &after);
        if report.problems.is_empty() {
            self.settled = Some(Settled {
                config: Arc::clone(config),
                unseen: Some(unseen),
                ..settled
            });
        }
        Some(report)
    }

    /// Reconciles the node with its document.
    pub async fn reconcile(&mut self, role: Role, config: &Arc<NodeConfig>, options: &Options) -> Report {
        let mut report = Report::default();
        self.settled = None;
        let (facts, pods) = match self.observe(config, &mut report).await {
            Ok(observed) => observed,
            Err(error) => {
                report.problem(
                    "host",
                    format!("observing the host: {}", crate::status::chain(error.as_ref())),
                );
                return report;
            }
        };
        let desired = Desired::new(role, config, &facts, &pods, options);
        for problem in desired.problems() {
            report.problem("document", problem.to_string());
        }
        self.apply(&desired, &mut report).await;
        self.tell(&mut report, &facts, &desired);
        let peers = self.peers(&facts);
        self.measure(config, &facts, &peers);
        report.peers = Some(peers);
        if !report.changed && report.problems.is_empty() {
            self.settled = Some(Settled {
                config: Arc::clone(config),
                facts,
                pods,
                others: Others::of(&config.peers),
                unseen: None,
            });
        }
        report
    }

    fn tell(&self, report: &mut Report, facts: &Facts, desired: &Desired) {
        let tunnel = desired.links.tunnel.as_ref();
        report.tunnel = tunnel.map(|_| facts.tunnel.device().to_owned());
        report.fast_path = self.datapath.state();
        report.foreign_programs = self.datapath.foreign().clone();
        report.spread = self.datapath.spread().clone();
    }

    fn peers(&mut self, facts: &Facts) -> BTreeMap<String, PeerReport> {
        let mut peers = self.tunnels.report().peers;
        for (name, peer) in &mut peers {
            // As it was at the start of the pass, so that it is in force.
            peer.path_mtu = facts.paths.get(&abi::reqid(name)).copied();
        }
        peers
    }

    /// Has the paths measured that go through tunnels which stand.
    fn measure(&self, config: &NodeConfig, facts: &Facts, peers: &BTreeMap<String, PeerReport>) {
        let target = |(name, path): (&str, Path)| {
            let children = peers.get(name)?.children.iter();
            let target = Target {
                peer: name.to_owned(),
                path,
                sas: children
                    .map(|child| u64::from(child.spi_out))
                    .reduce(u64::wrapping_add)?,
            };
            Some((abi::reqid(name), Arc::new(target)))
        };
        let paths = desired::paths::paths(config, facts).into_iter();
        self.paths.follow(paths.filter_map(target).collect());
    }

    /// Removes everything that carries our mark.
    pub async fn cleanup(&mut self) -> Report {
        let mut report = Report::default();
        self.apply(&Desired::default(), &mut report).await;
        report
    }

    /// When a subsystem wants another pass before the next resync.
    pub fn next_attempt(&self) -> Option<Duration> {
        [self.datapath.next_attempt(), self.tunnels.next_attempt()]
            .into_iter()
            .flatten()
            .min()
    }

    async fn observe(
        &mut self,
        config: &NodeConfig,
        report: &mut Report,
    ) -> Result<(Facts, LocalPods), Error> {
        let mut facts = self.netlink.facts(TunnelKind::Xfrm).await?;
        facts.paths = self.paths.found();
        if config.endpoint.kind == EndpointType::CloudNode {
            let pods: Vec<IpNet> = config.endpoint.pod_subnets().collect();
            facts.hops = self.netlink.hops(&facts.links, &pods).await?;
        } else {
            facts.tunnel = match self.tunnels.tunnel_kind().await {
                Ok(kind) => kind,
                Err(error) => {
                    // The node is closed all the same. Who performs ESP is known by the device that is there.
                    report.problem(Tunnels::NAME, crate::status::chain(&error));
                    let libipsec = facts.links.contains_key(marks::LIBIPSEC_DEVICE);
                    self.tunnels.expected_kind().unwrap_or(if libipsec {
                        TunnelKind::Libipsec
                    } else {
                        TunnelKind::Xfrm
                    })
                }
            };
        }
        if config.endpoint.kind == EndpointType::Connector {
            facts.reception = reception::observe(&facts)?;
        }
        let pods = self.datapath.local_pods().await?;
        Ok((facts, pods))
    }

    async fn apply(&mut self, desired: &Desired, report: &mut Report) {
        let sysctl = grow(&mut self.sysctl, &desired.sysctl, report).await;
        let links = grow(&mut self.links, &desired.links, report).await;
        // What closes the node comes before what opens it: a peer whose tunnel stands may ask at once, and what is answered
        // must not leave by any other way.
        let routes = grow(&mut self.routes, &desired.routes, report).await;
        let firewall = grow(&mut self.firewall, &desired.firewall, report).await;
        let tunnels = grow(&mut self.tunnels, &desired.tunnels, report).await;
        let datapath = grow(&mut self.datapath, &desired.datapath, report).await;
        // No pod starts before what closes the node stands: rules, `unreachable` routes and the nftables table.
        let closed = report.works(Routes::NAME) && report.works(Firewall::NAME);
        let cni = if closed {
            grow(&mut self.cni, &desired.cni, report).await
        } else {
            None
        };

        shrink(&mut self.cni, cni, report).await;
        shrink(&mut self.datapath, datapath, report).await;
        shrink(&mut self.tunnels, tunnels, report).await;
        shrink(&mut self.firewall, firewall, report).await;
        shrink(&mut self.routes, routes, report).await;
        shrink(&mut self.links, links, report).await;
        shrink(&mut self.sysctl, sysctl, report).await;
        if report.changed {
            info!(problems = report.problems.len(), "node changed");
        }
    }
}

/// Plans and grows; the plan is none where observing failed, and then nothing shrinks either.
async fn grow<S: Subsystem>(subsystem: &mut S, desired: &S::Desired, report: &mut Report) -> Option<S::Plan> {
    match subsystem.plan(desired).await {
        Ok(plan) => {
            report.add(S::NAME, subsystem.apply(&plan, Phase::Grow).await);
            Some(plan)
        }
        Err(error) => {
            report.problem(S::NAME, crate::status::chain(error.as_ref()));
            None
        }
    }
}

async fn shrink<S: Subsystem>(subsystem: &mut S, plan: Option<S::Plan>, report: &mut Report) {
    if let Some(plan) = plan {
        report.add(S::NAME, subsystem.apply(&plan, Phase::Shrink).await);
    }
}
