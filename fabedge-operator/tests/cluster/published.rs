//! Whether everything that is published is what it should be.

use std::collections::{BTreeMap, BTreeSet};

use fabedge_common::config::NodeConfig;
use fabedge_operator::pki::Authority;
use fabedge_operator::pki::inspect::{Verdict, judge};
use ipnet::IpNet;
use k8s_openapi::api::core::v1::Secret;
use kube::ResourceExt as _;
use kube::api::ListParams;
use time::OffsetDateTime;

use super::world::{World, subnet, text};

/// An entry of a Secret.
pub fn entry(secret: &Secret, key: &str) -> Option<String> {
    String::from_utf8(secret.data.as_ref()?.get(key)?.0.clone()).ok()
}

impl World {
    /// What is wrong with documents and certificates, where edges 1 to `count` are all there is and in no Community.
    pub async fn wrong(&self, count: usize) -> Vec<String> {
        let all = ListParams::default();
        let secrets = self.secrets().list(&all).await.unwrap().items.into_iter();
        let secrets: BTreeMap<String, Secret> = secrets.map(|secret| (secret.name_any(), secret)).collect();
        let maps = self.maps().list(&all).await.unwrap().items.into_iter();
        let documents: BTreeMap<String, NodeConfig> = maps
            .filter_map(|map| Some((map.name_any(), NodeConfig::parse(&text(map)?).unwrap())))
            .collect();

        let now = OffsetDateTime::now_utc();
        let ca = |key: &str| entry(secrets.get("fabedge-ca")?, key);
        let authority = Authority::load(&ca("ca.crt").unwrap(), &ca("ca.key").unwrap(), now).unwrap();
        let certified = |secret: &str, name: &str| {
            let secret = secrets.get(secret)?;
            let (certificate, key) = (entry(secret, "tls.crt")?, entry(secret, "tls.key")?);
            let verdict = judge(&certificate, &key, name, authority.trust(), now);
            let good = entry(secret, "ca.crt")? == authority.certificate();
            (good && matches!(verdict, Verdict::Keep { .. })).then_some(())
        };
        let peers = |document: &NodeConfig| -> Vec<String> {
            let peers = document.peers.iter();
            peers.map(|peer| peer.endpoint.name.clone()).collect()
        };

        let mut wrong = Vec::new();
        let mut edges = BTreeSet::new();
        let connector = format!("{}.connector", self.name);
        for number in 1..=count {
            let edge = self.edge(number);
            let name = format!("{}.{edge}", self.name);
            let subnet: IpNet = subnet(number).parse().unwrap();
            match documents.get(&format!("fabedge-agent-config-{edge}")) {
                None => wrong.push(format!("{edge} has no document")),
                Some(document)
                    if document.endpoint.name != name
                        || document.endpoint.subnets != [subnet]
                        || peers(document) != [connector.clone()] =>
                {
                    wrong.push(format!("{edge} has another document: {document:?}"));
                }
                Some(_) => {}
            }
            if certified(&format!("fabedge-agent-tls-{edge}"), &name).is_none() {
                wrong.push(format!("{edge} has no certificate that serves"));
            }
            edges.insert(name);
        }
        let known = documents.get("connector-config").map(peers).unwrap_or_default();
        if known.len() != count || known.into_iter().collect::<BTreeSet<_>>() != edges {
            wrong.push("the connector knows other edges".to_owned());
        }
        if certified("connector-tls", &connector).is_none() {
            wrong.push("the connector has no certificate that serves".to_owned());
        }
        wrong
    }
}
