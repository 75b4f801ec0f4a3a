//! The resources of group `fabedge.io`. Their custom resource definitions are generated from these types
//! ([`crate::crds`]); in a folder of manifests they come as [`Manifest`]s. A field that is not declared here is an
//! error, so that a misspelt one does not pass in silence (an API server drops it before we see it).

mod cluster;
mod community;
mod condition;
mod settings;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use serde::Deserialize;

pub use cluster::{Cluster, ClusterSpec, ClusterStatus, Endpoint, Registration};
pub use community::{Community, CommunitySpec, CommunityStatus};
pub use condition::{Condition, ConditionStatus};
pub use settings::{Settings, SettingsSpec};

/// The group and version of every kind below.
pub const API_VERSION: &str = "fabedge.io/v1alpha1";

/// Annotation of an edge node: its pod CIDRs, a comma list.
pub const SUBNETS: &str = "fabedge.io/subnets";

/// Annotation of an edge node: addresses or DNS names at which peers reach it, a comma list.
pub const NODE_PUBLIC_ADDRESSES: &str = "fabedge.io/node-public-addresses";

/// Annotation of an edge node: overrides `edgeToEdge` of the settings.
pub const EDGE_TO_EDGE: &str = "fabedge.io/edge-to-edge";

/// What annotations of an edge node begin with that are options of its agent: `argument.fabedge.io/log: debug` becomes
/// `--log=debug`.
pub const ARGUMENT: &str = "argument.fabedge.io/";

/// A custom resource as a user writes it into a file. Unlike the type that an API client uses, it refuses what it
/// does not know; the status is the operator's to write and is not read.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Manifest<S> {
    /// `fabedge.io/v1alpha1`.
    pub api_version: String,
    /// `Community` or `Cluster`.
    pub kind: String,
    /// Name and the rest.
    pub metadata: ObjectMeta,
    /// What is wanted.
    pub spec: S,
    /// Written by an operator; not read.
    #[serde(default)]
    pub status: Option<serde_json::Value>,
}
