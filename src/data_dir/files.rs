//! Files and folders of rdev's own: private whatever the umask, and whole after a crash.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::Path;

/// Makes a folder, or gives an existing one this mode.
pub(crate) fn ensure_folder(folder: &Path, mode: u32) -> Result<(), String> {
    let folder_there = match DirBuilder::new().mode(mode).create(folder) {
        Err(e) if e.kind() == io::ErrorKind::AlreadyExists => fs::metadata(folder)
            .and_then(|found| if found.is_dir() { Ok(found) } else { Err(io::ErrorKind::NotADirectory.into()) }),
        Err(e) => Err(e),
        Ok(()) => fs::metadata(folder),
    };
    // The umask may have taken bits away, an earlier run may have had another user.
    folder_there
        .and_then(|found| {
            if found.mode() & 0o777 == mode {
                return Ok(());
            }
            fs::set_permissions(folder, fs::Permissions::from_mode(mode))
        })
        .map_err(|e| fault("make the folder", folder, &e))
}

/// Writes a 0600 file that is, at any instant and after a crash, either absent (or as before) or whole. Two writers of
/// one file must exclude each other.
pub(crate) fn write_private(file: &Path, content: &[u8]) -> io::Result<()> {
    let draft = file.with_added_extension("new");
    match fs::remove_file(&draft) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
        _ => {}
    }
    let mut out = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&draft)?;
    out.write_all(content)?;
    out.sync_all()?;
    fs::rename(&draft, file)?;
    file.parent().map_or(Ok(()), sync_folder)
}

pub(crate) fn sync_folder(folder: &Path) -> io::Result<()> {
    File::open(folder)?.sync_all()
}

pub(crate) fn fault(what: &str, path: &Path, why: &dyn std::fmt::Display) -> String {
    format!("cannot {what} {}: {why}", path.display())
}
