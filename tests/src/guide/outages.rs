//! What goes on between two clusters while the first one's operator is away, and while its authority is replaced.

use std::thread;
use std::time::Duration;

use anyhow::{Result, ensure};

use super::Guide;
use super::cluster::{Cluster, ENDING};
use super::measures::no_loss;
use crate::table::Outcome;

/// Between whom packets flow meanwhile.
const FROM: &str = "master";
const TO: &str = "beijing.master";

/// How long the member does without its host.
const AWAY: Duration = Duration::from_secs(15);

/// How long a node may take to see another certificate in its files.
const SEEN: Duration = Duration::from_secs(150);

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
            thread::sleep(AWAY);
            self.cluster.kubectl(&format!("{scale}=1"))?;
            self.cluster.kubectl(rollout)?;
            Ok(())
        })?;
        Ok(no_loss(report, "the member was ready without its host"))
    }

    fn other_authority(&mut self) -> Result<Outcome> {
        let sides = [&self.cluster, &self.member];
        let before = mounted(&sides, "certs/tls.crt")?;
        let (report, ()) = self.while_streaming(FROM, TO, || {
            self.cluster
                .kubectl("annotate secret -n fabedge fabedge-ca fabedge.io/rotate-ca=600")?;
            sync(&sides, "1")?;
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
            sync(&sides, "2")?;
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

/// A kubelet looks after files of a Secret once a minute, and at once when the pod changes: the operator changes edges'
/// pods, and nobody the connectors'.
fn sync(sides: &[&Cluster], value: &str) -> Result<()> {
    thread::sleep(Duration::from_secs(2));
    for cluster in sides {
        let pods = "annotate pod -n fabedge -l fabedge.io/app=fabedge-connector --overwrite test";
        cluster.kubectl(&format!("{pods}={value}"))?;
    }
    Ok(())
}
