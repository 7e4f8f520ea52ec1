//! The traps of what this is built on, each with the remedy that was chosen.

use std::{sync::Arc, time::Duration};

use rdev::{
    database::Db,
    metrics::Metrics,
    queue::Lease,
    store,
    streams::{
        Append, Fenced, Hub, Owner, Piece, Writer,
        notify::Outbox,
        record::{self, Output},
    },
};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use super::support::{Ground, Proxy, TestApp, raw, soon};

async fn write(db: &Db, n: i32) -> bool {
    let work = async {
        let mut conn = db.conn().await?;
        conn.execute(sqlx::query("insert into written values ($1)").bind(n)).await
    };
    work.await.is_ok()
}

/// A cancelled `begin()` must not leave a connection inside a transaction: the next
/// statement on it would be acknowledged and vanish.
#[tokio::test(flavor = "multi_thread")]
async fn a_cancelled_begin_loses_no_acknowledged_write() {
    let ground = Ground::new().await;
    ground.db.run("create table written (n int)").await;
    let db = Db::new(ground.db.options(), 2);
    let mut acknowledged = 0;
    for n in 0..300 {
        // Polled n times and dropped: every point of the exchange is met.
        let mut begin = Box::pin(db.begin());
        for _ in 0..n % 12 {
            if futures::poll!(begin.as_mut()).is_ready() {
                break;
            }
            tokio::time::sleep(Duration::from_micros(37 * (n % 7) as u64)).await;
        }
        drop(begin);
        acknowledged += i64::from(write(&db, n).await);
    }
    assert_eq!(acknowledged, 300);
    assert_eq!(ground.db.count("select count(*) from written").await, acknowledged);
    db.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_transaction_dropped_in_the_middle_is_rolled_back() {
    let ground = Ground::new().await;
    ground.db.run("create table written (n int)").await;
    let db = Db::new(ground.db.options(), 1);
    for n in 0..50 {
        let mut tx = db.begin().await.unwrap();
        tx.execute(sqlx::query("insert into written values (0)")).await.unwrap();
        if n % 2 == 0 {
            let mut statement = Box::pin(tx.execute(sqlx::query("insert into written values (0)")));
            let _pending = futures::poll!(statement.as_mut());
        }
        drop(tx);
        assert!(write(&db, 1).await);
    }
    assert_eq!(ground.db.count("select count(*) from written where n = 0").await, 0);
    assert_eq!(ground.db.count("select count(*) from written where n = 1").await, 50);
    db.close().await;
}

/// A peer that is gone without a word pins a connection for ever, unless it is given up.
#[tokio::test(flavor = "multi_thread")]
async fn a_half_open_connection_does_not_kill_the_pool() {
    let ground = Ground::new().await;
    ground.db.run("create table written (n int)").await;
    let proxy = Proxy::before(&ground.db.options()).await;
    let limit = Duration::from_millis(500);
    let db = Db::with_limits(proxy.options(&ground.db.options()), 2, limit, Duration::from_secs(3));
    let both = async { tokio::join!(write(&db, 0), write(&db, 0)) };
    assert_eq!(both.await, (true, true));
    super::support::eventually("both are back in the pool", async || (db.usage().1 == 2).then_some(())).await;
    proxy.freeze();
    // At worst every connection of the pool is found out once, each within the limit of a statement.
    let mut failures = 0;
    while !soon("a statement", write(&db, 1)).await {
        failures += 1;
        assert!(failures <= 4, "the pool does not recover");
    }
    for _ in 0..10 {
        assert!(write(&db, 2).await);
    }
    assert_eq!(ground.db.count("select count(*) from written where n = 2").await, 10);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_app_whose_connections_went_silent_recovers_by_itself() {
    let ground = Ground::new().await;
    let proxy = Proxy::before(&ground.db.options()).await;
    let url = proxy.url(&ground.db);
    let app = TestApp::on(ground, &[("DATABASE_URL", &url)]).await;
    app.project("p").await;
    proxy.freeze();
    super::support::eventually("the app answers again", async || {
        (app.admin().get("/projects/p").await.status == 200).then_some(())
    })
    .await;
    assert_eq!(app.script("p", "true").await["exit_code"], 0);
}

/// `axum::serve` would hold a socket for ever.
#[tokio::test(flavor = "multi_thread")]
async fn a_header_that_is_never_finished_is_given_up() {
    let app = TestApp::start().await;
    let mut stream = raw::connect(&app.url).await;
    stream.write_all(b"GET /health/live HTTP/1.1\r\nhost: x\r\nx-half: ").await.unwrap();
    let mut rest = Vec::new();
    let _closed_or_reset = soon("the server closes", stream.read_to_end(&mut rest)).await;
    app.nobody().get("/health/live").await.data(200);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_slow_header_holds_up_nobody_else() {
    let app = TestApp::start().await;
    let mut half_open = Vec::new();
    for _ in 0..200 {
        let mut stream = raw::connect(&app.url).await;
        stream.write_all(b"GET / HTTP/1.1\r\n").await.unwrap();
        half_open.push(stream);
    }
    app.nobody().get("/health/live").await.data(200);
}

struct Log {
    ground: Arc<Ground>,
    db: Db,
    writer: Writer,
    owner: Owner,
    task: tokio::task::JoinHandle<()>,
}

/// A command's log with fence 2 as the newest.
async fn log() -> Log {
    let app = TestApp::start().await;
    app.project("p").await;
    let ground = app.stop().await;
    let db = Db::new(ground.db.options(), 4);
    let mut conn = db.conn().await.unwrap();
    let key = store::streams::insert(&mut conn, "p", store::streams::Kind::Command, "c", None).await.unwrap();
    conn.execute(sqlx::query("update stream set fence = 2 where key = $1").bind(key)).await.unwrap();
    drop(conn);
    let (writer, writing) = Writer::new(db.clone(), Hub::new(Outbox::default()), Metrics::new());
    let task = tokio::spawn(writing);
    Log { ground, db, writer, owner: Owner { key, name: "c".into() }, task }
}

fn lines(log: &Log, fence: i64, base: i64, texts: &[&str]) -> Append {
    let mut data = Vec::new();
    for text in texts {
        record::put_line(&mut data, Output::Stdout, false, text.as_bytes());
    }
    let bytes = texts.iter().map(|text| text.len() as i64 + 1).sum();
    let piece = Piece { data: data.into(), events: texts.len() as i64, out_bytes: bytes, err_bytes: 0 };
    Append { owner: log.owner.clone(), parent: None, fence, base, out_base: 0, err_base: 0, pieces: vec![piece] }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stale_writers_append_is_refused() {
    let log = log().await;
    log.writer.append(lines(&log, 2, 0, &["one"])).await.unwrap();
    assert_eq!(log.writer.append(lines(&log, 1, 1, &["stale"])).await, Err(Fenced));
    log.writer.append(lines(&log, 2, 1, &["two"])).await.unwrap();
    let sql = "select last_n from stream where kind = 'command'";
    assert_eq!(log.ground.db.count(sql).await, 2);
    assert_eq!(log.ground.db.count("select count(*) from chunk where position('stale'::bytea in data) > 0").await, 0);
    log.task.abort();
    log.db.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_append_that_does_not_join_on_is_refused() {
    let log = log().await;
    log.writer.append(lines(&log, 2, 0, &["one", "two"])).await.unwrap();
    for base in [0, 1, 3] {
        assert_eq!(log.writer.append(lines(&log, 2, base, &["x"])).await, Err(Fenced), "base {base}");
    }
    assert_eq!(log.ground.db.count("select last_n from stream where kind = 'command'").await, 2);
    log.task.abort();
    log.db.close().await;
}

/// A process that was thought dead must not come back as owner.
#[tokio::test(flavor = "multi_thread")]
async fn a_process_whose_row_was_taken_goes_on_under_another_id() {
    let app = TestApp::start().await;
    app.project("p").await;
    let db = Db::new(app.db().options(), 1);
    let lease = Lease::new(0);
    lease.register(&db).await.unwrap();
    let before = lease.id();
    app.db().run(&format!("delete from process where id = '{before}'")).await;
    let standing = lease.standing();
    let stop = tokio_util::sync::CancellationToken::new();
    let keeping = tokio::spawn({
        let (lease, db, stop) = (lease.clone(), db.clone(), stop.clone());
        async move { lease.keep(db, stop).await }
    });
    soon("the old identity is dropped", standing.cancelled()).await;
    super::support::eventually("a new identity", async || (lease.id() != before).then_some(())).await;
    stop.cancel();
    keeping.await.unwrap();
    db.close().await;
}

/// `NUL` is no text to PostgreSQL; output keeps it all the same.
#[tokio::test(flavor = "multi_thread")]
async fn a_nul_in_the_output_is_kept() {
    let app = TestApp::start().await;
    app.project("p").await;
    let command = app.script("p", "printf 'a\\000b\\n'").await;
    let path = command["output_url"].as_str().unwrap();
    let bytes = app.admin().request(http::Method::GET, path, None, &[]).send().await.unwrap().bytes().await.unwrap();
    assert_eq!(&bytes[..], b"a\0b\n");
    let events = app.listen(command["events_url"].as_str().unwrap()).await.rest().await;
    assert_eq!(events[0].line(), "a\0b");
}

/// A project and its stream are found by what belongs to it, whatever is asked.
#[tokio::test(flavor = "multi_thread")]
async fn a_statement_is_no_place_for_what_a_client_says() {
    let app = TestApp::start().await;
    app.project("p").await;
    let hostile = "'; drop table project; --";
    let body = serde_json::json!({"name": hostile, "labels": {hostile: hostile}});
    assert_eq!(app.admin().patch("/projects/p", body).await.data(200)["name"], hostile);
    app.admin().get("/projects/p/events?stream_id=%27%3B--").await.refusal(404, "NOT_FOUND");
    app.admin().get("/projects/p").await.data(200);
}

/// sqlx pings a connection that comes back to the pool, for as long as it takes: one that
/// went silent at that moment would hold its place for ever.
#[tokio::test(flavor = "multi_thread")]
async fn a_connection_that_goes_silent_while_it_is_given_back_frees_its_place() {
    let ground = Ground::new().await;
    ground.db.run("create table written (n int)").await;
    let proxy = Proxy::before(&ground.db.options()).await;
    let limit = Duration::from_millis(500);
    let db = Db::with_limits(proxy.options(&ground.db.options()), 2, limit, Duration::from_secs(3));
    let (one, two) = (db.conn().await.unwrap(), db.conn().await.unwrap());
    proxy.freeze();
    drop((one, two));
    super::support::eventually("a place in the pool", async || write(&db, 1).await.then_some(())).await;
}
