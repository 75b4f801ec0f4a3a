//! What each step of the guide says and leads to.

use std::time::Duration;

use anyhow::{Context, Result, ensure};

use super::cluster::{Cluster, ENDING, Sheet};
use super::rows::{missing, row};
use super::traffic::{LONG, SHORT, Traffic, start_pod};
use super::{Guide, names, unless};
use crate::suite::judge;
use crate::table::Outcome;

/// How long what was asked for may take to be everywhere.
pub(super) const CONVERGENCE: Duration = Duration::from_secs(120);

/// What a kernel without ESP needs; kernel ESP is what the suite `lab` looks at.
pub(super) const USERSPACE_ESP: &str = "strongswan:
  tunnel: libipsec
";

/// A pod that was there before FabEdge.
const EARLY: &str = "early-edge1";

/// A label that nobody but an edge has.
const EDGE: &[&str] = &["Ready", "edge"];

impl Guide {
    /// What has to be so before a reader can go on, and what must not be so yet.
    pub(super) fn before(&mut self, block: &str) -> Result<()> {
        match block {
            "cni-patch" => {
                self.row("a pod runs on edge1 by the cloud's CNI", |guide| {
                    let pod = start_pod(&guide.cluster, EARLY, "edge1")?;
                    Ok(judge(true, pod.address.to_string()))
                });
            }
            "no-cni-on-edges" => {
                let title = "Flannel's pods leave the edges";
                self.row(title, |guide| {
                    let took = guide.cluster.wait(title, ENDING, |cluster| {
                        ensure!(flannel_on_edges(cluster)?.is_empty(), "they are still there");
                        // The patch replaces those of cloud nodes too.
                        let status = &cluster.get("daemonset -n kube-system kube-flannel-ds")?["status"];
                        let fields = ["updatedNumberScheduled", "numberAvailable"];
                        ensure!(fields.iter().all(|field| status[field] == 2), "{status}");
                        Ok(true)
                    })?;
                    Ok(judge(true, format!("{:.1} s", took.as_secs_f64())))
                });
            }
            // A script is at it sooner than a reader: what is not there yet nobody would wait for.
            "check" => {
                let title = "the operator makes the agents' pods";
                self.cluster.wait(title, ENDING, |cluster| {
                    let pods = names(&cluster.get("pod -n fabedge -l fabedge.io/app=fabedge-agent")?);
                    ensure!(pods.len() == 2, "{}", pods.join(", "));
                    Ok(true)
                })?;
            }
            "community" => {
                self.probe()?;
                self.row("cloud pods and edge pods reach each other", |guide| {
                    guide.reach_each_other(&CLOUD_AND_EDGES)
                });
                self.row("two edges reach nothing of each other", Self::edges_are_apart);
                self.row("an edge's pod reaches the API server's Service", |guide| {
                    let service = guide.cluster.sheet.api_service.into();
                    let traffic = guide.traffic()?;
                    let took = guide.cluster.wait("a connection", CONVERGENCE, |_| {
                        traffic.connects("edge1", service, 443)
                    })?;
                    let took = took.as_secs_f64();
                    Ok(judge(true, format!("TCP {service}:443; {took:.1} s")))
                });
            }
            _ => {
                self.before_joining(block)?;
                self.before_trouble(block)?;
            }
        }
        Ok(())
    }

    /// Starts pods that probe, and the capture, unless they are there.
    pub(super) fn probe(&mut self) -> Result<()> {
        if self.traffic.is_none() {
            self.traffic = Some(Traffic::start(&self.cluster).context("starting pods that probe")?);
        }
        Ok(())
    }

    /// Whether a step said what the guide says that it says.
    pub(super) fn said(&self, block: &str, text: &str) -> Result<Outcome> {
        let cluster = &self.cluster;
        let problems = match block {
            "cluster-info" => different(text, &info(&cluster.sheet)),
            "label-edges" => {
                let mut problems = lines_missing(text, &["node/edge1 labeled", "node/edge2 labeled"]);
                problems.extend(missing(
                    text,
                    &[
                        ("edge1", EDGE),
                        ("edge2", EDGE),
                        ("master", &["Ready", "master"]),
                        ("node1", &["Ready", "<none>"]),
                    ],
                ));
                problems
            }
            "keep-cni-off" => lines_missing(text, &["daemonset.apps/kube-flannel-ds patched"]),
            "no-cni-on-edges" => {
                let lines: Vec<&str> = text.lines().collect();
                let on = |node: &str| {
                    lines
                        .iter()
                        .any(|line| line.split_whitespace().any(|word| word == node))
                };
                let right = lines.len() == 2 && on("master") && on("node1");
                if right { Vec::new() } else { vec![text.to_owned()] }
            }
            "label-connector" => missing(text, &[("node1", &["Ready", "connector"]), ("edge1", EDGE)]),
            "values" => lines_missing(
                text,
                &["  - 10.20.8.28", "  serviceClusterIPRanges: [10.96.0.0/16]"],
            ),
            "install" => lines_missing(text, &["STATUS: deployed"]),
            "check" => missing(
                text,
                &[
                    ("edge1", EDGE),
                    ("edge2", EDGE),
                    ("master", &["Ready", "master"]),
                    ("node1", &["Ready", "connector"]),
                    ("kube-flannel-ds-", &["1/1", "Running"]),
                    ("fabedge-agent-edge1", &["2/2", "Running"]),
                    ("fabedge-agent-edge2", &["2/2", "Running"]),
                    ("fabedge-cloud-agent-", &["1/1", "Running"]),
                    ("fabedge-connector-", &["2/2", "Running"]),
                    ("fabedge-operator-", &["1/1", "Running"]),
                ],
            ),
            "community" => lines_missing(text, &["community.fabedge.io/connectors created"]),
            "community-ready" => match row(text, "connectors") {
                Some(columns) if columns.contains(&"2/2") => Vec::new(),
                _ => vec![text.to_owned()],
            },
            "try" => missing(
                text,
                &[
                    ("try-cloud", &["0/1", "Completed"]),
                    ("try-edge1", &["0/1", "Completed"]),
                    ("try-edge2", &["1/1", "Running"]),
                ],
            ),
            "look-inside" => {
                let up = |peer: &str| {
                    text.lines()
                        .any(|line| line.contains(peer) && line.contains("ESTABLISHED  1 CHILD_SA"))
                };
                let mut problems = Vec::new();
                for peer in ["fabedge.edge1", "fabedge.edge2"] {
                    if !up(peer) {
                        problems.push(format!("{peer} is not up"));
                    }
                }
                if !text
                    .lines()
                    .any(|line| line.starts_with("ready") && line.ends_with("yes"))
                {
                    problems.push("the connector is not ready".to_owned());
                }
                problems
            }
            "move-connector" => lines_missing(text, &["STATUS: deployed"]),
            "uninstall" => lines_missing(text, &["release \"fabedge\" uninstalled"]),
            _ => [
                self.said_of_joining(block, text)?,
                self.said_of_trouble(block, text),
            ]
            .concat(),
        };
        Ok(unless(&problems, ""))
    }

    /// What a step leads to.
    pub(super) fn after(&mut self, block: &str, text: &str) -> Result<()> {
        match block {
            "values" => {
                let title = "values.yaml has strongswan.tunnel: libipsec too";
                self.row(title, |guide| {
                    guide.cluster.append("values.yaml", USERSPACE_ESP)?;
                    Ok(judge(true, "so that kernels without ESP can do this"))
                });
            }
            "check" => {
                self.row("what Flannel left on the edges is set aside", |guide| {
                    let cluster = &guide.cluster;
                    cluster.kubectl(&format!("delete pod --grace-period=1 --wait=false {EARLY}"))?;
                    cluster.wait("that", CONVERGENCE, |cluster| {
                        for edge in ["edge1", "edge2"] {
                            let configs = cluster.on(edge, &["ls", "/etc/cni/net.d"])?;
                            let found = |name: &str| configs.lines().any(|line| line == name);
                            ensure!(
                                found("fabedge.conflist") && !found("10-flannel.conflist"),
                                "{edge} has {}",
                                configs.trim().replace('\n', " ")
                            );
                        }
                        let bridge = cluster.on("edge1", &["ip", "-brief", "link", "show", "cni0"])?;
                        ensure!(bridge.contains("DOWN"), "{bridge}");
                        Ok(true)
                    })?;
                    Ok(judge(true, "its conflist and its bridge"))
                });
                self.row("edges' pods have no token for the API", |guide| {
                    let mut problems = Vec::new();
                    for edge in ["edge1", "edge2"] {
                        let found = guide
                            .cluster
                            .on(edge, &["find", "/var/lib/kubelet/pods", "-name", "token"])?;
                        if !found.is_empty() {
                            problems.push(format!("{edge}: {found}"));
                        }
                    }
                    Ok(unless(&problems, ""))
                });
            }
            "community-ready" => {
                let title = "pods of edge1 and edge2 reach each other";
                self.row(title, |guide| {
                    let before = guide.traffic()?.capture.counts();
                    let outcome = guide.reach_each_other(&[("edge1", "edge2")])?;
                    let seen = guide.traffic()?.capture.counts().since(&before);
                    if seen.esp_in_udp == 0 {
                        return Ok(Outcome::Failed(format!("between the sites: {seen}")));
                    }
                    Ok(outcome)
                });
            }
            "move-connector" => {
                self.row("a moved connector is followed", Self::connector_is_followed);
            }
            "uninstall" => self.nothing_is_left()?,
            "unlabel" => {
                self.row("edges have the cloud's CNI again", Self::edges_are_given_back);
            }
            _ => {
                self.after_joining(block, text)?;
                self.after_trouble(block)?;
            }
        }
        Ok(())
    }

    /// Nothing gets from one edge to the other, either way.
    pub(super) fn edges_are_apart(&mut self) -> Result<Outcome> {
        self.are_apart(&[("edge1", "edge2")])
    }

    /// Nothing gets from one to the other, either way, and nothing shows on the way.
    pub(super) fn are_apart(&self, pairs: &[(&str, &str)]) -> Result<Outcome> {
        let traffic = self.traffic()?;
        let before = traffic.capture.counts();
        let mut problems = Vec::new();
        for (from, to) in pairs.iter().flat_map(|(a, b)| [(a, b), (b, a)]) {
            let reach = traffic.reach(from, to, SHORT)?;
            if !reach.none() {
                problems.push(format!("{from} -> {to}: {reach}"));
            }
        }
        let seen = traffic.capture.counts().since(&before);
        if seen.plaintext > 0 {
            problems.push(format!("between the sites: {seen}"));
        }
        Ok(unless(&problems, "nothing both ways"))
    }

    /// Both ways, within the time that tunnels may take.
    pub(super) fn reach_each_other(&self, pairs: &[(&str, &str)]) -> Result<Outcome> {
        let traffic = self.traffic()?;
        let mut seen = Vec::new();
        for (from, to) in pairs.iter().flat_map(|(a, b)| [(a, b), (b, a)]) {
            let took = self.cluster.wait(&format!("{from} -> {to}"), CONVERGENCE, |_| {
                let reach = traffic.reach(from, to, LONG)?;
                ensure!(reach.all(), "{reach}");
                Ok(true)
            })?;
            seen.push(took);
        }
        let longest = seen.into_iter().max().unwrap_or_default();
        Ok(judge(
            true,
            format!("ping, UDP and TCP; {:.1} s at most", longest.as_secs_f64()),
        ))
    }
}

/// The pairs that need no Community.
pub(super) const CLOUD_AND_EDGES: [(&str, &str); 4] = [
    ("master", "edge1"),
    ("node1", "edge1"),
    ("master", "edge2"),
    ("node1", "edge2"),
];

/// Edges on which a pod of Flannel's is.
pub(super) fn flannel_on_edges(cluster: &Cluster) -> Result<Vec<String>> {
    let pods = cluster.get("pod -n kube-system -l app=flannel")?;
    let nodes = pods["items"].as_array().into_iter().flatten();
    Ok(nodes
        .filter_map(|pod| pod["spec"]["nodeName"].as_str())
        .filter(|node| node.starts_with("edge"))
        .map(str::to_owned)
        .collect())
}

/// What the first step has to say.
pub(super) fn info(sheet: &Sheet) -> String {
    format!(
        "This may take some time. Please wait.\n\nclusterDNS               : {}\nclusterDomain            : cluster.local\n\
         cluster-cidr             : {}\nservice-cluster-ip-range : {}\n",
        sheet.dns, sheet.cluster_cidr, sheet.service_cidr
    )
}

pub(super) fn lines_missing(text: &str, wanted: &[&str]) -> Vec<String> {
    wanted
        .iter()
        .filter(|wanted| !text.lines().any(|line| line == **wanted))
        .map(|wanted| format!("no line {wanted:?}"))
        .collect()
}

pub(super) fn different(text: &str, wanted: &str) -> Vec<String> {
    if text == wanted {
        Vec::new()
    } else {
        vec![format!("{text:?} instead of {wanted:?}")]
    }
}
