//! Several replicas, of which the leader serves: calls by the Service go to it and to nobody else.

use std::net::Ipv4Addr;
use std::time::{Duration, Instant};

use k8s_openapi::api::core::v1::{Endpoints, Service};
use kube::Api;
use kube::api::{Patch, PatchParams, PostParams};
use rustix::process::Signal;
use serde_json::json;

use super::host::Host;
use crate::cluster::world::PATIENCE;

/// The replicas' pods: of each the address that the Service has, and the one of loopback at which it really is.
const PODS: [(&str, Ipv4Addr, Ipv4Addr); 2] = [
    ("one", Ipv4Addr::new(192, 0, 2, 1), Ipv4Addr::new(127, 0, 0, 1)),
    ("two", Ipv4Addr::new(192, 0, 2, 2), Ipv4Addr::new(127, 0, 0, 2)),
];

/// The addresses that kube-proxy would choose from.
async fn endpoints(host: &Host) -> Vec<Ipv4Addr> {
    let endpoints: Api<Endpoints> = Api::namespaced(host.world.client.clone(), host.world.name);
    let there = endpoints.get_opt("fabedge-operator").await.unwrap();
    let subsets = there.and_then(|there| there.subsets).unwrap_or_default();
    let addresses = subsets
        .into_iter()
        .filter_map(|subset| subset.addresses)
        .flatten();
    addresses.map(|address| address.ip.parse().unwrap()).collect()
}

/// Whether every address that one could be sent to answers.
async fn all_answer(host: &Host) -> bool {
    let addresses = endpoints(host).await;
    for address in &addresses {
        let (_, _, real) = PODS.iter().find(|(_, pod, _)| pod == address).unwrap();
        let request = "GET /api/ca-cert HTTP/1.1\r\nHost: host\r\n\r\n";
        match host.anybody_at(*real).raw([request]).await {
            Ok(reply) => assert_eq!(reply.status, 200, "{reply:?}"),
            Err(error) => {
                eprintln!("{real}: {error}");
                return false;
            }
        }
    }
    !addresses.is_empty()
}

/// Waits until calls go to this one of the pods, and are answered; returns how long that took.
async fn calls_go_to(host: &Host, place: usize) -> Duration {
    let began = Instant::now();
    while endpoints(host).await != [PODS[place].1] || !all_answer(host).await {
        assert!(
            began.elapsed() < PATIENCE,
            "{:?} after {PATIENCE:?}",
            endpoints(host).await
        );
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    began.elapsed()
}

/// So often one looks, for a while.
const LOOKS: usize = 40;

/// For a while no call fails.
async fn nobody_is_turned_away(host: &Host, place: usize) {
    for _ in 0..LOOKS {
        assert_eq!(endpoints(host).await, [PODS[place].1]);
        assert!(all_answer(host).await);
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// Waits until that is so, where something may still be on its way to who makes the endpoints.
async fn nobody_is_turned_away_any_more(host: &Host, place: usize) {
    let began = Instant::now();
    let mut good = 0;
    while good < LOOKS {
        let there = endpoints(host).await;
        assert!(began.elapsed() < PATIENCE, "{there:?} after {PATIENCE:?}");
        let so = there == [PODS[place].1] && all_answer(host).await;
        good = if so { good + 1 } else { 0 };
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

#[test]
fn calls_find_the_leader_among_the_replicas() {
    let mut host = Host::start("replicas", &[]);
    let client = host.world.client.clone();
    // As the chart has it.
    let service: Service = serde_json::from_value(json!({
        "metadata": {"name": "fabedge-operator"},
        "spec": {
            "selector": {"fabedge.io/app": "fabedge-operator", "fabedge.io/leader": "true"},
            "publishNotReadyAddresses": true,
            "ports": [{"name": "api", "protocol": "TCP", "port": 3030}],
        },
    }))
    .unwrap();
    let services: Api<Service> = Api::namespaced(client, host.world.name);
    let status = |address: Ipv4Addr, ready: &str| {
        json!({
            "phase": "Running", "podIP": address, "podIPs": [{"ip": address}],
            "conditions": [{"type": "Ready", "status": ready}],
        })
    };
    host.run(async {
        services.create(&PostParams::default(), &service).await.unwrap();
        for (name, address, _) in PODS {
            // Also while it is not ready: only standbys are to be left out.
            let ready = if name == "one" { "False" } else { "True" };
            host.world
                .pod_of("fabedge-operator", name, status(address, ready))
                .await;
        }
        calls_go_to(&host, 0).await;
    });
    let two = host.replica("two", PODS[1].2);
    host.run(async {
        host.world
            .wait_until("it starts", async || host.world.said("two").contains("starting"))
            .await;
        nobody_is_turned_away(&host, 0).await;
        // Somebody labels the other one.
        let label = json!({"metadata": {"labels": {"fabedge.io/leader": "true"}}});
        host.world
            .pods()
            .patch("two", &PatchParams::default(), &Patch::Merge(&label))
            .await
            .unwrap();
        let labels = async || {
            let pod = host.world.pods().get("two").await.unwrap();
            pod.metadata.labels.unwrap_or_default()
        };
        host.world
            .wait_to_see("the label is taken away", labels, |labels| {
                !labels.contains_key("fabedge.io/leader")
            })
            .await;
        nobody_is_turned_away_any_more(&host, 0).await;
    });

    assert!(host.world.terminate(0), "it ends well");
    let handed = host.run(calls_go_to(&host, 1));
    // It comes back beside the new leader.
    host.replica("one", PODS[0].2);
    host.run(async {
        host.world
            .wait_until("it starts", async || host.world.said("one").contains("starting"))
            .await;
        nobody_is_turned_away(&host, 1).await;
    });
    host.world.signal(two, Signal::KILL);
    let taken = host.run(calls_go_to(&host, 0));
    println!("calls find the next leader {handed:?} after one that ends, {taken:?} after one that is killed");
    assert!(handed < Duration::from_secs(10), "{handed:?}");
    host.run(nobody_is_turned_away(&host, 0));
}
