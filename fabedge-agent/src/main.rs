//! `fabedge-agent edge|connector|cloud|status|routes|cleanup`.

use std::io::IsTerminal as _;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use clap::Parser;
use fabedge_agent::args::{Cli, Command, Role, RunArgs};
use fabedge_agent::engine::{self, Settings, Subsystems, triggers};
use fabedge_agent::status::Status;
use fabedge_agent::{
    cni, datapath, desired, firewall, links, metrics, netlink, paths, privileges, routes, source, sysctl,
    tunnels,
};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{Notify, watch};
use tracing::{error, info};
use tracing_subscriber::EnvFilter;

// One thread: the kernel and charon do the work, and an edge has little memory.
#[tokio::main(flavor = "current_thread")]
async fn main() -> ExitCode {
    let cli = Cli::parse();
    let filter = EnvFilter::try_new(&cli.log).unwrap_or_else(|_| EnvFilter::new("info"));
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal())
        .init();
    match dispatch(&cli).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            error!("{error:#}");
            ExitCode::FAILURE
        }
    }
}

async fn dispatch(cli: &Cli) -> anyhow::Result<()> {
    match &cli.command {
        Command::Edge(args) => run(cli, Role::Edge, args).await,
        Command::Connector(args) => run(cli, Role::Connector, args).await,
        Command::Cloud(args) => run(cli, Role::Cloud, args).await,
        Command::Status { json } => {
            let status = Status::read(&cli.run_dir)?;
            if *json {
                println!("{}", serde_json::to_string_pretty(&status)?);
            } else {
                print!("{status}");
            }
            Ok(())
        }
        Command::Routes { json } => {
            let tables = datapath::read::tables().context(
                "reading the maps below /sys/fs/bpf/fabedge: does the agent run here, with the fast path?",
            )?;
            if *json {
                println!("{}", serde_json::to_string_pretty(&tables)?);
            } else {
                print!("{tables}");
            }
            Ok(())
        }
        Command::Cleanup => cleanup(cli).await,
    }
}

async fn run(cli: &Cli, role: Role, args: &RunArgs) -> anyhow::Result<()> {
    let place = args.place(role)?;
    privileges::check()?;
    let trigger = Arc::new(Notify::new());
    let subsystems = subsystems(cli, Some(args), &trigger)?;
    triggers::watch(&subsystems, &trigger);

    let source = source::watch(place, &cli.state_dir).await?;
    let (status, reader) = watch::channel(Status::default());
    let (listen, newest) = (args.metrics_listen, source.clone());
    tokio::spawn(async move {
        if let Err(error) = metrics::serve(listen, reader, newest).await {
            error!(%error, %listen, "metrics and health endpoints end");
        }
    });

    let settings = Settings {
        role,
        options: desired::Options::new(args),
        run_dir: cli.run_dir.clone(),
        resync: Duration::from_secs(args.resync),
    };
    info!(
        role = role.name(),
        version = env!("CARGO_PKG_VERSION"),
        "starting"
    );
    let mut terminate = signal(SignalKind::terminate()).context("installing the SIGTERM handler")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("installing the SIGINT handler")?;
    let stop = async move {
        tokio::select! { _ = terminate.recv() => {}, _ = interrupt.recv() => {} }
    };
    engine::run(settings, subsystems, source, trigger, status, stop).await;
    info!("stopped; what was applied stays applied (`fabedge-agent cleanup` removes it)");
    Ok(())
}

async fn cleanup(cli: &Cli) -> anyhow::Result<()> {
    privileges::check()?;
    let mut subsystems = subsystems(cli, None, &Arc::default())?;
    let report = subsystems.cleanup().await;
    let mut failed = Vec::new();
    if let Err(error) = links::delete_bridge(&subsystems.netlink).await {
        failed.push(error.to_string());
    }
    for (subsystem, problems) in report.problems {
        failed.extend(
            problems
                .into_iter()
                .map(|problem| format!("{subsystem}: {problem}")),
        );
    }
    for dir in [&cli.run_dir, &cli.state_dir] {
        use std::io::ErrorKind::{NotFound, ResourceBusy};
        match std::fs::remove_dir_all(dir) {
            // A mount point, as in the agent's pod: what was in it is gone by now.
            Err(error) if !matches!(error.kind(), NotFound | ResourceBusy) => {
                failed.push(format!("delete {}: {error}", dir.display()));
            }
            _ => {}
        }
    }
    anyhow::ensure!(
        failed.is_empty(),
        "not everything could be removed:\n  {}",
        failed.join("\n  ")
    );
    println!("Removed everything of FabEdge's from this node.");
    Ok(())
}

fn subsystems(cli: &Cli, args: Option<&RunArgs>, trigger: &Arc<Notify>) -> anyhow::Result<Subsystems> {
    let netlink = netlink::Netlink::open().context("opening a netlink socket")?;
    let options = tunnels::Options {
        socket: cli.vici_socket.clone(),
        paths: args.map_or_else(Default::default, |args| tunnels::credentials::Paths {
            authorities: args.ca_cert.clone(),
            certificate: args.cert.clone(),
            key: args.key.clone(),
            revocations: args
                .crl
                .clone()
                .unwrap_or_else(|| args.ca_cert.with_file_name("ca.crl")),
        }),
        copies: Some(tunnels::credentials::Paths::within(&cli.state_dir)),
        peers: Some(cli.state_dir.join("peers.der")),
        kind: args.and_then(|args| args.tunnel.forced()),
    };
    Ok(Subsystems {
        sysctl: sysctl::Sysctl::new(),
        links: links::Links::new(netlink.clone()),
        tunnels: tunnels::Tunnels::new(options),
        datapath: datapath::Datapath::new(datapath::Options::default()),
        routes: routes::Routes::new(netlink.clone()),
        firewall: firewall::Firewall::new(),
        cni: cni::Cni::new(&cli.run_dir, &cli.cni_conf_dir),
        netlink,
        paths: paths::Paths::new(Arc::clone(trigger)),
        settled: None,
    })
}
