use super::*;

fn note(name: &str, message: &str) -> Note {
    let object = Key {
        kind: Kind::Node,
        name: name.to_owned(),
    };
    Note::new(object, "7", true, "Invalid", message)
}

/// What is due now is said; returns it.
fn say(book: &mut Book, holding: &[Note], now: Instant) -> (Vec<Note>, Option<Instant>) {
    let due = book.holding(holding.to_vec(), now);
    let mut notes = Vec::new();
    for saying in due.sayings {
        book.said(&saying.note, saying.count.unwrap_or(0) + 1);
        notes.push(saying.note);
    }
    (notes, due.again)
}

#[test]
fn what_holds_is_said_once_and_again_before_it_is_forgotten() {
    let start = Instant::now();
    let mut book = Book::new(start);
    let holding = [note("edge1", "a"), note("edge2", "a")];
    assert_eq!(say(&mut book, &holding, start).0, holding);
    assert!(say(&mut book, &holding, start + AGAIN / 2).0.is_empty());
    assert_eq!(say(&mut book, &holding, start + AGAIN).0, holding);
    // What was mended and breaks again is news.
    assert!(say(&mut book, &holding[..1], start + AGAIN).0.is_empty());
    let due = book.holding(holding.to_vec(), start + AGAIN);
    assert_eq!(due.sayings.len(), 1);
    assert_eq!(due.sayings[0].note, holding[1]);
    assert_eq!(due.sayings[0].count, Some(2));
    // What could not be said is said again.
    book.forget(&holding[1]);
    assert_eq!(say(&mut book, &holding, start + AGAIN).0, holding[1..]);
}

#[test]
fn what_happens_is_said_each_time() {
    let start = Instant::now();
    let mut book = Book::new(start);
    let one = note("edge1", "connected");
    for count in 0..3 {
        let sayings = book.happened(vec![one.clone()], start);
        assert_eq!(sayings.len(), 1);
        assert_eq!(sayings[0].count, (count > 0).then_some(count));
        book.said(&one, count + 1);
    }
    assert!(say(&mut book, &[], start).0.is_empty());
    for _ in 0..100 {
        book.happened(vec![one.clone()], start);
    }
    assert!(book.happened(vec![one], start).is_empty(), "enough");
}

#[test]
fn one_object_cannot_flood_and_does_not_silence_others() {
    let start = Instant::now();
    let mut book = Book::new(start);
    let mut said = 0;
    let minutes = 10;
    for second in 0..60 * minutes {
        let now = start + Duration::from_secs(second);
        let flapping = note("edge1", &second.to_string());
        let (notes, again) = say(&mut book, &[flapping], now);
        said += notes.len() as u64;
        assert!(!notes.is_empty() || again.is_some_and(|at| at > now), "it waits");
        if second == 30 {
            let other = [note("edge2", "b")];
            assert_eq!(say(&mut book, &other, now).0, other);
        }
    }
    let most = u64::from(PER_OBJECT.0) + minutes;
    assert!((most - 1..=most).contains(&said), "{said} of at most {most}");
    assert!(book.said.len() as u64 <= most + 1);

    // What is over is forgotten.
    say(&mut book, &[], start + Duration::from_secs(60 * minutes) + AGAIN);
    assert!(book.said.is_empty() && book.objects.is_empty());
}

#[test]
fn a_thousand_broken_nodes_take_their_time() {
    let start = Instant::now();
    let mut book = Book::new(start);
    let holding: Vec<Note> = (0..1000).map(|i| note(&format!("edge{i:03}"), "a")).collect();
    let (first, again) = say(&mut book, &holding, start);
    assert_eq!(first.len(), IN_ALL.0 as usize);
    assert_eq!(again, Some(start + LATER));
    let mut now = start;
    let mut said = first.len();
    let mut again = again;
    while let Some(at) = again {
        now = at;
        let (notes, next) = say(&mut book, &holding, now);
        said += notes.len();
        again = next;
    }
    assert_eq!(said, 1000, "everybody has a turn");
    assert!(now - start > Duration::from_secs(80));
}

#[test]
fn findings_of_an_object_are_one_note() {
    let findings = [
        Finding::error("Node edge1", "spec.podCIDRs", "is missing"),
        Finding::error("Node edge1", "metadata.name", "is long"),
        Finding::warning("Node edge1", "x", "y"),
        Finding::error("connector", "metadata.labels", "has no object"),
        Finding::error("Community unknown", "a", "b"),
    ];
    let notes = of_findings(&findings, |key| (key.name == "edge1").then_some("7"));
    let texts: Vec<_> = notes
        .iter()
        .map(|note| (note.reason.as_str(), note.message.as_str()))
        .collect();
    assert_eq!(
        texts,
        [
            ("Pending", "x: y"),
            ("Invalid", "spec.podCIDRs: is missing; metadata.name: is long")
        ]
    );
}

#[test]
fn an_event_is_one_that_an_api_server_takes() {
    let at = || Time(k8s_openapi::jiff::Timestamp::UNIX_EPOCH);
    let one = note("edge1", "a").event("pod-1", at());
    assert_eq!(one.metadata.namespace.as_deref(), Some("default"));
    assert_eq!(one.involved_object.namespace, None);
    assert_eq!(one.involved_object.api_version.as_deref(), Some("v1"));
    let name = |note: Note| note.name();
    assert_eq!(name(note("edge1", "a")), name(note("edge1", "a")));
    assert_ne!(name(note("edge1", "a")), name(note("edge1", "b")));
    let long = note(
        &format!("{}.{}", "e".repeat(235), "f".repeat(17)),
        &"ü".repeat(2000),
    );
    assert!(
        long.name().len() <= LONGEST_NAME && !long.name().contains(".."),
        "{}",
        long.name()
    );
    assert!(long.message.len() <= LONGEST);
}

#[test]
fn a_community_tells_when_it_is_ready_and_when_it_was_replaced() {
    let with = |conditions: &[(&str, bool, &str, i64)]| CommunityStatus {
        conditions: conditions
            .iter()
            .map(|(kind, holds, reason, generation)| Condition {
                kind: (*kind).to_owned(),
                status: if *holds {
                    ConditionStatus::True
                } else {
                    ConditionStatus::False
                },
                observed_generation: Some(*generation),
                last_transition_time: String::new(),
                reason: (*reason).to_owned(),
                message: "text".to_owned(),
            })
            .collect(),
        ..CommunityStatus::default()
    };
    let ready = |holds, generation| (READY, holds, "MembersReady", generation);
    let (all, some) = (conditions::ALL_REPLACED, "SomeRemoved");
    type Row<'a> = (CommunityStatus, CommunityStatus, &'a [(&'a str, bool)]);
    let table: &[Row<'_>] = &[
        (with(&[]), with(&[ready(true, 1)]), &[("MembersReady", false)]),
        (
            with(&[ready(false, 1)]),
            with(&[ready(true, 1)]),
            &[("MembersReady", false)],
        ),
        (with(&[ready(true, 1)]), with(&[ready(true, 2)]), &[]),
        (with(&[ready(true, 1)]), with(&[ready(false, 1)]), &[]),
        (with(&[]), with(&[(REPLACED, true, all, 2)]), &[(REPLACED, true)]),
        (
            with(&[]),
            with(&[(REPLACED, true, some, 2)]),
            &[(REPLACED, false)],
        ),
        (
            with(&[(REPLACED, true, all, 2)]),
            with(&[(REPLACED, true, all, 2)]),
            &[],
        ),
        (
            with(&[(REPLACED, true, all, 2)]),
            with(&[(REPLACED, true, all, 3)]),
            &[(REPLACED, true)],
        ),
    ];
    for (before, after, expected) in table {
        let notes = of_transition("shops", "7", before, after);
        let said: Vec<_> = notes
            .iter()
            .map(|note| (note.reason.as_str(), note.warning))
            .collect();
        assert_eq!(said, *expected, "{before:?} to {after:?}");
    }
}
