//! What no client sees: nothing is left over, and no log has a hole.

use serde_json::json;
use sqlx::Row as _;

use super::Submitted;
use crate::support::cluster::rows;

pub async fn judge(database: &str, submitted: &[Submitted]) -> Vec<String> {
    let mut wrong = Vec::new();
    let mut known: Vec<String> = submitted.iter().map(|one| one.job.clone()).collect();
    known.sort();
    let jobs: Vec<String> =
        rows(database, "select id from job order by id").await.iter().map(|row| row.get(0)).collect();
    if jobs != known {
        let (lost, extra): (Vec<_>, Vec<_>) = (
            known.iter().filter(|id| !jobs.contains(id)).collect(),
            jobs.iter().filter(|id| !known.contains(id)).collect(),
        );
        wrong.push(format!("lost: {lost:?}; made but never answered for, or twice: {extra:?}"));
    }
    let nothing = [
        ("tasks", "select t::text from task t"),
        ("tasks for later", "select t::text from task_later t"),
        ("parked tasks", "select t::text from task_parked t"),
        ("requests without an answer", "select status::text from idempotency where status is distinct from 202"),
        ("webhooks that did not arrive", "select id::text from delivery where status <> 'delivered'"),
        ("requests of ended jobs", "select id from job where payload is not null"),
        (
            "logs with holes, or that go on",
            "select s.name from stream s join chunk c on c.stream = s.key
             group by s.key, s.name, s.last_n, s.ended
             having not s.ended or min(c.from_n) <> 1 or max(c.to_n) <> s.last_n
             or sum(c.to_n - c.from_n + 1) <> s.last_n or count(*) filter (where c.to_n < c.from_n) > 0",
        ),
        (
            "chunks that do not follow one another",
            "select stream::text from (
                 select stream, from_n, lag(to_n, 1, 0::bigint) over (partition by stream order by to_n) as before
                 from chunk
             ) c where from_n <> before + 1",
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
