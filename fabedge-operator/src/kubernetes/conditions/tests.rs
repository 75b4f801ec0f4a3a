use fabedge_common::config::Endpoint;

use super::*;
use crate::snapshot::distinguished_name;

const THEN: &str = "2026-01-01T00:00:00Z";
const NOW: &str = "2026-01-02T00:00:00Z";

fn agents(list: &[(&str, Agent)]) -> BTreeMap<String, Agent> {
    list.iter()
        .map(|(name, agent)| ((*name).to_owned(), *agent))
        .collect()
}

fn of(members: &[&str]) -> Community {
    Community {
        members: members.iter().map(|&member| member.to_owned()).collect(),
    }
}

/// The status of the Community `shops` in generation 2.
fn status(
    good: Option<&Community>,
    malformed: &[Finding],
    before: &CommunityStatus,
    dropped: Option<&Dropped>,
    findings: &[Finding],
    agents: &BTreeMap<String, Agent>,
) -> CommunityStatus {
    let shown = Shown {
        name: "shops",
        uid: "7",
        generation: Some(2),
        good,
        malformed,
        status: before,
    };
    community(&shown, dropped, &Facts::new("fabedge", findings, agents), NOW)
}

fn says(conditions: &[Condition], kind: &str) -> String {
    condition(conditions, kind).map_or_else(
        || "nothing".to_owned(),
        |c| format!("{:?} {}: {}", c.status, c.reason, c.message),
    )
}

#[test]
fn readiness_is_counted_and_who_is_not_ready_is_named() {
    let agents = agents(&[
        ("edge1", Agent::Ready),
        ("edge2", Agent::Ready),
        ("edge3", Agent::NotReady),
        ("edge4", Agent::Behind),
        ("connector", Agent::NotReady),
    ]);
    let findings = [
        Finding::warning(
            "Community shops",
            "spec.members[1]",
            "fabedge.edge9: there is no such node yet",
        ),
        Finding::error(
            "Community shops",
            "spec.members[2]",
            "beijing.edge1: put connectors in",
        ),
        Finding::error(
            "Community other",
            "spec.members[0]",
            "fabedge.edge1: of no concern here",
        ),
    ];
    let table: &[(&[&str], usize, &str, &str)] = &[
        (
            &["fabedge.edge1", "fabedge.edge2"],
            0,
            "2/2",
            "True MembersReady: 2/2 members ready",
        ),
        (
            &["fabedge.edge1", "fabedge.edge2", "fabedge.edge3"],
            0,
            "2/3",
            "False MembersNotReady: 2/3 members ready: fabedge.edge3 is not (its agent pod is not ready)",
        ),
        (
            &["fabedge.edge4", "fabedge.edge5", "fabedge.connector"],
            0,
            "0/3",
            "False MembersNotReady: 0/3 members ready: fabedge.edge4 is not (its newest document is on its way), \
             fabedge.edge5 is not (it has no agent pod), fabedge.connector is not (its pod is not ready)",
        ),
        (
            &["fabedge.edge1", "fabedge.edge9"],
            1,
            "1/2",
            "False MembersPending: 1/2 members ready: fabedge.edge9 is not (there is no such node yet)",
        ),
        (
            &["fabedge.edge1", "fabedge.edge9", "beijing.edge1"],
            2,
            "1/3",
            "False MembersRefused: 1/3 members ready: fabedge.edge9 is not (there is no such node yet), \
             beijing.edge1 is not (put connectors in)",
        ),
        // An endpoint of another cluster is ready when it is known, and said twice it is one.
        (
            &["beijing.connector", "fabedge.edge1", "fabedge.edge1"],
            0,
            "2/2",
            "True MembersReady: 2/2 members ready",
        ),
        (
            &[],
            0,
            "0/0",
            "False NoMembers: it has no members, so it connects nobody: name them in spec.members",
        ),
    ];
    for (members, known, ready, text) in table {
        let known = match known {
            0 => &findings[2..],
            1 => &findings[..1],
            _ => &findings[..],
        };
        let community = of(members);
        let status = status(
            Some(&community),
            &[],
            &CommunityStatus::default(),
            None,
            known,
            &agents,
        );
        assert_eq!(status.ready.as_deref(), Some(*ready), "{members:?}");
        assert_eq!(says(&status.conditions, READY), *text, "{members:?}");
        assert_eq!(status.observed_generation, Some(2));
        let pending = members.contains(&"fabedge.edge9");
        assert_eq!(status.unknown_members.len(), usize::from(pending), "{members:?}");
    }
}

#[test]
fn many_members_are_counted_not_listed() {
    let names: Vec<String> = (0..100).map(|i| format!("fabedge.edge{i}")).collect();
    let community = Community { members: names };
    let status = status(
        Some(&community),
        &[],
        &CommunityStatus::default(),
        None,
        &[],
        &BTreeMap::new(),
    );
    let text = says(&status.conditions, READY);
    assert!(text.contains("fabedge.edge4 is not"), "{text}");
    assert!(text.ends_with("and 95 more"), "{text}");
}

#[test]
fn what_is_refused_is_said_with_its_mend() {
    let agents = agents(&[("edge1", Agent::Ready), ("edge2", Agent::Ready)]);
    let good = of(&["fabedge.edge1", "fabedge.edge2"]);
    let malformed = [Finding::error(
        "Community shops",
        "spec.members[0]",
        "\"edge1\" is not it",
    )];
    let refused = status(
        None,
        &malformed,
        &CommunityStatus::default(),
        None,
        &malformed,
        &agents,
    );
    assert_eq!(
        says(&refused.conditions, ACCEPTED),
        "False Invalid: spec.members[0]: \"edge1\" is not it"
    );
    assert_eq!(refused.ready, None);
    assert!(says(&refused.conditions, READY).starts_with("False Invalid"));

    let kept = status(Some(&good), &malformed, &refused, None, &malformed, &agents);
    assert_eq!(
        says(&kept.conditions, ACCEPTED),
        "False Invalid: spec.members[0]: \"edge1\" is not it; what it said before stays in effect"
    );
    assert!(says(&kept.conditions, READY).starts_with("False Invalid"));

    let partly = [Finding::error(
        "Community shops",
        "spec.members",
        "3 relayed links are left out",
    )];
    let partly = status(Some(&good), &[], &kept, None, &partly, &agents);
    assert_eq!(
        says(&partly.conditions, ACCEPTED),
        "False PartlyRefused: spec.members: 3 relayed links are left out"
    );
    assert!(says(&partly.conditions, READY).starts_with("True"));

    let mended = status(Some(&good), &[], &partly, None, &[], &agents);
    assert!(says(&mended.conditions, ACCEPTED).starts_with("True Accepted"));
}

#[test]
fn a_transition_has_its_time_and_a_new_message_none() {
    let good = of(&["fabedge.edge1", "fabedge.edge2"]);
    let before = CommunityStatus {
        conditions: vec![Condition {
            kind: READY.to_owned(),
            status: ConditionStatus::False,
            observed_generation: Some(1),
            last_transition_time: THEN.to_owned(),
            reason: "NoMembers".to_owned(),
            message: "it has no members".to_owned(),
        }],
        ..CommunityStatus::default()
    };
    let since = |status: &CommunityStatus| {
        condition(&status.conditions, READY)
            .unwrap()
            .last_transition_time
            .clone()
    };
    let one = agents(&[("edge1", Agent::Ready)]);
    let still = status(Some(&good), &[], &before, None, &[], &one);
    assert_eq!(since(&still), THEN);
    let both = agents(&[("edge1", Agent::Ready), ("edge2", Agent::Ready)]);
    let ready = status(Some(&good), &[], &still, None, &[], &both);
    assert_eq!(since(&ready), NOW);
    // Nothing to write where nothing has changed.
    assert_eq!(status(Some(&good), &[], &ready, None, &[], &both), ready);
}

#[test]
fn a_new_community_waits_for_its_documents_and_an_old_one_stays_ready() {
    let good = of(&["fabedge.edge1", "fabedge.connector"]);
    let both = |agent| agents(&[("edge1", Agent::Ready), ("connector", agent)]);
    let new = status(
        Some(&good),
        &[],
        &CommunityStatus::default(),
        None,
        &[],
        &both(Agent::Behind),
    );
    assert_eq!(new.ready.as_deref(), Some("1/2"));
    let ready = status(Some(&good), &[], &new, None, &[], &both(Agent::Ready));
    assert_eq!(ready.ready.as_deref(), Some("2/2"));
    let stays = status(Some(&good), &[], &ready, None, &[], &both(Agent::Behind));
    assert_eq!(stays, ready);
    let gone = status(Some(&good), &[], &ready, None, &[], &both(Agent::NotReady));
    assert_eq!(gone.ready.as_deref(), Some("1/2"));
}

#[test]
fn who_was_replaced_is_said_until_the_next_change() {
    let (old, new) = (
        of(&["fabedge.edge1", "fabedge.edge2"]),
        of(&["fabedge.connector", "beijing.connector"]),
    );
    let agents = agents(&[("connector", Agent::Ready)]);
    let dropped = Dropped::between(&old, &new, Some(2)).unwrap();
    assert!(dropped.all);
    let none = CommunityStatus::default();
    let replaced = status(Some(&new), &[], &none, Some(&dropped), &[], &agents);
    let text = says(&replaced.conditions, REPLACED);
    assert!(text.starts_with("True AllReplaced"), "{text}");
    assert!(text.contains("fabedge.edge1, fabedge.edge2"), "{text}");
    // Another operator, which saw only the new one.
    assert_eq!(status(Some(&new), &[], &replaced, None, &[], &agents), replaced);
    // The next change ends it.
    let mut earlier = replaced.clone();
    for condition in &mut earlier.conditions {
        condition.observed_generation = Some(1);
    }
    let later = status(Some(&new), &[], &earlier, None, &[], &agents);
    assert_eq!(says(&later.conditions, REPLACED), "nothing");

    let fewer = Dropped::between(&old, &of(&["fabedge.edge2", "fabedge.edge3"]), Some(2)).unwrap();
    assert_eq!(
        (fewer.members.as_slice(), fewer.all),
        (&["fabedge.edge1".to_owned()][..], false)
    );
    assert_eq!(
        Dropped::between(&old, &of(&["fabedge.edge2", "x.y", "fabedge.edge1"]), None),
        None
    );
}

#[test]
fn a_cluster_is_ready_when_its_connector_can_be_used() {
    let endpoint = Endpoint {
        id: distinguished_name("beijing.connector"),
        name: "beijing.connector".to_owned(),
        public_addresses: vec!["203.0.113.7".to_owned()],
        subnets: Vec::new(),
        node_subnets: Vec::new(),
        service_subnets: Vec::new(),
        kind: EndpointType::Connector,
        port: None,
    };
    let registered = Cluster {
        endpoints: vec![endpoint],
        ..Cluster::default()
    };
    let new = Cluster::default();
    let findings = [Finding::error(
        "Cluster beijing",
        "spec.endpoints",
        "10.1.0.0/16 overlaps 10.0.0.0/8",
    )];
    let malformed = [Finding::error(
        "Cluster beijing",
        "spec.cidrs[0]",
        "\"x\" is not a prefix",
    )];
    type Row<'a> = (
        &'a str,
        Option<&'a Cluster>,
        &'a [Finding],
        &'a [Finding],
        &'a str,
        &'a str,
    );
    let table: [Row<'_>; 5] = [
        (
            "beijing",
            Some(&new),
            &[],
            &[],
            "False NotRegistered: its connector is not known yet",
            "True Accepted",
        ),
        (
            "beijing",
            Some(&registered),
            &[],
            &[],
            "True EndpointsKnown: its connector is beijing.connector at 203.0.113.7",
            "True Accepted",
        ),
        (
            "beijing",
            Some(&registered),
            &[],
            &findings,
            "False PartlyRefused",
            "False PartlyRefused: spec.endpoints: 10.1.0.0/16 overlaps 10.0.0.0/8",
        ),
        (
            "beijing",
            Some(&registered),
            &malformed,
            &malformed,
            "False Invalid",
            "False Invalid: spec.cidrs[0]: \"x\" is not a prefix; what it said before stays in effect",
        ),
        (
            "fabedge",
            Some(&new),
            &[],
            &[],
            "True ThisCluster",
            "True Accepted",
        ),
    ];
    for (name, good, malformed, findings, ready, accepted) in table {
        let shown = Shown {
            name,
            uid: "7",
            generation: Some(1),
            good,
            malformed,
            status: &ClusterStatus::default(),
        };
        let agents = BTreeMap::new();
        let status = cluster(&shown, &Facts::new("fabedge", findings, &agents), NOW);
        for (kind, text) in [(READY, ready), (ACCEPTED, accepted)] {
            let says = says(&status.conditions, kind);
            assert!(says.starts_with(text), "{says}, not {text}");
        }
    }
}
