//! What `helm uninstall` leaves: the custom resources with their definitions, and nothing on any node, so that another CNI
//! can have the edges.

use anyhow::{Context, Result, ensure};

use super::cluster::{Cluster, ENDING};
use super::steps::{CONVERGENCE, flannel_on_edges};
use super::{Guide, names, unless};
use crate::suite::judge;
use crate::table::Outcome;

/// Prints what is ours on a node, a line each.
pub(super) const OURS: &str = "
ip rule | grep -E '^(219|220|221):'
for table in 219 220 221; do ip route show table $table 2>/dev/null; ip -6 route show table $table 2>/dev/null; done
ip -o link | grep -oE 'fabedge0|br-fabedge|ipsec0'
nft list tables | grep fabedge
iptables-save | grep -i fabedge
for path in /sys/fs/bpf/fabedge /etc/cni/net.d/fabedge.conflist /run/fabedge/* /var/lib/fabedge/*; do
  [ ! -e $path ] && [ ! -L $path ] || echo $path
done
bpftool link list 2>/dev/null | grep -i fabedge
true";

impl Guide {
    pub(super) fn nothing_is_left(&mut self) -> Result<()> {
        let title = "only the custom resources stay in the cluster";
        self.row(title, |guide| {
            let took = guide.cluster.wait(title, ENDING, |cluster| {
                let kinds = "deployment,daemonset,pod,podtemplate,configmap,secret,serviceaccount,service,role,rolebinding,lease,job";
                let left: Vec<String> = names(&cluster.get(&format!("{kinds} -n fabedge"))?)
                    .into_iter()
                    .chain(names(&cluster.get("clusterrole,clusterrolebinding")?))
                    .filter(|name| name.contains("fabedge") || name.contains("connector"))
                    .collect();
                ensure!(left.is_empty(), "{}", left.join(", "));
                Ok(true)
            })?;
            let definitions = names(&guide.cluster.get("crd")?);
            let mut problems = Vec::new();
            for name in ["communities.fabedge.io", "clusters.fabedge.io"] {
                if !definitions.iter().any(|found| found == name) {
                    problems.push(format!("{name} is gone"));
                }
            }
            let communities = names(&guide.cluster.get("community")?);
            if communities != ["clusters", "connectors"] {
                problems.push(format!("Communities: {}", communities.join(", ")));
            }
            Ok(unless(&problems, format!("{:.1} s", took.as_secs_f64())))
        });
        self.row("nodes have nothing of ours", |guide| {
            let mut problems = Vec::new();
            for node in guide.cluster.sheet.nodes.keys() {
                let left = guide.cluster.on(node, &["sh", "-c", OURS])?;
                if !left.trim().is_empty() {
                    problems.push(format!("{node}: {}", left.trim().replace('\n', ", ")));
                }
            }
            Ok(unless(
                &problems,
                "no rule, route, link, table, conflist, pin, though pods run on",
            ))
        });
        let title = "two edges reach nothing of each other any more";
        self.row(title, Self::edges_are_apart);
        Ok(())
    }

    /// A pod that is made anew has a network, which its node reaches.
    pub(super) fn edges_are_given_back(&mut self) -> Result<Outcome> {
        let title = "Flannel's pods are on the edges again";
        let came = self.cluster.wait(title, ENDING, |cluster| {
            let edges = flannel_on_edges(cluster)?;
            ensure!(edges.len() == 2, "on {}", edges.join(", "));
            Ok(true)
        })?;
        let traffic = self.traffic.as_mut().context("no pods probe yet")?;
        for edge in ["edge1", "edge2"] {
            let line = format!("delete pod --grace-period=1 probe-{edge}");
            self.cluster.kubectl(&line)?;
            traffic.renew(&self.cluster, edge)?;
            let address = traffic.pod(edge)?.address.to_string();
            let ping = ["ping", "-c", "1", "-W", "2", &address];
            let answer = |cluster: &Cluster| cluster.on(edge, &ping).map(|_| true);
            self.cluster.wait("an answer", CONVERGENCE, answer)?;
        }
        Ok(judge(
            true,
            format!("{:.1} s; a new pod answers its node on each", came.as_secs_f64()),
        ))
    }
}
