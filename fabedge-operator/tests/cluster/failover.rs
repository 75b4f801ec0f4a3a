//! Two operators, of whom the leader goes while documents are being written.

use std::collections::BTreeMap;
use std::pin::pin;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use fabedge_common::config::NodeConfig;
use futures_util::{StreamExt as _, TryStreamExt as _, stream};
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::ConfigMap;
use kube::api::ListParams;
use kube::runtime::WatchStreamExt as _;
use kube::runtime::watcher::{Config, watcher};
use kube::{Api, ResourceExt as _};
use rustix::process::Signal;

use super::world::{World, text};

const EDGES: usize = 600;

/// As many are seen written when the leader goes; a slow watch leaves it the time for some more.
const MIDDLE: usize = 30;

/// A lease that is not given back runs out after 15 s; what is left to write takes a slow machine longer than that.
const LIMIT: Duration = Duration::from_secs(120);

/// Every edge's document as its watch showed it. Other nodes of the cluster are none of ours.
#[derive(Debug, Default)]
struct Shown {
    generations: BTreeMap<String, u64>,
    /// Which became older.
    older: Vec<String>,
}

impl Shown {
    fn follow(world: &World) -> Arc<Mutex<Self>> {
        let shown = Arc::new(Mutex::new(Self::default()));
        let (maps, into) = (world.maps(), Arc::clone(&shown));
        world.runtime.spawn(async move {
            let config = Config::default().labels("fabedge.io/node");
            let mut maps = pin!(watcher(maps, config).default_backoff().applied_objects());
            loop {
                if let Ok(Some(map)) = maps.try_next().await {
                    into.lock().unwrap().take(map);
                }
            }
        });
        shown
    }

    fn take(&mut self, map: ConfigMap) {
        let name = map.name_any();
        let generation = NodeConfig::parse(&text(map).unwrap()).unwrap().generation;
        let before = self.generations.insert(name.clone(), generation);
        if before.is_some_and(|before| before > generation) {
            self.older.push(format!("{name}: {before:?}, then {generation}"));
        }
    }
}

/// Starts both beside all edges, and waits until documents are being written; returns the place of the leader and that
/// of the other.
fn in_the_middle(world: &mut World) -> ([usize; 2], Arc<Mutex<Shown>>) {
    world.runtime.block_on(async {
        world.add_connector().await;
        let edges = stream::iter(1..=EDGES).map(|number| world.add_edge(number));
        edges.buffer_unordered(16).collect::<Vec<()>>().await;
    });
    let shown = Shown::follow(world);
    let places = [world.start("first"), world.start("second")];
    let leases: Api<Lease> = Api::namespaced(world.client.clone(), world.name);
    let holder = async || {
        let lease = leases.get_opt("fabedge-operator-leader").await.unwrap();
        let holder = lease.and_then(|lease| lease.spec?.holder_identity);
        holder.unwrap_or_default()
    };
    let written = async || shown.lock().unwrap().generations.len();
    let leader = world.runtime.block_on(async {
        let somebody = |holder: &String| !holder.is_empty();
        let leader = world.wait_to_see("somebody leads", holder, somebody).await;
        world
            .wait_to_see("documents are written", written, |count| *count >= MIDDLE)
            .await;
        leader
    });
    let places = if leader == "first" {
        places
    } else {
        [places[1], places[0]]
    };
    (places, shown)
}

/// Waits until the other one leads.
async fn leads(world: &World, other: usize) -> Duration {
    let leads = async || world.said(name(other)).contains("leading");
    world.wait_until("the other one leads", leads).await
}

/// Waits until everything is as it should be by the doing of the other one.
async fn followed(world: &World, shown: &Mutex<Shown>) -> Duration {
    let started = Instant::now();
    loop {
        if shown.lock().unwrap().generations.len() == EDGES {
            let wrong = world.wrong(EDGES).await;
            if wrong.is_empty() {
                break;
            }
            assert!(started.elapsed() < LIMIT, "{wrong:?}");
        }
        assert!(
            started.elapsed() < LIMIT,
            "{} documents",
            shown.lock().unwrap().generations.len()
        );
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    let took = started.elapsed();
    world.settle().await;
    assert_eq!(world.wrong(EDGES).await, [""; 0]);
    assert_eq!(shown.lock().unwrap().older, [""; 0]);
    took
}

fn name(place: usize) -> &'static str {
    ["first", "second"][place]
}

/// How many edges have a document.
async fn documents(world: &World) -> usize {
    let params = ListParams::default().labels("fabedge.io/node");
    world.maps().list_metadata(&params).await.unwrap().items.len()
}

#[test]
fn a_leader_that_is_killed_in_the_middle_is_followed() {
    let mut world = World::new("killed");
    let ([leader, _], shown) = in_the_middle(&mut world);
    world.operator(leader).kill().unwrap();
    let written = world.runtime.block_on(documents(&world));
    assert!(written < EDGES, "it had done everything");
    let took = world.runtime.block_on(followed(&world, &shown));
    println!("killed after {written} of {EDGES} documents: the others within {took:?}");
}

/// SIGTERM: nobody waits until everything is written, and the other one need not wait until the lease is over.
#[test]
fn a_leader_that_is_ended_in_the_middle_hands_over() {
    let mut world = World::new("handed");
    let ([leader, other], shown) = in_the_middle(&mut world);
    assert!(world.terminate(leader), "it ends well");
    world.runtime.block_on(async {
        let written = documents(&world).await;
        let took = leads(&world, other).await;
        assert!(took < Duration::from_secs(10), "{took:?}");
        let all = followed(&world, &shown).await;
        println!("ended after {written} of {EDGES} documents: another leads after {took:?}, the others within {all:?}");
        assert!(written < EDGES, "it did everything first");
    });
}

/// A machine that slept, say: it wakes up and takes itself for the leader.
#[test]
fn a_leader_that_was_stopped_in_the_middle_does_not_go_on() {
    let mut world = World::new("stopped");
    let ([leader, other], shown) = in_the_middle(&mut world);
    world.signal(leader, Signal::STOP);
    world.runtime.block_on(async {
        assert!(documents(&world).await < EDGES, "it had done everything");
        leads(&world, other).await;
        followed(&world, &shown).await;
    });
    world.signal(leader, Signal::CONT);
    let status = world.ended(leader);
    assert!(!status.success(), "{status}");
    let said = world.said(name(leader));
    assert!(said.contains("another operator may hold it"), "{said}");
    world.runtime.block_on(followed(&world, &shown));
}
