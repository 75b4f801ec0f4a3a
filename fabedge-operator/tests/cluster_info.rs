//! `fabedge-operator cluster-info` and `docs/get_cluster_info.sh` on the same clusters: files of a node, and objects
//! that an API server of this test's own (a fake `kubectl`, for the script) answers with. The two must print the same.
#![allow(clippy::unwrap_used, reason = "a panic is the report of a test")]

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Command, Output};

use serde_json::{Value, json};

mod cluster_info {
    pub mod api;
}
use cluster_info::api;

const KUBECTL: &str = include_str!("cluster_info/kubectl.sh");

struct Case {
    name: &'static str,
    files: &'static [(&'static str, &'static str)],
    objects: Vec<Value>,
    /// DNS, domain, pods' prefixes, services' prefixes.
    expected: [&'static str; 4],
    /// What is said about what is unknown.
    said: &'static [&'static str],
}

fn map(name: &str, key: &str, text: &str) -> Value {
    let metadata = json!({"name": name, "namespace": "kube-system"});
    json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata, "data": {key: text}})
}

fn service(name: &str, ip: &str) -> Value {
    let metadata = json!({"name": name, "namespace": "kube-system"});
    json!({"apiVersion": "v1", "kind": "Service", "metadata": metadata, "spec": {"clusterIP": ip}})
}

fn pod(name: &str, command: &[&str], args: &[&str]) -> Value {
    let metadata = json!({"name": name, "namespace": "kube-system"});
    let container = json!({"name": "main", "command": command, "args": args});
    json!({"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": {"containers": [container]}})
}

const COREFILE: &str = ".:53 {\n    errors\n    kubernetes cluster.local in-addr.arpa ip6.arpa {\n       pods insecure\n    }\n    forward . /etc/resolv.conf\n}\n";
const NODE_CACHE: &str = "root-cluster:53 {\n    errors\n    bind 169.254.25.10\n    forward . 10.233.0.3\n}\n.:53 {\n    bind 169.254.25.10\n}\n";
const KUBELET: &str = "apiVersion: kubelet.config.k8s.io/v1beta1\nclusterDNS:\n- 169.254.25.10\nclusterDomain: root-cluster\nkind: KubeletConfiguration\n";
const KUBEADM: &str = "apiVersion: kubeadm.k8s.io/v1beta2\nkind: ClusterConfiguration\nnetworking:\n  dnsDomain: cluster.local\n  podSubnet: 10.244.0.0/16\n  serviceSubnet: 10.96.0.0/12\n";
const CONTROLLERS: (&str, &str) = (
    "etc/kubernetes/manifests/kube-controller-manager.yaml",
    "apiVersion: v1\nkind: Pod\nspec:\n  containers:\n  - command:\n    - kube-controller-manager\n    - --allocate-node-cidrs=true\n    - --cluster-cidr=10.233.64.0/18\n    - --service-cluster-ip-range=10.233.0.0/18\n",
);
const API_SERVER: (&str, &str) = (
    "etc/kubernetes/manifests/kube-apiserver.yaml",
    "apiVersion: v1\nkind: Pod\nspec:\n  containers:\n  - command:\n    - kube-apiserver\n    - --service-cluster-ip-range=10.233.0.0/18\n",
);
const NOTHING: [&str; 4] = ["unknown"; 4];

fn cases() -> Vec<Case> {
    vec![
        Case {
            name: "kubespray: files, a DNS cache on every node",
            files: &[CONTROLLERS, API_SERVER],
            objects: vec![
                map("nodelocaldns", "Corefile", NODE_CACHE),
                map("kubelet-config-1.20", "kubelet", KUBELET),
                service("coredns", "10.233.0.3"),
                // The files come first.
                map("kubeadm-config", "ClusterConfiguration", KUBEADM),
            ],
            expected: ["169.254.25.10", "root-cluster", "10.233.64.0/18", "10.233.0.0/18"],
            said: &[],
        },
        Case {
            name: "environment files, flags with a blank",
            files: &[
                (
                    "etc/kubernetes/controller-manager",
                    "# KUBE_ARGS=\"--cluster-cidr=10.1.0.0/16\"\nKUBE_CONTROLLER_MANAGER_ARGS=\"--v=2 --cluster-cidr 10.233.64.0/18\"\n",
                ),
                (
                    "etc/kubernetes/kube-apiserver.conf",
                    "KUBE_API_ARGS='--service-cluster-ip-range 10.233.0.0/18 --v=2'\n",
                ),
                // Never looked at.
                (
                    "etc/kubernetes/pki/apiserver.key",
                    "--service-cluster-ip-range=10.9.0.0/16\n",
                ),
            ],
            objects: vec![
                service("kube-dns", "10.233.0.10"),
                map("coredns", "Corefile", COREFILE),
            ],
            expected: ["10.233.0.10", "cluster.local", "10.233.64.0/18", "10.233.0.0/18"],
            said: &[],
        },
        Case {
            name: "K3s, `--flag=value`",
            files: &[(
                "etc/systemd/system/k3s.service",
                "[Service]\nType=notify\nExecStart=/usr/local/bin/k3s \\\n    server \\\n\t'--cluster-cidr=10.52.0.0/16' \\\n\t'--service-cidr=10.53.0.0/16' \\\n\n",
            )],
            objects: vec![
                service("kube-dns", "10.53.0.10"),
                map("coredns", "Corefile", COREFILE),
            ],
            expected: ["10.53.0.10", "cluster.local", "10.52.0.0/16", "10.53.0.0/16"],
            said: &[],
        },
        Case {
            name: "K3s, `--flag value`",
            files: &[(
                "etc/systemd/system/k3s.service",
                "[Service]\nExecStart=/usr/local/bin/k3s server --cluster-cidr 10.52.0.0/16 --service-cidr 10.53.0.0/16\n",
            )],
            objects: vec![
                service("kube-dns", "10.53.0.10"),
                map("coredns", "Corefile", COREFILE),
            ],
            expected: ["10.53.0.10", "cluster.local", "10.52.0.0/16", "10.53.0.0/16"],
            said: &[],
        },
        Case {
            name: "K3s, one in its configuration and the other not said",
            files: &[
                (
                    "etc/systemd/system/k3s.service",
                    "[Service]\nExecStart=/usr/local/bin/k3s \\\n    server \\\n\n",
                ),
                (
                    "etc/rancher/k3s/config.yaml",
                    "disable: traefik\ncluster-cidr: \"10.62.0.0/16\"\n",
                ),
            ],
            objects: vec![
                service("kube-dns", "10.43.0.10"),
                map("coredns", "Corefile", COREFILE),
            ],
            expected: ["10.43.0.10", "cluster.local", "10.62.0.0/16", "10.43.0.0/16"],
            said: &[],
        },
        Case {
            name: "the API alone: static pods, both forms",
            files: &[],
            objects: vec![
                pod(
                    "kube-controller-manager-m1",
                    &["kube-controller-manager", "--cluster-cidr", "10.244.0.0/16"],
                    &["--service-cluster-ip-range=10.96.0.0/12"],
                ),
                pod(
                    "kube-apiserver-m1",
                    &["kube-apiserver", "--service-cluster-ip-range=10.96.0.0/12"],
                    &[],
                ),
                pod(
                    "kube-apiserver-m2",
                    &["kube-apiserver", "--service-cluster-ip-range=10.96.0.0/12"],
                    &[],
                ),
                pod("coredns-7d", &["/coredns"], &["--cluster-cidr=10.1.0.0/16"]),
                service("kube-dns", "10.96.0.10"),
                map("kubelet-config", "kubelet", KUBELET),
            ],
            expected: ["10.96.0.10", "root-cluster", "10.244.0.0/16", "10.96.0.0/12"],
            said: &[],
        },
        Case {
            name: "the API alone: kubeadm's configuration, two families",
            files: &[],
            objects: vec![
                map(
                    "kubeadm-config",
                    "ClusterConfiguration",
                    "networking:\n  dnsDomain: shop.example\n  podSubnet: 10.244.0.0/16,fd00:10:244::/56\n  serviceSubnet: 10.96.0.0/12,fd00:10:96::/112\n",
                ),
                map(
                    "node-local-dns",
                    "Corefile",
                    "cluster.local:53 {\n    bind 169.254.20.10 10.96.0.10\n}\n",
                ),
            ],
            expected: [
                "169.254.20.10",
                "shop.example",
                "10.244.0.0/16,fd00:10:244::/56",
                "10.96.0.0/12,fd00:10:96::/112",
            ],
            said: &[],
        },
        Case {
            name: "files that contradict each other",
            files: &[
                CONTROLLERS,
                (
                    "etc/kubernetes/manifests/kube-apiserver.yaml",
                    "spec:\n  containers:\n  - command:\n    - kube-apiserver\n    - --service-cluster-ip-range=10.96.0.0/12\n",
                ),
            ],
            objects: vec![
                service("kube-dns", "10.96.0.10"),
                map("coredns", "Corefile", COREFILE),
            ],
            expected: ["10.96.0.10", "cluster.local", "10.233.64.0/18", "unknown"],
            said: &["service-cluster-ip-range: ", "10.233.0.0/18", "10.96.0.0/12"],
        },
        Case {
            name: "nothing",
            files: &[(
                "etc/systemd/system/k3s.service",
                "ExecStart=/usr/local/bin/k3s agent\n",
            )],
            objects: vec![service("kube-dns", "None")],
            expected: NOTHING,
            said: &[
                "clusterDNS: not found",
                "clusterDomain: not found",
                "cluster-cidr: not found",
                "service-cluster-ip-range: not found",
                "/etc/kubernetes",
            ],
        },
    ]
}

fn text(expected: [&str; 4]) -> String {
    let [dns, domain, pods, services] = expected;
    format!(
        "This may take some time. Please wait.\n\n\
         clusterDNS               : {dns}\n\
         clusterDomain            : {domain}\n\
         cluster-cidr             : {pods}\n\
         service-cluster-ip-range : {services}\n"
    )
}

/// The command, asking an API server, or the port of one that is not there.
fn command(root: &Path, folder: &Path, port: u16) -> Output {
    let kubeconfig = folder.join("kubeconfig");
    let config = json!({
        "apiVersion": "v1", "kind": "Config", "current-context": "test",
        "clusters": [{"name": "test", "cluster": {"server": format!("http://127.0.0.1:{port}")}}],
        "contexts": [{"name": "test", "context": {"cluster": "test", "user": "test"}}],
        "users": [{"name": "test", "user": {}}],
    });
    fs::write(&kubeconfig, config.to_string()).unwrap();
    Command::new(env!("CARGO_BIN_EXE_fabedge-operator"))
        .args(["cluster-info", "--root"])
        .arg(root)
        .env("KUBECONFIG", kubeconfig)
        .output()
        .unwrap()
}

/// The script, with a `kubectl` that answers out of a folder.
fn script(root: &Path, folder: &Path, objects: &[Value]) -> Output {
    let (programs, answers) = (folder.join("bin"), folder.join("answers"));
    fs::create_dir_all(&programs).unwrap();
    fs::create_dir_all(&answers).unwrap();
    fs::write(programs.join("kubectl"), KUBECTL).unwrap();
    fs::set_permissions(programs.join("kubectl"), fs::Permissions::from_mode(0o755)).unwrap();
    let (mut pods, mut maps) = (String::new(), String::new());
    for object in objects {
        let name = object["metadata"]["name"].as_str().unwrap();
        match object["kind"].as_str().unwrap() {
            "ConfigMap" => {
                maps += &format!("configmap/{name}\n");
                for (key, text) in object["data"].as_object().unwrap() {
                    fs::write(
                        answers.join(format!("configmap.{name}.{key}")),
                        text.as_str().unwrap(),
                    )
                    .unwrap();
                }
            }
            "Service" => {
                let ip = object["spec"]["clusterIP"].as_str().unwrap();
                fs::write(answers.join(format!("service.{name}")), format!("{ip}\n")).unwrap();
            }
            "Pod" => {
                let container = &object["spec"]["containers"][0];
                pods += &format!("{name} {} {}\n", container["command"], container["args"]);
            }
            other => panic!("kubectl is not asked for a {other}"),
        }
    }
    fs::write(answers.join("pods"), pods).unwrap();
    fs::write(answers.join("configmaps"), maps).unwrap();
    let path = format!("{}:{}", programs.display(), std::env::var("PATH").unwrap());
    Command::new("sh")
        .arg(Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/get_cluster_info.sh"))
        .arg("--root")
        .arg(root)
        .env("PATH", path)
        .env("ANSWERS", answers)
        .output()
        .unwrap()
}

#[test]
fn clusters_as_command_and_script_see_them() {
    for case in cases() {
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path().join("root");
        for (path, text) in case.files {
            let path = root.join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }
        let port = api::start(case.objects.clone());
        for (by, output) in [
            ("command", command(&root, folder.path(), port)),
            ("script", script(&root, folder.path(), &case.objects)),
        ] {
            let said = String::from_utf8_lossy(&output.stderr).into_owned();
            let found = String::from_utf8_lossy(&output.stdout).into_owned();
            assert_eq!(found, text(case.expected), "{} by {by}; {said}", case.name);
            let unknown = case.expected.contains(&"unknown");
            assert_eq!(
                output.status.code(),
                Some(i32::from(unknown)),
                "{} by {by}",
                case.name
            );
            assert_eq!(said.is_empty(), !unknown, "{} by {by}: {said}", case.name);
            for word in case.said {
                assert!(said.contains(word), "{} by {by}: {word:?} in {said}", case.name);
            }
        }
    }
}

#[test]
fn files_tell_what_they_can_when_no_api_answers() {
    let folder = tempfile::tempdir().unwrap();
    let root = folder.path().join("root");
    let path = root.join(CONTROLLERS.0);
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(path, CONTROLLERS.1).unwrap();
    // Nobody listens at port 1.
    let output = command(&root, folder.path(), 1);
    let expected = ["unknown", "unknown", "10.233.64.0/18", "10.233.0.0/18"];
    assert_eq!(String::from_utf8_lossy(&output.stdout), text(expected));
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(
        said.contains("asking the Kubernetes API") && said.contains("clusterDNS: not found"),
        "{said}"
    );
    assert_eq!(output.status.code(), Some(1));
}
