//! Files that are whole at every moment.

use std::fs::{DirBuilder, Permissions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::Path;

use tempfile::NamedTempFile;

/// Replaces a file in one step: a reader sees the old content or the new, and the mode from the first moment on.
/// Not synced to disk: after a crash the next pass writes it again.
///
/// # Errors
/// When the folder is missing or not writable, or the disk is full.
pub fn replace(path: &Path, content: &[u8], mode: u32) -> io::Result<()> {
    write(path, content, mode, false)
}

/// The same for what cannot be made again.
///
/// # Errors
/// As [`replace`].
pub fn replace_synced(path: &Path, content: &[u8], mode: u32) -> io::Result<()> {
    write(path, content, mode, true)
}

fn write(path: &Path, content: &[u8], mode: u32, sync: bool) -> io::Result<()> {
    let folder = path.parent().unwrap_or(Path::new("."));
    let mut file = NamedTempFile::with_prefix_in(".", folder)?;
    file.write_all(content)?;
    // The library creates it as 0600; widening before the rename never shows a key to others.
    file.as_file().set_permissions(Permissions::from_mode(mode))?;
    if sync {
        file.as_file().sync_all()?;
    }
    file.persist(path)?;
    if sync {
        std::fs::File::open(folder)?.sync_all()?;
    }
    Ok(())
}

/// Makes a folder and its parents.
///
/// # Errors
/// When one cannot be made.
pub fn create_folder(path: &Path, mode: u32) -> io::Result<()> {
    DirBuilder::new().recursive(true).mode(mode).create(path)
}
