//! Pods that probe each other, and what passes on the way between them.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use super::cluster::{Cluster, ENDING};
use crate::capture::Capture;
use crate::place::Place;
use crate::probe::reach::{self, Reach};
use crate::probe::responder::{PORT, Responder};
use crate::probe::tcp;

/// How long an answer may take.
pub const LONG: Duration = Duration::from_secs(2);

/// How long one that must not come is waited for.
pub const SHORT: Duration = Duration::from_millis(300);

/// How long pods may take to start.
const START: Duration = ENDING;

/// The label of the pods; its value is their name.
pub const LABEL: &str = "probe";

/// A pod that takes part.
#[derive(Debug)]
pub struct Pod {
    /// Its network.
    pub place: Place,
    /// Its address.
    pub address: Ipv4Addr,
    _responder: Responder,
}

/// The pods, by node, and the capture between their sites. Nodes of a member are those with the cluster's name in front.
#[derive(Debug)]
pub struct Traffic {
    pods: BTreeMap<String, Pod>,
    /// What passes between sites.
    pub capture: Capture,
}

impl Traffic {
    /// Starts a pod on each node of the first cluster, each with somebody in it who answers.
    ///
    /// # Errors
    /// When one does not start.
    pub fn start(cluster: &Cluster) -> Result<Self> {
        let mut traffic = Self {
            pods: BTreeMap::new(),
            capture: Capture::start(&cluster.network("wan")?)?,
        };
        traffic.admit(cluster, "")?;
        Ok(traffic)
    }

    /// The same for the nodes of a member.
    ///
    /// # Errors
    /// When one does not start.
    pub fn join(&mut self, member: &Cluster) -> Result<()> {
        self.admit(member, &format!("{}.", member.sheet.name))
    }

    fn admit(&mut self, cluster: &Cluster, before: &str) -> Result<()> {
        let nodes = || cluster.sheet.nodes.keys();
        let manifests: Vec<String> = nodes()
            .map(|node| manifest(&name(node), node, &cluster.sheet.image))
            .collect();
        cluster.apply(&manifests.join("---\n"))?;
        for node in nodes() {
            self.pods
                .insert(format!("{before}{node}"), pod(cluster, &name(node))?);
        }
        Ok(())
    }

    /// Looks anew for the pod of a node, which has become another one.
    ///
    /// # Errors
    /// When it does not start.
    pub fn renew(&mut self, cluster: &Cluster, node: &str) -> Result<()> {
        self.pods.remove(node);
        let pod = start_pod(cluster, &name(node), node)?;
        self.pods.insert(node.to_owned(), pod);
        Ok(())
    }

    /// The pod of a node.
    ///
    /// # Errors
    /// When there is none.
    pub fn pod(&self, node: &str) -> Result<&Pod> {
        self.pods
            .get(node)
            .with_context(|| format!("there is no pod on {node}"))
    }

    /// Whether the pod of a node reaches that of another.
    ///
    /// # Errors
    /// When it cannot be tried.
    pub fn reach(&self, from: &str, to: &str, wait: Duration) -> Result<Reach> {
        reach::address(&self.pod(from)?.place, self.pod(to)?.address.into(), wait)
    }

    /// Whether a TCP connection to an address of no pod's comes about.
    ///
    /// # Errors
    /// When it cannot be tried.
    pub fn connects(&self, from: &str, to: IpAddr, port: u16) -> Result<bool> {
        Ok(tcp::connect(&self.pod(from)?.place, SocketAddr::new(to, port), LONG).is_ok())
    }
}

/// Starts a pod on a node and waits until it runs.
///
/// # Errors
/// When it does not.
pub fn start_pod(cluster: &Cluster, name: &str, node: &str) -> Result<Pod> {
    // One that is on its way out takes no change.
    cluster.wait(&format!("the pod {name} is made"), START, |cluster| {
        cluster.apply(&manifest(name, node, &cluster.sheet.image))?;
        let going = &cluster.get(&format!("pod {name}"))?["metadata"]["deletionTimestamp"];
        ensure!(going.is_null(), "the one before is to go since {going}");
        Ok(true)
    })?;
    pod(cluster, name)
}

fn pod(cluster: &Cluster, name: &str) -> Result<Pod> {
    cluster.wait(&format!("the pod {name} runs"), START, |cluster| {
        let going = &cluster.get(&format!("pod {name}"))?["metadata"]["deletionTimestamp"];
        ensure!(going.is_null(), "it is to go since {going}");
        cluster.pod(name).map(|_| true)
    })?;
    let (place, address) = cluster.pod(name)?;
    Ok(Pod {
        _responder: Responder::start(&place, PORT)?,
        place,
        address,
    })
}

/// The pod that probes on a node.
pub fn name(node: &str) -> String {
    format!("probe-{node}")
}

fn manifest(name: &str, node: &str, image: &str) -> String {
    format!(
        "apiVersion: v1
kind: Pod
metadata:
  name: {name}
  labels: {{{LABEL}: {name}}}
spec:
  nodeName: {node}
  automountServiceAccountToken: false
  terminationGracePeriodSeconds: 1
  tolerations: [{{operator: Exists}}]
  containers:
  - name: wait
    image: {image}
    imagePullPolicy: Never
"
    )
}
