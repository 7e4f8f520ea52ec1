//! Jobs that 8 clients put in, one after the other's answer, while nobody can work on them.
//! The floor is axum with sqlx: the body read, a row of the job and one of its task in one
//! statement. The peer adds a job a call, in its own process, without HTTP.

use std::time::Duration;

use axum::{
    Json, Router,
    body::Bytes,
    extract::State,
    routing::{get, post},
};
use http::StatusCode;
use serde::Deserialize;
use serde_json::{Value, json};
use sqlx::{PgPool, postgres::PgPoolOptions, query};
use ulid::Ulid;

use super::{
    super::{
        Bench, ROUNDS,
        support::{
            client::{self, Load, request},
            server::{Server, serve_floor},
        },
    },
    rdev,
    table::{Line, Target},
};

/// A model that rdev's upstream has.
pub const MODEL: &str = "measured:latest";
const CLIENTS: usize = 8;
const WARM: Duration = Duration::from_millis(500);
const TIME: Duration = Duration::from_secs(5);

pub async fn measure(bench: &Bench) {
    let mut rate = Line::new(format!("POST /jobs, {CLIENTS} clients"), "/s");
    let mut p99 = Line::new(format!("POST /jobs, {CLIENTS} clients, p99"), "ms");
    for _ in 0..ROUNDS {
        let url = bench.fresh().await;
        let seen = post_jobs(&Server::floor(&["jobs", &url])).await;
        rate.floor(seen.per_second);
        p99.floor(seen.p99);
        let seen = peer(bench).await;
        rate.peer(seen.as_ref().map(|seen| number(seen, "per_second")).map_err(|why| *why));
        p99.peer(seen.as_ref().map(|seen| number(seen, "p99")).map_err(|why| *why));
        let seen = rdev::jobs(bench).await;
        rate.rdev(seen.per_second);
        p99.rdev(seen.p99);
    }
    rate.print(&[Target::OfFloor(0.5), Target::OfPeer(2.0)]);
    p99.print(&[]);
}

pub async fn post_jobs(server: &Server) -> Load {
    let asked = request("POST", "/jobs", &server.key, Some(&body()));
    client::load(server.address, &asked, CLIENTS, WARM).await;
    client::load(server.address, &asked, CLIENTS, TIME).await
}

fn body() -> Value {
    json!({
        "model": MODEL,
        "messages": [
            {"role": "system", "content": "Answer in one short sentence."},
            {"role": "user", "content": "Which of these three changes broke the build, and why do you think so?"},
        ],
        "options": {"temperature": 0.2, "num_ctx": 8192},
    })
}

fn number(seen: &Value, name: &str) -> f64 {
    seen[name].as_f64().expect("a number")
}

async fn peer(bench: &Bench) -> Result<Value, &'static str> {
    let peers = bench.peers.as_ref().map_err(|why| *why)?;
    let wanted = json!({
        "callers": CLIENTS, "pool": CLIENTS, "concurrency": 1, "payload": body(),
        "warm": WARM.as_secs_f64(), "seconds": TIME.as_secs_f64(),
    });
    Ok(peers.graphile("enqueue", &bench.fresh().await, &wanted).await)
}

/// What a job's request must have; the rest is kept as it came.
#[derive(Deserialize)]
struct Asked {
    model: String,
    messages: Vec<Value>,
}

/// The floor, as a server.
pub async fn floor(url: &str) {
    let connections = u32::try_from(CLIENTS).expect("few");
    let pool = PgPoolOptions::new().max_connections(connections).test_before_acquire(false).connect(url).await;
    let pool = pool.expect("a pool");
    let tables = [
        "create table job (id text primary key, model text not null, state text not null,
             payload bytea not null, created_at timestamptz not null)",
        "create table task (id bigint generated always as identity primary key, lane smallint not null,
             run_at timestamptz not null default now(), owner bigint, subject text not null) with (fillfactor = 50)",
        "create index task_due on task (lane, run_at)",
    ];
    for statement in tables {
        query(statement).execute(&pool).await.expect("a table");
    }
    serve_floor(Router::new().route("/jobs", post(create)).with_state(pool)).await;
}

async fn create(State(pool): State<PgPool>, body: Bytes) -> Result<(StatusCode, Json<Value>), StatusCode> {
    let asked: Asked = serde_json::from_slice(&body).map_err(|_| StatusCode::BAD_REQUEST)?;
    if asked.messages.is_empty() {
        return Err(StatusCode::BAD_REQUEST);
    }
    let id = Ulid::generate().to_string();
    let sql = "with job as (
                   insert into job (id, model, state, payload, created_at) values ($1, $2, 'queued', $3, now())
                   returning id
               )
               insert into task (lane, subject) select 1, id from job";
    let insert = query(sql).bind(&id).bind(&asked.model).bind(&body[..]).execute(&pool);
    insert.await.map_err(|_| StatusCode::INTERNAL_SERVER_ERROR)?;
    Ok((StatusCode::ACCEPTED, Json(json!({"job_id": id}))))
}

/// A model's server that never answers a chat.
pub async fn upstream() {
    let router = Router::new()
        .route("/api/tags", get(|| async { Json(json!({"models": [{"name": MODEL, "model": MODEL}]})) }))
        .route("/api/ps", get(|| async { Json(json!({"models": []})) }))
        .route("/api/chat", post(std::future::pending::<StatusCode>));
    serve_floor(router).await;
}
