//! The cluster's certificate authority in its Secret, and its replacement by another one.

use std::collections::{BTreeMap, BTreeSet};

use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::Secret;
use kube::api::{Patch, PatchParams, PostParams};
use kube::{Api, ResourceExt};
use serde_json::json;
use time::{Duration, OffsetDateTime};
use tracing::info;

use super::{MANAGER, objects};
use crate::pki::rotation::{ANNOUNCE, CERTIFICATE, Entries, KEY};
use crate::pki::{Authorities, Authority, authority, revocation};

/// Name of the Secret.
pub const SECRET: &str = "fabedge-ca";

/// Annotation of the Secret by which somebody asks for a new authority. Its value is for how many seconds it is announced
/// before it signs; anything else means the usual time.
pub const ROTATE: &str = "fabedge.io/rotate-ca";

/// Annotation of the Secret by which somebody revokes certificates: their serial numbers, with commas or spaces between
/// them.
pub const REVOKE: &str = "fabedge.io/revoke";

/// The fewest seconds: every node is to have read both.
const LEAST: u32 = 10;

/// Steps that can be due at once, two of a rotation and one of a revocation, and one more that finds none.
const STEPS: usize = 5;

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
    /// Somebody undoes every step.
    #[error("the Secret {SECRET} is changed by somebody else all the time: find out who")]
    Restless,
    /// Making a new one failed.
    #[error("making a CA")]
    Generate(#[source] authority::Error),
    /// Not everything that was revoked is on a list.
    #[error("revoking certificates")]
    Revoke(#[source] authority::Error),
    /// Something else in the annotation.
    #[error(
        "the annotation {REVOKE} of the Secret {SECRET} has {0:?}, which is no serial number: write what `openssl x509 \
         -noout -serial` prints"
    )]
    Serial(String),
}

/// What to revoke, besides what the Secret's annotation tells.
#[derive(Debug)]
pub struct Revoke<'a> {
    /// Serial numbers, and whose they are.
    pub certificates: &'a [(String, Option<String>)],
    /// Names that endpoints have now.
    pub in_use: &'a BTreeSet<String>,
}

/// What the Secret holds, and what of it could not be carried out.
#[derive(Debug)]
pub struct Opened {
    /// The authorities.
    pub authorities: Authorities,
    /// What is left undone.
    pub failures: Vec<Error>,
}

/// Loads the authorities, makes one where there is none, takes the step of a rotation that is due, and revokes.
///
/// # Errors
/// When the Secret cannot be read or written, or holds no authority that can be used.
pub async fn open(
    secrets: &Api<Secret>,
    cluster: &str,
    revoke: &Revoke<'_>,
    now: OffsetDateTime,
) -> Result<Opened, Error> {
    let api = |action| move |source| Error::Api { action, source };
    let mut secret = match secrets.get_opt(SECRET).await.map_err(api("reading"))? {
        Some(secret) => secret,
        None => {
            let new = Authority::generate(cluster, now).map_err(Error::Generate)?;
            let secret = made(&new.certificate, &new.key);
            // Created, not applied: one that somebody made meanwhile stays.
            match secrets.create(&PostParams::default(), &secret).await {
                Ok(secret) => {
                    info!(secret = secret.name_any(), "made a certificate authority");
                    secret
                }
                Err(kube::Error::Api(status)) if status.code == 409 => {
                    secrets.get(SECRET).await.map_err(api("reading"))?
                }
                Err(source) => return Err(api("making")(source)),
            }
        }
    };
    // Two steps may be due at once, after a long time without an operator.
    for _ in 0..STEPS {
        let entries: Entries = secret
            .data
            .iter()
            .flatten()
            .filter_map(|(name, _)| Some((name.clone(), objects::text(&secret, name)?)))
            .collect();
        for name in [CERTIFICATE, KEY] {
            if !entries.contains_key(name) {
                return Err(Error::Half(name));
            }
        }
        let authorities = Authorities::load(&entries, now).map_err(Error::Refused)?;
        let asked = secret.annotations().get(ROTATE).map(|text| announce(text));
        let told = secret.annotations().get(REVOKE).cloned().unwrap_or_default();
        let (serials, unclear) = serials(&told);
        let rotated = authorities
            .step(&entries, cluster, asked, now)
            .map_err(Error::Generate)?;
        let (next, left, failed) = match rotated {
            Some(next) => {
                info!(
                    step = step(&entries, &next),
                    "the certificate authority is being replaced"
                );
                (Some(next), told.clone(), Vec::new())
            }
            None => {
                let certificates = [revoke.certificates, &serials].concat();
                let in_use = |name: &str| revoke.in_use.contains(name);
                let (next, failed) = authorities.revoke(&entries, &certificates, in_use, now);
                (next, unclear.clone(), failed)
            }
        };
        let labelled = secret.labels().get(objects::CREATED_BY).is_some();
        if next.is_none() && asked.is_none() && left == told && labelled {
            let mut failures: Vec<Error> = failed.into_iter().map(Error::Revoke).collect();
            failures.extend((!unclear.is_empty()).then_some(Error::Serial(unclear)));
            return Ok(Opened {
                authorities,
                failures,
            });
        }
        // Only as long as nobody else has written it: a key must not be lost.
        let next = next.unwrap_or_else(|| entries.clone());
        let data: BTreeMap<&String, Option<ByteString>> = entries
            .keys()
            .chain(next.keys())
            .map(|name| {
                let text = next.get(name).map(|text| ByteString(text.clone().into_bytes()));
                (name, text)
            })
            .collect();
        let patch = json!({
            "metadata": {
                "resourceVersion": secret.resource_version(),
                "labels": {objects::CREATED_BY: MANAGER},
                "annotations": {ROTATE: null, REVOKE: Some(left).filter(|left| !left.is_empty())},
            },
            "data": data,
        });
        let params = PatchParams {
            field_manager: Some(MANAGER.to_owned()),
            ..PatchParams::default()
        };
        secret = secrets
            .patch(SECRET, &params, &Patch::Merge(&patch))
            .await
            .map_err(api("writing"))?;
    }
    Err(Error::Restless)
}

/// What a step of a rotation does, for the log.
fn step(before: &Entries, after: &Entries) -> &'static str {
    match (
        before.len() < after.len(),
        before.get(CERTIFICATE) == after.get(CERTIFICATE),
    ) {
        (true, true) => "a new one is trusted beside the old one",
        (_, false) => "the new one signs, the old one is trusted still",
        (false, true) => "the old one is no longer trusted",
    }
}

/// The serial numbers in an annotation, and what else is there.
fn serials(told: &str) -> (Vec<(String, Option<String>)>, String) {
    let words = told.split([',', ' ', '\n']).filter(|word| !word.is_empty());
    let (serials, unclear): (Vec<_>, Vec<_>) = words.partition(|word| revocation::serial(word).is_some());
    let serials = serials.into_iter().filter_map(revocation::serial);
    (serials.map(|serial| (serial, None)).collect(), unclear.join(","))
}

/// How long a new authority is announced that somebody asks for: seconds, or the usual time.
fn announce(text: &str) -> Duration {
    let seconds = text.trim().parse().ok();
    seconds.map_or(ANNOUNCE, |seconds: u32| {
        Duration::seconds(seconds.max(LEAST).into())
    })
}

fn made(certificate: &str, key: &str) -> Secret {
    let entry = |name: &str, text: &str| (name.to_owned(), ByteString(text.as_bytes().to_vec()));
    Secret {
        metadata: objects::unowned(SECRET),
        data: Some([entry(CERTIFICATE, certificate), entry(KEY, key)].into()),
        ..Secret::default()
    }
}
