//! Who calls: what the client certificate says, and nothing else.

use x509_parser::prelude::{FromDer, X509Certificate};

use crate::observe::convert::is_label;

/// What the common name of a member's client certificate ends with, after the cluster's name.
pub const CLIENT: &str = "fabedge-client";

/// What the common name of the host's server certificate ends with, after the cluster's name.
pub const SERVER: &str = "fabedge-operator";

/// Who calls.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Caller {
    /// Somebody without a certificate.
    Anybody,
    /// A member cluster, by its name.
    Member(String),
    /// Somebody with a certificate of the authority that is not a member's.
    Other(String),
}

impl Caller {
    /// The caller with this certificate (DER), which TLS has verified: of our authority, for clients, in time.
    pub fn of(certificate: Option<&[u8]>) -> Self {
        let Some(certificate) = certificate else {
            return Self::Anybody;
        };
        let Ok((_, certificate)) = X509Certificate::from_der(certificate) else {
            return Self::Other(String::new());
        };
        let names: Vec<_> = certificate
            .subject()
            .iter_common_name()
            .filter_map(|name| name.as_str().ok())
            .collect();
        match names.as_slice() {
            [name] => match name.split_once('.') {
                Some((cluster, CLIENT)) if is_label(cluster) => Self::Member(cluster.to_owned()),
                _ => Self::Other((*name).to_owned()),
            },
            _ => Self::Other(names.join(", ")),
        }
    }
}

/// The name of a member's client certificate.
pub fn client_name(cluster: &str) -> String {
    format!("{cluster}.{CLIENT}")
}

/// The name of the host's server certificate.
pub fn server_name(cluster: &str) -> String {
    format!("{cluster}.{SERVER}")
}
