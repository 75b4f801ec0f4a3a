//! Documents of a small world: an edge, a connector and a cloud node of one cluster, and another cluster.

use fabedge_agent::desired::Options;
use fabedge_common::config::NodeConfig;

pub const MASQUERADE: Options = Options {
    masq_outgoing: true,
    fast_path: true,
    spread_esp: fabedge_agent::args::SpreadChoice::Auto,
};

/// What edges close: the pod network anywhere.
const EVERYWHERE: &str = "networkSubnets: [10.233.0.0/17, 'fd00:233:64::/56', 10.99.0.0/16]";

/// What the cloud closes: the part beyond the connector, for the rest is its CNI's.
const BEYOND: &str = "networkSubnets: [10.233.66.0/23, 10.233.68.0/24, 'fd00:233:64:66::/63', 10.99.0.0/16]";

const CONNECTOR: &str = "
  id: C=CN, O=fabedge.io, CN=fabedge.connector
  name: fabedge.connector
  type: Connector
  publicAddresses: [10.20.8.28]
  nodeSubnets: [10.20.8.28, 10.20.8.23]
";

fn document(network: &str, own: &str, peers: &[String]) -> NodeConfig {
    let peers: String = peers.iter().map(|peer| format!("- {}\n", peer.trim())).collect();
    let text = format!("version: 1\ngeneration: 1\n{network}\n{own}\npeers:\n{peers}...\n");
    NodeConfig::parse(&text).unwrap_or_else(|error| panic!("{error}\n{text}"))
}

fn unindent(text: &str) -> String {
    text.lines()
        .map(|line| format!("{}\n", line.trim_start()))
        .collect()
}

fn edge_peer(name: &str, third: u8) -> String {
    format!(
        "id: C=CN, O=fabedge.io, CN=fabedge.{name}
  name: fabedge.{name}
  type: EdgeNode
  subnets: [10.233.{third}.0/24, 'fd00:233:64:{third}::/64']
  nodeSubnets: [192.168.50.2]"
    )
}

const CLOUD_SUBNETS: &str =
    "subnets: [10.233.64.0/24, 10.233.65.0/24, 'fd00:233:64:64::/64', 'fd00:233:64:65::/64', 10.233.0.0/18]
  serviceSubnets: [10.233.0.0/18]";

/// edge1 with the connector and, in a community, edge2.
pub fn edge() -> NodeConfig {
    document(
        EVERYWHERE,
        "id: C=CN, O=fabedge.io, CN=fabedge.edge1
name: fabedge.edge1
type: EdgeNode
subnets: [10.233.66.0/24, 'fd00:233:64:66::/64']
nodeSubnets: [192.168.50.2]",
        &[
            format!("{}  {CLOUD_SUBNETS}", CONNECTOR.trim_start()),
            edge_peer("edge2", 67),
        ],
    )
}

/// The connector with edge1, edge2 and another cluster's connector.
pub fn connector() -> NodeConfig {
    let other = "id: C=CN, O=fabedge.io, CN=other.connector
  name: other.connector
  type: Connector
  publicAddresses: [203.0.113.9]
  subnets: [10.99.0.0/16]
  nodeSubnets: [10.30.8.5]";
    document(
        BEYOND,
        &unindent(&format!("{CONNECTOR}{CLOUD_SUBNETS}")),
        &[edge_peer("edge1", 66), edge_peer("edge2", 67), other.to_owned()],
    )
}

/// What the other cloud nodes read: everything by way of the connector.
pub fn cloud() -> NodeConfig {
    document(
        BEYOND,
        &unindent(&format!(
            "id: C=CN, O=fabedge.io, CN=fabedge.cloud
            name: fabedge.cloud
            type: CloudNode
            nodeSubnets: [10.20.8.28, 10.20.8.23]
            {CLOUD_SUBNETS}"
        )),
        &[format!(
            "{}  subnets: [10.233.66.0/24, 10.233.67.0/24, 10.99.0.0/16]",
            CONNECTOR.trim_start()
        )],
    )
}
