//! `cargo xtask fuzz`: the parsers at the boundary under libFuzzer, each for a while, from a committed corpus.
//!
//! The compiler's own instrumentation is enough for libFuzzer, so no nightly and no sanitizer is needed; what could
//! break memory safety is not ours to write.

use std::fs;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail, ensure};
use clap::Args;

use crate::interrupt::Interrupt;
use crate::places::Places;
use crate::progress::{attached, step};
use crate::setup;
use crate::toolchain::cargo;

/// With a target that is named, cargo keeps these flags from build scripts and macros, which libFuzzer is not linked to.
const TRIPLE: &str = "x86_64-unknown-linux-gnu";

/// What libFuzzer needs to see which code an input reaches, and with what it is compared there.
const INSTRUMENTATION: [&str; 5] = [
    "-Cpasses=sancov-module",
    "-Cllvm-args=-sanitizer-coverage-level=4",
    "-Cllvm-args=-sanitizer-coverage-inline-8bit-counters",
    "-Cllvm-args=-sanitizer-coverage-pc-table",
    "-Cllvm-args=-sanitizer-coverage-trace-compares",
];

/// The variable by which the program learns its target.
const VARIABLE: &str = "FABEDGE_FUZZ_TARGET";

/// Lines of the fuzzer's words that are repeated when it finds something.
const TAIL: usize = 25;

/// The arguments of `fuzz`.
#[derive(Args, Debug)]
pub struct Arguments {
    /// How long each target runs
    #[arg(long, default_value_t = 60)]
    seconds: u32,
    /// Only this target, named as its folder in tests/fuzz/corpus; may be given several times
    #[arg(long, value_name = "TARGET")]
    only: Vec<String>,
}

/// What a run of one target came to.
#[derive(Debug, Default, PartialEq, Eq)]
struct Run {
    executions: u64,
    coverage: u64,
    inputs: u64,
    /// The input that broke the parser.
    found: Option<PathBuf>,
    tail: Vec<String>,
}

/// Runs the targets; returns whether nothing was found.
pub fn fuzz(places: &Places, arguments: &Arguments, interrupt: &Interrupt) -> Result<bool> {
    let corpus = places.repo.join("tests/fuzz/corpus");
    let targets = targets(&corpus, &arguments.only)?;
    setup::ensure_fuzzer(places)?;
    let folder = places.target.join("fuzz");
    let program = build(places, &folder)?;
    let mut sound = true;
    for target in &targets {
        interrupt.check()?;
        let (committed, grown) = (corpus.join(target), folder.join("corpus").join(target));
        fs::create_dir_all(&grown).with_context(|| format!("making {}", grown.display()))?;
        let run = step(&format!("fuzzing {target}"), || {
            let mut command = command(&program, target);
            command
                .arg(format!("-max_total_time={}", arguments.seconds))
                .args(["-print_final_stats=1", "-timeout=10", "-rss_limit_mb=2048"])
                .arg(format!("-artifact_prefix={}/", committed.display()))
                // What is new goes into the first.
                .args([&grown, &committed]);
            watch(&mut command)
        })?;
        interrupt.check()?;
        println!(
            "  {target}: {} executions, {} inputs, coverage {}",
            run.executions, run.inputs, run.coverage
        );
        if let Some(input) = run.found {
            sound = false;
            println!("{}", run.tail.join("\n"));
            println!(
                "  {target}: found {}. Mend the parser and commit the file: `cargo xtask test --only unit` replays it",
                input.display()
            );
        }
    }
    Ok(sound)
}

/// The targets, by the folders of their corpora.
fn targets(corpus: &Path, only: &[String]) -> Result<Vec<String>> {
    let mut targets = Vec::new();
    for entry in fs::read_dir(corpus).with_context(|| format!("reading {}", corpus.display()))? {
        targets.push(entry?.file_name().to_string_lossy().into_owned());
    }
    targets.sort();
    if let Some(unknown) = only.iter().find(|name| !targets.contains(name)) {
        bail!("there is no target {unknown}; there are {}", targets.join(", "));
    }
    targets.retain(|name| only.is_empty() || only.contains(name));
    Ok(targets)
}

/// Builds the program of all targets, apart from everything else: nothing of it can be used for anything else.
fn build(places: &Places, folder: &Path) -> Result<PathBuf> {
    step("building the fuzzer, instrumented", || {
        let mut build = cargo();
        build
            .args([
                "build",
                "--quiet",
                "--package",
                "fabedge-fuzz",
                "--features",
                "libfuzzer",
            ])
            .args(["--profile", "fuzz", "--target", TRIPLE, "--target-dir"])
            .arg(folder)
            .env("CARGO_ENCODED_RUSTFLAGS", INSTRUMENTATION.join("\x1f"))
            .env_remove("RUSTFLAGS")
            .current_dir(&places.repo);
        attached(&mut build)
    })?;
    Ok(folder.join(TRIPLE).join("fuzz/fabedge-fuzz"))
}

fn command(program: &Path, target: &str) -> Command {
    let mut command = Command::new(program);
    command
        .env(VARIABLE, target)
        // The panic's own words are what tells.
        .env("RUST_BACKTRACE", "0")
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped());
    command
}

/// Runs the fuzzer to its end and reads what it says.
fn watch(command: &mut Command) -> Result<Run> {
    let mut child = command.spawn().context("starting the fuzzer")?;
    let mut run = Run::default();
    let output = child.stderr.take().context("the fuzzer says nothing")?;
    for line in BufReader::new(output).split(b'\n') {
        run.hear(&String::from_utf8_lossy(
            &line.context("reading what the fuzzer says")?,
        ));
    }
    let status = child.wait().context("waiting for the fuzzer")?;
    ensure!(
        status.success() || run.found.is_some(),
        "the fuzzer ended with {status}:\n{}",
        run.tail.join("\n")
    );
    Ok(run)
}

impl Run {
    fn hear(&mut self, line: &str) {
        let words: Vec<&str> = line.split_whitespace().collect();
        let after = |word: &str| {
            let at = words.iter().position(|other| *other == word)?;
            // As in `corp: 12/345b`.
            words.get(at + 1)?.split('/').next()?.parse().ok()
        };
        if line.starts_with('#') {
            self.coverage = after("cov:").unwrap_or(self.coverage);
            self.inputs = after("corp:").unwrap_or(self.inputs);
        }
        self.executions = after("stat::number_of_executed_units:").unwrap_or(self.executions);
        if let Some((_, path)) = line.split_once("Test unit written to ") {
            self.found = Some(path.trim().into());
        }
        // Not the bytes of what was found, nor the counters.
        if !line.starts_with('#') && !line.starts_with("stat::") && !line.starts_with("0x") {
            self.tail.push(line.to_owned());
        }
        if self.tail.len() > TAIL {
            self.tail.remove(0);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_and_findings_are_read_out_of_what_the_fuzzer_says() {
        let mut run = Run::default();
        for line in [
            "INFO: seed corpus: files: 3 min: 1b max: 2b total: 3b rss: 40Mb",
            "#3\tINITED cov: 12 ft: 13 corp: 2/3b exec/s: 0 rss: 40Mb",
            "#4096\tpulse  cov: 120 ft: 130 corp: 20/3Kb lim: 4 exec/s: 2048 rss: 40Mb",
            "thread '<unnamed>' panicked at src/lib.rs:1:1:",
            "artifact_prefix='/c/csr/'; Test unit written to /c/csr/crash-00ff",
            "stat::number_of_executed_units: 5000",
        ] {
            run.hear(line);
        }
        assert_eq!((run.executions, run.coverage, run.inputs), (5000, 120, 20));
        assert_eq!(run.found.as_deref(), Some(Path::new("/c/csr/crash-00ff")));
        assert!(run.tail.iter().any(|line| line.contains("panicked")));
    }

    #[test]
    fn a_target_that_is_not_there_is_named_with_those_that_are() {
        let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fuzz/corpus");
        assert_eq!(targets(&corpus, &["csr".to_owned()]).unwrap(), ["csr"]);
        assert!(targets(&corpus, &[]).unwrap().len() > 4);
        let error = targets(&corpus, &["crs".to_owned()]).unwrap_err().to_string();
        assert!(error.contains("crs") && error.contains("csr"), "{error}");
    }
}
