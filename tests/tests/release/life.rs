//! A release from its installation to its end, and again.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Instant;

use serde_json::{Value, json};

use crate::account::Account;
use crate::cluster::{Cluster, INSTALL, PATIENCE, UPGRADE, changed, documented, guide, today};
use crate::rights::{self, Question};

#[test]
fn a_release_comes_works_goes_and_comes_back() {
    let cluster = Cluster::new();
    let said = cluster.install(&guide());
    for words in [
        "NAME: fabedge\n",
        "STATUS: deployed\n",
        "REVISION: 1\n",
        "NOTES:\n",
        "fabedge.EDGE1",
    ] {
        assert!(said.contains(words), "{said}");
    }
    let listed = cluster.sh("helm list -n fabedge");
    assert!(
        listed.contains("fabedge-0.1.0") && listed.contains("deployed"),
        "{listed}"
    );
    // What the guide's readers meet, in its words.
    let again = cluster.try_sh(INSTALL);
    assert!(
        !again.works
            && again
                .text
                .contains("Error: cannot re-use a name that is still in use"),
        "{}",
        again.text
    );

    let installed = cluster.objects();
    for name in [
        "Deployment/fabedge-operator",
        "Deployment/fabedge-connector",
        "DaemonSet/fabedge-cloud-agent",
        "PodTemplate/fabedge-agent",
        "Service/fabedge-operator",
        "ConfigMap/fabedge-operator-settings",
        "Role/kube-system/fabedge-operator-discovery",
        "Role/default/fabedge-operator-events",
    ] {
        assert!(installed.contains_key(name), "{name}: {:?}", installed.keys());
    }
    // What is for the end is not there before it.
    let early: Vec<_> = installed
        .keys()
        .filter(|name| name.contains("uninstall"))
        .collect();
    assert!(early.is_empty(), "{early:?}");

    // The same values: nothing is touched, so no pod is restarted.
    cluster.sh(UPGRADE);
    assert_eq!(changed(&installed, &cluster.objects()), BTreeSet::new());

    cluster.users_objects();
    let users = cluster.users_objects_now();
    assert_eq!(users.len(), 2);
    run_the_operator(&cluster);
    uninstall(&cluster);
    assert_eq!(cluster.users_objects_now(), users);

    // In the other shape the same comes of it.
    cluster.install(&today());
    let again = cluster.objects();
    assert_eq!(changed(&given(&installed), &given(&again)), BTreeSet::new());
    uninstall(&cluster);
    assert_eq!(cluster.users_objects_now(), users);
}

/// Objects without what a cluster gives to each anew.
fn given(objects: &BTreeMap<String, Value>) -> BTreeMap<String, Value> {
    let mut objects = objects.clone();
    for object in objects.values_mut() {
        for field in ["uid", "creationTimestamp", "generation"] {
            object["metadata"].as_object_mut().unwrap().remove(field);
        }
        if object["kind"] == "Service" {
            for field in ["clusterIP", "clusterIPs"] {
                object["spec"].as_object_mut().unwrap().remove(field);
            }
        }
    }
    objects
}

fn node(name: &str, role: &str, address: &str, subnet: &str) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Node",
        "metadata": {
            "name": name,
            "labels": {"release-test": "", format!("node-role.kubernetes.io/{role}"): ""},
        },
        "spec": {"podCIDR": subnet, "podCIDRs": [subnet]},
        // As its kubelet once said; nobody has heard of it since.
        "status": {"addresses": [{"type": "InternalIP", "address": address}]},
    })
}

/// What is found of Flannel.
fn traces_of_flannel() -> [Value; 2] {
    let metadata =
        |name: &str| json!({"name": name, "namespace": "kube-system", "labels": {"release-test": ""}});
    [
        json!({
            "apiVersion": "apps/v1", "kind": "DaemonSet", "metadata": metadata("kube-flannel-ds"),
            "spec": {
                "selector": {"matchLabels": {"app": "flannel"}},
                "template": {"metadata": {"labels": {"app": "flannel"}}, "spec": {
                    "nodeSelector": {"nowhere": ""},
                    "containers": [{"name": "flannel", "image": "flannel"}],
                }},
            },
        }),
        json!({
            "apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata("kube-flannel-cfg"),
            "data": {"net-conf.json": r#"{"Network": "10.233.64.0/18", "Backend": {"Type": "vxlan"}}"#},
        }),
    ]
}

/// Has the operator find out and publish everything, by its own account: with the rights that the chart gives it and no
/// others.
fn run_the_operator(cluster: &Cluster) {
    let mut items = vec![
        node("release-cloud", "connector", "10.20.8.28", "10.233.64.0/24"),
        // For whom there are cloud agents, and their document.
        node("release-node1", "worker", "10.20.8.29", "10.233.67.0/24"),
        node("release-edge1", "edge", "192.168.1.2", "10.233.65.0/24"),
        node("release-edge2", "edge", "192.168.1.2", "10.233.66.0/24"),
    ];
    items.extend(traces_of_flannel());
    let nodes = json!({"apiVersion": "v1", "kind": "List", "items": items});
    cluster.write("nodes.json", &nodes.to_string());
    cluster.sh("kubectl create -f nodes.json");
    let settings = cluster.json("kubectl get -n fabedge configmap fabedge-operator-settings -o json");
    cluster.write(
        "settings.yaml",
        settings["data"]["settings.yaml"].as_str().unwrap(),
    );
    let mut operator = Account::new(cluster, "fabedge-operator").start(&[
        "run",
        "--namespace",
        "fabedge",
        "--listen",
        "127.0.0.1:0",
        "--settings",
        "settings.yaml",
    ]);
    for object in [
        "secret/connector-tls",
        "secret/fabedge-agent-tls-release-edge1",
        "configmap/fabedge-agent-config-release-edge2",
        "configmap/fabedge-cloud-agent-config",
        "lease/fabedge-operator-leader",
    ] {
        cluster.wait_for(&format!("kubectl get -n fabedge {object} -o name"));
    }
    assert!(operator.terminate(), "{}", operator.said());
    let said = operator.said();
    assert!(!said.to_lowercase().contains("forbidden"), "{said}");
}

const UNINSTALLER: &str = "fabedge-operator-uninstall";

/// What the account of the Job may do and may not.
const MAY: &[Question] = &[
    (UNINSTALLER, "list delete", "secrets", "*", "fabedge"),
    (UNINSTALLER, "list delete", "configmaps", "*", "fabedge"),
    (UNINSTALLER, "get list create delete", "pods", "*", "fabedge"),
    (UNINSTALLER, "create", "events", "*", "default"),
    (
        UNINSTALLER,
        "delete",
        "deployments.apps",
        "fabedge-operator",
        "fabedge",
    ),
];
const MAY_NOT: &[Question] = &[
    (
        UNINSTALLER,
        "get list watch delete",
        "secrets",
        "*",
        "kube-system",
    ),
    (UNINSTALLER, "list delete", "secrets", "*", "-"),
    (UNINSTALLER, "create update patch", "secrets", "*", "fabedge"),
    (UNINSTALLER, "create update patch", "configmaps", "*", "fabedge"),
    (UNINSTALLER, "create delete", "pods", "*", "kube-system"),
    (UNINSTALLER, "create", "pods/exec", "*", "fabedge"),
    (UNINSTALLER, "get list delete", "events", "*", "default"),
    (
        UNINSTALLER,
        "create update patch",
        "deployments.apps",
        "*",
        "fabedge",
    ),
    (UNINSTALLER, "delete", "deployments.apps", "other", "fabedge"),
    (UNINSTALLER, "delete", "communities.fabedge.io", "*", "-"),
    (UNINSTALLER, "delete", "clusters.fabedge.io", "*", "-"),
    (
        UNINSTALLER,
        "delete",
        "customresourcedefinitions.apiextensions.k8s.io",
        "*",
        "-",
    ),
    (UNINSTALLER, "delete", "namespaces", "*", "-"),
    (UNINSTALLER, "patch delete", "nodes", "*", "-"),
];

/// Uninstalls as the documents say; the test is the kubelet of the Job's pod. Nothing may be left but definitions and
/// what users have made of them.
pub fn uninstall(cluster: &Cluster) {
    let helm = cluster.start(&documented("uninstall.md", "uninstall"));
    let pod = cluster.wait_for("kubectl get pod -n fabedge -l fabedge.io/app=fabedge-uninstall --field-selector=status.phase=Pending -o name");
    let mut wrong = rights::wrong_answers(cluster, MAY, true);
    wrong += &rights::wrong_answers(cluster, MAY_NOT, false);
    assert!(wrong.is_empty(), "{wrong}");

    let pod = pod.trim().trim_start_matches("pod/");
    let spec = cluster.json(&format!("kubectl get -n fabedge pod {pod} -o json"));
    let container = &spec["spec"]["containers"][0];
    assert_eq!(container["command"], json!(["fabedge-operator"]));
    let words: Vec<&str> = container["args"]
        .as_array()
        .unwrap()
        .iter()
        .map(|word| word.as_str().unwrap())
        .collect();
    let mut job = Account::new(cluster, UNINSTALLER).start(&words);
    let good = job.wait();
    assert!(good, "{}", job.said());
    ends(cluster, pod, "Succeeded");

    let output = helm.wait_with_output().unwrap();
    let said = String::from_utf8(output.stdout).unwrap();
    assert!(output.status.success(), "{said}");
    assert!(said.contains("release \"fabedge\" uninstalled"), "{said}");
    assert_eq!(left(cluster), BTreeSet::new());
}

/// Tells the end of a pod as its kubelet would.
fn ends(cluster: &Cluster, pod: &str, phase: &str) {
    let path = format!("/api/v1/namespaces/fabedge/pods/{pod}");
    let mut object = cluster.json(&format!("kubectl get --raw {path}"));
    object["status"]["phase"] = json!(phase);
    // Whoever has written to it meanwhile.
    object["metadata"]
        .as_object_mut()
        .unwrap()
        .remove("resourceVersion");
    cluster.write("ended.json", &object.to_string());
    cluster.sh(&format!("kubectl replace --raw {path}/status -f ended.json"));
}

/// What is in the namespace apart from what the cluster itself puts into each, and what is ours elsewhere.
fn left(cluster: &Cluster) -> BTreeSet<String> {
    let started = Instant::now();
    loop {
        let said = cluster.sh(
            "for kind in $(kubectl api-resources --namespaced --verbs=list -o name | grep -v '^events'); do
                kubectl get -n fabedge $kind -o name
            done
            kubectl get clusterroles,clusterrolebindings -l app.kubernetes.io/name=fabedge -o name
            kubectl get roles,rolebindings -A -l app.kubernetes.io/name=fabedge -o name",
        );
        let left: BTreeSet<String> = said
            .lines()
            .map(str::trim)
            .filter(|line| !line.is_empty() && !line.starts_with("secret/default-token-"))
            // Of a version that is old by now.
            .filter(|line| !line.starts_with("Warning: "))
            .filter(|line| !["serviceaccount/default", "configmap/kube-root-ca.crt"].contains(line))
            .map(str::to_owned)
            .collect();
        // What belongs to something that is gone follows in a moment.
        if left.is_empty() || started.elapsed() > PATIENCE {
            return left;
        }
    }
}

/// A Job that fails stops the removal before anything is deleted that a second attempt needs, and says why.
#[test]
fn an_uninstall_that_fails_says_why_and_can_be_repeated() {
    let cluster = Cluster::new();
    cluster.install(&guide());
    let helm = cluster.start("helm uninstall -n fabedge fabedge");
    let pod = cluster.wait_for("kubectl get pod -n fabedge -l fabedge.io/app=fabedge-uninstall --field-selector=status.phase=Pending -o name");
    ends(&cluster, pod.trim().trim_start_matches("pod/"), "Failed");
    let output = helm.wait_with_output().unwrap();
    let said = String::from_utf8(output.stdout).unwrap();
    assert!(!output.status.success(), "{said}");
    assert!(said.contains("fabedge-operator-uninstall"), "{said}");
    // Its pod's log is there to be read.
    let there =
        cluster.sh("kubectl get -n fabedge job/fabedge-operator-uninstall deployment/fabedge-operator");
    assert!(there.contains("0/1"), "{there}");
    uninstall(&cluster);
}
