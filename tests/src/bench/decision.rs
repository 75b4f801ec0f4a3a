//! `decision`: what it takes to find the route of a packet, by `BPF_PROG_TEST_RUN`: what the fast path
//! asks, the kernel's trie, and a hash that is told the right prefix; and the fast path's programs as a whole.

mod prefixes;
mod programs;

use anyhow::Result;
use fastrand::Rng;

use super::report::{Report, Series};
use super::{Options, rounds};
use prefixes::{Family, Layout, Prefixes};
use programs::{Lookup, Tested};

/// Numbers of routes.
const SIZES: [usize; 6] = [10, 100, 1_000, 8_192, 65_536, 262_144];

/// Runs per sample, and draws in the list: a power of two.
const DRAWS: usize = 262_144;

/// Samples of each figure.
const ROUNDS: usize = 7;

/// What this measures.
pub const ABOUT: &str =
    "Time to find the route of a packet, less the time of the same program without the lookup";

/// Measures.
///
/// # Errors
/// When the kernel refuses a map or a program.
pub fn run(options: &Options) -> Result<Report> {
    let rounds = options.repeats.unwrap_or(ROUNDS);
    let mut rng = Rng::with_seed(options.seed);
    let mut report = Report::new("decision", ABOUT);
    report
        .conditions
        .insert("seed".to_owned(), options.seed.to_string());
    programs::stay_on_one_cpu()?;
    let mut memory = Series::new(
        "Kernel memory of one table, scattered prefixes",
        "KiB",
        "routes",
        &[],
    );
    let mut replace = Series::new(
        "Time to compile a table and put it in the place of another, scattered prefixes",
        "ms",
        "routes",
        &[],
    );
    for family in Family::ALL {
        for layout in Layout::ALL {
            let title = |what: &str| format!("{}, {} prefixes, {what}", family.name(), layout.name());
            let lookups = Lookup::ALL.map(Lookup::name);
            let mut random = Series::new(&title("random destinations"), "ns", "routes", &lookups);
            let mut hot = Series::new(&title("one destination"), "ns", "routes", &lookups);
            let modes = ["pod_egress", "tunnel_ingress"];
            let mut whole = Series::new(
                &title("whole programs, random destinations"),
                "ns",
                "routes",
                &modes,
            );
            for size in SIZES {
                eprintln!("  {}: {size} routes", title("each in turn"));
                let prefixes = Prefixes::new(family, layout, size, DRAWS, &mut rng);
                let mut tested = Tested::load(&prefixes)?;
                let at = size as f64;
                for order in rounds::shuffled(&Lookup::ALL, rounds, &mut rng) {
                    let draw = tested.nanoseconds("draw", DRAWS)?;
                    for lookup in order.iter() {
                        random.sample(
                            lookup.name(),
                            at,
                            tested.nanoseconds(lookup.program(), DRAWS)? - draw,
                        );
                    }
                    let write = tested.nanoseconds("write", DRAWS)?;
                    whole.sample("pod_egress", at, tested.nanoseconds("egress", DRAWS)? - write);
                    whole.sample(
                        "tunnel_ingress",
                        at,
                        tested.nanoseconds("ingress", DRAWS)? - write,
                    );
                    let draw = tested.nanoseconds("draw", 1)?;
                    for lookup in order.iter() {
                        hot.sample(lookup.name(), at, tested.nanoseconds(lookup.program(), 1)? - draw);
                    }
                }
                if layout == Layout::Scattered {
                    for lookup in Lookup::ALL {
                        let name = format!("{} {}", family.name(), lookup.name());
                        memory.sample(&name, at, tested.kibibytes(lookup)?);
                    }
                    for _ in 0..rounds.min(3) {
                        replace.sample(family.name(), at, tested.replace(&prefixes)?);
                    }
                }
            }
            if layout == Layout::Scattered {
                goals(&mut report, family, &random, &hot);
            }
            report.series.extend([random, hot, whole]);
        }
    }
    report.goal(
        "IPv4 and IPv6: KiB of the maps of 10 routes",
        Family::ALL
            .iter()
            .flat_map(|family| [Lookup::Trie, Lookup::Ours].map(|lookup| (family, lookup)))
            .filter_map(|(family, lookup)| {
                let name = format!("{} {}", family.name(), lookup.name());
                memory.figure(&name, 10.0).map(|figure| figure.median)
            })
            .sum(),
        4096.0,
    );
    report.series.extend([memory, replace]);
    Ok(report)
}

/// What the figures of scattered prefixes are to show.
fn goals(report: &mut Report, family: Family, random: &Series, hot: &Series) {
    let most = SIZES[SIZES.len() - 1] as f64;
    let median = |series: &Series, lookup: Lookup, at: f64| {
        series
            .figure(lookup.name(), at)
            .map_or(f64::NAN, |figure| figure.median)
    };
    let ours = median(random, Lookup::Ours, most);
    let name = family.name();
    report.goal(
        format!("{name}: forwarding table to hash, {most} routes"),
        ours / median(random, Lookup::Hash, most),
        1.0,
    );
    report.goal(
        format!("{name}: forwarding table to trie, {most} routes"),
        ours / median(random, Lookup::Trie, most),
        0.3,
    );
    report.goal(
        format!("{name}: forwarding table of {most} routes to one of 10"),
        ours / median(random, Lookup::Ours, SIZES[0] as f64),
        1.5,
    );
    report.goal(
        format!("{name}: ns of a lookup of one destination, {most} routes"),
        median(hot, Lookup::Ours, most),
        25.0,
    );
}
