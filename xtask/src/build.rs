//! `cargo xtask build`: the eBPF object, then the programs that embed and use it.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use object::build::elf::{Builder, SectionData};
use object::elf::SHT_STRTAB;

use crate::places::Places;
use crate::progress::{attached, step};
use crate::toolchain::{Bpf, cargo};

/// The programs that machines run.
const BINARIES: &[&str] = &["fabedge-operator", "fabedge-agent", "fabedge-lab"];
/// What the programs read of the repository in a machine.
const DATA: &[&str] = &["README.md", "examples", "images", "charts"];

/// Builds everything that ships or runs in machines.
pub fn all(places: &Places) -> Result<()> {
    ebpf(places)?;
    step("building operator, agent and lab", || programs(places, &[]))
}

/// Builds an agent with a defect, for what has to find it; gives it and the operator as files at `/host/planted`. What
/// [`all`] builds is to be built again.
pub fn planted(places: &Places) -> Result<Vec<(String, PathBuf)>> {
    ebpf(places)?;
    step("building an agent with a planted defect", || {
        programs(places, &["--features", "fabedge-agent/planted-defect"])
    })?;
    let folder = places.target.join("planted");
    std::fs::create_dir_all(&folder).with_context(|| format!("making {}", folder.display()))?;
    let copies = BINARIES[..2].iter().map(|name| {
        let (from, to) = (places.target.join("release").join(name), folder.join(name));
        std::fs::copy(&from, &to).with_context(|| format!("copying {}", from.display()))?;
        Ok((format!("planted/{name}"), to))
    });
    copies.collect()
}

fn programs(places: &Places, more: &[&str]) -> Result<()> {
    let mut build = cargo();
    build
        .args(["build", "--quiet", "--release", "--workspace"])
        // There are none. But with what is for tests among what is asked for, dependencies get the features that they
        // have in tests, and are not built again for these.
        .arg("--examples")
        .args(more)
        .current_dir(&places.repo);
    for binary in BINARIES {
        build.args(["--bin", binary]);
    }
    attached(&mut build)
}

/// Builds the eBPF object.
pub fn ebpf(places: &Places) -> Result<()> {
    object(places, "fabedge-ebpf", &places.ebpf_object())
}

/// Builds the eBPF object of what the benchmark compares.
pub fn compared(places: &Places) -> Result<()> {
    object(places, "fabedge-bench", &places.bench_object())
}

/// Builds an eBPF object; its file stays untouched when nothing changed, so that the agent is not built again.
fn object(places: &Places, name: &str, object: &Path) -> Result<()> {
    let toolchain = Bpf::find(places)?;
    let target = places.target.join("ebpf");
    step(
        &format!("building the eBPF object {name} with {}", toolchain.name()),
        || {
            let mut build = toolchain.cargo("build");
            build
                .args(["--quiet", "--release", "--bin", name, "--target-dir"])
                .arg(&target);
            attached(build.current_dir(places.repo.join("fabedge-ebpf")))?;
            let built = Bpf::artifact(&target, name);
            let content = std::fs::read(&built).with_context(|| format!("reading {}", built.display()))?;
            let content =
                without_dwarf(&content).with_context(|| format!("stripping {}", built.display()))?;
            if std::fs::read(object).ok().as_ref() != Some(&content) {
                std::fs::create_dir_all(object.parent().context("a path without a folder")?)?;
                std::fs::write(object, content).with_context(|| format!("writing {}", object.display()))?;
            }
            Ok(())
        },
    )
}

/// An object without DWARF. The linker makes BTF of it, and nothing reads it then; it is most of the object.
fn without_dwarf(object: &[u8]) -> Result<Vec<u8>> {
    let mut builder = Builder::read(object)?;
    for section in &mut builder.sections {
        let name = section.name.as_slice();
        section.delete = [&b".debug_"[..], b".rel.debug_"]
            .iter()
            .any(|prefix| name.starts_with(prefix));
    }
    builder.delete_orphans();
    // LLVM has one table for the names of symbols and sections; this writer wants two.
    let names = builder.sections.add();
    names.name = b".shstrtab".as_slice().into();
    names.sh_type = SHT_STRTAB;
    names.data = SectionData::SectionString;
    let mut stripped = Vec::new();
    builder.write(&mut stripped)?;
    Ok(stripped)
}

/// What a machine shows at `/host`: the programs and data that exist now.
pub fn host_files(places: &Places) -> Vec<(String, PathBuf)> {
    let programs = BINARIES
        .iter()
        .map(|name| ((*name).to_owned(), places.target.join("release").join(name)));
    let object = ("fabedge-ebpf.o".to_owned(), places.ebpf_object());
    let data = DATA
        .iter()
        .map(|name| ((*name).to_owned(), places.repo.join(name)));
    programs
        .chain([object])
        .chain(data)
        .filter(|(_, path)| path.exists())
        .collect()
}
