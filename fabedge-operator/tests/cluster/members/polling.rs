//! Figures of a host with as many members as it is made for.

use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::future::join_all;
use serde_json::json;

use super::client::{Client, Kept};
use super::host::{Host, connector};
use crate::cluster::figures::{Process, percentile};

const MEMBERS: usize = 255;
const NEWS: &str = "GET /api/endpoints-and-communities";

/// What all of them ask for, spread over a second as they are over their ten.
async fn polls(connections: &mut [Kept]) -> Vec<Duration> {
    let each = Duration::from_secs(1) / MEMBERS as u32;
    let began = tokio::time::Instant::now();
    let asking = connections
        .iter_mut()
        .enumerate()
        .map(async |(place, connection)| {
            tokio::time::sleep_until(began + each * place as u32).await;
            let started = Instant::now();
            let reply = connection.call(NEWS, &[]).await;
            assert_eq!(reply.status, 200, "{reply:?}");
            started.elapsed()
        });
    join_all(asking).await
}

/// Tells about rounds, and returns the p99 that half of them do not exceed: in one of them the machine may have had
/// something else to do.
fn figures(what: &str, rounds: &[Vec<Duration>]) -> f64 {
    let ms = |times: &[Duration], percent| {
        let mut times = times.to_vec();
        times.sort();
        percentile(&times, percent) * 1000.0
    };
    let mut each: Vec<f64> = rounds.iter().map(|times| ms(times, 99)).collect();
    each.sort_by(f64::total_cmp);
    let all = rounds.concat();
    println!(
        "{MEMBERS} members, {} {what}: p50 {:.1} ms, p99 {:.1} ms, longest {:.1} ms; p99 of each round {each:.1?} ms",
        all.len(),
        ms(&all, 50),
        ms(&all, 99),
        ms(&all, 100)
    );
    each[each.len() / 2]
}

#[test]
fn two_hundred_and_fifty_five_members_poll_and_wait() {
    let names: Vec<String> = (1..=MEMBERS).map(|number| format!("m{number}")).collect();
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    let began = Instant::now();
    let host = Host::start("polling", &names);
    let operator = Process(host.pid);
    println!(
        "{MEMBERS} members have tokens after {:.1} s",
        began.elapsed().as_secs_f64()
    );
    let made = host.world.said("one").matches("made a token").count();
    assert_eq!(made, MEMBERS, "one for each");
    host.run(async {
        let clients: Vec<Client> = names.iter().map(|name| host.member(name)).collect();
        // All in one Community: the most that each can be told.
        let began = Instant::now();
        for (place, (name, client)) in names.iter().zip(&clients).enumerate() {
            let list = json!([connector(&host.name(name), &format!("192.168.{place}.0/24"))]).to_string();
            let reply = client.call("PUT /api/endpoints", &[], &list).await;
            assert_eq!(reply.status, 204, "{reply:?}");
        }
        println!("reported after {:.1} s", began.elapsed().as_secs_f64());
        let mut members: Vec<String> = names
            .iter()
            .map(|name| format!("{}.connector", host.name(name)))
            .collect();
        members.push("polling.connector".to_owned());
        host.world.unite("all", &members).await;
        let mut connections = join_all(clients.iter().map(Client::keep)).await;
        let told = async || {
            let told = clients[0].call(NEWS, &[], "").await.json();
            told["endpoints"].as_array().map_or(0, Vec::len)
        };
        host.world
            .wait_to_see("everybody is told of everybody", told, |count| *count == MEMBERS)
            .await;

        let mut rounds = Vec::new();
        for _ in 0..5 {
            rounds.push(polls(&mut connections).await);
        }
        let kept = figures("polls", &rounds);
        // With a new connection each, as curl would.
        let mut rounds = Vec::new();
        for _ in 0..3 {
            let mut times = Vec::new();
            for client in &clients {
                let started = Instant::now();
                assert_eq!(client.call(NEWS, &[], "").await.status, 200);
                times.push(started.elapsed());
            }
            rounds.push(times);
        }
        let anew = figures("polls with a handshake each", &rounds);

        // All wait, and one Community changes.
        let mut longest = Vec::new();
        for round in 0..5 {
            let tags = join_all(connections.iter_mut().map(async |connection| {
                connection
                    .call(NEWS, &[])
                    .await
                    .header("etag")
                    .unwrap()
                    .to_owned()
            }))
            .await;
            let changed = Arc::new(tokio::sync::OnceCell::new());
            let waiting = connections.iter_mut().zip(tags).map(async |(connection, tag)| {
                let headers = [("If-None-Match", tag.as_str()), ("Prefer", "wait=50")];
                let reply = connection.call(NEWS, &headers).await;
                assert_eq!(reply.status, 200, "{reply:?}");
                changed
                    .get()
                    .map(Instant::elapsed)
                    .expect("news before there was any")
            });
            let change = async {
                tokio::time::sleep(Duration::from_millis(500)).await;
                let mut members = members.clone();
                members.truncate(MEMBERS - (round + 1) % 2);
                members.push("polling.connector".to_owned());
                changed.set(Instant::now()).unwrap();
                host.world.unite("all", &members).await;
            };
            let (times, ()) = tokio::join!(join_all(waiting), change);
            longest.push(times.into_iter().max().unwrap());
        }
        longest.sort();
        println!(
            "a Community changes: all {MEMBERS} who wait have heard within {:.3} s, at most {:.3} s; {}",
            percentile(&longest, 50),
            percentile(&longest, 100),
            operator.used()
        );
        assert!(kept < 50.0, "p99 {kept} ms");
        assert!(anew < 50.0, "p99 {anew} ms");
        assert!(percentile(&longest, 50) < 1.0, "{longest:?}");
        // They would ask again after 50 s.
        assert!(percentile(&longest, 100) < 10.0, "{longest:?}");
        host.still_serves("m1").await;
    });
}
