use super::*;

fn template(change: impl FnOnce(&mut Value)) -> Template {
    let mut object = json!({
        "metadata": {"name": "fabedge-agent"},
        "template": {
            "metadata": {"labels": {"fabedge.io/app": "fabedge-agent", "app.kubernetes.io/name": "fabedge"}},
            "spec": {
                "hostNetwork": true,
                "initContainers": [{"name": "environment-prepare", "image": "agent:1"}],
                "containers": [
                    {"name": "agent", "image": "agent:1", "args": ["edge", "--log=info", "--resync", "30"]},
                    {"name": "strongswan", "image": "strongswan:1", "args": ["--log=info"]},
                ],
                "volumes": [
                    {"name": "config", "configMap": {"name": "fabedge-agent-config"}},
                    {"name": "tls", "secret": {"secretName": "fabedge-agent-tls"}},
                    {"name": "foreign", "configMap": {"name": "fabedge-agent-config-of-mine"}},
                    {"name": "state", "hostPath": {"path": "/var/lib/fabedge"}},
                ],
            },
        },
    });
    change(&mut object);
    Template::new(&serde_json::from_value(object).unwrap()).unwrap()
}

fn options(pairs: &[(&str, &str)]) -> Arguments {
    let owned = |(name, value): &(&str, &str)| ((*name).to_owned(), (*value).to_owned());
    pairs.iter().map(owned).collect()
}

#[test]
fn a_pod_is_the_template_with_what_is_the_nodes_own() {
    let template = template(|_| {});
    let pod = template.pod("edge1", "n", &Arguments::new(), "d");
    let meta = &pod.metadata;
    assert_eq!(meta.name.as_deref(), Some("fabedge-agent-edge1"));
    let owner = &meta.owner_references.as_ref().unwrap()[0];
    assert_eq!((owner.kind.as_str(), owner.uid.as_str()), ("Node", "n"));
    assert_eq!(
        serde_json::to_value(&meta.labels).unwrap(),
        json!({
            "app.kubernetes.io/name": "fabedge", "fabedge.io/app": "fabedge-agent",
            "fabedge.io/created-by": "fabedge-operator", "fabedge.io/node": "edge1",
        })
    );
    let annotations = meta.annotations.as_ref().unwrap();
    assert_eq!(annotations[SPEC_HASH], template.hash(&Arguments::new()).text());
    assert_eq!(annotations[DOCUMENT_HASH], "d");

    let spec = pod.spec.unwrap();
    assert_eq!(spec.node_name.as_deref(), Some("edge1"));
    assert_eq!(
        serde_json::to_value(&spec.volumes).unwrap(),
        json!([
            {"name": "config", "configMap": {"name": "fabedge-agent-config-edge1"}},
            {"name": "tls", "secret": {"secretName": "fabedge-agent-tls-edge1"}},
            {"name": "foreign", "configMap": {"name": "fabedge-agent-config-of-mine"}},
            {"name": "state", "hostPath": {"path": "/var/lib/fabedge"}},
        ])
    );
    assert_eq!(
        spec.containers[0].args.as_deref().unwrap(),
        ["edge", "--log=info", "--resync", "30"]
    );
}

#[test]
fn a_nodes_arguments_take_the_place_of_the_templates() {
    for (given, expected) in [
        (vec![], vec!["edge", "--log=info", "--resync", "30"]),
        (
            vec![("tunnel", "xfrm"), ("fast-path", "off")],
            vec![
                "edge",
                "--log=info",
                "--resync",
                "30",
                "--fast-path=off",
                "--tunnel=xfrm",
            ],
        ),
        (
            vec![("log", "debug,info=a")],
            vec!["edge", "--resync", "30", "--log=debug,info=a"],
        ),
        (vec![("resync", "5")], vec!["edge", "--log=info", "--resync=5"]),
        (
            vec![("lo", "")],
            vec!["edge", "--log=info", "--resync", "30", "--lo="],
        ),
    ] {
        let spec = template(|_| {})
            .pod("edge1", "n", &options(&given), "")
            .spec
            .unwrap();
        assert_eq!(spec.containers[0].args.as_deref().unwrap(), expected);
        let other = spec.containers[1].args.as_deref().unwrap();
        assert_eq!(other, ["--log=info"], "another container's are its own");
    }
    let flag_last = with_options(vec!["edge".into(), "--log".into()], &options(&[("log", "x")]));
    assert_eq!(flag_last, ["edge", "--log=x"]);
    let flag_first = with_options(vec!["--log".into(), "--b".into()], &options(&[("log", "x")]));
    assert_eq!(flag_first, ["--b", "--log=x"], "an option is no value");
}

#[test]
fn a_hash_tells_images_from_the_rest() {
    let none = Arguments::new();
    let first = template(|_| {}).hash(&none);
    assert_eq!(first, template(|_| {}).hash(&none));
    type Change = fn(&mut Value);
    let changes: [(Change, bool, bool); 5] = [
        (
            |o| o["template"]["spec"]["containers"][1]["image"] = json!("strongswan:2"),
            true,
            false,
        ),
        (
            |o| o["template"]["spec"]["initContainers"][0]["image"] = json!("agent:2"),
            true,
            false,
        ),
        (
            |o| o["template"]["spec"]["containers"][0]["args"][1] = json!("--log=debug"),
            false,
            true,
        ),
        (
            |o| o["template"]["metadata"]["labels"]["a"] = json!("b"),
            false,
            true,
        ),
        (|o| o["metadata"]["labels"] = json!({"a": "b"}), false, false),
    ];
    for (number, (change, images, rest)) in changes.into_iter().enumerate() {
        let hash = template(change).hash(&none);
        assert_eq!(
            (hash.images != first.images, hash.rest != first.rest),
            (images, rest),
            "change {number}"
        );
    }
    let own = template(|_| {}).hash(&options(&[("log", "debug")]));
    assert!(own.images == first.images && own.rest != first.rest);
}

#[test]
fn a_new_image_is_a_patch_of_images_and_their_hash() {
    let template = template(|o| o["template"]["spec"]["containers"][0]["image"] = json!("agent:2"));
    let none = Arguments::new();
    assert_eq!(
        template.images(&none),
        json!({
            "metadata": {"annotations": {"fabedge.io/pod-spec-hash": template.hash(&none).text()}},
            "spec": {
                "containers": [
                    {"name": "agent", "image": "agent:2"},
                    {"name": "strongswan", "image": "strongswan:1"},
                ],
                "initContainers": [{"name": "environment-prepare", "image": "agent:1"}],
            },
        })
    );
}

#[test]
fn what_is_no_option_is_named_and_left_out() {
    let given = options(&[
        ("log", "debug"),
        ("Log", "debug"),
        ("-log", ""),
        ("log-", ""),
        ("fast_path", "off"),
        ("tunnel", "xfrm\n"),
    ]);
    let (arguments, findings) = arguments("edge1", &given);
    assert_eq!(arguments, options(&[("log", "debug")]));
    assert_eq!(findings.len(), 5);
    let text = findings[2].to_string();
    for word in ["Node edge1", "metadata.annotations[argument.fabedge.io/", "mend"] {
        assert!(text.contains(word), "{text}");
    }
}

#[test]
fn a_template_without_an_agent_is_refused_by_name() {
    let object = serde_json::from_value(json!({"metadata": {"name": "fabedge-agent"}})).unwrap();
    let faults = Template::new(&object).unwrap_err();
    assert!(faults[0].message.contains("helm upgrade"));
}
