//! Webhooks that wait already when the server starts: from the first that is received to the
//! end of the last one's task, so the record of each attempt is part of it.

use std::time::{Duration, Instant};

use sqlx::{Connection as _, PgConnection, query, query_scalar};

use super::{
    super::{
        super::{
            Bench,
            support::{
                eventually,
                server::{DataDir, Server},
            },
        },
        webhooks::{BODY, Receiver},
    },
    migrated,
};

const WEBHOOKS: u32 = 20_000;
const PATIENCE: Duration = Duration::from_mins(1);
const SETTINGS: [(&str, &str); 2] =
    [("RDEV_EGRESS_ALLOW", "127.0.0.0/8"), ("RDEV_WEBHOOK_SECRET", "whsec_bWVhc3VyZWQgbWVhc3VyZWQgbWVhc3VyZWQ=")];
/// The first webhook of as many jobs, with ids in order as a server makes them, at all ports in turn.
const FILL: &str = "with new as materialized (
        select lpad(n::text, 26, '0') as job_id,
               ('0193b6c1-7d2e-7c3a-9a51-' || lpad(to_hex(n), 12, '0'))::uuid as id,
               'http://127.0.0.1:' || ($1::int[])[1 + n % cardinality($1)] as origin
        from generate_series(0, $2 - 1) n
    ), jobs as (
        insert into job (id, created_by, state, model, priority, stream, webhook_url, sequence, created_at)
        select job_id, gen_random_uuid(), 'queued', 'measured:latest', 4, 0, origin || '/', 1, now() from new
    ), hooks as (
        insert into delivery (id, job_id, sequence, state, url, origin, status, body)
        select id, job_id, 0, 'queued', origin || '/', origin, 'pending', $3 from new
    )
    insert into task (lane, queue, kind, subject) select 2, origin, 'webhook.deliver', id::text from new";

/// Webhooks a second.
pub async fn webhooks(bench: &Bench, receiver: &Receiver) -> f64 {
    let (url, data) = (bench.fresh().await, DataDir::new());
    let mut conn = PgConnection::connect(&url).await.expect("a connection");
    fill(&url, &mut conn, &receiver.ports).await;
    let before = receiver.count().await;
    let wanted = before + u64::from(WEBHOOKS);
    let begun = async {
        let first = || async { (receiver.count().await > before).then(Instant::now) };
        eventually("the first webhook", PATIENCE, first).await
    };
    // On a thread of its own: webhooks go out before the server is announced.
    let (server, begun) = tokio::join!(start(url.clone(), data), begun);
    let last = || async { (receiver.count().await >= wanted).then_some(()) };
    eventually("the last webhook", PATIENCE, last).await;
    while left(&mut conn).await {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    let took = begun.elapsed().as_secs_f64();
    drop(server);
    let sql = "select count(*) from delivery where status = 'delivered' and jsonb_array_length(attempts) = 1";
    let delivered: i64 = query_scalar(sql).fetch_one(&mut conn).await.expect("a number");
    assert_eq!(delivered, i64::from(WEBHOOKS), "every webhook is delivered and recorded, at the first attempt");
    f64::from(WEBHOOKS) / took
}

async fn start(url: String, data: DataDir) -> (Server, DataDir) {
    let started = tokio::task::spawn_blocking(move || (Server::rdev_with(&url, &data, &SETTINGS), data));
    started.await.expect("the server starts")
}

async fn fill(url: &str, conn: &mut PgConnection, ports: &[u16]) {
    migrated(url).await.close().await;
    let ports: Vec<i32> = ports.iter().map(|port| i32::from(*port)).collect();
    let webhooks = i32::try_from(WEBHOOKS).expect("not so many");
    let fill = query(FILL).bind(ports).bind(webhooks).bind(BODY.as_bytes());
    fill.execute(&mut *conn).await.expect("webhooks");
    for statement in ["checkpoint", "vacuum analyze"] {
        query(statement).execute(&mut *conn).await.expect("an administrator");
    }
}

async fn left(conn: &mut PgConnection) -> bool {
    let sql = "select exists (select from task where lane = 2)";
    query_scalar(sql).fetch_one(conn).await.expect("an answer")
}
