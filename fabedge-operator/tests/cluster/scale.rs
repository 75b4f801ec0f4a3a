use std::time::{Duration, Instant};

use futures_util::{StreamExt as _, stream};
use k8s_openapi::api::core::v1::Pod;
use kube::api::ListParams;

use super::kubelet::Kubelet;
use super::world::World;

const NODES: usize = 1000;
const CHANGES: usize = 100;

/// Figures for 1,000 nodes, with limits that a loaded machine keeps too.
#[test]
fn a_thousand_edges_and_a_hundred_changes() {
    let mut world = World::new("scale");
    world.runtime.block_on(async {
        world.add_connector().await;
        world.template("agent:1", "--log=info").await;
        let edges = stream::iter(1..=NODES).map(|number| world.add_edge(number));
        edges.buffer_unordered(16).collect::<Vec<()>>().await;
    });
    let started = Instant::now();
    let place = world.start("one");
    let published = async || {
        let params = ListParams::default().labels("fabedge.io/node");
        let list = world.maps().list_metadata(&params).await.unwrap();
        list.items.len() == NODES
    };
    let took = world.runtime.block_on(async {
        while !published().await {
            assert!(
                started.elapsed() < Duration::from_secs(60),
                "no documents for all"
            );
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        started.elapsed()
    });
    println!(
        "{NODES} documents and certificates in {:.1} s",
        took.as_secs_f64()
    );
    assert!(took < Duration::from_secs(30), "{took:?}");

    let kubelet = Kubelet::start(&world);
    let ready = async || {
        let params = ListParams::default().labels("fabedge.io/app=fabedge-agent");
        let pods = world.pods().list(&params).await.unwrap().items;
        let ready = |pod: &Pod| pod.status.clone().unwrap_or_default().phase.as_deref() == Some("Running");
        pods.iter().filter(|pod| ready(pod)).count() == NODES
    };
    let took = world.runtime.block_on(async {
        while !ready().await {
            assert!(started.elapsed() < Duration::from_secs(120), "no pods for all");
            tokio::time::sleep(Duration::from_millis(500)).await;
        }
        started.elapsed()
    });
    println!("{NODES} pods that run after {:.1} s", took.as_secs_f64());

    let version = async || {
        let (_, version) = world
            .document("fabedge-agent-config-scale-edge999")
            .await
            .unwrap();
        version
    };
    let mut times = Vec::new();
    world.runtime.block_on(async {
        let untouched = version().await;
        for change in 0..CHANGES {
            let members = [1 + change % 2, 3 + change % 3];
            let name = format!("scale.{}", world.edge(members[1]));
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
        assert_eq!(version().await, untouched, "only members' documents change");
    });
    drop(kubelet);
    times.sort();
    let at = |percent: usize| times[(times.len() * percent / 100).min(times.len() - 1)].as_secs_f64();
    let status = std::fs::read_to_string(format!("/proc/{}/status", world.operator(place).id())).unwrap();
    let resident = status
        .lines()
        .find_map(|line| line.strip_prefix("VmRSS:"))
        .unwrap()
        .trim()
        .to_owned();
    println!(
        "{CHANGES} changes: p50 {:.3} s, p99 {:.3} s; operator {resident}",
        at(50),
        at(99)
    );
    assert!(at(99) < 3.0, "{times:?}");
    let kib: u64 = resident.split(' ').next().unwrap().parse().unwrap();
    assert!(kib <= 64 * 1024, "{resident}");
}
