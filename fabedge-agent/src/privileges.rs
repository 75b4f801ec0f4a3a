//! What the agent must be allowed to do (capabilities(7)), asked before anything is touched.

use rustix::thread::{CapabilitySet, capabilities};

/// Why the agent cannot do its work.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// It does not run as root.
    #[error("the agent changes links, routes, nftables and eBPF maps of this node: run it as root")]
    NotRoot,
    /// Root, but without the capability that everything needs.
    #[error(
        "the agent lacks CAP_NET_ADMIN, without which it can change neither links nor routes nor nftables: run its \
         container privileged, or add NET_ADMIN (and for the fast path SYS_ADMIN) to securityContext.capabilities.add"
    )]
    NoNetAdmin,
    /// The kernel does not tell.
    #[error("asking for this process's capabilities")]
    Unknown(#[from] rustix::io::Errno),
}

/// Checks this process. Without what the fast path needs besides, the slow path carries everything: that is reported
/// when the programs are loaded.
///
/// # Errors
/// When it lacks what nothing works without.
pub fn check() -> Result<(), Error> {
    if !rustix::process::geteuid().is_root() {
        return Err(Error::NotRoot);
    }
    suffice(capabilities(None)?.effective)
}

fn suffice(effective: CapabilitySet) -> Result<(), Error> {
    if effective.contains(CapabilitySet::NET_ADMIN) {
        Ok(())
    } else {
        Err(Error::NoNetAdmin)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_message_names_the_capability_and_the_mend() {
        assert!(suffice(CapabilitySet::all()).is_ok());
        let error = suffice(CapabilitySet::all() - CapabilitySet::NET_ADMIN)
            .unwrap_err()
            .to_string();
        assert!(
            error.contains("CAP_NET_ADMIN") && error.contains("securityContext"),
            "{error}"
        );
    }
}
