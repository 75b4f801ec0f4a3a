//! The benchmark: subsets that measure, and one shape for what they measured. `cargo xtask bench` runs a subset in the
//! machine that it needs.

pub mod control;
pub mod converge;
pub mod decision;
pub mod path;
pub mod plot;
pub mod report;
pub mod rounds;
pub mod spread;
pub mod throughput;
pub mod tunnels;

use std::fs;
use std::path::Path;

use anyhow::{Context, Result, bail};
use clap::Args;

use report::Report;

/// How a subset is to measure.
#[derive(Args, Clone, Debug)]
pub struct Options {
    /// How often each figure is taken; by default as often as the subset thinks fit.
    #[arg(long)]
    pub repeats: Option<usize>,
    /// Where the order of modes, prefixes and destinations starts from: the same number, the same run.
    #[arg(long, default_value_t = 5)]
    pub seed: u64,
}

/// A part of the benchmark that is run by its name.
pub struct Subset {
    /// Its name.
    pub name: &'static str,
    /// What it measures, in a line.
    pub about: &'static str,
    /// Measures, and says on standard error how far it is.
    pub run: fn(&Options) -> Result<Report>,
}

/// All of them.
pub const SUBSETS: &[Subset] = &[
    Subset {
        name: "decision",
        about: decision::ABOUT,
        run: decision::run,
    },
    Subset {
        name: "control",
        about: control::ABOUT,
        run: control::run,
    },
    Subset {
        name: "tunnels",
        about: tunnels::ABOUT,
        run: tunnels::run,
    },
    Subset {
        name: "converge",
        about: converge::ABOUT,
        run: converge::run,
    },
    Subset {
        name: "path",
        about: path::ABOUT,
        run: path::run,
    },
    Subset {
        name: "spread",
        about: spread::ABOUT,
        run: spread::run,
    },
    Subset {
        name: "throughput",
        about: throughput::ABOUT,
        run: throughput::run,
    },
];

/// Runs a subset and writes what it measured into a folder: `report.json`, `report.md` and `plot.svg`.
///
/// # Errors
/// When there is no such subset, when it cannot measure here, or when a file cannot be written.
pub fn run(name: &str, options: &Options, out: &Path) -> Result<()> {
    let Some(subset) = SUBSETS.iter().find(|subset| subset.name == name) else {
        let known: Vec<&str> = SUBSETS.iter().map(|subset| subset.name).collect();
        bail!("there is no benchmark {name}; there are: {}", known.join(", "));
    };
    let report = (subset.run)(options).with_context(|| format!("measuring {name}"))?;
    fs::create_dir_all(out).with_context(|| format!("creating {}", out.display()))?;
    let json = serde_json::to_string_pretty(&report).context("writing the report")?;
    for (file, text) in [
        ("report.json", json + "\n"),
        ("report.md", report.to_string()),
        ("plot.svg", plot::svg(&report)?),
    ] {
        let path = out.join(file);
        fs::write(&path, text).with_context(|| format!("writing {}", path.display()))?;
    }
    Ok(())
}
