//! A checkout: a branch and a git credential that lives as long.

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;
use uuid::Uuid;

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, sqlx::Type, ToSchema)]
#[sqlx(type_name = "text", rename_all = "snake_case")]
#[serde(rename_all = "snake_case")]
pub enum CheckoutStatus {
    /// In the making; shown to nobody.
    #[serde(skip_deserializing)]
    Pending,
    Active,
    CheckedIn,
    Expired,
    Revoked,
}

#[derive(Debug, Clone, sqlx::FromRow)]
pub struct Checkout {
    pub id: Uuid,
    pub project_id: String,
    pub session_id: Option<Uuid>,
    pub branch: String,
    pub made_branch: bool,
    pub start_sha: String,
    pub feature_slug: Option<String>,
    pub checked_out_by: Uuid,
    pub checked_out_at: DateTime<Utc>,
    pub expires_at: DateTime<Utc>,
    pub ended_at: Option<DateTime<Utc>>,
    pub status: CheckoutStatus,
    pub review_task_id: Option<String>,
}
