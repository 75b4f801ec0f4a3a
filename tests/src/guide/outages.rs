//! What goes on between two clusters while the first one's operator is away, while its store is brought back from a backup,
//! while its authority is replaced, and when a certificate is revoked.

use std::collections::BTreeSet;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

use super::Guide;
use super::cluster::{Cluster, ENDING};
use super::measures::{announce, generation, no_loss};
use crate::suite::judge;
use crate::table::Outcome;

/// Between whom packets flow meanwhile.
const FROM: &str = "master";
const TO: &str = "beijing.master";

/// How long it takes at most until the operator has renewed its lease.
const RENEWAL: Duration = Duration::from_secs(5);

/// How kubectl prints the document in a ConfigMap.
const DOCUMENT: &str = "-o jsonpath={.data.tunnels\\.yaml}";

/// How long a node may take to see another certificate in its files: a kubelet looks within two minutes.
const SEEN: Duration = Duration::from_secs(300);

/// Nodes of both clusters that end tunnels: two edges, and the connectors'.
const ENDS: usize = 4;

/// Agents in the cloud, as `kubectl exec` finds them.
const CONNECTOR: &str = "deployment/fabedge-connector -c connector";
const CLOUD: &str = "daemonset/fabedge-cloud-agent";

/// Prints the serial number of the connector's certificate.
const SERIAL: &str =
    "kubectl get secret -n fabedge connector-tls -o go-template='{{index .data \"tls.crt\"}}' |
base64 -d | openssl x509 -noout -serial | cut -d= -f2";

/// Every file of a kind that kubelets have brought to agents of a node: how many certificates, and which.
const MOUNTED: &str = "
for file in /var/lib/kubelet/pods/*/volumes/kubernetes.io~secret/tls/$0; do
  [ ! -e \"$file\" ] || echo \"$(grep -c BEGIN \"$file\") $(sha256sum < \"$file\")\"
done";

impl Guide {
    pub(super) fn outages(&mut self) {
        let title = "the host away, and the member's operator anew, cost no packet";
        self.row(title, Self::host_away);
        let title = "another authority costs no packet between the clusters";
        self.row(title, Self::other_authority);
        let title = "by certificates of the new one they part";
        self.row(title, Self::clusters_part);
        self.row("and meet again", Self::clusters_meet);
        let title = "a revoked certificate of the member ends its tunnel, and another one takes its place";
        self.row(title, Self::revoked);
        let title = "the host's store, brought back from a backup, costs no packet";
        self.row(title, Self::host_restored);
        let title = "a change after that arrives";
        self.row(title, Self::change_arrives);
    }

    fn host_away(&mut self) -> Result<Outcome> {
        let (report, ()) = self.while_streaming(FROM, TO, || {
            let scale = "scale deployment -n fabedge fabedge-operator --replicas";
            self.cluster.kubectl(&format!("{scale}=0"))?;
            self.cluster.wait("the operator is gone", ENDING, |cluster| {
                let pods = cluster.get("pod -n fabedge -l fabedge.io/app=fabedge-operator")?;
                Ok(pods["items"].as_array().is_some_and(Vec::is_empty))
            })?;
            let pods = "delete pod -n fabedge -l fabedge.io/app=fabedge-operator";
            self.member.kubectl(pods)?;
            let rollout = "rollout status -n fabedge deployment/fabedge-operator --timeout=2m";
            self.member.kubectl(rollout)?;
            thread::sleep(self.away);
            self.cluster.kubectl(&format!("{scale}=1"))?;
            self.cluster.kubectl(rollout)?;
            Ok(())
        })?;
        let away = format!(
            "the member was ready without its host, {} s long",
            self.away.as_secs()
        );
        Ok(no_loss(report, &away))
    }

    /// What nodes have is newer then than what there is: everybody takes what there is.
    fn host_restored(&mut self) -> Result<Outcome> {
        let cluster = &self.cluster;
        let backup = cluster.file("etcd.db");
        let backup = backup.to_str().context("the folder's name is not UTF-8")?;
        cluster.xtask(&["backup", &cluster.sheet.name, backup])?;
        let before = generation(cluster, "edge1")?;
        announce(cluster, 0)?;
        cluster.wait("edge1's document changes", ENDING, |cluster| {
            Ok(generation(cluster, "edge1")? > before)
        })?;
        thread::sleep(RENEWAL);
        let (edges, (clusters, took)) = self.while_streaming("edge1", "edge2", || {
            self.while_streaming(FROM, TO, || {
                cluster.xtask(&["restore", &cluster.sheet.name, backup])?;
                cluster.wait("everybody takes what is there", SEEN, |cluster| {
                    let pods = cluster.get("pod -n fabedge -l fabedge.io/app=fabedge-operator")?;
                    let started = pods["items"][0]["status"]["containerStatuses"][0]["restartCount"].as_u64();
                    ensure!(
                        started > Some(0),
                        "the operator goes on as if nothing had happened"
                    );
                    for (map, applied) in [
                        ("fabedge-agent-config-edge1", cluster.status("edge1")),
                        ("fabedge-agent-config-edge2", cluster.status("edge2")),
                        ("connector-config", reported(cluster, CONNECTOR)),
                        ("fabedge-cloud-agent-config", reported(cluster, CLOUD)),
                    ] {
                        let document =
                            cluster.kubectl(&format!("get configmap -n fabedge {map} {DOCUMENT}"))?;
                        let line = document
                            .lines()
                            .find_map(|line| line.strip_prefix("generation: "));
                        let there: u64 = line.context("no generation")?.parse()?;
                        ensure!(applied?["generation"] == there, "{map} is not what is applied");
                        ensure!(there > before, "{map} is of a time before");
                    }
                    Ok(true)
                })
            })
        })?;
        let text = format!("everybody takes what is there after {:.0} s", took.as_secs_f64());
        Ok(match no_loss(edges, "between edges") {
            Outcome::Passed(edges) => no_loss(clusters, &format!("{text}; {edges}")),
            failed => failed,
        })
    }

    /// Watches that began before do not tell of it.
    fn change_arrives(&mut self) -> Result<Outcome> {
        let cluster = &self.cluster;
        let before = generation(cluster, "edge1")?;
        announce(cluster, 0)?;
        let took = cluster.wait("edge1's document changes", ENDING, |cluster| {
            Ok(generation(cluster, "edge1")? > before)
        })?;
        announce(cluster, 1)?;
        Ok(judge(true, format!("after {:.1} s", took.as_secs_f64())))
    }

    fn other_authority(&mut self) -> Result<Outcome> {
        let sides = [&self.cluster, &self.member];
        // Volumes of pods that have gone stay for a while.
        self.cluster
            .wait("every node has a certificate, and no other", ENDING, |_| {
                let files = mounted(&sides, "certs/tls.crt")?;
                ensure!(files.len() == ENDS, "{} of {ENDS} files", files.len());
                Ok(true)
            })?;
        let before = mounted(&sides, "certs/tls.crt")?;
        let (report, ()) = self.while_streaming(FROM, TO, || {
            self.cluster
                .kubectl("annotate secret -n fabedge fabedge-ca fabedge.io/rotate-ca=600")?;
            self.cluster.wait("everybody trusts both", SEEN, |_| {
                let files = mounted(&sides, "cacerts/ca.crt")?;
                ensure!(
                    files.len() == before.len(),
                    "{} of {} files",
                    files.len(),
                    before.len()
                );
                let few = files.iter().filter(|file| !file.starts_with("2 ")).count();
                ensure!(few == 0, "{few} of {} trust one", files.len());
                Ok(true)
            })?;
            // Everybody has heard of it, so there is nothing to wait for.
            self.cluster
                .kubectl("annotate secret -n fabedge fabedge-ca fabedge.io/rotate-ca=10")?;
            thread::sleep(Duration::from_secs(11));
            self.cluster
                .wait("everybody has another certificate", SEEN, |_| {
                    let files = mounted(&sides, "certs/tls.crt")?;
                    let old = files.iter().filter(|file| before.contains(*file)).count();
                    ensure!(
                        files.len() == before.len() && old == 0,
                        "{old} of {} are old",
                        files.len()
                    );
                    Ok(true)
                })?;
            Ok(())
        })?;
        let nodes = format!("{} nodes have certificates of it", before.len());
        Ok(no_loss(report, &nodes))
    }
}

impl Guide {
    fn revoked(&mut self) -> Result<Outcome> {
        let (cluster, member) = (&self.cluster, &self.member);
        // The SPIs of the tunnel to the member, once it is whole.
        let tunnel = || -> Result<BTreeSet<u64>> {
            let peer = &reported(cluster, CONNECTOR)?["peers"]["beijing.connector"];
            ensure!(peer["ready"] == true, "the tunnel to beijing: {peer}");
            let children = peer["children"].as_array().into_iter().flatten();
            Ok(children.filter_map(|child| child["spiIn"].as_u64()).collect())
        };
        let serial = || -> Result<String> {
            let said = member.shell(SERIAL, ENDING)?;
            ensure!(said.ok(), "{}", said.text());
            Ok(said.text().trim().to_owned())
        };
        cluster.wait("a tunnel", SEEN, |_| tunnel().map(|_| true))?;
        let (before, revoked) = (tunnel()?, serial()?);
        let asked = Instant::now();
        cluster.kubectl(&format!(
            "annotate secret -n fabedge fabedge-ca fabedge.io/revoke={revoked}"
        ))?;
        member.wait("beijing has another certificate", SEEN, |_| {
            Ok(serial()? != revoked)
        })?;
        let issued = asked.elapsed();
        cluster.wait("another tunnel", SEEN, |_| {
            let now = tunnel()?;
            ensure!(
                !now.is_empty() && now.is_disjoint(&before),
                "{now:?} and before {before:?}"
            );
            Ok(true)
        })?;
        let replaced = asked.elapsed();
        Ok(match self.reach_each_other(&[(FROM, TO), (TO, FROM)])? {
            Outcome::Passed(_) => judge(
                true,
                format!(
                    "another certificate after {:.1} s, another tunnel after {:.1} s",
                    issued.as_secs_f64(),
                    replaced.as_secs_f64()
                ),
            ),
            failed => failed,
        })
    }
}

/// What an agent in the cloud says of itself.
fn reported(cluster: &Cluster, agent: &str) -> Result<serde_json::Value> {
    let text = cluster.kubectl(&format!(
        "exec -n fabedge {agent} -- cat /run/fabedge/status.json"
    ))?;
    serde_json::from_str(&text).with_context(|| format!("reading the status of {agent}"))
}

/// A file of each agent of all clusters that has tunnels.
fn mounted(sides: &[&Cluster], file: &str) -> Result<Vec<String>> {
    let mut found = Vec::new();
    for cluster in sides {
        for node in cluster.sheet.nodes.keys() {
            let said = cluster.on(node, &["sh", "-c", MOUNTED, file])?;
            found.extend(said.lines().map(str::to_owned));
        }
    }
    ensure!(!found.is_empty(), "no agent has a {file}");
    Ok(found)
}
