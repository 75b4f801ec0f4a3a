use std::cell::Cell;
use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use k8s_openapi::api::core::v1::Pod;
use kube::ResourceExt as _;
use kube::api::DeleteParams;
use serde_json::json;

use super::kubelet::{Kubelet, set_status};
use super::world::World;

fn args(pod: &Pod) -> Vec<String> {
    pod.spec.as_ref().unwrap().containers[0].args.clone().unwrap()
}

fn images(pod: &Pod) -> Vec<String> {
    let spec = pod.spec.as_ref().unwrap();
    let containers = spec.init_containers.iter().flatten().chain(&spec.containers);
    containers
        .filter_map(|container| container.image.clone())
        .collect()
}

fn ready(pod: &Pod) -> bool {
    let conditions = pod
        .status
        .as_ref()
        .unwrap()
        .conditions
        .clone()
        .unwrap_or_default();
    conditions
        .iter()
        .any(|c| c.type_ == "Ready" && c.status == "True")
}

async fn wait_for_pods(world: &World, count: usize) {
    world
        .wait_until("ready pods", async || {
            for number in 1..=count {
                if !world.pod(number).await.is_some_and(|pod| ready(&pod)) {
                    return false;
                }
            }
            true
        })
        .await;
}

#[test]
fn every_edge_has_a_pod_that_is_kept() {
    let mut world = World::new("kept");
    world.start("one");
    let _kubelet = Kubelet::start(&world);
    world.runtime.block_on(async {
        world.add_connector().await;
        world.add_edge(1).await;
        world.add_edge(2).await;
        // Documents do not wait for pods.
        world
            .wait_until("a document without a PodTemplate", async || {
                !world.peers(2).await.is_empty()
            })
            .await;
        world
            .wait_until("the lack of it is reported", async || {
                world.said("one").contains("PodTemplate fabedge-agent")
            })
            .await;
        assert!(world.pod(1).await.is_none());

        world.template("agent:1", "--log=info").await;
        wait_for_pods(&world, 2).await;
        let pod = world.pod(1).await.unwrap();
        let node = world.nodes().get(&world.edge(1)).await.unwrap();
        let owner = &pod.owner_references()[0];
        assert_eq!(
            (owner.kind.as_str(), Some(owner.uid.clone())),
            ("Node", node.uid())
        );
        assert_eq!(pod.labels()["fabedge.io/created-by"], "fabedge-operator");
        assert_eq!(pod.labels()["fabedge.io/node"], world.edge(1));
        let spec = pod.spec.clone().unwrap();
        assert_eq!(spec.node_name, Some(world.edge(1)));
        let volumes = serde_json::to_value(&spec.volumes).unwrap();
        assert_eq!(volumes[0]["configMap"]["name"], "fabedge-agent-config-kept-edge1");
        assert_eq!(volumes[1]["secret"]["secretName"], "fabedge-agent-tls-kept-edge1");
        assert_eq!(args(&pod), ["edge", "--log=info"]);

        // Somebody deletes it: kubelet's own kind of end, and an eviction.
        let name = pod.name_any();
        world
            .pods()
            .delete(&name, &DeleteParams::default())
            .await
            .unwrap();
        let another = async |than: &Pod| {
            let than = than.uid();
            let good = |pod: &Option<Pod>| pod.as_ref().is_some_and(|pod| pod.uid() != than && ready(pod));
            world
                .wait_to_see("another pod", async || world.pod(1).await, good)
                .await
                .unwrap()
        };
        let pod = another(&pod).await;
        set_status(
            &world.pods(),
            &name,
            json!({"phase": "Failed", "reason": "Evicted"}),
        )
        .await;
        another(&pod).await;

        // A node that is no edge any more, and one that is no more at all.
        let label = json!({"metadata": {"labels": {"kept/edge": null}}});
        let patch = kube::api::Patch::Merge(label);
        world
            .nodes()
            .patch(&world.edge(2), &Default::default(), &patch)
            .await
            .unwrap();
        world
            .wait_until("its pod goes", async || world.pod(2).await.is_none())
            .await;
        world
            .nodes()
            .delete(&world.edge(1), &DeleteParams::default())
            .await
            .unwrap();
        world
            .wait_until("its pod goes", async || world.pod(1).await.is_none())
            .await;
    });
}

#[test]
fn a_new_image_is_patched_and_new_arguments_roll() {
    const EDGES: usize = 7;
    let mut world = World::new("rolls");
    world.start("one");
    let kubelet = Kubelet::start(&world);
    world.runtime.block_on(async {
        world.add_connector().await;
        world.template("agent:1", "--log=info").await;
        for number in 1..=EDGES {
            world.add_edge(number).await;
        }
        wait_for_pods(&world, EDGES).await;
        let uids = async || {
            let pods = world.pods().list(&Default::default()).await.unwrap();
            let uids: BTreeSet<String> = pods.items.iter().filter_map(|pod| pod.uid()).collect();
            (uids, pods.items)
        };
        let (before, _) = uids().await;
        assert_eq!(before.len(), EDGES);

        world.template("agent:2", "--log=info").await;
        world
            .wait_until("the new image everywhere", async || {
                let (_, pods) = uids().await;
                pods.iter()
                    .all(|pod| images(pod) == ["agent:2", "agent:2", "strongswan:1"])
            })
            .await;
        assert_eq!(uids().await.0, before, "no pod was replaced");

        // New ones do not become ready: three are tried, the others stay.
        kubelet.hold(true, &world.pods()).await;
        world.template("agent:2", "--log=debug").await;
        let replaced = async || {
            let (now, pods) = uids().await;
            let new = pods.iter().filter(|pod| args(pod) == ["edge", "--log=debug"]);
            (now.intersection(&before).count(), new.count())
        };
        let counts = |wanted| move |counts: &(usize, usize)| *counts == wanted;
        world
            .wait_to_see("three are new", replaced, counts((EDGES - 3, 3)))
            .await;
        tokio::time::sleep(Duration::from_secs(2)).await;
        assert_eq!(replaced().await, (EDGES - 3, 3));
        kubelet.hold(false, &world.pods()).await;
        world
            .wait_to_see("all are new", replaced, counts((0, EDGES)))
            .await;
        wait_for_pods(&world, EDGES).await;

        // A node's own arguments, of which one is none, concern its pod alone.
        let (before, _) = uids().await;
        world.annotate(2, "argument.fabedge.io/log", "trace").await;
        world.annotate(2, "argument.fabedge.io/Fast_path", "off").await;
        world
            .wait_until("edge2 has its own", async || {
                world
                    .pod(2)
                    .await
                    .is_some_and(|pod| args(&pod) == ["edge", "--log=trace"])
            })
            .await;
        // The one that is none came after it.
        for word in [
            "Node rolls-edge2",
            "argument.fabedge.io/Fast_path",
            "mend or remove it",
        ] {
            world
                .wait_until(word, async || world.said("one").contains(word))
                .await;
        }
        assert_eq!(uids().await.0.intersection(&before).count(), EDGES - 1);
    });
}

#[test]
fn a_kubelet_is_told_twice_when_a_document_changes() {
    let mut world = World::new("nudges");
    let first = world.start("first");
    let kubelet = Kubelet::start(&world);
    let told = async |world: &World| {
        let pod = world.pod(1).await.unwrap();
        pod.annotations()["fabedge.io/document-hash"].clone()
    };
    world.runtime.block_on(async {
        world.add_connector().await;
        world.template("agent:1", "--log=info").await;
        for number in 1..=3 {
            world.add_edge(number).await;
        }
        wait_for_pods(&world, 3).await;
        world.settle().await;
        let before = told(&world).await;
        let uid = world.pod(1).await.unwrap().uid();

        // When it was surely not yet written.
        let earliest = Cell::new(Instant::now());
        world.join("shops", &[1, 2]).await;
        world
            .wait_until("the document", async || {
                let asked = Instant::now();
                let written = world.peers(1).await.len() == 2;
                if !written {
                    earliest.set(asked);
                }
                written
            })
            .await;
        let written = Instant::now();
        let once = world
            .wait_to_see(
                "the first time",
                async || told(&world).await,
                |now| *now != before,
            )
            .await;
        let after = written.elapsed();
        assert!(after < Duration::from_secs(1), "{after:?}");
        let twice = world
            .wait_to_see("the second time", async || told(&world).await, |now| *now != once)
            .await;
        let between = earliest.get().elapsed();
        assert!(between > Duration::from_millis(1900), "{between:?}");
        assert_eq!(Some(twice.as_str()), once.strip_suffix("-1"));
        assert_eq!(world.pod(1).await.unwrap().uid(), uid);
    });

    // What an operator still owes when it ends, the next one does. Before it ends it may have had the time for it.
    let mut last = first;
    let mut owed = String::new();
    for (turn, identity) in ["third", "fourth", "fifth", "sixth"].into_iter().enumerate() {
        world.runtime.block_on(async {
            let before = told(&world).await;
            world.join("shops", &[1, 3 - turn % 2]).await;
            world
                .wait_until("the first time", async || {
                    let now = told(&world).await;
                    now != before && now.ends_with("-1")
                })
                .await;
        });
        assert!(world.terminate(last));
        owed = world.runtime.block_on(told(&world));
        if owed.ends_with("-1") {
            break;
        }
        last = world.start(identity);
    }
    assert!(owed.ends_with("-1"), "{owed}");
    world.start("second");
    world.runtime.block_on(async {
        world
            .wait_until("the second time", async || {
                Some(told(&world).await.as_str()) == owed.strip_suffix("-1")
            })
            .await;
    });
    drop(kubelet);
}
