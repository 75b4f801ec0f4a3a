//! The programs of a Kubernetes control plane and of its nodes, built from Debian's source package: Debian 12 itself
//! ships the client alone, and no other distribution of binaries is asked for.
//!
//! Nothing but the compiler is installed. The package of etcd would start a server where systemd runs; its program and
//! the client's are unpacked into the cache folder instead.

mod source;

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};

use super::apt;
use crate::places::{Places, fill_once, stamp};
use crate::progress::{Log, step};

/// What compiles it (Kubernetes 1.20 was written for Go 1.15; this is the oldest that Debian 12 has), and what gives it a
/// network namespace.
pub const PACKAGES: &[&str] = &["golang-1.19-go", "iproute2"];

/// What makes backups of the store and brings them back.
pub const BACKUP_PACKAGES: &[&str] = &["etcd-client"];
const GO: &str = "/usr/lib/go-1.19/bin/go";

/// The version that every program reports, and that clients choose their ways by.
const VERSION: &str = "1.20.2";

/// What is compiled.
const COMPILED: &[&str] = &[
    "kube-apiserver",
    "kube-controller-manager",
    "kube-scheduler",
    "kubelet",
];

/// What they are compiled without, by Kubernetes' own build tags: its clients of five clouds, and of Docker, that nothing here
/// asks for.
const TAGS: &str = "providerless,dockerless";

/// What is taken from a binary package: the package, and its program in /usr/bin.
const UNPACKED: &[(&str, &str)] = &[("etcd-server", "etcd"), ("kubernetes-client", "kubectl")];

/// Raise it when the way of making the folder changes.
const RECIPE: &str = "1";

/// Where the programs of this recipe are.
pub fn folder(places: &Places) -> PathBuf {
    let mut parts = vec![RECIPE.to_owned(), GO.to_owned(), link_flags(), TAGS.to_owned()];
    parts.extend(source::parts());
    parts.extend(COMPILED.iter().map(|name| (*name).to_owned()));
    parts.extend(UNPACKED.iter().map(|(package, _)| (*package).to_owned()));
    places.cache.join(format!("kubernetes-{}", stamp(parts)))
}

/// Builds the programs unless they are there: some five minutes of two processors.
pub fn ensure(places: &Places, log: &Log) -> Result<()> {
    let done = folder(places);
    if done.exists() {
        return Ok(());
    }
    fill_once(&done, |part| make(part, places, log)).context("Kubernetes could not be built")
}

fn make(folder: &Path, places: &Places, log: &Log) -> Result<()> {
    // Beside the folder that fills: a second attempt finds what the first one has compiled.
    let work = places.cache.join("kubernetes-work");
    let names: Vec<&str> = UNPACKED.iter().map(|(_, program)| *program).collect();
    step(&format!("fetching {}", names.join(" and ")), || {
        UNPACKED
            .iter()
            .try_for_each(|(package, program)| unpack(package, program, folder, &work, log))
    })?;
    let go = Go::in_folder(&work)?;
    source::prepare(&go, &work, log)?;
    for name in COMPILED {
        step(&format!("compiling {name} {VERSION}"), || {
            log.run(
                go.command("build")
                    .args(["-trimpath", "-tags", TAGS, "-ldflags", &link_flags(), "-o"])
                    .arg(folder.join(name))
                    .arg(format!("k8s.io/kubernetes/cmd/{name}")),
            )
        })?;
    }
    // The compiler's cache and the sources: two gigabytes that nobody needs again.
    std::fs::remove_dir_all(&work).with_context(|| format!("removing {}", work.display()))
}

fn unpack(package: &str, program: &str, to: &Path, work: &Path, log: &Log) -> Result<()> {
    let unpacked = work.join(package);
    let file = apt::fetch(package, &work.join("fetched"), log)?;
    apt::unpack(&file, &unpacked, log)?;
    std::fs::copy(unpacked.join("usr/bin").join(program), to.join(program))
        .with_context(|| format!("copying {program} out of the package {package}"))?;
    Ok(())
}

/// The compiler, set to the one workspace (in Go's older sense) that holds the sources.
struct Go {
    workspace: PathBuf,
    cache: PathBuf,
}

impl Go {
    fn in_folder(work: &Path) -> Result<Go> {
        let make = |name: &str| -> Result<PathBuf> {
            let folder = work.join(name);
            std::fs::create_dir_all(&folder).with_context(|| format!("creating {}", folder.display()))?;
            // Go finds a package by the path of its folder, which may hold no symbolic link.
            std::fs::canonicalize(&folder).with_context(|| format!("finding {}", folder.display()))
        };
        Ok(Go {
            workspace: make("workspace")?,
            cache: make("compiled")?,
        })
    }

    /// Where the sources of Kubernetes belong.
    fn sources(&self) -> PathBuf {
        self.workspace.join("src/k8s.io/kubernetes")
    }

    /// A go command in the folder of the sources; a user's settings for other programs do not reach it.
    fn command(&self, subcommand: &str) -> Command {
        let mut command = Command::new(GO);
        command.arg(subcommand).current_dir(self.sources());
        command
            .env("GOPATH", &self.workspace)
            .env("GOCACHE", &self.cache)
            .env("GO111MODULE", "off")
            .env("GOENV", "off")
            // Static programs, which run in any root folder.
            .env("CGO_ENABLED", "0");
        for name in ["GOROOT", "GOFLAGS", "GOOS", "GOARCH", "GOBIN", "GOEXPERIMENT"] {
            command.env_remove(name);
        }
        command
    }
}

/// Without these the server calls itself v0.0.0, which clients take for too old.
fn link_flags() -> String {
    let (major, minor) = VERSION.split_once('.').map_or((VERSION, ""), |(major, rest)| {
        (major, rest.split_once('.').map_or(rest, |(minor, _)| minor))
    });
    let facts = [
        ("gitVersion", format!("v{VERSION}")),
        ("gitMajor", major.to_owned()),
        ("gitMinor", minor.to_owned()),
        ("gitTreeState", "archive".to_owned()),
        // The day of the release; the day of the build would make every folder another one.
        ("buildDate", "2021-01-13T00:00:00Z".to_owned()),
    ];
    let mut flags = "-s -w".to_owned();
    for package in ["component-base/version", "client-go/pkg/version"] {
        for (name, value) in &facts {
            // The linker knows a vendored package by its whole path.
            flags += &format!(" -X k8s.io/kubernetes/vendor/k8s.io/{package}.{name}={value}");
        }
    }
    flags
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_copies_of_the_version_are_set() {
        let flags = link_flags();
        for wanted in [
            "vendor/k8s.io/component-base/version.gitVersion=v1.20.2",
            "vendor/k8s.io/client-go/pkg/version.gitVersion=v1.20.2",
            "vendor/k8s.io/component-base/version.gitMajor=1 ",
            "vendor/k8s.io/component-base/version.gitMinor=20 ",
        ] {
            assert!(flags.contains(wanted), "{wanted} is missing in {flags}");
        }
    }
}
