//! Test programs that need more than a compiler, and so are none of those that `cargo test` runs: their targets say
//! `test = false`, and their package says in `package.metadata.tests` what they need. No feature tells them apart, for
//! with another set of features cargo builds everything anew.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsStr;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use serde::Deserialize;

use crate::places::Places;
use crate::progress::{attached, output};
use crate::toolchain::cargo;

/// What a test program needs.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Needs {
    /// Root, namespaces and Debian's programs.
    Machine,
    /// An API server.
    Cluster,
    /// Helm's engine.
    Helm,
}

impl Needs {
    const ALL: [Needs; 3] = [Needs::Machine, Needs::Cluster, Needs::Helm];

    fn name(self) -> &'static str {
        match self {
            Needs::Machine => "machine",
            Needs::Cluster => "cluster",
            Needs::Helm => "helm",
        }
    }
}

/// The targets of every need, by its name.
type Targets = BTreeMap<String, BTreeSet<String>>;

#[derive(Deserialize)]
struct Workspace {
    packages: Vec<Package>,
}

#[derive(Deserialize)]
struct Package {
    name: String,
    targets: Vec<Target>,
    metadata: Option<Metadata>,
}

#[derive(Deserialize)]
struct Target {
    name: String,
    kind: Vec<String>,
    test: bool,
}

#[derive(Deserialize)]
struct Metadata {
    #[serde(default)]
    tests: Targets,
}

/// The arguments with which cargo takes exactly the special test programs.
pub fn all(places: &Places) -> Result<Vec<String>> {
    Ok(arguments(targets(places)?.into_values().flatten()))
}

/// Builds the test programs with this need and returns their files.
pub fn build(places: &Places, needs: Needs) -> Result<Vec<PathBuf>> {
    let names = targets(places)?.remove(needs.name()).unwrap_or_default();
    let mut build = cargo();
    build
        .args(["test", "--release", "--workspace", "--no-run"])
        .arg("--message-format=json-render-diagnostics")
        .args(arguments(names.iter().cloned()))
        .current_dir(&places.repo);
    let built: Vec<PathBuf> = output(&mut build)?.lines().filter_map(test_program).collect();
    let found: BTreeSet<&str> = built.iter().map(|file| target_name(file)).collect();
    if !names.iter().map(String::as_str).eq(found.iter().copied()) {
        bail!("cargo built the test programs {found:?} instead of {names:?}");
    }
    Ok(built)
}

/// Builds all test programs at once, those that `cargo test` runs and the special ones: what they are made of is compiled one
/// after the other, and the other processor compiles something else meanwhile.
pub fn build_all(places: &Places) -> Result<()> {
    let mut build = cargo();
    build
        .args(["test", "--quiet", "--release", "--workspace", "--no-run"])
        // By name, for those that say `test = false`: `--tests` would leave them out, whatever is named besides.
        .args(["--lib", "--bins", "--test", "*"])
        .current_dir(&places.repo);
    attached(&mut build)
}

/// The name of the target that a test program was built of: cargo appends a dash and a hash.
pub fn target_name(program: &Path) -> &str {
    let name = program.file_name().and_then(OsStr::to_str).unwrap_or_default();
    name.rsplit_once('-').map_or(name, |(name, _)| name)
}

fn arguments(names: impl Iterator<Item = String>) -> Vec<String> {
    names.flat_map(|name| ["--test".to_owned(), name]).collect()
}

fn targets(places: &Places) -> Result<Targets> {
    let metadata = output(
        cargo()
            .args(["metadata", "--format-version=1", "--no-deps"])
            .current_dir(&places.repo),
    )?;
    let workspace: Workspace = serde_json::from_str(&metadata).context("reading `cargo metadata`")?;
    sorted(&workspace)
}

/// What the packages say, if every special target is named under one need: one that is not would never run.
fn sorted(workspace: &Workspace) -> Result<Targets> {
    let mut all = Targets::new();
    for package in &workspace.packages {
        let is_special = |target: &&Target| !target.test && target.kind.iter().any(|kind| kind == "test");
        let special = package.targets.iter().filter(is_special);
        let mut left: BTreeSet<&str> = special.map(|target| target.name.as_str()).collect();
        for (need, names) in package.metadata.iter().flat_map(|metadata| &metadata.tests) {
            if Needs::ALL.iter().all(|known| known.name() != need) {
                bail!("{}: package.metadata.tests has {need:?}", package.name);
            }
            for name in names {
                if !left.remove(name.as_str()) {
                    bail!(
                        "{}: package.metadata.tests names {name}, which is no test with `test = false`, or is named twice",
                        package.name
                    );
                }
            }
            all.entry(need.clone()).or_default().extend(names.iter().cloned());
        }
        if !left.is_empty() {
            bail!(
                "{}: package.metadata.tests says nothing of {left:?}",
                package.name
            );
        }
    }
    Ok(all)
}

/// The test program that one of cargo's messages reports.
fn test_program(message: &str) -> Option<PathBuf> {
    #[derive(Deserialize)]
    struct Message {
        executable: Option<PathBuf>,
        profile: Option<Profile>,
    }
    #[derive(Deserialize)]
    struct Profile {
        test: bool,
    }
    let message: Message = serde_json::from_str(message).ok()?;
    message
        .executable
        .filter(|_| message.profile.is_some_and(|profile| profile.test))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_test_programs_are_taken_from_cargos_messages() {
        let test = r#"{"reason":"compiler-artifact","executable":"/t/release/deps/charon-1","profile":{"test":true}}"#;
        assert_eq!(
            test_program(test),
            Some(PathBuf::from("/t/release/deps/charon-1"))
        );
        let program =
            r#"{"reason":"compiler-artifact","executable":"/t/release/agent","profile":{"test":false}}"#;
        assert_eq!(test_program(program), None);
        assert_eq!(
            test_program(r#"{"reason":"build-finished","success":true}"#),
            None
        );
    }

    fn read(metadata: &str) -> Result<Targets> {
        let targets = r#"[
            {"name": "golden", "kind": ["test"], "test": true},
            {"name": "bpf", "kind": ["test"], "test": false},
            {"name": "api", "kind": ["test"], "test": false}
        ]"#;
        let package = format!(r#"{{"name": "agent", "targets": {targets}, "metadata": {metadata}}}"#);
        sorted(&serde_json::from_str(&format!(r#"{{"packages": [{package}]}}"#))?)
    }

    #[test]
    fn every_special_test_is_told_with_its_need() {
        let found = read(r#"{"tests": {"machine": ["bpf"], "cluster": ["api"]}}"#).unwrap();
        assert_eq!(found["machine"], BTreeSet::from(["bpf".to_owned()]));
        for (metadata, says) in [
            ("null", "says nothing of"),
            (r#"{"tests": {"machine": ["bpf"]}}"#, "says nothing of {\"api\"}"),
            (
                r#"{"tests": {"machine": ["bpf", "golden", "api"]}}"#,
                "names golden",
            ),
            (r#"{"tests": {"luck": ["bpf", "api"]}}"#, "has \"luck\""),
        ] {
            let said = format!("{:#}", read(metadata).unwrap_err());
            assert!(said.contains(says), "{metadata}: {said}");
        }
    }
}
