//! FabEdge's control plane: manifests in, one `NodeConfig` document and certificate per node out.
//!
//! The flow is observe -> snapshot -> topology -> render -> publish. [`snapshot`] and [`topology`] know neither
//! files nor an API, so that a folder of manifests ([`standalone`]) is one front end among others.

pub mod api;
pub mod args;
pub mod crds;
pub mod finding;
pub mod observe;
pub mod pki;
pub mod publish;
pub mod snapshot;
pub mod standalone;
pub mod topology;
