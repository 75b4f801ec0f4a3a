//! How much goes through from pod to pod, by the ways of [`super::path`]: on this machine's own kernel what is not
//! encrypted (it may not have ESP), in a machine with Debian's kernel the rest too.

use std::io::{Read as _, Write as _};
use std::net::{Ipv4Addr, SocketAddrV4, TcpListener, TcpStream, UdpSocket};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use fastrand::Rng;

use super::Options;
use super::path::ground::{Ground, Settings};
use super::path::meter::{End, HEADERS};
use super::path::modes::{CLASSIC, MODES, Mode, PLAIN};
use super::path::{self, product};
use super::report::{Report, Series};
use super::rounds::shuffled;
use crate::place::PATIENCE;

/// What is measured.
pub const ABOUT: &str =
    "Datagrams and bytes per second, pod to pod, over nodes with the iptables rules of others.";

/// Sizes of IP packets with a datagram.
const SIZES: [usize; 2] = [64, 1400];

/// How many TCP connections at once.
const STREAMS: [usize; 2] = [1, 4];

/// How long is sent.
const SPAN: Duration = Duration::from_millis(1500);

/// What is sent before it counts.
const LEAD: Duration = Duration::from_millis(300);

/// How often each figure is taken.
const ROUNDS: usize = 5;

/// How many times as many datagrams as the classic way carries the fast one is to carry, in the clear.
const TIMES: f64 = 2.0;

/// Where data is received.
const PORT: u16 = 9998;

/// Measures: for every figure of every round a world of its own is made and taken away again.
///
/// # Errors
/// When a mode cannot be set up, or nothing gets through.
pub fn run(options: &Options) -> Result<Report> {
    let encrypted = path::load_modules()?;
    let folder = tempfile::tempdir().context("making a folder for documents")?;
    let settings = Settings {
        documents: product::documents(folder.path())?,
        rules: true,
        direct: true,
    };
    let modes: Vec<&Mode> = MODES
        .iter()
        .filter(|mode| mode.nodes && (encrypted || !mode.encrypted))
        .collect();
    let names: Vec<&str> = modes.iter().map(|mode| mode.name).collect();
    let mut datagrams = Series::new(
        "UDP, one sender",
        "datagrams received per second",
        "bytes of the IP packet",
        &names,
    );
    let mut streams = Series::new("TCP", "Mbit received per second", "connections", &names);
    let rounds = options.repeats.unwrap_or(ROUNDS);
    let order = shuffled(&modes, rounds, &mut Rng::with_seed(options.seed));
    for (number, mode) in order.into_iter().flatten().enumerate() {
        let name = mode.name;
        eprintln!("  {} of {}: {name}", number + 1, rounds * modes.len());
        let ground = (mode.set_up)(&settings).with_context(|| format!("setting up {name}"))?;
        ground.wait_reach()?;
        for size in SIZES {
            let rate = received_datagrams(&ground, size)
                .with_context(|| format!("sending datagrams, {name}, {size} bytes"))?;
            datagrams.sample(name, size as f64, rate);
        }
        for count in STREAMS {
            let rate =
                received_bytes(&ground, count).with_context(|| format!("sending by TCP, {name}, {count}"))?;
            streams.sample(name, count as f64, rate * 8.0 / 1e6);
        }
        drop(ground);
        path::forget_modules()?;
    }
    let mut report = Report::new("throughput", ABOUT);
    report
        .conditions
        .insert("seed".to_owned(), options.seed.to_string());
    let cpus = thread::available_parallelism().map_or(0, usize::from);
    report
        .conditions
        .insert("processors".to_owned(), cpus.to_string());
    let at = SIZES[0] as f64;
    let median = |mode: &str| datagrams.figure(mode, at).map(|figure| figure.median);
    if let (Some(classic), Some(fast)) = (median(PLAIN[1]), median(PLAIN[2])) {
        report.goal(
            format!(
                "{at} bytes: the datagrams of {} to those of {}",
                PLAIN[1], PLAIN[2]
            ),
            classic / fast,
            1.0 / TIMES,
        );
    }
    if let (Some(classic), Some(fast)) = (median(CLASSIC), median(path::modes::FAST)) {
        report.goal(
            format!(
                "{at} bytes, encrypted: the datagrams of {CLASSIC} to those of {}",
                path::modes::FAST
            ),
            classic / fast,
            1.0,
        );
    }
    report.series.extend([datagrams, streams]);
    Ok(report)
}

/// How many datagrams per second arrive while one thread sends as many as it can.
fn received_datagrams(ground: &Ground, size: usize) -> Result<f64> {
    let [from, to] = ground.ends()?;
    let open = |end: &End| -> Result<UdpSocket> {
        let socket = end
            .place
            .run(|| UdpSocket::bind(SocketAddrV4::new(end.address, PORT)))?;
        socket.with_context(|| format!("opening a socket in {}", end.place.name))
    };
    let (sender, receiver) = (open(&from)?, open(&to)?);
    sender.connect(SocketAddrV4::new(to.address, PORT))?;
    // It never sleeps: waking it for each datagram costs the sender more than the way that is measured.
    receiver.set_nonblocking(true)?;
    let payload = vec![7; size - HEADERS];
    let over = AtomicBool::new(false);
    let rate = thread::scope(|scope| {
        scope.spawn(|| {
            while !over.load(Ordering::Relaxed) {
                // A full queue is no reason to stop.
                drop(sender.send(&payload));
            }
        });
        let mut buffer = [0; 2048];
        let mut received = 0_u64;
        let rate = timed(|counts| {
            if receiver.recv(&mut buffer).is_ok() && counts {
                received += 1;
            }
            received
        });
        over.store(true, Ordering::Relaxed);
        rate
    });
    ensure!(rate > 0.0, "nothing arrived");
    Ok(rate)
}

/// How many bytes per second arrive by `count` connections at once.
fn received_bytes(ground: &Ground, count: usize) -> Result<f64> {
    let [from, to] = ground.ends()?;
    let listener = to
        .place
        .run(|| TcpListener::bind(SocketAddrV4::new(Ipv4Addr::UNSPECIFIED, PORT)))??;
    let mut pairs = Vec::new();
    for _ in 0..count {
        let sender = from
            .place
            .run(|| TcpStream::connect_timeout(&SocketAddrV4::new(to.address, PORT).into(), PATIENCE))??;
        // A sender that nobody hears shall end too.
        sender.set_write_timeout(Some(SPAN))?;
        let (receiver, _) = listener.accept()?;
        receiver.set_read_timeout(Some(Duration::from_millis(200)))?;
        pairs.push((sender, receiver));
    }
    let rate = thread::scope(|scope| {
        let readers: Vec<_> = pairs
            .iter()
            .map(|(sender, receiver)| {
                scope.spawn(move || {
                    let (mut sender, payload) = (sender, vec![7; 65536]);
                    while sender.write_all(&payload).is_ok() {}
                });
                scope.spawn(move || {
                    let (mut receiver, mut buffer) = (receiver, vec![0; 65536]);
                    let mut received = 0;
                    let rate = timed(|counts| {
                        let length = receiver.read(&mut buffer).unwrap_or(0);
                        received += if counts { length as u64 } else { 0 };
                        received
                    });
                    // Ends the sender too.
                    drop(receiver.shutdown(std::net::Shutdown::Both));
                    rate
                })
            })
            .collect();
        readers
            .into_iter()
            .map(|reader| reader.join().unwrap_or(0.0))
            .sum::<f64>()
    });
    ensure!(rate > 0.0, "nothing arrived");
    Ok(rate)
}

/// Repeats `step`, which is told whether it counts and says what was counted so far, and gives that per second.
fn timed(mut step: impl FnMut(bool) -> u64) -> f64 {
    let started = Instant::now();
    while started.elapsed() < LEAD {
        step(false);
    }
    let started = Instant::now();
    let mut counted = 0;
    while started.elapsed() < SPAN {
        counted = step(true);
    }
    counted as f64 / started.elapsed().as_secs_f64()
}
