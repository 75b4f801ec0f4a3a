//! Python packages that tests need, each in a virtual environment of its own.

use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context, Result};

use super::apt;
use crate::places::{Places, fill_once};
use crate::progress::{Log, step};

const DEBIAN_PACKAGES: &[&str] = &["python3", "python3-venv"];

/// Makes the environment of a package (`name==version`) when it is not there, and returns its folder. `options` are
/// pip's.
pub fn ensure(places: &Places, package: &str, options: &[&str]) -> Result<PathBuf> {
    let done = places.cache.join(package.replace("==", "-").replace('.', "_"));
    if done.exists() {
        return Ok(done);
    }
    let _lock = places.lock()?;
    let log = Log::at(places.log("setup"))?;
    apt::install(DEBIAN_PACKAGES, &log)?;
    step(&format!("fetching {package}"), || {
        fill_once(&done, |part| {
            // Debian's, whichever else the search path has. Nothing in it depends on its own place but the programs
            // in bin, of which only python3 is used, a link.
            log.run(Command::new("/usr/bin/python3").args(["-m", "venv"]).arg(part))?;
            let mut install = Command::new(part.join("bin/python3"));
            install.args(["-m", "pip", "install", "--quiet", "--disable-pip-version-check"]);
            log.run(install.args(options).args(["--only-binary", ":all:", package]))
        })
    })
    .with_context(|| format!("{package} could not be installed"))?;
    Ok(done)
}
