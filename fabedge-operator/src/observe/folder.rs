//! Reads a folder of manifests. The only file of `observe` that does I/O.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::{fs, io};

/// The folder itself could not be listed: nothing is known about its files.
#[derive(Debug, thiserror::Error)]
#[error("listing the manifests in {}", path.display())]
pub struct Error {
    path: PathBuf,
    source: io::Error,
}

/// Every manifest file of a folder by name: its text, or why it could not be read.
pub type Files = BTreeMap<String, Result<String, String>>;

/// Reads every `*.yaml` and `*.yml` directly in `path`, hidden files left out.
///
/// # Errors
/// When the folder cannot be listed. A single unreadable file is a value of the map.
pub fn read(path: &Path) -> Result<Files, Error> {
    let failed = |source| Error {
        path: path.to_owned(),
        source,
    };
    let mut files = Files::new();
    for entry in fs::read_dir(path).map_err(failed)? {
        let file = entry.map_err(failed)?.path();
        let name = file.file_name().map(OsStr::to_string_lossy).unwrap_or_default();
        let manifest = file.extension().is_some_and(|ext| ext == "yaml" || ext == "yml");
        if !manifest || name.starts_with('.') {
            continue;
        }
        // Follows links, as mounted ConfigMaps are links; a pipe named like a manifest must not block us.
        match fs::metadata(&file) {
            Ok(metadata) if !metadata.is_file() => continue,
            // Gone since the listing.
            Err(e) if e.kind() == io::ErrorKind::NotFound && !file.is_symlink() => continue,
            _ => {}
        }
        files.insert(
            name.into_owned(),
            fs::read_to_string(&file).map_err(|e| e.to_string()),
        );
    }
    Ok(files)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn takes_manifests_and_nothing_else() {
        let dir = tempfile::tempdir().unwrap();
        for name in ["a.yaml", "b.yml", ".hidden.yaml", "README.md", "c.yaml~"] {
            fs::write(dir.path().join(name), name).unwrap();
        }
        fs::create_dir(dir.path().join("folder.yaml")).unwrap();
        fs::write(dir.path().join("binary.yaml"), [0xff, 0xfe, 0x00]).unwrap();
        std::os::unix::fs::symlink("a.yaml", dir.path().join("link.yaml")).unwrap();
        std::os::unix::fs::symlink("nowhere", dir.path().join("dangling.yaml")).unwrap();

        let files = read(dir.path()).unwrap();
        assert_eq!(
            files.keys().collect::<Vec<_>>(),
            ["a.yaml", "b.yml", "binary.yaml", "dangling.yaml", "link.yaml"]
        );
        assert_eq!(files["link.yaml"].as_deref(), Ok("a.yaml"));
        assert!(files["binary.yaml"].is_err() && files["dangling.yaml"].is_err());
    }

    #[test]
    fn a_folder_that_is_not_there_is_an_error_and_not_empty() {
        let error = read(Path::new("/nonexistent/folder")).unwrap_err();
        assert!(error.to_string().contains("/nonexistent/folder"));
    }
}
