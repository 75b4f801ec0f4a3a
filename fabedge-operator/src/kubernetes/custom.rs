//! What is kept of Communities and Clusters besides what they say: the status that they have, and who was taken out.

use std::collections::BTreeMap;

use kube::ResourceExt;
use kube::core::DynamicObject;
use kube::runtime::watcher::Event as Watched;
use serde::de::DeserializeOwned;

use super::conditions;
use crate::api::{ClusterStatus, CommunityStatus, Condition};

/// A status of ours.
pub trait Status: DeserializeOwned + Default + PartialEq {
    /// Its conditions.
    fn conditions(&mut self) -> &mut Vec<Condition>;
}

impl Status for CommunityStatus {
    fn conditions(&mut self) -> &mut Vec<Condition> {
        &mut self.conditions
    }
}

impl Status for ClusterStatus {
    fn conditions(&mut self) -> &mut Vec<Condition> {
        &mut self.conditions
    }
}

/// What is kept of one object.
#[derive(Debug, Default)]
pub struct About<S> {
    /// `metadata.uid`.
    pub uid: String,
    /// `metadata.generation`.
    pub generation: Option<i64>,
    /// Its status, as far as it is ours.
    pub status: S,
    version: u64,
    /// The version that our last write made: what is shown with an older one is older than what we know.
    written: u64,
}

/// The objects of one kind by name.
#[derive(Debug, Default)]
pub struct Custom<S> {
    about: BTreeMap<String, About<S>>,
}

impl<S: Status> Custom<S> {
    /// Takes an event; returns whether what it shows is news.
    pub fn take(&mut self, event: &Watched<DynamicObject>) -> bool {
        match event {
            Watched::Init | Watched::InitDone => false,
            Watched::Delete(object) => self.about.remove(&object.name_any()).is_some(),
            Watched::Apply(object) | Watched::InitApply(object) => self.apply(object),
        }
    }

    fn apply(&mut self, object: &DynamicObject) -> bool {
        let mut status: S = object
            .data
            .get("status")
            // One that cannot be read is as good as none: it is written anew.
            .and_then(|status| serde_json::from_value(status.clone()).ok())
            .unwrap_or_default();
        conditions::keep_ours(status.conditions());
        let meta = &object.metadata;
        let mut about = About {
            uid: meta.uid.clone().unwrap_or_default(),
            generation: meta.generation,
            status,
            version: number(meta.resource_version.as_deref()),
            written: 0,
        };
        let Some(known) = self.about.get_mut(&object.name_any()) else {
            self.about.insert(object.name_any(), about);
            return true;
        };
        if known.uid == about.uid && about.version < known.written {
            about.status = std::mem::take(&mut known.status);
            about.written = known.written;
        }
        let news = (&about.uid, about.generation) != (&known.uid, known.generation)
            || (about.written == 0 && about.status != known.status);
        *known = about;
        news
    }

    /// Forgets those who are not `there`.
    pub fn retain(&mut self, there: impl Fn(&str) -> bool) {
        self.about.retain(|name, _| there(name));
    }

    /// Takes down the status that was written, and the version which that made.
    pub fn written(&mut self, name: &str, uid: &str, status: S, version: Option<&str>) {
        let version = number(version);
        if let Some(about) = self.about.get_mut(name)
            && about.uid == uid
            && about.version < version
        {
            about.status = status;
            about.written = version;
        }
    }

    /// One object.
    pub fn get(&self, name: &str) -> Option<&About<S>> {
        self.about.get(name)
    }

    /// All of them.
    pub fn iter(&self) -> impl Iterator<Item = (&String, &About<S>)> {
        self.about.iter()
    }
}

/// Versions of one object are numbers that grow.
fn number(version: Option<&str>) -> u64 {
    version
        .and_then(|version| version.parse().ok())
        .unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn shown(version: u64, ready: &str) -> Watched<DynamicObject> {
        let object = json!({
            "apiVersion": "fabedge.io/v1alpha1", "kind": "Community",
            "metadata": {
                "name": "one", "uid": "7", "generation": 1, "resourceVersion": version.to_string(),
            },
            "status": {"ready": ready, "conditions": [{
                "type": "Others", "status": "True", "reason": "Any", "message": "",
                "lastTransitionTime": "2026-01-01T00:00:00Z",
            }]},
        });
        Watched::Apply(serde_json::from_value(object).unwrap())
    }

    fn ready(custom: &Custom<CommunityStatus>) -> &str {
        custom.get("one").unwrap().status.ready.as_deref().unwrap()
    }

    #[test]
    fn what_was_written_is_known_before_it_is_shown() {
        let mut custom: Custom<CommunityStatus> = Custom::default();
        assert!(custom.take(&shown(10, "0/2")));
        assert!(
            custom.get("one").unwrap().status.conditions.is_empty(),
            "another's"
        );
        let status = |ready: &str| CommunityStatus {
            ready: Some(ready.to_owned()),
            ..CommunityStatus::default()
        };
        custom.written("one", "7", status("1/2"), Some("20"));
        custom.written("one", "7", status("2/2"), Some("30"));
        assert!(!custom.take(&shown(20, "1/2")), "an echo of the first");
        assert_eq!(ready(&custom), "2/2");
        assert!(!custom.take(&shown(30, "2/2")));
        assert!(custom.take(&shown(40, "9/9")), "somebody else's");
        custom.written("one", "7", status("2/2"), Some("40"));
        assert_eq!(ready(&custom), "9/9", "shown before the answer came");
        custom.written("one", "8", status("0/0"), Some("50"));
        assert_eq!(ready(&custom), "9/9", "another object of that name");
    }
}
