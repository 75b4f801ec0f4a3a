//! Documents in which installers and network plugins write down what they were told.

use ipnet::IpNet;
use serde::Deserialize;
use serde::de::DeserializeOwned;

/// What kubeadm was told: `ClusterConfiguration` of its ConfigMap.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Kubeadm {
    /// `networking.podSubnet`.
    pub pods: Vec<IpNet>,
    /// `networking.serviceSubnet`.
    pub services: Vec<IpNet>,
    /// `networking.dnsDomain`.
    pub domain: Option<String>,
}

/// Reads kubeadm's `ClusterConfiguration`.
///
/// # Errors
/// What cannot be read.
pub fn kubeadm(text: &str) -> Result<Kubeadm, String> {
    #[derive(Default, Deserialize)]
    #[serde(default)]
    struct Document {
        networking: Networking,
    }
    #[derive(Default, Deserialize)]
    #[serde(default, rename_all = "camelCase")]
    struct Networking {
        pod_subnet: Option<String>,
        service_subnet: Option<String>,
        dns_domain: Option<String>,
    }
    let Networking {
        pod_subnet,
        service_subnet,
        dns_domain,
    } = yaml::<Document>(text)?.networking;
    Ok(Kubeadm {
        pods: prefixes(pod_subnet.as_deref().unwrap_or_default())?,
        services: prefixes(service_subnet.as_deref().unwrap_or_default())?,
        domain: dns_domain.filter(|domain| !domain.is_empty()),
    })
}

/// `clusterCIDR` of kube-proxy's configuration.
///
/// # Errors
/// What cannot be read.
pub fn kube_proxy(text: &str) -> Result<Vec<IpNet>, String> {
    #[derive(Deserialize)]
    struct Document {
        #[serde(default, rename = "clusterCIDR")]
        cluster_cidr: Option<String>,
    }
    prefixes(&yaml::<Document>(text)?.cluster_cidr.unwrap_or_default())
}

/// The networks of Flannel's `net-conf.json`.
///
/// # Errors
/// What cannot be read.
pub fn flannel(text: &str) -> Result<Vec<IpNet>, String> {
    #[derive(Deserialize)]
    #[serde(rename_all = "PascalCase")]
    struct Document {
        #[serde(default)]
        network: Option<String>,
        #[serde(default, rename = "IPv6Network")]
        ipv6_network: Option<String>,
        #[serde(default, rename = "EnableIPv6")]
        enable_ipv6: bool,
    }
    let document: Document = serde_json::from_str(text).map_err(|e| e.to_string())?;
    let mut found = prefixes(&document.network.unwrap_or_default())?;
    if document.enable_ipv6 {
        found.extend(prefixes(&document.ipv6_network.unwrap_or_default())?);
    }
    Ok(found)
}

/// `clusterDomain` of a kubelet's configuration.
///
/// # Errors
/// What cannot be read.
pub fn kubelet_domain(text: &str) -> Result<Option<String>, String> {
    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct Document {
        #[serde(default)]
        cluster_domain: Option<String>,
    }
    let domain = yaml::<Document>(text)?.cluster_domain;
    Ok(domain.filter(|domain| !domain.is_empty()))
}

/// The domain that CoreDNS serves from the API: what follows `kubernetes` in a Corefile.
pub fn corefile_domain(text: &str) -> Option<&str> {
    let zones = directives(text, "kubernetes");
    zones
        .flat_map(|rest| rest.split_whitespace())
        .take_while(|zone| *zone != "{")
        .map(|zone| zone.trim_end_matches('.'))
        .find(|zone| !zone.ends_with(".arpa"))
}

/// The address at which a DNS cache of the nodes listens: its Corefile's first `bind`.
pub fn corefile_bind(text: &str) -> Option<&str> {
    directives(text, "bind").find_map(|rest| rest.split_whitespace().next())
}

/// What follows a directive, line by line.
fn directives<'a>(text: &'a str, name: &'a str) -> impl Iterator<Item = &'a str> {
    text.lines().filter_map(move |line| {
        let rest = line.trim_start().strip_prefix(name)?;
        rest.starts_with([' ', '\t']).then_some(rest)
    })
}

/// Prefixes with commas between, as the flags and fields of Kubernetes have them: host bits do not count.
///
/// # Errors
/// The one that is none.
pub fn prefixes(text: &str) -> Result<Vec<IpNet>, String> {
    text.split(',')
        .map(str::trim)
        .filter(|item| !item.is_empty())
        .map(|item| match item.parse::<IpNet>() {
            Ok(net) => Ok(net.trunc()),
            Err(_) => Err(format!("{item:?} is not a prefix")),
        })
        .collect()
}

fn yaml<T: DeserializeOwned>(text: &str) -> Result<T, String> {
    serde_saphyr::from_str(text).map_err(|e| e.without_snippet().to_string())
}
