//! What a member says of itself that is not its to say.

use serde_json::json;

use super::host::{Host, connector};
use crate::cluster::world::subnet;

#[test]
fn what_is_not_its_own_is_left_out_and_told_and_the_rest_is_taken() {
    let host = Host::start("reports", &["beijing", "shanghai"]);
    host.run(async {
        let (beijing, shanghai) = (host.member("beijing"), host.member("shanghai"));
        let put = |endpoints: serde_json::Value, cidrs: serde_json::Value| {
            json!({"spec": {"cidrs": cidrs, "endpoints": endpoints}}).to_string()
        };
        let body = put(
            json!([connector("reports-shanghai", "192.168.64.0/18")]),
            json!(["192.168.64.0/18"]),
        );
        assert_eq!(shanghai.call("PUT /api/cluster", &[], &body).await.status, 204);
        let taken = async || host.world.members().get("reports-beijing").await.unwrap();
        let good = connector("reports-beijing", "192.168.0.0/18");
        let edge = |node: &str, subnet: &str| {
            let mut endpoint = connector("reports-beijing", subnet);
            endpoint["id"] = json!(format!("C=CN, O=fabedge.io, CN=reports-beijing.{node}"));
            endpoint["name"] = json!(format!("reports-beijing.{node}"));
            endpoint["type"] = json!("EdgeNode");
            endpoint
        };
        host.world
            .wait_until("the other's prefixes are known", async || {
                shanghai.call("GET /api/cidrs", &[], "").await.json()["reports-shanghai"]
                    == json!(["192.168.64.0/18"])
            })
            .await;
        for (bad, why) in [
            (edge("edge1", "0.0.0.0/0"), "default route"),
            (edge("edge1", "::/0"), "default route"),
            (edge("edge1", "0.0.0.0/1"), "usable unicast"),
            (edge("edge1", "127.0.0.0/8"), "usable unicast"),
            (edge("edge1", "224.0.0.0/4"), "usable unicast"),
            // Another member's, a part of it and more than it.
            (edge("edge1", "192.168.64.0/18"), "of cluster reports-shanghai"),
            (edge("edge1", "192.168.70.0/24"), "of cluster reports-shanghai"),
            (edge("edge1", "192.168.0.0/16"), "of cluster reports-shanghai"),
            // The host's: its pods, its edges' pods, its services, a node.
            (edge("edge1", "10.32.0.0/24"), "of the host cluster"),
            (edge("edge1", &subnet(1)), "of the host cluster"),
            (edge("edge1", "172.21.8.0/24"), "of the host cluster"),
            (edge("edge1", "172.19.0.1/32"), "of the host cluster"),
            // Names of others, and one that nobody has.
            (
                connector("reports", "10.99.0.0/24"),
                "must be reports-beijing.<node>",
            ),
            (
                connector("reports-shanghai", "10.99.0.0/24"),
                "must be reports-beijing.<node>",
            ),
            (
                connector("reports-beijing2", "10.99.0.0/24"),
                "must be reports-beijing.<node>",
            ),
            (connector("reports-beijing", "192.168.1.0/24"), "is there already"),
            (edge("", "192.168.1.0/24"), "must be reports-beijing.<node>"),
        ] {
            for (line, body) in [
                ("PUT /api/cluster", put(json!([good, bad]), json!(null))),
                ("PUT /api/endpoints", json!([good, bad]).to_string()),
            ] {
                let reply = beijing.call(line, &[], &body).await;
                assert_eq!(reply.status, 400, "{bad}: {reply:?}");
                assert!(reply.body.contains("spec.endpoints[1]"), "{bad}: {reply:?}");
                assert!(reply.body.contains(why), "{bad}: {reply:?}");
                let endpoints = taken().await.spec.endpoints;
                assert_eq!(endpoints.len(), 1, "{bad}: {endpoints:?}");
                assert_eq!(endpoints[0].name, "reports-beijing.connector");
            }
        }
        let body = put(
            json!([good]),
            json!(["192.168.0.0/18", "10.0.0.0/8", "0.0.0.0/0", "hello"]),
        );
        let reply = beijing.call("PUT /api/cluster", &[], &body).await;
        assert_eq!(reply.status, 400);
        for field in ["spec.cidrs[1]", "spec.cidrs[2]", "spec.cidrs[3]"] {
            assert!(reply.body.contains(field), "{reply:?}");
        }
        assert!(!reply.body.contains("spec.cidrs[0]"), "{reply:?}");
        assert_eq!(taken().await.spec.cidrs, ["192.168.0.0/18"]);

        // Told to the host's administrator, too.
        let cluster = ("Cluster", "beijing");
        host.world
            .wait_for_event(cluster, "Warning", "spec.cidrs[1]")
            .await;
        let accepted = ("beijing", "Accepted");
        host.world
            .wait_until_cluster_told("a condition tells", accepted, |text| {
                text.contains("spec.cidrs[1]")
            })
            .await;
        // And no more, once it is mended.
        let body = put(json!([good]), json!(["192.168.0.0/18"]));
        assert_eq!(beijing.call("PUT /api/cluster", &[], &body).await.status, 204);
        host.world
            .wait_until_cluster_told("the condition is good", accepted, |text| {
                text.starts_with("True") && !text.contains("spec.cidrs")
            })
            .await;

        // What is no report at all changes nothing.
        host.world.silence().await;
        let before = taken().await.metadata.resource_version;
        for body in [
            "",
            "{",
            "3",
            "{\"spec\": 3}",
            "{\"spec\": {\"endpoints\": [3]}}",
            "\u{0}",
        ] {
            assert_eq!(
                beijing.call("PUT /api/cluster", &[], body).await.status,
                400,
                "{body}"
            );
        }
        let deep = "[".repeat(200_000);
        for body in ["{}", "", "[3]", &deep] {
            assert_eq!(
                beijing.call("PUT /api/endpoints", &[], body).await.status,
                400,
                "{body:.10}"
            );
        }
        // Its token, its metadata, its status are not the member's to write.
        let sly = json!({
            "metadata": {"name": "reports-shanghai", "labels": {"a": "b"}}, "status": {"conditions": []},
            "spec": {"token": "mine", "cidrs": ["192.168.0.0/18"], "endpoints": [good]},
        });
        assert_eq!(
            beijing
                .call("PUT /api/cluster", &[], &sly.to_string())
                .await
                .status,
            204
        );
        let cluster = taken().await;
        assert_eq!(cluster.metadata.resource_version, before);
        host.still_serves("beijing").await;
    });
}
