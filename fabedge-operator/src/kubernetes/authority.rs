//! The cluster's certificate authority in its Secret.

use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::Secret;
use kube::api::PostParams;
use kube::{Api, ResourceExt};
use time::OffsetDateTime;

use super::objects;
use crate::pki::{Authority, authority};

/// Name of the Secret.
pub const SECRET: &str = "fabedge-ca";
const CERTIFICATE: &str = "ca.crt";
const KEY: &str = "ca.key";

/// Why there is no authority.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The Secret could not be read or made.
    #[error("{action} the Secret {SECRET}")]
    Api {
        /// What was attempted.
        action: &'static str,
        /// Why it failed.
        source: kube::Error,
    },
    /// It lacks one of its entries.
    #[error(
        "the Secret {SECRET} lacks {0}: put it back, or delete the Secret to have a new CA made, which every node then \
         gets"
    )]
    Half(&'static str),
    /// What is there is not an authority that can be used. It is never overwritten.
    #[error(
        "the CA in the Secret {SECRET} is refused and left as it is: mend it, or delete the Secret to have a new CA \
         made, which every node then gets"
    )]
    Refused(#[source] authority::Error),
    /// Making a new one failed.
    #[error("making a CA")]
    Generate(#[source] authority::Error),
}

/// Loads the authority, or makes one where there is none.
///
/// # Errors
/// When the Secret cannot be read or made, or holds no authority that can be used.
pub async fn open(secrets: &Api<Secret>, cluster: &str, now: OffsetDateTime) -> Result<Authority, Error> {
    let api = |action| move |source| Error::Api { action, source };
    let secret = match secrets.get_opt(SECRET).await.map_err(api("reading"))? {
        Some(secret) => secret,
        None => {
            let new = Authority::generate(cluster, now).map_err(Error::Generate)?;
            let secret = made(&new.certificate, &new.key);
            // Created, not applied: one that somebody made meanwhile stays.
            match secrets.create(&PostParams::default(), &secret).await {
                Ok(secret) => {
                    tracing::info!(secret = secret.name_any(), "made a certificate authority");
                    secret
                }
                Err(kube::Error::Api(status)) if status.code == 409 => {
                    secrets.get(SECRET).await.map_err(api("reading"))?
                }
                Err(source) => return Err(api("making")(source)),
            }
        }
    };
    let entry = |key| objects::text(&secret, key).ok_or(Error::Half(key));
    Authority::load(&entry(CERTIFICATE)?, &entry(KEY)?, now).map_err(Error::Refused)
}

fn made(certificate: &str, key: &str) -> Secret {
    let entry = |name: &str, text: &str| (name.to_owned(), ByteString(text.as_bytes().to_vec()));
    Secret {
        metadata: kube::api::ObjectMeta {
            name: Some(SECRET.to_owned()),
            ..Default::default()
        },
        data: Some([entry(CERTIFICATE, certificate), entry(KEY, key)].into()),
        ..Secret::default()
    }
}
