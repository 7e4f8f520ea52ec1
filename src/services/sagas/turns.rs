//! Of the sagas with one concurrency key one at a time is at work; the others wait, in the order in
//! which they were made. Whoever asks for the turn, or lets go of it, holds the key meanwhile, and
//! takes it before the saga's row.

use super::{Conn, Result, Row, run_task, store};
use crate::domain::saga::SagaStatus;

/// At work, or about to be.
pub const HAS: i16 = 1;
/// Nothing is done before it has it.
pub const WAITS: i16 = 2;
const NONE: i16 = 0;

/// Holds the key of a saga, where it has one.
pub async fn hold(c: &mut Conn, row: &Row) -> Result<()> {
    if let Some(key) = &row.concurrency_key {
        store::sagas::hold_key(c, row.project_id.as_deref(), key).await?;
    }
    Ok(())
}

/// Takes the turn, or a place among those that wait for it. True where the saga may go on.
pub async fn ask(c: &mut Conn, project: Option<&str>, key: Option<&str>) -> Result<i16> {
    let Some(key) = key else { return Ok(NONE) };
    store::sagas::hold_key(c, project, key).await?;
    let taken = store::sagas::key_is_taken(c, project, key).await?;
    Ok(if taken { WAITS } else { HAS })
}

/// Whether a saga with this turn, after [`ask`], may be at work.
pub fn may_go(turn: i16) -> bool {
    turn != WAITS
}

/// After a saga came to rest: lets the next one go. True where there was one.
pub async fn let_go(c: &mut Conn, row: &Row, status: SagaStatus) -> Result<bool> {
    let Some(key) = row.concurrency_key.as_deref() else { return Ok(false) };
    if row.turn == NONE || status.is_at_work() || status == SagaStatus::Pending {
        return Ok(false);
    }
    let project = row.project_id.as_deref();
    store::sagas::hold_key(c, project, key).await?;
    store::sagas::set_turn(c, row.id, NONE).await?;
    if row.turn != HAS {
        return Ok(false);
    }
    let Some(next) = store::sagas::pass_turn(c, project, key).await? else { return Ok(false) };
    store::tasks::insert_once(c, &run_task(next)).await?;
    Ok(true)
}
