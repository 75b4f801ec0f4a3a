//! What it takes an agent to apply a document, by the number of its peers: the first one, and one in which a single peer
//! changed; and whether packets miss their routes meanwhile.

mod calls;
pub mod documents;
mod gap;
pub mod node;

use std::time::Instant;

use anyhow::{Context, Result};
use fabedge_common::config::Document;

use super::Options;
use super::path::product;
use super::report::{Report, Series};
use crate::lab::Tunnel;
use node::Node;

/// Numbers of peers.
const SIZES: [usize; 3] = [10, 1_000, 10_000];

/// How often each figure is taken.
const ROUNDS: usize = 3;

/// Changes of one peer, per sample of the whole.
const CHANGES: usize = 5;

/// What this measures.
pub const ABOUT: &str = "What it takes an agent to apply a document, and one in which a single peer changed";

/// Measures.
///
/// # Errors
/// When a node cannot be made, or its agent does not apply what it should.
pub fn run(options: &Options) -> Result<Report> {
    let rounds = options.repeats.unwrap_or(ROUNDS);
    let tunnel = node::tunnel()?;
    let mut report = Report::new("control", ABOUT);
    report.conditions.insert(
        "ESP".to_owned(),
        match tunnel {
            Tunnel::Xfrm => "kernel".to_owned(),
            Tunnel::Libipsec => "charon".to_owned(),
        },
    );
    let folder = tempfile::tempdir().context("making a folder for documents")?;
    let written = product::more_documents(folder.path(), "")?;
    let mut figures = Figures::new();
    for round in 0..rounds {
        for size in SIZES {
            eprintln!("  {} of {rounds}: {size} peers", round + 1);
            let last = round + 1 == rounds;
            let node = Node::start(tunnel, &written)?;
            sample(size, node, last, &mut figures, &mut report)
                .with_context(|| format!("with {size} peers"))?;
        }
    }
    figures.tell(&mut report);
    Ok(report)
}

struct Figures {
    parse: Series,
    whole: Series,
    one: Series,
    memory: Series,
    calls: Series,
    connections: Series,
}

impl Figures {
    fn new() -> Self {
        let along = |title: &str, unit: &str, modes: &[&str]| Series::new(title, unit, "peers", modes);
        Self {
            parse: along("Reading a document", "ms", &["the first", "one peer changed"]),
            whole: along(
                "The first document, applied",
                "s",
                &["time", "processor, agent", "processor, charon"],
            ),
            one: along(
                "One peer changed",
                "ms",
                &[
                    "time",
                    "processor, agent",
                    "processor, agent, the look at everything after it",
                ],
            ),
            memory: along("Memory of the agent", "MiB", &["now", "at most"]),
            calls: along(
                "One peer changed: calls until it is applied",
                "",
                &[
                    "system calls",
                    "changes of maps",
                    "netlink messages",
                    "messages to charon",
                    "commands",
                ],
            ),
            connections: along("Connections", "per s", &["given to charon"]),
        }
    }

    fn tell(self, report: &mut Report) {
        let median = |series: &Series, mode: &str, at: usize| {
            series
                .figure(mode, at as f64)
                .map_or(f64::NAN, |figure| figure.median)
        };
        let [few, many, most] = SIZES;
        report.goal(
            format!("s until {most} peers are applied"),
            median(&self.whole, "time", most),
            5.0,
        );
        report.goal(
            format!("MiB of an agent with {most} peers, at most"),
            median(&self.memory, "at most", most),
            64.0,
        );
        for size in [few, many, most] {
            let time = median(&self.one, "time", size);
            report.goal(format!("ms until one of {size} peers is changed"), time, 10.0);
        }
        for mode in [
            "system calls",
            "changes of maps",
            "netlink messages",
            "messages to charon",
        ] {
            let ratio = median(&self.calls, mode, most) / median(&self.calls, mode, few);
            report.goal(
                format!("{mode} for one changed peer of {most}, to one of {few}"),
                ratio,
                1.25,
            );
        }
        report.goal(
            format!("commands for one changed peer of {most}"),
            median(&self.calls, "commands", most),
            0.0,
        );
        report.series.extend([
            self.parse,
            self.whole,
            self.one,
            self.memory,
            self.calls,
            self.connections,
        ]);
    }
}

/// One node, and everything that is measured with it.
fn sample(size: usize, mut node: Node, gap: bool, figures: &mut Figures, report: &mut Report) -> Result<()> {
    let at = size as f64;
    let mut documents = node.documents.clone();
    let (_, text) = documents.next(size, 0)?;
    let (_, next) = documents.next(size, 1)?;
    let milliseconds = |started: Instant| started.elapsed().as_secs_f64() * 1e3;
    let started = Instant::now();
    let mut document = Document::parse(text)?;
    figures.parse.sample("the first", at, milliseconds(started));
    let started = Instant::now();
    document.next(next)?;
    figures
        .parse
        .sample("one peer changed", at, milliseconds(started));

    node.rest()?;
    let whole = node.apply(size, 0)?;
    figures.whole.sample("time", at, whole.seconds);
    figures.whole.sample("processor, agent", at, whole.agent);
    figures.whole.sample("processor, charon", at, whole.charon);
    figures
        .connections
        .sample("given to charon", at, size as f64 / whole.seconds);
    node.rest()?;
    for change in 1..=CHANGES {
        let one = node.apply(size, change)?;
        let after = node.rest()?;
        figures.one.sample("time", at, one.seconds * 1e3);
        figures.one.sample("processor, agent", at, one.agent * 1e3);
        figures.one.sample(
            "processor, agent, the look at everything after it",
            at,
            after * 1e3,
        );
    }
    let [now, most] = node.memory()?;
    figures.memory.sample("now", at, now);
    figures.memory.sample("at most", at, most);
    let calls = calls::count(&mut node, size, CHANGES + 1)?;
    for (mode, count) in [
        ("system calls", calls.all),
        ("changes of maps", calls.maps),
        ("netlink messages", calls.netlink),
        ("messages to charon", calls.charon),
        ("commands", calls.commands),
    ] {
        figures.calls.sample(mode, at, count as f64);
    }
    node.rest()?;
    if gap {
        let gap = gap::measure(&mut node, size, size / 2, 4)?;
        report.goal(
            format!(
                "packets of {} that missed their route while {} of {size} routes changed and changed back",
                gap.sent,
                size / 2
            ),
            gap.sent as f64 - gap.fast as f64,
            0.0,
        );
        report.notes.push(format!(
            "{size} peers, what the programs counted meanwhile: {}",
            gap.counted
        ));
    }
    Ok(())
}
