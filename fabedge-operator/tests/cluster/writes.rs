use std::time::Duration;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::api::{DeleteParams, ListParams, Patch, PatchParams};
use serde_json::json;

use super::kubelet::Kubelet;
use super::world::World;

#[test]
fn documents_and_certificates_follow_nodes_and_communities() {
    let mut world = World::new("follows");
    world.start("one");
    world.runtime.block_on(async {
        world.add_connector().await;
        for number in 1..=3 {
            world.add_edge(number).await;
        }
        let connector = "follows.connector".to_owned();
        world
            .wait_until("edge3 has a document", async || {
                world.peers(3).await == [connector.clone()]
            })
            .await;
        // Several documents are written at a time.
        world
            .wait_until("the connector knows all", async || {
                let document = world.document("connector-config").await;
                document.is_some_and(|(document, _)| document.peers.len() == 3)
            })
            .await;
        for secret in ["connector-tls", "fabedge-agent-tls-follows-edge1"] {
            let there = async || world.secrets().get_opt(secret).await.unwrap();
            let secret = world.wait_to_see(secret, there, Option::is_some).await.unwrap();
            assert_eq!(secret.type_.as_deref(), Some("kubernetes.io/tls"));
            let keys: Vec<String> = secret.data.unwrap().into_keys().collect();
            assert_eq!(keys, ["ca.crt", "tls.crt", "tls.key"]);
        }
        let node = world.nodes().get("follows-edge1").await.unwrap();
        let annotations = node.metadata.annotations.unwrap();
        assert!(
            !annotations.contains_key("fabedge.io/subnets"),
            "spec.podCIDR says it"
        );

        // A Community changes the documents of its members, and no other.
        world.settle().await;
        let (_, edge3) = world
            .document("fabedge-agent-config-follows-edge3")
            .await
            .unwrap();
        world.join("shops", &[1, 2]).await;
        let edge2 = "follows.follows-edge2".to_owned();
        world
            .wait_until("edge1 knows edge2", async || {
                world.peers(1).await == [connector.clone(), edge2.clone()]
            })
            .await;
        world
            .wait_until("edge2 knows edge1", async || world.peers(2).await.len() == 2)
            .await;
        assert_eq!(
            world
                .document("fabedge-agent-config-follows-edge3")
                .await
                .unwrap()
                .1,
            edge3
        );

        // A member that does not exist is no reason to leave the others out.
        world.join("shops", &[1, 2, 9]).await;
        world
            .wait_until("the missing member is named", async || {
                world.said("one").contains("follows-edge9")
            })
            .await;
        assert_eq!(world.peers(1).await, [connector.clone(), edge2.clone()]);
        world
            .communities()
            .delete("follows-shops", &DeleteParams::default())
            .await
            .unwrap();
        world
            .wait_until("edge1 forgets edge2", async || {
                world.peers(1).await == [connector.clone()]
            })
            .await;
    });
}

#[test]
fn what_somebody_changes_or_deletes_is_put_right() {
    let mut world = World::new("mends");
    let operator = world.start("one");
    world.runtime.block_on(async {
        world.template("agent:1", "--log=info").await;
        world.add_connector().await;
        for number in 1..=3 {
            world.add_edge(number).await;
        }
        let connector = ["mends.connector".to_owned()];
        world
            .wait_until("edges have documents", async || {
                world.peers(1).await == connector
                    && world.peers(2).await == connector
                    && world.peers(3).await == connector
            })
            .await;
        let map = "fabedge-agent-config-mends-edge1";
        let (before, _) = world.document(map).await.unwrap();

        let broken = json!({"data": {"tunnels.yaml": "name: nobody\n"}});
        world
            .maps()
            .patch(map, &PatchParams::default(), &Patch::Merge(broken))
            .await
            .unwrap();
        world
            .wait_until("the document is written again", async || {
                let map = world.maps().get(map).await.unwrap();
                map.data.unwrap()["tunnels.yaml"].contains("mends.mends-edge1")
            })
            .await;
        let (after, _) = world.document(map).await.unwrap();
        assert!(
            after.generation > before.generation,
            "agents take only a newer one"
        );

        world.maps().delete(map, &DeleteParams::default()).await.unwrap();
        let secret = "fabedge-agent-tls-mends-edge1";
        world
            .secrets()
            .delete(secret, &DeleteParams::default())
            .await
            .unwrap();
        world
            .wait_until("both are made again", async || {
                world.maps().get_opt(map).await.unwrap().is_some()
                    && world.secrets().get_opt(secret).await.unwrap().is_some()
            })
            .await;

        // A node that goes takes its objects along, and leaves the others' alone.
        for number in [1, 2] {
            world
                .wait_to_see(
                    "everything is there",
                    async || of_node(&world, number).await,
                    |there| *there == ["ConfigMap", "Pod", "Secret", "a peer"],
                )
                .await;
        }
        Kubelet::start(&world);
        goes(&world, 1).await;
        assert_eq!(world.peers(2).await, connector);
        assert_eq!(of_node(&world, 2).await, ["ConfigMap", "Pod", "Secret", "a peer"]);
    });
    assert!(world.terminate(operator));
    // Also when no operator runs: that of the connector alone waits for one.
    world.runtime.block_on(async {
        delete(&world, 2).await;
        world
            .wait_to_see(
                "its objects go with it",
                async || of_node(&world, 2).await,
                |there| *there == ["a peer"],
            )
            .await;
    });
    world.start("two");
    world.runtime.block_on(goes(&world, 2));
    assert_eq!(world.runtime.block_on(world.peers(3)).len(), 1);
}

/// What is there of a node, apart from itself.
async fn of_node(world: &World, number: usize) -> Vec<&'static str> {
    let edge = world.edge(number);
    let params = ListParams::default();
    let with = |metadata: Vec<ObjectMeta>| {
        let mut names = metadata.into_iter().filter_map(|meta| meta.name);
        names.any(|name| name.contains(&edge))
    };
    let maps = world.maps().list_metadata(&params).await.unwrap().items;
    let secrets = world.secrets().list_metadata(&params).await.unwrap().items;
    let pods = world.pods().list_metadata(&params).await.unwrap().items;
    let connector = world.document("connector-config").await.unwrap().0;
    let name = format!("{}.{edge}", world.name);
    let found = [
        (
            "ConfigMap",
            with(maps.into_iter().map(|map| map.metadata).collect()),
        ),
        ("Pod", with(pods.into_iter().map(|pod| pod.metadata).collect())),
        (
            "Secret",
            with(secrets.into_iter().map(|secret| secret.metadata).collect()),
        ),
        (
            "a peer",
            connector.peers.iter().any(|peer| peer.endpoint.name == name),
        ),
    ];
    let found = found.into_iter().filter(|(_, there)| *there);
    found.map(|(what, _)| what).collect()
}

async fn delete(world: &World, number: usize) {
    let params = DeleteParams::default();
    world.nodes().delete(&world.edge(number), &params).await.unwrap();
}

/// Deletes a node, unless somebody has, and waits until nothing of it is there.
async fn goes(world: &World, number: usize) {
    if world
        .nodes()
        .get_opt(&world.edge(number))
        .await
        .unwrap()
        .is_some()
    {
        delete(world, number).await;
    }
    world
        .wait_to_see(
            "nothing of the node is left",
            async || of_node(world, number).await,
            Vec::is_empty,
        )
        .await;
}

#[test]
fn a_restart_writes_nothing_and_a_standby_takes_over() {
    let mut world = World::new("restarts");
    let first = world.start("first");
    world.runtime.block_on(async {
        world.add_connector().await;
        for number in 1..=5 {
            world.add_edge(number).await;
        }
        world
            .wait_until("edge5 has a document", async || !world.peers(5).await.is_empty())
            .await;
        world
            .wait_until("and the connector knows it", async || {
                world
                    .document("connector-config")
                    .await
                    .is_some_and(|(document, _)| document.peers.len() == 5)
            })
            .await;
    });
    world.runtime.block_on(world.settle());
    let before = world.runtime.block_on(world.versions());
    // Five edges and the connector, with a Secret each.
    assert!(before.len() >= 12, "{before:?}");

    assert!(world.terminate(first), "SIGTERM ends it well");
    let second = world.start("second");
    world
        .runtime
        .block_on(world.wait_until("it leads", async || world.said("second").contains("leading")));
    std::thread::sleep(Duration::from_secs(2));
    assert_eq!(world.runtime.block_on(world.versions()), before);

    // Killed, it cannot give its lease back: that has to run out.
    let third = world.start("third");
    world
        .runtime
        .block_on(world.wait_until("it has begun", async || world.said("third").contains("starting")));
    // It looks at the lease every 2 s.
    std::thread::sleep(Duration::from_secs(3));
    assert!(!world.said("third").contains("leading"), "one leads");
    world.operator(second).kill().unwrap();
    world.runtime.block_on(async {
        world.add_edge(6).await;
        world
            .wait_until("the standby serves the new node", async || {
                !world.peers(6).await.is_empty()
            })
            .await;
    });
    assert!(world.terminate(third));
}

#[test]
fn with_calico_edges_get_prefixes_that_stay_theirs() {
    let mut world = World::new("pools");
    world.calico = true;
    let first = world.start("first");
    let subnet = async |world: &World, number: usize| {
        let node = world.nodes().get(&world.edge(number)).await.unwrap();
        let annotations = node.metadata.annotations.unwrap_or_default();
        annotations.get("fabedge.io/subnets").cloned().unwrap_or_default()
    };
    world.runtime.block_on(async {
        world.add_connector().await;
        for number in 1..=3 {
            world.add_edge(number).await;
        }
        for number in 1..=3 {
            world
                .wait_until("a document", async || !world.peers(number).await.is_empty())
                .await;
            let map = format!("fabedge-agent-config-{}", world.edge(number));
            let (document, _) = world.document(&map).await.unwrap();
            let subnet = subnet(&world, number).await;
            assert!(
                subnet.starts_with("10.128.") && subnet.ends_with("/24"),
                "{subnet}"
            );
            assert_eq!(document.endpoint.subnets[0].to_string(), subnet);
        }
    });
    assert!(world.terminate(first));
    // While nobody leads, one goes and another comes: the others keep theirs.
    world.runtime.block_on(async {
        let gone = world.edge(1);
        world
            .nodes()
            .delete(&gone, &DeleteParams::default())
            .await
            .unwrap();
    });
    let before = world
        .runtime
        .block_on(async { [subnet(&world, 2).await, subnet(&world, 3).await] });
    world.start("second");
    world.runtime.block_on(async {
        world.add_edge(4).await;
        world
            .wait_until("a document", async || !world.peers(4).await.is_empty())
            .await;
        let now = [subnet(&world, 2).await, subnet(&world, 3).await];
        assert_eq!(now, before);
        assert!(!before.contains(&subnet(&world, 4).await));
    });
}

#[test]
fn a_large_document_is_written_compressed_and_read_back() {
    let mut world = World::new("packs");
    let first = world.start("first");
    let form = async |world: &World| {
        let map = world.maps().get("connector-config").await.unwrap();
        let keys = map.data.unwrap_or_default().into_keys();
        let keys: Vec<String> = keys
            .chain(map.binary_data.unwrap_or_default().into_keys())
            .collect();
        (keys, map.metadata.resource_version)
    };
    world.runtime.block_on(async {
        world.add_connector().await;
        for number in 1..=4 {
            world.add_edge(number).await;
        }
        let peers = async || {
            let document = world.document("connector-config").await;
            document.map_or(0, |(document, _)| document.peers.len())
        };
        world
            .wait_until("the connector's document", async || peers().await == 4)
            .await;
        assert_eq!(form(&world).await.0, ["tunnels.yaml"]);

        // Four edges with names as long as names can be, 200 KiB of them each.
        for edge in 1..=4 {
            let name =
                |number: usize| format!("{}.{number:05}.example", ["a"; 3].map(|a| a.repeat(60)).join("."));
            let names: Vec<String> = (0..1000).map(name).collect();
            world
                .annotate(edge, "fabedge.io/node-public-addresses", &names.join(","))
                .await;
        }
        world
            .wait_until("it is compressed", async || {
                form(&world).await.0 == ["tunnels.yaml.gz"]
            })
            .await;
        let far = async || {
            let (document, _) = world.document("connector-config").await.unwrap();
            let peers = document.peers.iter();
            peers
                .map(|peer| peer.endpoint.public_addresses.len())
                .sum::<usize>()
        };
        world
            .wait_until("all of them", async || far().await == 4000)
            .await;
    });
    world.runtime.block_on(world.settle());
    let before = world.runtime.block_on(form(&world));
    assert!(world.terminate(first));

    // Who reads it does not write it again.
    let second = world.start("second");
    world
        .runtime
        .block_on(world.wait_until("it leads", async || world.said("second").contains("leading")));
    std::thread::sleep(Duration::from_secs(2));
    assert_eq!(world.runtime.block_on(form(&world)), before);

    // Back to what fits.
    world.runtime.block_on(async {
        for edge in 1..=4 {
            world
                .annotate(
                    edge,
                    "fabedge.io/node-public-addresses",
                    &format!("198.51.0.{edge}"),
                )
                .await;
        }
        world
            .wait_until("it is plain", async || form(&world).await.0 == ["tunnels.yaml"])
            .await;
    });
    assert!(world.terminate(second));
}
