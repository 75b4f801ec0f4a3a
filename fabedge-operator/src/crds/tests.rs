use serde_json::Value;

use super::*;
use crate::api::{Community, CommunitySpec, CommunityStatus, Condition, ConditionStatus};

fn parsed() -> Vec<Value> {
    definitions()
        .unwrap()
        .iter()
        .map(|definition| serde_saphyr::from_str(&definition.yaml).unwrap())
        .collect()
}

fn schema<'a>(crd: &'a Value, path: &str) -> &'a Value {
    crd.pointer(&format!("/spec/versions/0/schema/openAPIV3Schema{path}"))
        .unwrap()
}

/// Every schema within a schema, with its path.
fn all(path: &str, schema: &Value, into: &mut Vec<(String, Value)>) {
    into.push((path.to_owned(), schema.clone()));
    for (name, property) in schema["properties"].as_object().into_iter().flatten() {
        all(&format!("{path}.{name}"), property, into);
    }
    if schema["items"].is_object() {
        all(&format!("{path}[]"), &schema["items"], into);
    }
}

#[test]
fn both_kinds_are_cluster_scoped_with_a_status_and_the_columns_people_know() {
    let columns = |crd: &Value| {
        crd["spec"]["versions"][0]["additionalPrinterColumns"]
            .as_array()
            .unwrap()
            .iter()
            .map(|column| column["name"].as_str().unwrap().to_owned())
            .collect::<Vec<_>>()
    };
    let crds = parsed();
    assert_eq!(crds[0]["metadata"]["name"], "clusters.fabedge.io");
    assert_eq!(crds[1]["metadata"]["name"], "communities.fabedge.io");
    assert_eq!(columns(&crds[0]), ["CIDRs", "Ready", "Age"]);
    assert_eq!(columns(&crds[1]), ["Members", "Ready", "Age"]);
    for crd in &crds {
        assert_eq!(crd["apiVersion"], "apiextensions.k8s.io/v1");
        assert_eq!(crd["spec"]["scope"], "Cluster");
        assert_eq!(crd["spec"]["versions"][0]["name"], "v1alpha1");
        assert!(crd["spec"]["versions"][0]["subresources"]["status"].is_object());
    }
}

#[test]
fn every_schema_is_structural_described_and_without_defaults() {
    for crd in parsed() {
        let mut schemas = Vec::new();
        all("", schema(&crd, ""), &mut schemas);
        assert!(schemas.len() > 10);
        for (path, schema) in schemas {
            assert!(schema["type"].is_string(), "{path} has no type");
            let default = schema
                .get("default")
                .filter(|default| **default != serde_json::json!({}));
            assert!(default.is_none(), "{path} has a default");
            assert!(
                schema.get("additionalProperties").is_none(),
                "{path}: not beside properties"
            );
            assert!(
                schema.get("$ref").is_none() && schema.get("anyOf").is_none(),
                "{path}"
            );
            assert!(
                schema["description"].is_string() || path.ends_with("[]"),
                "{path} is not described"
            );
        }
    }
}

#[test]
fn a_cluster_needs_no_spec_and_may_use_either_spelling() {
    let crds = parsed();
    assert!(schema(&crds[0], "").get("required").is_none());
    assert_eq!(
        schema(&crds[0], "/properties/spec")["default"],
        serde_json::json!({})
    );
    assert_eq!(
        schema(&crds[0], "/properties/spec/properties/endpoints/items"),
        schema(&crds[0], "/properties/spec/properties/endPoints/items")
    );
    assert_eq!(schema(&crds[1], "")["required"], serde_json::json!(["spec"]));
}

#[test]
fn conditions_are_merged_by_type() {
    for crd in parsed() {
        let conditions = schema(&crd, "/properties/status/properties/conditions");
        assert_eq!(conditions["x-kubernetes-list-type"], "map");
        assert_eq!(
            conditions["x-kubernetes-list-map-keys"],
            serde_json::json!(["type"])
        );
        assert_eq!(
            conditions["items"]["properties"]["status"]["enum"],
            serde_json::json!(["True", "False", "Unknown"])
        );
        let time = &conditions["items"]["properties"]["lastTransitionTime"];
        assert_eq!(
            (&time["type"], &time["format"]),
            (&"string".into(), &"date-time".into())
        );
    }
}

#[test]
fn an_object_of_the_api_keeps_its_form() {
    let mut community = Community::new("connectors", CommunitySpec::default());
    community.spec.members = vec!["fabedge.edge1".into(), "fabedge.edge2".into()];
    community.status = Some(CommunityStatus {
        ready: Some("1/2".into()),
        members: Some(2),
        ready_members: Some(1),
        conditions: vec![Condition {
            kind: "Ready".into(),
            status: ConditionStatus::False,
            observed_generation: Some(3),
            last_transition_time: "2026-11-23T12:00:00Z".into(),
            reason: "MembersNotReady".into(),
            message: "fabedge.edge2 has not applied its newest document".into(),
        }],
        ..CommunityStatus::default()
    });
    let value = serde_json::to_value(&community).unwrap();
    assert_eq!(value["status"]["conditions"][0]["type"], "Ready");
    assert_eq!(value["status"]["readyMembers"], 1);
    assert_eq!(serde_json::from_value::<Community>(value).unwrap(), community);
}
