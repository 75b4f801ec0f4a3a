//! Calico's own objects, of which we read two kinds: blocks of addresses that it has given out, and IP pools.

use ipnet::IpNet;
use kube::ResourceExt;
use kube::core::{ApiResource, DynamicObject, GroupVersionKind};
use kube::runtime::watcher::Event as Watched;
use serde::Deserialize;

use super::MANAGER;
use super::live::{Seen, named};
use super::objects::CREATED_BY;
use crate::finding::Finding;
use crate::observe::convert::prefixes;
use crate::observe::manifest::Fault;
use crate::snapshot::Block;

/// A kind of Calico's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Kind {
    kind: &'static str,
    /// As in a URL.
    pub plural: &'static str,
}

/// Blocks of addresses, each given to a node.
pub const BLOCKS: Kind = Kind {
    kind: "IPAMBlock",
    plural: "ipamblocks",
};

/// Ranges from which blocks are cut, and between which nothing is masqueraded.
pub const IP_POOLS: Kind = Kind {
    kind: "IPPool",
    plural: "ippools",
};

impl Kind {
    /// For a client.
    pub fn resource(self) -> ApiResource {
        let kind = GroupVersionKind::gvk("crd.projectcalico.org", "v1", self.kind);
        ApiResource::from_gvk_with_plural(&kind, self.plural)
    }
}

/// Whether the plural is that of a kind of Calico's.
pub fn is_kind(plural: &str) -> bool {
    [BLOCKS.plural, IP_POOLS.plural].contains(&plural)
}

/// An IP pool.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IpPool {
    /// Its range.
    pub cidr: IpNet,
    /// Whether it carries our label.
    pub ours: bool,
    /// Whether Calico takes no addresses from it.
    pub disabled: bool,
    /// Whether Calico masquerades what leaves it.
    pub nat_outgoing: bool,
    /// `metadata.resourceVersion`.
    pub version: Option<String>,
}

impl IpPool {
    /// Its range, if pods get addresses from it.
    pub fn in_use(&self) -> Option<IpNet> {
        (!self.ours && !self.disabled).then_some(self.cidr)
    }
}

#[derive(Deserialize)]
struct BlockSpec {
    cidr: String,
    #[serde(default)]
    affinity: Option<String>,
    #[serde(default)]
    deleted: bool,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct IpPoolSpec {
    cidr: String,
    #[serde(default)]
    disabled: bool,
    #[serde(default)]
    nat_outgoing: bool,
}

/// A block; none that holds no pods (any more).
pub fn block(object: &DynamicObject) -> Result<Option<Block>, Vec<Fault>> {
    let spec: BlockSpec = spec(object)?;
    let cidr = one(&spec.cidr)?;
    let affinity = spec.affinity.as_deref().unwrap_or_default();
    let node = affinity.strip_prefix("host:").map(str::to_owned);
    // What is affine to something else, `virtual:load-balancer`, holds addresses of Services.
    let of_pods = !spec.deleted && (node.is_some() || affinity.is_empty());
    Ok(of_pods.then_some(Block { cidr, node }))
}

/// An IP pool.
pub fn pool(object: &DynamicObject) -> Result<IpPool, Vec<Fault>> {
    let spec: IpPoolSpec = spec(object)?;
    Ok(IpPool {
        cidr: one(&spec.cidr)?,
        ours: object.labels().get(CREATED_BY).is_some_and(|by| by == MANAGER),
        disabled: spec.disabled,
        nat_outgoing: spec.nat_outgoing,
        version: object.resource_version(),
    })
}

fn spec<'a, S: Deserialize<'a>>(object: &'a DynamicObject) -> Result<S, Vec<Fault>> {
    let spec = object.data.get("spec").unwrap_or(&serde_json::Value::Null);
    S::deserialize(spec).map_err(|e| vec![Fault::new("spec", e.to_string())])
}

fn one(text: &str) -> Result<IpNet, Vec<Fault>> {
    let mut faults = Vec::new();
    let found = prefixes("spec.cidr", &[text.to_owned()], &mut faults);
    found.first().copied().ok_or(faults)
}

/// Calico's objects, as far as they were shown.
#[derive(Debug, Default)]
pub struct Calico {
    blocks: Seen<Option<Block>>,
    pools: Seen<IpPool>,
    /// Kinds that the API does not have.
    missing: Vec<&'static str>,
}

impl Calico {
    /// Takes an event about a block.
    pub fn take_block(&mut self, event: Watched<DynamicObject>) -> bool {
        let changed = self.blocks.take(event, BLOCKS.kind, named, block);
        self.found(BLOCKS, self.blocks.listed) || changed
    }

    /// Takes an event about an IP pool.
    pub fn take_pool(&mut self, event: Watched<DynamicObject>) -> bool {
        let changed = self.pools.take(event, IP_POOLS.kind, named, pool);
        self.found(IP_POOLS, self.pools.listed) || changed
    }

    /// Takes down that the API has no such kind, for now.
    pub fn take_missing(&mut self, plural: &'static str) -> bool {
        let new = !self.missing.contains(&plural);
        if new {
            self.missing.push(plural);
        }
        new
    }

    fn found(&mut self, kind: Kind, listed: bool) -> bool {
        let before = self.missing.len();
        self.missing.retain(|plural| *plural != kind.plural || !listed);
        before != self.missing.len()
    }

    /// What was not listed yet, and may come.
    pub fn awaited(&self) -> Option<&'static str> {
        let kinds = [(BLOCKS, self.blocks.listed), (IP_POOLS, self.pools.listed)];
        let mut awaited = kinds
            .into_iter()
            .filter(|(kind, listed)| !listed && !self.missing.contains(&kind.plural));
        awaited.next().map(|(kind, _)| kind.plural)
    }

    /// The blocks; none while nothing is known of them, which is not the same as no blocks.
    pub fn blocks(&self) -> Option<Vec<Block>> {
        let blocks = self.blocks.good.values().flatten();
        self.blocks.listed.then(|| blocks.cloned().collect())
    }

    /// The IP pools by name, likewise.
    pub fn pools(&self) -> Option<&std::collections::BTreeMap<String, IpPool>> {
        self.pools.listed.then_some(&self.pools.good)
    }

    /// What is wrong.
    pub fn findings(&self) -> Vec<Finding> {
        let bad = self.blocks.bad.values().chain(self.pools.bad.values());
        let missing = self.missing.iter().map(|plural| {
            let kind = if *plural == BLOCKS.plural { BLOCKS.kind } else { IP_POOLS.kind };
            Finding::error(
                format!("CustomResourceDefinition {plural}.crd.projectcalico.org"),
                "spec",
                format!(
                    "is not there, so Calico's {kind}s are not known: install Calico with the Kubernetes API as its \
                     datastore, or set cluster.cniType; until then clusterCIDR stands for where the cloud's pods are"
                ),
            )
        });
        bad.flatten().cloned().chain(missing).collect()
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn object(kind: Kind, name: &str, spec: &Value) -> DynamicObject {
        serde_json::from_value(json!({
            "apiVersion": "crd.projectcalico.org/v1", "kind": kind.kind, "metadata": {"name": name}, "spec": spec,
        }))
        .unwrap()
    }

    #[test]
    fn a_block_is_a_nodes_or_holds_no_pods() {
        for (spec, expected) in [
            (
                json!({"cidr": "10.233.90.0/26", "affinity": "host:node1"}),
                "10.233.90.0/26 of node1",
            ),
            (
                json!({"cidr": "fd00::40/122", "affinity": "host:a.b"}),
                "fd00::40/122 of a.b",
            ),
            // Released by its node, but not yet empty.
            (json!({"cidr": "10.233.90.0/26"}), "10.233.90.0/26 of nobody"),
            (
                json!({"cidr": "10.233.90.0/26", "affinity": null}),
                "10.233.90.0/26 of nobody",
            ),
            (
                json!({"cidr": "10.233.90.0/26", "affinity": "host:node1", "deleted": true}),
                "none",
            ),
            (
                json!({"cidr": "10.233.90.0/26", "affinity": "virtual:load-balancer"}),
                "none",
            ),
            (json!({"cidr": "10.233.90.0/99"}), "spec.cidr[0]"),
            (json!({}), "missing field `cidr`"),
        ] {
            let found = match block(&object(BLOCKS, "block", &spec)) {
                Ok(Some(block)) => format!("{} of {}", block.cidr, block.node.as_deref().unwrap_or("nobody")),
                Ok(None) => "none".to_owned(),
                Err(faults) => format!("{} {}", faults[0].field, faults[0].message),
            };
            assert!(found.contains(expected), "{spec}: {found}");
        }
    }

    #[test]
    fn a_kind_that_is_not_there_is_named_until_it_is() {
        let mut calico = Calico::default();
        assert_eq!(calico.awaited(), Some("ipamblocks"));
        assert!(calico.take_missing("ipamblocks"));
        assert!(!calico.take_missing("ipamblocks"), "said once");
        assert_eq!(calico.awaited(), Some("ippools"));
        assert!(calico.take_pool(Watched::InitDone));
        assert_eq!(calico.awaited(), None);
        assert_eq!(calico.blocks(), None, "unknown is not empty");
        assert!(
            calico.findings()[0]
                .to_string()
                .contains("ipamblocks.crd.projectcalico.org")
        );

        let spec = json!({"cidr": "10.233.90.0/26", "affinity": "host:node1"});
        calico.take_block(Watched::Init);
        calico.take_block(Watched::InitApply(object(BLOCKS, "one", &spec)));
        assert!(calico.take_block(Watched::InitDone));
        assert_eq!(calico.blocks().unwrap().len(), 1);
        assert!(calico.findings().is_empty());
        // Gone again: what was known stays in effect.
        assert!(calico.take_missing("ipamblocks"));
        assert_eq!(calico.blocks().unwrap().len(), 1);
    }
}
