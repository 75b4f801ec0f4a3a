//! The NodeConfig document: what one node has to know, and all it has to know.
//!
//! Its YAML is a superset of FabEdge 0.4's `tunnels.yaml`: the node's own [`Endpoint`] inline, then `peers` with
//! the connector first. A document without `version` is such a 0.4 document and is upgraded on parsing. From
//! version 1 on a document ends with YAML's document end marker `...`, so that a truncated one is known as such.
//! Unknown fields are ignored, so that an older agent can read what a newer operator adds; a change of meaning
//! takes a new [`VERSION`].

mod document;
pub mod packed;
mod prefixes;
mod problem;
mod shared;
mod validate;

use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

pub use document::Document;
pub use problem::Problem;
pub use validate::MAX_SELECTORS;

/// The document version that this code writes. Versions up to it are read.
pub const VERSION: u32 = 1;

/// YAML's document end marker (YAML 1.2 §9.1.2).
const END: &str = "...";

/// The local name of the connector's endpoint in every cluster: `<cluster>.connector`.
pub const CONNECTOR: &str = "connector";

/// The local name in the document that all cloud agents of a cluster share: `<cluster>.cloud`.
pub const CLOUD: &str = "cloud";

/// One node's document.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct NodeConfig {
    /// Format version; 0 where the field is absent (a 0.4 document).
    #[serde(default)]
    pub version: u32,
    /// Grows with every change of the document's content and never goes back.
    #[serde(default)]
    pub generation: u64,
    /// The node's own endpoint, inline.
    #[serde(flatten)]
    pub endpoint: Endpoint,
    /// Who this node talks to; the connector first, the others by name.
    #[serde(default, with = "shared")]
    pub peers: Vec<Arc<Peer>>,
    /// Every prefix that belongs to the pod network anywhere, aggregated. Traffic to it leaves by a tunnel, stays
    /// on the node, or is refused; it never follows the default route.
    #[serde(default, skip_serializing_if = "Vec::is_empty", with = "prefixes")]
    pub network_subnets: Vec<IpNet>,
    /// Name of the endpoint that mediates IKE between NATed edges. Read for 0.4 and 1.0 documents, without effect.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mediator: Option<String>,
}

/// What an endpoint is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum EndpointType {
    /// The cloud gateway of a cluster.
    Connector,
    /// An edge node.
    EdgeNode,
    /// The other cloud nodes of a cluster, which hold no tunnels and share one document.
    CloudNode,
}

/// One end of a tunnel.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Endpoint {
    /// IKE identity: the distinguished name in the endpoint's certificate.
    pub id: String,
    /// `<cluster>.<node>` or `<cluster>.connector`.
    pub name: String,
    /// IP addresses or DNS names at which peers reach this endpoint; empty: it can only initiate.
    #[serde(default)]
    pub public_addresses: Vec<String>,
    /// Pod prefixes, and for a connector its service prefixes.
    #[serde(default, with = "prefixes")]
    pub subnets: Vec<IpNet>,
    /// Node addresses. Of a connector: all cloud node addresses, which are selectors of its tunnels. Of an edge:
    /// for information only; an edge's node address is never a selector, for hundreds of sites share the same.
    #[serde(default, with = "prefixes")]
    pub node_subnets: Vec<IpNet>,
    /// The part of `subnets` that are service prefixes: always translated, so never on the fast path.
    #[serde(default, skip_serializing_if = "Vec::is_empty", with = "prefixes")]
    pub service_subnets: Vec<IpNet>,
    /// What the endpoint is.
    #[serde(rename = "type")]
    pub kind: EndpointType,
    /// UDP port on which it answers IKE; 500 when absent (4500 once NAT-T floats).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub port: Option<u16>,
}

/// How a peer's pods are reached.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Via {
    /// Over a tunnel of its own.
    #[default]
    Direct,
    /// Through the connector, over the connector's tunnel.
    Relay,
}

/// A remote endpoint, as one node sees it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Peer {
    /// The remote endpoint, inline.
    #[serde(flatten)]
    pub endpoint: Endpoint,
    /// Tunnel of its own, or through the connector.
    #[serde(default)]
    pub via: Via,
    /// Whether this node initiates IKE to the peer; the other side answers. Without meaning for a relayed peer.
    #[serde(default)]
    pub initiate: bool,
    /// In a connector's document: names of the endpoints to which it relays for this peer. Their `subnets` are
    /// local selectors of the tunnel to this peer.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub relays: Vec<String>,
}

/// Why a document is not taken.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// Not YAML, or not of the document's shape. The text points at line and column.
    #[error("parsing the document: {0}")]
    Syntax(String),
    /// The end is missing.
    #[error("the document is truncated: it does not end with the line `...`")]
    Truncated,
    /// The compressed form is not what it should be.
    #[error("tunnels.yaml.gz is damaged, truncated, or no gzip of a text")]
    Damaged(#[source] std::io::Error),
    /// More than a document ever holds.
    #[error("the document is larger than {} MiB", packed::MAX_BYTES >> 20)]
    TooLarge,
    /// Written by a newer operator with another meaning.
    #[error("the document has version {found}, this agent reads up to {VERSION}: upgrade the agent")]
    Version {
        /// The document's version.
        found: u32,
    },
    /// Well-formed, but it contradicts itself.
    #[error("the document of {name} is refused: {}", problem::join(problems))]
    Invalid {
        /// Whose document.
        name: String,
        /// Everything that is wrong with it.
        problems: Vec<Problem>,
    },
}

impl NodeConfig {
    /// Parses, upgrades and validates a document.
    ///
    /// # Errors
    /// [`Error::Syntax`] for malformed text, [`Error::Truncated`] for one without its end marker,
    /// [`Error::Version`] for a version that is not known here,
    /// [`Error::Invalid`] with every problem that validation found.
    pub fn parse(text: &str) -> Result<Self, Error> {
        let config: Self = serde_saphyr::from_str(text).map_err(|e| Error::Syntax(e.to_string()))?;
        if config.version > 0 && text.trim_end().lines().next_back() != Some(END) {
            return Err(Error::Truncated);
        }
        let config = config.upgrade()?;
        let problems = config.validate();
        if problems.is_empty() {
            Ok(config)
        } else {
            Err(Error::Invalid {
                name: config.endpoint.name,
                problems,
            })
        }
    }

    /// The document as YAML.
    ///
    /// # Errors
    /// None for a document made of this module's types; the signature is the serializer's.
    pub fn to_yaml(&self) -> Result<String, Error> {
        let mut text = serde_saphyr::to_string(self).map_err(|e| Error::Syntax(e.to_string()))?;
        if !text.ends_with('\n') {
            text.push('\n');
        }
        text.push_str(END);
        text.push('\n');
        Ok(text)
    }

    /// Brings an older document to [`VERSION`], one version at a time.
    fn upgrade(mut self) -> Result<Self, Error> {
        if self.version > VERSION {
            return Err(Error::Version { found: self.version });
        }
        if self.version == 0 {
            // 0.4 has no roles in a tunnel: every edge initiates to its connector, and the lexically smaller
            // name initiates between equals.
            for peer in self.peers.iter_mut().map(Arc::make_mut) {
                peer.initiate = match (self.endpoint.kind, peer.endpoint.kind) {
                    (EndpointType::EdgeNode, EndpointType::Connector) => true,
                    (EndpointType::Connector, EndpointType::EdgeNode) => false,
                    _ => self.endpoint.name < peer.endpoint.name,
                };
            }
            self.version = 1;
        }
        Ok(self)
    }

    /// The connector of this node's own cluster, if it is among the peers.
    pub fn connector(&self) -> Option<&Peer> {
        self.peers.iter().map(AsRef::as_ref).find(|p: &&Peer| {
            p.endpoint.kind == EndpointType::Connector && p.endpoint.cluster() == self.endpoint.cluster()
        })
    }

    /// Looks a peer up by its full name.
    pub fn peer(&self, name: &str) -> Option<&Peer> {
        self.peers
            .iter()
            .map(AsRef::as_ref)
            .find(|p: &&Peer| p.endpoint.name == name)
    }
}

impl Endpoint {
    /// The cluster's name: what stands before the first dot. A cluster name is one DNS label, so it has no dot.
    pub fn cluster(&self) -> &str {
        self.name.split_once('.').map_or("", |(cluster, _)| cluster)
    }

    /// The name within the cluster: a node's name (which may have dots) or `connector`.
    pub fn local_name(&self) -> &str {
        self.name
            .split_once('.')
            .map_or(self.name.as_str(), |(_, local)| local)
    }

    /// Those of its public addresses that are IP addresses, not DNS names.
    pub fn public_ips(&self) -> impl Iterator<Item = IpAddr> + '_ {
        self.public_addresses
            .iter()
            .filter_map(|address| address.parse().ok())
    }

    /// The pod prefixes without the service prefixes.
    pub fn pod_subnets(&self) -> impl Iterator<Item = IpNet> + '_ {
        self.subnets
            .iter()
            .filter(|net| !self.service_subnets.contains(net))
            .copied()
    }
}

#[cfg(test)]
mod tests;
