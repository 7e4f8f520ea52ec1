//! Requests and answers: an authenticated GET without a query, one of one row, a POST that
//! inserts; then the start and the memory of an idle server. The floor is axum with sqlx:
//! the key looked up in memory, one statement, JSON.

#![allow(
    clippy::disallowed_methods,
    clippy::disallowed_types,
    clippy::cast_precision_loss,
    reason = "a bench is not the product, and its numbers are small"
)]

mod support;

use std::{
    collections::HashMap,
    sync::{Arc, RwLock},
    time::{Duration, Instant},
};

use axum::{
    Json, Router,
    extract::{Path, State},
    routing::{get, post},
};
use chrono::{DateTime, Utc};
use http::{HeaderMap, StatusCode};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};
use sqlx::{PgPool, postgres::PgPoolOptions};
use support::{
    Role, block_on,
    client::{self, Connection, request},
    eventually,
    postgres::Postgres,
    report::{Row, Target, head},
    role,
    server::{DataDir, Server, serve_floor},
    stats::{cpu, milliseconds, resident},
    wanted,
};
use uuid::Uuid;

const ROUNDS: usize = 5;
const CONNECTIONS: usize = 32;
const TIME: Duration = Duration::from_millis(1500);
const WARM: Duration = Duration::from_millis(300);
/// As many as rdev's pool has.
const POOL: u32 = 20;
const FLOOR_KEY: &str = "rdev_sk_0000000000000000000000000000000000000000000";

fn main() {
    match role() {
        Role::Floor(arguments) => block_on(floor(&arguments[0])),
        Role::Measure => block_on(measure()),
        Role::Nothing => {}
    }
}

async fn measure() {
    let postgres = Postgres::start().await;
    let data = DataDir::new();
    let url = postgres.url("rdev");
    Server::rdev(&url, &data).project("measured").await;
    println!(
        "{CONNECTIONS} connections, {ROUNDS} rounds of {TIME:?} each; client, server and database share the cores"
    );
    head();
    // First, while the database holds next to nothing: the keys that are made below stay in memory.
    if wanted("start") {
        starts(&url, &data).await;
    }
    let (rdev, floor) = (Server::rdev(&url, &data), Server::floor(&[&url]));
    let body = json!({"name": "measured", "scopes": ["projects:read"]});
    let parts = [
        ("GET /whoami", ("GET", "/whoami", None), 0.5),
        ("GET /projects/{id}", ("GET", "/projects/measured", None), 0.7),
        ("POST /keys", ("POST", "/keys", Some(&body)), 0.7),
    ];
    for (what, asked, share) in parts.into_iter().filter(|(what, ..)| wanted(what)) {
        side_by_side(&floor, &rdev, what, asked, share).await;
    }
}

async fn side_by_side(
    floor: &Server,
    rdev: &Server,
    what: &str,
    (method, path, body): (&str, &str, Option<&Value>),
    share: f64,
) {
    let mut rate = Row::new(format!("{what}, requests"), "/s");
    let mut p50 = Row::new(format!("{what}, p50"), "ms");
    let mut p99 = Row::new(format!("{what}, p99"), "ms");
    let mut used = Row::new(format!("{what}, CPU of the server a request"), "us");
    let asked = [(floor, request(method, path, FLOOR_KEY, body)), (rdev, request(method, path, &rdev.key, body))];
    for _ in 0..ROUNDS {
        let mut seen = Vec::new();
        for (server, request) in &asked {
            client::load(server.address, request, CONNECTIONS, WARM).await;
            let before = cpu(server.pid());
            let load = client::load(server.address, request, CONNECTIONS, TIME).await;
            let cost = (cpu(server.pid()) - before) / (load.per_second * TIME.as_secs_f64()) * 1e6;
            seen.push((load, cost));
        }
        let [(floor, floor_cost), (rdev, rdev_cost)] = &seen[..] else { unreachable!("two were asked") };
        rate.add(floor.per_second, rdev.per_second);
        p50.add(floor.p50, rdev.p50);
        p99.add(floor.p99, rdev.p99);
        used.add(*floor_cost, *rdev_cost);
    }
    rate.print(Target::ShareOfFloor(share));
    p50.print(Target::None);
    p99.print(if method == "GET" && path != "/whoami" { Target::TimesFloor(2.0) } else { Target::None });
    used.print(Target::None);
}

/// Starts on a database that is migrated already.
async fn starts(url: &str, data: &DataDir) {
    let mut listening = Row::new("start, to the line `listening on`", "ms");
    let mut ready = Row::new("start, to the first 200 of /health/ready", "ms");
    let mut idle = Row::new("resident memory, idle for 2 s", "MB");
    for round in 0..ROUNDS {
        let begun = Instant::now();
        let rdev = Server::rdev(url, data);
        let address = rdev.address;
        eventually("ready", Duration::from_secs(10), || async move {
            let status = Connection::open(address).await.ask(&request("GET", "/health/ready", "", None)).await;
            (status == 200).then_some(())
        })
        .await;
        ready.add_rdev(milliseconds(begun.elapsed()));
        listening.add_rdev(milliseconds(rdev.announced_after));
        if round == 0 {
            tokio::time::sleep(Duration::from_secs(2)).await;
            idle.add_rdev(resident(rdev.pid()) / 1e6);
        }
    }
    listening.print(Target::AtMost(150.0));
    ready.print(Target::AtMost(150.0));
    idle.print(Target::AtMost(30.0));
}

#[derive(Clone)]
struct Floor {
    pool: PgPool,
    keys: Arc<RwLock<HashMap<String, Key>>>,
}

#[derive(Clone, Serialize)]
struct Key {
    id: Uuid,
    name: String,
    prefix: String,
    scopes: Vec<String>,
    created_at: DateTime<Utc>,
    #[serde(skip_serializing_if = "Option::is_none")]
    key: Option<String>,
}

#[derive(Serialize, sqlx::FromRow)]
struct Project {
    id: String,
    name: String,
    description: String,
    status: String,
    pod_name: String,
    workspace: String,
    default_branch: String,
    labels: sqlx::types::Json<Value>,
    allow_scripts: bool,
    protected_branches: Vec<String>,
    preview_port: Option<i32>,
    review_command: Option<Vec<String>>,
    agent_command: Option<Vec<String>>,
    source: String,
    created_at: DateTime<Utc>,
    updated_at: DateTime<Utc>,
}

async fn floor(url: &str) {
    let pool =
        PgPoolOptions::new().max_connections(POOL).test_before_acquire(false).connect(url).await.expect("a pool");
    // A row as wide as a key's, with the same indexes.
    let table = "create table if not exists floor_key (like api_key including all)";
    sqlx::query(table).execute(&pool).await.expect("a table");
    let known = Key {
        id: Uuid::now_v7(),
        name: "admin".into(),
        prefix: FLOOR_KEY[..14].into(),
        scopes: vec!["admin".into()],
        created_at: Utc::now(),
        key: None,
    };
    let keys = Arc::new(RwLock::new(HashMap::from([(FLOOR_KEY.to_owned(), known)])));
    let router = Router::new()
        .route("/whoami", get(whoami))
        .route("/projects/{id}", get(project))
        .route("/keys", post(create))
        .with_state(Floor { pool, keys });
    serve_floor(router).await;
}

impl Floor {
    fn key(&self, headers: &HeaderMap) -> Result<Key, StatusCode> {
        let text = headers.get("authorization").and_then(|value| value.to_str().ok()?.strip_prefix("Bearer "));
        let known = self.keys.read().expect("no panic");
        text.and_then(|text| known.get(text)).cloned().ok_or(StatusCode::UNAUTHORIZED)
    }
}

async fn whoami(State(floor): State<Floor>, headers: HeaderMap) -> Result<Json<Key>, StatusCode> {
    floor.key(&headers).map(Json)
}

async fn project(
    State(floor): State<Floor>,
    headers: HeaderMap,
    Path(id): Path<String>,
) -> Result<Json<Project>, StatusCode> {
    floor.key(&headers)?;
    let found = sqlx::query_as("select * from project where id = $1").bind(id).fetch_optional(&floor.pool).await;
    found.map_err(|_| StatusCode::INTERNAL_SERVER_ERROR)?.map(Json).ok_or(StatusCode::NOT_FOUND)
}

#[derive(Deserialize)]
struct NewKey {
    name: String,
    scopes: Vec<String>,
}

async fn create(
    State(floor): State<Floor>,
    headers: HeaderMap,
    Json(new): Json<NewKey>,
) -> Result<Json<Key>, StatusCode> {
    floor.key(&headers)?;
    let secret = format!("rdev_sk_{}", Uuid::new_v4().simple());
    let key = Key {
        id: Uuid::now_v7(),
        name: new.name,
        prefix: secret[..14].into(),
        scopes: new.scopes,
        created_at: Utc::now(),
        key: Some(secret.clone()),
    };
    let sql =
        "insert into floor_key (id, name, prefix, secret_hash, scopes, created_at) values ($1, $2, $3, $4, $5, $6)";
    let insert = sqlx::query(sql)
        .bind(key.id)
        .bind(&key.name)
        .bind(&key.prefix)
        .bind(Sha256::digest(&secret).as_slice())
        .bind(&key.scopes)
        .bind(key.created_at);
    insert.execute(&floor.pool).await.map_err(|_| StatusCode::INTERNAL_SERVER_ERROR)?;
    Ok(Json(key))
}
