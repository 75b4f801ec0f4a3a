//! Documents of a node with as many peers as one likes.

use std::fs;
use std::net::{IpAddr, Ipv4Addr};
use std::path::Path;
use std::sync::Arc;

use anyhow::{Context, Result};
use fabedge_common::config::packed::{self, Packed};
use fabedge_common::config::{Endpoint, EndpointType, NodeConfig, Peer, Via};
use ipnet::{IpNet, Ipv4Net};

/// A node's document with peers of one's own.
#[derive(Clone, Debug)]
pub struct Documents {
    node: NodeConfig,
    generation: u64,
}

/// The pods of the `number`th peer, of as many more as there are `variants`.
pub fn pods(number: usize, variant: usize) -> Ipv4Net {
    // From 10.1.0.0 on, and a variant from 10.64.0.0 on: both below those of the node itself.
    let block = number + 256 + variant * (64 << 8);
    Ipv4Net::new_assert(
        Ipv4Addr::from((10 << 24) + u32::try_from(block << 8).unwrap_or(0)),
        24,
    )
}

impl Documents {
    /// Those of the node whose own document is at `file`.
    ///
    /// # Errors
    /// When it is no document.
    pub fn of(file: &Path) -> Result<Self> {
        let text = fs::read_to_string(file).with_context(|| format!("reading {}", file.display()))?;
        let node = NodeConfig::parse(&text).with_context(|| format!("parsing {}", file.display()))?;
        Ok(Self {
            generation: node.generation,
            node: NodeConfig {
                network_subnets: vec![IpNet::V4(Ipv4Net::new_assert(Ipv4Addr::new(10, 0, 0, 0), 8))],
                ..node
            },
        })
    }

    /// The next document, with `count` peers that initiate; the first `moved` of them have other pods.
    ///
    /// # Errors
    /// None for what is made here.
    pub fn next(&mut self, count: usize, moved: usize) -> Result<(u64, String)> {
        self.generation += 1;
        let peers = (0..count).map(|number| Arc::new(peer(number, usize::from(number < moved))));
        let config = NodeConfig {
            generation: self.generation,
            peers: peers.collect(),
            ..self.node.clone()
        };
        Ok((self.generation, config.to_yaml().context("writing a document")?))
    }

    /// The next document, with `count` peers that all are at `address`, to whom the node initiates.
    ///
    /// # Errors
    /// None for what is made here.
    pub fn towards(&mut self, count: usize, address: &str) -> Result<(u64, String)> {
        self.generation += 1;
        let peer = |number| {
            let mut peer = peer(number, 0);
            peer.endpoint.public_addresses = vec![address.to_owned()];
            peer.initiate = true;
            Arc::new(peer)
        };
        let config = NodeConfig {
            generation: self.generation,
            peers: (0..count).map(peer).collect(),
            ..self.node.clone()
        };
        Ok((self.generation, config.to_yaml().context("writing a document")?))
    }

    /// The node's own endpoint.
    pub fn endpoint(&self) -> &Endpoint {
        &self.node.endpoint
    }
}

/// An edge with an address that is for measurements (RFC 2544).
fn peer(number: usize, variant: usize) -> Peer {
    let address = Ipv4Addr::from((198 << 24) + (18 << 16) + u32::try_from(number).unwrap_or(0));
    Peer {
        endpoint: Endpoint {
            id: format!("C=CN, O=fabedge.io, CN=fabedge.node{number:05}"),
            name: format!("fabedge.node{number:05}"),
            public_addresses: vec![address.to_string()],
            subnets: vec![pods(number, variant).into()],
            node_subnets: vec![IpAddr::V4(address).into()],
            service_subnets: Vec::new(),
            kind: EndpointType::EdgeNode,
            port: None,
        },
        via: Via::Direct,
        initiate: false,
        relays: Vec::new(),
    }
}

/// Puts a document where an agent looks for it, in the form in which the operator would.
///
/// # Errors
/// Those of the file system.
pub fn put(folder: &Path, text: String) -> Result<()> {
    let (name, other, bytes) = match packed::pack(text) {
        Packed::Plain(text) => (packed::DOCUMENT_KEY, packed::COMPRESSED_KEY, text.into_bytes()),
        Packed::Compressed(bytes) => (packed::COMPRESSED_KEY, packed::DOCUMENT_KEY, bytes),
    };
    let new = folder.join(".new");
    fs::write(&new, bytes).with_context(|| format!("writing {}", new.display()))?;
    fs::rename(&new, folder.join(name)).with_context(|| format!("putting {name} in place"))?;
    match fs::remove_file(folder.join(other)) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(error).with_context(|| format!("removing {other}"))
        }
        _ => Ok(()),
    }
}
