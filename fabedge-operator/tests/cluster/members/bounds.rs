//! Callers that send too much, too slowly or nothing at all, and many of them.

use std::cell::Cell;
use std::time::{Duration, Instant};

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use super::client::Client;
use super::host::Host;
use crate::cluster::figures::Process;
use crate::cluster::world::PATIENCE;

const MIB: usize = 1 << 20;

/// What no report is as long as.
const BIG: usize = 100 * MIB;

/// Waits for the other side to close; returns how long that took.
async fn closes(mut stream: impl tokio::io::AsyncRead + Unpin, since: Instant) -> Duration {
    let mut part = [0; 1024];
    while !matches!(stream.read(&mut part).await, Ok(0) | Err(_)) {}
    since.elapsed()
}

/// Sends a byte a second until the other side closes; returns how long that took.
async fn drips(stream: impl tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin, text: &str) -> Duration {
    let since = Instant::now();
    let (from, mut to) = tokio::io::split(stream);
    let drip = async {
        to.write_all(text.as_bytes()).await.ok();
        loop {
            tokio::time::sleep(Duration::from_secs(1)).await;
            // That the other side is gone, the reading tells.
            to.write_all(b"x").await.ok();
            to.flush().await.ok();
        }
    };
    tokio::select! {
        took = closes(from, since) => took,
        () = drip => unreachable!("it drips for ever"),
    }
}

#[test]
fn a_hundred_megabytes_are_refused_unread() {
    let host = Host::start("bodies", &["beijing"]);
    let operator = Process(host.pid);
    host.run(async {
        let beijing = host.member("beijing");
        let before = operator.kib("VmHWM");
        let part = vec![b'x'; 64 * 1024];
        let chunk = [format!("{:x}\r\n", part.len()).as_bytes(), &part, b"\r\n"].concat();
        let declared = format!("Content-Length: {BIG}\r\n\r\n");
        let chunked = "Transfer-Encoding: chunked\r\n\r\n";
        for line in ["PUT /api/cluster", "PUT /api/endpoints", "POST /api/sign-cert"] {
            for (body, rest) in [(declared.as_str(), &part), (chunked, &chunk)] {
                let sent = Cell::new(0);
                let head = format!("{line} HTTP/1.1\r\nHost: host\r\n{body}");
                let parts = std::iter::once(head.into_bytes()).chain((0..BIG / part.len()).map(|_| {
                    sent.set(sent.get() + rest.len());
                    rest.clone()
                }));
                let reply = beijing.raw(parts).await.unwrap();
                assert_eq!(reply.status, 413, "{line}: {reply:?}");
                // The rest is what the kernel's buffers hold.
                assert!(sent.get() < 16 * MIB, "{line}: {} bytes", sent.get());
            }
        }
        // Who is nobody is told so at once, whatever it has to say.
        for line in ["PUT /api/cluster", "POST /api/sign-cert"] {
            let head = format!("{line} HTTP/1.1\r\nHost: host\r\nContent-Length: 1000\r\n\r\n");
            assert_eq!(host.anybody().raw([head]).await.unwrap().status, 401, "{line}");
        }
        let long = format!(
            "GET /api/cidrs HTTP/1.1\r\nHost: host\r\nX: {}\r\n\r\n",
            "x".repeat(MIB)
        );
        // Refused, or cut off before it has said it all.
        if let Ok(reply) = beijing.raw([long]).await {
            assert_eq!(reply.status, 431, "{reply:?}");
        }
        let after = operator.kib("VmHWM");
        println!(
            "bodies of {} MiB made the operator {} KiB larger at most",
            BIG / MIB,
            after - before
        );
        assert!(
            after - before < 16 * 1024,
            "{before} KiB before, {after} KiB after"
        );
        host.still_serves("beijing").await;
    });
}

#[test]
fn hundreds_who_are_slow_keep_no_member_out() {
    const MANY: usize = 300;
    let host = Host::start("slow", &["beijing", "bei"]);
    host.run(async {
        let (beijing, bei, anybody) = (host.member("beijing"), host.member("bei"), host.anybody());
        let began = Instant::now();
        // Each with the time since which it is there.
        let mut silent = Vec::new();
        for _ in 0..MANY {
            let since = Instant::now();
            silent.push((since, anybody.dial().await.unwrap()));
        }
        // Past TLS, and no further.
        let mut idle = Vec::new();
        let half = async |client: &Client, text: &[u8]| {
            let mut stream = client.connect().await.ok()?;
            stream.write_all(text).await.ok()?;
            stream.flush().await.ok()?;
            Some(stream)
        };
        for _ in 0..MANY {
            let since = Instant::now();
            idle.extend(half(&anybody, b"").await.map(|stream| (since, stream)));
        }
        // One of the members is no better.
        let mut greedy = Vec::new();
        for _ in 0..40 {
            greedy.extend(half(&bei, b"GET /api/cidrs HTTP/1.1\r\nHo").await);
        }
        println!("{} connections that say nothing after {:.1} s", silent.len() + idle.len() + greedy.len(), began.elapsed().as_secs_f64());
        let members = async {
            let mut longest = Duration::ZERO;
            for _ in 0..12 {
                let started = Instant::now();
                assert_eq!(beijing.call("GET /api/cidrs", &[], "").await.status, 200);
                longest = longest.max(started.elapsed());
                tokio::time::sleep(Duration::from_millis(250)).await;
            }
            longest
        };
        let shut = async {
            let mut longest = (Duration::ZERO, Duration::ZERO);
            for (since, stream) in silent {
                longest.0 = longest.0.max(closes(stream, since).await);
            }
            for (since, stream) in idle {
                longest.1 = longest.1.max(closes(stream, since).await);
            }
            longest
        };
        let slow_hello = async { drips(anybody.dial().await.unwrap(), "\x16\x03\x01\x02\x00").await };
        let slow_head = async {
            // There is room for it once the idle ones are gone.
            tokio::time::sleep(Duration::from_secs(13)).await;
            let stream = loop {
                match anybody.connect().await {
                    Ok(stream) => break stream,
                    Err(error) => assert!(began.elapsed() < PATIENCE, "no room yet: {error}"),
                }
                tokio::time::sleep(Duration::from_millis(100)).await;
            };
            drips(stream, "GET /api/ca-cert HTTP/1.1\r\nX: ").await
        };
        let slow_body = async {
            let head = "PUT /api/cluster HTTP/1.1\r\nHost: host\r\nContent-Length: 1000\r\n\r\n";
            drips(beijing.connect().await.unwrap(), head).await
        };
        let (longest, (silent, idle), hello, head, body) =
            tokio::join!(members, shut, slow_hello, slow_head, slow_body);
        println!(
            "a member waited {:.3} s at most; closed: no handshake after {:.1} s, no request after {:.1} s, a slow \
             handshake after {:.1} s, a slow head after {:.1} s, a slow body after {:.1} s",
            longest.as_secs_f64(), silent.as_secs_f64(), idle.as_secs_f64(), hello.as_secs_f64(), head.as_secs_f64(),
            body.as_secs_f64()
        );
        assert!(longest < Duration::from_secs(1), "{longest:?}");
        // The longest that one may take is 15 s. Whoever shows no certificate is gone after 30 s in any case.
        for (what, took) in [("silent", silent), ("idle", idle), ("hello", hello), ("head", head), ("body", body)] {
            assert!(took < Duration::from_secs(25), "{what}: {took:?}");
        }
        drop(greedy);
        let request = "GET /api/ca-cert HTTP/1.1\r\nHost: host\r\n\r\n";
        let asked = async || host.anybody().raw([request]).await.map(|reply| reply.status);
        host.world
            .wait_to_see("there is room again", asked, |status| matches!(status, Ok(200)))
            .await
            .unwrap();
        host.still_serves("bei").await;
    });
}
