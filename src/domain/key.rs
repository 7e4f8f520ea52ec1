//! An API key as it is known inside: never its secret.

use std::net::IpAddr;

use chrono::{DateTime, Utc};
use ipnet::IpNet;
use uuid::Uuid;

use super::scopes::{Scope, ScopeSet};

/// The id under which `RDEV_ADMIN_KEY` shows.
pub const BOOTSTRAP: Uuid = Uuid::nil();

#[derive(Debug, Clone, PartialEq)]
pub struct Key {
    pub id: Uuid,
    pub name: String,
    pub prefix: String,
    pub scopes: ScopeSet,
    pub project_ids: Option<Vec<String>>,
    pub allowed_cidrs: Option<Vec<IpNet>>,
    pub rate_limit: Option<u32>,
    pub created_at: DateTime<Utc>,
    pub expires_at: Option<DateTime<Utc>>,
    pub previous_expires_at: Option<DateTime<Utc>>,
    pub last_used_at: Option<DateTime<Utc>>,
    pub revoked_at: Option<DateTime<Utc>>,
}

impl Key {
    pub fn is_live(&self, now: DateTime<Utc>) -> bool {
        self.revoked_at.is_none() && self.expires_at.is_none_or(|end| now < end)
    }

    pub fn may_come_from(&self, address: Option<IpAddr>) -> bool {
        match (&self.allowed_cidrs, address) {
            (None, _) => true,
            (Some(cidrs), Some(address)) => cidrs.iter().any(|cidr| cidr.contains(&address.to_canonical())),
            (Some(_), None) => false,
        }
    }

    /// Whether the key's binding lets it see this project.
    pub fn sees(&self, project: &str) -> bool {
        self.project_ids.as_ref().is_none_or(|ids| ids.iter().any(|id| id == project))
    }

    pub fn is_bound(&self) -> bool {
        self.project_ids.is_some()
    }

    pub fn may(&self, any_of: &[Scope]) -> bool {
        self.scopes.any_of(any_of)
    }

    pub fn is_admin(&self) -> bool {
        self.may(&[])
    }

    /// An admin who is bound to no project: what the last of must not go.
    pub fn is_full_admin(&self) -> bool {
        self.is_admin() && !self.is_bound()
    }
}
