//! Carrying a plan out: what charon and the kernel are told.

use std::cell::RefCell;
use std::sync::Arc;

use futures_util::future::join_all;

use super::credentials::Material;
use super::initiate::{self, Initiator};
use super::messages;
use super::plan::Doomed;
use super::vici;
use super::{Error, Plan, Tunnels, anchors, credentials, leftovers, peers};
use crate::desired::tunnels::{Connection, Connections};
use crate::subsystem::Outcome;

/// How many connections charon is given in one message: each costs it more for the message than for the connection, and a
/// message has at most 512 KiB.
const BATCH: usize = 32;

/// Over so many connections at most charon is given connections at a time: it takes what comes over one of them one by one.
const LANES: usize = 4;

async fn ask<Q: serde::Serialize>(
    vici: &mut Option<vici::Connection>,
    command: &'static str,
    request: &Q,
) -> Result<(), Error> {
    let vici = vici.as_mut().filter(|vici| vici.usable()).ok_or(Error::Gone)?;
    Ok(vici.command(command, request).await?)
}

type Named<'a> = (&'a String, &'a Arc<Connection>);

/// Gives charon connections.
async fn load<'a>(
    vici: &mut Option<vici::Connection>,
    batch: &[Named<'a>],
) -> Vec<(Named<'a>, Result<(), Error>)> {
    let request = |some: &[Named<'a>]| messages::load_conn(some.iter().copied());
    if batch.len() > 1 && ask(vici, "load-conn", &request(batch)).await.is_ok() {
        return batch.iter().map(|one| (*one, Ok(()))).collect();
    }
    // Which of them is refused is told only of one alone.
    let mut results = Vec::with_capacity(batch.len());
    for one in batch {
        results.push((*one, ask(vici, "load-conn", &request(&[*one])).await));
    }
    results
}

impl Tunnels {
    async fn command<Q: serde::Serialize>(
        &mut self,
        command: &'static str,
        request: &Q,
    ) -> Result<(), Error> {
        ask(&mut self.vici, command, request).await
    }

    async fn load_connections(&mut self, connections: &Connections) -> Vec<Outcome> {
        let connections: Vec<Named> = connections.iter().collect();
        let batches = connections.chunks(BATCH);
        let most = std::thread::available_parallelism()
            .map_or(1, usize::from)
            .min(LANES);
        let mut lanes = vec![self.vici.take()];
        while lanes.len() < most.min(batches.len()) {
            match vici::Connection::open(&self.options.socket).await {
                Ok(lane) => lanes.push(Some(lane)),
                // It goes on over those that there are.
                Err(_) => break,
            }
        }
        let queue = RefCell::new(batches);
        let next = || queue.borrow_mut().next();
        let each = lanes.iter_mut().map(async |lane| {
            let mut results = Vec::new();
            while let Some(batch) = next() {
                results.extend(load(lane, batch).await);
            }
            results
        });
        let results = join_all(each).await;
        self.vici = lanes.swap_remove(0);
        let each = results.into_iter().flatten();
        each.map(|((name, connection), result)| {
            if result.is_ok() {
                self.loaded.insert(name.clone(), Arc::clone(connection));
            }
            Outcome::new("load", format_args!("connection {name}"), result)
        })
        .collect()
    }

    /// Closes an SA. One that the peer closed meanwhile is as wanted.
    async fn terminate<Q: serde::Serialize>(&mut self, request: &Q) -> Result<(), Error> {
        match self.command("terminate", request).await {
            Err(Error::Vici(vici::Error::Refused { reason, .. })) if reason.contains("no matching SAs") => {
                Ok(())
            }
            result => result,
        }
    }

    async fn load_certificate(
        &mut self,
        kind: &'static str,
        flag: &'static str,
        der: &[u8],
    ) -> Result<(), Error> {
        let data = messages::Blob(der.to_vec());
        self.command("load-cert", &messages::LoadCert { kind, flag, data })
            .await
    }

    /// Gives charon the key; returns charon's name for it.
    async fn load_key(&mut self, material: &Material) -> Result<String, Error> {
        let vici = self
            .vici
            .as_mut()
            .filter(|vici| vici.usable())
            .ok_or(Error::Gone)?;
        let key = messages::LoadKey {
            kind: "any",
            data: messages::Blob(material.key.clone()),
        };
        let reply: messages::LoadedKey = vici.call("load-key", &key).await?;
        match (reply.success, reply.id) {
            (true, Some(id)) => Ok(id),
            (_, _) => {
                let reason = reply
                    .errmsg
                    .unwrap_or_else(|| "it gives the key no id".to_owned());
                Err(vici::Error::Refused {
                    command: "load-key",
                    reason,
                }
                .into())
            }
        }
    }

    async fn load_credentials(&mut self, material: &Material) -> Result<(), Error> {
        let id = self.load_key(material).await?;
        let previous = self
            .material
            .as_ref()
            .map(|old| old.key_id.clone())
            .filter(|old| *old != material.key_id);
        if id != material.key_id {
            // Only what was just loaded goes; with the key in use it is the certificate that is wrong.
            if self.material.as_ref().is_none_or(|old| old.key_id != id) {
                self.command("unload-key", &messages::UnloadKey { id: &id })
                    .await?;
            }
            return Err(credentials::Error::Mismatch {
                key: self.options.paths.key.clone(),
                certificate: self.options.paths.certificate.clone(),
            }
            .into());
        }
        let emptied = match (&self.material, &mut self.vici) {
            (Some(old), _) => !material.covers(old),
            // An earlier life of the agent may have had it trust others.
            (None, Some(vici)) => {
                let trusted = peers::certificates(vici, "CA").await?;
                trusted.iter().any(|der| !material.authorities.contains(der))
            }
            (None, None) => false,
        };
        if emptied {
            // There is no other way to take something from it. SAs need nothing of it.
            self.command("clear-creds", &vici::Empty {}).await?;
        }
        // Lists first, and after an emptying the key last: nobody proves himself to a node without one.
        let mut taken = material.clone();
        taken.lists.clear();
        let mut refused = None;
        for list in &material.lists {
            match self.load_certificate("X509_CRL", "NONE", &list.der).await {
                Ok(()) => taken.lists.push(list.clone()),
                Err(error) => refused = Some(error),
            }
        }
        for authority in &material.authorities {
            self.load_certificate("X509", "CA", authority).await?;
        }
        self.load_certificate("X509", "NONE", &material.certificate)
            .await?;
        if emptied {
            self.load_key(material).await?;
        }
        // With its key gone charon can only choose the new certificate. SAs do not need the key they were made with.
        if let Some(id) = previous.filter(|_| !emptied) {
            self.command("unload-key", &messages::UnloadKey { id: &id })
                .await?;
        }
        self.material = Some(taken);
        // A list is kept once nothing rests any more on what it revokes.
        if self.pending().is_empty() {
            self.keep_credentials();
        }
        refused.map_or(Ok(()), Err)
    }

    pub(super) async fn grow(&mut self, plan: &Plan) -> Vec<Outcome> {
        let mut outcomes = Vec::new();
        if plan.anchors != anchors::Plan::default() {
            match self.netlink() {
                Ok(netlink) => outcomes.extend(anchors::grow(&netlink, &plan.anchors).await),
                Err(error) => outcomes.push(Outcome::new("add", "anchors", Err(error))),
            }
        }
        if let Some(reason) = &plan.refused {
            outcomes.push(Outcome::new("load", "certificate", Err(reason.clone())));
        }
        for reason in &plan.flaws {
            outcomes.push(Outcome::new("load", "revocation list", Err(reason.clone())));
        }
        if let Some(material) = &plan.credentials {
            let result = self.load_credentials(material).await;
            outcomes.push(Outcome::new(
                "load",
                format_args!("certificate {}", material.subject),
                result,
            ));
        }
        if self.material.is_some() {
            outcomes.extend(self.load_connections(&plan.sas.load).await);
        }
        let targets: initiate::Targets = plan
            .sas
            .initiate
            .iter()
            .filter(|(name, _)| self.loaded.contains_key(*name))
            .map(|(name, connection)| (name.clone(), connection.clone()))
            .collect();
        if !plan.partial && (!targets.is_empty() || self.initiator.is_some()) {
            let socket = &self.options.socket;
            let initiator = self
                .initiator
                .get_or_insert_with(|| Initiator::new(socket.clone()));
            // Told once; how it goes is in the report, for a peer that is switched off is no fault of this node.
            for name in initiator.set(targets) {
                outcomes.push(Outcome::new(
                    "initiate",
                    format_args!("tunnel {name}"),
                    Ok::<_, Error>(()),
                ));
            }
        }
        outcomes
    }

    async fn terminate_ike(&mut self, ike: &Doomed) -> Outcome {
        let request = messages::TerminateIke {
            id: ike.id,
            force: true,
            timeout: -1,
        };
        let result = self.terminate(&request).await;
        Outcome::new(
            "terminate",
            format_args!("IKE_SA {} #{}", ike.name, ike.id),
            result,
        )
    }

    pub(super) async fn shrink(&mut self, plan: &Plan) -> Vec<Outcome> {
        let mut outcomes = Vec::new();
        for child in &plan.sas.terminate_children {
            let request = messages::TerminateChild {
                id: child.id,
                timeout: -1,
            };
            let result = self.terminate(&request).await;
            outcomes.push(Outcome::new(
                "terminate",
                format_args!("CHILD_SA {} #{}", child.name, child.id),
                result,
            ));
        }
        // First the connection, so that the peer cannot come straight back.
        for name in &plan.sas.unload {
            let result = self.command("unload-conn", &messages::UnloadConn { name }).await;
            if result.is_ok() {
                self.loaded.remove(name);
            }
            outcomes.push(Outcome::new("unload", format_args!("connection {name}"), result));
        }
        for ike in plan.sas.terminate_ikes.difference(&plan.barred) {
            outcomes.push(self.terminate_ike(ike).await);
        }
        let mut all = true;
        for ike in &plan.barred {
            tracing::warn!(
                connection = ike.name,
                "its certificate may be one that was revoked: it has to prove itself anew"
            );
            let outcome = self.terminate_ike(ike).await;
            all &= outcome.result.is_ok();
            outcomes.push(outcome);
        }
        // A list that came in this pass is looked at in the next one.
        if all && !plan.barred.is_empty() && plan.credentials.is_none() {
            let revoked = self.pending();
            self.enforce(revoked);
        }
        if let Some(id) = &plan.unload_key {
            let result = self.command("unload-key", &messages::UnloadKey { id }).await;
            self.material = None;
            outcomes.push(Outcome::new("unload", format_args!("key {id}"), result));
        }
        for policy in &plan.leftovers.policies {
            let object = format!("IPsec policy {} -> {}", policy.source, policy.destination);
            outcomes.push(Outcome::new("delete", object, leftovers::delete_policy(policy)));
        }
        for state in &plan.leftovers.states {
            let object = format!("IPsec state {:#x} to {}", state.spi, state.destination);
            outcomes.push(Outcome::new("delete", object, leftovers::delete_state(state)));
        }
        if plan.anchors != anchors::Plan::default() {
            match self.netlink() {
                Ok(netlink) => outcomes.extend(anchors::shrink(&netlink, &plan.anchors).await),
                Err(error) => outcomes.push(Outcome::new("delete", "anchors", Err(error))),
            }
        }
        outcomes
    }
}
