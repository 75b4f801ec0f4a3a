//! Helm's engine, for tests: a Python package that carries it, in a virtual environment of its own.

use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context, Result};

use super::apt;
use crate::places::{Places, fill_once};
use crate::progress::{Log, step};

/// Helm 4, as its authors' Go library; there is no Helm among Debian's packages.
const PACKAGE: &str = "helm-python-sdk==0.2.2";
const DEBIAN_PACKAGES: &[&str] = &["python3", "python3-venv"];

/// Makes the environment when it is not there, and returns its Python.
pub fn ensure(places: &Places) -> Result<PathBuf> {
    let done = places.cache.join(PACKAGE.replace("==", "-").replace('.', "_"));
    let python = done.join("bin/python3");
    if done.exists() {
        return Ok(python);
    }
    let _lock = places.lock()?;
    let log = Log::at(places.log("setup"))?;
    apt::install(DEBIAN_PACKAGES, &log)?;
    step(&format!("fetching {PACKAGE}"), || {
        fill_once(&done, |part| {
            // Debian's, whichever else the search path has. Nothing in it depends on its own place but the programs
            // in bin, of which only python3 is used, a link.
            log.run(Command::new("/usr/bin/python3").args(["-m", "venv"]).arg(part))?;
            let mut install = Command::new(part.join("bin/python3"));
            install.args(["-m", "pip", "install", "--quiet", "--disable-pip-version-check"]);
            log.run(install.args(["--only-binary", ":all:", PACKAGE]))
        })
    })
    .with_context(|| format!("{PACKAGE} could not be installed"))?;
    Ok(python)
}
