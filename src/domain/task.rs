//! A task of the durable core, as whoever performs it sees it.

use uuid::Uuid;

/// A task in the hands of this process.
#[derive(Debug, Clone, sqlx::FromRow)]
pub struct Claimed {
    pub id: Uuid,
    pub kind: String,
    pub subject: String,
    pub fence: i64,
    /// Counts claims.
    pub attempt: i32,
    /// Owners that died with it, in a row.
    pub deaths: i32,
    /// Seconds from due to claimed.
    pub waited: f64,
}
