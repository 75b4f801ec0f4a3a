//! Whom this node trusts: what the files say now, and what of it is not enforced yet.

use std::collections::BTreeSet;
use std::time::SystemTime;

use super::credentials::{self, Files, Material, Origin};
use super::plan::{Actual, Doomed};
use super::revocations::{List, Revoked};
use super::{Tunnels, chain, vici};
use crate::desired::tunnels as desired;

impl Tunnels {
    /// Key and certificates as the files have them now, if they are fit for use, and what is wrong with the revocation
    /// lists.
    pub(super) fn read_credentials(
        &mut self,
        id: &str,
    ) -> Result<(Material, Vec<String>), credentials::Error> {
        let paths = &self.options.paths;
        let now = SystemTime::now();
        let (files, origin) = Files::read_or_kept(paths, self.options.copies.as_ref())?;
        if files.key_exposed && !self.warned {
            tracing::warn!(path = %paths.key.display(), "others can read the private key: set its mode to 0600");
        }
        self.warned = files.key_exposed;
        let mut material = files.check(paths, id, now)?;
        let (lists, errors) = files.lists(paths, &material.authorities, now);
        material.lists = lists;
        if !errors.is_empty() {
            let older = self.material.iter().flat_map(|old| &old.lists);
            let missed: Vec<List> = older
                .filter(|old| {
                    old.is_of(&material.authorities)
                        && !material.lists.iter().any(|new| new.of_same_authority(old))
                })
                .cloned()
                .collect();
            material.lists.extend(missed);
        }
        self.fresh = (origin == Origin::Mounted).then_some(files);
        Ok((material, errors.iter().map(|error| chain(error)).collect()))
    }

    /// What charon knows to be revoked while SAs may still rest on it.
    pub(super) fn pending(&mut self) -> BTreeSet<Revoked> {
        let Some(material) = &self.material else {
            return BTreeSet::new();
        };
        let mut pending: BTreeSet<Revoked> = material.lists.iter().flat_map(List::revoked).collect();
        if pending.is_empty() {
            return pending;
        }
        // The agent's earlier life kept its list once that was done.
        let enforced = self.enforced.get_or_insert_with(|| {
            let kept = self.options.copies.as_ref().and_then(|copies| {
                let files = Files::read(copies).ok()?;
                Some(files.revoked(copies, SystemTime::now()))
            });
            kept.unwrap_or_default()
        });
        pending.retain(|revoked| !enforced.contains(revoked));
        pending
    }

    /// No SA rests on `revoked` any more.
    pub(super) fn enforce(&mut self, revoked: BTreeSet<Revoked>) {
        self.enforced.get_or_insert_default().extend(revoked);
        self.keep_credentials();
    }

    /// IKE_SAs that may rest on what was revoked lately. Those that come now are judged by charon.
    pub(super) async fn barred(
        &mut self,
        desired: &desired::Tunnels,
        actual: &Actual,
    ) -> Result<BTreeSet<Doomed>, vici::Error> {
        let pending = self.pending();
        let (Some(peers), Some(vici), Some(material)) = (&self.peers, &mut self.vici, &self.material) else {
            return Ok(BTreeSet::new());
        };
        if pending.is_empty() {
            return Ok(BTreeSet::new());
        }
        let known = peers.known(vici).await?;
        let barred = known.barred(
            &desired.connections,
            &actual.ikes,
            &pending,
            &material.authorities,
        );
        if barred.is_empty() {
            self.enforce(pending);
        }
        Ok(barred)
    }

    /// Keeps copies of what charon has just taken.
    pub(super) fn keep_credentials(&mut self) {
        if let (Some(files), Some(copies)) = (self.fresh.take(), &self.options.copies)
            && let Err(error) = files.keep(copies)
        {
            tracing::warn!(
                path = %copies.key.display(),
                %error,
                "key and certificates are not kept: this node cannot start without the cloud"
            );
        }
    }
}
