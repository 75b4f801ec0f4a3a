//! `fabedge-operator`: see `--help`.

use std::io::{IsTerminal, Write};
use std::process::ExitCode;

use clap::Parser;
use fabedge_operator::args::{Cli, Command};
use fabedge_operator::finding::Severity;
use fabedge_operator::kubernetes::cluster_info;
use fabedge_operator::{crds, kubernetes, standalone};
use time::OffsetDateTime;
use tokio::runtime::Runtime;
use tracing_subscriber::EnvFilter;

/// Wrong usage, or nothing could be done at all; as clap has it.
const UNUSABLE: u8 = 2;

fn main() -> ExitCode {
    run(Cli::parse()).unwrap_or_else(|e| {
        eprintln!("fabedge-operator: {e:#}");
        ExitCode::from(UNUSABLE)
    })
}

fn run(cli: Cli) -> anyhow::Result<ExitCode> {
    match cli.command {
        Command::Render(args) => {
            let rendered = standalone::render(&args)?;
            let mut out = std::io::stdout().lock();
            for text in &rendered.documents {
                writeln!(out, "---")?;
                out.write_all(text.as_bytes())?;
            }
            for finding in &rendered.findings {
                eprintln!("{finding}");
            }
            Ok(exit_code(
                rendered.findings.iter().any(|f| f.severity == Severity::Error),
            ))
        }
        Command::Crds(args) => {
            if let Some(folder) = &args.out {
                crds::write(folder)?;
            } else {
                let mut out = std::io::stdout().lock();
                for definition in crds::definitions()? {
                    write!(out, "---\n{}", definition.yaml)?;
                }
            }
            Ok(ExitCode::SUCCESS)
        }
        Command::Standalone(args) => {
            let failed = daemon(cli.log)?.block_on(standalone::run(&args, OffsetDateTime::now_utc))?;
            Ok(exit_code(failed))
        }
        Command::Uninstall(args) => {
            daemon(cli.log)?.block_on(kubernetes::uninstall::run(&args))?;
            Ok(ExitCode::SUCCESS)
        }
        Command::ClusterInfo(args) => {
            let problems = runtime()?.block_on(cluster_info::print(&args.root, &mut std::io::stdout()))?;
            for problem in &problems {
                eprintln!("{problem}");
            }
            Ok(exit_code(!problems.is_empty()))
        }
        Command::Run(args) => {
            daemon(cli.log)?.block_on(kubernetes::run(&args))?;
            Ok(ExitCode::SUCCESS)
        }
    }
}

/// What a subcommand that stays needs: a log on stderr, and a runtime.
fn daemon(log: EnvFilter) -> std::io::Result<Runtime> {
    tracing_subscriber::fmt()
        .with_env_filter(log)
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal())
        .init();
    runtime()
}

fn runtime() -> std::io::Result<Runtime> {
    tokio::runtime::Builder::new_current_thread().enable_all().build()
}

fn exit_code(failed: bool) -> ExitCode {
    if failed {
        ExitCode::FAILURE
    } else {
        ExitCode::SUCCESS
    }
}
