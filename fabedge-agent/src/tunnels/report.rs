//! How the tunnels stand, for status and metrics. Pure.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::plan::{Actual, ByName, ChildState, Need, need};
use crate::desired::tunnels::Tunnels;

/// Every tunnel by the peer's name.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Report {
    /// Tunnels.
    pub peers: BTreeMap<String, PeerReport>,
}

/// One tunnel.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PeerReport {
    /// Name of its connection at charon.
    pub connection: String,
    /// Whether a CHILD_SA carries everything that it should.
    pub ready: bool,
    /// charon's word for the stage of the IKE_SA; none without one.
    pub ike_state: Option<String>,
    /// The peer's address and port as seen from here.
    pub remote: Option<String>,
    /// Seconds since the IKE_SA was established.
    pub established_seconds: Option<u64>,
    /// The largest packet that its tunnel carries in one piece, once [`crate::paths`] has measured that.
    #[serde(default)]
    pub path_mtu: Option<u32>,
    /// CHILD_SAs that carry traffic.
    pub children: Vec<ChildReport>,
    /// What went wrong last while it is being brought up.
    pub error: Option<String>,
}

/// One CHILD_SA.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ChildReport {
    /// Its name.
    pub name: String,
    /// Inbound SPI.
    pub spi_in: u32,
    /// Outbound SPI.
    pub spi_out: u32,
    /// Bytes received.
    pub bytes_in: u64,
    /// Bytes sent.
    pub bytes_out: u64,
}

impl Report {
    /// The report on `desired`'s connections.
    pub fn new(desired: &Tunnels, actual: &Actual) -> Self {
        let by_name = ByName::new(&actual.ikes);
        let peers = desired
            .connections
            .iter()
            .map(|(name, connection)| {
                let mut own = by_name.of(name).to_vec();
                let mut report = PeerReport {
                    connection: name.clone(),
                    ready: need(connection, &own) == Need::Nothing,
                    ..PeerReport::default()
                };
                own.sort_by_key(|ike| (ike.state, ike.id));
                // An established one says more than one that is still being negotiated or on its way out.
                let shown = own
                    .iter()
                    .rfind(|ike| ike.state == super::plan::IkeState::Established);
                if let Some(ike) = shown.or(own.first()) {
                    report.ike_state = Some(ike.state_name.clone());
                    report.remote = Some(ike.remote.clone());
                    report.established_seconds = ike.established;
                }
                report.children = own
                    .iter()
                    .flat_map(|ike| &ike.children)
                    .filter(|child| child.state == ChildState::Live)
                    .map(|child| ChildReport {
                        name: child.name.clone(),
                        spi_in: child.spis[0],
                        spi_out: child.spis[1],
                        bytes_in: child.bytes[0],
                        bytes_out: child.bytes[1],
                    })
                    .collect();
                (connection.peer.clone(), report)
            })
            .collect();
        let mut report = Self { peers };
        for problem in &desired.problems {
            if let Some(peer) = problem.object.strip_prefix("peer ") {
                report.peers.entry(peer.to_owned()).or_default().error = Some(problem.to_string());
            }
        }
        report
    }

    /// Adds what went wrong, by connection.
    pub fn add_failures(&mut self, failures: &BTreeMap<String, String>) {
        for peer in self.peers.values_mut().filter(|peer| !peer.ready) {
            if let Some(reason) = failures.get(&peer.connection) {
                peer.error = Some(reason.clone());
            }
        }
    }
}
