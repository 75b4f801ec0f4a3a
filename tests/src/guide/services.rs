//! What kube-proxy would do on cloud nodes: addresses of Services lead to the pods behind them, and ports of NodePorts
//! too. There is no kube-proxy among Debian's programs.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::io::{BufRead, BufReader};
use std::process::{Child, Stdio};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result};
use serde_json::Value;

use super::cluster::Cluster;

/// How often a cluster is asked again that did not answer, and after which time.
const TRIES: usize = 10;
const PAUSE: Duration = Duration::from_secs(1);

/// Follows a cluster's Services until it is dropped.
#[derive(Debug)]
pub struct Proxy {
    watch: Child,
}

impl Proxy {
    /// Begins.
    ///
    /// # Errors
    /// When kubectl cannot be started.
    pub fn start(cluster: &Cluster) -> Result<Self> {
        let program = cluster.sheet.tools.join("kubectl");
        let mut watch = cluster
            .prepared(&program.to_string_lossy())
            .args(["get", "endpoints", "--all-namespaces", "--watch", "--output=name"])
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .context("starting kubectl")?;
        let output = watch.stdout.take().context("kubectl without output")?;
        let cluster = cluster.clone();
        thread::spawn(move || {
            let mut serving = BTreeMap::new();
            for _ in BufReader::new(output).lines().map_while(Result::ok) {
                // What did not work may work the next time, and nobody else says when.
                for _ in 0..TRIES {
                    let Err(error) = serve(&cluster, &mut serving) else {
                        break;
                    };
                    eprintln!("standing in for kube-proxy in {}: {error:#}", cluster.sheet.name);
                    thread::sleep(PAUSE);
                }
            }
        });
        Ok(Self { watch })
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        // It may have ended by itself.
        drop(self.watch.kill());
        drop(self.watch.wait());
    }
}

/// Brings every cloud node up to date.
fn serve(cluster: &Cluster, serving: &mut BTreeMap<String, String>) -> Result<()> {
    let services = cluster.get("service -A")?;
    let endpoints = cluster.get("endpoints -A")?;
    for (name, node) in cluster.sheet.nodes.iter().filter(|(_, node)| node.cloud) {
        let rules = rules(&services, &endpoints, &node.address.to_string());
        if serving.get(name) != Some(&rules) {
            cluster.on(name, &["nft", &rules])?;
            serving.insert(name.clone(), rules);
        }
    }
    Ok(())
}

/// The rules of a node: the first ready pod of each Service has all of its traffic. What comes by a NodePort goes on with
/// the node's address, so that the answer comes back here, as kube-proxy does it.
fn rules(services: &Value, endpoints: &Value, node: &str) -> String {
    let mut lines = String::new();
    for service in services["items"].as_array().into_iter().flatten() {
        let name = ["namespace", "name"].map(|field| &service["metadata"][field]);
        // That of the API server has a rule from the start.
        if name[1] == "kubernetes" {
            continue;
        }
        let same = |other: &&Value| ["namespace", "name"].map(|field| &other["metadata"][field]) == name;
        let Some(found) = endpoints["items"]
            .as_array()
            .and_then(|all| all.iter().find(same))
        else {
            continue;
        };
        for (port, subset) in service["spec"]["ports"]
            .as_array()
            .into_iter()
            .flatten()
            .zip(std::iter::repeat(&found["subsets"][0]))
        {
            let behind = subset["ports"]
                .as_array()
                .and_then(|ports| ports.iter().find(|behind| behind["name"] == port["name"]));
            let target = (
                subset["addresses"][0]["ip"].as_str(),
                behind.map(|behind| &behind["port"]),
            );
            let (Some(pod), Some(target)) = target else {
                continue;
            };
            let protocol = port["protocol"].as_str().unwrap_or("TCP").to_lowercase();
            if let Some(address) = service["spec"]["clusterIP"]
                .as_str()
                .filter(|address| *address != "None")
            {
                let asked = &port["port"];
                // A String takes every line.
                writeln!(
                    lines,
                    "ip daddr {address} {protocol} dport {asked} dnat to {pod}:{target}"
                )
                .unwrap_or_default();
            }
            if let Some(asked) = port["nodePort"].as_u64() {
                writeln!(
                    lines,
                    "ip daddr {node} {protocol} dport {asked} meta mark set meta mark | {MARK} dnat to {pod}:{target}"
                )
                .unwrap_or_default();
            }
        }
    }
    format!(
        "table ip proxied\ndelete table ip proxied\ntable ip proxied {{
chain services {{
{lines}}}
chain prerouting {{ type nat hook prerouting priority dstnat; jump services; }}
chain output {{ type nat hook output priority -100; jump services; }}
chain postrouting {{ type nat hook postrouting priority srcnat; meta mark & {MARK} == {MARK} masquerade; }}
}}
"
    )
}

/// kube-proxy's.
const MARK: &str = "0x4000";

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_service_leads_to_its_first_ready_pod() {
        let of = |name: &str| json!({"namespace": "fabedge", "name": name});
        let services = json!({"items": [
            {"metadata": of("kubernetes"), "spec": {"clusterIP": "10.96.0.1", "ports": [{"port": 443}]}},
            {"metadata": of("fabedge-operator"), "spec": {"clusterIP": "10.96.3.7", "ports": [
                {"name": "api", "protocol": "TCP", "port": 3030, "nodePort": 30303},
            ]}},
            {"metadata": of("nobody"), "spec": {"clusterIP": "10.96.3.8", "ports": [{"port": 80}]}},
        ]});
        let endpoints = |ready: &str| {
            json!({"items": [
                {"metadata": of("fabedge-operator"), "subsets": [{
                    ready: [{"ip": "10.233.65.4"}],
                    "ports": [{"name": "api", "port": 3031}],
                }]},
                {"metadata": of("nobody")},
            ]})
        };
        let said = rules(&services, &endpoints("addresses"), "10.20.8.28");
        let wanted = "chain services {
ip daddr 10.96.3.7 tcp dport 3030 dnat to 10.233.65.4:3031
ip daddr 10.20.8.28 tcp dport 30303 meta mark set meta mark | 0x4000 dnat to 10.233.65.4:3031
}
";
        assert!(said.contains(wanted), "{said}");
        let said = rules(&services, &endpoints("notReadyAddresses"), "10.20.8.28");
        assert!(said.contains("chain services {\n}\n"), "{said}");
    }
}
