//! The resources of group `fabedge.io`, as users write them. A field that is not declared here is an error, so
//! that a misspelt one does not pass in silence.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use serde::Deserialize;

/// The group and version of every kind below.
pub const API_VERSION: &str = "fabedge.io/v1alpha1";

/// Annotation of an edge node: its pod CIDRs, a comma list.
pub const SUBNETS: &str = "fabedge.io/subnets";

/// Annotation of an edge node: addresses or DNS names at which peers reach it, a comma list.
pub const NODE_PUBLIC_ADDRESSES: &str = "fabedge.io/node-public-addresses";

/// Annotation of an edge node: overrides `edgeToEdge` of the settings.
pub const EDGE_TO_EDGE: &str = "fabedge.io/edge-to-edge";

/// A set of endpoints that may talk to each other.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Community {
    /// `fabedge.io/v1alpha1`.
    pub api_version: String,
    /// `Community`.
    pub kind: String,
    /// Name and the rest.
    pub metadata: ObjectMeta,
    /// Who is in it.
    pub spec: CommunitySpec,
    /// Written by an operator; not read.
    #[serde(default)]
    pub status: Option<serde_json::Value>,
}

/// Members of a community.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct CommunitySpec {
    /// `<cluster>.<node>` or `<cluster>.connector`.
    #[serde(default)]
    pub members: Vec<String>,
}

/// Another cluster.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Cluster {
    /// `fabedge.io/v1alpha1`.
    pub api_version: String,
    /// `Cluster`.
    pub kind: String,
    /// Name and the rest.
    pub metadata: ObjectMeta,
    /// What is known of it. Absent when it has just been made to get a token.
    #[serde(default)]
    pub spec: ClusterSpec,
    /// Written by an operator; not read.
    #[serde(default)]
    pub status: Option<serde_json::Value>,
}

/// What is known of another cluster.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ClusterSpec {
    /// Token with which the cluster registers. Not needed here.
    #[serde(default)]
    pub token: Option<String>,
    /// Its pod and service prefixes.
    #[serde(default)]
    pub cidrs: Vec<String>,
    /// Its endpoints.
    #[serde(default)]
    pub endpoints: Vec<Endpoint>,
    /// The same in the spelling of 0.4.
    #[serde(default)]
    pub end_points: Vec<Endpoint>,
}

/// An endpoint of another cluster.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Endpoint {
    /// IKE identity.
    pub id: String,
    /// `<cluster>.<node>` or `<cluster>.connector`.
    pub name: String,
    /// Addresses or DNS names.
    #[serde(default)]
    pub public_addresses: Vec<String>,
    /// Pod and service prefixes.
    #[serde(default)]
    pub subnets: Vec<String>,
    /// Node addresses.
    #[serde(default)]
    pub node_subnets: Vec<String>,
    /// `Connector` or `EdgeNode`.
    #[serde(rename = "type")]
    pub kind: String,
    /// IKE port.
    #[serde(default)]
    pub port: Option<u16>,
}

/// What Helm values say elsewhere: the facts of this cluster and how it wants to be connected.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Settings {
    /// `fabedge.io/v1alpha1`.
    pub api_version: String,
    /// `Settings`.
    pub kind: String,
    /// Name and the rest.
    pub metadata: ObjectMeta,
    /// The settings: what stands under `cluster:` in the chart's values.
    pub spec: SettingsSpec,
}

/// What stands under `cluster:` in the chart's values.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct SettingsSpec {
    /// Name of the cluster, one DNS label.
    pub name: String,
    /// `host` (default) or `member`.
    #[serde(default)]
    pub role: Option<String>,
    /// `flannel` or `calico`.
    pub cni_type: String,
    /// Labels of edge nodes, all of which must match.
    #[serde(default)]
    pub edge_labels: Option<Vec<String>>,
    /// Labels of connector nodes, all of which must match.
    #[serde(default)]
    pub connector_labels: Option<Vec<String>>,
    /// Addresses or DNS names at which edges reach the connector.
    #[serde(default)]
    pub connector_public_addresses: Vec<String>,
    /// IKE port of the connector.
    #[serde(default)]
    pub connector_public_port: Option<u16>,
    /// The connector nodes' addresses, where they are not the nodes' InternalIP.
    #[serde(default)]
    pub connector_node_addresses: Vec<String>,
    /// Refused by name: there is no mediator.
    #[serde(default)]
    pub connector_as_mediator: Option<bool>,
    /// Pool of edge pod CIDRs (Calico).
    #[serde(default, rename = "edgePodCIDR")]
    pub edge_pod_cidr: Option<String>,
    /// Pool of IPv6 edge pod CIDRs (Calico).
    #[serde(default, rename = "edgePodCIDR6")]
    pub edge_pod_cidr6: Option<String>,
    /// Prefix length of one edge's pod CIDR; 24.
    #[serde(default, rename = "edgeCIDRMaskSize")]
    pub edge_cidr_mask_size: Option<u8>,
    /// Prefix length of one edge's IPv6 pod CIDR; 64.
    #[serde(default, rename = "edgeCIDRMaskSize6")]
    pub edge_cidr_mask_size6: Option<u8>,
    /// Pod CIDRs of the cluster.
    #[serde(default, rename = "clusterCIDR")]
    pub cluster_cidr: Vec<String>,
    /// Service CIDRs of the cluster.
    #[serde(default, rename = "serviceClusterIPRange")]
    pub service_cluster_ip_range: Vec<String>,
    /// `direct` or `relay`; absent: by reachability.
    #[serde(default)]
    pub edge_to_edge: Option<String>,
}
