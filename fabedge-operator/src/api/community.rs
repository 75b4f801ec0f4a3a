//! Community: who may talk to whom.
#![allow(
    clippy::duplicated_attributes,
    reason = "printer columns of the same type are no duplicates"
)]

use kube::CustomResource;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::Condition;

/// Who is in the community.
#[derive(Clone, Debug, Default, PartialEq, Eq, CustomResource, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[kube(
    group = "fabedge.io",
    version = "v1alpha1",
    kind = "Community",
    plural = "communities",
    shortname = "fcom",
    status = "CommunityStatus",
    derive = "PartialEq",
    doc = "A set of endpoints whose pods may talk to each other directly. Pods of one cluster's cloud and of its edges \
           need none.",
    printcolumn = r#"{"name":"Members","type":"string","jsonPath":".spec.members"}"#,
    printcolumn = r#"{"name":"Ready","type":"string","jsonPath":".status.ready",
        "description":"Members that have applied their newest document, of all members"}"#,
    printcolumn = r#"{"name":"Age","type":"date","jsonPath":".metadata.creationTimestamp"}"#
)]
pub struct CommunitySpec {
    /// The endpoints' names, `<cluster>.<node>` or `<cluster>.connector`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub members: Vec<String>,
}

/// How far the community has come. Written by the operator.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct CommunityStatus {
    /// The generation of the spec that this tells of.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// `readyMembers/members`, for people.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ready: Option<String>,
    /// How many members the community has.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub members: Option<u32>,
    /// How many of them have applied their newest document.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ready_members: Option<u32>,
    /// Members that no endpoint is known for: they are pending, and join once there is one.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub unknown_members: Vec<String>,
    /// `Ready`: every member has applied its newest document; the message names who has not, and why. `Accepted`: the
    /// spec could be read and is in effect. `MembersReplaced`: the last change of the spec took members out.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["type"]))]
    pub conditions: Vec<Condition>,
}
