//! What a key may do. A route names one or more scopes, any one of which suffices;
//! `admin` suffices everywhere. To which projects a key is bound is not a scope.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
pub enum Scope {
    ProjectsRead,
    ProjectsExecute,
    SessionsRead,
    SessionsExecute,
    JobsRead,
    JobsExecute,
    Admin,
}

impl Scope {
    pub const ALL: [Self; 7] = [
        Self::ProjectsRead,
        Self::ProjectsExecute,
        Self::SessionsRead,
        Self::SessionsExecute,
        Self::JobsRead,
        Self::JobsExecute,
        Self::Admin,
    ];

    pub const fn name(self) -> &'static str {
        match self {
            Self::ProjectsRead => "projects:read",
            Self::ProjectsExecute => "projects:execute",
            Self::SessionsRead => "sessions:read",
            Self::SessionsExecute => "sessions:execute",
            Self::JobsRead => "jobs:read",
            Self::JobsExecute => "jobs:execute",
            Self::Admin => "admin",
        }
    }

    const fn bit(self) -> u8 {
        1 << self as u8
    }
}

/// The scopes of a key. On the wire an array of names, in the order of [`Scope::ALL`].
#[derive(Clone, Copy, PartialEq, Eq, Default, Hash)]
pub struct ScopeSet(u8);

impl ScopeSet {
    pub fn from_names<'a>(names: impl IntoIterator<Item = &'a str>) -> Result<Self, UnknownScope> {
        names.into_iter().map(str::parse::<Scope>).collect()
    }

    /// Whether the key may: it has one of these, or `admin`. So an empty slice asks for `admin`.
    pub fn any_of(self, scopes: &[Scope]) -> bool {
        self.contains(Scope::Admin) || scopes.iter().any(|scope| self.contains(*scope))
    }

    /// Whether this very scope is in the set; `admin` stands for itself alone here.
    pub const fn contains(self, scope: Scope) -> bool {
        self.0 & scope.bit() != 0
    }

    pub const fn is_empty(self) -> bool {
        self.0 == 0
    }

    pub fn iter(self) -> impl Iterator<Item = Scope> {
        Scope::ALL.into_iter().filter(move |scope| self.contains(*scope))
    }

    pub fn names(self) -> Vec<&'static str> {
        self.iter().map(Scope::name).collect()
    }
}

/// Names the text that is no scope, and lists what would be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UnknownScope(pub String);

impl fmt::Display for UnknownScope {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let known = Scope::ALL.map(Scope::name).join(", ");
        write!(f, "unknown scope {:?}; the scopes are {known}", self.0)
    }
}

impl std::error::Error for UnknownScope {}

impl FromStr for Scope {
    type Err = UnknownScope;

    fn from_str(text: &str) -> Result<Self, UnknownScope> {
        Self::ALL.into_iter().find(|scope| scope.name() == text).ok_or_else(|| UnknownScope(text.to_owned()))
    }
}

impl fmt::Display for Scope {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl Serialize for Scope {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.name())
    }
}

impl<'de> Deserialize<'de> for Scope {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(de::Error::custom)
    }
}

impl FromIterator<Scope> for ScopeSet {
    fn from_iter<I: IntoIterator<Item = Scope>>(scopes: I) -> Self {
        Self(scopes.into_iter().fold(0, |bits, scope| bits | scope.bit()))
    }
}

impl fmt::Debug for ScopeSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.names()).finish()
    }
}

impl Serialize for ScopeSet {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_seq(self.iter())
    }
}

impl<'de> Deserialize<'de> for ScopeSet {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Ok(Vec::<Scope>::deserialize(deserializer)?.into_iter().collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn any_one_of_the_named_scopes_suffices() {
        let set = ScopeSet::from_iter([Scope::SessionsRead]);
        assert!(set.any_of(&[Scope::ProjectsRead, Scope::SessionsRead]));
        assert!(!set.any_of(&[Scope::ProjectsRead, Scope::SessionsExecute]));
        assert!(!set.any_of(&[]));
        assert!(!ScopeSet::default().any_of(&Scope::ALL));
    }

    #[test]
    fn admin_passes_everywhere() {
        let admin = ScopeSet::from_iter([Scope::Admin]);
        assert!(Scope::ALL.iter().all(|scope| admin.any_of(&[*scope])));
        assert!(admin.any_of(&[]));
        assert!(!admin.contains(Scope::JobsRead));
    }

    #[test]
    fn a_set_is_an_array_of_names() {
        let set: ScopeSet = serde_json::from_str(r#"["admin","jobs:read","jobs:read"]"#).unwrap();
        assert_eq!(set.names(), ["jobs:read", "admin"]);
        assert_eq!(serde_json::to_string(&set).unwrap(), r#"["jobs:read","admin"]"#);
        assert_eq!(format!("{set:?}"), r#"{"jobs:read", "admin"}"#);
        assert!(serde_json::from_str::<ScopeSet>("[]").unwrap().is_empty());
    }

    #[test]
    fn an_unknown_scope_is_named() {
        let error = serde_json::from_str::<ScopeSet>(r#"["admin","jobs:write"]"#).unwrap_err();
        assert!(error.to_string().starts_with(r#"unknown scope "jobs:write"; the scopes are projects:read, "#));
        assert_eq!(ScopeSet::from_names(["Admin"]), Err(UnknownScope("Admin".into())));
        assert!(ScopeSet::from_names(["admin", ""]).is_err());
    }

    #[test]
    fn every_name_reads_back() {
        for scope in Scope::ALL {
            assert_eq!(scope.to_string().parse(), Ok(scope));
            assert_eq!(ScopeSet::from_names([scope.name()]), Ok(ScopeSet::from_iter([scope])));
        }
    }
}
