//! Calico's IP pools for what lies beyond the connector. Calico masquerades what its pods send to anything that is in
//! no pool, so a disabled one keeps their addresses: nobody gets an address from it, and it says whose the range is.

use std::collections::BTreeMap;

use ipnet::IpNet;
use kube::api::{DeleteParams, Patch, PatchParams, PostParams, Preconditions};
use kube::core::DynamicObject;
use kube::{Api, Client};
use serde_json::{Value, json};

use super::MANAGER;
use super::calico::{IP_POOLS, IpPool};
use super::objects::CREATED_BY;
use super::publish::Error;
use crate::finding::Finding;
use crate::snapshot::Settings;
use crate::topology::Topology;

/// Calico cuts blocks of this length from a pool unless it is told another, and refuses a pool with longer prefix.
const BLOCK_SIZES: [u8; 2] = [26, 122];

/// Keeps the pools.
#[derive(Debug)]
pub struct Pools {
    api: Api<DynamicObject>,
}

/// What is to be done.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Plan {
    make: Vec<(String, IpNet)>,
    mend: Vec<(String, IpNet, Option<String>)>,
    remove: Vec<(String, Option<String>)>,
}

/// The pools that there must be, by name: for the edges' ranges, and for clusters that share a Community with our
/// connector.
pub fn wanted(settings: &Settings, topology: &Topology) -> BTreeMap<String, IpNet> {
    let own = settings
        .edge_pools
        .iter()
        .map(|pool| (settings.cluster.as_str(), pool.range));
    let foreign = topology.foreign.iter().flat_map(|connector| {
        let nets = IpNet::aggregate(&connector.subnets);
        nets.into_iter().map(|net| (connector.cluster(), net))
    });
    own.chain(foreign)
        .map(|(cluster, net)| (name(cluster, net), net))
        .collect()
}

/// `beijing-10-234-64-0-18`.
fn name(cluster: &str, net: IpNet) -> String {
    format!("{cluster}-{}", net.to_string().replace(['.', ':', '/'], "-"))
}

/// What makes the pools that are there those that are wanted. Only what carries our label is changed or removed.
pub fn plan(wanted: &BTreeMap<String, IpNet>, there: &BTreeMap<String, IpPool>) -> (Plan, Vec<Finding>) {
    let (mut plan, mut findings) = (Plan::default(), Vec::new());
    for (name, net) in wanted {
        match there.get(name) {
            Some(pool) if pool.ours && pool.cidr != *net => {
                // A pool's range cannot be changed: it is made anew once it is gone.
                plan.remove.push((name.clone(), pool.version.clone()));
            }
            Some(pool) if pool.ours => {
                if !pool.disabled || pool.nat_outgoing {
                    plan.mend.push((name.clone(), *net, pool.version.clone()));
                }
            }
            // Whoever made it, the prefix is in a pool, and that is all that Calico asks.
            _ if there.values().any(|pool| !pool.ours && pool.cidr.contains(net)) => {}
            Some(pool) => findings.push(Finding::error(
                format!("IPPool {name}"),
                "spec.cidr",
                format!(
                    "is {}, and the pool is not ours to change, but its name is that of the pool for {net}, which \
                     Calico masquerades meanwhile: delete it",
                    pool.cidr
                ),
            )),
            None => plan.make.push((name.clone(), *net)),
        }
    }
    let ours = there
        .iter()
        .filter(|(name, pool)| pool.ours && !wanted.contains_key(*name));
    plan.remove
        .extend(ours.map(|(name, pool)| (name.clone(), pool.version.clone())));
    (plan, findings)
}

fn spec(net: IpNet) -> Value {
    let usual = BLOCK_SIZES[usize::from(net.addr().is_ipv6())];
    let mut spec = json!({
        "cidr": net, "disabled": true, "natOutgoing": false, "ipipMode": "Never", "vxlanMode": "Never",
        "nodeSelector": "all()",
    });
    if net.prefix_len() > usual {
        spec["blockSize"] = json!(net.prefix_len());
    }
    spec
}

impl Pools {
    /// Touches nothing yet.
    pub fn new(client: Client) -> Self {
        Self {
            api: Api::all_with(client, &IP_POOLS.resource()),
        }
    }

    /// Carries out a plan; returns what failed. What somebody else did meanwhile is no failure: the watch tells of it.
    pub async fn carry_out(&self, plan: &Plan) -> Vec<Error> {
        let mut failures = Vec::new();
        let mut take = |action, name: &str, result: kube::Result<()>| match result {
            Ok(()) => tracing::info!(pool = name, "{action} an IP pool"),
            Err(kube::Error::Api(status)) if matches!(status.code, 404 | 409) => {}
            Err(source) => failures.push(Error::Api {
                action,
                object: format!("IPPool {name}"),
                source,
            }),
        };
        for (name, net) in &plan.make {
            let mut pool = DynamicObject::new(name, &IP_POOLS.resource()).data(json!({"spec": spec(*net)}));
            pool.metadata.labels = Some(BTreeMap::from([(CREATED_BY.to_owned(), MANAGER.to_owned())]));
            // Created, not applied: one that somebody made meanwhile stays as it is.
            let made = self.api.create(&PostParams::default(), &pool).await;
            take("making", name, made.map(|_| ()));
        }
        for (name, net, version) in &plan.mend {
            let patch = json!({"metadata": {"resourceVersion": version}, "spec": spec(*net)});
            let patched = self
                .api
                .patch(name, &PatchParams::default(), &Patch::Merge(patch))
                .await;
            take("mending", name, patched.map(|_| ()));
        }
        for (name, version) in &plan.remove {
            let params = DeleteParams::default().preconditions(Preconditions {
                resource_version: version.clone(),
                uid: None,
            });
            take("removing", name, self.api.delete(name, &params).await.map(|_| ()));
        }
        failures
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pool(cidr: &str, ours: bool) -> IpPool {
        IpPool {
            cidr: cidr.parse().unwrap(),
            ours,
            disabled: true,
            nat_outgoing: false,
            version: Some("7".to_owned()),
        }
    }

    fn run(wanted: &[&str], there: &[(&str, IpPool)]) -> (Vec<String>, Vec<String>) {
        let wanted = wanted.iter().map(|net| {
            let net = net.parse().unwrap();
            (name("beijing", net), net)
        });
        let there = there
            .iter()
            .map(|(name, pool)| ((*name).to_owned(), pool.clone()));
        let (plan, findings) = plan(&wanted.collect(), &there.collect());
        let made = plan.make.iter().map(|(name, net)| format!("make {name} {net}"));
        let mended = plan.mend.iter().map(|(name, ..)| format!("mend {name}"));
        let removed = plan.remove.iter().map(|(name, _)| format!("remove {name}"));
        (
            made.chain(mended).chain(removed).collect(),
            findings.iter().map(ToString::to_string).collect(),
        )
    }

    #[test]
    fn only_what_is_ours_is_changed() {
        let enabled = IpPool {
            disabled: false,
            ..pool("10.10.0.0/16", true)
        };
        let natted = IpPool {
            nat_outgoing: true,
            ..pool("10.10.0.0/16", true)
        };
        for (wanted, there, expected, finding) in [
            (
                vec!["10.10.0.0/16"],
                vec![],
                vec!["make beijing-10-10-0-0-16 10.10.0.0/16"],
                "",
            ),
            (
                vec!["fd10::/48"],
                vec![],
                vec!["make beijing-fd10---48 fd10::/48"],
                "",
            ),
            (
                vec!["10.10.0.0/16"],
                vec![("beijing-10-10-0-0-16", pool("10.10.0.0/16", true))],
                vec![],
                "",
            ),
            (
                vec!["10.10.0.0/16"],
                vec![("beijing-10-10-0-0-16", enabled.clone())],
                vec!["mend beijing-10-10-0-0-16"],
                "",
            ),
            (
                vec!["10.10.0.0/16"],
                vec![("beijing-10-10-0-0-16", natted)],
                vec!["mend beijing-10-10-0-0-16"],
                "",
            ),
            (
                vec![],
                vec![("beijing-10-10-0-0-16", pool("10.10.0.0/16", true))],
                vec!["remove beijing-10-10-0-0-16"],
                "",
            ),
            (
                vec!["10.10.0.0/16"],
                vec![("beijing-10-10-0-0-16", pool("10.11.0.0/16", true))],
                vec!["remove beijing-10-10-0-0-16"],
                "",
            ),
            // Others' stay, and do what is needed when they hold the prefix.
            (
                vec![],
                vec![("default-ipv4-ippool", pool("10.233.64.0/18", false))],
                vec![],
                "",
            ),
            (
                vec!["10.10.0.0/16"],
                vec![("by-hand", pool("10.0.0.0/8", false))],
                vec![],
                "",
            ),
            (
                vec!["10.10.0.0/16"],
                vec![("beijing-10-10-0-0-16", pool("10.10.0.0/16", false))],
                vec![],
                "",
            ),
            (
                vec!["10.10.0.0/16"],
                vec![("beijing-10-10-0-0-16", pool("10.99.0.0/16", false))],
                vec![],
                "not ours to change",
            ),
            // Ours for another prefix does not stand in for this one: it may go in the same breath.
            (
                vec!["10.10.0.0/16"],
                vec![("beijing-10-0-0-0-8", pool("10.0.0.0/8", true))],
                vec![
                    "make beijing-10-10-0-0-16 10.10.0.0/16",
                    "remove beijing-10-0-0-0-8",
                ],
                "",
            ),
        ] {
            let (done, findings) = run(&wanted, &there);
            assert_eq!(done, expected, "{wanted:?} {there:?}");
            match finding {
                "" => assert_eq!(findings, [""; 0]),
                part => assert!(findings[0].contains(part), "{findings:?}"),
            }
        }
    }

    #[test]
    fn a_small_range_has_blocks_that_fit() {
        assert_eq!(spec("10.10.0.0/28".parse().unwrap())["blockSize"], 28);
        assert!(spec("10.10.0.0/16".parse().unwrap()).get("blockSize").is_none());
        assert!(spec("fd10::/48".parse().unwrap()).get("blockSize").is_none());
        assert_eq!(spec("fd10::/124".parse().unwrap())["blockSize"], 124);
    }
}
