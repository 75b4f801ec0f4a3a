//! What is looked for by the guide to troubleshooting: troubles are made before their block, and mended by it.

use anyhow::{Result, ensure};

use super::Guide;
use super::cluster::ENDING;
use super::rows::missing;
use super::steps::CONVERGENCE;
use crate::suite::judge;

/// What the operator says of an annotation that names no address.
const NO_ADDRESS: &str = "is neither a usable IP address nor a DNS name";

/// Where it says so.
const EVENTS: &str = "get events -n default --field-selector source=fabedge-operator";

/// The pods of both edges, which a Community joins.
const EDGES: [(&str, &str); 1] = [("edge1", "edge2")];

impl Guide {
    /// Makes what a block shows.
    pub(super) fn before_trouble(&mut self, block: &str) -> Result<()> {
        if block == "see-events" {
            self.cluster
                .kubectl("annotate node edge2 --overwrite fabedge.io/node-public-addresses=203.0.113.300")?;
            self.cluster.wait("an event", CONVERGENCE, |cluster| {
                let events = cluster.kubectl(EVENTS)?;
                ensure!(events.contains(NO_ADDRESS), "{events}");
                Ok(true)
            })?;
        }
        Ok(())
    }

    /// Whether a block shows what the guide says that it does.
    pub(super) fn said_of_trouble(&self, block: &str, text: &str) -> Vec<String> {
        let lacks = |wanted: &[&str]| -> Vec<String> {
            let wanted = wanted.iter().filter(|part| !text.contains(**part));
            wanted.map(|part| format!("nothing of {part:?}")).collect()
        };
        match block {
            "see-pods" => missing(
                text,
                &[
                    ("fabedge-operator-", &["1/1", "Running"]),
                    ("fabedge-agent-edge1", &["2/2", "Running"]),
                    ("fabedge-connector-", &["2/2", "Running"]),
                ],
            ),
            "see-operator" => lacks(&["INFO"]),
            "see-events" => lacks(&["node/edge2", "203.0.113.300", NO_ADDRESS]),
            "mend-annotation" => lacks(&["node/edge2 annotated"]),
            "see-community" => lacks(&["fabedge.edge1", "Ready"]),
            "see-agent" => lacks(&["endpoint   fabedge.edge1", "ready      yes", "fabedge.connector"]),
            "restart-agent" => lacks(&["pod \"fabedge-agent-edge1\" deleted"]),
            "see-tunnels" => lacks(&["ready      yes", "fabedge.edge1: #", "ESTABLISHED"]),
            "see-charon" => lacks(&["[IKE]"]),
            "see-ways" => lacks(&["table inet fabedge", "counter inbound_to_pods", " dev "]),
            _ => Vec::new(),
        }
    }

    /// Whether what a block mends is mended.
    pub(super) fn after_trouble(&mut self, block: &str) -> Result<()> {
        match block {
            "see-events" => self.row("a wrong annotation parts nobody", |guide| {
                guide.reach_each_other(&EDGES)
            }),
            "restart-agent" => self.row("an agent's pod that is deleted comes back", |guide| {
                let cluster = &guide.cluster;
                let took = cluster.wait("the agent of edge1", ENDING, |cluster| {
                    let pods = cluster.kubectl("get pod -n fabedge fabedge-agent-edge1 --no-headers")?;
                    ensure!(pods.contains("2/2"), "{pods}");
                    Ok(true)
                })?;
                guide.reach_each_other(&EDGES)?;
                Ok(judge(true, format!("{:.1} s", took.as_secs_f64())))
            }),
            "collect" => self.row("a report has no key in it", |guide| {
                let report = std::fs::read_to_string(guide.cluster.file("fabedge-report.txt"))?;
                let whole = ["fabedge.edge1", "node1", "[IKE]", "connectors"];
                let whole = whole.iter().all(|part| report.contains(part));
                Ok(judge(
                    whole && !report.contains("PRIVATE KEY"),
                    format!("{} bytes", report.len()),
                ))
            }),
            _ => {}
        }
        Ok(())
    }
}
