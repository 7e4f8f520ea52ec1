//! A project: a git repository plus a place where its commands run.

use std::collections::BTreeMap;

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use sqlx::types::Json;
use utoipa::ToSchema;

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, sqlx::Type, ToSchema)]
#[sqlx(type_name = "text", rename_all = "snake_case")]
#[serde(rename_all = "snake_case")]
pub enum ProjectStatus {
    Running,
    Pending,
    Failed,
    NotFound,
}

#[derive(Debug, Clone, sqlx::FromRow)]
pub struct Project {
    pub seq: i64,
    pub id: String,
    pub name: String,
    pub description: String,
    pub status: ProjectStatus,
    pub pod_name: String,
    pub workspace: String,
    pub default_branch: String,
    pub labels: Json<BTreeMap<String, String>>,
    pub allow_scripts: bool,
    pub protected_branches: Vec<String>,
    pub preview_port: Option<i32>,
    pub review_command: Option<Vec<String>>,
    pub agent_command: Option<Vec<String>>,
    pub source: String,
    pub address: String,
    /// What its place on a cluster is made of, where that is ours.
    pub image: Option<String>,
    pub created_at: DateTime<Utc>,
    pub updated_at: DateTime<Utc>,
}

/// Whether this may be the name of an image; whether there is one, the cluster knows.
pub fn is_image(text: &str) -> bool {
    let is_sound = |c: char| c.is_ascii_alphanumeric() || "._-/:@".contains(c);
    (1..=512).contains(&text.len())
        && text.chars().all(is_sound)
        && text.starts_with(|c: char| c.is_ascii_alphanumeric())
}

/// A project's place, as the project's row tells of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Placed {
    pub status: ProjectStatus,
    pub pod: String,
    pub workspace: String,
    /// The URL of this server that the workspace was configured with; empty where there is none yet.
    pub address: String,
}

/// What an owner may set; at creation and later.
#[derive(Debug, Clone, Default)]
pub struct ProjectSettings {
    pub name: Option<String>,
    pub description: Option<String>,
    pub labels: Option<BTreeMap<String, String>>,
    pub allow_scripts: Option<bool>,
    pub protected_branches: Option<Vec<String>>,
    pub preview_port: Option<i32>,
    pub review_command: Option<Vec<String>>,
    pub agent_command: Option<Vec<String>>,
    /// What its place on a cluster is to be made of.
    pub image: Option<String>,
    /// Names of those to have no value any more.
    pub unset: Vec<&'static str>,
}
