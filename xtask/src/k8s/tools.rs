//! Programs for users' PATH, which reach the API server wherever it is.

use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use anyhow::{Context, Result};

use super::helm::{self, quoted};
use super::nodes::layout::HUB;
use super::state::State;
use crate::places::Places;

/// Fills the folder with `kubectl` and `helm`.
pub fn lay(places: &Places, state: &State, folder: &Path) -> Result<()> {
    let helm = helm::lay(places, &folder.join("real"))?;
    program(state, folder, "kubectl", &state.kubectl)?;
    program(state, folder, "helm", &helm)
}

/// A program that becomes another one in the network of the API server.
fn program(state: &State, folder: &Path, name: &str, real: &Path) -> Result<()> {
    let enter = if state.ground.is_there() {
        format!(
            "nsenter --net={} ",
            quoted(&state.ground.network(state.ground.layout()?, HUB))
        )
    } else {
        String::new()
    };
    let text = format!("#!/bin/sh\nexec {enter}{} \"$@\"\n", quoted(real));
    let path = folder.join(name);
    std::fs::write(&path, text)
        .and_then(|()| std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)))
        .with_context(|| format!("writing {}", path.display()))
}
