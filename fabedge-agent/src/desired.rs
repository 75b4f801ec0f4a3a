//! Desired state: document + host facts + role + options -> one value per subsystem. Pure.

pub mod cni;
pub mod datapath;
pub mod firewall;
pub mod links;
pub mod routes;
pub mod sysctl;
pub mod tunnels;

/// What the desired state depends on besides document and host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Options {
    /// Whether edge pods go out under their node's address.
    pub masq_outgoing: bool,
}
