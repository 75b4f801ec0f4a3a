//! How long a change takes: from a Community that is applied to the documents of its members on an API server, which the
//! cluster's tests measure with a thousand nodes; and from documents to the first packet between two edges' pods.

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use fabedge_common::config::NodeConfig;
use serde::Deserialize;

use super::Options;
use super::control::{documents, node};
use super::path::ground::{Ground, NODES, Settings};
use super::path::{self, product};
use super::report::{Report, Series};
use crate::lab::{Switch, wait_until};
use crate::probe::icmp;
use crate::{observe, world};

/// What this measures.
pub const ABOUT: &str = "From a Community to documents, and from documents to the first packet between pods";

/// How often the edges are joined.
const ROUNDS: usize = 50;

/// What the tests of the cluster measured.
const COMMUNITY: &str = "/host/community.json";

/// How long two edges may take to part or to join.
const PATIENCE: Duration = Duration::from_secs(60);

/// How long a packet is waited for before the next one is sent.
const BETWEEN: Duration = Duration::from_millis(10);

/// Times of one kind, as the tests of the cluster write them.
#[derive(Deserialize)]
struct Times {
    nodes: usize,
    seconds: Vec<f64>,
}

/// Measures.
///
/// # Errors
/// When the edges cannot be made, or do not come to reach each other.
pub fn run(options: &Options) -> Result<Report> {
    let mut report = Report::new("converge", ABOUT);
    if Path::new(COMMUNITY).exists() {
        let text = fs::read_to_string(COMMUNITY).with_context(|| format!("reading {COMMUNITY}"))?;
        let times: Times = serde_json::from_str(&text).with_context(|| format!("parsing {COMMUNITY}"))?;
        let title = "Community applied to its members' documents";
        tell(&mut report, title, "nodes", times.nodes, &times.seconds);
    } else {
        report.notes.push("No API server was asked.".to_owned());
    }
    let seconds = joined(options.repeats.unwrap_or(ROUNDS))?;
    let title = "Documents of both edges to the first packet and its answer";
    tell(&mut report, title, "edges", NODES.len(), &seconds);
    Ok(report)
}

fn tell(report: &mut Report, title: &str, axis: &str, at: usize, seconds: &[f64]) {
    let mut sorted = seconds.to_vec();
    sorted.sort_by(f64::total_cmp);
    let percentile = |percent: usize| {
        let place = (sorted.len() * percent / 100).min(sorted.len().saturating_sub(1));
        sorted.get(place).copied().unwrap_or(f64::NAN)
    };
    report.goal(format!("{title}: s, 99 of 100 times"), percentile(99), 1.0);
    report.notes.push(format!(
        "{title}: p50 {:.3} s, p99 {:.3} s, of {} times.",
        percentile(50),
        percentile(99),
        sorted.len()
    ));
    let mut series = Series::new(title, "s", axis, &["time"]);
    for value in seconds {
        series.sample("time", at as f64, *value);
    }
    report.series.push(series);
}

/// Joins two edges and parts them, again and again.
fn joined(rounds: usize) -> Result<Vec<f64>> {
    let folder = tempfile::tempdir().context("making a folder for documents")?;
    let settings = Settings {
        documents: product::documents(folder.path())?,
        rules: false,
        direct: false,
    };
    path::load_modules()?;
    let tunnel = node::tunnel()?;
    let mut ground = Ground::of_nodes(&settings)?;
    product::start(&mut ground, tunnel, Switch::On)?;
    ground.wait_reach()?;
    let mut whole = Vec::new();
    for node in NODES {
        let file = settings.documents.join(node.name).join("tunnels.yaml");
        let text = fs::read_to_string(&file).with_context(|| format!("reading {}", file.display()))?;
        whole.push(NodeConfig::parse(&text).with_context(|| format!("parsing {}", file.display()))?);
    }
    let [from, to] = ground.ends()?;
    let reaches =
        |wait| -> Result<bool> { Ok(icmp::ping(&from.place, to.address.into(), 56, 1, wait)?.all()) };
    let mut generation = whole.iter().map(|config| config.generation).max().unwrap_or(0);
    let mut seconds = Vec::new();
    for _ in 0..rounds {
        generation += 1;
        put(&whole, generation, false)?;
        wait_until("the edges have parted", PATIENCE, || {
            Ok(parted(&ground)? && !reaches(BETWEEN)?)
        })?;
        generation += 1;
        let started = Instant::now();
        put(&whole, generation, true)?;
        while !reaches(BETWEEN)? {
            anyhow::ensure!(started.elapsed() < PATIENCE, "the edges do not reach each other");
        }
        seconds.push(started.elapsed().as_secs_f64());
    }
    Ok(seconds)
}

/// Gives both edges their documents, with each other or without.
fn put(whole: &[NodeConfig], generation: u64, together: bool) -> Result<()> {
    for (node, config) in NODES.iter().zip(whole) {
        let other = |name: &str| {
            NODES
                .iter()
                .any(|node| name.ends_with(&format!(".{}", node.name)))
        };
        let mut config = NodeConfig {
            generation,
            ..config.clone()
        };
        config
            .peers
            .retain(|peer| together || !other(&peer.endpoint.name));
        let text = config.to_yaml().context("writing a document")?;
        documents::put(&world::documents().join(node.name), text)?;
    }
    Ok(())
}

/// Whether no agent knows of a tunnel to the other edge any more.
fn parted(ground: &Ground) -> Result<bool> {
    for node in NODES {
        let status = observe::status(ground.world.site(node.name)?)?;
        let peers = status["peers"].as_object().map_or(0, serde_json::Map::len);
        if peers > 1 {
            return Ok(false);
        }
    }
    Ok(true)
}
