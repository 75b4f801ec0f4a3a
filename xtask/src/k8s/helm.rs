//! A program `helm` for tests, which Helm's engine is behind; there is no binary of Helm to be had from Debian.

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use crate::places::Places;
use crate::setup;

const PROGRAM: &str = include_str!("helm.py");

/// Lays the program into a folder, which belongs on the PATH, and returns its path.
///
/// # Errors
/// When Helm's engine cannot be installed, or the folder cannot be written.
pub fn lay(places: &Places, folder: &Path) -> Result<PathBuf> {
    let python = setup::helm::ensure(places)?;
    std::fs::create_dir_all(folder).with_context(|| format!("creating {}", folder.display()))?;
    let (helm, program) = (folder.join("helm"), folder.join("helm.py"));
    // Not by a first line of its own: the kernel takes no blanks in there.
    let text = format!(
        "#!/bin/sh\nexec {} {} \"$@\"\n",
        quoted(&python),
        quoted(&program)
    );
    for (path, text) in [(&program, PROGRAM), (&helm, text.as_str())] {
        std::fs::write(path, text).with_context(|| format!("writing {}", path.display()))?;
    }
    std::fs::set_permissions(&helm, std::fs::Permissions::from_mode(0o755))
        .with_context(|| format!("making {} executable", helm.display()))?;
    Ok(helm)
}

/// A path as a word of a shell.
pub fn quoted(path: &Path) -> String {
    format!("'{}'", path.to_string_lossy().replace('\'', r"'\''"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_shell_takes_a_quoted_path_as_one_word() {
        let path = Path::new("/a b/it's $HOME");
        let said = std::process::Command::new("sh")
            .args(["-c", &format!("printf '<%s>' {}", quoted(path))])
            .output()
            .unwrap();
        assert_eq!(String::from_utf8(said.stdout).unwrap(), "</a b/it's $HOME>");
    }
}
