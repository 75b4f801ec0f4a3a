//! Settings: the facts of this cluster. Not a custom resource: the chart writes them into a file for the operator,
//! and a user into a folder of manifests.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use serde::Deserialize;

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
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct SettingsSpec {
    /// Name of the cluster, one DNS label.
    pub name: String,
    /// `host` (default) or `member`.
    #[serde(default)]
    pub role: Option<String>,
    /// `flannel` or `calico`. Where there is an API to ask it may be absent.
    #[serde(default)]
    pub cni_type: Option<String>,
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
    /// Host role, not in a folder: where the operator's API listens for members.
    #[serde(default)]
    pub api_listen: Option<String>,
    /// Member role, not in a folder: the host operator's API, `https://10.20.8.28:30303`.
    #[serde(default, rename = "operatorAPIServer")]
    pub operator_api_server: Option<String>,
    /// Member role, not in a folder: the file with the token with which the cluster registers.
    #[serde(default)]
    pub init_token_file: Option<String>,
    /// Member role, not in a folder: SHA-256 of the host's CA certificate, where the token does not carry it.
    #[serde(default, rename = "operatorCAHash")]
    pub operator_ca_hash: Option<String>,
    /// Calico, not in a folder: whether the operator keeps IP pools for foreign prefixes.
    #[serde(default, rename = "autoKeepIPPools")]
    pub auto_keep_ip_pools: Option<bool>,
}
