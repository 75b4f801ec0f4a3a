//! The cluster's certificate authority and the leaf certificates of its endpoints.

pub mod authority;
pub mod inspect;
pub mod request;
pub mod revocation;
pub mod rotation;
pub mod store;
pub mod trust;

pub use authority::{Authority, Leaf};
pub use revocation::Revocations;
pub use rotation::Authorities;
pub use trust::Trust;
