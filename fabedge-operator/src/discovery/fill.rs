//! Settings that do not say everything, and what the cluster shows -> settings that do.

use ipnet::IpNet;

use super::evidence::{self, Evidence, agreed};
use crate::api::SettingsSpec;
use crate::snapshot::CniType;

/// What the cluster shows.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Seen {
    /// Network plugins, and by what they were recognised.
    pub cni: Vec<(CniType, String)>,
    /// By what Flannel was recognised on a node, where it may run in another program.
    pub flannel_nodes: Option<String>,
    /// About the pods' prefixes.
    pub pods: Vec<Evidence>,
    /// About the services' prefixes.
    pub services: Vec<Evidence>,
    /// Calico's IP pools in use.
    pub pools: Vec<IpNet>,
    /// Whether nodes have pod prefixes of their own.
    pub node_prefixes: bool,
    /// What could not be read, and why.
    pub unread: Vec<String>,
}

/// Settings that say everything.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Filled {
    /// The settings.
    pub spec: SettingsSpec,
    /// What was found where, for the log.
    pub found: Vec<String>,
    /// Whether the pods' prefixes are those of Calico's IP pools, also when these change.
    pub follows_pools: bool,
}

/// Whether there is nothing to ask.
pub fn complete(given: &SettingsSpec) -> bool {
    given.cni_type.is_some() && !given.cluster_cidr.is_empty() && !given.service_cluster_ip_range.is_empty()
}

/// Fills in what the settings do not say; what they say stands, whatever the cluster shows.
///
/// # Errors
/// What cannot be told, or is told in several ways; each names the chart's value that decides it.
pub fn fill(given: &SettingsSpec, seen: &Seen) -> Result<Filled, Vec<String>> {
    let mut filled = Filled {
        spec: given.clone(),
        found: Vec::new(),
        follows_pools: false,
    };
    let mut refusals = Vec::new();
    match given
        .cni_type
        .as_deref()
        .map_or_else(|| cni(seen), |given| Ok((given, None)))
    {
        Ok((name, by)) => {
            filled
                .found
                .extend(by.map(|by| format!("the network plugin is {name}, by {by}")));
            filled.spec.cni_type = Some(name.to_owned());
            if given.cluster_cidr.is_empty() {
                match pods(name == CALICO, seen) {
                    Ok((prefixes, said)) => {
                        filled.found.push(said);
                        filled.spec.cluster_cidr = prefixes.iter().map(ToString::to_string).collect();
                        filled.follows_pools = name == CALICO;
                    }
                    Err(why) => refusals.push(why),
                }
            }
        }
        Err(why) => refusals.push(why),
    }
    if given.service_cluster_ip_range.is_empty() {
        match told(
            "service",
            "cluster.serviceClusterIPRange",
            "10.96.0.0/12",
            &seen.services,
            seen,
        ) {
            Ok(evidence) => {
                filled
                    .found
                    .push(format!("the services' prefixes are {evidence}"));
                let prefixes = evidence.prefixes.iter().map(ToString::to_string);
                filled.spec.service_cluster_ip_range = prefixes.collect();
            }
            Err(why) => refusals.push(why),
        }
    }
    if refusals.is_empty() {
        Ok(filled)
    } else {
        Err(refusals)
    }
}

const CALICO: &str = "calico";
const FLANNEL: &str = "flannel";

/// The network plugin, and by what it was recognised.
fn cni(seen: &Seen) -> Result<(&'static str, Option<&str>), String> {
    let by = |cni: CniType| {
        let mut all = seen.cni.iter().filter(|(of, _)| *of == cni);
        all.next().map(|(_, by)| by.as_str())
    };
    match (by(CniType::Flannel), by(CniType::Calico)) {
        (Some(by), None) => Ok((FLANNEL, Some(by))),
        (None, Some(by)) => Ok((CALICO, Some(by))),
        (Some(flannel), Some(calico)) => Err(format!(
            "both Flannel ({flannel}) and Calico ({calico}) are here: set cluster.cniType to the one that gives pods \
             their addresses"
        )),
        // What an earlier plugin left on nodes does not count against one that runs.
        (None, None) => match &seen.flannel_nodes {
            Some(by) => Ok((FLANNEL, Some(by))),
            None => Err(format!(
                "the network plugin is not recognised: no DaemonSet or pod kube-flannel* or calico-node*, no annotation of \
             Flannel's on a node{}: install it, or set cluster.cniType to flannel or calico",
                unread(seen)
            )),
        },
    }
}

/// The pods' prefixes; none with Flannel when the nodes' own say it all.
fn pods(calico: bool, seen: &Seen) -> Result<(Vec<IpNet>, String), String> {
    if calico && !seen.pools.is_empty() {
        let pools = evidence::list(&seen.pools);
        return Ok((
            seen.pools.clone(),
            format!("the pods' prefixes are {pools} according to Calico's IPPools"),
        ));
    }
    if !calico && seen.pods.is_empty() && seen.node_prefixes {
        let said =
            "the pods' prefixes are those in spec.podCIDRs of the nodes: nothing names the whole range"
                .to_owned();
        return Ok((Vec::new(), said));
    }
    let evidence = told("pod", "cluster.clusterCIDR", "10.244.0.0/16", &seen.pods, seen)?;
    Ok((
        evidence.prefixes.clone(),
        format!("the pods' prefixes are {evidence}"),
    ))
}

fn told<'a>(
    what: &str,
    value: &str,
    example: &str,
    all: &'a [Evidence],
    seen: &Seen,
) -> Result<&'a Evidence, String> {
    match agreed(all) {
        Ok(Some(evidence)) => Ok(evidence),
        Ok(None) => Err(format!(
            "the cluster's {what} prefixes are not to be found: neither kubeadm's configuration nor the flags of the \
             control plane's pods nor the network plugin tell them{}: set {value} ({example}, say)",
            unread(seen)
        )),
        Err(conflict) => Err(format!(
            "the cluster's {what} prefixes are {conflict}: set {value} to what is right"
        )),
    }
}

/// What may be the reason why nothing was found.
fn unread(seen: &Seen) -> String {
    match seen.unread.as_slice() {
        [] => String::new(),
        list => format!(" ({})", list.join("; ")),
    }
}
