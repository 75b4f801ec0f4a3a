//! `cargo xtask bench`: each subset of the benchmark in the machine that it needs, and its report in `target/bench`.

use std::path::PathBuf;

use anyhow::{Context, Result, bail};
use clap::{Args, ValueEnum};
use serde_json::Value;

use crate::interrupt::Interrupt;
use crate::lab::{copy_files, environment, words};
use crate::machine::{Kernel, Machine, Options};
use crate::places::Places;
use crate::{build, k8s, setup};

/// The subsets.
#[derive(Clone, Copy, Debug, Eq, PartialEq, ValueEnum)]
pub enum Subset {
    /// ns to find the route of a packet, on this kernel: the fast path, the kernel's trie, a hash
    Decision,
    /// What it takes an agent to apply a document of 10 to 10,000 peers, and to apply one change
    Control,
    /// How fast an agent brings tunnels up to a thousand real peers
    Tunnels,
    /// From a Community to documents with a thousand nodes, and from documents to the first packet between pods
    Converge,
    /// Instructions per packet, pod to pod: the predecessor's way, ours, WireGuard's, and the floor
    Path,
    /// How the CPUs of a connector share the decryption of one tunnel and of ten, with `uplink_xdp` and without
    Spread,
    /// Datagrams and bytes per second, pod to pod; encrypted with --kernel 6.12, else in the clear
    Throughput,
}

impl Subset {
    /// As users write it.
    fn name(self) -> String {
        self.to_possible_value()
            .map_or_else(String::new, |value| value.get_name().to_owned())
    }

    /// What it needs.
    fn machine(self) -> Options {
        match self {
            Subset::Decision | Subset::Control | Subset::Throughput => Options::on(Kernel::Host),
            Subset::Converge | Subset::Tunnels => Options::on(Kernel::V6_12),
            Subset::Spread => Options {
                cpus: 2,
                ..Options::on(Kernel::V6_12)
            },
            Subset::Path => Options {
                icount: true,
                ..Options::on(Kernel::V6_12)
            },
        }
    }
}

/// The arguments of `bench`.
#[derive(Args, Debug)]
pub struct Arguments {
    /// Which of them; all when none is named
    #[arg(value_enum, value_name = "NAME")]
    names: Vec<Subset>,
    /// Another kernel than the one that the subset is meant for
    #[arg(long, value_enum)]
    kernel: Option<Kernel>,
    /// Write the reports of this run into this file, by subset
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Say what there is, and measure nothing
    #[arg(long)]
    list: bool,
    /// Passed on to `fabedge-lab bench`
    #[arg(last = true)]
    more: Vec<String>,
}

/// Measures, and shows the tables.
pub fn bench(places: &Places, arguments: &Arguments, interrupt: &Interrupt) -> Result<()> {
    let subsets = match arguments.names.as_slice() {
        [] => Subset::value_variants(),
        names => names,
    };
    if arguments.list {
        for value in subsets.iter().filter_map(Subset::to_possible_value) {
            let about = value.get_help().map(ToString::to_string).unwrap_or_default();
            println!("{:<12} {about}", value.get_name());
        }
        return Ok(());
    }
    setup::ensure(places)?;
    build::all(places)?;
    build::compared(places)?;
    let mut reports = serde_json::Map::new();
    for subset in subsets {
        interrupt.check()?;
        reports.insert(subset.name(), measure(places, *subset, arguments, interrupt)?);
    }
    if let Some(file) = &arguments.json {
        let text = serde_json::to_string_pretty(&Value::Object(reports))? + "\n";
        std::fs::write(file, text).with_context(|| format!("writing {}", file.display()))?;
    }
    Ok(())
}

/// Runs one subset; its report stays until the next run of the same subset on the same kernel.
fn measure(places: &Places, subset: Subset, arguments: &Arguments, interrupt: &Interrupt) -> Result<Value> {
    let name = subset.name();
    let mut options = subset.machine();
    options.kernel = arguments.kernel.unwrap_or(options.kernel);
    let kernel = options.kernel;
    eprintln!("\n== {name}, kernel {}", kernel.name());
    let mut files = build::host_files(places);
    files.push(("fabedge-bench.o".to_owned(), places.bench_object()));
    if subset == Subset::Converge {
        let times = places.target.join("community.json");
        k8s::check::changes(places, &times, interrupt)?;
        files.push(("community.json".to_owned(), times));
    }
    let machine = Machine::boot(places, &options, &files, interrupt)?;
    let mut command = words(&["/host/fabedge-lab", "bench", &name, "--out", "/out/bench"]);
    command.extend(arguments.more.iter().cloned());
    let code = machine.run(&command, &environment(kernel))?;
    if code != 0 {
        bail!("the benchmark {name} ended with code {code}");
    }
    let folder = places
        .target
        .join("bench")
        .join(format!("{name}-{}", kernel.name()));
    copy_files(&machine.out().join("bench"), &folder)?;
    let read = |file: &str| {
        let path = folder.join(file);
        std::fs::read_to_string(&path).with_context(|| format!("reading {}", path.display()))
    };
    println!("{}", read("report.md")?);
    eprintln!("results: {}", folder.display());
    serde_json::from_str(&read("report.json")?).context("reading the report")
}
