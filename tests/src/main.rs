//! `fabedge-lab`: the demo and the suites, in the machine where they run.

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use clap::{Parser, Subcommand};

use lab::lab::{Lab, Settings};
use lab::scenarios::SUITES;
use lab::table::Table;
use lab::world::World;
use lab::{bench, chaos, command, demo, ending, guide, scenarios, script};

/// A small world in network namespaces, with the real programs in it. Runs as root in a machine of its own, which
/// `cargo xtask lab` makes.
#[derive(Debug, Parser)]
#[command(name = "fabedge-lab", version)]
struct Arguments {
    #[command(subcommand)]
    command: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Run suites of checks; exit code 1 if one fails.
    Suite {
        /// Names of suites; all when none is given.
        names: Vec<String>,
        /// Only checks whose name contains this; may be given more than once.
        #[arg(long, value_name = "TEXT")]
        only: Vec<String>,
        /// List suites and checks, and run nothing.
        #[arg(long)]
        list: bool,
        /// End after so many seconds.
        #[arg(long, default_value_t = 3600, value_name = "SECONDS")]
        limit: u64,
        #[command(flatten)]
        settings: Settings,
    },
    /// Show the main job, then break things; exit code 1 if something is not as it should be.
    Demo {
        /// Write every figure into this file.
        #[arg(long, value_name = "FILE")]
        json: Option<PathBuf>,
        /// Leave the world up.
        #[arg(long)]
        keep: bool,
        /// End after so many seconds.
        #[arg(long, default_value_t = 1800, value_name = "SECONDS")]
        limit: u64,
        #[command(flatten)]
        settings: Settings,
    },
    /// Let things go wrong by chance, and see that what must hold does; exit code 1 if it does not.
    Chaos {
        #[command(flatten)]
        options: chaos::Options,
        /// End after so many seconds.
        #[arg(long, default_value_t = 4500, value_name = "SECONDS")]
        limit: u64,
        #[command(flatten)]
        settings: Settings,
    },
    /// Bring the world up, with both Communities in force, and leave it up.
    Up {
        #[command(flatten)]
        settings: Settings,
    },
    /// Run a script with the names and addresses of the lab that is up in its environment.
    Run {
        /// The script; run by its own interpreter line, else by sh.
        script: PathBuf,
        /// Its arguments.
        arguments: Vec<String>,
    },
    /// Answer probes in every pod of the lab that is up, until ended.
    #[command(hide = true)]
    Serve,
    /// Run a command in a site, a pod or a router of the lab that is up.
    Exec {
        /// The place's name.
        name: String,
        /// The command.
        #[arg(last = true, required = true)]
        command: Vec<String>,
    },
    /// Follow the install guide in the clusters that `cargo xtask k8s up --nodes --clusters 2` made; exit code 1 if
    /// something is not as it says.
    Guide {
        /// What that command wrote of its first cluster.
        host: PathBuf,
        /// And of the second one.
        member: PathBuf,
        /// For how many seconds the second one does without the first one's operator
        #[arg(long, value_name = "SECONDS", default_value_t = 15)]
        away: u64,
    },
    /// Join these clusters, and show what that changes; exit code 1 if something is not as it should be.
    Clusters {
        /// What `cargo xtask k8s up --nodes --clusters 2` wrote of its first cluster.
        host: PathBuf,
        /// And of the second one.
        member: PathBuf,
        /// Write every figure into this file.
        #[arg(long, value_name = "FILE")]
        json: Option<PathBuf>,
    },
    /// Measure a subset of the benchmark.
    Bench {
        /// The subset.
        name: String,
        /// The folder for its report.
        #[arg(long, value_name = "FOLDER")]
        out: PathBuf,
        #[command(flatten)]
        options: bench::Options,
    },
    /// List the places of the lab that is up.
    List,
    /// End every program of the lab that is up, and remove it.
    Down,
}

fn main() -> ExitCode {
    match run(Arguments::parse().command) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("fabedge-lab: {error:#}");
            ExitCode::from(2)
        }
    }
}

fn run(verb: Verb) -> Result<ExitCode> {
    match verb {
        Verb::Suite {
            names,
            only,
            list,
            limit,
            settings,
        } => {
            if list {
                for suite in SUITES {
                    println!("{}: {}", suite.name, suite.about);
                    for check in suite.all() {
                        println!("  {}", check.name);
                    }
                }
                return Ok(ExitCode::SUCCESS);
            }
            ending::watch(Duration::from_secs(limit))?;
            suites(&names, &only, &settings)
        }
        Verb::Demo {
            json,
            keep,
            limit,
            settings,
        } => {
            ending::watch(Duration::from_secs(limit))?;
            Ok(exit_code(demo::run(&settings, json.as_deref(), keep)?))
        }
        Verb::Chaos {
            options,
            limit,
            settings,
        } => {
            ending::watch(Duration::from_secs(limit))?;
            Ok(exit_code(chaos::run(&options, &settings)?))
        }
        Verb::Up { settings } => {
            ending::watch(Duration::from_secs(900))?;
            let mut lab = Lab::build(&settings)?;
            scenarios::everything(&mut lab)?;
            lab.keep()?;
            println!("the world is up: {}", names(&World::open()?));
            Ok(ExitCode::SUCCESS)
        }
        Verb::Run { script, arguments } => script::run(&script, &arguments),
        Verb::Serve => script::serve(),
        Verb::Exec { name, command } => exec(&name, &command),
        Verb::Guide { host, member, away } => {
            let away = Duration::from_secs(away);
            Ok(exit_code(guide::run(&[host, member], away)?))
        }
        Verb::Clusters { host, member, json } => {
            Ok(exit_code(guide::demo::run(&[host, member], json.as_deref())?))
        }
        Verb::Bench { name, out, options } => {
            bench::run(&name, &options, &out)?;
            Ok(ExitCode::SUCCESS)
        }
        Verb::List => {
            for place in World::open()?.places() {
                println!("{}", place.name);
            }
            Ok(ExitCode::SUCCESS)
        }
        Verb::Down => {
            World::open()?.tear_down()?;
            Ok(ExitCode::SUCCESS)
        }
    }
}

/// Whether nothing failed, as a shell wants to know it.
fn exit_code(good: bool) -> ExitCode {
    if good {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}

/// The places of a world, in a line.
fn names(world: &World) -> String {
    world
        .places()
        .map(|place| place.name.as_str())
        .collect::<Vec<_>>()
        .join(" ")
}

/// Runs suites, each on a lab of its own.
fn suites(names: &[String], only: &[String], settings: &Settings) -> Result<ExitCode> {
    if let Some(unknown) = names
        .iter()
        .find(|name| SUITES.iter().all(|suite| suite.name != **name))
    {
        bail!("there is no suite {unknown}; `suite --list` shows those that are");
    }
    let mut table = Table::default();
    for suite in SUITES {
        if names.is_empty() || names.iter().any(|name| name == suite.name) {
            let mut settings = settings.clone();
            (suite.settings)(&mut settings);
            let mut lab = Lab::build(&settings)?;
            suite
                .run(&mut lab, only, &mut table)
                .with_context(|| format!("preparing the suite {}", suite.name))?;
        }
    }
    Ok(exit_code(table.close()))
}

/// Runs a command in a place, with this process's own terminal.
fn exec(name: &str, words: &[String]) -> Result<ExitCode> {
    let world = World::open()?;
    let place = world.place(name)?;
    let (program, arguments) = words.split_first().context("an empty command line")?;
    let mut command = std::process::Command::new(program);
    command.args(arguments);
    let status = place
        .run(|| command.status())?
        .with_context(|| format!("running `{}` in {name}", command::show(&command)))?;
    let code = status.code().and_then(|code| u8::try_from(code).ok());
    Ok(ExitCode::from(code.unwrap_or(1)))
}
