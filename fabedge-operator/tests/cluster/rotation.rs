//! The authority is replaced by another one, as the documentation says.

use std::time::Duration;

use fabedge_operator::pki::Trust;
use fabedge_operator::pki::inspect::{certificate_der, verifies};
use k8s_openapi::ByteString;
use kube::api::Patch;
use serde_json::json;
use time::OffsetDateTime;

use super::published::entry;
use super::world::World;

/// The trust that a Secret holds, and the place in it of the one that issued its certificate.
async fn trust(world: &World, secret: &str) -> Option<(Vec<Vec<u8>>, usize)> {
    let secret = world.secrets().get_opt(secret).await.unwrap()?;
    let trust = Trust::read(&entry(&secret, "ca.crt")?, OffsetDateTime::now_utc()).unwrap();
    let leaf = certificate_der(&entry(&secret, "tls.crt")?).unwrap();
    let issuer = trust.all().position(|ca| verifies(&leaf, ca));
    Some((trust.all().map(<[u8]>::to_vec).collect(), issuer.unwrap()))
}

#[test]
fn both_authorities_are_trusted_while_one_takes_over() {
    let mut world = World::new("rotation");
    world.start("one");
    world.runtime.block_on(async {
        world.add_connector().await;
        world.add_edge(1).await;
        let edge = format!("fabedge-agent-tls-{}", world.edge(1));
        let everywhere = async |count: usize, signs: &dyn Fn(&[u8]) -> bool| {
            for secret in [edge.as_str(), "connector-tls"] {
                let Some((all, 0)) = trust(&world, secret).await else {
                    return false;
                };
                if all.len() != count || !signs(&all[0]) {
                    return false;
                }
            }
            true
        };
        world
            .wait_until("there are certificates", async || everywhere(1, &|_| true).await)
            .await;
        let (old, _) = trust(&world, &edge).await.unwrap();
        let old = old.into_iter().next().unwrap();
        world.settle().await;

        let asked = tokio::time::Instant::now();
        world.kubectl(&[
            "annotate",
            "secret",
            "-n",
            world.name,
            "fabedge-ca",
            "fabedge.io/rotate-ca=10",
        ]);
        world
            .wait_until("both are trusted", async || everywhere(2, &|ca| ca == old).await)
            .await;
        world
            .wait_until("the new one signs", async || everywhere(2, &|ca| ca != old).await)
            .await;
        assert!(
            asked.elapsed() >= Duration::from_secs(10),
            "not before it was told of"
        );
        let (both, _) = trust(&world, &edge).await.unwrap();
        assert!(both.contains(&old), "the old one stays beside it");
        let ca = world.secrets().get("fabedge-ca").await.unwrap();
        assert!(
            ca.metadata.annotations.unwrap_or_default().is_empty(),
            "asked once"
        );

        // The old one's time is over; nobody waits for 90 days here.
        let over = ByteString(b"2026-01-01T00:00:00Z".to_vec());
        let patch = json!({"data": {"previous.until": over}});
        world
            .secrets()
            .patch("fabedge-ca", &Default::default(), &Patch::Merge(patch))
            .await
            .unwrap();
        world
            .wait_until("the new one alone is trusted", async || {
                everywhere(1, &|ca| ca != old).await
            })
            .await;
    });
}
