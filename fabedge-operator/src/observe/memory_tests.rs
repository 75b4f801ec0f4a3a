use proptest::prelude::*;

use super::*;

const EDGE1: &str = "apiVersion: v1\nkind: Node\nmetadata: {name: edge1}\nspec: {podCIDR: 10.0.1.0/24}\n";
const EDGE2: &str = "apiVersion: v1\nkind: Node\nmetadata: {name: edge2}\nspec: {podCIDR: 10.0.2.0/24}\n";

fn files(of: &[(&str, &str)]) -> Files {
    of.iter()
        .map(|(name, text)| ((*name).to_owned(), Ok((*text).to_owned())))
        .collect()
}

fn nodes(observation: &Observation) -> Vec<&str> {
    observation.snapshot.nodes.keys().map(String::as_str).collect()
}

#[track_caller]
fn says(observation: &Observation, expected: &str) {
    let texts: Vec<_> = observation.findings.iter().map(ToString::to_string).collect();
    assert!(
        texts.iter().any(|text| text.contains(expected)),
        "{expected:?} in {texts:#?}"
    );
}

#[test]
fn a_malformed_document_costs_nothing_that_worked() {
    let both = format!("{EDGE1}---\n{EDGE2}");
    let broken_value = EDGE2.replace("10.0.2.0/24", "10.0.2.0/240");
    let broken_type = EDGE2.replace("10.0.2.0/24", "[1, 2]");
    let broken_yaml = EDGE2.replace("10.0.2.0/24}", "10.0.2.0/24");
    let broken_version = EDGE2.replace("v1", "v2");
    for broken in [broken_value, broken_type, broken_yaml, broken_version] {
        let mut memory = Memory::default();
        assert_eq!(
            nodes(&memory.absorb(&files(&[("n.yaml", &both)]))),
            ["edge1", "edge2"]
        );
        let moved = EDGE1.replace("10.0.1.0", "10.0.9.0");
        let now = memory.absorb(&files(&[("n.yaml", &format!("{moved}---\n{broken}"))]));
        assert_eq!(nodes(&now), ["edge1", "edge2"], "{broken}");
        assert_eq!(
            now.snapshot.nodes["edge1"].pod_cidrs[0].to_string(),
            "10.0.9.0/24",
            "the good one counts"
        );
        assert_eq!(
            now.snapshot.nodes["edge2"].pod_cidrs[0].to_string(),
            "10.0.2.0/24",
            "the bad one as it was"
        );
        assert!(now.incomplete);
        let lines: Vec<_> = now
            .findings
            .iter()
            .filter_map(|f| f.place.as_ref())
            .map(|at| at.line)
            .collect();
        assert!((6..=10).contains(&lines[0]), "{lines:?}");
        says(&now, "Node edge2: document: its last good form stays in effect");

        // Still, after any number of passes; and when it is removed, it is gone.
        let again = memory.absorb(&files(&[("n.yaml", &format!("{moved}---\n{broken}"))]));
        assert_eq!(again, now);
        let removed = memory.absorb(&files(&[("n.yaml", &moved)]));
        assert_eq!(nodes(&removed), ["edge1"]);
        assert!(!removed.incomplete);
    }
}

#[test]
fn an_unreadable_file_costs_nothing_that_worked() {
    let mut memory = Memory::default();
    memory.absorb(&files(&[("a.yaml", EDGE1), ("b.yaml", EDGE2)]));
    let mut now = files(&[("a.yaml", EDGE1)]);
    now.insert("b.yaml".to_owned(), Err("permission denied".to_owned()));
    let now = memory.absorb(&now);
    assert_eq!(nodes(&now), ["edge1", "edge2"]);
    says(&now, "b.yaml: file: content: permission denied");
    assert_eq!(
        nodes(&memory.absorb(&files(&[("a.yaml", EDGE1)]))),
        ["edge1"],
        "but a removed one is removed"
    );
}

#[test]
fn an_object_may_move_between_files() {
    let mut memory = Memory::default();
    memory.absorb(&files(&[("a.yaml", EDGE1)]));
    let moved = memory.absorb(&files(&[("a.yaml", "{"), ("b.yaml", EDGE1)]));
    assert_eq!(moved.places["Node edge1"].file, "b.yaml");
    assert_eq!(
        nodes(&memory.absorb(&files(&[("a.yaml", "{")]))),
        [""; 0],
        "b.yaml had it last"
    );
}

#[test]
fn what_was_good_outlives_the_process() {
    let mut first = Memory::default();
    first.absorb(&files(&[("n.yaml", EDGE1)]));
    let mut second = Memory::restore(&first.save().unwrap()).unwrap();
    let now = second.absorb(&files(&[("n.yaml", &EDGE1.replace("10.0.1.0/24", "nonsense"))]));
    assert_eq!(
        now.snapshot.nodes["edge1"].pod_cidrs[0].to_string(),
        "10.0.1.0/24"
    );

    assert!(matches!(Memory::restore("{"), Err(Error::Syntax(_))));
    assert!(matches!(
        Memory::restore(r#"{"version":99,"objects":[]}"#),
        Err(Error::Version(99))
    ));
}

#[test]
fn documents_are_told_apart_as_yaml_does() {
    let text = format!(
        "\u{feff}# comment\n%YAML 1.2\n---\n{EDGE1}...\n---\n\n---\n# nothing\n--- # and a comment\n{}---\n{EDGE2}",
        EDGE1
            .replace("edge1", "edge3")
            .replace("spec", "# '---' in a line is no marker\nspec")
    );
    let now = Memory::default().absorb(&files(&[("n.yaml", &text)]));
    assert_eq!(nodes(&now), ["edge1", "edge2", "edge3"]);
    assert_eq!(now.places["Node edge1"].line, 4);
    assert_eq!(now.places["Node edge3"].line, 14);
    assert_eq!(now.places["Node edge2"].line, 20);
}

proptest! {
    #[test]
    fn nothing_that_is_read_makes_it_panic(text in "(?s).{0,300}") {
        Memory::default().absorb(&files(&[("n.yaml", &text)]));
    }

    #[test]
    fn damage_to_one_document_leaves_the_others(at in 0..EDGE2.len(), with in "[ -~]{0,6}|[^ -~]{0,2}") {
        let mut damaged = EDGE2.to_owned();
        damaged.insert_str(at, &with);
        prop_assume!(!damaged.lines().any(|line| line.starts_with("---") || line.starts_with("...")));
        let text = format!("{EDGE1}---\n{damaged}---\n{}", EDGE1.replace("edge1", "edge3"));
        let now = Memory::default().absorb(&files(&[("n.yaml", &text)]));
        // The damage may also have given it the name of one of the others.
        prop_assert!(now.snapshot.nodes.contains_key("edge1") && now.snapshot.nodes.contains_key("edge3"), "{}", text);
    }
}
