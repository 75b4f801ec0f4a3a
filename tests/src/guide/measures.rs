//! What the finished installation must stand: documents that change, an operator that restarts, an agent that gets
//! another image, a node that goes and comes.

use std::io::{BufRead, BufReader};
use std::process::{Child, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;

use super::cluster::{Cluster, ENDING};
use super::steps::CLOUD_AND_EDGES;
use super::{Guide, names, unless};
use crate::probe::stream::{Report, Stream};
use crate::suite::judge;
use crate::table::Outcome;

/// Changes of a document that are timed.
const CHANGES: usize = 20;

/// What 19 of 20 of them may take from the ConfigMap to the agent.
const QUICK: Duration = Duration::from_secs(3);

/// How long anything of this may take.
const PATIENCE: Duration = ENDING;

/// Packets per second of a stream in which losses are counted, and their size.
const RATE: u32 = 1000;
const SIZE: usize = 64;

/// What brings values into effect.
const UPGRADE: &str = "helm upgrade fabedge charts/fabedge -n fabedge -f values.yaml";

/// What the connector says of its peers.
const CONNECTOR_STATUS: &str =
    "exec -n fabedge deployment/fabedge-connector -c connector -- fabedge-agent status";

/// An annotation by which one edge's document changes, and nothing that it does: edge2 has the first address anyway.
const ANNOTATION: &str = "fabedge.io/node-public-addresses";

impl Guide {
    pub(super) fn measures(&mut self) -> Result<()> {
        self.row("20 documents, from ConfigMap to agent", Self::documents);
        self.row("an operator's restart costs no packet", Self::operator_restart);
        self.row("another image of the agent costs no packet", Self::other_image);
        self.row("a deleted node leaves nothing", Self::node_goes);
        self.row("a node that comes back is an edge again", Self::node_comes);
        self.outages();
        self.document("faq.md")?;
        self.document("troubleshooting.md")?;
        self.row(
            "in all that time, no plaintext between the sites",
            Self::no_plaintext,
        );
        Ok(())
    }

    fn documents(&mut self) -> Result<Outcome> {
        let cluster = &self.cluster;
        let writes = Writes::watch(cluster, "fabedge-agent-config-edge1")?;
        let mut took = Vec::new();
        for change in 0..CHANGES {
            let before = generation(cluster, "edge1")?;
            announce(cluster, change)?;
            let written = writes.next()?;
            wait_for_generation(cluster, "edge1", before)?;
            took.push(written.elapsed());
        }
        took.sort_unstable();
        let seconds = |index: usize| took.get(index).map_or(0.0, Duration::as_secs_f64);
        let p95 = took.get(CHANGES * 95 / 100 - 1).copied().unwrap_or(PATIENCE);
        Ok(judge(
            p95 < QUICK,
            format!(
                "median {:.2} s, p95 {:.2} s, longest {:.2} s",
                seconds(CHANGES / 2),
                p95.as_secs_f64(),
                seconds(CHANGES - 1)
            ),
        ))
    }

    fn operator_restart(&mut self) -> Result<Outcome> {
        let cluster = &self.cluster;
        let (report, took) = self.while_streaming("edge1", "edge2", || {
            let before = generation(cluster, "edge1")?;
            cluster.kubectl("delete pod -n fabedge -l fabedge.io/app=fabedge-operator --wait=false")?;
            let started = Instant::now();
            announce(cluster, CHANGES)?;
            wait_for_generation(cluster, "edge1", before)?;
            Ok(started.elapsed())
        })?;
        cluster.kubectl(&format!("annotate node edge2 {ANNOTATION}-"))?;
        Ok(no_loss(
            report,
            &format!("a change meanwhile took {:.1} s", took.as_secs_f64()),
        ))
    }

    fn other_image(&mut self) -> Result<Outcome> {
        let cluster = &self.cluster;
        let template = cluster.get("podtemplate -n fabedge fabedge-agent")?;
        let containers = template["template"]["spec"]["containers"]
            .as_array()
            .context("the PodTemplate has no containers")?;
        let image = containers
            .iter()
            .find(|container| container["name"] == "agent")
            .and_then(|container| container["image"].as_str())
            .context("the PodTemplate has no container agent with an image")?;
        let (repository, version) = image.rsplit_once(':').context("the image has no tag")?;
        let tag = format!("{version}-other");
        let other = format!("{repository}:{tag}");
        for node in cluster.sheet.nodes.keys() {
            let names = [image, &other].map(|name| format!("docker.io/{name}"));
            let words = ["ctr", "-n", "k8s.io", "images", "tag", &names[0], &names[1]];
            cluster.on(node, &words)?;
        }
        let restarts = |edge: &str| -> Result<u64> {
            let pod = cluster.get(&format!("pod -n fabedge fabedge-agent-{edge}"))?;
            let agent = container(&pod, "agent").context("no container agent")?;
            agent["restartCount"].as_u64().context("no restartCount")
        };
        let before = [restarts("edge1")?, restarts("edge2")?];
        cluster.append("values.yaml", &format!("agent:\n  image:\n    tag: {tag}\n"))?;
        let (report, took) = self.while_streaming("edge1", "edge2", || {
            let upgraded = cluster.shell(UPGRADE, PATIENCE)?;
            ensure!(upgraded.ok(), "{}", upgraded.text());
            cluster.wait("both agents run the other image", PATIENCE, |cluster| {
                check_image(cluster, "edge1", &other, before[0])?;
                check_image(cluster, "edge2", &other, before[1])?;
                Ok(true)
            })
        })?;
        let mut problems = Vec::new();
        for edge in ["edge1", "edge2"] {
            let pod = cluster.get(&format!("pod -n fabedge fabedge-agent-{edge}"))?;
            let charon = container(&pod, "strongswan").context("no container strongswan")?;
            if charon["restartCount"] != 0 {
                problems.push(format!("charon of {edge} was restarted too"));
            }
        }
        if !problems.is_empty() {
            return Ok(unless(&problems, ""));
        }
        // The connector's pod is replaced, and who comes next asks it.
        let rollout = "rollout status -n fabedge deployment/fabedge-connector --timeout=2m";
        cluster.kubectl(rollout)?;
        Ok(no_loss(report, &format!("both in {:.1} s", took.as_secs_f64())))
    }

    /// Does something while packets flow from the pod of one node to that of another; gives what became of them.
    pub(super) fn while_streaming<T>(
        &self,
        from: &str,
        to: &str,
        work: impl FnOnce() -> Result<T>,
    ) -> Result<(Report, T)> {
        let traffic = self.traffic()?;
        let (from, to) = (traffic.pod(from)?, traffic.pod(to)?);
        let stream = Stream::start(&from.place, &to.place, to.address.into(), RATE, SIZE)?;
        stream.wait_for(100, PATIENCE).context("nothing flows")?;
        let done = work();
        // What a change breaks late must be seen too.
        thread::sleep(Duration::from_secs(1));
        let report = stream.finish()?;
        Ok((report, done?))
    }

    fn node_goes(&mut self) -> Result<Outcome> {
        let cluster = &self.cluster;
        self.saved = Some(cluster.get("node edge2")?);
        cluster.kubectl("delete node edge2")?;
        let took = cluster.wait("nothing of edge2 is left", PATIENCE, |cluster| {
            let left: Vec<String> = names(&cluster.get("pod,configmap,secret -n fabedge")?)
                .into_iter()
                .filter(|name| name.ends_with("edge2"))
                .collect();
            ensure!(left.is_empty(), "{}", left.join(", "));
            let status = cluster.kubectl(CONNECTOR_STATUS)?;
            ensure!(!status.contains("fabedge.edge2"), "the connector: {status}");
            Ok(true)
        })?;
        Ok(judge(
            true,
            format!("no pod, document, key or tunnel; {:.1} s", took.as_secs_f64()),
        ))
    }

    fn node_comes(&mut self) -> Result<Outcome> {
        let mut node = self.saved.take().context("edge2 was not deleted")?;
        for field in ["uid", "resourceVersion", "creationTimestamp", "managedFields"] {
            if let Some(metadata) = node["metadata"].as_object_mut() {
                metadata.remove(field);
            }
        }
        self.cluster.apply(&node.to_string())?;
        let took = self.cluster.wait("edge2 is ready again", PATIENCE, |cluster| {
            let table = cluster.kubectl("get community connectors")?;
            ensure!(table.contains("2/2"), "{table}");
            Ok(true)
        })?;
        let traffic = self.traffic.as_mut().context("no pods probe yet")?;
        traffic.renew(&self.cluster, "edge2")?;
        let reached = self.reach_each_other(&[("edge1", "edge2"), ("master", "edge2")])?;
        Ok(match reached {
            Outcome::Passed(seen) => judge(true, format!("{:.1} s; {seen}", took.as_secs_f64())),
            other => other,
        })
    }
}

impl Guide {
    /// Cloud nodes send what is for edges to the node on which the connector is now.
    pub(super) fn connector_is_followed(&mut self) -> Result<Outcome> {
        let cluster = &self.cluster;
        let pod = self.traffic()?.pod("edge1")?.address.to_string();
        let via = format!("via {}", cluster.node("master")?.address);
        let took = cluster.wait("node1's way to edge1", PATIENCE, |cluster| {
            let route = cluster.on("node1", &["ip", "route", "get", &pod])?;
            ensure!(route.contains(&via), "{route}");
            Ok(true)
        })?;
        Ok(match self.reach_each_other(&CLOUD_AND_EDGES)? {
            Outcome::Passed(seen) => judge(true, format!("{via} after {:.1} s; {seen}", took.as_secs_f64())),
            other => other,
        })
    }

    /// Everything that was done was seen from between the sites.
    pub(super) fn no_plaintext(&mut self) -> Result<Outcome> {
        let seen = self.traffic()?.capture.counts();
        let samples = seen.samples.iter().cloned().collect::<Vec<_>>().join(", ");
        Ok(judge(
            seen.plaintext == 0 && seen.missed == 0 && seen.esp_in_udp > 0,
            format!("{seen} {samples}"),
        ))
    }
}

/// Has the document of edge1 changed.
pub(super) fn announce(cluster: &Cluster, change: usize) -> Result<()> {
    let addresses = ["192.31.196.2,192.31.196.3", "192.31.196.2"][change % 2];
    cluster
        .kubectl(&format!(
            "annotate node edge2 --overwrite {ANNOTATION}={addresses}"
        ))
        .map(|_| ())
}

/// The generation of the document that an agent has applied.
pub(super) fn generation(cluster: &Cluster, node: &str) -> Result<u64> {
    cluster.status(node)?["generation"]
        .as_u64()
        .context("the agent reports no generation")
}

fn wait_for_generation(cluster: &Cluster, node: &str, before: u64) -> Result<()> {
    let started = Instant::now();
    // A report is a file that this process can read, so looking costs little.
    while generation(cluster, node)? <= before {
        if started.elapsed() > PATIENCE {
            bail!("{node} still has generation {before} after {PATIENCE:?}");
        }
        thread::sleep(Duration::from_millis(10));
    }
    Ok(())
}

pub(super) fn no_loss(report: Report, also: &str) -> Outcome {
    judge(report.lost == 0, format!("{report}; {also}"))
}

/// An error unless the agent of a node has started again with an image, and all of its pod is ready. The name that a
/// runtime reports says nothing: it is any of those that the image has.
fn check_image(cluster: &Cluster, node: &str, image: &str, restarts: u64) -> Result<()> {
    let pod = cluster.get(&format!("pod -n fabedge fabedge-agent-{node}"))?;
    let wanted = pod["spec"]["containers"]
        .as_array()
        .into_iter()
        .flatten()
        .any(|container| container["name"] == "agent" && container["image"] == image);
    ensure!(wanted, "the pod of {node} is not to run it yet");
    let agent = container(&pod, "agent").context("no container agent")?;
    ensure!(
        agent["restartCount"].as_u64() > Some(restarts) && agent["ready"] == true,
        "the agent of {node} is not back"
    );
    Ok(())
}

/// The status of a container.
fn container<'a>(pod: &'a Value, name: &str) -> Option<&'a Value> {
    pod["status"]["containerStatuses"]
        .as_array()?
        .iter()
        .find(|container| container["name"] == name)
}

/// When a ConfigMap was written.
struct Writes {
    child: Child,
    times: Receiver<Instant>,
}

impl Writes {
    fn watch(cluster: &Cluster, name: &str) -> Result<Self> {
        let program = cluster.sheet.tools.join("kubectl");
        let mut child = cluster
            .prepared(&program.to_string_lossy())
            .args(["get", "configmap", "-n", "fabedge", name, "--watch"])
            .args(["-o", "jsonpath={.metadata.resourceVersion}{\"\\n\"}"])
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .context("starting kubectl")?;
        let output = child.stdout.take().context("kubectl without output")?;
        let (sender, times) = channel();
        thread::spawn(move || {
            for line in BufReader::new(output).lines() {
                if line.is_err() || sender.send(Instant::now()).is_err() {
                    return;
                }
            }
        });
        let writes = Self { child, times };
        // The first one tells that it is there; whoever hears that hears of later ones.
        writes.next()?;
        Ok(writes)
    }

    /// The next time, of those since the last call the first.
    fn next(&self) -> Result<Instant> {
        self.times
            .recv_timeout(PATIENCE)
            .with_context(|| format!("the ConfigMap was not written within {PATIENCE:?}"))
    }
}

impl Drop for Writes {
    fn drop(&mut self) {
        // It may have ended by itself.
        drop(self.child.kill());
        drop(self.child.wait());
    }
}
