//! What members of FabEdge 0.4 and 1.0 say, word for word, and what they make of the answers.

use fabedge_operator::federation::caller::client_name;
use fabedge_operator::pki::inspect;
use rcgen::KeyPair;
use serde_json::{Value, json};

use super::client::{Client, Identity, Reply};
use super::host::{Host, csr};

/// As Go's HTTP client says it.
async fn go(client: &Client, line: &str, cluster: Option<&str>, more: &[(&str, &str)], body: &str) -> Reply {
    let mut headers = vec![("User-Agent", "Go-http-client/1.1"), ("Accept-Encoding", "gzip")];
    headers.extend(cluster.map(|cluster| ("X-Fabedge-Cluster", cluster)));
    headers.extend(more);
    client.call(line, &headers, body).await
}

/// How both of them join. Their scheme is in lower case, their request says nothing of other names.
async fn join(host: &Host, member: &str) -> Client {
    let cluster = host.name(member);
    let anybody = host.anybody();
    let ca = go(&anybody, "GET /api/ca-cert", None, &[], "").await;
    assert_eq!(ca.status, 200);
    assert_eq!(inspect::certificate_der(&ca.body).unwrap(), host.authority.der());
    let token = host
        .world
        .members()
        .get(&cluster)
        .await
        .unwrap()
        .spec
        .token
        .unwrap();
    let key = KeyPair::generate().unwrap();
    let request = csr(&key, &client_name(&cluster), &[]);
    let headers = [
        ("Authorization", format!("bearer {token}")),
        ("Content-Type", "text/html".to_owned()),
    ];
    let headers: Vec<_> = headers
        .iter()
        .map(|(name, value)| (*name, value.as_str()))
        .collect();
    let reply = go(&anybody, "POST /api/sign-cert", None, &headers, &request).await;
    assert_eq!(reply.status, 200, "{reply:?}");
    // The certificate alone, which they parse and keep.
    assert!(
        reply.body.starts_with("-----BEGIN CERTIFICATE-----\n"),
        "{reply:?}"
    );
    assert_eq!(reply.body.matches("BEGIN").count(), 1, "{reply:?}");
    host.client(Some(&Identity {
        certificate: reply.body,
        key,
    }))
}

/// Whatever was reported, it is told to others in the spelling that both versions read.
async fn is_told(host: &Host, client: &Client, member: &str, teller: &str) {
    let cluster = host.name(member);
    let name = format!("{}.connector", host.name(teller));
    host.world
        .unite(
            "connectors",
            &[
                format!("{cluster}.connector"),
                name.clone(),
                format!("{}.connector", host.world.name),
            ],
        )
        .await;
    let line = "GET /api/endpoints-and-communities";
    let community = format!("{}-connectors", host.world.name);
    let asked = async || go(client, line, Some(&cluster), &[], "").await;
    let both = |reply: &Reply| {
        let told = reply.json();
        let count = |list: &Value| list.as_array().map_or(0, Vec::len);
        count(&told["endpoints"]) == 2 && count(&told["communities"][&community]) == 3
    };
    let told = host
        .world
        .wait_to_see("both connectors are told", asked, both)
        .await;
    assert_eq!(told.header("content-type"), Some("application/json"));
    let told = told.json();
    let other = told["endpoints"]
        .as_array()
        .unwrap()
        .iter()
        .find(|one| one["name"] == name.as_str())
        .unwrap_or_else(|| panic!("{name} is not among {told}"));
    assert_eq!(other["id"], format!("C=CN, O=fabedge.io, CN={name}"));
    assert_eq!(other["type"], "Connector");
    assert!(
        other["publicAddresses"].is_array() && other["subnets"].is_array(),
        "{other}"
    );
    let cidrs = go(client, "GET /api/cidrs", Some(&cluster), &[], "").await;
    assert_eq!(cidrs.status, 200);
    assert!(
        cidrs.json()[host.world.name]
            .as_array()
            .is_some_and(|own| own.contains(&json!("10.0.0.0/8")))
    );
}

/// An endpoint as Go writes it: null for a list with nothing in it. The oldest have no type.
fn endpoint(cluster: &str, subnet: &str, kind: Option<&str>) -> Value {
    let mut endpoint = json!({
        "id": format!("C=CN, O=fabedge.io, CN={cluster}.connector"), "name": format!("{cluster}.connector"),
        "publicAddresses": ["203.0.113.40"], "subnets": [subnet], "nodeSubnets": null,
    });
    if let Some(kind) = kind {
        endpoint["type"] = json!(kind);
    }
    endpoint
}

#[test]
fn members_of_earlier_versions_are_served() {
    let host = Host::start("replays", &["old", "older", "new"]);
    host.run(async {
        let (old, older, new) = (
            join(&host, "old").await,
            join(&host, "older").await,
            join(&host, "new").await,
        );
        let json = [("Content-Type", "application/json")];

        // 0.4: a bare list, every ten seconds, with and without a type.
        for _ in 0..2 {
            let list = json!([endpoint("replays-old", "192.168.0.0/24", Some("Connector"))]).to_string();
            let reply = go(&old, "PUT /api/endpoints", Some("replays-old"), &json, &list).await;
            assert_eq!((reply.status, reply.body.as_str()), (204, ""));
        }
        for kind in [None, Some("")] {
            let list = json!([endpoint("replays-older", "192.168.1.0/24", kind)]).to_string();
            let reply = go(&older, "PUT /api/endpoints", Some("replays-older"), &json, &list).await;
            assert_eq!(reply.status, 204, "{reply:?}");
        }
        // 1.0: the Cluster with what Go writes though nobody set it.
        let cluster = json!({
            "metadata": {"name": "replays-new", "creationTimestamp": null},
            "spec": {
                "cidrs": ["192.168.2.0/24", "192.168.3.0/24"],
                "endPoints": [endpoint("replays-new", "192.168.2.0/24", Some("Connector"))],
            },
        });
        let text = cluster.to_string();
        let reply = go(&new, "PUT /api/cluster", Some("replays-new"), &json, &text).await;
        assert_eq!((reply.status, reply.body.as_str()), (204, ""));
        let kept = host.world.members().get("replays-new").await.unwrap().spec;
        assert_eq!(kept.cidrs, ["192.168.2.0/24", "192.168.3.0/24"]);
        assert_eq!(kept.endpoints[0].kind, "Connector");
        // Nothing has changed: nothing is written.
        let before = host
            .world
            .members()
            .get("replays-new")
            .await
            .unwrap()
            .metadata
            .generation;
        assert_eq!(
            go(&new, "PUT /api/cluster", Some("replays-new"), &json, &text)
                .await
                .status,
            204
        );
        assert_eq!(
            host.world
                .members()
                .get("replays-new")
                .await
                .unwrap()
                .metadata
                .generation,
            before
        );

        // The older form of the same: it has no prefixes, and those that were told stay.
        for subnet in ["192.168.3.0/24", "192.168.2.0/24"] {
            let list = json!([endpoint("replays-new", subnet, Some("Connector"))]).to_string();
            let reply = go(&new, "PUT /api/endpoints", Some("replays-new"), &json, &list).await;
            assert_eq!((reply.status, reply.body.as_str()), (204, ""));
            let kept = host.world.members().get("replays-new").await.unwrap().spec;
            assert_eq!(kept.cidrs, ["192.168.2.0/24", "192.168.3.0/24"]);
            assert_eq!(kept.endpoints[0].subnets, [subnet]);
        }
        // Who says that it has none has none.
        let nothing = text.replace(r#"["192.168.2.0/24","192.168.3.0/24"]"#, "null");
        assert_ne!(nothing, text);
        for (text, count) in [(&nothing, 0), (&text, 2)] {
            let reply = go(&new, "PUT /api/cluster", Some("replays-new"), &json, text).await;
            assert_eq!(reply.status, 204, "{reply:?}");
            assert_eq!(
                host.world
                    .members()
                    .get("replays-new")
                    .await
                    .unwrap()
                    .spec
                    .cidrs
                    .len(),
                count
            );
        }

        is_told(&host, &old, "old", "new").await;
        is_told(&host, &older, "older", "old").await;
        is_told(&host, &new, "new", "older").await;

        // Their edges' and connectors' certificates.
        let key = KeyPair::generate().unwrap();
        for name in ["replays-new.connector", "replays-new.edge1"] {
            let text = [("Content-Type", "text/plain")];
            let reply = go(
                &new,
                "POST /api/sign-cert",
                Some("replays-new"),
                &text,
                &csr(&key, name, &[]),
            )
            .await;
            assert_eq!(reply.status, 200, "{name}: {reply:?}");
        }
        // A cluster that was taken away.
        host.world
            .members()
            .delete("replays-old", &Default::default())
            .await
            .unwrap();
        let asked = async || go(&old, "GET /api/cidrs", Some("replays-old"), &[], "").await;
        host.world
            .wait_to_see("it is not known any more", asked, |reply| reply.status == 404)
            .await;
        let list = json!([endpoint("replays-old", "192.168.0.0/24", Some("Connector"))]).to_string();
        assert_eq!(
            go(&old, "PUT /api/endpoints", Some("replays-old"), &json, &list)
                .await
                .status,
            404
        );
        // They know the server by the address that they dial.
        assert!(host.is_at("203.0.113.1").connect().await.is_ok());
        assert!(host.is_at("172.19.0.1").connect().await.is_ok());
        assert!(host.is_at("203.0.113.99").connect().await.is_err());
        host.still_serves("new").await;
    });
}
