//! The compilers: the user's own for programs, one with a BPF target for the eBPF object.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Result, bail};

use crate::places::Places;
use crate::progress::output;
use crate::setup::linker;

const BPF_TARGET: &str = "bpfel-unknown-none";

/// The cargo that runs us, hence the user's own toolchain. Without what `cargo run` says of our own package: build
/// scripts that look at that (ring's) would run again, and all that depends on them, in turns with the next `cargo xtask`.
pub fn cargo() -> Command {
    let mut cargo = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    for (name, _) in std::env::vars_os() {
        let name = name.to_string_lossy();
        if name.starts_with("CARGO_PKG_") || name.starts_with("CARGO_MANIFEST_") {
            cargo.env_remove(&*name);
        }
    }
    cargo
}

/// A toolchain that builds for BPF.
#[derive(Clone, Debug)]
pub enum Bpf {
    /// Debian's packages: a stable compiler with a ready `core` for the target.
    Debian {
        /// The bpf-linker of the cache folder.
        linker: PathBuf,
    },
    /// A nightly of rustup with the component rust-src, and a bpf-linker of the user's.
    Nightly {
        /// The bpf-linker in the search path.
        linker: PathBuf,
    },
}

impl Bpf {
    /// The toolchain of this machine, Debian's first.
    pub fn find(places: &Places) -> Result<Bpf> {
        let linker = linker::path(places);
        if debian_has_core() && linker.exists() {
            return Ok(Bpf::Debian { linker });
        }
        if let Some(linker) = in_search_path("bpf-linker")
            && nightly_has_sources()
        {
            return Ok(Bpf::Nightly { linker });
        }
        bail!(
            "no compiler for {BPF_TARGET} here: run `cargo xtask setup` on Debian 12, or install a nightly with \
             rust-src (`rustup toolchain install nightly --component rust-src`) and bpf-linker"
        )
    }

    /// A cargo command for the eBPF workspace with everything set that the target needs.
    pub fn cargo(&self, subcommand: &str) -> Command {
        let (mut command, linker) = match self {
            Bpf::Debian { linker } => {
                // Not by way of the search path, where rustup puts programs of the same names in front.
                let mut command = match subcommand {
                    "clippy" => Command::new("/usr/bin/cargo-clippy"),
                    _ => Command::new("/usr/bin/cargo"),
                };
                command
                    .env("CARGO", "/usr/bin/cargo")
                    .env("RUSTC", "/usr/bin/rustc")
                    .env("RUSTC_BOOTSTRAP", "1");
                // clippy takes the standard library of the toolchain that rustup names, unless it is told another.
                command
                    .env("SYSROOT", "/usr")
                    .env_remove("RUSTUP_TOOLCHAIN")
                    .env_remove("RUSTUP_HOME");
                command.arg(subcommand);
                (command, linker)
            }
            Bpf::Nightly { linker } => {
                let mut command = Command::new("rustup");
                command.args(["run", "nightly", "cargo", subcommand, "-Zbuild-std=core"]);
                // Set by the cargo that runs us, for another toolchain.
                command
                    .env_remove("RUSTC")
                    .env_remove("RUSTUP_TOOLCHAIN")
                    .env_remove("CARGO");
                (command, linker)
            }
        };
        let flags = [
            "-Clinker=".to_owned() + &linker.to_string_lossy(),
            "-Clink-arg=--btf".to_owned(),
            "-Cdebuginfo=2".to_owned(),
        ];
        command
            .args(["--target", BPF_TARGET])
            .env("CARGO_ENCODED_RUSTFLAGS", flags.join("\x1f"));
        command.env_remove("RUSTFLAGS").env_remove("RUSTC_WRAPPER");
        command
    }

    /// As messages name it.
    pub fn name(&self) -> &'static str {
        match self {
            Bpf::Debian { .. } => "Debian's compiler",
            Bpf::Nightly { .. } => "rustup's nightly",
        }
    }

    /// Where cargo leaves the object within its target folder.
    pub fn artifact(target: &Path, name: &str) -> PathBuf {
        target.join(BPF_TARGET).join("release").join(name)
    }
}

fn debian_has_core() -> bool {
    Path::new("/usr/bin/cargo").exists() && Path::new("/usr/lib/rustlib").join(BPF_TARGET).exists()
}

fn nightly_has_sources() -> bool {
    let mut sysroot = Command::new("rustup");
    sysroot
        .args(["run", "nightly", "rustc", "--print", "sysroot"])
        .env_remove("RUSTUP_TOOLCHAIN");
    output(&mut sysroot).is_ok_and(|folder| {
        Path::new(folder.trim())
            .join("lib/rustlib/src/rust/library/core")
            .exists()
    })
}

fn in_search_path(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    std::env::split_paths(&path)
        .map(|folder| folder.join(name))
        .find(|file| file.is_file())
}
