use std::process::Command;

use k8s_openapi::api::apps::v1::DaemonSet;
use k8s_openapi::api::core::v1::{ConfigMap, Namespace, Pod, Service};
use kube::Api;
use kube::api::{DeleteParams, Patch, PatchParams, PostParams};
use serde_json::{Value, json};

use super::world::World;

const FLANNEL: &str = "kube-flannel";

/// Objects of kube-system and of Flannel's namespace, which go when it does.
struct Cluster<'a>(&'a World);

impl Cluster<'_> {
    fn maps(&self, namespace: &str) -> Api<ConfigMap> {
        Api::namespaced(self.0.client.clone(), namespace)
    }

    async fn map(&self, namespace: &str, name: &str, key: &str, text: &str) {
        let map = json!({
            "apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name}, "data": {key: text},
        });
        let params = PatchParams::apply("tests").force();
        self.maps(namespace)
            .patch(name, &params, &Patch::Apply(map))
            .await
            .unwrap();
    }

    /// A pod that nobody schedules.
    async fn pod(&self, name: &str, command: &[&str]) {
        let pod: Pod = serde_json::from_value(json!({
            "metadata": {"name": name},
            "spec": {
                "schedulerName": "nobody", "automountServiceAccountToken": false,
                "containers": [{"name": "main", "image": "none", "command": command}],
            },
        }))
        .unwrap();
        let pods: Api<Pod> = Api::namespaced(self.0.client.clone(), "kube-system");
        // The account that every pod has is made by a controller, in its time.
        let made = async || pods.create(&PostParams::default(), &pod).await.map(drop);
        self.0
            .wait_to_see(&format!("Pod {name} is made"), made, Result::is_ok)
            .await
            .unwrap();
    }

    /// A DaemonSet without pods: no node is of its kind.
    async fn daemon_set(&self, namespace: &str, name: &str) {
        let set: DaemonSet = serde_json::from_value(json!({
            "metadata": {"name": name},
            "spec": {
                "selector": {"matchLabels": {"app": name}},
                "template": {
                    "metadata": {"labels": {"app": name}},
                    "spec": {"nodeSelector": {"no": "node"}, "containers": [{"name": "main", "image": "none"}]},
                },
            },
        }))
        .unwrap();
        let sets: Api<DaemonSet> = Api::namespaced(self.0.client.clone(), namespace);
        sets.create(&PostParams::default(), &set).await.unwrap();
    }

    async fn namespace(&self, name: &str) {
        let namespaces: Api<Namespace> = Api::all(self.0.client.clone());
        if namespaces.get_opt(name).await.unwrap().is_none() {
            let namespace: Namespace = serde_json::from_value(json!({"metadata": {"name": name}})).unwrap();
            namespaces
                .create(&PostParams::default(), &namespace)
                .await
                .unwrap();
        }
    }
}

impl Drop for Cluster<'_> {
    fn drop(&mut self) {
        let now = DeleteParams::default().grace_period(0);
        self.0.runtime.block_on(async {
            for name in ["kubeadm-config", "nodelocaldns", "kubelet-config-1.20"] {
                self.maps("kube-system").delete(name, &now).await.ok();
            }
            self.maps(FLANNEL).delete("kube-flannel-cfg", &now).await.ok();
            let sets: Api<DaemonSet> = Api::namespaced(self.0.client.clone(), FLANNEL);
            sets.delete("kube-flannel-ds", &now).await.ok();
            let pods: Api<Pod> = Api::namespaced(self.0.client.clone(), "kube-system");
            for name in ["kube-controller-manager-m1", "kube-apiserver-m1"] {
                pods.delete(name, &now).await.ok();
            }
        });
    }
}

fn says_nothing() -> Value {
    json!({"cniType": null, "clusterCIDR": null, "serviceClusterIPRange": null})
}

#[test]
fn settings_that_say_nothing_are_filled_in_once_the_cluster_tells() {
    let mut world = World::new("finds");
    world.settings = says_nothing();
    world.listen();
    world.start("one");
    let world = world;
    let cluster = Cluster(&world);
    let waits = async |words: &[&str]| {
        world
            .wait_to_see(
                &format!("/readyz says {words:?}"),
                async || world.get("/readyz"),
                |said| {
                    said.as_ref().is_some_and(|(code, text)| {
                        *code == 503 && words.iter().all(|word| text.contains(word))
                    })
                },
            )
            .await;
    };
    world.runtime.block_on(async {
        world.add_connector().await;
        world.add_edge(1).await;
        waits(&["set cluster.cniType", "set cluster.serviceClusterIPRange"]).await;

        // A network plugin comes, and what it says contradicts what kubeadm was told.
        cluster.namespace(FLANNEL).await;
        let told = "networking:\n  podSubnet: 10.0.0.0/8\n  serviceSubnet: 172.21.0.0/16\n";
        cluster
            .map("kube-system", "kubeadm-config", "ClusterConfiguration", told)
            .await;
        let conf = json!({"Network": "10.64.0.0/10", "Backend": {"Type": "vxlan"}});
        cluster
            .map(FLANNEL, "kube-flannel-cfg", "net-conf.json", &conf.to_string())
            .await;
        cluster.daemon_set(FLANNEL, "kube-flannel-ds").await;
        waits(&[
            "10.0.0.0/8 according to ConfigMap kube-system/kubeadm-config",
            "10.64.0.0/10 according to ConfigMap kube-flannel/kube-flannel-cfg",
            "set cluster.clusterCIDR",
        ])
        .await;
        assert!(world.peers(1).await.is_empty(), "nothing is published on a guess");

        let conf = json!({"Network": "10.0.0.0/8", "Backend": {"Type": "vxlan"}});
        cluster
            .map(FLANNEL, "kube-flannel-cfg", "net-conf.json", &conf.to_string())
            .await;
        let command = ["kube-apiserver", "--service-cluster-ip-range", "172.21.0.0/16"];
        cluster.pod("kube-apiserver-m1", &command).await;
        world
            .wait_until("the edge has a document", async || {
                !world.peers(1).await.is_empty()
            })
            .await;
        let map = format!("fabedge-agent-config-{}", world.edge(1));
        let (document, _) = world.document(&map).await.unwrap();
        let connector = &document.peers[0].endpoint;
        assert_eq!(connector.service_subnets[0].to_string(), "172.21.0.0/16");
        assert_eq!(document.network_subnets[0].to_string(), "10.0.0.0/8");
        let said = world.said("one");
        for found in [
            "flannel, by DaemonSet kube-flannel/kube-flannel-ds",
            "10.0.0.0/8 according to",
            "172.21.0.0/16 according to",
        ] {
            assert!(
                said.contains("found out: the") && said.contains(found),
                "{found}: {said}"
            );
        }
        world
            .wait_until("it is ready", async || {
                world.get("/readyz").is_some_and(|(code, _)| code == 200)
            })
            .await;
    });
}

#[test]
fn cluster_info_of_a_real_api() {
    let world = World::new("informs");
    let cluster = Cluster(&world);
    let services: Api<Service> = Api::namespaced(world.client.clone(), "kube-system");
    let run = |mut command: Command| {
        let output = command.args(["--root", "/nowhere"]).output().unwrap();
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        (
            output.status.success(),
            text,
            String::from_utf8_lossy(&output.stderr).into_owned(),
        )
    };
    let both = || {
        let mut command = Command::new(env!("CARGO_BIN_EXE_fabedge-operator"));
        command.arg("cluster-info");
        let mut script = Command::new("sh");
        script.arg(concat!(
            env!("CARGO_MANIFEST_DIR"),
            "/../docs/get_cluster_info.sh"
        ));
        [("command", run(command)), ("script", run(script))]
    };
    for (by, (worked, text, said)) in both() {
        assert!(
            !worked && text.contains("cluster-cidr             : unknown\n"),
            "{by}: {text}{said}"
        );
        assert!(said.contains("cluster-cidr: not found"), "{by}: {said}");
    }
    world.runtime.block_on(async {
        let controllers = [
            "kube-controller-manager",
            "--cluster-cidr=10.233.64.0/18",
            "--service-cluster-ip-range",
            "10.233.0.0/18",
        ];
        cluster.pod("kube-controller-manager-m1", &controllers).await;
        let cache = "root-cluster:53 {\n    bind 169.254.25.10\n}\n";
        cluster
            .map("kube-system", "nodelocaldns", "Corefile", cache)
            .await;
        cluster
            .map(
                "kube-system",
                "kubelet-config-1.20",
                "kubelet",
                "clusterDomain: root-cluster\n",
            )
            .await;
    });
    let expected = "This may take some time. Please wait.\n\n\
        clusterDNS               : 169.254.25.10\n\
        clusterDomain            : root-cluster\n\
        cluster-cidr             : 10.233.64.0/18\n\
        service-cluster-ip-range : 10.233.0.0/18\n";
    for (by, (worked, text, said)) in both() {
        assert_eq!(text, expected, "{by}: {said}");
        assert!(worked && said.is_empty(), "{by}: {said}");
    }

    // Without a cache on the nodes, pods ask the Service.
    let address = world.runtime.block_on(async {
        cluster
            .maps("kube-system")
            .delete("nodelocaldns", &DeleteParams::default())
            .await
            .unwrap();
        let service: Service = serde_json::from_value(json!({
            "metadata": {"name": "kube-dns"}, "spec": {"ports": [{"port": 53, "protocol": "UDP"}]},
        }))
        .unwrap();
        let made = services.create(&PostParams::default(), &service).await.unwrap();
        made.spec.unwrap().cluster_ip.unwrap()
    });
    let found = both();
    world
        .runtime
        .block_on(services.delete("kube-dns", &DeleteParams::default()))
        .unwrap();
    for (by, (worked, text, said)) in found {
        assert!(
            worked && text.contains(&format!("clusterDNS               : {address}\n")),
            "{by}: {text}{said}"
        );
    }
}
