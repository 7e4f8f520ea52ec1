//! Objects of a cluster, in words that need no cluster: what they are called, whose they are,
//! and which labels say so. What is done with them is in `kube/objects.rs`.

use std::collections::BTreeMap;

use crate::error::{Error, Result};

pub use super::kube::{Exposed, Fares, Objects};

/// On everything that this program makes.
pub const MANAGED_BY: &str = "app.kubernetes.io/managed-by";
pub const OURS: &str = "rdev";
/// Whose it is.
pub const PROJECT_ID: &str = "rdev.orchard9.ai/project-id";
pub const SESSION_ID: &str = "rdev.orchard9.ai/session-id";

/// One object, as it was when it was looked at.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Object {
    pub kind: String,
    pub api_version: String,
    pub name: String,
    pub uid: String,
    /// From its labels.
    pub project: Option<String>,
    pub session: Option<String>,
    /// Its label says that it is ours.
    pub managed: bool,
    /// It is being removed.
    pub going: bool,
    /// Another object made it, and takes it along.
    pub owned: bool,
}

/// What was found, and what could not be looked at.
#[derive(Debug, Default)]
pub struct Listing {
    /// In the order of kind and name.
    pub objects: Vec<Object>,
    /// One for each kind that could not be listed.
    pub errors: Vec<Error>,
}

impl Listing {
    /// All of it, or what was in the way.
    ///
    /// # Errors
    /// The first of them.
    pub fn whole(self) -> Result<Vec<Object>> {
        self.errors.into_iter().next().map_or(Ok(self.objects), Err)
    }
}

/// What became of an object that was to go. In each case the one that was meant is no more, or is on its way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Removal {
    Removed,
    /// It was gone before.
    Gone,
    /// Another object has its name by now; that one stays.
    Replaced,
}

/// The labels of what is made for a project, or for a session of it.
pub fn labels(project: &str, session: Option<&str>) -> BTreeMap<String, String> {
    [(MANAGED_BY, Some(OURS)), (PROJECT_ID, Some(project)), (SESSION_ID, session)]
        .into_iter()
        .filter_map(|(name, value)| Some((name.to_owned(), value?.to_owned())))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sessions_labels_are_its_projects_and_its_own() {
        let names: Vec<_> = labels("p", Some("s")).into_keys().collect();
        assert_eq!(names, [MANAGED_BY, PROJECT_ID, SESSION_ID]);
        assert_eq!(labels("p", None).len(), 2);
    }
}
