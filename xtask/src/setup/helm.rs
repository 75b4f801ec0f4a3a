//! Helm's engine, for tests: a Python package that carries it.

use std::path::PathBuf;

use anyhow::Result;

use super::python;
use crate::places::Places;

/// Helm 4, as its authors' Go library; there is no Helm among Debian's packages.
const PACKAGE: &str = "helm-python-sdk==0.2.2";

/// Makes the environment when it is not there, and returns its Python.
pub fn ensure(places: &Places) -> Result<PathBuf> {
    Ok(python::ensure(places, PACKAGE, &[])?.join("bin/python3"))
}
