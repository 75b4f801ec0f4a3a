//! Asks the API for what the settings do not say, until it is known.

use std::time::Duration;

use k8s_openapi::api::apps::v1::DaemonSet;
use k8s_openapi::api::core::v1::{ConfigMap, Node, Pod};
use kube::api::ListParams;
use kube::core::DynamicObject;
use kube::{Api, Client, ResourceExt};
use tracing::info;

use super::serve::Status;
use super::{calico, publish::Error};
use crate::api::SettingsSpec;
use crate::discovery::{Filled, Seen, fill, sources};
use crate::reporter::{Reporter, chain};

/// Namespace of the control plane.
pub const KUBE_SYSTEM: &str = "kube-system";

/// Objects in a page of a list.
const PAGE: u32 = 500;

/// The first and the longest pause between two looks at the cluster.
const PAUSES: [Duration; 2] = [Duration::from_secs(1), Duration::from_secs(10)];

/// Fills in what the settings do not say. Waits for as long as the cluster does not tell: the network plugin of a new
/// cluster may come after us.
pub async fn settle(client: &Client, given: &SettingsSpec, status: &Status) -> Filled {
    if fill::complete(given) {
        return Filled {
            spec: given.clone(),
            found: Vec::new(),
            follows_pools: false,
        };
    }
    let mut reporter = Reporter::default();
    let [mut pause, longest] = PAUSES;
    loop {
        let refusals = match look(client, given.cni_type.as_deref()).await {
            Ok(seen) => match fill(given, &seen) {
                Ok(filled) => {
                    reporter.report(&[], &[]);
                    for found in &filled.found {
                        info!("found out: {found}");
                    }
                    status.wait_for(None);
                    return filled;
                }
                Err(refusals) => refusals,
            },
            Err(error) => vec![chain(&error)],
        };
        reporter.report(&[], &refusals);
        status.wait_for(Some(refusals.join("\n")));
        tokio::time::sleep(pause).await;
        pause = longest.min(pause * 2);
    }
}

/// Everything that the API shows of the cluster's prefixes and its network plugin; what another plugin than a given
/// one would say is not asked for.
///
/// # Errors
/// When the API does not answer. What it does not have or does not allow is noted in the answer.
pub async fn look(client: &Client, cni: Option<&str>) -> Result<Seen, Error> {
    let mut seen = Seen::default();
    let system: Api<Pod> = Api::namespaced(client.clone(), KUBE_SYSTEM);
    each(&system, "Pods of kube-system", &mut seen, Seen::pod).await?;
    let mut flannel = vec![KUBE_SYSTEM.to_owned()];
    let sets: Api<DaemonSet> = Api::all(client.clone());
    each(&sets, "DaemonSets", &mut seen, |seen, set| {
        let (namespace, name) = (set.namespace().unwrap_or_default(), set.name_any());
        seen.daemon_set(&namespace, &name);
        if name.starts_with("kube-flannel") && !flannel.contains(&namespace) {
            flannel.push(namespace);
        }
    })
    .await?;
    each(&Api::<Node>::all(client.clone()), "Nodes", &mut seen, Seen::node).await?;
    let maps = [sources::KUBEADM, sources::KUBE_PROXY].map(|name| (KUBE_SYSTEM, name));
    let flannel = flannel
        .iter()
        .filter(|_| cni != Some("calico"))
        .map(|namespace| (namespace.as_str(), sources::FLANNEL));
    for (namespace, name) in maps.into_iter().chain(flannel) {
        let object = format!("ConfigMap {namespace}/{name}");
        let maps: Api<ConfigMap> = Api::namespaced(client.clone(), namespace);
        let read = maps.get_opt(name).await;
        if let Some(map) = allowed(read, "reading", &object, &mut seen)?.flatten() {
            seen.config_map(namespace, name, &map.data.unwrap_or_default());
        }
    }
    if cni == Some("flannel") {
        return Ok(seen);
    }
    let pools: Api<DynamicObject> = Api::all_with(client.clone(), &calico::IP_POOLS.resource());
    each(&pools, "IPPools", &mut seen, |seen, pool| {
        match calico::pool(pool) {
            Ok(pool) => seen.pools.extend(pool.in_use()),
            Err(faults) => {
                for fault in faults {
                    seen.failed(&format!("IPPool {}", pool.name_any()), &fault.to_string());
                }
            }
        }
    })
    .await?;
    Ok(seen)
}

/// Shows every object of a kind, page by page: there may be thousands.
async fn each<K>(
    from: &Api<K>,
    what: &str,
    seen: &mut Seen,
    mut show: impl FnMut(&mut Seen, &K),
) -> Result<(), Error>
where
    K: Clone + std::fmt::Debug + serde::de::DeserializeOwned,
{
    let mut params = ListParams::default().limit(PAGE);
    loop {
        let Some(page) = allowed(from.list(&params).await, "listing", what, seen)? else {
            return Ok(());
        };
        for object in &page.items {
            show(seen, object);
        }
        match page.metadata.continue_.filter(|token| !token.is_empty()) {
            Some(token) => params.continue_token = Some(token),
            None => return Ok(()),
        }
    }
}

/// Nothing where there is no such kind, or where it is not ours to see.
fn allowed<T>(
    result: kube::Result<T>,
    action: &'static str,
    object: &str,
    seen: &mut Seen,
) -> Result<Option<T>, Error> {
    match result {
        Ok(value) => Ok(Some(value)),
        Err(kube::Error::Api(status)) if status.code == 404 => Ok(None),
        Err(kube::Error::Api(status)) if status.code == 403 => {
            seen.failed(object, &status.message);
            Ok(None)
        }
        Err(source) => Err(Error::Api {
            action,
            object: object.to_owned(),
            source,
        }),
    }
}
