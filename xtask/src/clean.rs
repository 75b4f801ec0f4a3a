//! `cargo xtask clean`: removes the one cache folder, after ending what runs from it.

use anyhow::{Context, Result};

use crate::places::Places;
use crate::{k8s, machine};

/// Removes all that setup and machines made; packages of the system stay installed.
pub fn clean(places: &Places) -> Result<()> {
    if !places.cache.exists() {
        eprintln!("nothing to remove: {} does not exist", places.cache.display());
        return Ok(());
    }
    let _lock = places.lock()?;
    machine::end_all(places)?;
    k8s::end(places)?;
    std::fs::remove_dir_all(&places.cache)
        .with_context(|| format!("removing the cache folder {}", places.cache.display()))?;
    eprintln!("removed {}", places.cache.display());
    Ok(())
}
