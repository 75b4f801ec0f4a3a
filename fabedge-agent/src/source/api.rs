//! The document in a ConfigMap, watched by its name: the account may read this one and no other.

use std::fmt;
use std::path::Path;
use std::str::FromStr;
use std::time::{Duration, Instant};

use fabedge_common::config::packed;
use futures_util::{StreamExt as _, pin_mut};
use k8s_openapi::api::core::v1::ConfigMap;
use kube::runtime::utils::Backoff as _;
use kube::runtime::watcher::{self, DefaultBackoff, Event, watcher};
use kube::{Api, Client, Config};
use tokio::sync::watch;
use tracing::info;

use super::cache::Cache;
use super::{Current, Error, Found, Origin, Reader};

/// Seconds after which the API server ends a watch and is asked anew. One that is gone without a word is missed 5
/// seconds later.
const WATCH_SECONDS: u32 = 60;

/// A watch goes on from the last change that it saw. Where a backup of the API server's store was brought back, changes have
/// lower numbers than that one and are not told: after this time the ConfigMap is asked for itself.
pub const LIST_ANEW: Duration = Duration::from_secs(60);

/// The longest pause before the API is asked again.
const LONGEST_PAUSE: Duration = Duration::from_secs(30);

/// A ConfigMap: `NAMESPACE/NAME`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConfigMapName {
    namespace: String,
    name: String,
}

impl FromStr for ConfigMapName {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        // What names are made of (RFC 1123), so that none can say more in a selector.
        let fits = |name: &str| {
            let inner =
                |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || b"-.".contains(&byte);
            !name.is_empty() && name.bytes().all(inner)
        };
        match text.split_once('/') {
            Some((namespace, name)) if fits(namespace) && fits(name) => Ok(Self {
                namespace: namespace.to_owned(),
                name: name.to_owned(),
            }),
            _ => Err("it must be NAMESPACE/NAME, as in fabedge/connector-config"),
        }
    }
}

impl fmt::Display for ConfigMapName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}

/// A client of the API that a kubeconfig or a service account names.
pub(super) async fn client() -> Result<Client, Error> {
    let config = Config::infer()
        .await
        .map_err(|error| Error::Config(Box::new(error)))?;
    info!(api = %config.cluster_url, "the document comes through the API");
    Client::try_from(config).map_err(|error| Error::Client(Box::new(error)))
}

/// Follows the ConfigMap through `client`, and asks for it itself at least every `list_anew`. The receiver starts with
/// the copy in `state_dir`, if there is one.
pub fn follow(
    client: Client,
    name: ConfigMapName,
    state_dir: &Path,
    list_anew: Duration,
) -> watch::Receiver<Current> {
    let cache = Cache::new(state_dir);
    let mut current = cache.start();
    current.refuse(Error::Waiting(name.clone()));
    let (sender, receiver) = watch::channel(current);
    tokio::spawn(keep_up(client, name, cache, list_anew, sender));
    receiver
}

async fn keep_up(
    client: Client,
    name: ConfigMapName,
    cache: Cache,
    list_anew: Duration,
    sender: watch::Sender<Current>,
) {
    let api: Api<ConfigMap> = Api::namespaced(client, &name.namespace);
    // A list and a watch of this name are what the account's rights to the name cover.
    let mut config = watcher::Config::default().fields(&format!("metadata.name={}", name.name));
    config.timeout = Some(WATCH_SECONDS);
    let place = format!("of ConfigMap {name}");
    let mut pauses = DefaultBackoff::default();
    let mut answered = false;
    let mut reader = Reader::default();
    loop {
        // Each begins with a list, so that its first answer tells that the outage is over.
        let events = watcher(api.clone(), config.clone());
        pin_mut!(events);
        let mut seen = false;
        let list_anew = tokio::time::sleep(list_anew);
        pin_mut!(list_anew);
        let broken = loop {
            let event = tokio::select! {
                event = events.next() => event,
                () = &mut list_anew => break None,
                () = sender.closed() => return,
            };
            let come_upon = Instant::now();
            let found = match event {
                Some(Ok(Event::Init)) => {
                    seen = false;
                    continue;
                }
                Some(Ok(Event::InitApply(map) | Event::Apply(map))) => {
                    seen = true;
                    document(&mut reader, map, &name, &place)
                }
                Some(Ok(Event::InitDone)) if seen => continue,
                Some(Ok(Event::InitDone | Event::Delete(_))) => Err(Error::Absent(name.clone())),
                Some(Err(error)) => break Some(error),
                None => break None,
            };
            answered = true;
            sender.send_if_modified(|current| current.adopt(come_upon, found, &place, Origin::Api, &cache));
        };
        // Asking anew is no failure: a pause would leave us deaf, and every one is longer than the last.
        let Some(source) = broken else {
            pauses.reset();
            continue;
        };
        let error = Error::Watch {
            map: name.clone(),
            source: Box::new(source),
        };
        sender.send_if_modified(|current| {
            if answered {
                current.lose_sight(error)
            } else {
                current.refuse(error)
            }
        });
        let pause = pauses.next().unwrap_or(LONGEST_PAUSE).min(LONGEST_PAUSE);
        tokio::select! {
            () = tokio::time::sleep(pause) => {}
            () = sender.closed() => return,
        }
    }
}

/// The document in a ConfigMap.
fn document(reader: &mut Reader, map: ConfigMap, name: &ConfigMapName, place: &str) -> Result<Found, Error> {
    let plain = map.data.and_then(|mut data| data.remove(packed::DOCUMENT_KEY));
    let compressed = map
        .binary_data
        .and_then(|mut data| data.remove(packed::COMPRESSED_KEY));
    reader
        .newest(plain, compressed.as_ref().map(|bytes| bytes.0.as_slice()))
        .map_err(|source| Error::Refused {
            place: place.to_owned(),
            source,
        })?
        .ok_or_else(|| Error::Empty(name.clone()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_says_nothing_but_a_name() {
        let name: ConfigMapName = "fabedge/connector-config".parse().unwrap();
        assert_eq!(name.to_string(), "fabedge/connector-config");
        for wrong in [
            "connector-config",
            "fabedge/",
            "/x",
            "a/b/c",
            "a/b,metadata.name!=c",
            "",
        ] {
            assert!(wrong.parse::<ConfigMapName>().is_err(), "{wrong}");
        }
    }
}
