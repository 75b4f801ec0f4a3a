//! buildah with a store of its own in the cache folder, and in it the base image that all Dockerfiles start from.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};

use crate::places::{Places, fill_once, stamp};
use crate::progress::{Log, step};
use crate::setup::{self, apt, sources};

const PACKAGES: &[&str] = &["buildah", "mmdebstrap"];

/// What the Dockerfiles call it. It is made here, of this machine's mirrors, so that nobody needs a registry.
const BASE: &str = "docker.io/library/debian:bookworm-slim";

const BASE_DOCKERFILE: &str = "FROM scratch
ADD base.tar /
ENV PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
CMD [\"bash\"]
";

/// Run on the folder of the base: what differs from one machine to the next, and every way to become another user.
const CLEAN: &str = r#"set -e; cd "$1"
rm -rf etc/apt/sources.list etc/hostname etc/resolv.conf var/lib/apt/lists/* var/cache/apt/* var/cache/ldconfig/*
rm -rf var/cache/debconf/*-old var/lib/dpkg/*-old var/log/* usr/share/doc/base-files/FAQ usr/share/info/dir
find . -xdev -type f -perm /6000 -exec chmod a-s {} +"#;

/// Raise it when the way of making the base changes.
const RECIPE: &str = "2";

/// Every time in an image, so that the same input gives the same bytes.
const EPOCH: &str = "0";

/// The store, with the base in it.
#[derive(Clone, Debug)]
pub struct Store {
    folder: PathBuf,
    stamp: String,
}

impl Store {
    /// Makes it unless it stands.
    pub fn ensure(places: &Places) -> Result<Store> {
        let stamp = stamp([BASE, BASE_DOCKERFILE, CLEAN, RECIPE]);
        let store = Store {
            folder: places.cache.join(format!("images-{stamp}")),
            stamp,
        };
        if store.folder.exists() && apt::missing(PACKAGES)?.is_empty() {
            return Ok(store);
        }
        setup::check_system()?;
        let _lock = places.lock()?;
        let log = Log::at(places.log("setup"))?;
        apt::install(PACKAGES, &log)?;
        fill_once(&store.folder, |part| {
            step("making the base image", || base(part, &log))
        })
        .context("the base image could not be made")?;
        Ok(store)
    }

    /// Stands for the base.
    pub fn stamp(&self) -> &str {
        &self.stamp
    }

    /// Builds the Dockerfile of `context` and names the image; `anew` without the layers that are there.
    pub fn build(
        &self,
        context: &Path,
        programs: &Path,
        version: &str,
        reference: &str,
        anew: bool,
        log: &Log,
    ) -> Result<()> {
        // Mounted, so that the image does not say which mirrors this machine has. The folders exist in the base.
        let list = self.folder.join("apt");
        std::fs::create_dir_all(&list).with_context(|| format!("creating {}", list.display()))?;
        let lines: String = sources::read(Path::new("/etc/apt"))?
            .iter()
            .map(|source| source.line() + "\n")
            .collect();
        std::fs::write(list.join("machine.list"), lines)
            .with_context(|| format!("writing machine.list into {}", list.display()))?;
        let mut build = self.buildah("build");
        build
            .args([
                "--isolation=chroot",
                "--pull=never",
                "--layers",
                "--timestamp",
                EPOCH,
            ])
            .args(["--tag", reference, "--build-arg"])
            .arg(format!("VERSION={version}"))
            .arg("--build-context")
            .arg(format!("programs={}", programs.display()))
            .arg("--volume")
            .arg(format!("{}:/etc/apt/sources.list.d:ro", list.display()));
        if anew {
            build.arg("--no-cache");
        }
        build.arg(context);
        log.run(&mut build)?;
        // What this build has replaced.
        log.run(self.buildah("rmi").arg("--prune"))
    }

    /// Removes an image.
    pub fn remove(&self, reference: &str, log: &Log) -> Result<()> {
        log.run(self.buildah("rmi").arg(reference))
    }

    /// Writes an image into a folder of the OCI's image layout.
    pub fn layout(&self, reference: &str, version: &str, log: &Log) -> Result<PathBuf> {
        let folder = self.folder.join("layout");
        if folder.exists() {
            std::fs::remove_dir_all(&folder).with_context(|| format!("removing {}", folder.display()))?;
        }
        let mut push = self.buildah("push");
        push.arg(reference)
            .arg(format!("oci:{}:{version}", folder.display()));
        log.run(&mut push)?;
        Ok(folder)
    }

    fn buildah(&self, subcommand: &str) -> Command {
        buildah(&self.folder, subcommand)
    }
}

fn buildah(folder: &Path, subcommand: &str) -> Command {
    let mut command = Command::new("buildah");
    command
        .arg("--root")
        .arg(folder.join("storage"))
        .arg("--runroot")
        .arg(folder.join("run"))
        // Works on every file system, and leaves no mount behind.
        .args(["--storage-driver=vfs", subcommand])
        .env("TMPDIR", folder);
    command
}

fn base(folder: &Path, log: &Log) -> Result<()> {
    let mut bootstrap = Command::new("mmdebstrap");
    bootstrap.args(["--mode=root", "--variant=minbase", "--format=tar"]);
    // Born merged, not merged by a package that brings all of Perl: that is a third of it.
    bootstrap.args([
        "--hook-dir=/usr/share/mmdebstrap/hooks/merged-usr",
        "--include=usr-is-merged",
    ]);
    for exclude in ["doc", "man", "locale", "info"] {
        bootstrap.arg(format!("--dpkgopt=path-exclude=/usr/share/{exclude}/*"));
    }
    bootstrap
        .arg("--dpkgopt=path-include=/usr/share/doc/*/copyright")
        .arg(format!("--customize-hook={CLEAN}"))
        .env("SOURCE_DATE_EPOCH", EPOCH)
        .env("TMPDIR", folder)
        .arg("bookworm")
        .arg(folder.join("base.tar"))
        .args(
            sources::read(Path::new("/etc/apt"))?
                .iter()
                .map(sources::Source::line),
        );
    log.run(&mut bootstrap)?;

    let dockerfile = folder.join("Dockerfile");
    std::fs::write(&dockerfile, BASE_DOCKERFILE)
        .with_context(|| format!("writing {}", dockerfile.display()))?;
    let mut build = buildah(folder, "build");
    build
        .args(["--isolation=chroot", "--timestamp", EPOCH, "--tag", BASE])
        .arg(folder);
    log.run(&mut build)?;
    std::fs::remove_file(folder.join("base.tar")).context("removing base.tar")
}
