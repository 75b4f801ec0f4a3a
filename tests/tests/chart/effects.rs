//! Every value has an effect, seen at one place of the objects.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Value, json};

use crate::engine::{Helm, chart, host, settings, with, without};
use crate::refusals::REFUSED;
use crate::shapes::twins;
use crate::table::{CLOUD, CONNECTOR, Effect, OPERATOR, SETTINGS, effects};

const TERMS: &str = "/spec/template/spec/affinity/nodeAffinity/requiredDuringSchedulingIgnoredDuringExecution/nodeSelectorTerms";

#[test]
fn every_value_shows_where_it_belongs() {
    let mut helm = Helm::start();
    for effect in effects() {
        let place = format!("{} at {}{}", effect.path, effect.object, effect.pointer);
        let given = with(&effect.values, effect.path, effect.value.clone());
        assert_eq!(
            found(&mut helm, &effect, &given),
            Ok(Some(effect.shows.clone())),
            "{place}"
        );
        // What stands there without it is something else, or the value is missed.
        let bare = without(&effect.values, effect.path);
        assert_ne!(
            found(&mut helm, &effect, &bare),
            Ok(Some(effect.shows.clone())),
            "{place}"
        );
    }
}

/// What stands at the place of an effect.
fn found(helm: &mut Helm, effect: &Effect, values: &Value) -> Result<Option<Value>, String> {
    let mut objects = helm.render(values)?.objects;
    if effect.object == SETTINGS {
        let found = settings(&objects);
        objects.insert(SETTINGS.to_owned(), found);
    }
    let object = objects.get(effect.object);
    Ok(object.and_then(|object| object.pointer(effect.pointer)).cloned())
}

/// A value that nobody tried might be accepted in silence.
#[test]
fn every_value_of_the_schema_is_tried() {
    let text = std::fs::read_to_string(format!("{}/values.schema.json", chart())).unwrap();
    let schema: Value = serde_json::from_str(&text).unwrap();
    let mut paths = BTreeSet::new();
    leaves("", &schema, &mut paths);
    assert!(paths.len() > 50);
    // Made by Helm for a chart within another; it must be empty.
    paths.remove("global");
    let mut tried: BTreeSet<String> = effects().iter().map(|effect| effect.path.to_owned()).collect();
    tried.extend(REFUSED.map(str::to_owned));
    let untried: Vec<_> = paths.difference(&tried).collect();
    assert!(untried.is_empty(), "{untried:?}");
    for (old, new, ..) in twins() {
        assert!(tried.contains(old) && tried.contains(new), "{old}, {new}");
    }
}

fn leaves(path: &str, schema: &Value, into: &mut BTreeSet<String>) {
    let Some(properties) = schema["properties"].as_object() else {
        // Definitions with fields of their own are images.
        if schema["$ref"] == "#/definitions/image" {
            into.extend(["repository", "tag", "pullPolicy"].map(|field| format!("{path}.{field}")));
        } else {
            into.insert(path.to_owned());
        }
        return;
    };
    let below = |name: &str| {
        if path.is_empty() {
            name.to_owned()
        } else {
            format!("{path}.{name}")
        }
    };
    for (name, property) in properties {
        leaves(&below(name), property, into);
    }
    if schema["additionalProperties"].is_object() {
        into.insert(below("*"));
    }
}

#[test]
fn pods_go_where_the_labels_say() {
    let mut helm = Helm::start();
    let values = with(&host(), "cluster.edgeLabels", json!(["edge", "site=shop"]));
    let values = with(&values, "cluster.connectorLabels", json!(["gate", "on="]));
    let objects = helm.objects(&values);
    let absent = |key: &str| json!({"key": key, "operator": "DoesNotExist"});
    let not = |key: &str, value: &str| json!({"key": key, "operator": "NotIn", "values": [value]});
    let term = |expressions: &[Value]| json!({"matchExpressions": expressions});
    let terms = |object: &str| objects[object].pointer(TERMS).unwrap().clone();

    let on = json!({"key": "on", "operator": "In", "values": [""]});
    let gate = json!({"key": "gate", "operator": "Exists"});
    assert_eq!(terms(CONNECTOR), json!([term(&[gate, on])]));
    assert_eq!(
        terms(OPERATOR),
        json!([term(&[absent("edge")]), term(&[not("site", "shop")])])
    );
    assert_eq!(
        terms(CLOUD),
        json!([
            term(&[absent("edge"), absent("gate")]),
            term(&[absent("edge"), not("on", "")]),
            term(&[not("site", "shop"), absent("gate")]),
            term(&[not("site", "shop"), not("on", "")]),
        ])
    );
}

#[test]
fn a_users_affinity_narrows_ours_and_does_not_replace_it() {
    let mut helm = Helm::start();
    let zone = json!({"key": "zone", "operator": "In", "values": ["a"]});
    let theirs = json!({"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": [
        {"matchExpressions": [zone.clone()]},
        {"matchFields": [{"key": "metadata.name", "operator": "In", "values": ["node1"]}]},
    ]}}});
    let objects: BTreeMap<_, _> = helm.objects(&with(&host(), "cloudAgent.affinity", theirs));
    let ours =
        |role: &str| json!({"key": format!("node-role.kubernetes.io/{role}"), "operator": "DoesNotExist"});
    assert_eq!(
        objects[CLOUD].pointer(TERMS).unwrap(),
        &json!([
            {"matchExpressions": [ours("edge"), ours("connector"), zone]},
            {
                "matchExpressions": [ours("edge"), ours("connector")],
                "matchFields": [{"key": "metadata.name", "operator": "In", "values": ["node1"]}],
            },
        ])
    );
}
