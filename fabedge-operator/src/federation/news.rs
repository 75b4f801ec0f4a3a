//! What a member hears of others: read with care, and taken as far as it is the host's to say. Pure.

use std::collections::BTreeMap;

use serde::Deserialize;

use super::report;
use crate::api::{ClusterSpec, CommunitySpec, Endpoint};
use crate::finding::Finding;
use crate::observe::convert;
use crate::snapshot::{Cluster, ClusterSnapshot};

/// What the host tells of other clusters.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct News {
    /// Communities in which this cluster has a part, and their members.
    pub communities: BTreeMap<String, Vec<String>>,
    /// The endpoints of other clusters.
    pub endpoints: Vec<Endpoint>,
    /// The prefixes of other clusters; a host of FabEdge 0.4 does not tell them here.
    pub cidrs: BTreeMap<String, Vec<String>>,
}

impl News {
    /// Reads the host's answer; `null` is as good as nothing, and fields of other versions are let go.
    ///
    /// # Errors
    /// When it is no such thing.
    pub fn read(text: &str) -> Result<Self, serde_json::Error> {
        #[derive(Default, Deserialize)]
        #[serde(default)]
        struct Body {
            communities: BTreeMap<String, Vec<String>>,
            endpoints: Vec<serde_json::Value>,
            cidrs: BTreeMap<String, Vec<String>>,
        }
        let body: Body = report::read(text.as_bytes())?;
        Ok(Self {
            communities: body.communities,
            endpoints: report::known(body.endpoints)?,
            cidrs: body.cidrs,
        })
    }

    /// Takes from the host what is its to say: the endpoints of other clusters, and the communities that they are in. What
    /// cannot be read is left out alone.
    pub fn merge(&self, own: &str, snapshot: &mut ClusterSnapshot) -> Vec<Finding> {
        let mut findings = Vec::new();
        let mut clusters: BTreeMap<String, _> = BTreeMap::new();
        let endpoints = self.endpoints.iter().filter_map(|endpoint| {
            let (cluster, _) = endpoint.name.split_once('.')?;
            let spec = ClusterSpec {
                endpoints: vec![endpoint.clone()],
                ..ClusterSpec::default()
            };
            Some((cluster, spec))
        });
        let prefixes = self.cidrs.iter().map(|(cluster, nets)| {
            let spec = ClusterSpec {
                cidrs: nets.clone(),
                ..ClusterSpec::default()
            };
            (cluster.as_str(), spec)
        });
        for (cluster, spec) in endpoints.chain(prefixes).filter(|(name, _)| *name != own) {
            match convert::cluster(cluster, &spec) {
                Ok(read) => {
                    let known: &mut Cluster = clusters.entry(cluster.to_owned()).or_default();
                    known.endpoints.extend(read.endpoints);
                    known.cidrs.extend(read.cidrs);
                }
                Err(faults) => findings.extend(faults.into_iter().map(|fault| {
                    let object = format!("Cluster {cluster}");
                    Finding::error(object, fault.field, format!("of the host: {}", fault.message))
                })),
            }
        }
        snapshot.clusters.extend(clusters);
        for (name, members) in &self.communities {
            let spec = CommunitySpec {
                members: members.clone(),
            };
            let name = format!("{name} of the host");
            match convert::community(&spec) {
                Ok(community) => _ = snapshot.communities.insert(name, community),
                Err(faults) => findings.extend(faults.into_iter().map(|fault| {
                    let object = format!("Community {name}");
                    Finding::error(object, fault.field, fault.message)
                })),
            }
        }
        findings
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn what_the_host_tells_of_others_is_taken_as_far_as_it_can_be_read() {
        let connector = |cluster: &str, subnet: &str| {
            json!({
                "id": format!("C=CN, O=fabedge.io, CN={cluster}.connector"), "name": format!("{cluster}.connector"),
                "publicAddresses": ["203.0.113.7"], "subnets": [subnet], "nodeSubnets": null, "type": "Connector",
                "of a later version": 7,
            })
        };
        let text = json!({
            "communities": {"all": ["fabedge.connector", "beijing.connector"], "bad": ["beijing"], "none": null},
            "endpoints": [
                connector("fabedge", "10.233.64.0/18"), connector("beijing", "10.234.64.0/18"),
                connector("tianjin", "0.0.0.0/0"),
            ],
            "cidrs": {"fabedge": ["10.233.64.0/18", "10.233.0.0/18"], "beijing": ["10.234.64.0/18"], "shanghai": null},
        });
        let news = News::read(&text.to_string()).unwrap();
        let mut snapshot = ClusterSnapshot::default();
        let findings = news.merge("beijing", &mut snapshot);
        assert_eq!(snapshot.clusters.keys().collect::<Vec<_>>(), ["fabedge"]);
        assert_eq!(snapshot.clusters["fabedge"].cidrs.len(), 2);
        assert_eq!(
            snapshot.communities.keys().collect::<Vec<_>>(),
            ["all of the host"]
        );
        let texts: Vec<String> = findings.iter().map(ToString::to_string).collect();
        assert_eq!(texts.len(), 2, "{texts:?}");
        assert!(
            texts[0].contains("Cluster tianjin") && texts[0].contains("default route"),
            "{texts:?}"
        );
        assert!(texts[1].contains("Community bad of the host"), "{texts:?}");
    }
}
