//! What an upgrade changes, and what not.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::Value;

use crate::cluster::{Cluster, UPGRADE, changed, today};

/// A value, and the objects that it changes: all others, and so the pods of the others, are left alone.
const CHANGES: &[(&str, &[&str])] = &[
    (
        "cloudAgent.resources.requests.cpu=10m",
        &["DaemonSet/fabedge-cloud-agent"],
    ),
    ("connector.syncPeriod=45s", &["Deployment/fabedge-connector"]),
    ("operator.replicas=2", &["Deployment/fabedge-operator"]),
    ("operator.service.nodePort=30304", &["Service/fabedge-operator"]),
    ("agent.args.MASQ_OUTGOING=false", &["PodTemplate/fabedge-agent"]),
    (
        "cluster.edgeToEdge=relay",
        &[
            "ConfigMap/fabedge-operator-settings",
            "Deployment/fabedge-operator",
        ],
    ),
    (
        "agent.image.tag=next",
        &[
            "DaemonSet/fabedge-cloud-agent",
            "Deployment/fabedge-connector",
            "PodTemplate/fabedge-agent",
        ],
    ),
    (
        "strongswan.image.tag=next",
        &["Deployment/fabedge-connector", "PodTemplate/fabedge-agent"],
    ),
    (
        "cluster.cniType=flannel",
        &[
            "ClusterRole/fabedge-operator",
            "ConfigMap/fabedge-operator-settings",
            "Deployment/fabedge-operator",
        ],
    ),
    // Seen by the next `helm uninstall`.
    ("uninstall.timeout=3m", &[]),
];

#[test]
fn a_value_changes_what_it_is_about_and_a_rollback_changes_it_back() {
    let cluster = Cluster::new();
    cluster.install(&today());
    let first = cluster.objects();
    let mut before = first.clone();
    for (value, wanted) in CHANGES {
        let said = cluster.sh(&format!("{UPGRADE} --set {value}"));
        assert!(said.contains("has been upgraded"), "{said}");
        let found = changed(&before, &cluster.objects());
        let wanted: BTreeSet<String> = wanted.iter().map(|name| (*name).to_owned()).collect();
        assert_eq!(found, wanted, "{value}");
        cluster.sh("helm rollback fabedge 1 -n fabedge");
        before = cluster.objects();
        assert_eq!(
            changed(&uncounted(&first), &uncounted(&before)),
            BTreeSet::new(),
            "{value}, and back"
        );
    }
}

/// Objects without the number of their changes, there and back.
fn uncounted(objects: &BTreeMap<String, Value>) -> BTreeMap<String, Value> {
    let mut objects = objects.clone();
    for object in objects.values_mut() {
        let metadata = object["metadata"].as_object_mut().unwrap();
        metadata.remove("generation");
        if let Some(annotations) = metadata.get_mut("annotations") {
            // What controllers count themselves.
            let annotations = annotations.as_object_mut().unwrap();
            annotations.remove("deprecated.daemonset.template.generation");
        }
    }
    objects
}
