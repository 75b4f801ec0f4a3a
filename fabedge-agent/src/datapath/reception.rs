//! How ESP reaches this host: CPUs, receive queues, SAs.

use std::fs;
use std::path::Path;

use aya::util::online_cpus;

use crate::facts::{Facts, Reception, TunnelKind};
use crate::tunnels::leftovers;

/// Why that cannot be told.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The CPUs.
    #[error("reading {file}")]
    Cpus {
        /// Where they are listed.
        file: &'static str,
        /// Why it failed.
        source: std::io::Error,
    },
    /// The SAs.
    #[error(transparent)]
    Sas(#[from] leftovers::Error),
}

/// Looks at the host.
///
/// # Errors
/// When the kernel does not tell its CPUs or its SAs.
pub fn observe(facts: &Facts) -> Result<Reception, Error> {
    let cpus = online_cpus().map_err(|(file, source)| Error::Cpus { file, source })?;
    let sas = match facts.tunnel {
        TunnelKind::Xfrm => leftovers::states()?,
        TunnelKind::Libipsec => Default::default(),
    };
    let queues = facts
        .uplinks
        .iter()
        .map(|name| (name.clone(), receive_queues(name)));
    Ok(Reception {
        cpus: cpus.into_iter().collect(),
        queues: queues.collect(),
        sas: sas
            .into_iter()
            .map(|state| ((state.destination, state.spi), state.reqid))
            .collect(),
    })
}

/// Where sysfs is not there or shows another network, one is the answer that is right for most virtual machines.
fn receive_queues(device: &str) -> usize {
    let folder = Path::new("/sys/class/net").join(device).join("queues");
    let Ok(entries) = fs::read_dir(folder) else {
        return 1;
    };
    let receive = entries
        .flatten()
        .filter(|entry| entry.file_name().to_string_lossy().starts_with("rx-"));
    receive.count().max(1)
}
