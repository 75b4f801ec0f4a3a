//! What users are told: statuses and Events.

use std::time::{Duration, Instant};

use fabedge_operator::api::Community;
use futures_util::{StreamExt as _, stream};
use k8s_openapi::api::core::v1::Event;
use kube::Api;
use kube::api::{DeleteParams, ListParams};

use super::told::said;
use super::world::World;

/// Statuses that must not keep documents waiting.
const CROWD: usize = 1000;

#[test]
fn a_community_tells_who_is_ready() {
    let mut world = World::new("tells");
    world.start("one");
    world.runtime.block_on(async {
        world.add_connector().await;
        for number in 1..=3 {
            world.add_edge(number).await;
        }
        world.join("shops", &[1, 2]).await;
        let shops = ("shops", "Ready");
        world
            .wait_until_told("nobody is ready", shops, |count, text| {
                count == "0/2"
                    && text
                        == "False MembersNotReady: 0/2 members ready: tells.tells-edge1 is not (it has no agent pod), \
                            tells.tells-edge2 is not (it has no agent pod)"
            })
            .await;
        world.template("agent:1", "--log=info").await;
        world.agent(1, true).await;
        world.agent(2, false).await;
        world
            .wait_until_told("one is", shops, |count, text| {
                count == "1/2"
                    && text.ends_with(
                        "1/2 members ready: tells.tells-edge2 is not (its agent pod is not ready)",
                    )
            })
            .await;
        world.agent(2, true).await;
        world
            .wait_until_told("both are", shops, |count, _| count == "2/2")
            .await;
        let community = ("Community", "shops");
        world
            .wait_for_event(community, "Normal MembersReady", "2/2 members ready")
            .await;
        let table = world.kubectl(&["get", "community", "tells-shops"]);
        let words = |line: Option<&str>| -> Vec<String> {
            line.unwrap_or_default()
                .split_whitespace()
                .map(str::to_owned)
                .collect()
        };
        assert_eq!(
            words(table.lines().next()),
            ["NAME", "MEMBERS", "READY", "AGE"],
            "{table}"
        );
        assert!(words(table.lines().nth(1)).contains(&"2/2".to_owned()), "{table}");
        let condition = "--for=condition=Ready";
        world.kubectl(&["wait", condition, "--timeout=60s", "community/tells-shops"]);

        // One who is not there yet.
        world.join("shops", &[1, 2, 9]).await;
        world
            .wait_until_told("it is counted", shops, |count, text| {
                count == "2/3"
                    && text.starts_with(
                        "False MembersPending: 2/3 members ready: tells.tells-edge9 is not (there is no",
                    )
            })
            .await;
        let object = world.communities().get("tells-shops").await.unwrap();
        let status = object.status.unwrap();
        assert_eq!(status.unknown_members, ["tells.tells-edge9"]);
        assert_eq!(status.observed_generation, Some(2));
        world
            .wait_for_event(community, "Warning Pending: spec.members[2]", "tells-edge9")
            .await;
        world.add_edge(9).await;
        world.agent(9, true).await;
        world
            .wait_until_told("it comes", shops, |count, _| count == "3/3")
            .await;

        // A pod that fails, and no document changes.
        world.agent(9, false).await;
        world
            .wait_until_told("it fails", shops, |count, _| count == "2/3")
            .await;
        // The connector, whose pod is another's.
        world
            .community("wide", &["tells.connector", "tells.tells-edge1"])
            .await;
        world
            .wait_until_told("its pod is missed", ("wide", "Ready"), |_, text| {
                text.ends_with("1/2 members ready: tells.connector is not (its pod is not ready)")
            })
            .await;
        world.connector(true).await;
        world
            .wait_until_told("it is ready", ("wide", "Ready"), |count, _| count == "2/2")
            .await;
    });
}

#[test]
fn what_is_wrong_is_told_and_the_watch_goes_on() {
    let mut world = World::new("wrong");
    world.start("one");
    world.runtime.block_on(async {
        world.template("agent:1", "--log=info").await;
        world.add_connector().await;
        for number in 1..=2 {
            world.add_edge(number).await;
            world.agent(number, true).await;
        }
        world.join("shops", &[1, 2]).await;
        world
            .wait_until_told("all is well", ("shops", "Ready"), |count, _| count == "2/2")
            .await;
        world
            .wait_to_see(
                "edge1's peers",
                async || world.peers(1).await,
                |peers| peers.len() == 2,
            )
            .await;

        world
            .community("shops", &["wrong.wrong-edge1", "wrong-edge2"])
            .await;
        world
            .wait_until_told(
                "a name without its cluster is refused",
                ("shops", "Accepted"),
                |_, text| {
                    text.starts_with(
                        "False Invalid: spec.members[1]: \"wrong-edge2\" is not <cluster>.<node>",
                    ) && text.ends_with("what it said before stays in effect")
                },
            )
            .await;
        let (ready, text) = world.told("shops", "Ready").await;
        assert!(
            ready.is_empty() && text.starts_with("False Invalid"),
            "{ready} {text}"
        );
        let invalid = async |kind: &str, name: &str, says: &str| {
            world.wait_for_event((kind, name), "Warning Invalid", says).await;
        };
        invalid("Community", "shops", "spec.members[1]: \"wrong-edge2\"").await;
        assert_eq!(world.peers(1).await.len(), 2, "what was valid stays");

        // A Cluster: no prefix, nothing to go by, one that overlaps, one that is well.
        world.cluster("beijing", Some("10.1.2.3/33")).await;
        world
            .wait_until_cluster_told("it is refused", ("beijing", "Accepted"), |text| {
                text.starts_with(
                    "False Invalid: spec.endpoints[0].subnets[0]: \"10.1.2.3/33\" is not a prefix",
                )
            })
            .await;
        invalid("Cluster", "beijing", "10.1.2.3/33").await;
        world.cluster("beijing", None).await;
        world
            .wait_until_cluster_told("it has not registered", ("beijing", "Ready"), |text| {
                text.starts_with("False NotRegistered")
            })
            .await;
        let text = world.cluster_told("beijing", "Accepted").await;
        assert!(text.starts_with("True"), "{text}");
        world.cluster("beijing", Some("10.64.1.0/24")).await;
        world
            .wait_until_cluster_told("its prefix is an edge's", ("beijing", "Accepted"), |text| {
                text.starts_with("False PartlyRefused: spec.endpoints: 10.64.1.0/24 overlaps")
                    && text.contains("Node wrong-edge1")
            })
            .await;
        invalid("Cluster", "beijing", "overlaps").await;
        world.cluster("beijing", Some("192.0.2.0/24")).await;
        world
            .wait_until_cluster_told("it is well", ("beijing", "Ready"), |text| {
                text == "True EndpointsKnown: its connector is wrong-beijing.connector at 203.0.113.99"
            })
            .await;
        let edge_of_another = ["wrong.wrong-edge1", "wrong-beijing.shop"];
        world.community("mixed", &edge_of_another).await;
        world
            .wait_until_told("who is not there is pending", ("mixed", "Ready"), |_, text| {
                text.contains("wrong-beijing.shop is not (Cluster wrong-beijing has no such endpoint")
            })
            .await;

        // A node, from its first day and later.
        world
            .annotate(1, "fabedge.io/node-public-addresses", "1.2.3")
            .await;
        invalid("Node", "edge1", "\"1.2.3\" is neither a usable IP address").await;
        let described = world.kubectl(&["describe", "node", "wrong-edge1"]);
        assert!(
            described.contains("fabedge-operator"),
            "kubectl describe shows it: {described}"
        );
        world
            .annotate(1, "fabedge.io/node-public-addresses", "198.51.0.1")
            .await;

        // Everything goes on.
        world.join("shops", &[1, 2]).await;
        world
            .wait_until_told("it is mended", ("shops", "Accepted"), |count, text| {
                count == "2/2" && text.starts_with("True")
            })
            .await;
        world.add_edge(3).await;
        world.agent(3, true).await;
        world.join("more", &[1, 3]).await;
        world
            .wait_until_told("a new one works", ("more", "Ready"), |count, _| count == "2/2")
            .await;
    });
}

#[test]
fn a_community_that_takes_anothers_name_says_so_once() {
    let mut world = World::new("names");
    let first = world.start("one");
    let dropped = "names.names-edge1, names.names-edge2";
    let connectors = ("Community", "connectors");
    let (ready, replaced) = (("connectors", "Ready"), ("connectors", "MembersReplaced"));
    let before = world.runtime.block_on(async {
        world.add_connector().await;
        world.template("agent:1", "--log=info").await;
        world.connector(true).await;
        for number in 1..=2 {
            world.add_edge(number).await;
            world.agent(number, true).await;
        }
        world.cluster("beijing", Some("192.0.2.0/24")).await;
        world
            .community("connectors", &["names.names-edge1", "names.names-edge2"])
            .await;
        world
            .wait_until("the edges talk", async || world.peers(1).await.len() == 2)
            .await;
        world
            .community("connectors", &["names.connector", "names-beijing.connector"])
            .await;
        world
            .wait_until("the edges no longer talk, the connectors do", async || {
                let connector = world.document("connector-config").await;
                world.peers(1).await.len() == 1
                    && connector.is_some_and(|(document, _)| document.peers.len() == 3)
            })
            .await;
        world
            .wait_for_event(connectors, "Warning MembersReplaced", dropped)
            .await;
        world
            .wait_until_told("so does the status", replaced, |_, text| {
                text.starts_with("True AllReplaced") && text.contains(dropped)
            })
            .await;
        world
            .wait_until_told("the new ones are ready", ready, |count, _| count == "2/2")
            .await;
        // Something that stays wrong, for the next operator to find.
        world.community("broken", &["names-edge1"]).await;
        world
            .wait_for_event(("Community", "broken"), "Warning Invalid", "")
            .await;
        world.silence().await
    });
    assert!(before.len() >= 6, "{before:?}");
    let labelled = world.runtime.block_on(world.told_versions());
    assert_eq!(labelled, before);

    // Another operator has nothing to add.
    assert!(world.terminate(first));
    world.start("two");
    world.runtime.block_on(async {
        world
            .wait_until("it leads", async || world.said("two").contains("leading"))
            .await;
        tokio::time::sleep(Duration::from_secs(5)).await;
        assert_eq!(world.told_versions().await, before);

        // It tells what happens from now on, and the next change of members ends the condition.
        let three = ["names.connector", "names-beijing.connector", "names.names-edge1"];
        world.community("connectors", &three).await;
        world
            .wait_until_told("the condition is over", replaced, |_, text| text.is_empty())
            .await;
        world.community("connectors", &three[..2]).await;
        world
            .wait_for_event(
                connectors,
                "Normal MembersReplaced",
                "no longer a member: names.names-edge1",
            )
            .await;
        // Deleted and made anew, nobody was replaced.
        world
            .communities()
            .delete("names-connectors", &DeleteParams::default())
            .await
            .unwrap();
        world
            .community("connectors", &["names.names-edge2", "names.names-edge1"])
            .await;
        world
            .wait_until_told("it is a new one", ready, |count, _| count == "2/2")
            .await;
        assert!(world.told("connectors", "MembersReplaced").await.1.is_empty());
    });
}

#[test]
fn a_crowd_of_communities_keeps_no_document_waiting() {
    let mut world = World::new("crowd");
    world.start("one");
    world.runtime.block_on(async {
        world.template("agent:1", "--log=info").await;
        world.add_connector().await;
        for number in 1..=4 {
            world.add_edge(number).await;
            world.agent(number, true).await;
        }
        world
            .wait_until("edge4 has a document", async || !world.peers(4).await.is_empty())
            .await;
        let started = Instant::now();
        let crowd = async {
            let names: Vec<String> = (0..CROWD).map(|number| format!("of-{number:04}")).collect();
            let all = names.iter().map(|name| async {
                // Half of them broken: each has a status and an Event.
                let members: [&str; 1] = if name.ends_with(['1', '3', '5', '7', '9']) {
                    ["edge1"]
                } else {
                    ["crowd.crowd-edge4"]
                };
                world.community(name, &members).await;
            });
            stream::iter(all).buffer_unordered(8).collect::<Vec<()>>().await;
        };
        let documents = async {
            let mut times = Vec::new();
            for change in 0..20 {
                let members = [1, 2 + change % 2];
                let name = format!("crowd.{}", world.edge(members[1]));
                let started = Instant::now();
                world.join("moving", &members).await;
                world
                    .wait_until("the member's document", async || {
                        let peers = world.peers(1).await;
                        peers.len() == 2 && peers[1] == name
                    })
                    .await;
                times.push(started.elapsed());
            }
            times.sort();
            times
        };
        let ((), times) = futures_util::join!(crowd, documents);
        let longest = times[times.len() - 1];
        let told = async || {
            let all = world.communities().list(&ListParams::default()).await.unwrap();
            let told = |community: &Community| {
                let conditions = community.status.as_ref().map(|status| status.conditions.as_slice());
                !said(conditions.unwrap_or_default(), "Accepted").is_empty()
            };
            all.iter().filter(|community| told(community)).count()
        };
        while told().await <= CROWD {
            assert!(started.elapsed() < Duration::from_secs(180), "{} are told", told().await);
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
        println!(
            "{CROWD} Communities made and told in {:.1} s; a document meanwhile: median {:.3} s, longest {:.3} s",
            started.elapsed().as_secs_f64(),
            times[times.len() / 2].as_secs_f64(),
            longest.as_secs_f64()
        );
        // With limits that a loaded machine keeps too.
        let median = times[times.len() / 2];
        assert!(median < Duration::from_secs(3), "{times:?}");
        assert!(longest < Duration::from_secs(15), "{times:?}");
        let events: Api<Event> = Api::namespaced(world.client.clone(), "default");
        let list = events.list(&ListParams::default()).await.unwrap();
        let about = |event: &&Event| {
            let name = event.involved_object.name.as_deref().unwrap_or_default();
            name.starts_with("crowd-of-")
        };
        let count = list.items.iter().filter(about).count();
        // Fifty at once and ten a second.
        let most = 50 + 10 * (started.elapsed().as_secs() as usize + 1);
        assert!((1..=most).contains(&count), "{count} Events of at most {most}");
    });
}
