//! Which pods there are: the container runtime keeps the result of every CNI ADD in a file (libcni's cache), with
//! the interfaces the plugins made, the pod's hardware address and its addresses.

use std::net::IpAddr;
use std::path::{Path, PathBuf};

use ipnet::IpNet;
use serde::Deserialize;
use tracing::warn;

use crate::desired::datapath::LocalPod;

/// Where runtimes keep results, below the CNI state directory: libcni's default, and the kubelet's of dockershim.
const FOLDERS: [&str; 2] = ["results", "cache/results"];

/// A folder of results that cannot be read.
#[derive(Debug, thiserror::Error)]
#[error("reading the CNI results in {}", path.display())]
pub struct Error {
    path: PathBuf,
    source: std::io::Error,
}

/// The folders whose changes mean that a pod came or went. They appear with the first pod.
pub fn folders(state_dir: &Path) -> Vec<PathBuf> {
    FOLDERS.iter().map(|folder| state_dir.join(folder)).collect()
}

/// Reads all results. A file that is no result is passed over: one malformed file must not hide the other pods.
///
/// # Errors
/// When a folder exists but cannot be read.
pub fn read(state_dir: &Path) -> Result<Vec<LocalPod>, Error> {
    let mut pods = Vec::new();
    for path in folders(state_dir) {
        let failed = |source| Error {
            path: path.clone(),
            source,
        };
        let entries = match std::fs::read_dir(&path) {
            Ok(entries) => entries,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => continue,
            Err(error) => return Err(failed(error)),
        };
        for entry in entries {
            let file = entry.map_err(failed)?.path();
            match std::fs::read(&file) {
                Ok(text) => match parse(&text) {
                    Ok(pod) => pods.extend(pod),
                    Err(error) => warn!(file = %file.display(), %error, "not a CNI result"),
                },
                // A DEL between listing and reading.
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
                Err(error) => warn!(file = %file.display(), %error, "cannot read a CNI result"),
            }
        }
    }
    pods.sort_by(|a, b| a.container.cmp(&b.container));
    Ok(pods)
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Cached {
    kind: String,
    #[serde(default)]
    container_id: String,
    #[serde(default)]
    capability_args: Option<Capabilities>,
    result: CniResult,
}

#[derive(Default, Deserialize)]
struct Capabilities {
    bandwidth: Option<Bandwidth>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Bandwidth {
    #[serde(default)]
    ingress_rate: u64,
    #[serde(default)]
    egress_rate: u64,
}

#[derive(Deserialize)]
struct CniResult {
    #[serde(default)]
    interfaces: Vec<Interface>,
    #[serde(default)]
    ips: Vec<Ip>,
}

#[derive(Deserialize)]
struct Interface {
    name: String,
    #[serde(default)]
    mac: String,
    #[serde(default)]
    sandbox: String,
}

#[derive(Deserialize)]
struct Ip {
    address: IpNet,
    interface: Option<usize>,
}

/// The pod of one result; none where the plugins say nothing about interfaces.
fn parse(text: &[u8]) -> Result<Option<LocalPod>, serde_json::Error> {
    let cached: Cached = serde_json::from_slice(text)?;
    if cached.kind != "cniCacheV1" {
        return Err(serde::de::Error::custom(format!(
            "kind {:?} is not known",
            cached.kind
        )));
    }
    let CniResult { interfaces, ips } = cached.result;
    let Some((position, inside)) = interfaces.iter().enumerate().find(|(_, i)| !i.sandbox.is_empty()) else {
        return Ok(None);
    };
    let Some(mac) = mac(&inside.mac) else {
        return Ok(None);
    };
    let addresses: Vec<IpAddr> = ips
        .iter()
        .filter(|ip| ip.interface.is_none_or(|interface| interface == position))
        .map(|ip| ip.address.addr())
        .collect();
    let limited = |b: &Bandwidth| b.ingress_rate != 0 || b.egress_rate != 0;
    let shaped = cached
        .capability_args
        .and_then(|args| args.bandwidth)
        .is_some_and(|b| limited(&b));
    let interfaces = interfaces
        .iter()
        .filter(|i| i.sandbox.is_empty())
        .map(|i| i.name.clone())
        .collect();
    Ok(Some(LocalPod {
        container: cached.container_id,
        interfaces,
        mac,
        addresses,
        shaped,
    }))
}

fn mac(text: &str) -> Option<[u8; 6]> {
    let mut mac = [0; 6];
    let mut parts = text.split(':');
    for byte in &mut mac {
        *byte = u8::from_str_radix(parts.next()?, 16).ok()?;
    }
    parts.next().is_none().then_some(mac)
}

#[cfg(test)]
mod tests;
