//! The node agent: takes one NodeConfig document and makes kernel, charon and CNI agree with it.
//!
//! Data flows one way: [`source`] yields a document, [`desired`] turns it into one desired state per subsystem
//! (pure), and each subsystem observes, plans (pure) and applies. [`engine`] owns order, triggers and time.

pub mod args;
pub mod cni;
pub mod datapath;
pub mod desired;
pub mod engine;
pub mod facts;
pub mod firewall;
pub mod links;
pub mod marks;
pub mod memory;
pub mod metrics;
pub mod netlink;
pub mod paths;
pub mod privileges;
pub mod routes;
pub mod source;
pub mod status;
pub mod subsystem;
pub mod sysctl;
pub mod tunnels;
