//! How clusters join: the network API of the host cluster, and what members show to be let in.

pub mod api;
pub mod caller;
pub mod failures;
pub mod host;
pub mod listener;
pub mod news;
pub mod places;
pub mod report;
pub mod token;
