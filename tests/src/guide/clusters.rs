//! A second cluster joins the first: what each step of that says and leads to.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use super::cluster::{Cluster, ENDING};
use super::rows::{missing, row};
use super::steps::{CONVERGENCE, USERSPACE_ESP, different, info, lines_missing};
use super::traffic::{LABEL, LONG, name};
use super::{BLOCK_LIMIT, Guide, names, unless};
use crate::probe::responder::PORT;
use crate::probe::{icmp, tcp, udp};
use crate::suite::judge;
use crate::table::Outcome;

/// By the connectors and by other cloud nodes, on either side.
const PAIRS: [(&str, &str); 3] = [
    ("master", "beijing.master"),
    ("node1", "beijing.node1"),
    ("node1", "beijing.master"),
];

/// The Community of the two connectors.
const COMMUNITY: &str = "clusters";

/// How long one answer is waited for where it is the time that counts.
const SOON: Duration = Duration::from_millis(200);

/// How long a Community that goes may have an effect, to the last entry.
const WITHDRAWAL: Duration = Duration::from_secs(20);

/// Prints what leads to a prefix on a node, a line each: routes of any table but those that close it, which stay, and
/// entries of the programs' map.
const WAYS: &str = "
for table in main 220 221; do ip route show table $table 2>/dev/null | grep -F \"$0\" | grep -v ^unreachable; done
map=/sys/fs/bpf/fabedge/routes4
[ ! -e $map ] || bpftool map dump pinned $map | grep -F \"$1\"
true";

impl Guide {
    /// What has to be so before a reader can go on, and what must not be so yet.
    pub(super) fn before_joining(&mut self, block: &str) -> Result<()> {
        match block {
            "register" => self.probe()?,
            "clusters-community" => {
                let traffic = self.traffic.as_mut().context("no pods probe yet")?;
                traffic.join(&self.member).context("starting pods that probe")?;
                self.row("pods of two clusters reach nothing of each other", |guide| {
                    guide.are_apart(&PAIRS)
                });
            }
            _ => {}
        }
        Ok(())
    }

    /// Whether a step said what the guide says that it says.
    pub(super) fn said_of_joining(&self, block: &str, text: &str) -> Result<Vec<String>> {
        Ok(match block {
            "register" => lines_missing(text, &["cluster.fabedge.io/beijing created"]),
            "token" => match text.trim().split('.').count() {
                3 => Vec::new(),
                // What may be one is nobody's to read.
                parts => vec![format!("no token: {parts} parts")],
            },
            "member-cluster-info" => different(text, &info(&self.member.sheet)),
            "member-label-connector" => missing(
                text,
                &[
                    ("master", &["Ready", "master"]),
                    ("node1", &["Ready", "connector"]),
                ],
            ),
            "member-install" => lines_missing(text, &["STATUS: deployed"]),
            "member-check" => missing(
                text,
                &[
                    ("fabedge-cloud-agent-", &["1/1", "Running"]),
                    ("fabedge-connector-", &["2/2", "Running"]),
                    ("fabedge-operator-", &["1/1", "Running"]),
                ],
            ),
            "joined" => match row(text, "beijing") {
                Some(columns) if columns.contains(&"True") => Vec::new(),
                _ => vec![text.to_owned()],
            },
            "clusters-community" => lines_missing(text, &["community.fabedge.io/clusters created"]),
            "clusters-ready" => match row(text, COMMUNITY) {
                Some(columns) if columns.contains(&"2/2") => Vec::new(),
                _ => vec![text.to_owned()],
            },
            "clusters-try" => missing(text, &[("try-fabedge", &["0/1", "Completed"])]),
            _ => Vec::new(),
        })
    }

    /// What a step leads to, and what a reader carries from one cluster to the other by hand.
    pub(super) fn after_joining(&mut self, block: &str, text: &str) -> Result<()> {
        match block {
            "token" => self.member.set("INIT_TOKEN", text.trim()),
            "member-values" => self.member.append("values.yaml", USERSPACE_ESP)?,
            "member-install" => self.asked = Instant::now(),
            "joined" => {
                self.figures.seconds("join_seconds", self.asked.elapsed());
                self.row("the member's certificates are the host's", Self::one_authority);
            }
            "clusters-community" => self.asked = Instant::now(),
            "clusters-ready" => {
                self.row("pods of the two clusters reach each other", |guide| {
                    let before = guide.traffic()?.capture.counts();
                    let outcome = guide.reach_each_other(&PAIRS)?;
                    let seen = guide.traffic()?.capture.counts().since(&before);
                    guide.figures.set("esp_packets", seen.encrypted());
                    if seen.encrypted() == 0 || seen.plaintext > 0 {
                        return Ok(Outcome::Failed(format!("between the sites: {seen}")));
                    }
                    Ok(outcome)
                });
                let title = "a pod reaches a Service of the other cluster";
                self.row(title, Self::service_of_the_other);
            }
            "clusters-try-member" => self.cluster.set("PEER", text.lines().last().unwrap_or_default()),
            "clusters-try-end" => {
                let title = "without the Community they are apart again";
                self.row(title, Self::clusters_part);
                self.row("with it they are together again", Self::clusters_meet);
            }
            _ => {}
        }
        Ok(())
    }

    /// The key of the authority is in the first cluster alone, and what it signed is trusted in both.
    fn one_authority(&mut self) -> Result<Outcome> {
        let authority = |cluster: &Cluster| -> Result<Value> {
            let secret = cluster.get("secret -n fabedge connector-tls")?;
            let trusted = secret["data"]["ca.crt"].clone();
            ensure!(
                trusted.is_string(),
                "{}: no ca.crt in connector-tls",
                cluster.sheet.name
            );
            Ok(trusted)
        };
        // Certificates come in their time.
        self.member.wait("one authority", CONVERGENCE, |member| {
            ensure!(
                authority(&self.cluster)? == authority(member)?,
                "the connectors trust different authorities"
            );
            Ok(true)
        })?;
        let took = self.asked.elapsed().as_secs_f64();
        let mut problems = Vec::new();
        let secrets = self.member.get("secret -n fabedge")?;
        for secret in secrets["items"].as_array().into_iter().flatten() {
            if !secret["data"]["ca.key"].is_null() {
                problems.push(format!(
                    "beijing has {} with a ca.key",
                    secret["metadata"]["name"]
                ));
            }
        }
        Ok(unless(
            &problems,
            format!("joined {took:.1} s after its installation; no ca.key there"),
        ))
    }

    /// A Service of the member's, whose address its node translates: a rule there stands in for kube-proxy.
    fn service_of_the_other(&mut self) -> Result<Outcome> {
        let title = "the Service's rule";
        let pod = name("master");
        self.member.apply(&format!(
            "apiVersion: v1
kind: Service
metadata:
  name: probe
spec:
  selector: {{{LABEL}: {pod}}}
  ports: [{{name: tcp, port: {PORT}, protocol: TCP}}, {{name: udp, port: {PORT}, protocol: UDP}}]
"
        ))?;
        let service = self.member.get("service probe")?;
        let address = service["spec"]["clusterIP"].as_str().context("no clusterIP")?;
        let there = SocketAddr::new(address.parse()?, PORT);
        // Until then the member's nodes take the address for one of the outside, as they do without a kube-proxy.
        for node in ["master", "node1"] {
            self.member.wait(title, CONVERGENCE, |member| {
                let rules = member.on(node, &["nft", "list", "chain", "ip", "proxied", "services"])?;
                Ok(rules.contains(address))
            })?;
        }
        let traffic = self.traffic()?;
        for from in ["master", "node1"] {
            let place = &traffic.pod(from)?.place;
            self.cluster.wait(title, CONVERGENCE, |_| {
                tcp::connect(place, there, LONG)?;
                tcp::upload(place, there, 64 * 1024)?;
                let udp = udp::exchange(place, there, 512, 3, LONG)?;
                ensure!(udp.all(), "UDP {}/{}", udp.answered, udp.sent);
                Ok(true)
            })?;
        }
        Ok(judge(
            true,
            format!("{address} (a rule stands in for kube-proxy)"),
        ))
    }

    /// Traffic stops, and then nothing leads to the other cluster any more on either side.
    pub(super) fn clusters_part(&mut self) -> Result<Outcome> {
        let before = self.traffic()?.capture.counts();
        self.asked = Instant::now();
        self.cluster.kubectl(&format!("delete community {COMMUNITY}"))?;
        for (from, to) in [("master", "beijing.master"), ("beijing.master", "master")] {
            self.cluster
                .wait("silence", WITHDRAWAL, |_| Ok(!self.answers(from, to)?))?;
        }
        let silent = self.asked.elapsed();
        let sides = [(&self.cluster, &self.member), (&self.member, &self.cluster)];
        for (cluster, other) in sides {
            let title = format!("nothing of {} in {}", other.sheet.name, cluster.sheet.name);
            cluster.wait(&title, WITHDRAWAL, |_| {
                let left = ways(cluster, other)?;
                ensure!(left.is_empty(), "{}", left.join(", "));
                Ok(true)
            })?;
        }
        let gone = self.asked.elapsed();
        self.figures.seconds("removal_silence_seconds", silent);
        self.figures.seconds("removal_seconds", gone);
        let apart = self.are_apart(&PAIRS)?;
        let leaked = self.traffic()?.capture.counts().since(&before).plaintext;
        Ok(match apart {
            Outcome::Passed(_) => judge(
                leaked == 0,
                format!(
                    "silent after {:.1} s, SAs, routes and map entries gone in both after {:.1} s; {leaked} \
                     plaintext packets",
                    silent.as_secs_f64(),
                    gone.as_secs_f64()
                ),
            ),
            other => other,
        })
    }

    /// The same Community once more, with an eye on the time.
    pub(super) fn clusters_meet(&mut self) -> Result<Outcome> {
        self.asked = Instant::now();
        self.cluster.kubectl("apply -f clusters.yaml")?;
        for (from, to) in [("master", "beijing.master"), ("beijing.master", "master")] {
            let title = format!("{from} -> {to}");
            self.cluster
                .wait(&title, CONVERGENCE, |_| self.answers(from, to))?;
        }
        let took = self.asked.elapsed();
        self.figures.seconds("community_seconds", took);
        Ok(match self.reach_each_other(&PAIRS)? {
            Outcome::Passed(_) => judge(true, format!("after {:.1} s", took.as_secs_f64())),
            other => other,
        })
    }

    /// Whether one echo is answered at once.
    fn answers(&self, from: &str, to: &str) -> Result<bool> {
        let traffic = self.traffic()?;
        let to = traffic.pod(to)?.address.into();
        Ok(icmp::ping(&traffic.pod(from)?.place, to, 56, 1, SOON)?.all())
    }

    /// The member is uninstalled first: what it leaves is what the first one is asked for afterwards.
    pub(super) fn member_leaves(&mut self) -> Result<Outcome> {
        let done = self
            .member
            .shell("helm uninstall fabedge -n fabedge", BLOCK_LIMIT)?;
        ensure!(done.ok(), "{}", done.text());
        let mut problems = Vec::new();
        let title = "nothing is left in the member";
        let took = self.member.wait(title, ENDING, |member| {
            let left =
                names(&member.get("deployment,daemonset,pod,configmap,secret,service,lease,job -n fabedge")?)
                    .into_iter()
                    .filter(|name| {
                        name.contains("fabedge") || name.contains("connector") || name.contains("client")
                    })
                    .collect::<Vec<_>>();
            ensure!(left.is_empty(), "{}", left.join(", "));
            Ok(true)
        })?;
        for node in ["master", "node1"] {
            let left = self.member.on(node, &["sh", "-c", super::uninstall::OURS])?;
            if !left.trim().is_empty() {
                problems.push(format!("{node}: {}", left.trim().replace('\n', ", ")));
            }
        }
        Ok(unless(&problems, format!("{:.1} s", took.as_secs_f64())))
    }
}

/// What leads from one cluster to the other: its connector's peer, and routes and map entries of its nodes.
fn ways(cluster: &Cluster, other: &Cluster) -> Result<Vec<String>> {
    let mut left = Vec::new();
    let status = cluster
        .kubectl("exec -n fabedge deployment/fabedge-connector -c connector -- fabedge-agent status")?;
    let peer = format!("{}.connector", other.sheet.name);
    left.extend(
        status
            .lines()
            .filter(|line| line.starts_with("peer") && line.contains(&peer))
            .map(str::to_owned),
    );
    // The first two octets are those of all pods of a cluster.
    let octets: Vec<&str> = other.sheet.cluster_cidr.split('.').take(2).collect();
    let (route, entry) = (format!("{}.", octets.join(".")), octets.join(","));
    for node in cluster.sheet.nodes.iter().filter(|(_, node)| node.cloud) {
        let said = cluster.on(node.0, &["sh", "-c", WAYS, &route, &entry])?;
        left.extend(said.lines().map(|line| format!("{}: {line}", node.0)));
    }
    Ok(left)
}
