//! Finds the eBPF object that the agent embeds, and hands its path to the compiler as `FABEDGE_EBPF_OBJECT`.

use std::{env, path::PathBuf, process::ExitCode};

const VARIABLE: &str = "FABEDGE_EBPF_OBJECT";

fn main() -> ExitCode {
    println!("cargo::rerun-if-env-changed={VARIABLE}");
    let object = match env::var_os(VARIABLE) {
        Some(path) => PathBuf::from(path),
        None => match default_object() {
            Some(path) => path,
            None => {
                println!("cargo::error=OUT_DIR is not inside a target folder: set {VARIABLE}");
                return ExitCode::FAILURE;
            }
        },
    };
    println!("cargo::rerun-if-changed={}", object.display());
    if !object.is_file() {
        println!(
            "cargo::error=the eBPF object {} is missing: run `cargo xtask build`, or name another with {VARIABLE}",
            object.display()
        );
        return ExitCode::FAILURE;
    }
    println!("cargo::rustc-env={VARIABLE}={}", object.display());
    ExitCode::SUCCESS
}

/// `target/bpf/fabedge-ebpf.o` of the target folder that this build writes to. `OUT_DIR` is
/// `<target>[/<triple>]/<profile>/build/<package>/out`; the target folder is the one with cargo's cache tag.
fn default_object() -> Option<PathBuf> {
    let out = PathBuf::from(env::var_os("OUT_DIR")?);
    let target = out.ancestors().find(|dir| dir.join("CACHEDIR.TAG").is_file())?;
    Some(target.join("bpf").join("fabedge-ebpf.o"))
}
