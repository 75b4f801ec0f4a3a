//! Desired state of [`crate::cni`]. Pure.

use fabedge_common::config::NodeConfig;
use serde_json::{Value, json};

use crate::facts::Facts;
use crate::marks;

/// The CNI configuration of local pods.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Cni {
    /// Text of the conflist; none where another CNI serves the node (in the cloud), and after cleanup.
    pub conflist: Option<String>,
}

/// An edge's configuration: a bridge with one host-local range per own subnet, port mappings, bandwidth limits.
pub fn edge(config: &NodeConfig, facts: &Facts) -> Cni {
    let ranges: Vec<Value> = config
        .endpoint
        .subnets
        .iter()
        .map(|net| json!([{ "subnet": net.to_string() }]))
        .collect();
    let conflist = json!({
        "cniVersion": "0.3.1",
        "name": "fabedge",
        "plugins": [
            {
                "type": "bridge",
                "bridge": marks::BRIDGE,
                "isDefaultGateway": true,
                "forceAddress": true,
                "hairpinMode": true,
                "mtu": facts.tunnel_mtu(),
                "ipam": { "type": "host-local", "ranges": ranges },
            },
            { "type": "portmap", "capabilities": { "portMappings": true } },
            { "type": "bandwidth", "capabilities": { "bandwidth": true } },
        ],
    });
    Cni {
        conflist: Some(format!("{conflist:#}\n")),
    }
}
