//! Desired state: document + host facts + role + options -> one value per subsystem. Pure.

pub mod cni;
pub mod datapath;
pub mod firewall;
pub mod links;
pub mod routes;
pub mod sysctl;
pub mod tunnels;
