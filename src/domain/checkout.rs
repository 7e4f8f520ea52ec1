//! A checkout: a branch and a git credential that lives as long.

use std::time::Duration;

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

/// Attempts to revoke a token at the git host that may fail before it counts as irrevocable.
pub const REVOCATIONS_MAX: i16 = 6;

/// When the token is to be revoked again, after so many failures; `None` where it is irrevocable.
pub fn revoke_again_after(failures: i16) -> Option<Duration> {
    let before = u32::try_from(failures - 1).unwrap_or(0);
    (failures < REVOCATIONS_MAX).then(|| Duration::from_millis(250) * 2_u32.pow(before))
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_sixth_failure_is_the_last() {
        let pauses: Vec<_> =
            (0..8).map(|failures| revoke_again_after(failures).map(|pause| pause.as_millis())).collect();
        let first = Some(250);
        assert_eq!(pauses, [first, first, Some(500), Some(1000), Some(2000), Some(4000), None, None]);
    }
}
