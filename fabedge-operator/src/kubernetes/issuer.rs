//! Who signs the certificates of this cluster's endpoints: its own authority, or the host that it registered with.

use std::sync::Arc;

use time::OffsetDateTime;

use crate::federation::host::{self, Host};
use crate::pki::{Authorities, Leaf, Trust, authority};

/// Who signs.
#[derive(Clone, Debug)]
pub enum Issuer {
    /// The cluster's own authority.
    Own(Arc<Authorities>),
    /// That of the host.
    Host(Arc<Host>),
}

/// Why there is no certificate.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// Our own doing.
    #[error(transparent)]
    Own(#[from] authority::Error),
    /// The host's.
    #[error(transparent)]
    Host(#[from] host::Error),
}

impl Issuer {
    /// What its certificates are judged by.
    pub fn trust(&self) -> &Trust {
        match self {
            Self::Own(authorities) => authorities.trust(),
            Self::Host(host) => host.trust(),
        }
    }

    /// Issues a certificate and a new key to the endpoint `name`, and tells when they are to be renewed.
    ///
    /// # Errors
    /// When the library refuses the name, or the host does, or does not answer.
    pub async fn issue(&self, name: &str, now: OffsetDateTime) -> Result<(Leaf, OffsetDateTime), Error> {
        match self {
            Self::Own(authorities) => {
                let (authority, name) = (Arc::clone(authorities.current()), name.to_owned());
                // Others go on writing meanwhile, and the lease is renewed.
                let issue = move || Ok((authority.issue(&name, now)?, authority.renewal(now)));
                let work = tokio::task::spawn_blocking(issue).await;
                work.unwrap_or_else(|error| std::panic::resume_unwind(error.into_panic()))
            }
            Self::Host(host) => Ok(host.issue(name, now).await?),
        }
    }
}
