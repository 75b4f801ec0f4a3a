use k8s_openapi::api::core::v1::{Node, Pod};
use serde_json::{Value, json};

use super::documents::{corefile_bind, corefile_domain, flannel, kube_proxy, kubeadm, kubelet_domain};
use super::*;
use crate::api::SettingsSpec;

#[test]
fn flags_in_every_form() {
    let unit = "[Service]\n# ExecStart=k3s server --cluster-cidr=10.9.0.0/16\n\
        ExecStart=/usr/local/bin/k3s \\\n    server \\\n\t'--cluster-cidr' \\\n\t'10.42.0.0/16' \\\n\
        \t'--service-cidr=10.43.0.0/16' \\\n";
    let manifest = "spec:\n  containers:\n  - command:\n    - kube-controller-manager\n    - --cluster-cidr=10.233.64.0/18\n    \
        - --service-cluster-ip-range\n    - 10.233.0.0/18\n    # - --cluster-cidr=10.1.0.0/16\n";
    for (text, flag, expected) in [
        (unit, "--cluster-cidr", Some("10.42.0.0/16")),
        (unit, "--service-cidr", Some("10.43.0.0/16")),
        (unit, "--cluster", None),
        (manifest, "--cluster-cidr", Some("10.233.64.0/18")),
        (manifest, "--service-cluster-ip-range", Some("10.233.0.0/18")),
        (
            "command: [\"kube-apiserver\", \"--service-cluster-ip-range=10.96.0.0/12,fd00::/112\", \"--v=2\"]",
            "--service-cluster-ip-range",
            Some("10.96.0.0/12,fd00::/112"),
        ),
        (
            "KUBE_CONTROLLER_MANAGER_ARGS=\"--v=2 --cluster-cidr=10.244.0.0/16\"",
            "--cluster-cidr",
            Some("10.244.0.0/16"),
        ),
        (
            "--cluster-cidr=\"10.244.0.0/16\"",
            "--cluster-cidr",
            Some("10.244.0.0/16"),
        ),
        (
            "--cluster-cidr=10.1.0.0/16 --cluster-cidr=10.2.0.0/16",
            "--cluster-cidr",
            Some("10.2.0.0/16"),
        ),
        ("--cluster-cidr --v=2", "--cluster-cidr", None),
        ("--cluster-cidr", "--cluster-cidr", None),
        ("--node-cidr-mask-size=24", "--node-cidr", None),
        (
            "cluster-cidr: 10.52.0.0/16",
            "cluster-cidr:",
            Some("10.52.0.0/16"),
        ),
        ("", "--cluster-cidr", None),
    ] {
        assert_eq!(Words::of_text(text).flag(flag), expected, "{flag} in {text}");
    }
    assert!(Words::of_text(unit).runs("k3s", "server"));
    assert!(!Words::of_text("ExecStart=/usr/local/bin/k3s agent").runs("k3s", "server"));
    let shell = Words::of_args([
        "/bin/sh",
        "-c",
        "exec kube-proxy --cluster-cidr 10.244.0.0/16 2>&1",
    ]);
    assert_eq!(shell.flag("--cluster-cidr"), Some("10.244.0.0/16"));
}

#[test]
fn documents_of_installers_and_plugins() {
    let text = "apiVersion: kubeadm.k8s.io/v1beta2\nkind: ClusterConfiguration\nnetworking:\n  dnsDomain: cluster.local\n  \
        podSubnet: 10.244.0.0/16,fd00:10:244::/56\n  serviceSubnet: 10.96.0.0/12\n";
    let told = kubeadm(text).unwrap();
    assert_eq!(evidence::list(&told.pods), "10.244.0.0/16,fd00:10:244::/56");
    assert_eq!(evidence::list(&told.services), "10.96.0.0/12");
    assert_eq!(told.domain.as_deref(), Some("cluster.local"));
    assert_eq!(kubeadm("kind: ClusterConfiguration\n").unwrap().pods, []);
    assert!(
        kubeadm("networking:\n  podSubnet: ten\n")
            .unwrap_err()
            .contains("\"ten\"")
    );
    assert!(kubeadm("networking: [").is_err());

    for (text, expected) in [
        ("clusterCIDR: 10.244.0.0/16\nmode: ipvs\n", "10.244.0.0/16"),
        ("clusterCIDR: \"\"\n", ""),
        ("mode: iptables\n", ""),
    ] {
        assert_eq!(evidence::list(&kube_proxy(text).unwrap()), expected, "{text}");
    }
    for (text, expected) in [
        (
            r#"{"Network": "10.244.0.0/16", "Backend": {"Type": "vxlan"}}"#,
            "10.244.0.0/16",
        ),
        (
            r#"{"Network": "10.244.0.0/16", "IPv6Network": "fd00::/48"}"#,
            "10.244.0.0/16",
        ),
        (
            r#"{"EnableIPv6": true, "Network": "10.244.0.1/16", "IPv6Network": "fd00::/48"}"#,
            "10.244.0.0/16,fd00::/48",
        ),
    ] {
        assert_eq!(evidence::list(&flannel(text).unwrap()), expected, "{text}");
    }
    assert!(flannel("net").is_err());
    assert_eq!(
        kubelet_domain("clusterDomain: root-cluster\n")
            .unwrap()
            .as_deref(),
        Some("root-cluster")
    );
    assert_eq!(kubelet_domain("clusterDNS: [10.96.0.10]\n").unwrap(), None);

    let corefile = ".:53 {\n    errors\n    kubernetes in-addr.arpa root-cluster. ip6.arpa {\n        pods insecure\n    }\n}\n";
    assert_eq!(corefile_domain(corefile), Some("root-cluster"));
    assert_eq!(corefile_domain(".:53 {\n    kubernetes {\n    }\n}\n"), None);
    let cache = "root-cluster:53 {\n    bind 169.254.25.10\n    forward . 10.233.0.3\n}\n.:53 {\n    bind 169.254.25.11\n}\n";
    assert_eq!(corefile_bind(cache), Some("169.254.25.10"));
    assert_eq!(corefile_bind("bindings 1\n"), None);
}

fn pod(name: &str, command: &[&str]) -> Pod {
    let spec = json!({"containers": [{"name": "main", "command": command}]});
    serde_json::from_value(json!({"metadata": {"name": name}, "spec": spec})).unwrap()
}

fn node(name: &str, spec: &Value, annotations: &Value) -> Node {
    serde_json::from_value(json!({"metadata": {"name": name, "annotations": annotations}, "spec": spec}))
        .unwrap()
}

fn map(seen: &mut Seen, namespace: &str, name: &str, key: &str, text: &str) {
    seen.config_map(namespace, name, &[(key.to_owned(), text.to_owned())].into());
}

fn kubeadm_says(seen: &mut Seen, pods: &str, services: &str) {
    let text = format!("networking: {{podSubnet: \"{pods}\", serviceSubnet: \"{services}\"}}");
    map(
        seen,
        "kube-system",
        "kubeadm-config",
        "ClusterConfiguration",
        &text,
    );
}

/// What comes of a cluster: type, pods' prefixes, services' prefixes; or the refusals.
fn filled(given: &SettingsSpec, show: fn(&mut Seen)) -> (String, Vec<String>) {
    let mut seen = Seen::default();
    show(&mut seen);
    match fill(given, &seen) {
        Ok(Filled {
            spec,
            found,
            follows_pools,
        }) => {
            let follows = if follows_pools { " and on" } else { "" };
            let said = [
                spec.cni_type.unwrap_or_default(),
                spec.cluster_cidr.join(",") + follows,
                spec.service_cluster_ip_range.join(","),
            ];
            (said.join(" | "), found)
        }
        Err(refusals) => ("refused".to_owned(), refusals),
    }
}

/// Its name, what a cluster shows, what that makes of settings that say nothing, and words of what is said.
type Case = (&'static str, fn(&mut Seen), &'static str, &'static [&'static str]);

const CLUSTERS: &[Case] = &[
    (
        "kubeadm and Flannel",
        |seen| {
            seen.daemon_set("kube-flannel", "kube-flannel-ds");
            kubeadm_says(seen, "10.244.0.0/16", "10.96.0.0/12");
            seen.pod(&pod(
                "kube-controller-manager-m1",
                &[
                    "kube-controller-manager",
                    "--cluster-cidr=10.244.0.0/16",
                    "--service-cluster-ip-range=10.96.0.0/12",
                ],
            ));
            seen.pod(&pod(
                "kube-apiserver-m1",
                &["kube-apiserver", "--service-cluster-ip-range", "10.96.0.0/12"],
            ));
            map(
                seen,
                "kube-flannel",
                "kube-flannel-cfg",
                "net-conf.json",
                r#"{"Network": "10.244.0.0/16"}"#,
            );
        },
        "flannel | 10.244.0.0/16 | 10.96.0.0/12",
        &["DaemonSet kube-flannel/kube-flannel-ds", "according to"],
    ),
    (
        "one source knows one family only",
        |seen| {
            seen.daemon_set("kube-system", "kube-flannel-ds-amd64");
            kubeadm_says(seen, "10.244.0.0/16,fd00::/56", "10.96.0.0/12,fd01::/112");
            map(
                seen,
                "kube-system",
                "kube-proxy",
                "config.conf",
                "clusterCIDR: 10.244.0.0/16",
            );
        },
        "flannel | 10.244.0.0/16,fd00::/56 | 10.96.0.0/12,fd01::/112",
        &["ConfigMap kube-system/kubeadm-config"],
    ),
    (
        "the flags of pods alone",
        |seen| {
            seen.pod(&pod("calico-node-x7k2p", &["start_runit"]));
            seen.pod(&pod(
                "kube-proxy-1",
                &["kube-proxy", "--cluster-cidr", "10.233.64.0/18"],
            ));
            seen.pod(&pod(
                "kube-apiserver-m1",
                &["kube-apiserver", "--service-cluster-ip-range=10.233.0.0/18"],
            ));
        },
        "calico | 10.233.64.0/18 and on | 10.233.0.0/18",
        &[
            "calico, by Pod kube-system/calico-node-x7k2p",
            "--cluster-cidr of Pod kube-system/kube-proxy-1",
        ],
    ),
    (
        "Calico's pools count for more than what kubeadm was told",
        |seen| {
            seen.daemon_set("calico-system", "calico-node");
            kubeadm_says(seen, "10.244.0.0/16", "10.96.0.0/12");
            seen.pools = vec!["192.168.0.0/16".parse().unwrap()];
        },
        "calico | 192.168.0.0/16 and on | 10.96.0.0/12",
        &["Calico's IPPools"],
    ),
    (
        "K3s by its arguments",
        |seen| {
            let args = r#"["server","--cluster-cidr","10.52.0.0/16","--service-cidr=10.53.0.0/16"]"#;
            let annotations =
                json!({"k3s.io/node-args": args, "flannel.alpha.coreos.com/kube-subnet-manager": "true"});
            seen.node(&node("m1", &json!({"podCIDRs": ["10.52.0.0/24"]}), &annotations));
        },
        "flannel | 10.52.0.0/16 | 10.53.0.0/16",
        &[
            "kube-subnet-manager of Node m1",
            "--service-cidr of the annotation k3s.io/node-args of Node m1",
        ],
    ),
    (
        "K3s without arguments, and an agent of it",
        |seen| {
            let annotations = json!({"k3s.io/node-args": r#"["agent"]"#});
            seen.node(&node("n1", &json!({}), &annotations));
            let annotations = json!({"k3s.io/node-args": r#"["server"]"#});
            seen.node(&node("m1", &json!({}), &annotations));
            seen.daemon_set("kube-flannel", "kube-flannel-ds");
        },
        "flannel | 10.42.0.0/16 | 10.43.0.0/16",
        &["K3s's default"],
    ),
    (
        "Flannel, where only the nodes tell",
        |seen| {
            seen.daemon_set("kube-flannel", "kube-flannel-ds");
            seen.pod(&pod(
                "kube-apiserver-m1",
                &["kube-apiserver", "--service-cluster-ip-range=10.96.0.0/12"],
            ));
            seen.node(&node("n1", &json!({"podCIDR": "10.244.0.0/24"}), &json!({})));
        },
        "flannel |  | 10.96.0.0/12",
        &["spec.podCIDRs"],
    ),
    (
        "a plugin that runs counts for more than what another left on nodes",
        |seen| {
            let annotations = json!({"flannel.alpha.coreos.com/kube-subnet-manager": "true"});
            seen.node(&node("n1", &json!({}), &annotations));
            seen.daemon_set("kube-system", "calico-node");
            kubeadm_says(seen, "10.244.0.0/16", "10.96.0.0/12");
        },
        "calico | 10.244.0.0/16 and on | 10.96.0.0/12",
        &[],
    ),
    (
        "nothing at all",
        |_| {},
        "refused",
        &[
            "kube-flannel* or calico-node*",
            "set cluster.cniType to flannel or calico",
            "set cluster.serviceClusterIPRange (10.96.0.0/12, say)",
        ],
    ),
    (
        "no prefixes",
        |seen| {
            seen.daemon_set("kube-system", "calico-node");
            seen.failed("ConfigMap kube-system/kubeadm-config", "forbidden");
        },
        "refused",
        &[
            "set cluster.clusterCIDR",
            "set cluster.serviceClusterIPRange",
            "kubeadm-config: forbidden",
        ],
    ),
    (
        "two plugins",
        |seen| {
            seen.daemon_set("kube-system", "calico-node");
            seen.daemon_set("kube-flannel", "kube-flannel-ds");
            kubeadm_says(seen, "10.244.0.0/16", "10.96.0.0/12");
        },
        "refused",
        &[
            "both Flannel (DaemonSet kube-flannel/kube-flannel-ds) and Calico (DaemonSet kube-system/calico-node)",
        ],
    ),
    (
        "sources that contradict each other",
        |seen| {
            seen.daemon_set("kube-flannel", "kube-flannel-ds");
            kubeadm_says(seen, "10.244.0.0/16", "10.96.0.0/12");
            map(
                seen,
                "kube-flannel",
                "kube-flannel-cfg",
                "net-conf.json",
                r#"{"Network": "10.245.0.0/16"}"#,
            );
            seen.pod(&pod(
                "kube-apiserver-m1",
                &["kube-apiserver", "--service-cluster-ip-range=10.97.0.0/16"],
            ));
        },
        "refused",
        &[
            "10.245.0.0/16 according to ConfigMap kube-flannel/kube-flannel-cfg",
            "set cluster.clusterCIDR to what is right",
            "10.97.0.0/16 according to --service-cluster-ip-range of Pod kube-system/kube-apiserver-m1",
            "set cluster.serviceClusterIPRange",
        ],
    ),
    (
        "a source that cannot be read is no source",
        |seen| {
            seen.daemon_set("kube-flannel", "kube-flannel-ds");
            map(
                seen,
                "kube-system",
                "kubeadm-config",
                "ClusterConfiguration",
                "networking: [",
            );
            map(
                seen,
                "kube-system",
                "kube-proxy",
                "config.conf",
                "clusterCIDR: 10.244.0.0/16",
            );
            // Of another program that begins alike.
            seen.pod(&pod(
                "kube-apiserverless-m1",
                &["x", "--service-cluster-ip-range=10.97.0.0/16"],
            ));
        },
        "refused",
        &["ConfigMap kube-system/kubeadm-config: "],
    ),
];

#[test]
fn clusters_and_what_they_tell() {
    for (case, show, expected, words) in CLUSTERS {
        let (found, said) = filled(&SettingsSpec::default(), *show);
        assert_eq!(found, *expected, "{case}: {said:#?}");
        for word in *words {
            assert!(
                said.iter().any(|line| line.contains(word)),
                "{case}: {word:?} in {said:#?}"
            );
        }
    }
}

#[test]
fn what_is_given_stands() {
    let given = |cni: Option<&str>, pods: &[&str], services: &[&str]| SettingsSpec {
        cni_type: cni.map(str::to_owned),
        cluster_cidr: pods.iter().map(|text| (*text).to_owned()).collect(),
        service_cluster_ip_range: services.iter().map(|text| (*text).to_owned()).collect(),
        ..SettingsSpec::default()
    };
    let all = given(Some("flannel"), &["10.1.0.0/16"], &["10.2.0.0/16"]);
    assert!(fill::complete(&all));
    let contradictions = CLUSTERS
        .iter()
        .find(|(case, ..)| case.starts_with("sources"))
        .unwrap()
        .1;
    let (found, said) = filled(&all, contradictions);
    assert_eq!(
        (found.as_str(), said),
        ("flannel | 10.1.0.0/16 | 10.2.0.0/16", Vec::new())
    );

    let two = CLUSTERS
        .iter()
        .find(|(case, ..)| *case == "two plugins")
        .unwrap()
        .1;
    let some = given(Some("calico"), &["10.1.0.0/16"], &[]);
    assert!(!fill::complete(&some));
    assert_eq!(filled(&some, two).0, "calico | 10.1.0.0/16 | 10.96.0.0/12");
    assert_eq!(
        filled(&given(Some("flannel"), &[], &[]), two).0,
        "flannel | 10.244.0.0/16 | 10.96.0.0/12"
    );
}
