//! How a connector's CPUs share the decryption of what its peers send, where the NIC leaves all packets to one of them.
//!
//! The connector is a node with its agent and its charon. Its peers are connections of another charon beside it, each with
//! an SA of its own. One thread sends by all of them in turns and stays on the first CPU; a veth has no interrupts but those of
//! who sends, so all that arrives is received there, as from a NIC with one queue.

use std::fs;
use std::net::{Ipv4Addr, SocketAddrV4, UdpSocket};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use fabedge_common::abi::{Program, Reason};
use fastrand::Rng;
use rustix::thread::{CpuSet, sched_setaffinity};

use super::Options;
use super::control::documents::pods;
use super::control::node::{self, Node, PATIENCE};
use super::path::ground::NODES;
use super::path::{self, product};
use super::report::{Report, Series};
use super::rounds::shuffled;
use super::tunnels;
use crate::lab::{Spread, Tunnel, wait_until};
use crate::observe;
use crate::world::addresses::Role;

/// What is measured.
pub const ABOUT: &str =
    "How the CPUs of a connector share the decryption of what arrives on one of them, by tunnels";

/// Numbers of tunnels.
const TUNNELS: [usize; 2] = [1, 10];

/// How often each figure is taken.
const ROUNDS: usize = 5;

/// How long is sent, and how long before that counts.
const SPAN: Duration = Duration::from_secs(3);
const LEAD: Duration = Duration::from_secs(1);

/// Bytes of an IP packet within a tunnel.
const SIZE: usize = 1000;

/// Where the connector receives, within its own pods.
const RECEIVER: SocketAddrV4 = SocketAddrV4::new(Ipv4Addr::new(10, 233, 64, 1), 9997);

const WITHOUT: &str = "without uplink_xdp";
const WITH: &str = "with uplink_xdp";

/// What the busiest CPU may have of the decryptions.
const BUSIEST: f64 = 0.6;

/// One measurement.
#[derive(Clone, Copy, Debug)]
struct Case {
    tunnels: usize,
    cpus: usize,
    spread: Spread,
}

/// Measures: a world of its own for each figure of each round.
///
/// # Errors
/// When there are no two CPUs, or the kernel does not decrypt, or nothing gets through.
pub fn run(options: &Options) -> Result<Report> {
    ensure!(
        path::load_modules()? && node::tunnel()? == Tunnel::Xfrm,
        "this kernel has no ESP: take --kernel 6.12"
    );
    ensure!(Cpu(1).is_online(), "there is one CPU here, and this is about two");
    let folder = tempfile::tempdir().context("making a folder for documents")?;
    let most = TUNNELS.into_iter().max().unwrap_or_default();
    let written = product::more_documents(folder.path(), &tunnels::manifests(most))?;
    let cases: Vec<Case> = TUNNELS
        .into_iter()
        .flat_map(|tunnels| {
            [
                (2, Spread::Auto),
                (2, Spread::Off),
                (1, Spread::Auto),
                (1, Spread::Off),
            ]
            .map(|(cpus, spread)| Case {
                tunnels,
                cpus,
                spread,
            })
        })
        .collect();
    let modes = [WITHOUT, WITH];
    let mut rates = [1, 2].map(|cpus| {
        let title = format!("Datagrams of {SIZE} bytes received, {cpus} of 2 CPUs in use");
        Series::new(&title, "per second", "tunnels", &modes)
    });
    let mut shares = Series::new("Decryptions by the busiest of 2 CPUs", "share", "tunnels", &modes);
    let rounds = options.repeats.unwrap_or(ROUNDS);
    let order = shuffled(&cases, rounds, &mut Rng::with_seed(options.seed));
    let mut told = Vec::new();
    for (number, case) in order.into_iter().flatten().enumerate() {
        let mode = match case.spread {
            Spread::Auto => WITH,
            Spread::Off => WITHOUT,
        };
        let (tunnels, cpus) = (case.tunnels, case.cpus);
        let what = format!("{tunnels} tunnels, {cpus} CPUs, {mode}");
        eprintln!("  {} of {}: {what}", number + 1, rounds * cases.len());
        let sample = measure(case, &written).with_context(|| format!("measuring {what}"))?;
        eprintln!("    {sample:?}");
        rates[cpus - 1].sample(mode, tunnels as f64, sample.rate);
        if cpus == 2 {
            shares.sample(mode, tunnels as f64, sample.busiest);
        }
        let line = format!("{what}: the agent says `{}`", sample.told);
        if !told.contains(&line) {
            told.push(line);
        }
        path::forget_modules()?;
    }
    let mut report = Report::new("spread", ABOUT);
    report
        .conditions
        .insert("seed".to_owned(), options.seed.to_string());
    let median = |series: &Series, mode: &str, at: usize| {
        series
            .figure(mode, at as f64)
            .map_or(f64::NAN, |figure| figure.median)
    };
    report.goal(
        format!("{most} tunnels: the busiest CPU's share of the decryptions"),
        median(&shares, WITH, most),
        BUSIEST,
    );
    for tunnels in TUNNELS {
        report.goal(
            format!("tunnels: {tunnels}, 2 CPUs: datagrams received {WITHOUT} to those {WITH}"),
            median(&rates[1], WITHOUT, tunnels) / median(&rates[1], WITH, tunnels),
            1.0,
        );
    }
    told.sort();
    report.notes.extend(told);
    let [one, two] = rates;
    report.series.extend([shares, two, one]);
    Ok(report)
}

/// What one measurement gave.
#[derive(Clone, Debug)]
struct Sample {
    /// Datagrams received per second.
    rate: f64,
    /// The largest share of the decryptions that a CPU had.
    busiest: f64,
    /// What the agent says about its uplink.
    told: String,
}

fn measure(case: Case, written: &Path) -> Result<Sample> {
    let second = Cpu(1);
    second.set_online(case.cpus > 1)?;
    let sample = sample(case, written);
    second.set_online(true)?;
    sample
}

fn sample(case: Case, written: &Path) -> Result<Sample> {
    let mut node = Node::start_as(Role::Connector, Tunnel::Xfrm, case.spread, written)?;
    tunnels::bring_up(&mut node, Tunnel::Xfrm, written, case.tunnels)?;
    let site = node.site()?;
    site.place.ip(&format!("addr add {}/24 dev lo", RECEIVER.ip()))?;
    let spread = case.cpus > 1 && case.spread == Spread::Auto;
    // An SA for each peer, and the addresses of the uplink.
    wait_until("the SAs have CPUs", PATIENCE, || {
        let sas = observe::dump(&site.place, "sas")?;
        let peers = sas.iter().filter(|sa| sa["value"]["reqid"] != 0).count();
        Ok(peers == if spread { case.tunnels } else { 0 })
    })?;
    node.rest()?;
    let told = observe::status(site)?["spread"]["eth0"]
        .as_str()
        .unwrap_or_default()
        .to_owned();
    node.agent.pause()?;
    node.charon.pause()?;
    let other = &node.ground.world.site(NODES[1].name)?.place;
    let mut senders = Vec::new();
    for number in 0..case.tunnels {
        let [a, b, c, _] = pods(number, 0).addr().octets();
        let from = SocketAddrV4::new(Ipv4Addr::new(a, b, c, 1), 0);
        other.ip(&format!("addr add {}/32 dev lo", from.ip()))?;
        let sender = other.run(|| UdpSocket::bind(from))?.context("opening a sender")?;
        sender.connect(RECEIVER).context("connecting a sender")?;
        senders.push(sender);
    }
    let receiver = site
        .place
        .run(|| UdpSocket::bind(RECEIVER))?
        .context("opening the receiver")?;
    receiver.set_read_timeout(Some(Duration::from_millis(100)))?;
    let (over, received) = (AtomicBool::new(false), std::sync::atomic::AtomicU64::new(0));
    let payload = vec![7; SIZE - path::meter::HEADERS];
    thread::scope(|scope| {
        scope.spawn(|| {
            let mut first = CpuSet::new();
            first.set(0);
            sched_setaffinity(None, &first).ok();
            while !over.load(Ordering::Relaxed) {
                for sender in &senders {
                    // A full queue is no reason to stop.
                    drop(sender.send(&payload));
                }
            }
        });
        scope.spawn(|| {
            let mut buffer = [0; 2048];
            while !over.load(Ordering::Relaxed) {
                if receiver.recv(&mut buffer).is_ok() {
                    received.fetch_add(1, Ordering::Relaxed);
                }
            }
        });
        let look =
            || -> Result<(u64, Vec<u64>)> { Ok((received.load(Ordering::Relaxed), decrypted(&node)?)) };
        thread::sleep(LEAD);
        let sample = look().and_then(|before| {
            let started = Instant::now();
            thread::sleep(SPAN);
            let count = received.load(Ordering::Relaxed);
            let seconds = started.elapsed().as_secs_f64();
            let after = look()?;
            let by_cpu: Vec<u64> = after
                .1
                .iter()
                .zip(&before.1)
                .map(|(after, before)| after - before)
                .collect();
            let all: u64 = by_cpu.iter().sum();
            ensure!(count > before.0 && all > 0, "nothing arrived");
            Ok(Sample {
                rate: (count - before.0) as f64 / seconds,
                busiest: by_cpu.iter().copied().max().unwrap_or_default() as f64 / all as f64,
                told: told.clone(),
            })
        });
        over.store(true, Ordering::Relaxed);
        // The world goes next. Packets that wait for a CPU hold no reference to the device by which they came, and the kernel
        // looks into it when it takes them out (`dev_rx` of kernel/bpf/cpumap.c, Linux 6.12).
        thread::sleep(LEAD);
        sample
    })
}

/// What came out of the tunnels on each CPU: a packet is handed to the tunnel device on the CPU that decrypted it.
fn decrypted(node: &Node) -> Result<Vec<u64>> {
    let keys: Vec<u64> = Reason::ALL
        .iter()
        .map(|reason| u64::from(reason.index(Program::TunnelIngress)))
        .collect();
    let mut cpus = Vec::new();
    for entry in observe::dump(&node.site()?.place, "stats")? {
        if !entry["key"].as_u64().is_some_and(|key| keys.contains(&key)) {
            continue;
        }
        let values = entry["values"]
            .as_array()
            .context("the map stats is not per CPU")?;
        cpus.resize(values.len(), 0);
        for (sum, value) in cpus.iter_mut().zip(values) {
            *sum += value["value"]["packets"].as_u64().unwrap_or_default();
        }
    }
    Ok(cpus)
}

/// A CPU that can be taken out.
struct Cpu(u32);

impl Cpu {
    fn file(&self) -> PathBuf {
        format!("/sys/devices/system/cpu/cpu{}/online", self.0).into()
    }

    fn is_online(&self) -> bool {
        fs::read_to_string(self.file()).is_ok_and(|text| text.trim() == "1")
    }

    fn set_online(&self, online: bool) -> Result<()> {
        if self.is_online() == online {
            return Ok(());
        }
        let file = self.file();
        fs::write(&file, if online { "1" } else { "0" })
            .with_context(|| format!("writing {}", file.display()))?;
        if self.is_online() != online {
            bail!("{} does not take effect", file.display());
        }
        Ok(())
    }
}
