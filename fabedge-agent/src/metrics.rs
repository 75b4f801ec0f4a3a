//! `/metrics`, `/healthz` and `/readyz`.

mod exposition;
mod server;

pub use exposition::exposition;
pub use server::serve;
