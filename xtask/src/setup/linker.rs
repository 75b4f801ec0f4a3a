//! bpf-linker, built once against Debian's LLVM 22 and kept in the cache folder.

use std::path::PathBuf;

use anyhow::{Context, Result};

use crate::places::{Places, fill_once};
use crate::progress::{Log, step};

/// The newest release; with LLVM 22, whose bitcode the compiler of Debian writes.
const VERSION: &str = "0.13.0";
const LLVM: &str = "/usr/lib/llvm-22";

fn folder(places: &Places) -> PathBuf {
    places
        .cache
        .join(format!("bpf-linker-{}-llvm-22", VERSION.replace('.', "_")))
}

/// The program.
pub fn path(places: &Places) -> PathBuf {
    folder(places).join("bin/bpf-linker")
}

/// Builds the program unless it is there.
pub fn ensure(places: &Places, log: &Log) -> Result<()> {
    let done = folder(places);
    if done.exists() {
        return Ok(());
    }
    step(&format!("building bpf-linker {VERSION}"), || {
        fill_once(&done, |part| {
            let build = part.join("build");
            log.run(
                crate::toolchain::cargo()
                    .args(["install", "bpf-linker", "--version", VERSION, "--locked"])
                    .args([
                        "--no-default-features",
                        "--features",
                        "llvm-22",
                        "--no-track",
                        "--root",
                    ])
                    .arg(part)
                    .env("LLVM_SYS_221_PREFIX", LLVM)
                    .env("LLVM_PREFIX", LLVM)
                    .env("CARGO_TARGET_DIR", &build)
                    .env_remove("RUSTFLAGS"),
            )?;
            std::fs::remove_dir_all(&build).with_context(|| format!("removing {}", build.display()))
        })
    })
    .context("bpf-linker could not be built")
}
