//! `cargo xtask test`: the suites, each where it belongs, with their minutes and one true sum at the end.

pub mod special;

use std::io::{Read, Write};
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::Instant;

use anyhow::{Context, Result};
use clap::{Args, ValueEnum};

use crate::interrupt::Interrupt;
use crate::lab::{Tunnel, environment, save, words};
use crate::machine::{Kernel, Machine, Options};
use crate::places::Places;
use crate::progress::step;
use crate::tally::{Counts, Tally};
use crate::toolchain::cargo;
use crate::{build, docs, image, k8s, kept, rules, setup};
use special::Needs;

/// The suites.
#[derive(Clone, Copy, Debug, Eq, PartialEq, ValueEnum)]
enum Suite {
    /// What needs neither root nor a machine: `cargo test` of both workspaces
    Unit,
    /// Tests that need a machine, on this kernel: programs by BPF_PROG_TEST_RUN, netlink, charon
    Bpf,
    /// The world of the demo, with the fast path on, off and refused, and what breaks: in QEMU on kernels 6.12 and 6.1 (fast path on)
    /// with kernel ESP, and on this kernel with userspace ESP, where things go wrong by chance, too
    Lab,
    /// What may happen to both ends of a tunnel without costing a packet: in QEMU on kernel 6.12 with kernel ESP
    Loss,
    /// The rules of the repository and the commands and links in its documents
    Docs,
    /// A real Kubernetes control plane, from `k8s up` to `k8s down`; the first run builds Kubernetes
    K8s,
    /// The container images, run as the chart runs them
    Image,
    /// The install guide, command by command, on nodes with real kubelets
    Guide,
    /// The Helm chart, rendered by Helm's engine
    Chart,
}

impl Suite {
    /// All, in the order in which they run: the quickest to fail comes first.
    const ALL: [Suite; 9] = [
        Suite::Docs,
        Suite::Chart,
        Suite::Unit,
        Suite::Bpf,
        Suite::Image,
        Suite::Lab,
        Suite::Loss,
        Suite::K8s,
        Suite::Guide,
    ];

    fn name(self) -> &'static str {
        match self {
            Suite::Unit => "unit",
            Suite::Bpf => "bpf",
            Suite::Lab => "lab",
            Suite::Loss => "loss",
            Suite::Docs => "docs",
            Suite::K8s => "k8s",
            Suite::Image => "image",
            Suite::Guide => "guide",
            Suite::Chart => "chart",
        }
    }

    /// Whether it runs where none is asked for. The suite `lab` has the rows of `loss` that tell most.
    fn by_default(&self) -> bool {
        *self != Suite::Loss
    }

    /// Whether it runs what `cargo xtask build` makes.
    fn needs_programs(&self) -> bool {
        match self {
            Suite::Unit | Suite::Bpf | Suite::Lab | Suite::Loss | Suite::Guide => true,
            Suite::Docs | Suite::Image | Suite::K8s | Suite::Chart => false,
        }
    }
}

/// The arguments of `test`.
#[derive(Args, Debug)]
pub struct Arguments {
    /// Only this suite; may be given several times. All but `loss` when none is given
    #[arg(long, value_enum)]
    only: Vec<Suite>,
    /// Only this kernel of the suite `lab`; may be given several times
    #[arg(long, value_enum)]
    kernel: Vec<Kernel>,
    /// Passed on to `fabedge-lab suite` of the suite `lab`, instead of the names of its suites
    #[arg(last = true)]
    more: Vec<String>,
}

/// Runs the suites that were asked for; returns whether nothing failed.
pub fn test(places: &Places, arguments: &Arguments, interrupt: &Interrupt) -> Result<bool> {
    let started = Instant::now();
    let mut sum = Counts::default();
    let mut lines = Vec::new();
    let suites: Vec<Suite> = Suite::ALL
        .into_iter()
        .filter(|suite| match arguments.only.as_slice() {
            [] => suite.by_default(),
            only => only.contains(suite),
        })
        .collect();

    if suites.iter().any(Suite::needs_programs) {
        let began = Instant::now();
        setup::ensure(places)?;
        if arguments.only.is_empty() {
            build::ebpf(places)?;
            step("building all programs and their tests", || {
                special::build_all(places)
            })?;
        }
        build::all(places)?;
        lines.push(format!("  {:<6} {}", "build", minutes(began)));
    }
    for suite in suites {
        eprintln!("\n== {}", suite.name());
        let began = Instant::now();
        let run = match suite {
            Suite::Unit => unit(places),
            Suite::Bpf => special::build(places, Needs::Machine).and_then(|programs| {
                let programs: Vec<_> = programs.into_iter().map(|file| (file, &[][..])).collect();
                in_machine(places, Kernel::Host, &programs, &[], "bpf", interrupt)
            }),
            Suite::Lab => lab(places, arguments, interrupt),
            Suite::Loss => {
                let suite = words(&["/host/fabedge-lab", "suite", "loss"]);
                in_machine(places, Kernel::V6_12, &[], &[suite], "loss", interrupt)
            }
            Suite::Docs => checks(places),
            Suite::Image => image::check::check(places, interrupt),
            Suite::K8s => k8s::check::check(places, interrupt),
            Suite::Guide => k8s::check::guide(places, interrupt),
            Suite::Chart => chart(places),
        };
        interrupt.check()?;
        let counts = run.unwrap_or_else(|problem| {
            eprintln!("error: {problem:#}");
            Counts {
                failed: 1,
                ..Counts::default()
            }
        });
        lines.push(format!("  {:<6} {}  {counts}", suite.name(), minutes(began)));
        sum += counts;
    }
    eprintln!("\n{}\n{sum} in {}", lines.join("\n"), minutes(started).trim());
    Ok(sum.failed == 0 && sum.passed > 0)
}

fn minutes(since: Instant) -> String {
    format!("{:>5.1} min", since.elapsed().as_secs_f64() / 60.0)
}

fn unit(places: &Places) -> Result<Counts> {
    let mut counts = counted(
        cargo()
            .args(["test", "--release", "--workspace", "--no-fail-fast"])
            .current_dir(&places.repo),
    )?;
    // The decisions of the fast path are plain code, tested on the host with the host's compiler.
    counts += counted(
        cargo()
            .args(["test", "--release", "--lib", "--target-dir"])
            .arg(places.target.join("ebpf"))
            .current_dir(places.repo.join("fabedge-ebpf")),
    )?;
    Ok(counts)
}

fn chart(places: &Places) -> Result<Counts> {
    let python = setup::helm::ensure(places)?;
    let mut counts = Counts::default();
    for program in special::build(places, Needs::Helm)? {
        let mut test = Command::new(program);
        // Where cargo runs tests, too.
        test.env("FABEDGE_HELM_PYTHON", &python)
            .current_dir(places.repo.join("tests"));
        counts += counted(&mut test)?;
    }
    Ok(counts)
}

/// Tests of one program that may be tried again when they fail: where more do, it is not for lack of luck.
const MOST_AGAIN: usize = 2;

/// Runs a program of Rust tests by `run`, which takes its arguments. Many of them tell time on a machine that others use,
/// so the few that fail are tried once more, by themselves. The sum says how many passed only then: each is a defect, of the
/// test or of what it tests.
pub fn steadied(
    arguments: &[&str],
    mut run: impl FnMut(&[&str]) -> Result<(Counts, Vec<String>)>,
) -> Result<Counts> {
    let (first, failed) = run(arguments)?;
    if failed.is_empty() || failed.len() != first.failed || failed.len() > MOST_AGAIN {
        return Ok(first);
    }
    eprintln!("\n== once more: {}", failed.join(", "));
    let mut arguments = vec!["--test-threads=1", "--exact"];
    arguments.extend(failed.iter().map(String::as_str));
    let (again, _) = run(&arguments)?;
    let passed = again.passed.min(failed.len());
    Ok(Counts {
        passed: first.passed + passed,
        unsteady: passed,
        failed: failed.len() - passed,
    })
}

/// Runs a test command with its output on ours; a failure that no closing line tells counts as one.
pub fn counted(command: &mut Command) -> Result<Counts> {
    told(command).map(|(counts, _)| counts)
}

/// The same, with the names of the Rust tests that failed.
pub fn told(command: &mut Command) -> Result<(Counts, Vec<String>)> {
    let mut child = command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .with_context(|| format!("starting {}", command.get_program().display()))?;
    let mut tally = Tally::new(std::io::stdout());
    let mut from = child.stdout.take().context("a child without output")?;
    let mut bytes = [0; 16 * 1024];
    loop {
        let count = from.read(&mut bytes)?;
        if count == 0 {
            break;
        }
        tally.write_all(&bytes[..count])?;
    }
    let counts = closed(tally.counts(), child.wait()?.success());
    Ok((counts, tally.failed()))
}

/// A program that failed without a failed test (it crashed, did not compile, ...) counts as a failure.
fn closed(mut counts: Counts, success: bool) -> Counts {
    if !success && counts.failed == 0 {
        counts.failed = 1;
    }
    counts
}

/// What a machine of the suite `lab` is to show.
struct World {
    kernel: Kernel,
    tunnel: Tunnel,
    /// Test programs that run there besides, by the names of their targets and, where not all of their tests are meant,
    /// of the tests: what this kernel cannot tell.
    programs: &'static [(&'static str, &'static [&'static str])],
    /// Suites of the lab.
    suites: &'static [&'static str],
    /// How many faults by chance follow.
    faults: Option<usize>,
}

/// How much TCP carries each way under emulation, where a MiB takes half a second.
const BULK_MIB: &str = "8";

/// The tests of charon in which SAs and policies of the kernel come, go and follow each other. Whom charon trusts is tried
/// on this kernel.
const WITH_KERNEL_ESP: &[&str] = &[
    "a_killed_charon_gets_everything_again",
    "a_nat_that_remaps_cuts_an_idle_edge_off_only_briefly",
    "a_peer_that_goes_takes_its_sas_along",
    "a_tunnel_comes_up_and_carries_both_families",
    "rekeying_and_doubles_lose_nothing",
    "selectors_change_without_a_gap",
];

/// The worlds. Under emulation everything takes its time, so each shows what the others cannot: 6.12 the slow path by
/// kernel ESP and what breaks, 6.1 programs on a kernel without TCX, this kernel userspace ESP and agents without eBPF.
const WORLDS: [World; 3] = [
    World {
        kernel: Kernel::V6_12,
        tunnel: Tunnel::Xfrm,
        programs: &[("charon", WITH_KERNEL_ESP), ("netns", &["netns::overlay"])],
        suites: &["connectivity", "slow-path", "faults"],
        faults: None,
    },
    World {
        kernel: Kernel::V6_1,
        tunnel: Tunnel::Xfrm,
        programs: &[("bpf", &[])],
        suites: &["connectivity", "cleanup"],
        faults: None,
    },
    World {
        kernel: Kernel::Host,
        tunnel: Tunnel::Libipsec,
        programs: &[],
        suites: &["instruments", "connectivity", "no-ebpf", "mtu", "cleanup"],
        faults: Some(30),
    },
];

fn lab(places: &Places, arguments: &Arguments, interrupt: &Interrupt) -> Result<Counts> {
    let programs = special::build(places, Needs::Machine)?;
    let mut sum = Counts::default();
    for world in &WORLDS {
        if !arguments.kernel.is_empty() && !arguments.kernel.contains(&world.kernel) {
            continue;
        }
        interrupt.check()?;
        let programs: Vec<(PathBuf, &[&str])> = programs
            .iter()
            .filter_map(|file| {
                let (_, tests) = world
                    .programs
                    .iter()
                    .find(|(name, _)| *name == special::target_name(file))?;
                Some((file.clone(), *tests))
            })
            .collect();
        let mut suite = words(&["/host/fabedge-lab", "suite", "--tunnel", world.tunnel.name()]);
        if world.kernel != Kernel::Host {
            suite.extend(words(&["--bulk-mib", BULK_MIB]));
        }
        if arguments.more.is_empty() {
            suite.extend(words(world.suites));
        } else {
            suite.extend(arguments.more.iter().cloned());
        }
        let mut commands = vec![suite];
        if arguments.more.is_empty() {
            commands.extend(world.faults.map(|faults| disorder(world.kernel, faults, 1)));
        }
        sum += in_machine(places, world.kernel, &programs, &commands, "lab", interrupt)?;
    }
    if arguments.kernel.is_empty() && arguments.more.is_empty() {
        println!("\n== a world that stays up");
        sum += kept::check(places)?;
    }
    Ok(sum)
}

/// The arguments of `chaos`.
#[derive(Args, Debug)]
pub struct Chaos {
    /// The kernel to run on: in QEMU, or this one, whose clock is not turned
    #[arg(long, value_enum, default_value = "6.12")]
    kernel: Kernel,
    /// How many faults there are to be, all in all
    #[arg(long, default_value_t = 300)]
    faults: usize,
    /// What the schedules are made from
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Build agents without a rule that closes their nodes, and succeed when that is found out
    #[arg(long)]
    planted_defect: bool,
    /// Passed on to `fabedge-lab chaos`, like `--schedule "kill-agent edge1, loss nat1"`
    #[arg(last = true)]
    more: Vec<String>,
}

/// The command that lets things go wrong on a kernel.
fn disorder(kernel: Kernel, faults: usize, seed: u64) -> Vec<String> {
    let mut command = words(&["/host/fabedge-lab", "chaos"]);
    command.extend([format!("--faults={faults}"), format!("--seed={seed}")]);
    if kernel == Kernel::Host {
        // As the suites do there; the clock is the machine's, and not every kernel has netem.
        command.extend(words(&["--tunnel=libipsec", "--leave-out=clock,weather"]));
    }
    command
}

/// Lets things go wrong by chance; returns whether all held, or whether the planted defect was found.
pub fn chaos(places: &Places, arguments: &Chaos, interrupt: &Interrupt) -> Result<bool> {
    setup::ensure(places)?;
    let mut command = disorder(arguments.kernel, arguments.faults, arguments.seed);
    let mut files = Vec::new();
    if arguments.planted_defect {
        files.extend(build::planted(places)?);
        command.extend(words(&["--programs", "/host/planted", "--to-the-first"]));
    }
    build::all(places)?;
    files.extend(build::host_files(places));
    command.extend(arguments.more.iter().cloned());
    let machine = Machine::boot(places, &Options::on(arguments.kernel), &files, interrupt)?;
    let run = in_booted(&machine, arguments.kernel, &command);
    let results = save(places, &machine, &format!("chaos-{}", arguments.kernel.name()))?;
    let (counts, _) = run?;
    if counts.failed > 0 {
        eprintln!("logs and captures: {}", results.display());
    }
    if arguments.planted_defect {
        let found = counts.failed > 0;
        eprintln!(
            "the planted defect was {}",
            if found { "found" } else { "NOT found" }
        );
        return Ok(found);
    }
    Ok(counts.failed == 0 && counts.passed > 0)
}

/// Boots a machine, runs test programs in it and then a command; its logs stay in the results folder of `suite`.
fn in_machine(
    places: &Places,
    kernel: Kernel,
    programs: &[(PathBuf, &[&str])],
    commands: &[Vec<String>],
    suite: &str,
    interrupt: &Interrupt,
) -> Result<Counts> {
    let mut files = build::host_files(places);
    for (program, _) in programs {
        files.push((
            format!("tests/{}", special::target_name(program)),
            program.clone(),
        ));
    }
    let machine = Machine::boot(places, &Options::on(kernel), &files, interrupt)?;
    let mut sum = Counts::default();
    let outcome = (|| {
        for (program, tests) in programs {
            let program = format!("/host/tests/{}", special::target_name(program));
            let arguments: Vec<&str> = ["--test-threads=1"].iter().chain(*tests).copied().collect();
            sum += steadied(&arguments, |arguments| {
                let line = [&[program.as_str()], arguments].concat();
                in_booted(&machine, kernel, &words(&line))
            })?;
        }
        for command in commands {
            sum += in_booted(&machine, kernel, command)?.0;
        }
        Ok(())
    })();
    // Where the machine is gone, or we are to end, the logs so far are worth keeping.
    let results = save(places, &machine, &format!("test-{suite}-{}", kernel.name()))?;
    if sum.failed > 0 {
        eprintln!("logs and captures: {}", results.display());
    }
    outcome.map(|()| sum)
}

fn in_booted(machine: &Machine, kernel: Kernel, command: &[String]) -> Result<(Counts, Vec<String>)> {
    let began = Instant::now();
    eprintln!("\n== kernel {}: {}", kernel.name(), command.join(" "));
    let mut tally = Tally::new(std::io::stdout());
    let run = machine.run_into(command, &environment(kernel), &mut tally);
    eprintln!("== {}", minutes(began).trim());
    let counts = closed(tally.counts(), run? == 0);
    Ok((counts, tally.failed()))
}

fn checks(places: &Places) -> Result<Counts> {
    let mut counts = Counts::default();
    for (name, problems) in rules::check(&places.repo)?
        .into_iter()
        .chain(docs::check(&places.repo)?)
    {
        if problems.is_empty() {
            counts.passed += 1;
            println!("  {name} ... ok");
        } else {
            counts.failed += 1;
            println!("  {name} ... FAILED");
            for problem in problems {
                println!("    {problem}");
            }
        }
    }
    Ok(counts)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_crash_without_a_failed_test_is_a_failure() {
        let all_passed = counts(3, 0);
        assert_eq!(closed(all_passed, true), all_passed);
        assert_eq!(closed(all_passed, false).failed, 1);
    }

    fn counts(passed: usize, failed: usize) -> Counts {
        Counts {
            passed,
            failed,
            ..Counts::default()
        }
    }

    #[test]
    fn what_fails_is_tried_again_once_and_told() {
        let run = |first: Counts, names: &[&str], again: Counts| {
            let mut runs = Vec::new();
            let sum = steadied(&["all"], |arguments| {
                runs.push(arguments.join(" "));
                let names = names.iter().map(|name| (*name).to_owned());
                Ok(if runs.len() == 1 {
                    (first, names.collect())
                } else {
                    (again, Vec::new())
                })
            });
            (sum.unwrap().to_string(), runs)
        };
        let once = vec!["all".to_owned()];
        let twice = vec!["all".to_owned(), "--test-threads=1 --exact a b".to_owned()];
        for (first, names, again, sum, runs) in [
            (counts(9, 0), &[][..], counts(0, 0), "9 passed, 0 failed", &once),
            // Nobody knows which, or there are too many.
            (counts(8, 1), &[], counts(1, 0), "8 passed, 1 failed", &once),
            (
                counts(6, 3),
                &["a", "b", "c"],
                counts(3, 0),
                "6 passed, 3 failed",
                &once,
            ),
            (
                counts(7, 2),
                &["a", "b"],
                counts(2, 0),
                "9 passed (2 only when tried again), 0 failed",
                &twice,
            ),
            (
                counts(7, 2),
                &["a", "b"],
                counts(1, 1),
                "8 passed (1 only when tried again), 1 failed",
                &twice,
            ),
            // The program did not even start.
            (
                counts(7, 2),
                &["a", "b"],
                counts(0, 1),
                "7 passed, 2 failed",
                &twice,
            ),
        ] {
            assert_eq!(run(first, names, again), (sum.to_owned(), runs.clone()));
        }
    }
}
