//! API keys: made, shown, bound, rotated, revoked.

use chrono::{DateTime, TimeDelta, Utc};
use serde_json::{Value, json};

use super::support::{Reply, TestApp, eventually};

const NO_KEY: &str = "invalid or missing API key";
const UNKNOWN_UUID: &str = "01890000-0000-7000-8000-000000000000";
/// Well-formed, with a right checksum, and in no database.
const BOOTSTRAP: &str = "rdev_sk_AAAAAABBBBBBBBBBBBBBBBBBBBBBBBBBBBBBBB";

pub fn with_checksum(body: &str) -> String {
    const DIGITS: &[u8] = b"0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz";
    let mut number = crc32fast::hash(body.as_bytes());
    let mut digits = [b'0'; 6];
    for digit in digits.iter_mut().rev() {
        *digit = DIGITS[(number % 62) as usize];
        number /= 62;
    }
    format!("{body}{}", std::str::from_utf8(&digits).unwrap())
}

fn id(key: &Value) -> &str {
    key["id"].as_str().expect("a key has an id")
}

fn secret(key: &Value) -> &str {
    key["key"].as_str().expect("the secret is there this once")
}

fn at(key: &Value, field: &str) -> DateTime<Utc> {
    key[field].as_str().unwrap_or_else(|| panic!("no {field} in {key}")).parse().expect("RFC 3339")
}

fn is_refused_as_unknown(reply: &Reply) {
    reply.refused(401, "UNAUTHORIZED", NO_KEY);
    assert_eq!(reply.header("www-authenticate"), "Bearer");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_new_key_is_shown_once_with_its_secret() {
    let app = TestApp::start().await;
    let key = app.admin().post("/keys", json!({"name": "ci", "scopes": ["projects:read"]})).await.data(201);
    assert!(secret(&key).starts_with("rdev_sk_") && secret(&key).len() == 52);
    let again = app.admin().get(&format!("/keys/{}", id(&key))).await.data(200);
    assert!(again.get("key").is_none());
    assert_eq!(again["prefix"], secret(&key)[..14]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_secret_ends_with_the_checksum_of_what_comes_before() {
    let app = TestApp::start().await;
    let (_, key) = app.holder(json!({"name": "ci", "scopes": ["projects:read"]})).await;
    assert_eq!(secret(&key), with_checksum(&secret(&key)[..46]));
}

#[tokio::test(flavor = "multi_thread")]
async fn the_secret_is_in_no_table() {
    let app = TestApp::start().await;
    let (_, key) = app.holder(json!({"name": "ci", "scopes": ["projects:read"]})).await;
    let secret = &secret(&key)[14..];
    let sql = format!("select count(*) from api_key k where k::text like '%{secret}%'");
    assert_eq!(app.db().count(&sql).await, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn every_bad_credential_gets_the_same_answer() {
    let app = TestApp::with(&[("RDEV_AUTH_FAILURE_LIMIT", "0")]).await;
    is_refused_as_unknown(&app.nobody().get("/projects").await);
    let unknown = with_checksum(BOOTSTRAP);
    let mistyped = format!("{}0", &app.admin_key[..51]);
    for credential in [unknown.as_str(), mistyped.as_str(), "rdev_sk_", "x", "rdev_sk_ä"] {
        is_refused_as_unknown(&app.bearing(credential).get("/projects").await);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_scheme_is_case_insensitive() {
    let app = TestApp::start().await;
    for scheme in ["bearer", "BEARER", "BeArEr"] {
        let header = format!("{scheme} {}", app.admin_key);
        let reply = app.nobody().send(http::Method::GET, "/whoami", None, &[("authorization", &header)]).await;
        reply.data(200);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn another_scheme_is_no_credential() {
    let app = TestApp::start().await;
    let header = format!("Token {}", app.admin_key);
    let reply = app.nobody().send(http::Method::GET, "/whoami", None, &[("authorization", &header)]).await;
    is_refused_as_unknown(&reply);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_without_the_scope_is_told_which_would_do() {
    let app = TestApp::start().await;
    let reader = app.someone(&["jobs:read"]).await;
    let error = reader.get("/projects").await.refusal(403, "FORBIDDEN");
    assert_eq!(error["details"]["required_any"], json!(["projects:read"]));
}

#[tokio::test(flavor = "multi_thread")]
async fn any_one_of_a_routes_scopes_suffices() {
    let app = TestApp::start().await;
    app.project("p").await;
    for scope in ["sessions:read", "projects:read", "admin"] {
        app.someone(&[scope]).await.get("/projects/p/sessions").await.data(200);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn any_valid_key_may_ask_who_it_is() {
    let app = TestApp::start().await;
    let (holder, key) = app.holder(json!({"name": "runner", "scopes": ["jobs:execute"]})).await;
    let me = holder.get("/whoami").await.data(200);
    assert_eq!(me["id"], key["id"]);
    assert_eq!(me["name"], "runner");
    assert_eq!(me["scopes"], json!(["jobs:execute"]));
    assert!(me.get("key").is_none());
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_key_cannot_be_made_of_is_refused() {
    let app = TestApp::start().await;
    for body in [
        json!({}),
        json!({"name": "x"}),
        json!({"scopes": ["admin"]}),
        json!({"name": "x", "scopes": []}),
        json!({"name": "x", "scopes": ["projects:write"]}),
        json!({"name": "", "scopes": ["admin"]}),
        json!({"name": "x\u{0}", "scopes": ["admin"]}),
        json!({"name": "x", "scopes": "admin"}),
        json!({"name": "x", "scopes": ["admin"], "project_ids": ["Not An Id"]}),
        json!({"name": "x", "scopes": ["admin"], "allowed_cidrs": ["everywhere"]}),
        json!({"name": "x", "scopes": ["admin"], "allowed_cidrs": ["10.0.0.0/33"]}),
        json!({"name": "x", "scopes": ["admin"], "rate_limit": -1}),
        json!({"name": "x", "scopes": ["admin"], "expires_in": "0s"}),
        json!({"name": "x", "scopes": ["admin"], "expires_in": "soon"}),
    ] {
        app.admin().post("/keys", body.clone()).await.refusal(400, "BAD_REQUEST");
    }
    assert_eq!(app.admin().get("/keys").await.data(200)["keys"].as_array().unwrap().len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_revoked_key_opens_nothing_from_the_answer_on() {
    let app = TestApp::start().await;
    let (holder, key) = app.holder(json!({"name": "x", "scopes": ["projects:read"]})).await;
    holder.get("/projects").await.data(200);
    let done = app.admin().delete(&format!("/keys/{}", id(&key))).await.data(200);
    assert_eq!(done, json!({"status": "revoked", "id": id(&key)}));
    is_refused_as_unknown(&holder.get("/projects").await);
    let shown = app.admin().get(&format!("/keys/{}", id(&key))).await.data(200);
    assert!(shown["revoked_at"].is_string());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_revocation_holds_in_every_process_when_it_is_answered() {
    let app = TestApp::start().await;
    let other = app.sibling(&[]).await;
    let (_, key) = app.holder(json!({"name": "x", "scopes": ["projects:read"]})).await;
    let there = other.bearing(secret(&key));
    eventually("the key is known there too", async || (there.get("/projects").await.status == 200).then_some(())).await;
    app.admin().delete(&format!("/keys/{}", id(&key))).await.data(200);
    is_refused_as_unknown(&there.get("/projects").await);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_expires_to_the_second() {
    let app = TestApp::start().await;
    let (holder, key) = app.holder(json!({"name": "x", "scopes": ["projects:read"], "expires_in": "1h"})).await;
    assert_eq!(at(&key, "expires_at") - at(&key, "created_at"), TimeDelta::hours(1));
    app.advance(TimeDelta::seconds(3599));
    holder.get("/projects").await.data(200);
    app.advance(TimeDelta::seconds(1));
    is_refused_as_unknown(&holder.get("/projects").await);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_unknown_key_is_not_found() {
    let app = TestApp::start().await;
    for kid in [UNKNOWN_UUID, "x", "00000000-0000-0000-0000-000000000000", "%ff"] {
        let path = format!("/keys/{kid}");
        app.admin().get(&path).await.refusal(404, "NOT_FOUND");
        app.admin().delete(&path).await.refusal(404, "NOT_FOUND");
        app.admin().post(&format!("{path}/rotate"), json!({})).await.refusal(404, "NOT_FOUND");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn after_a_rotation_both_secrets_work_for_an_hour() {
    let app = TestApp::start().await;
    let (old, key) = app.holder(json!({"name": "x", "scopes": ["projects:read"]})).await;
    let rotated = app.admin().post(&format!("/keys/{}/rotate", id(&key)), json!({})).await.data(201);
    assert_eq!(rotated["id"], key["id"]);
    assert_ne!(rotated["prefix"], key["prefix"]);
    let new = app.bearing(secret(&rotated));
    assert_eq!(at(&rotated, "previous_expires_at") - app.clock.now(), TimeDelta::hours(1));
    app.advance(TimeDelta::seconds(3599));
    old.get("/projects").await.data(200);
    new.get("/projects").await.data(200);
    app.advance(TimeDelta::seconds(1));
    is_refused_as_unknown(&old.get("/projects").await);
    new.get("/projects").await.data(200);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rotation_with_an_empty_body_is_one_with_defaults() {
    let app = TestApp::start().await;
    let (_, key) = app.holder(json!({"name": "x", "scopes": ["projects:read"]})).await;
    let path = format!("/keys/{}/rotate", id(&key));
    app.admin().send(http::Method::POST, &path, None, &[]).await.data(201);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rotation_without_overlap_ends_the_old_secret_at_once() {
    let app = TestApp::start().await;
    let (old, key) = app.holder(json!({"name": "x", "scopes": ["projects:read"]})).await;
    app.admin().post(&format!("/keys/{}/rotate", id(&key)), json!({"overlap": "0s"})).await.data(201);
    is_refused_as_unknown(&old.get("/projects").await);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_rotation_ends_the_oldest_secret_at_once() {
    let app = TestApp::start().await;
    let (oldest, key) = app.holder(json!({"name": "x", "scopes": ["projects:read"]})).await;
    let path = format!("/keys/{}/rotate", id(&key));
    let second = app.admin().post(&path, json!({})).await.data(201);
    app.admin().post(&path, json!({})).await.data(201);
    is_refused_as_unknown(&oldest.get("/projects").await);
    app.bearing(secret(&second)).get("/projects").await.data(200);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_overlap_that_is_no_duration_up_to_30_days_is_refused() {
    let app = TestApp::start().await;
    let (_, key) = app.holder(json!({"name": "x", "scopes": ["projects:read"]})).await;
    for overlap in ["721h", "31d", "-1h", "x"] {
        let path = format!("/keys/{}/rotate", id(&key));
        app.admin().post(&path, json!({"overlap": overlap})).await.refusal(400, "BAD_REQUEST");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_last_usable_admin_key_cannot_be_revoked() {
    let app = TestApp::start().await;
    let me = app.admin().get("/whoami").await.data(200);
    app.project("p").await;
    let bound = json!({"name": "bound", "scopes": ["admin"], "project_ids": ["p"]});
    app.admin().post("/keys", bound).await.data(201);
    let expiring = json!({"name": "short", "scopes": ["admin"], "expires_in": "1h"});
    app.admin().post("/keys", expiring).await.data(201);
    app.advance(TimeDelta::hours(2));
    app.admin().delete(&format!("/keys/{}", id(&me))).await.refusal(409, "LAST_ADMIN_KEY");
    app.admin().post("/keys", json!({"name": "other", "scopes": ["admin"]})).await.data(201);
    app.admin().delete(&format!("/keys/{}", id(&me))).await.data(200);
}

#[tokio::test(flavor = "multi_thread")]
async fn of_two_last_admin_keys_that_revoke_each_other_one_stays() {
    let app = TestApp::start().await;
    let me = app.admin().get("/whoami").await.data(200);
    let (other, key) = app.holder(json!({"name": "other", "scopes": ["admin"]})).await;
    let admin = app.admin();
    let (mine, theirs) = (format!("/keys/{}", id(&me)), format!("/keys/{}", id(&key)));
    let (one, two) = tokio::join!(admin.delete(&theirs), other.delete(&mine));
    let mut statuses = [one.status, two.status];
    statuses.sort_unstable();
    assert!(matches!(statuses, [200, 401 | 409]), "{statuses:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_bootstrap_key_is_accepted_and_stays() {
    let bootstrap = with_checksum(BOOTSTRAP);
    let app = TestApp::with(&[("RDEV_ADMIN_KEY", &bootstrap)]).await;
    let me = app.admin().get("/whoami").await.data(200);
    assert_eq!((id(&me), me["name"].as_str()), ("00000000-0000-0000-0000-000000000000", Some("bootstrap")));
    let path = "/keys/00000000-0000-0000-0000-000000000000";
    app.admin().delete(path).await.refusal(409, "BOOTSTRAP_KEY");
    app.admin().post(&format!("{path}/rotate"), json!({})).await.refusal(409, "BOOTSTRAP_KEY");
    assert_eq!(app.admin().get("/keys").await.data(200)["keys"], json!([]));
}

#[tokio::test(flavor = "multi_thread")]
async fn with_a_bootstrap_key_the_last_admin_key_may_go() {
    let app = TestApp::with(&[("RDEV_ADMIN_KEY", &with_checksum(BOOTSTRAP))]).await;
    let (_, key) = app.holder(json!({"name": "x", "scopes": ["admin"]})).await;
    app.admin().delete(&format!("/keys/{}", id(&key))).await.data(200);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_first_start_makes_one_admin_key_and_a_second_none() {
    let app = TestApp::start().await;
    let file = std::fs::read_to_string(app.ground.data_dir().join("admin.key")).unwrap();
    assert_eq!(file.trim(), app.admin_key);
    let key = app.admin_key.clone();
    let again = app.restart(&[]).await;
    assert_eq!(again.bearing(&key).get("/keys").await.data(200)["keys"].as_array().unwrap().len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bound_key_sees_its_projects_alone() {
    let app = TestApp::start().await;
    app.project("mine").await;
    app.project("yours").await;
    let body = json!({"name": "x", "scopes": ["projects:read"], "project_ids": ["mine"]});
    let (holder, _) = app.holder(body).await;
    holder.get("/projects/mine").await.data(200);
    holder.get("/projects/yours").await.refused(404, "NOT_FOUND", "project not found");
    holder.get("/projects/none").await.refused(404, "NOT_FOUND", "project not found");
    let listed = holder.get("/projects").await.data(200);
    let ids: Vec<_> = listed["projects"].as_array().unwrap().iter().map(|project| &project["id"]).collect();
    assert_eq!(ids, ["mine"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bound_admin_makes_keys_for_its_projects_alone() {
    let app = TestApp::start().await;
    let (bound, _) = app.holder(json!({"name": "b", "scopes": ["admin"], "project_ids": ["mine", "ours"]})).await;
    let inherited = bound.post("/keys", json!({"name": "x", "scopes": ["projects:read"]})).await.data(201);
    assert_eq!(inherited["project_ids"], json!(["mine", "ours"]));
    let one = json!({"name": "x", "scopes": ["projects:read"], "project_ids": ["mine"]});
    assert_eq!(bound.post("/keys", one).await.data(201)["project_ids"], json!(["mine"]));
    let foreign = json!({"name": "x", "scopes": ["projects:read"], "project_ids": ["mine", "yours"]});
    bound.post("/keys", foreign).await.refusal(403, "FORBIDDEN");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bound_admin_sees_and_revokes_no_foreign_key() {
    let app = TestApp::start().await;
    let (bound, _) = app.holder(json!({"name": "b", "scopes": ["admin"], "project_ids": ["mine"]})).await;
    let (_, free) = app.holder(json!({"name": "free", "scopes": ["projects:read"]})).await;
    let (_, foreign) = app.holder(json!({"name": "f", "scopes": ["projects:read"], "project_ids": ["yours"]})).await;
    for key in [&free, &foreign] {
        bound.get(&format!("/keys/{}", id(key))).await.refusal(404, "NOT_FOUND");
        bound.delete(&format!("/keys/{}", id(key))).await.refusal(404, "NOT_FOUND");
        bound.post(&format!("/keys/{}/rotate", id(key)), json!({})).await.refusal(404, "NOT_FOUND");
    }
    let listed = bound.get("/keys").await.data(200);
    assert!(listed["keys"].as_array().unwrap().iter().all(|key| key["project_ids"] == json!(["mine"])));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bound_admin_makes_no_projects() {
    let app = TestApp::start().await;
    let (bound, _) = app.holder(json!({"name": "b", "scopes": ["admin"], "project_ids": ["mine"]})).await;
    bound.post("/projects", json!({"id": "mine"})).await.refusal(403, "FORBIDDEN");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_used_from_outside_its_cidrs_is_like_an_unknown_one() {
    let app = TestApp::start().await;
    let (outside, _) =
        app.holder(json!({"name": "o", "scopes": ["projects:read"], "allowed_cidrs": ["10.0.0.0/8"]})).await;
    is_refused_as_unknown(&outside.get("/projects").await);
    let (inside, _) =
        app.holder(json!({"name": "i", "scopes": ["projects:read"], "allowed_cidrs": ["127.0.0.0/8"]})).await;
    inside.get("/projects").await.data(200);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_trusted_proxy_says_where_the_client_is() {
    let app = TestApp::with(&[("RDEV_TRUSTED_PROXIES", "127.0.0.0/8,10.0.0.0/8")]).await;
    let (holder, _) =
        app.holder(json!({"name": "o", "scopes": ["projects:read"], "allowed_cidrs": ["192.0.2.0/24"]})).await;
    for (forwarded, status) in [
        ("192.0.2.7", 200),
        ("192.0.2.7, 10.1.1.1", 200),
        ("192.0.2.7, 198.51.100.1", 401),
        ("198.51.100.1, 192.0.2.7", 200),
        ("", 401),
    ] {
        let headers = [("x-forwarded-for", forwarded)];
        let reply = holder.send(http::Method::GET, "/projects", None, &headers).await;
        assert_eq!(reply.status, status, "{forwarded:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn nobody_else_says_where_the_client_is() {
    let app = TestApp::start().await;
    let (holder, _) =
        app.holder(json!({"name": "o", "scopes": ["projects:read"], "allowed_cidrs": ["192.0.2.0/24"]})).await;
    let headers = [("x-forwarded-for", "192.0.2.7")];
    is_refused_as_unknown(&holder.send(http::Method::GET, "/projects", None, &headers).await);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_time_of_use_is_kept_to_the_minute() {
    let app = TestApp::start().await;
    let (holder, key) = app.holder(json!({"name": "x", "scopes": ["projects:read"]})).await;
    assert!(key.get("last_used_at").is_none());
    holder.get("/projects").await.data(200);
    let used = eventually("a time of use", async || {
        let shown = app.admin().get(&format!("/keys/{}", id(&key))).await.data(200);
        shown.get("last_used_at").is_some().then_some(shown)
    });
    let distance = app.clock.now() - at(&used.await, "last_used_at");
    assert!(distance.abs() < TimeDelta::minutes(1), "{distance}");
}

#[tokio::test(flavor = "multi_thread")]
async fn keys_are_listed_newest_first_page_by_page() {
    let app = TestApp::start().await;
    for name in ["a", "b", "c"] {
        app.holder(json!({"name": name, "scopes": ["projects:read"]})).await;
    }
    let (mut names, mut cursor) = (Vec::new(), String::new());
    loop {
        let reply = app.admin().get(&format!("/keys?limit=2&cursor={cursor}")).await;
        let page = reply.data(200)["keys"].as_array().unwrap().clone();
        names.extend(page.iter().map(|key| key["name"].as_str().unwrap().to_owned()));
        match reply.cursor() {
            Some(next) => cursor = next,
            None => break,
        }
    }
    assert_eq!(names, ["c", "b", "a", "admin"]);
}
