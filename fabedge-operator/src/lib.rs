//! FabEdge's control plane: manifests in, one `NodeConfig` document and certificate per node out.
//!
//! The flow is observe -> snapshot -> topology -> render -> publish. [`snapshot`] and [`topology`] know neither
//! files nor an API: a folder of manifests ([`standalone`]) and a cluster ([`kubernetes`]) are two front ends of one
//! program.

pub mod api;
pub mod args;
pub mod crds;
pub mod discovery;
pub mod federation;
pub mod finding;
pub mod kubernetes;
pub mod observe;
pub mod pki;
pub mod publish;
pub mod reporter;
pub mod signals;
pub mod snapshot;
pub mod standalone;
pub mod topology;
