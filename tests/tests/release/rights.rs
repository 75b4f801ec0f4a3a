//! Who may do what, asked of the API server itself.

use std::fmt::Write as _;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::cluster::{Cluster, calico, flannel, member};

/// A question: who, what, in which group and of which resource, of which name (`*`: of any), in which namespace (`-`:
/// everywhere, or none).
pub type Question = (
    &'static str,
    &'static str,
    &'static str,
    &'static str,
    &'static str,
);

/// How long roles may take to be in force.
const ROLES_PATIENCE: Duration = Duration::from_secs(20);

const OPERATOR: &str = "fabedge-operator";
const CONNECTOR: &str = "fabedge-connector";
const CLOUD: &str = "fabedge-cloud-agent";
const NOBODY: &str = "default";

/// What each account needs.
const MAY: &[Question] = &[
    (OPERATOR, "list watch", "nodes", "*", "-"),
    (OPERATOR, "list watch", "communities.fabedge.io", "*", "-"),
    (OPERATOR, "get list watch", "clusters.fabedge.io", "*", "-"),
    (OPERATOR, "patch", "communities.fabedge.io/status", "*", "-"),
    (OPERATOR, "patch", "clusters.fabedge.io/status", "*", "-"),
    (
        OPERATOR,
        "get list watch create patch delete",
        "configmaps",
        "*",
        "fabedge",
    ),
    (
        OPERATOR,
        "get list watch create patch delete",
        "secrets",
        "*",
        "fabedge",
    ),
    (
        OPERATOR,
        "get list watch create patch delete",
        "pods",
        "*",
        "fabedge",
    ),
    (OPERATOR, "get list watch", "podtemplates", "*", "fabedge"),
    (OPERATOR, "create patch", "events", "*", "fabedge"),
    // Of what has no namespace.
    (OPERATOR, "create patch", "events", "*", "default"),
    (OPERATOR, "create", "leases.coordination.k8s.io", "*", "fabedge"),
    (
        OPERATOR,
        "get update",
        "leases.coordination.k8s.io",
        "fabedge-operator-leader",
        "fabedge",
    ),
    (OPERATOR, "get", "configmaps", "kubeadm-config", "kube-system"),
    (OPERATOR, "list", "pods", "*", "kube-system"),
    (
        CONNECTOR,
        "get list watch",
        "configmaps",
        "connector-config",
        "fabedge",
    ),
    (
        CLOUD,
        "get list watch",
        "configmaps",
        "fabedge-cloud-agent-config",
        "fabedge",
    ),
];

/// What a host needs besides and a member does not: tokens and reports of members are in the Clusters themselves.
const MAY_OF_HOST: &[Question] = &[(OPERATOR, "patch", "clusters.fabedge.io", "*", "-")];

/// What it needs with Calico besides.
const MAY_WITH_CALICO: &[Question] = &[
    (OPERATOR, "patch", "nodes", "*", "-"),
    (
        OPERATOR,
        "list watch",
        "ipamblocks.crd.projectcalico.org",
        "*",
        "-",
    ),
    (
        OPERATOR,
        "list watch create patch delete",
        "ippools.crd.projectcalico.org",
        "*",
        "-",
    ),
];

/// What it needs with Flannel besides, wherever Flannel is.
const MAY_WITH_FLANNEL: &[Question] = &[(OPERATOR, "get", "configmaps", "kube-flannel-cfg", "-")];

/// What must be refused: mostly what the predecessor's accounts were allowed.
const MAY_NOT: &[Question] = &[
    (
        OPERATOR,
        "get list watch create update patch delete",
        "secrets",
        "*",
        "-",
    ),
    (
        OPERATOR,
        "get list watch create update patch delete",
        "secrets",
        "*",
        "kube-system",
    ),
    (
        OPERATOR,
        "get list watch create update patch delete",
        "secrets",
        "*",
        "default",
    ),
    (
        OPERATOR,
        "list watch create patch delete",
        "configmaps",
        "*",
        "kube-system",
    ),
    (
        OPERATOR,
        "get",
        "configmaps",
        "extension-apiserver-authentication",
        "kube-system",
    ),
    (
        OPERATOR,
        "get list create patch delete",
        "configmaps",
        "*",
        "default",
    ),
    (OPERATOR, "create update patch delete", "pods", "*", "kube-system"),
    (OPERATOR, "create update patch delete", "pods", "*", "-"),
    (OPERATOR, "create", "pods/exec", "*", "fabedge"),
    (OPERATOR, "create", "pods/attach", "*", "fabedge"),
    (OPERATOR, "create", "serviceaccounts/token", "*", "fabedge"),
    (OPERATOR, "create patch delete", "serviceaccounts", "*", "fabedge"),
    (
        OPERATOR,
        "create update patch delete",
        "deployments.apps",
        "*",
        "fabedge",
    ),
    (
        OPERATOR,
        "create update patch delete",
        "daemonsets.apps",
        "*",
        "-",
    ),
    (
        OPERATOR,
        "update patch delete",
        "leases.coordination.k8s.io",
        "other",
        "fabedge",
    ),
    (
        OPERATOR,
        "create update patch delete",
        "leases.coordination.k8s.io",
        "*",
        "kube-node-lease",
    ),
    (OPERATOR, "create update delete", "nodes", "*", "-"),
    (OPERATOR, "get create", "nodes/proxy", "*", "-"),
    (
        OPERATOR,
        "create update patch delete",
        "communities.fabedge.io",
        "*",
        "-",
    ),
    (OPERATOR, "create delete", "clusters.fabedge.io", "*", "-"),
    (
        OPERATOR,
        "create patch delete",
        "customresourcedefinitions.apiextensions.k8s.io",
        "*",
        "-",
    ),
    (
        OPERATOR,
        "create patch bind escalate",
        "clusterroles.rbac.authorization.k8s.io",
        "*",
        "-",
    ),
    (
        OPERATOR,
        "create patch bind escalate",
        "roles.rbac.authorization.k8s.io",
        "*",
        "fabedge",
    ),
    (OPERATOR, "impersonate", "users", "*", "-"),
    (
        CONNECTOR,
        "get list watch",
        "configmaps",
        "fabedge-agent-config-edge1",
        "fabedge",
    ),
    (CONNECTOR, "list watch", "configmaps", "*", "fabedge"),
    (
        CONNECTOR,
        "create update patch delete",
        "configmaps",
        "connector-config",
        "fabedge",
    ),
    (CONNECTOR, "get list watch", "secrets", "connector-tls", "fabedge"),
    (CONNECTOR, "get list watch create", "pods", "*", "fabedge"),
    (CONNECTOR, "get list", "nodes", "*", "-"),
    (
        CLOUD,
        "get list watch",
        "configmaps",
        "connector-config",
        "fabedge",
    ),
    (CLOUD, "list watch", "configmaps", "*", "fabedge"),
    (
        CLOUD,
        "create update patch delete",
        "configmaps",
        "fabedge-cloud-agent-config",
        "fabedge",
    ),
    (CLOUD, "get list watch", "secrets", "*", "fabedge"),
    (CLOUD, "get list watch create", "pods", "*", "fabedge"),
    (CLOUD, "get list", "nodes", "*", "-"),
    // What an edge's pod would be if it had a token.
    (NOBODY, "get list watch", "configmaps", "*", "fabedge"),
    (NOBODY, "get list watch", "secrets", "*", "fabedge"),
    (NOBODY, "get list watch", "communities.fabedge.io", "*", "-"),
];

/// What it needs without Calico no more.
const MAY_NOT_WITHOUT_CALICO: &[Question] = &[
    (OPERATOR, "patch", "nodes", "*", "-"),
    (
        OPERATOR,
        "get list watch create patch delete",
        "ippools.crd.projectcalico.org",
        "*",
        "-",
    ),
    (
        OPERATOR,
        "get list watch",
        "ipamblocks.crd.projectcalico.org",
        "*",
        "-",
    ),
];

/// Asks the server until every answer is as wanted, for it judges by what its watches have shown it of roles; names those
/// that do not become so.
pub fn wrong_answers(cluster: &Cluster, questions: &[Question], wanted: bool) -> String {
    let started = Instant::now();
    loop {
        let wrong = wrong_now(cluster, questions, wanted);
        if wrong.is_empty() || started.elapsed() > ROLES_PATIENCE {
            return wrong;
        }
        std::thread::sleep(Duration::from_millis(500));
    }
}

/// Asks the server, as SubjectAccessReviews, and names every answer that is not as wanted.
fn wrong_now(cluster: &Cluster, questions: &[Question], wanted: bool) -> String {
    let mut reviews = Vec::new();
    let mut asked = Vec::new();
    for (account, verbs, resource, name, namespace) in questions {
        let (path, subresource) = resource.split_once('/').unwrap_or((resource, ""));
        let (plural, group) = path.split_once('.').unwrap_or((path, ""));
        for verb in verbs.split(' ') {
            let blank = |text: &str, none: &str| {
                if text == none {
                    String::new()
                } else {
                    text.to_owned()
                }
            };
            reviews.push(json!({
                "apiVersion": "authorization.k8s.io/v1",
                "kind": "SubjectAccessReview",
                "spec": {
                    "user": format!("system:serviceaccount:fabedge:{account}"),
                    "groups": ["system:serviceaccounts", "system:serviceaccounts:fabedge", "system:authenticated"],
                    "resourceAttributes": {
                        "verb": verb, "group": group, "resource": plural, "subresource": subresource,
                        "name": blank(name, "*"), "namespace": blank(namespace, "-"),
                    },
                },
            }));
            asked.push(format!("{account}: {verb} {resource} {name} in {namespace}"));
        }
    }
    let list = json!({"apiVersion": "v1", "kind": "List", "items": reviews});
    cluster.write("reviews.json", &list.to_string());
    // One after the other, not a list.
    let text = cluster.sh("kubectl create -o json -f reviews.json");
    let answers = serde_json::Deserializer::from_str(&text).into_iter::<Value>();
    let answers: Vec<Value> = answers.collect::<Result<_, _>>().unwrap();
    assert_eq!(answers.len(), asked.len());
    let mut wrong = String::new();
    for (answer, asked) in answers.iter().zip(&asked) {
        let allowed = answer["status"]["allowed"] == true;
        if allowed != wanted {
            writeln!(wrong, "{asked}: {}", if allowed { "yes" } else { "no" }).unwrap();
        }
    }
    wrong
}

#[test]
fn everybody_may_do_what_must_be_done_and_no_more() {
    let cluster = Cluster::new();
    cluster.install(&calico());
    let mut wrong = wrong_answers(&cluster, MAY, true);
    wrong += &wrong_answers(&cluster, MAY_OF_HOST, true);
    wrong += &wrong_answers(&cluster, MAY_WITH_CALICO, true);
    wrong += &wrong_answers(&cluster, MAY_WITH_FLANNEL, false);
    wrong += &wrong_answers(&cluster, MAY_NOT, false);
    assert!(wrong.is_empty(), "with Calico:\n{wrong}");

    cluster.values(&flannel());
    cluster.sh(crate::cluster::UPGRADE);
    let mut wrong = wrong_answers(&cluster, MAY, true);
    wrong += &wrong_answers(&cluster, MAY_WITH_FLANNEL, true);
    wrong += &wrong_answers(&cluster, MAY_NOT_WITHOUT_CALICO, false);
    wrong += &wrong_answers(&cluster, MAY_NOT, false);
    assert!(wrong.is_empty(), "with Flannel:\n{wrong}");

    cluster.values(&member());
    cluster.sh(crate::cluster::UPGRADE);
    let mut wrong = wrong_answers(&cluster, MAY, true);
    wrong += &wrong_answers(&cluster, MAY_OF_HOST, false);
    wrong += &wrong_answers(&cluster, MAY_NOT, false);
    assert!(wrong.is_empty(), "as a member:\n{wrong}");
    let token = cluster.json("kubectl get -n fabedge secret fabedge-operator-init-token -o json");
    // `header.claims.signature`, which nothing but the Secret shows.
    let encoded = "aGVhZGVyLmNsYWltcy5zaWduYXR1cmU=";
    assert_eq!(token["data"]["token"], encoded);
    let others = cluster.sh("kubectl get -n fabedge deployment,daemonset,configmap,podtemplate -o yaml");
    assert!(!others.contains("header.claims"), "{others}");
    assert!(
        !cluster
            .sh("kubectl get -n fabedge service -o name")
            .contains("operator")
    );
}

/// No pod of an edge has a token: neither what the operator makes of the template, nor by a volume.
#[test]
fn pods_of_edges_get_no_token() {
    let cluster = Cluster::new();
    cluster.install(&flannel());
    let template = cluster.json("kubectl get -n fabedge podtemplate fabedge-agent -o json");
    assert_eq!(
        template["template"]["spec"]["automountServiceAccountToken"],
        false
    );
    // As the operator makes it: what admission adds to it counts.
    let mut pod = json!({"apiVersion": "v1", "kind": "Pod"});
    pod["metadata"] = json!({"name": "fabedge-agent-edge1", "namespace": "fabedge"});
    pod["spec"] = template["template"]["spec"].clone();
    cluster.write("pod.json", &pod.to_string());
    let pod = cluster.json("kubectl create --dry-run=server -o json -f pod.json");
    let spec = pod["spec"].to_string();
    assert!(!spec.contains("serviceaccount/"), "{spec}");
    assert!(!spec.contains("serviceAccountToken"), "{spec}");
    assert!(!spec.contains("default-token"), "{spec}");
}
