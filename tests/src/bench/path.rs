//! Instructions per packet from pod to pod, by the ways that packets can take: the predecessor's, ours with the fast
//! path and without, WireGuard's, each on bare nodes and on nodes with the iptables rules of others; and the floor.
//!
//! It means something only in a machine whose clock counts instructions, which `cargo xtask bench path` makes.

pub mod figures;
pub mod ground;
pub mod meter;
pub mod modes;
pub mod product;

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use fastrand::Rng;

use super::Options;
use super::report::Report;
use super::rounds::shuffled;
use crate::command;
use crate::lab::wait_until;
use crate::place::PATIENCE;
use figures::Figures;
use ground::Settings;
use meter::Way;
use modes::{MODES, Mode};

/// What is measured.
pub const ABOUT: &str =
    "Instructions per packet, pod to pod: of both pods, both nodes and the router between them together.";

/// Sizes of IP packets; the largest fits into every tunnel whole.
pub const SIZES: [usize; 3] = [64, 512, 1400];

/// How many packets a figure is made of.
const PACKETS: usize = 960;

/// How often each figure is taken.
const ROUNDS: usize = 3;

/// How long the machine may come to rest before packets are counted; time that nobody uses costs nothing here.
const REST: Duration = Duration::from_secs(3);

/// What must be loaded before the first mode, so that none is the one that loads it.
const MODULES: [&str; 13] = [
    // Udev would load it on a machine that has these instructions.
    "aesni_intel",
    "br_netfilter",
    "esp4",
    "esp6",
    "ip_set_hash_net",
    "tun",
    "wireguard",
    "xfrm_interface",
    "xt_MASQUERADE",
    "xt_addrtype",
    "xt_conntrack",
    "xt_set",
    "xt_statistic",
];

/// A mode on nodes of one kind.
#[derive(Clone, Copy)]
struct Case {
    mode: &'static Mode,
    rules: bool,
}

/// Measures: for every figure a world of its own is made and taken away again.
///
/// # Errors
/// When a mode cannot be set up or loses packets, or when packets go another way than its own.
pub fn run(options: &Options) -> Result<Report> {
    ensure!(
        load_modules()?,
        "this kernel has no modules to load: take --kernel 6.12"
    );
    let folder = tempfile::tempdir().context("making a folder for documents")?;
    let documents = product::documents(folder.path())?;
    let mut figures = Figures::default();
    let cases: Vec<Case> = MODES
        .iter()
        .flat_map(|mode| [false, true].map(|rules| Case { mode, rules }))
        .filter(|case| case.mode.nodes || !case.rules)
        .collect();
    let rounds = options.repeats.unwrap_or(ROUNDS);
    let order = shuffled(&cases, rounds, &mut Rng::with_seed(options.seed));
    for (number, case) in order.into_iter().flatten().enumerate() {
        let rules = if case.rules { ", with rules" } else { "" };
        let what = format!("{}{rules}", case.mode.name);
        eprintln!("  {} of {}: {what}", number + 1, rounds * cases.len());
        let settings = Settings {
            documents: documents.clone(),
            rules: case.rules,
            direct: false,
        };
        measure(case, &settings, &mut figures).with_context(|| format!("measuring {what}"))?;
        forget_modules()?;
    }
    let mut report = Report::new("path", ABOUT);
    report
        .conditions
        .insert("seed".to_owned(), options.seed.to_string());
    report
        .conditions
        .insert("packets per sample".to_owned(), PACKETS.to_string());
    figures.tell(&mut report);
    Ok(report)
}

/// Loads what the modes need, where the kernel has modules at all.
///
/// # Errors
/// When it has, and one of them is missing.
pub fn load_modules() -> Result<bool> {
    if !Path::new("/lib/modules")
        .join(rustix::system::uname().release().to_string_lossy().as_ref())
        .exists()
    {
        return Ok(false);
    }
    command::must(Command::new("modprobe").arg("-a").args(MODULES), PATIENCE)?;
    Ok(true)
}

/// Unloads what one mode had loaded and others would profit from.
///
/// # Errors
/// When it stays in use.
pub fn forget_modules() -> Result<()> {
    for module in product::OFFLOADS {
        // The SAs of the world that was taken down keep it for a moment.
        wait_until(&format!("{module} is gone"), PATIENCE, || {
            Ok(!product::is_loaded(module)
                || command::must(Command::new("rmmod").arg(module), PATIENCE).is_ok())
        })?;
    }
    Ok(())
}

fn measure(case: Case, settings: &Settings, figures: &mut Figures) -> Result<()> {
    let mode = case.mode;
    let ground = (mode.set_up)(settings).context("setting it up")?;
    ground.wait_reach()?;
    std::thread::sleep(REST);
    let ends = ground.ends()?;
    let mut packets = 0;
    for way in Way::ALL {
        for size in SIZES {
            let count = meter::count(&ends, (ground.wan()?, &ground.link), size, way, PACKETS)
                .with_context(|| format!("sending {size} bytes, {}", way.name()))?;
            packets += PACKETS;
            // An Ethernet header is all that is added to what nobody encrypts.
            ensure!(
                (count.wire > (size + 14 + 20) as f64) == mode.encrypted,
                "packets of {size} bytes had {:.1} on the wire",
                count.wire
            );
            figures.take(mode, case.rules, way, size, count);
        }
    }
    (mode.check)(&ground, packets)
}
