//! The watches: every object that the topology is made of, and our own, so that what somebody changes or deletes is
//! put right.

use std::fmt;
use std::pin::Pin;

use futures_util::stream::{SelectAll, select_all};
use futures_util::{Stream, StreamExt as _, TryStreamExt as _};
use k8s_openapi::api::core::v1::{ConfigMap, Node, Pod, PodTemplate, Secret};
use kube::core::{ApiResource, DynamicObject, GroupVersionKind};
use kube::runtime::WatchStreamExt as _;
use kube::runtime::watcher::{self, watcher};
use kube::{Api, Client};
use tracing::{debug, warn};

use super::MANAGER;
use super::calico::{self, Kind};
use super::live::Event;
use super::objects::{APP, CREATED_BY};
use super::pods::template;
use crate::snapshot::CniType;

type Events = Pin<Box<dyn Stream<Item = Result<Event, (&'static str, watcher::Error)>> + Send>>;

/// All watches as one stream.
pub struct Watch {
    events: SelectAll<Events>,
}

impl fmt::Debug for Watch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Watch").finish_non_exhaustive()
    }
}

impl Watch {
    /// Watches the cluster, and our objects in `namespace`. Each watch begins anew, with back-off, when it breaks.
    pub fn new(client: &Client, namespace: &str, cni: CniType) -> Self {
        let all = watcher::Config::default();
        let own = all.clone().labels(&format!("{CREATED_BY}={MANAGER}"));
        // A pod is large, and nearly all of it is dropped at once: a page of them need not be.
        let pods = own.clone().page_size(100);
        let connectors = all.clone().labels(&format!("{APP}=fabedge-connector"));
        let operators = all.clone().labels(&format!("{APP}={MANAGER}"));
        let template = all.clone().fields(&format!("metadata.name={}", template::NAME));
        let mut events = select_all([
            events("Nodes", Api::<Node>::all(client.clone()), all.clone(), |event| {
                Event::Node(Box::new(event))
            }),
            events(
                "Communities",
                custom(client, "Community", "communities"),
                all.clone(),
                Event::Community,
            ),
            events(
                "Clusters",
                custom(client, "Cluster", "clusters"),
                all,
                Event::Cluster,
            ),
            events(
                "ConfigMaps",
                Api::<ConfigMap>::namespaced(client.clone(), namespace),
                own.clone(),
                Event::ConfigMap,
            ),
            events(
                "Secrets",
                Api::<Secret>::namespaced(client.clone(), namespace),
                own,
                Event::Secret,
            ),
            events(
                "Pods",
                Api::<Pod>::namespaced(client.clone(), namespace),
                pods,
                |event| Event::Pod(Box::new(event)),
            ),
            events(
                "the connector's Pods",
                Api::<Pod>::namespaced(client.clone(), namespace),
                connectors,
                |event| Event::Connector(Box::new(event)),
            ),
            events(
                "the operator's Pods",
                Api::<Pod>::namespaced(client.clone(), namespace),
                operators,
                |event| Event::Operator(Box::new(event)),
            ),
            events(
                "PodTemplates",
                Api::<PodTemplate>::namespaced(client.clone(), namespace),
                template,
                |event| Event::Template(Box::new(event)),
            ),
        ]);
        if cni == CniType::Calico {
            let calico = |kind: Kind| Api::<DynamicObject>::all_with(client.clone(), &kind.resource());
            let all = watcher::Config::default();
            for (kind, into) in [
                (calico::BLOCKS, Event::Block as fn(_) -> _),
                (calico::IP_POOLS, Event::Pool as fn(_) -> _),
            ] {
                events.push(self::events(kind.plural, calico(kind), all.clone(), into));
            }
        }
        Self { events }
    }

    /// The next event. Cancel-safe.
    pub async fn next(&mut self) -> Event {
        loop {
            match self.events.next().await {
                Some(Ok(event)) => return event,
                Some(Err((what, error))) => {
                    let missing = calico::is_kind(what) && is_missing(&error);
                    let error = crate::reporter::chain(&error);
                    if missing {
                        // A pass says so, once.
                        debug!(error, "watching {what}: trying again");
                        return Event::Missing(what);
                    }
                    warn!(error, "watching {what}: trying again");
                }
                // No watch ends.
                None => std::future::pending().await,
            }
        }
    }
}

/// Whether the API has no such kind, or no more.
fn is_missing(error: &watcher::Error) -> bool {
    use watcher::Error::{InitialListFailed, WatchFailed, WatchStartFailed};
    let (InitialListFailed(error) | WatchStartFailed(error) | WatchFailed(error)) = error else {
        return false;
    };
    matches!(error, kube::Error::Api(status) if status.code == 404)
}

/// The custom resources of a kind. Untyped, as [`Event::Community`] is.
pub(super) fn custom(client: &Client, kind: &str, plural: &str) -> Api<DynamicObject> {
    let kind = GroupVersionKind::gvk("fabedge.io", "v1alpha1", kind);
    Api::all_with(client.clone(), &ApiResource::from_gvk_with_plural(&kind, plural))
}

fn events<K>(
    what: &'static str,
    api: Api<K>,
    config: watcher::Config,
    into: fn(watcher::Event<K>) -> Event,
) -> Events
where
    K: kube::Resource + Clone + fmt::Debug + serde::de::DeserializeOwned + Send + 'static,
{
    watcher(api, config)
        .default_backoff()
        .map_ok(into)
        .map_err(move |error| (what, error))
        .boxed()
}
