//! Carrying a plan out: what charon and the kernel are told.

use super::credentials::Material;
use super::initiate::{self, Initiator};
use super::messages;
use super::vici;
use super::{Error, Plan, Tunnels, anchors, credentials, leftovers};
use crate::subsystem::Outcome;

impl Tunnels {
    async fn command<Q: serde::Serialize>(
        &mut self,
        command: &'static str,
        request: &Q,
    ) -> Result<(), Error> {
        let vici = self
            .vici
            .as_mut()
            .filter(|vici| vici.usable())
            .ok_or(Error::Gone)?;
        Ok(vici.command(command, request).await?)
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

    async fn load_credentials(&mut self, material: &Material) -> Result<(), Error> {
        let blob = |data: &[u8]| messages::Blob(data.to_vec());
        for authority in &material.authorities {
            self.command(
                "load-cert",
                &messages::LoadCert {
                    kind: "X509",
                    flag: "CA",
                    data: blob(authority),
                },
            )
            .await?;
        }
        let vici = self
            .vici
            .as_mut()
            .filter(|vici| vici.usable())
            .ok_or(Error::Gone)?;
        let key = messages::LoadKey {
            kind: "any",
            data: blob(&material.key),
        };
        let reply: messages::LoadedKey = vici.call("load-key", &key).await?;
        let id = match (reply.success, reply.id) {
            (true, Some(id)) => id,
            (_, _) => {
                let reason = reply
                    .errmsg
                    .unwrap_or_else(|| "it gives the key no id".to_owned());
                return Err(vici::Error::Refused {
                    command: "load-key",
                    reason,
                }
                .into());
            }
        };
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
        self.command(
            "load-cert",
            &messages::LoadCert {
                kind: "X509",
                flag: "NONE",
                data: blob(&material.certificate),
            },
        )
        .await?;
        // With its key gone charon can only choose the new certificate. SAs do not need the key they were made with.
        if let Some(id) = previous {
            self.command("unload-key", &messages::UnloadKey { id: &id })
                .await?;
        }
        if self
            .material
            .as_ref()
            .is_none_or(|old| old.authorities != material.authorities)
        {
            self.loaded.clear();
        }
        self.material = Some(material.clone());
        self.keep_credentials();
        Ok(())
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
        if let Some(material) = &plan.credentials {
            let result = self.load_credentials(material).await;
            outcomes.push(Outcome::new(
                "load",
                format_args!("certificate {}", material.subject),
                result,
            ));
        }
        if let Some(material) = &self.material {
            let authorities = material.authorities.clone();
            for (name, connection) in &plan.sas.load {
                let request = messages::load_conn(name, connection, &authorities);
                let result = self.command("load-conn", &request).await;
                if result.is_ok() {
                    self.loaded.insert(name.clone(), connection.clone());
                }
                outcomes.push(Outcome::new("load", format_args!("connection {name}"), result));
            }
        }
        let targets: initiate::Targets = plan
            .sas
            .initiate
            .iter()
            .filter(|(name, _)| self.loaded.contains_key(*name))
            .map(|(name, connection)| (name.clone(), connection.clone()))
            .collect();
        if !targets.is_empty() || self.initiator.is_some() {
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
        for ike in &plan.sas.terminate_ikes {
            let request = messages::TerminateIke {
                id: ike.id,
                force: true,
                timeout: -1,
            };
            let result = self.terminate(&request).await;
            outcomes.push(Outcome::new(
                "terminate",
                format_args!("IKE_SA {} #{}", ike.name, ike.id),
                result,
            ));
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
