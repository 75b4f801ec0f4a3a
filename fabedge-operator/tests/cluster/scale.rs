//! Figures, and the limits that they have to keep on a machine that does nothing else.

use std::collections::BTreeSet;
use std::fmt::Debug;
use std::pin::pin;
use std::time::{Duration, Instant};

use futures_util::{StreamExt as _, TryStreamExt as _, join, stream};
use k8s_openapi::api::core::v1::{ConfigMap, Node, Pod, Secret};
use kube::core::{NamespaceResourceScope, PartialObjectMeta};
use kube::runtime::WatchStreamExt as _;
use kube::runtime::watcher::{Config, watcher};
use kube::{Api, Resource, ResourceExt as _};

use super::figures::{Process, percentile};
use super::kubelet::Kubelet;
use super::world::World;

const CHANGES: usize = 100;

/// Waits until there are as many objects that go with nodes. A watch tells: to ask again and again would keep the
/// server from its work.
async fn all<K>(world: &World, config: Config, count: usize, started: Instant, limit: Duration) -> Duration
where
    K: Resource<DynamicType = (), Scope = NamespaceResourceScope> + Clone + Debug + Send + 'static,
{
    let api: Api<PartialObjectMeta<K>> = Api::namespaced(world.client.clone(), world.name);
    let config = config.labels("fabedge.io/node");
    let mut shown = pin!(watcher(api, config).default_backoff().applied_objects());
    let mut names = BTreeSet::new();
    while names.len() < count {
        let left = limit.saturating_sub(started.elapsed());
        let Ok(next) = tokio::time::timeout(left, shown.try_next()).await else {
            panic!("{} of {count} after {limit:?}", names.len());
        };
        names.extend(next.ok().flatten().map(|object| object.name_any()));
    }
    started.elapsed()
}

/// Waits until nobody writes to nodes any more: a controller takes three requests for each to let it in.
async fn rest(world: &World) {
    let api: Api<PartialObjectMeta<Node>> = Api::all(world.client.clone());
    let mut shown = pin!(watcher(api, Config::default()).default_backoff());
    while tokio::time::timeout(Duration::from_secs(2), shown.next())
        .await
        .is_ok()
    {}
}

/// A world of many nodes, an operator beside them, and how long that took for all documents and certificates, and for
/// `pods` pods.
fn begin(world: &mut World, nodes: usize, pods: usize, limit: Duration) -> (Process, Duration) {
    let made = Instant::now();
    world.runtime.block_on(async {
        world.add_connector().await;
        if pods > 0 {
            world.template("agent:1", "--log=info").await;
        }
        let edges = stream::iter(1..=nodes).map(|number| world.add_edge(number));
        edges.buffer_unordered(16).collect::<Vec<()>>().await;
        rest(world).await;
    });
    println!(
        "{nodes} nodes made and admitted in {:.1} s",
        made.elapsed().as_secs_f64()
    );
    let started = Instant::now();
    let place = world.start("one");
    let operator = Process(world.operator(place).id());
    let took = world.runtime.block_on(async {
        let config = Config::default;
        let (maps, secrets, pods) = join!(
            all::<ConfigMap>(world, config(), nodes, started, limit),
            all::<Secret>(world, config(), nodes, started, limit),
            all::<Pod>(world, config(), pods, started, limit),
        );
        while peers(world).await != nodes {
            assert!(started.elapsed() < limit, "the connector's document");
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        let took = started.elapsed();
        println!(
            "{nodes} certificates after {:.1} s, documents after {:.1} s, pods after {:.1} s, the connector's document \
             after {:.1} s; {}",
            secrets.as_secs_f64(),
            maps.as_secs_f64(),
            pods.as_secs_f64(),
            took.as_secs_f64(),
            operator.used()
        );
        world
            .wait_to_see("all is right", async || world.wrong(nodes).await, Vec::is_empty)
            .await;
        took
    });
    (operator, took)
}

/// How many edges the connector knows.
async fn peers(world: &World) -> usize {
    let document = world.document("connector-config").await;
    document.map_or(0, |(document, _)| document.peers.len())
}

/// Changes a Community again and again; returns how long members' documents took, the shortest first.
async fn changes(world: &World, count: usize) -> Vec<Duration> {
    let mut times = Vec::new();
    for change in 0..count {
        let members = [1 + change % 2, 3 + change % 3];
        let name = format!("{}.{}", world.name, world.edge(members[1]));
        let started = Instant::now();
        world.join("moving", &members).await;
        world
            .wait_until("the member's document", async || {
                let peers = world.peers(members[0]).await;
                peers.len() == 2 && peers[1] == name
            })
            .await;
        times.push(started.elapsed());
    }
    times.sort();
    times
}

/// The version of every document but those of the five edges that [`changes`] joins.
async fn others(world: &World) -> Vec<(String, Option<String>)> {
    let moving: Vec<String> = (1..=5)
        .map(|number| format!("fabedge-agent-config-{}", world.edge(number)))
        .collect();
    let maps = world.maps().list_metadata(&Default::default()).await.unwrap();
    let versions = maps
        .into_iter()
        .map(|map| (map.name_any(), map.resource_version()));
    versions.filter(|(name, _)| !moving.contains(name)).collect()
}

#[test]
fn a_thousand_edges_and_a_hundred_changes() {
    const NODES: usize = 1000;
    let mut world = World::new("scale");
    let (operator, took) = begin(&mut world, NODES, NODES, Duration::from_secs(180));
    let kubelet = Kubelet::start(&world);
    let times = world.runtime.block_on(async {
        let running = Config::default().fields("status.phase=Running");
        let limit = Duration::from_secs(180);
        all::<Pod>(&world, running, NODES, Instant::now(), limit).await;
        world.settle().await;
        let before = others(&world).await;
        assert!(before.len() > NODES - 5, "{}", before.len());
        let times = changes(&world, CHANGES).await;
        assert_eq!(others(&world).await, before, "only members' documents change");
        times
    });
    drop(kubelet);
    println!(
        "{CHANGES} changes: p50 {:.3} s, p99 {:.3} s; {}",
        percentile(&times, 50),
        percentile(&times, 99),
        operator.used()
    );
    if let Some(file) = std::env::var_os("FABEDGE_TIMES") {
        // For whoever shows them beside others: `cargo xtask bench converge`.
        let seconds: Vec<f64> = times.iter().map(Duration::as_secs_f64).collect();
        let text = serde_json::json!({"nodes": NODES, "seconds": seconds}).to_string();
        std::fs::write(file, text).unwrap();
    }
    assert!(took < Duration::from_secs(10), "{took:?}");
    assert!(percentile(&times, 99) < 1.0, "{times:?}");
    assert!(operator.kib("VmRSS") <= 64 * 1024, "{}", operator.used());
}

/// As many as a cluster may have and more. The last test of its control plane, for to take everything away again would
/// last longer than the test.
#[test]
fn ten_thousand_edges() {
    const NODES: usize = 10_000;
    let mut world = World::new("crowded");
    world.last = true;
    let (operator, took) = begin(&mut world, NODES, 0, Duration::from_secs(360));
    let times = world.runtime.block_on(async {
        let map: ConfigMap = world.maps().get("connector-config").await.unwrap();
        assert!(map.data.is_none(), "it does not fit as it is");
        let packed = map
            .binary_data
            .unwrap()
            .remove("tunnels.yaml.gz")
            .unwrap()
            .0
            .len();
        println!("the connector's document has {packed} bytes of the 1048576 that its ConfigMap holds");
        world.settle().await;
        let before = others(&world).await;
        let times = changes(&world, CHANGES / 10).await;
        assert_eq!(others(&world).await, before, "only members' documents change");
        times
    });
    println!(
        "{} changes: p50 {:.3} s, longest {:.3} s; {}",
        times.len(),
        percentile(&times, 50),
        percentile(&times, 100),
        operator.used()
    );
    assert!(took < Duration::from_secs(60), "{took:?}");
}
