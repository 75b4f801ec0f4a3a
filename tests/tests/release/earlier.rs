//! Upgrades from what was there earlier. Nobody loses a Community or a Cluster.

use std::collections::BTreeSet;
use std::path::Path;
use std::process::Command;

use crate::cluster::{Cluster, UPGRADE, documented, guide, repository, today};

/// Names of the workloads that are there.
fn workloads(cluster: &Cluster) -> BTreeSet<String> {
    let said = cluster.sh("kubectl get -n fabedge deployments,daemonsets -o name");
    said.lines().map(|line| line.replace(".apps", "")).collect()
}

fn ours() -> BTreeSet<String> {
    [
        "daemonset/fabedge-cloud-agent",
        "deployment/fabedge-connector",
        "deployment/fabedge-operator",
    ]
    .map(str::to_owned)
    .into()
}

#[test]
fn from_our_previous_version() {
    let cluster = Cluster::new();
    let previous = cluster.folder().join("previous");
    let copied = Command::new("cp")
        .arg("-r")
        .arg(repository().join("charts/fabedge"))
        .arg(&previous)
        .status();
    assert!(copied.unwrap().success());
    let about = std::fs::read_to_string(previous.join("Chart.yaml")).unwrap();
    std::fs::write(
        previous.join("Chart.yaml"),
        about.replace("ersion: 0.1.0", "ersion: 0.0.9"),
    )
    .unwrap();

    cluster.values(&today());
    cluster.sh("helm install fabedge previous --create-namespace -n fabedge -f values.yaml");
    cluster.users_objects();
    let users = cluster.users_objects_now();
    let image = "kubectl get -n fabedge deployment/fabedge-operator -o jsonpath={.spec.template.spec.containers[0].image}";
    assert_eq!(cluster.sh(image), "fabedge/operator:0.0.9");
    for block in ["crds", "upgrade"] {
        cluster.sh(&documented("upgrade.md", block));
    }
    assert_eq!(cluster.sh(image), "fabedge/operator:0.1.0");
    assert_eq!(workloads(&cluster), ours());
    assert_eq!(cluster.users_objects_now(), users);
}

/// A release like those of 0.4: definitions among the templates, workloads with selectors of their own.
fn like_0_4(cluster: &Cluster) {
    let chart = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/release/fabedge-0.4");
    std::os::unix::fs::symlink(chart, cluster.folder().join("fabedge-0.4")).unwrap();
    cluster.values(&guide());
    cluster.sh("helm install fabedge fabedge-0.4 --create-namespace -n fabedge -f values.yaml");
    cluster.users_objects();
    assert!(workloads(cluster).contains("deployment/connector"));
}

/// What the documents say, but for the last look, which wants pods that run.
fn follow_the_documents(cluster: &Cluster) {
    for block in [
        "from-04-backup",
        "from-04-crds",
        "from-04-workloads",
        "from-04-upgrade",
        "from-04-leftovers",
    ] {
        cluster.sh(&documented("upgrade.md", block));
    }
}

#[test]
fn from_0_4_as_documented() {
    let cluster = Cluster::new();
    like_0_4(&cluster);
    let users = cluster.users_objects_now();
    assert_eq!(users.len(), 2);
    follow_the_documents(&cluster);
    assert_eq!(cluster.users_objects_now(), users);
    assert_eq!(workloads(&cluster), ours());
    // The definitions are those of today.
    let columns = "kubectl get crd communities.fabedge.io -o jsonpath={.spec.versions[0].additionalPrinterColumns[*].name}";
    assert_eq!(cluster.sh(columns), "Members Ready Age");
    // Nothing of the old release selects pods or holds rights.
    cluster.wait_for_nothing(
        "kubectl get -n fabedge pods -l release=fabedge -o name
        kubectl get clusterroles,clusterrolebindings -o name | grep -x -e '.*/cert' || true
        kubectl get -n fabedge serviceaccounts,jobs -o name | grep -x -e '.*/cert' || true",
    );
    // From here on it is a release like any other.
    cluster.sh(UPGRADE);
    crate::life::uninstall(&cluster);
    assert_eq!(cluster.users_objects_now(), users);
}

/// Who has not read it loses nothing either: the upgrade is refused before anything is deleted.
#[test]
fn from_0_4_without_the_documented_steps() {
    let cluster = Cluster::new();
    like_0_4(&cluster);
    let users = cluster.users_objects_now();
    let said = cluster.try_sh(UPGRADE);
    assert!(!said.works && said.text.contains("immutable"), "{}", said.text);
    assert_eq!(cluster.users_objects_now(), users);
    follow_the_documents(&cluster);
    assert_eq!(cluster.users_objects_now(), users);
    assert_eq!(workloads(&cluster), ours());
}

/// What the keep annotation is for: without it the definitions go with the release that made them.
#[test]
fn the_fixture_loses_everything_where_nothing_keeps_it() {
    let cluster = Cluster::new();
    like_0_4(&cluster);
    cluster.sh("helm uninstall -n fabedge fabedge --wait");
    cluster.wait_for_nothing("kubectl get crd communities.fabedge.io --ignore-not-found -o name");
    let said = cluster.try_sh("kubectl get communities.fabedge.io");
    assert!(!said.works, "{}", said.text);
}
