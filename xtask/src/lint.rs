//! `cargo xtask lint`: formatting, clippy, the rules that only this repository has, and its generated files.

use anyhow::{Result, bail};

use crate::places::Places;
use crate::progress::{attached, step};
use crate::test::special;
use crate::toolchain::{Bpf, cargo};
use crate::{build, generate, rules, setup};

/// Checks everything; the error of the first thing that is wrong.
pub fn lint(places: &Places) -> Result<()> {
    step("rules of the repository", || {
        let problems: Vec<String> = rules::check(&places.repo)?
            .into_iter()
            .flat_map(|(_, problems)| problems)
            .collect();
        if !problems.is_empty() {
            bail!("{} breaches:\n  {}", problems.len(), problems.join("\n  "));
        }
        Ok(())
    })?;
    let ebpf = places.repo.join("fabedge-ebpf");
    step("formatting", || {
        attached(
            cargo()
                .args(["fmt", "--all", "--check"])
                .current_dir(&places.repo),
        )?;
        attached(cargo().args(["fmt", "--check"]).current_dir(&ebpf))
    })?;
    setup::ensure(places)?;
    // The agent embeds it.
    build::ebpf(places)?;
    step("clippy", || {
        for targets in [vec!["--all-targets".to_owned()], special::all(places)?] {
            let mut clippy = cargo();
            // Not with all features: the only one that is not on by default is the fuzzer's, which wants a C++ compiler.
            // In the release profile: what it checks of the dependencies serves nothing else, but their build scripts do.
            clippy.args(["clippy", "--quiet", "--release", "--workspace"]);
            attached(
                clippy
                    .args(targets)
                    .args(["--keep-going", "--", "-Dwarnings"])
                    .current_dir(&places.repo),
            )?;
        }
        Ok(())
    })?;
    step("clippy on the eBPF programs", || {
        let mut clippy = Bpf::find(places)?.cargo("clippy");
        clippy
            .args(["--quiet", "--release", "--target-dir"])
            .arg(places.target.join("ebpf"));
        attached(clippy.args(["--", "-Dwarnings"]).current_dir(&ebpf))
    })?;
    generate::generate(places, true)
}
