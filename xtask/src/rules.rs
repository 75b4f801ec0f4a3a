//! Rules of this repository that no general tool knows, checked on the files that git tracks.

use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result};

use crate::progress::output;

/// A rule's sentence and its breaches.
pub type Checked = (&'static str, Vec<String>);

const MOST_LINES: usize = 600;

/// Files that turn values into values: no I/O, no clock, no randomness.
const PURE: &[&str] = &[
    "fabedge-agent/src/desired.rs",
    "fabedge-agent/src/desired/",
    "fabedge-common/src/",
    "fabedge-operator/src/discovery.rs",
    "fabedge-operator/src/discovery/",
    "fabedge-operator/src/kubernetes/conditions.rs",
    "fabedge-operator/src/snapshot.rs",
    "fabedge-operator/src/topology.rs",
    "fabedge-operator/src/topology/",
];
/// The same for a subsystem's plan, wherever it is.
const PURE_NAMES: &[&str] = &["/plan.rs", "/plan/"];
const IMPURE: &[&str] = &[
    "kube::",
    "tokio::",
    "aya::",
    "rtnetlink::",
    "std::fs",
    "std::process",
    "SystemTime",
    "Instant::now",
    "rand::",
    "thread_rng",
];

/// The few files that may contain unsafe code, each small and named for what it wraps.
const UNSAFE: &[&str] = &[
    "fabedge-agent/src/datapath/values.rs",
    "fabedge-agent/src/memory.rs",
    "fabedge-agent/tests/bpf/tun.rs",
    "fabedge-agent/tests/netns/space.rs",
    "fabedge-ebpf/src/bench/compared.rs",
    "fabedge-ebpf/src/maps.rs",
    "fabedge-ebpf/src/packet.rs",
    "fabedge-ebpf/src/programs.rs",
    "fabedge-ebpf/src/uplink.rs",
    "tests/src/sys.rs",
];

/// Markers of unfinished work, put together here so that this file does not contain them.
const UNFINISHED: &[&str] = &[
    concat!("TO", "DO"),
    concat!("FIX", "ME"),
    concat!("XX", "X"),
    concat!("todo", "!("),
    concat!("unimplemented", "!("),
];
const IGNORED_TEST: &str = concat!("#[ig", "nore");
const UNSAFE_WORD: &str = concat!("unsa", "fe");

/// One tracked text file.
struct File {
    path: String,
    text: String,
}

/// Checks every rule.
pub fn check(repo: &Path) -> Result<Vec<Checked>> {
    let files = tracked(repo)?;
    Ok(vec![
        ("no Rust file is longer than 600 lines", too_long(&files)),
        ("nothing unfinished is left in the tree", unfinished(&files)),
        (
            "no test is ignored",
            in_code(&files, |file| file.path.ends_with(".rs"), &[IGNORED_TEST]),
        ),
        (
            "pure files do no I/O and read no clock",
            in_code(&files, is_pure, IMPURE),
        ),
        (
            "code beyond the safe language stays in its few files",
            in_code(&files, may_not_be_unsafe, &[UNSAFE_WORD]),
        ),
        (
            "modules have no mod.rs",
            files
                .iter()
                .filter(|file| file.path.ends_with("/mod.rs"))
                .map(|file| file.path.clone())
                .collect(),
        ),
    ])
}

fn tracked(repo: &Path) -> Result<Vec<File>> {
    let listed = output(
        Command::new("git")
            .args(["ls-files", "--cached", "--others", "--exclude-standard", "-z"])
            .current_dir(repo),
    )
    .context("listing the files of the repository")?;
    let mut files = Vec::new();
    for path in listed.split('\0').filter(|path| !path.is_empty()) {
        // Deleted but not yet committed, or not text: nothing to read.
        if let Ok(text) = std::fs::read_to_string(repo.join(path)) {
            files.push(File {
                path: path.to_owned(),
                text,
            });
        }
    }
    Ok(files)
}

fn too_long(files: &[File]) -> Vec<String> {
    files
        .iter()
        .filter(|file| file.path.ends_with(".rs"))
        .map(|file| (file, file.text.lines().count()))
        .filter(|(_, lines)| *lines > MOST_LINES)
        .map(|(file, lines)| format!("{} has {lines} lines", file.path))
        .collect()
}

fn unfinished(files: &[File]) -> Vec<String> {
    let kinds = [".rs", ".sh", ".yaml", ".tpl", ".toml", ".md", ".ci/run"];
    let mut breaches = Vec::new();
    for file in files
        .iter()
        .filter(|file| kinds.iter().any(|kind| file.path.ends_with(kind)))
    {
        for (number, line) in file.text.lines().enumerate() {
            for marker in UNFINISHED.iter().filter(|marker| has_word(line, marker)) {
                breaches.push(format!("{}:{}: {marker}", file.path, number + 1));
            }
        }
    }
    breaches
}

fn is_pure(file: &File) -> bool {
    file.path.ends_with(".rs")
        && (PURE.iter().any(|start| file.path.starts_with(start))
            || PURE_NAMES.iter().any(|part| file.path.contains(part)))
}

fn may_not_be_unsafe(file: &File) -> bool {
    file.path.ends_with(".rs") && !UNSAFE.contains(&file.path.as_str())
}

/// The lines of chosen files that contain one of `words` outside comments.
fn in_code(files: &[File], chosen: impl Fn(&File) -> bool, words: &[&str]) -> Vec<String> {
    let mut breaches = Vec::new();
    for file in files.iter().filter(|file| chosen(file)) {
        for (number, line) in file.text.lines().enumerate() {
            let code = line.split("//").next().unwrap_or(line);
            for word in words.iter().filter(|word| has_word(code, word)) {
                breaches.push(format!("{}:{}: {word}", file.path, number + 1));
            }
        }
    }
    breaches
}

/// Whether `line` contains `word` not as a part of a longer name.
fn has_word(line: &str, word: &str) -> bool {
    let part_of_name = |c: char| c.is_alphanumeric() || c == '_';
    line.match_indices(word).any(|(start, _)| {
        let before = line[..start].chars().next_back();
        let after = line[start + word.len()..].chars().next();
        let ends_in_name = word.ends_with(part_of_name);
        let stands_alone = |neighbour: Option<char>| neighbour.is_none_or(|c| !part_of_name(c));
        stands_alone(before) && (!ends_in_name || stands_alone(after))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(path: &str, text: &str) -> File {
        File {
            path: path.to_owned(),
            text: text.to_owned(),
        }
    }

    #[test]
    fn each_rule_finds_its_breach() {
        let long = file("a/src/long.rs", &"\n".repeat(MOST_LINES + 1));
        assert_eq!(too_long(&[long, file("a/src/short.rs", "\n")]).len(), 1);
        let marker = UNFINISHED[0];
        assert_eq!(
            unfinished(&[
                file("a.yaml", &format!("# {marker}: later")),
                file("b.rs", "// none")
            ]),
            [format!("a.yaml:1: {marker}")]
        );

        let desired = file(
            "fabedge-agent/src/desired/links.rs",
            "// tokio::time is not used\nuse tokio::time;",
        );
        assert_eq!(
            in_code(&[desired], is_pure, IMPURE),
            ["fabedge-agent/src/desired/links.rs:2: tokio::"]
        );
        let plan = file("fabedge-agent/src/routes/plan.rs", "let now = Instant::now();");
        assert_eq!(in_code(&[plan], is_pure, IMPURE).len(), 1);
        let engine = file("fabedge-agent/src/engine.rs", "use tokio::time;");
        assert!(in_code(&[engine], is_pure, IMPURE).is_empty());

        let code = format!("{UNSAFE_WORD} {{ }}");
        assert_eq!(
            in_code(
                &[file("xtask/src/a.rs", &code)],
                may_not_be_unsafe,
                &[UNSAFE_WORD]
            )
            .len(),
            1
        );
        assert!(
            in_code(
                &[file("tests/src/sys.rs", &code)],
                may_not_be_unsafe,
                &[UNSAFE_WORD]
            )
            .is_empty()
        );
        let lint = file("xtask/src/a.rs", &format!("{UNSAFE_WORD}_code"));
        assert!(in_code(&[lint], may_not_be_unsafe, &[UNSAFE_WORD]).is_empty());
    }
}
