//! Prefixes of edges from a pool of ours, on the real API.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex};

use futures_util::{StreamExt as _, TryStreamExt as _, stream};
use kube::ResourceExt as _;
use kube::api::DeleteParams;
use kube::runtime::WatchStreamExt as _;
use kube::runtime::watcher::{self, watcher};
use serde_json::json;

use super::world::World;

const AT_ONCE: usize = 50;
const ANNOTATION: &str = "fabedge.io/subnets";

/// Everything that was ever in the annotation of each node.
type History = Arc<Mutex<BTreeMap<String, BTreeSet<String>>>>;

fn follow(world: &World) -> History {
    let history = History::default();
    let config = watcher::Config::default().labels(&format!("test={}", world.name));
    let (nodes, seen) = (world.nodes(), Arc::clone(&history));
    world.runtime.spawn(async move {
        let mut nodes = std::pin::pin!(watcher(nodes, config).default_backoff().applied_objects());
        loop {
            // A watch that breaks is taken up again.
            let Ok(Some(node)) = nodes.try_next().await else {
                continue;
            };
            if let Some(subnets) = node.annotations().get(ANNOTATION) {
                let mut seen = seen.lock().unwrap();
                seen.entry(node.name_any()).or_default().insert(subnets.clone());
            }
        }
    });
    history
}

async fn add_at_once(world: &World, numbers: impl Iterator<Item = usize>) {
    let edges = numbers.map(|number| world.add_edge(number));
    edges
        .collect::<stream::FuturesUnordered<_>>()
        .collect::<Vec<()>>()
        .await;
}

async fn subnets(world: &World, number: usize) -> Option<String> {
    let node = world.nodes().get(&world.edge(number)).await.unwrap();
    node.annotations().get(ANNOTATION).cloned()
}

/// The prefixes in an edge's document, as the annotation has them.
async fn published(world: &World, number: usize) -> Option<String> {
    let map = format!("fabedge-agent-config-{}", world.edge(number));
    let (document, _) = world.document(&map).await?;
    let nets: Vec<String> = document
        .endpoint
        .subnets
        .iter()
        .map(ToString::to_string)
        .collect();
    Some(nets.join(","))
}

#[test]
fn fifty_nodes_at_once_get_fifty_prefixes_whatever_happens_to_operators() {
    let mut world = World::new("fifty");
    world.calico = true;
    world.settings = json!({"edgePodCIDR6": "fd10:128::/48"});
    let history = follow(&world);
    let first = world.start("first");
    world.runtime.block_on(async {
        world.add_connector().await;
        let half = AT_ONCE / 2;
        let first_half = add_at_once(&world, 1..=half);
        let some = world.wait_to_see(
            "some have prefixes",
            async || history.lock().unwrap().len(),
            |count| *count >= 5,
        );
        tokio::join!(first_half, some);
    });
    // In the middle of it, without a word.
    world.operator(first).kill().unwrap();
    world.start("second");
    world
        .runtime
        .block_on(add_at_once(&world, AT_ONCE / 2 + 1..=AT_ONCE));
    let world = world;
    world.runtime.block_on(async {
        for number in 1..=AT_ONCE {
            world
                .wait_until("a document", async || published(&world, number).await.is_some())
                .await;
            assert_eq!(published(&world, number).await, subnets(&world, number).await);
        }
        world.settle().await;
        let shown = async || history.lock().unwrap().len();
        world
            .wait_to_see("every node is shown with its prefixes", shown, |count| {
                *count == AT_ONCE
            })
            .await;
    });
    let history = history.lock().unwrap();
    let mut given = BTreeSet::new();
    for (name, values) in &*history {
        assert_eq!(values.len(), 1, "{name} had {values:?}");
        for net in values.first().unwrap().split(',') {
            assert!(given.insert(net.to_owned()), "{net} is {name}'s and another's");
        }
    }
    assert_eq!(given.len(), 2 * AT_ONCE, "two families");
    assert!(
        given
            .iter()
            .filter(|net| net.starts_with("10.128.") && net.ends_with("/24"))
            .count()
            == AT_ONCE
    );
    assert!(
        given
            .iter()
            .filter(|net| net.starts_with("fd10:128:") && net.ends_with("/64"))
            .count()
            == AT_ONCE
    );
}

#[test]
fn a_prefix_is_free_again_with_its_node_and_a_full_pool_is_said() {
    let mut world = World::new("full");
    world.calico = true;
    world.settings = json!({"edgePodCIDR": "10.140.0.0/22"});
    world.start("one");
    let world = world;
    world.runtime.block_on(async {
        world.add_connector().await;
        for number in 1..=4 {
            world.add_edge(number).await;
        }
        for number in 1..=4 {
            world
                .wait_until("a document", async || published(&world, number).await.is_some())
                .await;
        }
        let mut before = BTreeMap::new();
        for number in 1..=4 {
            before.insert(number, subnets(&world, number).await.unwrap());
        }

        world.add_edge(5).await;
        let edge5 = world.edge(5);
        world
            .wait_until("the pool is said to be full", async || {
                world.said("one").lines().any(|line| {
                    line.contains(&format!("Node {edge5}")) && line.contains("10.140.0.0/22 has no /24 left")
                })
            })
            .await;
        assert_eq!(subnets(&world, 5).await, None);
        assert_eq!(published(&world, 5).await, None);

        let gone = world.edge(2);
        world
            .nodes()
            .delete(&gone, &DeleteParams::default())
            .await
            .unwrap();
        world
            .wait_until("the one that waited has a document", async || {
                published(&world, 5).await.is_some()
            })
            .await;
        assert_eq!(
            subnets(&world, 5).await,
            Some(before[&2].clone()),
            "what was given back"
        );
        for number in [1, 3, 4] {
            assert_eq!(subnets(&world, number).await, Some(before[&number].clone()));
        }
        world
            .wait_until("it is said to be over", async || {
                world.said("one").contains("no longer: error: Node full-edge5")
            })
            .await;
    });
}
