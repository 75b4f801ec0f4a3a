//! Certificates are taken back, as the documentation says, and everybody is told who could still be shown one.

use std::collections::BTreeSet;

use fabedge_operator::pki::Trust;
use fabedge_operator::pki::revocation::{revocation_of, serial};
use time::OffsetDateTime;

use super::published::entry;
use super::world::World;

/// The serial number of the certificate in a Secret.
async fn serial_in(world: &World, secret: &str) -> Option<String> {
    let secret = world.secrets().get_opt(secret).await.unwrap()?;
    Some(revocation_of(&entry(&secret, "tls.crt")?)?.0)
}

/// What the lists in a Secret name, as openssl reads them.
async fn listed(world: &World, secret: &str) -> BTreeSet<String> {
    let Some(secret) = world.secrets().get_opt(secret).await.unwrap() else {
        return BTreeSet::new();
    };
    let lists = entry(&secret, "ca.crl").unwrap_or_default();
    let trust = Trust::read(&entry(&secret, "ca.crt").unwrap(), OffsetDateTime::now_utc()).unwrap();
    trust
        .with_lists(&lists)
        .expect("lists of the authorities beside them");
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("ca.crl");
    std::fs::write(&file, &lists).unwrap();
    if lists.is_empty() {
        return BTreeSet::new();
    }
    let text = std::process::Command::new("openssl")
        .args(["crl", "-noout", "-text", "-in"])
        .arg(&file)
        .output()
        .unwrap();
    let text = String::from_utf8(text.stdout).unwrap();
    let serials = text
        .lines()
        .filter_map(|line| line.trim().strip_prefix("Serial Number:"));
    serials.filter_map(serial).collect()
}

#[test]
fn who_could_show_what_is_revoked_is_known_everywhere() {
    let mut world = World::new("revocation");
    world.start("one");
    world.runtime.block_on(async {
        world.add_connector().await;
        world.add_edge(1).await;
        world.add_edge(2).await;
        let [one, two] = [1, 2].map(|number| format!("fabedge-agent-tls-{}", world.edge(number)));
        let everybody = ["connector-tls", one.as_str(), two.as_str()];
        let told = async |secrets: &[&str], serials: &[&String]| {
            let serials: BTreeSet<String> = serials.iter().map(|serial| (*serial).clone()).collect();
            for secret in secrets {
                if listed(&world, secret).await != serials {
                    return false;
                }
            }
            true
        };
        for secret in everybody {
            world
                .wait_until("there are certificates", async || {
                    serial_in(&world, secret).await.is_some()
                })
                .await;
        }
        world.settle().await;
        assert!(
            told(&everybody, &[]).await,
            "nothing is revoked, and there are no lists"
        );

        // Somebody has copied the key of an edge: its Secret is deleted.
        let first = serial_in(&world, &one).await.unwrap();
        world.kubectl(&["delete", "secret", "-n", world.name, &one]);
        world
            .wait_until("everybody knows", async || told(&everybody, &[&first]).await)
            .await;
        let second = serial_in(&world, &one).await.unwrap();
        assert_ne!(second, first);

        // By its number: it is issued anew.
        let annotation = format!("fabedge.io/revoke={}, nonsense", second.to_uppercase());
        world.kubectl(&["annotate", "secret", "-n", world.name, "fabedge-ca", &annotation]);
        world
            .wait_until("everybody knows of both", async || {
                told(&everybody, &[&first, &second]).await
            })
            .await;
        let another = |serial: &Option<String>| {
            let serial = serial.as_ref();
            serial.is_some_and(|serial| ![&first, &second].contains(&serial))
        };
        let serial = async || serial_in(&world, &one).await;
        world
            .wait_to_see("it has another certificate", serial, another)
            .await;
        let annotations = async || {
            let ca = world.secrets().get("fabedge-ca").await.unwrap();
            ca.metadata.annotations.unwrap_or_default()
        };
        world
            .wait_to_see("what is unclear stays to be seen", annotations, |left| {
                left.get("fabedge.io/revoke")
                    .is_some_and(|left| left == "nonsense")
            })
            .await;
        world
            .wait_until("that is told", async || {
                world.said("one").contains("\"nonsense\"")
            })
            .await;

        // A node leaves: nobody would let it in, so nobody is told, until there is one of that name again.
        let left = serial_in(&world, &two).await.unwrap();
        world.settle().await;
        world
            .nodes()
            .delete(&world.edge(2), &Default::default())
            .await
            .unwrap();
        world
            .wait_until("its certificate is noted", async || {
                let ca = world.secrets().get("fabedge-ca").await.unwrap();
                entry(&ca, "revoked").unwrap_or_default().contains(&left)
                    && world.secrets().get_opt(&two).await.unwrap().is_none()
            })
            .await;
        assert!(told(&everybody[..2], &[&first, &second]).await);
        world.add_edge(2).await;
        world
            .wait_until("everybody knows of the one of before", async || {
                told(&everybody, &[&first, &second, &left]).await
            })
            .await;
        assert_ne!(serial_in(&world, &two).await.unwrap(), left);
    });
}
