//! The two shapes of values mean the same, and may not contradict each other.

use serde_json::{Value, json};

use crate::engine::{Helm, guide, host, member, with, without};

/// The values that have two names: the older, the newer, two examples, and the role that they are for.
pub fn twins() -> Vec<(&'static str, &'static str, Value, Value, &'static str)> {
    vec![
        (
            "operator.cluster.name",
            "cluster.name",
            json!("a"),
            json!("b"),
            "host",
        ),
        (
            "operator.cluster.role",
            "cluster.role",
            json!("host"),
            json!("member"),
            "host",
        ),
        (
            "operator.edgePodCIDR",
            "cluster.edgePodCIDR",
            json!("10.10.0.0/16"),
            json!("10.11.0.0/16"),
            "host",
        ),
        (
            "operator.connectorPublicAddresses",
            "cluster.connectorPublicAddresses",
            json!(["10.20.8.1", "connector.example.org"]),
            json!(["10.20.8.1"]),
            "host",
        ),
        (
            "operator.serviceClusterIPRanges",
            "cluster.serviceClusterIPRange",
            json!(["10.233.0.0/18"]),
            json!(["10.234.0.0/18"]),
            "host",
        ),
        (
            "operator.edgeLabels",
            "cluster.edgeLabels",
            json!(["edge=yes"]),
            json!(["edge"]),
            "host",
        ),
        (
            "operator.operatorAPIServer.nodePort",
            "operator.service.nodePort",
            json!(31000),
            json!(31001),
            "host",
        ),
        (
            "operator.masqOutgoing",
            "agent.args.MASQ_OUTGOING",
            json!(false),
            json!(true),
            "host",
        ),
        (
            "operator.hostOperatorAPIServer",
            "cluster.operatorAPIServer",
            json!("https://10.20.8.29:30303"),
            json!("https://10.20.8.28:30303"),
            "member",
        ),
        (
            "operator.initToken",
            "cluster.initToken",
            json!("one"),
            json!("two"),
            "member",
        ),
    ]
}

/// The least for a role.
fn least(role: &str) -> Value {
    if role == "member" { member() } else { host() }
}

#[test]
fn either_name_gives_the_same_and_so_do_both() {
    let mut helm = Helm::start();
    for (old, new, value, _, role) in twins() {
        let base = without(&least(role), new);
        let by_old = helm.objects(&with(&base, old, value.clone()));
        let by_new = helm.objects(&with(&base, new, value.clone()));
        let by_both = helm.objects(&with(&with(&base, old, value.clone()), new, value));
        assert!(by_old == by_new, "{old} and {new} differ");
        assert!(by_both == by_new, "{old} with {new} differs");
    }
}

#[test]
fn two_names_with_two_values_are_refused_by_both_names() {
    let mut helm = Helm::start();
    for (old, new, one, other, role) in twins() {
        let values = with(&with(&without(&least(role), new), old, one), new, other);
        let error = helm.render(&values).unwrap_err();
        assert!(
            error.contains(old) && error.contains(new) && error.contains("keep one"),
            "{old}, {new}: {error}"
        );
    }
}

#[test]
fn text_and_number_of_one_value_are_no_contradiction() {
    let mut helm = Helm::start();
    let values = with(&host(), "operator.masqOutgoing", json!(false));
    helm.objects(&with(&values, "agent.args.MASQ_OUTGOING", json!("false")));
}

#[test]
fn the_guides_values_are_those_of_today() {
    let today = json!({
        "cluster": {
            "name": "fabedge",
            "role": "host",
            "connectorPublicAddresses": ["10.20.8.28"],
            "serviceClusterIPRange": ["10.233.0.0/18"],
        },
        "operator": {"service": {"nodePort": 30303}},
    });
    let mut helm = Helm::start();
    assert_eq!(helm.render(&guide()).unwrap(), helm.render(&today).unwrap());

    let of_member = json!({"operator": {
        "connectorPublicAddresses": ["10.20.8.12"],
        "cluster": {"name": "beijing", "role": "member"},
        "hostOperatorAPIServer": "https://10.20.8.28:30303",
        "initToken": "header.claims.signature",
    }});
    assert_eq!(helm.render(&of_member).unwrap(), helm.render(&member()).unwrap());
}
