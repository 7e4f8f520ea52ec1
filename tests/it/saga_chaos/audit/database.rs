//! What no client sees: nothing is left over, nothing is there twice, and no log has a hole.

use std::collections::{BTreeMap, HashMap};

use serde_json::json;
use sqlx::Row as _;

use crate::{saga_chaos::plans::Plan, support::cluster::rows};

/// How many events there are of each saga.
pub async fn lengths(database: &str) -> HashMap<String, usize> {
    let sql = "select s.id::text, t.last_n from saga s join stream t on t.key = s.stream";
    let found = rows(database, sql).await;
    found.iter().map(|row| (row.get(0), usize::try_from(row.get::<i64, _>(1)).unwrap_or(0))).collect()
}

pub async fn judge(database: &str, made: &BTreeMap<usize, String>, plans: &[Plan]) -> Vec<String> {
    let mut wrong = Vec::new();
    if made.len() != plans.len() {
        wrong.push(format!("{} of {} were made", made.len(), plans.len()));
    }
    let mut known: Vec<&str> = made.values().map(String::as_str).collect();
    known.sort_unstable();
    let found: Vec<String> =
        rows(database, "select id::text from saga order by id").await.iter().map(|row| row.get(0)).collect();
    if found != known {
        let lost: Vec<_> = known.iter().filter(|id| !found.iter().any(|one| one == *id)).collect();
        let extra: Vec<_> = found.iter().filter(|id| !known.contains(&id.as_str())).collect();
        wrong.push(format!("lost: {lost:?}; made but never answered for, or twice: {extra:?}"));
    }
    let nothing = [
        ("tasks", "select t::text from task t"),
        ("tasks for later", "select t::text from task_later t"),
        ("parked tasks", "select t::text from task_parked t"),
        ("requests without an answer", "select status::text from idempotency where status is null"),
        ("sagas with a time to wake", "select id::text from saga where wake_at is not null"),
        (
            "steps under way",
            "select row(saga_id, n, status, undo_status)::text from saga_step
             where status in ('running', 'retrying', 'waiting', 'compensating')",
        ),
        (
            "logs with holes",
            "select s.name from stream s join chunk c on c.stream = s.key
             group by s.key, s.name, s.last_n, s.ended
             having min(c.from_n) <> 1 or max(c.to_n) <> s.last_n
             or sum(c.to_n - c.from_n + 1) <> s.last_n or count(*) filter (where c.to_n < c.from_n) > 0",
        ),
        (
            "logs that ended too early, or not at all",
            "select s.name from stream s join saga on saga.stream = s.key
             where s.ended <> (saga.status in ('completed', 'compensated', 'cancelled'))",
        ),
    ];
    for (what, sql) in nothing {
        let found = rows(database, sql).await;
        if !found.is_empty() {
            let first: Vec<Option<String>> = found.iter().take(5).map(|row| row.get(0)).collect();
            wrong.push(format!("{} {what}: {}", found.len(), json!(first)));
        }
    }
    wrong
}
