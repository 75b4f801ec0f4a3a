use super::*;

const REST: &str = "aa";
const IMAGES: &str = "bb";

fn now() -> OffsetDateTime {
    OffsetDateTime::from_unix_timestamp(1_800_000_000).unwrap()
}

fn ago(seconds: i64) -> Option<OffsetDateTime> {
    Some(now() - Duration::seconds(seconds))
}

fn want() -> Want {
    Want {
        node: "n".to_owned(),
        online: true,
        hash: Some(Hash {
            rest: REST.to_owned(),
            images: IMAGES.to_owned(),
        }),
        document: "d".to_owned(),
    }
}

/// A pod as it should be.
fn pod() -> AgentPod {
    AgentPod {
        uid: "p".to_owned(),
        owner: Some("n".to_owned()),
        created: ago(3600),
        deleted: None,
        ready: true,
        ended: false,
        hash: format!("{REST}-{IMAGES}"),
        document: "d".to_owned(),
    }
}

fn outdated() -> AgentPod {
    AgentPod {
        hash: format!("old-{IMAGES}"),
        ..pod()
    }
}

/// Edges with their pods.
#[derive(Default)]
struct World {
    wanted: BTreeMap<String, Want>,
    pods: BTreeMap<String, AgentPod>,
    keep: Option<BTreeSet<String>>,
    busy: BTreeSet<String>,
    touched: BTreeMap<String, OffsetDateTime>,
    connectors: BTreeMap<String, ConnectorPod>,
}

impl World {
    fn with(mut self, name: &str, pod: Option<AgentPod>) -> Self {
        self.wanted.insert(name.to_owned(), want());
        self.pods.extend(pod.map(|pod| (name.to_owned(), pod)));
        self
    }

    fn plan(&self) -> Plan {
        let state = State {
            wanted: &self.wanted,
            keep: self.keep.as_ref(),
            pods: &self.pods,
            connectors: &self.connectors,
            certificate: Some("c"),
            busy: &self.busy,
            touched: &self.touched,
        };
        plan(&state, now())
    }

    fn deleted(&self) -> Vec<String> {
        let actions = self.plan().actions.into_iter();
        actions
            .filter(|(action, _)| matches!(action, Action::Delete(_)))
            .map(|(_, name)| name)
            .collect()
    }
}

#[test]
fn what_becomes_of_one_pod() {
    let replaced = Action::Delete("it is made of another template or other arguments");
    type Change = fn(&mut AgentPod);
    let table: [(&str, Change, Option<Action>); 12] = [
        ("as it should be", |_| {}, None),
        ("not ready", |p| p.ready = false, None),
        ("being deleted", |p| p.deleted = ago(-20), None),
        (
            "being deleted, whatever else",
            |p| {
                p.deleted = ago(-20);
                p.ended = true;
                p.owner = None;
                p.hash = String::new();
            },
            None,
        ),
        (
            "of a node that had the name before",
            |p| p.owner = Some("m".to_owned()),
            Some(Action::Delete("it belongs to an earlier node of this name")),
        ),
        (
            "evicted",
            |p| p.ended = true,
            Some(Action::Delete("it has ended")),
        ),
        (
            "ended as soon as it began",
            |p| {
                p.ended = true;
                p.created = ago(3);
            },
            None,
        ),
        (
            "of other images",
            |p| p.hash = format!("{REST}-old"),
            Some(Action::Patch),
        ),
        (
            "of another template",
            |p| p.hash = format!("old-{IMAGES}"),
            Some(replaced.clone()),
        ),
        (
            "of both",
            |p| p.hash = "old-old".to_owned(),
            Some(replaced.clone()),
        ),
        ("of who knows what", |p| p.hash = String::new(), Some(replaced)),
        (
            "with another document",
            |p| p.document = "c".to_owned(),
            Some(Action::Touch("d-1".to_owned())),
        ),
    ];
    for (what, change, expected) in table {
        let mut pod = pod();
        change(&mut pod);
        let actions = World::default().with("edge1", Some(pod)).plan().actions;
        let expected: Vec<_> = expected
            .into_iter()
            .map(|action| (action, "edge1".to_owned()))
            .collect();
        assert_eq!(actions, expected, "a pod that is {what}");
    }
}

#[test]
fn a_pod_that_is_missing_is_made() {
    let mut world = World::default().with("edge1", None).with("edge2", Some(pod()));
    assert_eq!(world.plan().actions, [(Action::Create, "edge1".to_owned())]);
    world.busy.insert("edge1".to_owned());
    assert!(world.plan().actions.is_empty(), "it is being made");
    world.busy.clear();
    for want in world.wanted.values_mut() {
        want.hash = None;
    }
    assert!(world.plan().actions.is_empty(), "there is no PodTemplate");
}

#[test]
fn of_a_node_that_is_no_edge_the_pod_goes() {
    let mut world = World::default().with("edge1", Some(pod()));
    world.pods.insert("gone".to_owned(), pod());
    world.pods.insert("kept".to_owned(), pod());
    assert!(
        world.deleted().is_empty(),
        "not before it is known which nodes are edges"
    );
    world.keep = Some(BTreeSet::from(["edge1".to_owned(), "kept".to_owned()]));
    assert_eq!(world.deleted(), ["gone"]);
    world.pods.get_mut("gone").unwrap().deleted = ago(0);
    assert!(world.deleted().is_empty());
}

#[test]
fn a_kubelet_is_told_twice_of_a_document() {
    let told = |document: &str| {
        World::default().with(
            "edge1",
            Some(AgentPod {
                document: document.to_owned(),
                ..pod()
            }),
        )
    };
    let once = [(Action::Touch("d-1".to_owned()), "edge1".to_owned())];
    let twice = [(Action::Touch("d".to_owned()), "edge1".to_owned())];
    assert_eq!(told("").plan().actions, once);
    assert_eq!(
        told("c-1").plan().actions,
        once,
        "of an older one it was told once"
    );
    let mut world = told("d-1");
    assert_eq!(world.plan().actions, twice, "by an operator that is gone");
    world
        .touched
        .insert("edge1".to_owned(), now() - Duration::seconds(1));
    assert_eq!(world.plan().actions, []);
    assert_eq!(world.plan().next, Some(now() + Duration::seconds(1)));
    world
        .touched
        .insert("edge1".to_owned(), now() - Duration::seconds(2));
    assert_eq!(world.plan().actions, twice);
    assert_eq!(told("d").plan(), Plan::default());
}

#[test]
fn a_few_are_replaced_at_a_time() {
    let mut world = World::default();
    for number in 0..8 {
        world = world.with(&format!("edge{number}"), Some(outdated()));
    }
    assert_eq!(world.deleted(), ["edge0", "edge1", "edge2"]);
    assert_eq!(world.plan().waiting, 5);

    // Those that do not work can only win.
    world.pods.get_mut("edge7").unwrap().ready = false;
    assert_eq!(world.deleted(), ["edge0", "edge1", "edge7"]);

    // One after the other: being deleted, gone, new and not ready, ready.
    world.pods.get_mut("edge0").unwrap().deleted = ago(-30);
    world.pods.remove("edge1");
    let new = |ready, seconds| AgentPod {
        ready,
        created: ago(seconds),
        ..pod()
    };
    world.pods.insert("edge7".to_owned(), new(false, 5));
    assert!(world.deleted().is_empty());
    world.pods.insert("edge7".to_owned(), new(true, 5));
    assert_eq!(world.deleted(), ["edge2"]);

    // One whose deletion has been asked for is not asked for again, and counts.
    world.busy.insert("edge2".to_owned());
    assert!(world.deleted().is_empty());
}

#[test]
fn who_is_told_of_a_document_may_wait_for_his_replacement() {
    let mut world = World::default();
    for number in 0..5 {
        let pod = AgentPod {
            document: "c".to_owned(),
            ..outdated()
        };
        world = world.with(&format!("edge{number}"), Some(pod));
    }
    let actions = world.plan().actions;
    assert_eq!(actions.len(), 5, "one each: {actions:?}");
    assert_eq!(actions[0], (Action::Touch("d-1".to_owned()), "edge3".to_owned()));
    assert_eq!(world.deleted(), ["edge0", "edge1", "edge2"]);
}

#[test]
fn nobody_holds_up_the_others_for_ever() {
    let young = |seconds| AgentPod {
        ready: false,
        created: ago(seconds),
        ..pod()
    };
    let hold = |pod: AgentPod| {
        let mut world = World::default();
        for name in ["a", "b", "c"] {
            world = world.with(name, Some(pod.clone()));
        }
        world.with("edge1", Some(outdated()))
    };
    let mut world = hold(young(179));
    assert!(world.deleted().is_empty());
    assert_eq!(world.plan().next, Some(now() + Duration::seconds(1)));
    // Of an offline node nothing is expected.
    world.wanted.get_mut("a").unwrap().online = false;
    assert_eq!(world.deleted(), ["edge1"]);
    assert_eq!(hold(young(180)).deleted(), ["edge1"]);

    let leaving = |seconds| AgentPod {
        deleted: ago(seconds),
        ..outdated()
    };
    assert!(hold(leaving(179)).deleted().is_empty());
    assert_eq!(hold(leaving(180)).deleted(), ["edge1"]);
}

#[test]
fn the_pod_of_an_offline_node_is_replaced_when_it_is_back() {
    let mut world = World::default().with("edge1", Some(outdated()));
    world.wanted.get_mut("edge1").unwrap().online = false;
    assert_eq!(world.plan().actions, []);
    world.wanted.get_mut("edge1").unwrap().online = true;
    assert_eq!(world.deleted(), ["edge1"]);
}

#[test]
fn kubelets_of_the_connector_are_told_twice_of_another_certificate() {
    let pod = |node: Option<&str>, certificate: &str| ConnectorPod {
        ready: true,
        node: node.map(str::to_owned),
        certificate: certificate.to_owned(),
    };
    let touch = |text: &str| Some(Action::TouchConnector(text.to_owned()));
    for (pod, touched, wanted) in [
        (pod(Some("n"), "c"), None, None),
        (pod(Some("n"), ""), None, touch("c-1")),
        (pod(Some("n"), "c-1"), ago(1), None),
        (pod(Some("n"), "c-1"), ago(3), touch("c")),
        (pod(None, ""), None, None),
    ] {
        let what = format!("{pod:?}");
        let name = "fabedge-connector-7".to_owned();
        let world = World {
            touched: touched.map(|at| (name.clone(), at)).into_iter().collect(),
            connectors: BTreeMap::from([(name, pod)]),
            ..World::default()
        };
        let actions = world.plan().actions;
        assert_eq!(
            actions.into_iter().next().map(|(action, _)| action),
            wanted,
            "{what}"
        );
    }
}
