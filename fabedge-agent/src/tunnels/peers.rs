//! Which certificates peers have shown. charon does not tell which one an SA rests on, and lists only the few dozen that
//! it verified last. So they are noted down as peers come, and kept across starts: who is to go is known by them.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use tokio::task::JoinHandle;
use x509_parser::prelude::{FromDer, X509Certificate};

use super::credentials::dn;
use super::events::{Event, Events};
use super::messages::{ListCert, ListCerts};
use super::plan::{Doomed, Ike, IkeState};
use super::revocations::Revoked;
use super::vici::{Connection, Error};
use crate::desired::tunnels as desired;

/// How long charon may take to list its certificates.
const LIMIT: Duration = Duration::from_secs(5);

/// How long an expired certificate is remembered: an SA may outlive the one it rests on.
const KEEP: u64 = 30 * 24 * 3600;

/// Certificates (DER) by the names in them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Known(BTreeMap<String, BTreeSet<Vec<u8>>>);

/// The background task that notes down. Dropping it ends it.
#[derive(Debug)]
pub struct Peers {
    known: Arc<Mutex<Known>>,
    file: Option<PathBuf>,
    task: JoinHandle<()>,
}

impl Drop for Peers {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Known {
    /// The certificates in `bytes`, one after the other, but for those that expired long before `now`.
    pub fn parse(mut bytes: &[u8], now: SystemTime) -> Self {
        let mut known = Self::default();
        let oldest = now
            .duration_since(SystemTime::UNIX_EPOCH)
            .map_or(0, |since| since.as_secs().saturating_sub(KEEP));
        while let Ok((rest, certificate)) = X509Certificate::from_der(bytes) {
            let not_after = u64::try_from(certificate.validity().not_after.timestamp()).unwrap_or(0);
            if not_after >= oldest {
                known.add(&bytes[..bytes.len() - rest.len()]);
            }
            bytes = rest;
        }
        known
    }

    /// As [`Known::parse`] reads them.
    pub fn bytes(&self) -> Vec<u8> {
        self.0.values().flatten().flatten().copied().collect()
    }

    /// Whether `certificate` (DER) was new.
    pub fn add(&mut self, certificate: &[u8]) -> bool {
        X509Certificate::from_der(certificate).is_ok_and(|(_, parsed)| {
            self.0
                .entry(parsed.subject().to_string())
                .or_default()
                .insert(certificate.to_vec())
        })
    }

    /// The IKE_SAs of `connections` that may rest on a certificate in `revoked`: those whose peer has shown one, and
    /// those whose peer is not known to have shown any. `authorities` (DER) are those that are trusted.
    pub fn barred(
        &self,
        connections: &desired::Connections,
        ikes: &[Ike],
        revoked: &BTreeSet<Revoked>,
        authorities: &[Vec<u8>],
    ) -> BTreeSet<Doomed> {
        let by_name: BTreeMap<_, _> = self.0.iter().map(|(name, ders)| (dn(name), ders)).collect();
        ikes.iter()
            .filter(|ike| {
                let Some(connection) = connections.get(&ike.name) else {
                    return false;
                };
                match (ike.state, by_name.get(&dn(&connection.remote_id))) {
                    (IkeState::Leaving, _) | (IkeState::Connecting, None) => false,
                    (IkeState::Established, None) => true,
                    (_, Some(ders)) => ders
                        .iter()
                        .any(|der| revoked.iter().any(|revoked| revoked.is(der, authorities))),
                }
            })
            .map(|ike| Doomed {
                id: ike.id,
                name: ike.name.clone(),
            })
            .collect()
    }
}

impl Peers {
    /// Starts the task, which asks charon at `socket` and keeps what it learns in `file`.
    pub fn new(socket: PathBuf, file: Option<PathBuf>) -> Self {
        let kept = file.as_ref().and_then(|file| std::fs::read(file).ok());
        let known = Known::parse(&kept.unwrap_or_default(), SystemTime::now());
        let known = Arc::new(Mutex::new(known));
        let task = tokio::spawn(listen(socket, file.clone(), Arc::clone(&known)));
        Self { known, file, task }
    }

    /// What is known, with what charon at the other end of `vici` can add to it now.
    ///
    /// # Errors
    /// When charon cannot be asked.
    pub async fn known(&self, vici: &mut Connection) -> Result<Known, Error> {
        note(vici, self.file.as_deref(), &self.known).await?;
        Ok(self.known.lock().unwrap_or_else(PoisonError::into_inner).clone())
    }
}

async fn listen(socket: PathBuf, file: Option<PathBuf>, known: Arc<Mutex<Known>>) {
    let mut events = Events::new(socket.clone());
    loop {
        match events.next().await {
            Event::Connected => {}
            Event::Changed(name) if name == "ike-updown" => {}
            Event::Changed(_) | Event::Disconnected => continue,
        }
        // One look serves for all that came until now.
        events.skip();
        let noted = match Connection::open(&socket).await {
            Ok(mut vici) => note(&mut vici, file.as_deref(), &known).await,
            Err(error) => Err(error),
        };
        if let Err(error) = noted {
            tracing::debug!(error = %error, "charon cannot be asked about certificates");
        }
    }
}

/// The certificates (DER) that charon lists: those of authorities (flag `CA`), or all others (`NONE`).
pub(super) async fn certificates(vici: &mut Connection, flag: &'static str) -> Result<Vec<Vec<u8>>, Error> {
    let mut listed = Vec::new();
    let request = ListCerts { kind: "X509", flag };
    vici.stream("list-certs", "list-cert", &request, LIMIT, |event: ListCert| {
        listed.push(event.data.0);
    })
    .await?;
    Ok(listed)
}

/// Adds the certificates that charon lists.
async fn note(vici: &mut Connection, file: Option<&Path>, known: &Mutex<Known>) -> Result<(), Error> {
    let listed = certificates(vici, "NONE").await?;
    let mut known = known.lock().unwrap_or_else(PoisonError::into_inner);
    // Each is to be looked at, also after one that is new.
    let added = listed.iter().filter(|der| known.add(der)).count();
    if let (1.., Some(file)) = (added, file)
        && let Err(error) = crate::source::write_private(file, &known.bytes())
    {
        tracing::warn!(path = %file.display(), %error, "the peers' certificates are not kept");
    }
    Ok(())
}

#[cfg(test)]
mod tests;
