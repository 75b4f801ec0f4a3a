//! Replays the corpora: what a fuzzer found once is tried for ever, without one.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use fuzz::TARGETS;

/// Corpora are for reaching code, not for storing what a fuzzer made: what reaches no more than others does not belong.
const MAX_BYTES: u64 = 300 * 1024;

fn corpus() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus")
}

fn entries(folder: &Path) -> BTreeSet<PathBuf> {
    std::fs::read_dir(folder)
        .unwrap_or_else(|error| panic!("{}: {error}", folder.display()))
        .map(|entry| entry.expect("an entry").path())
        .collect()
}

#[test]
fn no_input_of_a_corpus_breaks_its_parser() {
    for target in TARGETS {
        let inputs = entries(&corpus().join(target.name));
        assert!(inputs.len() >= 10, "{}: {} inputs", target.name, inputs.len());
        for input in inputs {
            // Shown when the target panics.
            println!("{}", input.display());
            (target.run)(&std::fs::read(&input).expect("an input"));
        }
    }
}

#[test]
fn every_corpus_has_a_target_and_all_are_small() {
    let folders = entries(&corpus());
    let targets: BTreeSet<PathBuf> = TARGETS.iter().map(|target| corpus().join(target.name)).collect();
    assert_eq!(folders, targets);
    let bytes: u64 = folders
        .iter()
        .flat_map(|folder| entries(folder))
        .map(|file| file.metadata().expect("a file").len())
        .sum();
    assert!(bytes < MAX_BYTES, "{bytes} bytes");
}
