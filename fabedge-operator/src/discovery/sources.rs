//! What each kind of source says, as evidence.

use std::collections::BTreeMap;

use ipnet::IpNet;
use k8s_openapi::api::core::v1::{Node, Pod};

use super::documents::prefixes;
use super::{Evidence, Seen, Words, documents};
use crate::snapshot::CniType;

/// Flag of the pods' prefixes.
pub const CLUSTER_CIDR: &str = "--cluster-cidr";
/// Flag of the services' prefixes.
pub const SERVICE_RANGE: &str = "--service-cluster-ip-range";
/// The same of K3s.
const K3S_SERVICE_CIDR: &str = "--service-cidr";

/// What K3s has when it is not told.
const K3S_PODS: &str = "10.42.0.0/16";
const K3S_SERVICES: &str = "10.43.0.0/16";

/// Annotation of K3s: its arguments, a list in JSON.
const K3S_ARGS: &str = "k3s.io/node-args";

/// Annotation of Flannel on the nodes that it serves, also where it runs in another program.
const FLANNEL_ANNOTATION: &str = "flannel.alpha.coreos.com/kube-subnet-manager";

/// Which pods' flags say what.
const PROGRAMS: [(&str, bool, bool); 3] = [
    ("kube-controller-manager", true, true),
    ("kube-apiserver", false, true),
    ("kube-proxy", true, false),
];

/// Names by which network plugins are known.
const PLUGINS: [(&str, CniType); 2] = [
    ("kube-flannel", CniType::Flannel),
    ("calico-node", CniType::Calico),
];

impl Seen {
    /// A pod of kube-system: flags of the control plane, or a network plugin.
    pub fn pod(&mut self, pod: &Pod) {
        let name = pod.metadata.name.as_deref().unwrap_or_default();
        let source = format!("Pod kube-system/{name}");
        self.plugin(name, || source.clone());
        let Some((_, pods, services)) = PROGRAMS.iter().find(|(program, ..)| is_named(name, program)) else {
            return;
        };
        let containers = pod.spec.iter().flat_map(|spec| &spec.containers);
        let args = containers.flat_map(|container| container.command.iter().chain(&container.args).flatten());
        self.words(
            &Words::of_args(args.map(String::as_str)),
            &source,
            *pods,
            *services,
        );
    }

    /// The flags of the control plane in a text or a command line.
    pub fn words(&mut self, words: &Words, source: &str, pods: bool, services: bool) {
        if let Some(value) = words.flag(CLUSTER_CIDR).filter(|_| pods) {
            self.told_pods(&format!("{CLUSTER_CIDR} of {source}"), prefixes(value));
        }
        if let Some(value) = words.flag(SERVICE_RANGE).filter(|_| services) {
            self.told_services(&format!("{SERVICE_RANGE} of {source}"), prefixes(value));
        }
    }

    /// The flags of a K3s server, and what it has without.
    pub fn k3s(&mut self, words: &Words, config: &Words, source: &str) {
        let value = |flag: &str| {
            let key = format!("{}:", flag.trim_start_matches('-'));
            words.flag(flag).or_else(|| config.flag(&key))
        };
        let said = |flag, default: &'static str| match value(flag) {
            Some(value) => (format!("{flag} of {source}"), prefixes(value)),
            None => (
                format!("K3s's default, for {source} does not say"),
                prefixes(default),
            ),
        };
        let (by, value) = said(CLUSTER_CIDR, K3S_PODS);
        self.told_pods(&by, value);
        let (by, value) = said(K3S_SERVICE_CIDR, K3S_SERVICES);
        self.told_services(&by, value);
    }

    /// A node: its own prefixes, Flannel's annotation, K3s's arguments.
    pub fn node(&mut self, node: &Node) {
        let name = node.metadata.name.as_deref().unwrap_or_default();
        let spec = node.spec.as_ref();
        self.node_prefixes |= spec.is_some_and(|spec| spec.pod_cidr.is_some() || spec.pod_cidrs.is_some());
        let annotations = node.metadata.annotations.as_ref();
        let annotation = |key: &str| annotations.and_then(|all| all.get(key));
        if annotation(FLANNEL_ANNOTATION).is_some() {
            self.flannel_nodes
                .get_or_insert_with(|| format!("the annotation {FLANNEL_ANNOTATION} of Node {name}"));
        }
        let args = annotation(K3S_ARGS).map(|text| serde_json::from_str::<Vec<String>>(text));
        if let Some(Ok(args)) = args
            && args.first().is_some_and(|first| first == "server")
        {
            let words = Words::of_args(args.iter().map(String::as_str));
            self.k3s(
                &words,
                &Words::default(),
                &format!("the annotation {K3S_ARGS} of Node {name}"),
            );
        }
    }

    /// A DaemonSet: a network plugin.
    pub fn daemon_set(&mut self, namespace: &str, name: &str) {
        self.plugin(name, || format!("DaemonSet {namespace}/{name}"));
    }

    fn plugin(&mut self, name: &str, source: impl Fn() -> String) {
        let known = PLUGINS.iter().filter(|(plugin, _)| name.starts_with(plugin));
        self.cni.extend(known.map(|(_, cni)| (*cni, source())));
    }

    /// Data of a ConfigMap that says something about the cluster.
    pub fn config_map(&mut self, namespace: &str, name: &str, data: &BTreeMap<String, String>) {
        let source = format!("ConfigMap {namespace}/{name}");
        let text = |key: &str| data.get(key).map(String::as_str);
        match name {
            KUBEADM => {
                let told = text("ClusterConfiguration").map(documents::kubeadm).transpose();
                let told = told.map(Option::unwrap_or_default);
                let part = |of: fn(&documents::Kubeadm) -> &Vec<IpNet>| {
                    told.as_ref().map(|told| of(told).clone()).map_err(Clone::clone)
                };
                self.told_pods(&source, part(|told| &told.pods));
                self.told_services(&source, part(|told| &told.services));
            }
            KUBE_PROXY => {
                let told = text("config.conf").map_or(Ok(Vec::new()), documents::kube_proxy);
                self.told_pods(&source, told);
            }
            FLANNEL => {
                let told = text("net-conf.json").map_or(Ok(Vec::new()), documents::flannel);
                self.told_pods(&source, told);
            }
            _ => {}
        }
    }

    /// An object of ours to read, that could not be.
    pub fn failed(&mut self, source: &str, why: &str) {
        let said = format!("{source}: {why}");
        if !self.unread.contains(&said) {
            self.unread.push(said);
        }
    }

    fn told_pods(&mut self, source: &str, prefixes: Result<Vec<IpNet>, String>) {
        match prefixes {
            Ok(prefixes) => add(&mut self.pods, source, prefixes),
            Err(why) => self.failed(source, &why),
        }
    }

    fn told_services(&mut self, source: &str, prefixes: Result<Vec<IpNet>, String>) {
        match prefixes {
            Ok(prefixes) => add(&mut self.services, source, prefixes),
            Err(why) => self.failed(source, &why),
        }
    }
}

/// ConfigMap of kubeadm.
pub const KUBEADM: &str = "kubeadm-config";
/// ConfigMap of kube-proxy.
pub const KUBE_PROXY: &str = "kube-proxy";
/// ConfigMap of Flannel.
pub const FLANNEL: &str = "kube-flannel-cfg";

fn add(to: &mut Vec<Evidence>, source: &str, prefixes: Vec<IpNet>) {
    if !prefixes.is_empty() {
        let source = source.to_owned();
        to.push(Evidence { source, prefixes });
    }
}

/// Whether a pod is one of a program: `kube-proxy-x7k2p`, `kube-apiserver-master1`.
fn is_named(pod: &str, program: &str) -> bool {
    pod.strip_prefix(program)
        .is_some_and(|rest| rest.is_empty() || rest.starts_with('-'))
}
