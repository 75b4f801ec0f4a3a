//! One pass: observe the host, compute the desired state, let every subsystem grow in order, then shrink in reverse.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use fabedge_common::config::{EndpointType, NodeConfig};
use ipnet::IpNet;
use tracing::{debug, info};

use crate::args::Role;
use crate::cni::Cni;
use crate::datapath::Datapath;
use crate::desired::datapath::LocalPods;
use crate::desired::{Desired, Options};
use crate::facts::{Facts, TunnelKind};
use crate::firewall::Firewall;
use crate::links::Links;
use crate::marks;
use crate::netlink::Netlink;
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
    /// charon's connections.
    pub tunnels: Tunnels,
    /// eBPF programs and maps.
    pub datapath: Datapath,
    /// Rules and routes.
    pub routes: Routes,
    /// nftables and the FORWARD jump.
    pub firewall: Firewall,
    /// The CNI configuration.
    pub cni: Cni,
}

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
    /// Tunnels by peer.
    pub peers: BTreeMap<String, PeerReport>,
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
    /// Reconciles the node with its document.
    pub async fn reconcile(&mut self, role: Role, config: &NodeConfig, options: &Options) -> Report {
        let mut report = Report::default();
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
        report.tunnel = desired
            .links
            .tunnel
            .as_ref()
            .map(|_| facts.tunnel.device().to_owned());
        report.fast_path = self.datapath.state();
        report.foreign_programs = self.datapath.foreign().clone();
        report.peers = self.tunnels.report().peers;
        report
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
        let pods = self.datapath.local_pods().await?;
        Ok((facts, pods))
    }

    async fn apply(&mut self, desired: &Desired, report: &mut Report) {
        let sysctl = grow(&mut self.sysctl, &desired.sysctl, report).await;
        let links = grow(&mut self.links, &desired.links, report).await;
        let tunnels = grow(&mut self.tunnels, &desired.tunnels, report).await;
        let datapath = grow(&mut self.datapath, &desired.datapath, report).await;
        let routes = grow(&mut self.routes, &desired.routes, report).await;
        let firewall = grow(&mut self.firewall, &desired.firewall, report).await;
        // No pod starts before what closes the node stands: rules, `unreachable` routes and the nftables table.
        let closed = report.works(Routes::NAME) && report.works(Firewall::NAME);
        let cni = if closed {
            grow(&mut self.cni, &desired.cni, report).await
        } else {
            None
        };

        shrink(&mut self.cni, cni, report).await;
        shrink(&mut self.firewall, firewall, report).await;
        shrink(&mut self.routes, routes, report).await;
        shrink(&mut self.datapath, datapath, report).await;
        shrink(&mut self.tunnels, tunnels, report).await;
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
