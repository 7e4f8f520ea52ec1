//! Where the big folders go: the data directory itself, or elsewhere when rdev is root and others cannot enter it.

use std::fs;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use nix::unistd::{Gid, Uid, User, geteuid};

use super::files::{ensure_folder, fault, sync_folder, write_private};
use super::short_hash;

const RELOCATED: &str = "/var/lib/rdev";
/// Whatever rdev itself puts into a data directory: one that holds nothing else is rdev's to open up.
const OWN_NAMES: [&str; 13] = [
    ".lock",
    "admin.key",
    "commands",
    "git",
    "homes",
    "place",
    "place.new",
    "postgres",
    "processes",
    "secret",
    "secret.new",
    "tmp",
    "workspaces",
];

/// The user that the embedded server runs as when rdev is root: `postgres`, else `nobody`.
#[must_use]
pub fn database_user() -> Option<User> {
    ["postgres", "nobody"].into_iter().find_map(|name| User::from_name(name).ok().flatten())
}

/// Whether this user may pass through every folder down to this canonical path, going by the mode bits.
#[must_use]
pub fn can_enter(path: &Path, uid: Uid, gid: Gid) -> bool {
    path.ancestors().all(|folder| {
        fs::metadata(folder).is_ok_and(|found| {
            let class = if found.uid() == uid.as_raw() {
                6
            } else if found.gid() == gid.as_raw() {
                3
            } else {
                0
            };
            found.mode() >> class & 1 == 1
        })
    })
}

/// Like `mkdir -p`, but private whatever the umask; as root passable, since other users may have to go through.
pub fn make_folders(path: &Path) -> Result<(), String> {
    if path.is_dir() {
        return Ok(());
    }
    if let Some(parent) = path.parent().filter(|parent| !parent.as_os_str().is_empty()) {
        make_folders(parent)?;
    }
    let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let open_above = parent.canonicalize().is_ok_and(|parent| open_to_all(&parent));
    ensure_folder(path, if geteuid().is_root() && open_above { 0o711 } else { 0o700 })
}

pub fn noted(path: &Path) -> Result<Option<PathBuf>, String> {
    let note = path.join("place");
    let place = match fs::read_to_string(&note) {
        Ok(text) => PathBuf::from(text.trim_end_matches('\n')),
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(e) => return Err(fault("read", &note, &e)),
    };
    // An empty folder in its stead would look like a loss of everything.
    if !place.is_absolute() || !place.is_dir() {
        return Err(format!(
            "{} says that database and workspaces lie in {}, which is no folder: bring it back, or remove the note to \
             begin with empty ones",
            note.display(),
            place.display()
        ));
    }
    Ok(Some(place))
}

pub fn choose(path: &Path) -> Result<PathBuf, String> {
    let open_above = path.parent().is_none_or(open_to_all);
    if open_above && !open_to_all(path) && holds_only_own(path) {
        ensure_folder(path, 0o711)?;
    }
    if open_to_all(path) { Ok(path.to_owned()) } else { relocate(path) }
}

fn relocate(path: &Path) -> Result<PathBuf, String> {
    let user = database_user().map_or_else(|| "any other user".to_owned(), |user| format!("the user {}", user.name));
    if path.join("postgres").exists() {
        return Err(format!(
            "{} holds a database, but {user} cannot enter it: start rdev as the user who made it, or give the folders \
             on the way to it the mode o+x",
            path.display()
        ));
    }
    let place = free_place(path).map_err(|why| {
        format!(
            "{user} cannot enter the data directory {}, and {why}. Name a data directory that other users can enter \
             (RDEV_DATA_DIR)",
            path.display()
        )
    })?;
    let note = path.join("place");
    let mut text = place.as_os_str().as_bytes().to_vec();
    text.push(b'\n');
    write_private(&note, &text).map_err(|e| fault("write", &note, &e))?;
    Ok(place)
}

/// `/var/lib/rdev/<hash>`; with `-2` and so on where a data directory that has since been removed, or moved with its
/// note, left things behind: those are not ours to take over.
fn free_place(path: &Path) -> Result<PathBuf, String> {
    let above = Path::new(RELOCATED);
    ensure_folder(above, 0o711)?;
    let hash = short_hash(path);
    let taken = |place: &Path| fs::read_dir(place).is_ok_and(|mut inside| inside.next().is_some());
    let place = (1..=u32::MAX)
        .map(|turn| above.join(if turn == 1 { hash.clone() } else { format!("{hash}-{turn}") }))
        .find(|place| !taken(place))
        .expect("there are more numbers than folders");
    ensure_folder(&place, 0o711)?;
    sync_folder(above).map_err(|e| fault("write", above, &e))?;
    if open_to_all(&place) { Ok(place) } else { Err(format!("neither can it enter {}", place.display())) }
}

fn open_to_all(path: &Path) -> bool {
    // Nobody's own: what counts for such a user are the bits for all others.
    let stranger = can_enter(path, Uid::from_raw(u32::MAX - 1), Gid::from_raw(u32::MAX - 1));
    stranger && database_user().is_none_or(|user| can_enter(path, user.uid, user.gid))
}

fn holds_only_own(path: &Path) -> bool {
    fs::read_dir(path).is_ok_and(|entries| {
        entries.flatten().all(|entry| entry.file_name().to_str().is_some_and(|name| OWN_NAMES.contains(&name)))
    })
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn mode_bits_decide_by_class() {
        let folder = tempfile::tempdir().expect("temporary directory");
        let at = folder.path().canonicalize().expect("canonical");
        let found = fs::metadata(&at).expect("exists");
        fs::set_permissions(&at, fs::Permissions::from_mode(0o701)).expect("chmod");
        let (own, group) = (Uid::from_raw(found.uid()), Gid::from_raw(found.gid()));
        let (stranger, strangers) = (Uid::from_raw(64_001), Gid::from_raw(64_001));
        assert!(can_enter(&at, own, group));
        assert!(can_enter(&at, stranger, strangers));
        assert!(!can_enter(&at, stranger, group), "a member of the group is not one of the others");
    }
}
