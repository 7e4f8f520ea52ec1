//! A session: a checkout bound to the project's place to run.

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use sqlx::types::Json;
use utoipa::ToSchema;
use uuid::Uuid;

use super::{checkout::CheckoutStatus, review::Wish};

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, sqlx::Type, ToSchema)]
#[sqlx(type_name = "text", rename_all = "snake_case")]
#[serde(rename_all = "snake_case")]
pub enum SessionStatus {
    Provisioning,
    Active,
    Ending,
    Ended,
    Expired,
    Terminated,
    Failed,
    Lost,
}

#[derive(Debug, Clone, sqlx::FromRow)]
pub struct Session {
    pub id: Uuid,
    pub project_id: String,
    pub checkout_id: Uuid,
    pub branch: String,
    pub pod_name: String,
    pub workspace: String,
    pub preview_url: String,
    pub preview_port: i32,
    pub status: SessionStatus,
    pub created_by: Uuid,
    pub created_at: DateTime<Utc>,
    pub expires_at: DateTime<Utc>,
    pub ended_at: Option<DateTime<Utc>>,
    pub idle_ms: Option<i64>,
    pub last_activity_at: DateTime<Utc>,
    pub end_reason: Option<String>,
    pub end_plan: Option<Json<EndPlan>>,
    pub rescue: Option<Json<Rescue>>,
    /// What its checkin has queued.
    pub review_task_id: Option<String>,
}

/// What becomes of work that is not in the branch when a session ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum OnDirty {
    /// It is pushed to `rdev/rescue/<session>`.
    #[default]
    Rescue,
    Discard,
    /// The session stays.
    Fail,
}

/// Why a session ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum EndReason {
    Checkin,
    Expired,
    Idle,
    Terminated,
    ProvisioningFailed,
    PodLost,
}

impl EndReason {
    pub fn text(self) -> &'static str {
        match self {
            Self::Checkin => "checkin",
            Self::Expired => "expired",
            Self::Idle => "idle",
            Self::Terminated => "terminated",
            Self::ProvisioningFailed => "provisioning_failed",
            Self::PodLost => "pod_lost",
        }
    }

    /// The state that a session ends in for this reason, its checkout's beside it.
    pub fn outcome(self) -> (SessionStatus, CheckoutStatus) {
        match self {
            Self::Checkin => (SessionStatus::Ended, CheckoutStatus::CheckedIn),
            Self::Expired | Self::Idle => (SessionStatus::Expired, CheckoutStatus::Expired),
            Self::Terminated => (SessionStatus::Terminated, CheckoutStatus::Revoked),
            Self::ProvisioningFailed => (SessionStatus::Failed, CheckoutStatus::Revoked),
            Self::PodLost => (SessionStatus::Lost, CheckoutStatus::Revoked),
        }
    }
}

/// The end as it was asked for; every step of it can be taken again from this.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct EndPlan {
    pub reason: EndReason,
    pub on_dirty: OnDirty,
    pub by: Option<Uuid>,
    /// Of the review; only a checkin has one.
    #[serde(default)]
    pub review: Wish,
}

/// Where the work went that was not in the branch.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Rescue {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub branch: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sha: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
}
