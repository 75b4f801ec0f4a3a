use std::process::Command;

use k8s_openapi::api::apps::v1::{DaemonSet, Deployment};
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::Event;
use kube::api::{ListParams, Patch, PatchParams, PostParams};
use kube::{Api, ResourceExt};
use serde_json::json;

use super::kubelet::Kubelet;
use super::world::World;

/// A pod of an agent in the cloud, on this node.
fn cloud_pod(app: &str, node: &str) -> serde_json::Value {
    json!({
        "metadata": {"labels": {"fabedge.io/app": app}},
        "spec": {
            "nodeName": node, "hostNetwork": true, "tolerations": [{"operator": "Exists"}],
            "containers": [{
                "name": "agent", "image": "agent:1", "command": ["fabedge-agent"],
                "args": ["cloud", "--state-dir=/data"],
            }],
        },
    })
}

#[test]
fn an_uninstallation_leaves_nothing_but_custom_resources() {
    let mut world = World::new("ends");
    let operator = world.start("one");
    let kubelet = Kubelet::start(&world);
    let cloud = "ends-cloud";
    world.runtime.block_on(async {
        world.add_connector().await;
        world.template("agent:1", "--log=info").await;
        for number in 1..=3 {
            world.add_edge(number).await;
        }
        world.join("shops", &[1, 2]).await;
        let workload = |app: &str| {
            json!({
                "metadata": {"name": app, "labels": {"fabedge.io/app": app}},
                "spec": {
                    "selector": {"matchLabels": {"fabedge.io/app": app}},
                    "template": cloud_pod(app, cloud),
                },
            })
        };
        for app in ["fabedge-operator", "fabedge-connector"] {
            let object: Deployment = serde_json::from_value(workload(app)).unwrap();
            let deployments: Api<Deployment> = Api::namespaced(world.client.clone(), world.name);
            deployments.create(&PostParams::default(), &object).await.unwrap();
        }
        let pods = async || {
            let pods = world.pods().list(&ListParams::default()).await.unwrap();
            pods.iter().map(ResourceExt::name_any).collect::<Vec<_>>()
        };
        let object: DaemonSet = serde_json::from_value(workload("fabedge-cloud-agent")).unwrap();
        let sets: Api<DaemonSet> = Api::namespaced(world.client.clone(), world.name);
        sets.create(&PostParams::default(), &object).await.unwrap();
        world.wait_to_see("all pods", pods, |pods| pods.len() == 6).await;
    });
    assert!(world.terminate(operator));
    world.runtime.block_on(async {
        // An edge that is off: nobody takes its pod down.
        kubelet.lose(&world.edge(3));
        let status = json!({"status": {"conditions": [{"type": "Ready", "status": "Unknown"}]}});
        world
            .nodes()
            .patch_status(&world.edge(3), &PatchParams::default(), &Patch::Merge(status))
            .await
            .unwrap();
    });

    let uninstall = |world: &World| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_fabedge-operator"));
        command.args(["uninstall", "--namespace", world.name, "--timeout", "180"]);
        // The kubelet works meanwhile.
        let output = world.runtime.block_on(async {
            let run = tokio::task::spawn_blocking(move || command.output().unwrap());
            run.await.unwrap()
        });
        let said = String::from_utf8_lossy(&output.stdout).into_owned();
        let complaint = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.success(), "{said}{complaint}");
        said
    };
    let said = uninstall(&world);
    println!("{said}");
    for line in [
        "ends-edge1: cleaned",
        "ends-edge2: cleaned",
        "ends-cloud: cleaned",
        "ends-edge3: offline: to finish, run `fabedge-agent cleanup` there",
        "1 of 4 nodes were not cleaned",
    ] {
        assert!(said.contains(line), "{line}: {said}");
    }

    world.runtime.block_on(async {
        let none = async |what: &str, names: Vec<Option<String>>| {
            let names: Vec<String> = names.into_iter().flatten().collect();
            assert!(names.is_empty(), "{what} left: {names:?}");
        };
        let all = ListParams::default();
        let names = |list: Vec<kube::api::ObjectMeta>| list.into_iter().map(|meta| meta.name).collect();
        world
            .wait_until("the last pod goes", async || {
                world.pods().list(&all).await.unwrap().items.is_empty()
            })
            .await;
        let maps = world
            .maps()
            .list(&all)
            .await
            .unwrap()
            .items
            .into_iter()
            .map(|o| o.metadata);
        none(
            "ConfigMaps",
            names(
                maps.filter(|meta| meta.name.as_deref() != Some("kube-root-ca.crt"))
                    .collect(),
            ),
        )
        .await;
        let secrets = world.secrets().list(&all).await.unwrap().items.into_iter();
        let secrets = secrets.filter(|o| o.type_.as_deref() != Some("kubernetes.io/service-account-token"));
        none("Secrets", names(secrets.map(|o| o.metadata).collect())).await;
        let leases: Api<Lease> = Api::namespaced(world.client.clone(), world.name);
        let leases = leases.list(&all).await.unwrap().items.into_iter();
        none("Leases", names(leases.map(|o| o.metadata).collect())).await;
        world.communities().get("ends-shops").await.unwrap();
        // What is left to do can be read when the log is gone.
        let events: Api<Event> = Api::namespaced(world.client.clone(), "default");
        let of_nodes = ListParams::default().fields("reason=NotCleaned");
        let told: Vec<_> = events
            .list(&of_nodes)
            .await
            .unwrap()
            .items
            .into_iter()
            .map(|event| (event.involved_object.name, event.message))
            .filter(|(name, _)| name.as_deref().is_some_and(|name| name.starts_with("ends-")))
            .collect();
        let [(Some(name), Some(message))] = told.as_slice() else {
            panic!("{told:?}");
        };
        assert_eq!(*name, world.edge(3));
        assert!(message.contains("run `fabedge-agent cleanup` there"), "{message}");
    });
    let again = uninstall(&world);
    assert!(again.contains("nodes to clean: 0"), "{again}");
}
