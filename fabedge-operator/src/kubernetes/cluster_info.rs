//! `cluster-info`: what somebody who fills in the chart's values needs to know of a cluster.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::Duration;

use k8s_openapi::api::core::v1::{ConfigMap, Service};
use kube::api::ListParams;
use kube::{Api, Client, Config, ResourceExt};

use super::discover::{KUBE_SYSTEM, look};
use crate::discovery::evidence::{self, Evidence, agreed};
use crate::discovery::{Seen, Words, documents, sources};
use crate::reporter::chain;

/// What is printed where nothing was found.
const UNKNOWN: &str = "unknown";

/// An API that does not answer is not there.
const PATIENCE: Duration = Duration::from_secs(10);

/// Files larger than this hold no flags.
const MOST_BYTES: u64 = 1 << 20;

/// ConfigMaps of the DNS cache that kubespray and Kubernetes' own add-on run on every node.
const NODE_CACHES: [&str; 2] = ["nodelocaldns", "node-local-dns"];

/// Services of the cluster's DNS: nearly everybody's, and kubespray's.
const DNS_SERVICES: [&str; 2] = ["kube-dns", "coredns"];

/// Units of K3s, by its installer and by packages.
const K3S_UNITS: [&str; 3] = [
    "etc/systemd/system/k3s.service",
    "usr/lib/systemd/system/k3s.service",
    "lib/systemd/system/k3s.service",
];
const K3S_CONFIG: &str = "etc/rancher/k3s/config.yaml";

/// Prints the facts; returns what could not be found, and why.
///
/// # Errors
/// When nothing can be printed.
pub async fn print(root: &Path, out: &mut impl Write) -> std::io::Result<Vec<String>> {
    writeln!(out, "This may take some time. Please wait.\n")?;
    out.flush()?;
    let mut problems = Vec::new();
    let files = files(root);
    let api = match ask().await {
        Ok(answers) => answers,
        Err(error) => {
            problems.push(error);
            Answers::default()
        }
    };
    let read = |seen: &[&Seen]| {
        seen.iter()
            .flat_map(|seen| seen.unread.clone())
            .collect::<Vec<_>>()
    };
    problems.extend(read(&[&files.flags, &files.k3s, &api.seen]));

    let all = [&files.flags, &files.k3s, &api.seen];
    let pods = first_told("cluster-cidr", all.map(|seen| seen.pods.as_slice()));
    let services = first_told(
        "service-cluster-ip-range",
        all.map(|seen| seen.services.as_slice()),
    );
    let dns = api.dns.ok_or_else(|| {
        format!(
            "clusterDNS: not found: no `bind` of a ConfigMap {} and no Service {} in {KUBE_SYSTEM}",
            NODE_CACHES.join(" or "),
            DNS_SERVICES.join(" or ")
        )
    });
    let domain = api.domain.ok_or_else(|| {
        format!("clusterDomain: not found: no ConfigMap kubelet-config, coredns or kubeadm-config in {KUBE_SYSTEM}")
    });
    let mut missing = false;
    for (key, value) in [
        ("clusterDNS", dns),
        ("clusterDomain", domain),
        ("cluster-cidr", pods),
        ("service-cluster-ip-range", services),
    ] {
        let value = value.unwrap_or_else(|problem| {
            missing = true;
            problems.push(problem);
            UNKNOWN.to_owned()
        });
        writeln!(out, "{key:<25}: {value}")?;
    }
    // What one source hides another has told.
    if !missing {
        problems.clear();
    }
    Ok(problems)
}

/// What the first kind of source says that says anything.
fn first_told(key: &str, kinds: [&[Evidence]; 3]) -> Result<String, String> {
    let Some(told) = kinds.into_iter().find(|told| !told.is_empty()) else {
        return Err(format!(
            "{key}: not found: no flag of the control plane under /etc/kubernetes, no k3s.service, no pod \
             kube-controller-manager or kube-apiserver, no ConfigMap {} in {KUBE_SYSTEM}",
            sources::KUBEADM
        ));
    };
    match agreed(told) {
        Ok(evidence) => Ok(evidence.map_or_else(String::new, |found| evidence::list(&found.prefixes))),
        Err(conflict) => Err(format!("{key}: {conflict}")),
    }
}

/// What files of a node of the control plane say.
#[derive(Debug, Default)]
struct Files {
    flags: Seen,
    k3s: Seen,
}

fn files(root: &Path) -> Files {
    let mut found = Files::default();
    let mut paths = Vec::new();
    control_plane(&root.join("etc/kubernetes"), &mut paths);
    paths.sort();
    for path in paths {
        if let Some(words) = words(&path) {
            found.flags.words(&words, &path.display().to_string(), true, true);
        }
    }
    let config = words(&root.join(K3S_CONFIG)).unwrap_or_default();
    for unit in K3S_UNITS.map(|unit| root.join(unit)) {
        // One folder may be a link to another.
        if let Some(words) = words(&unit).filter(|words| words.runs("k3s", "server"))
            && found.k3s.pods.is_empty()
        {
            found.k3s.k3s(&words, &config, &unit.display().to_string());
        }
    }
    found
}

/// Files that may hold flags of the API server or the controller manager: manifests, environment files. Keys and
/// certificates are not looked at.
fn control_plane(folder: &Path, found: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
        let (path, name) = (entry.path(), entry.file_name());
        let name = name.to_string_lossy();
        let Ok(kind) = path.metadata() else { continue };
        if entry.path().is_symlink() && kind.is_dir() {
            continue;
        }
        if kind.is_dir() && !["pki", "ssl"].contains(&&*name) {
            control_plane(&path, found);
        } else if kind.is_file()
            && kind.len() <= MOST_BYTES
            && ["apiserver", "controller-manager"]
                .iter()
                .any(|program| name.contains(program))
        {
            found.push(path);
        }
    }
}

fn words(path: &Path) -> Option<Words> {
    std::fs::read_to_string(path)
        .ok()
        .map(|text| Words::of_text(&text))
}

/// What the API says.
#[derive(Debug, Default)]
struct Answers {
    seen: Seen,
    dns: Option<String>,
    domain: Option<String>,
}

async fn ask() -> Result<Answers, String> {
    let said = |error: &dyn std::error::Error| format!("asking the Kubernetes API: {}", chain(error));
    let mut config = Config::infer().await.map_err(|error| said(&error))?;
    config.connect_timeout = Some(PATIENCE);
    config.read_timeout = Some(PATIENCE);
    let client = Client::try_from(config).map_err(|error| said(&error))?;
    let seen = look(&client, None).await.map_err(|error| said(&error))?;
    let maps: Api<ConfigMap> = Api::namespaced(client.clone(), KUBE_SYSTEM);
    let maps = maps
        .list(&ListParams::default())
        .await
        .map_err(|error| said(&error))?
        .items;
    let services: Api<Service> = Api::namespaced(client, KUBE_SYSTEM);
    let services = services
        .list(&ListParams::default())
        .await
        .map_err(|error| said(&error))?
        .items;
    Ok(Answers {
        seen,
        dns: dns(&maps, &services),
        domain: domain(&maps),
    })
}

/// The address that pods are told to ask.
fn dns(maps: &[ConfigMap], services: &[Service]) -> Option<String> {
    let cache = NODE_CACHES
        .iter()
        .find_map(|name| documents::corefile_bind(data(maps, name, "Corefile")?));
    let address = || {
        DNS_SERVICES.iter().find_map(|name| {
            let service = services.iter().find(|service| service.name_any() == *name)?;
            service
                .spec
                .as_ref()?
                .cluster_ip
                .as_deref()
                .filter(|ip| *ip != "None")
        })
    };
    cache.or_else(address).map(str::to_owned)
}

/// The domain of the cluster's Services.
fn domain(maps: &[ConfigMap]) -> Option<String> {
    let kubelets = maps
        .iter()
        .filter(|map| map.name_any().starts_with("kubelet-config"));
    let kubelet = kubelets
        .filter_map(|map| {
            documents::kubelet_domain(map.data.as_ref()?.get("kubelet")?)
                .ok()
                .flatten()
        })
        .next();
    let coredns = || documents::corefile_domain(data(maps, "coredns", "Corefile")?).map(str::to_owned);
    let kubeadm = || {
        documents::kubeadm(data(maps, sources::KUBEADM, "ClusterConfiguration")?)
            .ok()?
            .domain
    };
    kubelet.or_else(coredns).or_else(kubeadm)
}

fn data<'a>(maps: &'a [ConfigMap], name: &str, key: &str) -> Option<&'a str> {
    let map = maps.iter().find(|map| map.name_any() == name)?;
    map.data.as_ref()?.get(key).map(String::as_str)
}
