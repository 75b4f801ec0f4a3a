//! Everything one does in this repository, as one command each.

mod bench;
mod build;
mod clean;
mod docs;
mod fuzz;
mod generate;
mod image;
mod interrupt;
mod k8s;
mod kept;
mod lab;
mod lint;
mod machine;
mod places;
mod process;
mod progress;
mod rules;
mod setup;
mod tally;
mod test;
mod toolchain;

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Result;
use clap::{Args, Parser, Subcommand};

use interrupt::Interrupt;
use machine::{Kernel, Machine, Options};
use places::Places;

#[derive(Parser)]
#[command(
    name = "xtask",
    bin_name = "cargo xtask",
    about,
    disable_help_subcommand = true
)]
struct Cli {
    /// The one folder for everything that is fetched or made; by default target/lab
    #[arg(long, env = "FABEDGE_CACHE", global = true, value_name = "FOLDER")]
    cache: Option<PathBuf>,
    #[command(subcommand)]
    task: Task,
}

#[derive(Subcommand)]
enum Task {
    /// Install and make everything that the other commands need (Debian 12, as root; they call it themselves)
    Setup,
    /// Build the eBPF object, the operator, the agent and the lab
    Build,
    /// Run a command in a fresh machine: QEMU with a Debian kernel, or namespaces on this kernel
    Vm(VmArgs),
    /// Bring up a small world of sites and pods, show the main job, break things, show the outcome
    Demo(lab::Demo),
    /// The same world to poke at
    #[command(subcommand)]
    Lab(lab::Lab),
    /// A real Kubernetes control plane on this machine: etcd, API server, controllers, scheduler
    #[command(subcommand)]
    K8s(k8s::K8s),
    /// Build the container images into OCI archives, of which a container runtime needs no registry
    Image(image::Arguments),
    /// Run the suites: unit tests, programs and netlink on this kernel, the lab on three, the documents
    Test(test::Arguments),
    /// Let things go wrong by chance in the world of the lab, and see that what must hold does
    Chaos(test::Chaos),
    /// Measure: each subset in the machine that it needs, with a table, a plot and every sample in target/bench
    Bench(bench::Arguments),
    /// Fuzz the parsers at the boundary, each for a while
    Fuzz(fuzz::Arguments),
    /// Make the files of the repository that come from its code: the chart's custom resource definitions
    Generate {
        /// Only say whether they are up to date
        #[arg(long)]
        check: bool,
    },
    /// Check formatting, clippy, the rules of the repository and its generated files
    Lint,
    /// Remove the cache folder, and end machines that were kept and the control plane
    Clean,
    /// PID 1 of a machine or of a node
    #[command(hide = true, subcommand)]
    Guest(Guest),
}

#[derive(Args)]
struct VmArgs {
    /// The kernel to run on
    #[arg(long, value_enum, default_value = "6.12")]
    kernel: Kernel,
    /// Processors of a QEMU guest
    #[arg(long)]
    cpus: Option<usize>,
    /// Memory of a QEMU guest, in MiB
    #[arg(long, default_value_t = 4096)]
    memory: usize,
    /// Let guest time count instructions: one processor, figures repeatable within a percent
    #[arg(long)]
    icount: bool,
    /// The command; the project's programs are in /host, and what it leaves in /out is kept
    #[arg(last = true, required = true)]
    command: Vec<String>,
}

#[derive(Subcommand)]
enum Guest {
    Vm,
    Container { folder: PathBuf, root: PathBuf },
    Node { folder: PathBuf },
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    match run(cli) {
        Ok(code) => code,
        Err(problem) => {
            eprintln!("error: {problem:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(cli: Cli) -> Result<ExitCode> {
    let places = || Places::find(cli.cache.clone());
    match cli.task {
        Task::Setup => setup::ensure(&places()?)?,
        Task::Build => {
            let places = places()?;
            setup::ensure(&places)?;
            build::all(&places)?;
        }
        Task::Vm(arguments) => return vm(&places()?, &arguments),
        Task::Demo(arguments) => {
            return Ok(exit_code(lab::demo(
                &places()?,
                &arguments,
                &Interrupt::watch()?,
            )?));
        }
        Task::Lab(task) => return Ok(exit_code(lab::lab(&places()?, &task, &Interrupt::watch()?)?)),
        Task::K8s(task) => return Ok(exit_code(k8s::k8s(&places()?, &task, &Interrupt::watch()?)?)),
        Task::Image(arguments) => image::image(&places()?, &arguments)?,
        Task::Test(arguments) => {
            if !test::test(&places()?, &arguments, &Interrupt::watch()?)? {
                return Ok(ExitCode::FAILURE);
            }
        }
        Task::Chaos(arguments) => {
            if !test::chaos(&places()?, &arguments, &Interrupt::watch()?)? {
                return Ok(ExitCode::FAILURE);
            }
        }
        Task::Bench(arguments) => bench::bench(&places()?, &arguments, &Interrupt::watch()?)?,
        Task::Fuzz(arguments) => {
            if !fuzz::fuzz(&places()?, &arguments, &Interrupt::watch()?)? {
                return Ok(ExitCode::FAILURE);
            }
        }
        Task::Generate { check } => generate::generate(&places()?, check)?,
        Task::Lint => lint::lint(&places()?)?,
        Task::Clean => clean::clean(&places()?)?,
        Task::Guest(Guest::Vm) => machine::guest::vm()?,
        Task::Guest(Guest::Container { folder, root }) => machine::guest::container(&folder, &root)?,
        Task::Guest(Guest::Node { folder }) => k8s::nodes::init::run(&folder)?,
    }
    Ok(ExitCode::SUCCESS)
}

fn vm(places: &Places, arguments: &VmArgs) -> Result<ExitCode> {
    setup::ensure(places)?;
    let mut options = Options::on(arguments.kernel);
    options.cpus = arguments.cpus.unwrap_or(options.cpus);
    options.memory = arguments.memory;
    options.icount = arguments.icount;
    let machine = Machine::boot(places, &options, &build::host_files(places), &Interrupt::watch()?)?;
    let code = machine.run(&arguments.command, &lab::environment(arguments.kernel))?;
    if machine.out().read_dir()?.next().is_some() {
        eprintln!(
            "results: {}",
            lab::save(places, &machine, &format!("vm-{}", arguments.kernel.name()))?.display()
        );
    }
    Ok(exit_code(code))
}

/// A guest program's exit code as our own.
fn exit_code(code: i32) -> ExitCode {
    ExitCode::from(u8::try_from(code).unwrap_or(255))
}
