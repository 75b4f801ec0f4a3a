//! Folders of manifests -> documents and problems, compared with what stands in `golden/<case>/expected.txt`.
//! `FABEDGE_BLESS=1 cargo test -p fabedge-operator --test golden` writes the files anew; read the difference.
#![allow(clippy::unwrap_used, reason = "a panic is the report of a test")]

use std::collections::BTreeMap;
use std::fmt::Write;
use std::path::{Path, PathBuf};
use std::{env, fs};

use fabedge_common::config::NodeConfig;
use fabedge_operator::args::Render;
use fabedge_operator::standalone;

fn golden() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden")
}

/// What `render` says of a folder.
fn render(folder: &Path) -> String {
    let args = Render {
        folder: folder.to_owned(),
        out: None,
        only: None,
    };
    let rendered = standalone::render(&args).unwrap();
    let mut text = String::new();
    for finding in &rendered.findings {
        writeln!(text, "# {finding}").unwrap();
    }
    for document in &rendered.documents {
        // What the operator writes the agent must take.
        NodeConfig::parse(document).unwrap();
        write!(text, "---\n{document}").unwrap();
    }
    text
}

fn compare(folder: &Path, case: &str) {
    let found = render(folder);
    let expected = golden().join(case).join("expected.txt");
    if env::var_os("FABEDGE_BLESS").is_some() {
        fs::create_dir_all(golden().join(case)).unwrap();
        fs::write(&expected, &found).unwrap();
    }
    let expected = fs::read_to_string(expected).unwrap();
    assert!(found == expected, "{case}: found\n{found}\nexpected\n{expected}");
}

#[test]
fn every_case() {
    let mut cases = 0;
    for entry in fs::read_dir(golden()).unwrap() {
        let case = entry.unwrap().file_name().into_string().unwrap();
        let input = golden().join(&case).join("input");
        if input.is_dir() {
            compare(&input, &case);
            cases += 1;
        }
    }
    assert!(cases > 0);
}

#[test]
fn the_example() {
    let example = Path::new(env!("CARGO_MANIFEST_DIR")).join("../examples/standalone");
    compare(&example, "example");

    let folder = tempfile::tempdir().unwrap();
    for from in [example.clone(), example.join("communities")] {
        for entry in fs::read_dir(from).unwrap() {
            let path = entry.unwrap().path();
            if path.extension().is_some_and(|ext| ext == "yaml") {
                fs::copy(&path, folder.path().join(path.file_name().unwrap())).unwrap();
            }
        }
    }
    compare(folder.path(), "example-with-communities");
}

/// The order in which files are named decides nothing but which of two documents of one object counts.
#[test]
fn documents_do_not_depend_on_how_objects_are_spread_over_files() {
    let example = Path::new(env!("CARGO_MANIFEST_DIR")).join("../examples/standalone");
    let folder = tempfile::tempdir().unwrap();
    let mut all = BTreeMap::new();
    for file in ["settings.yaml", "nodes.yaml", "communities/node-community.yaml"] {
        let text = fs::read_to_string(example.join(file)).unwrap();
        for (i, document) in text.split("\n---\n").enumerate() {
            all.insert(format!("{file}{i}"), document.to_owned());
        }
    }
    let one: Vec<_> = all.values().rev().cloned().collect();
    fs::write(folder.path().join("all.yml"), one.join("\n---\n")).unwrap();
    let together = render(folder.path());
    fs::remove_file(folder.path().join("all.yml")).unwrap();
    for (i, document) in all.values().enumerate() {
        fs::write(folder.path().join(format!("{i}.yaml")), document).unwrap();
    }
    assert_eq!(render(folder.path()), together);
    assert!(together.contains("name: fabedge.edge2"));
}
