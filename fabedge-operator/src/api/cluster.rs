//! Cluster: another cluster, as the host cluster knows it.
#![allow(
    clippy::duplicated_attributes,
    reason = "printer columns of the same type are no duplicates"
)]

use kube::CustomResource;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::Condition;

/// What is known of the cluster. To register one, leave it out: the operator fills in the token, and the cluster
/// the rest.
#[derive(Clone, Debug, Default, PartialEq, Eq, CustomResource, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[kube(
    group = "fabedge.io",
    version = "v1alpha1",
    kind = "Cluster",
    plural = "clusters",
    shortname = "fcl",
    status = "ClusterStatus",
    derive = "PartialEq",
    doc = "Another cluster whose connector this cluster's connector may talk to, once a Community names both.",
    printcolumn = r#"{"name":"CIDRs","type":"string","jsonPath":".spec.cidrs"}"#,
    printcolumn = r#"{"name":"Ready","type":"string","jsonPath":".status.conditions[?(@.type==\"Ready\")].status"}"#,
    printcolumn = r#"{"name":"Age","type":"date","jsonPath":".metadata.creationTimestamp"}"#
)]
pub struct ClusterSpec {
    /// The token with which the cluster registers; the operator writes it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub token: Option<String>,
    /// Its pod and service prefixes.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub cidrs: Vec<String>,
    /// Its endpoints.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub endpoints: Vec<Endpoint>,
    /// The same in the spelling of FabEdge 0.4. Give one of the two.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub end_points: Vec<Endpoint>,
}

/// An endpoint of another cluster.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Endpoint {
    /// Its IKE identity, `C=CN, O=fabedge.io, CN=<name>`.
    pub id: String,
    /// `<cluster>.<node>` or `<cluster>.connector`.
    pub name: String,
    /// Addresses or DNS names at which it is reached.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub public_addresses: Vec<String>,
    /// Its pod and service prefixes.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub subnets: Vec<String>,
    /// Its nodes' addresses.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub node_subnets: Vec<String>,
    /// `Connector` or `EdgeNode`.
    #[serde(rename = "type")]
    #[schemars(extend("enum" = ["Connector", "EdgeNode"]))]
    pub kind: String,
    /// The IKE port, where it is not the usual one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 65535))]
    pub port: Option<u16>,
}

/// How far the cluster has come. Written by the operator.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ClusterStatus {
    /// The generation of the spec that this tells of.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// `Ready`: the cluster has registered, and its connector can be used. `Accepted`: everything in the spec could be
    /// read and is the cluster's to say.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["type"]))]
    pub conditions: Vec<Condition>,
    /// The use of its token. Without it the cluster has not registered.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub registration: Option<Registration>,
    /// What was left out of its last report, and why.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub refused: Vec<String>,
}

/// The use of a token: it is good for one key.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Registration {
    /// Which token, by its claim `jti`.
    pub token: String,
    /// SHA-256 of the public key that was certified for it, 64 hexadecimal digits.
    pub key: String,
    /// When, RFC 3339.
    pub time: String,
}
