//! The server killed around the making and the end of a token: none outlives its checkout.

use std::{sync::Arc, time::Duration};

use serde_json::{Value, json};

use super::{CHECKOUT, checkout, path, token_is_gone};
use crate::support::{Fault, Gitea, Ground, Server, eventually};

const LONG: Duration = Duration::from_mins(5);

async fn server_on(gitea: &Gitea) -> (Arc<Ground>, Server) {
    let ground = Ground::new().await;
    let server = Server::start(&ground, &gitea.settings()).await;
    server.admin().post("/projects", json!({"id": "p"})).await.data(201);
    (ground, server)
}

/// A request whose answer nobody will read.
fn ask(server: &Server, path: &str, body: Value) -> tokio::task::JoinHandle<()> {
    let client = reqwest::Client::builder().no_proxy().build().expect("a client with no special wishes");
    let request = client.post(format!("{}{path}", server.url)).bearer_auth(server.admin().credential()).json(&body);
    tokio::spawn(async move { drop(request.send().await) })
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_that_was_made_and_not_written_down_is_taken_back() {
    let gitea = Gitea::start().await;
    let (ground, server) = server_on(&gitea).await;
    gitea.plan("POST", "/tokens", Fault::Hangs(LONG), 1);
    let asking = ask(&server, CHECKOUT, json!({"new_branch": "feature"}));
    eventually("the token", async || (gitea.tokens().len() == 2).then_some(())).await;
    server.kill().await;
    asking.abort();
    gitea.behaves();
    let server = Server::start(&ground, &gitea.settings()).await;
    eventually("everything to be taken back", async || {
        (gitea.tokens().len() == 1 && gitea.head("p", "feature").await.is_none()).then_some(())
    })
    .await;
    eventually("the branch to be free", async || {
        (server.admin().post(CHECKOUT, json!({"new_branch": "feature"})).await.status == 201).then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_end_that_was_written_down_kills_the_token_whatever_becomes_of_the_server() {
    let gitea = Gitea::start().await;
    let (ground, server) = server_on(&gitea).await;
    let made = checkout(&server.admin(), "feature").await;
    gitea.plan("DELETE", "/tokens/", Fault::Slow(LONG), usize::MAX);
    let asking = ask(&server, &format!("{}/checkin", path(&made)), json!({}));
    eventually("the end to be written down", async || {
        (ground.db.count("select count(*) from checkout where status = 'checked_in'").await == 1).then_some(())
    })
    .await;
    server.kill().await;
    asking.abort();
    gitea.behaves();
    let server = Server::start(&ground, &gitea.settings()).await;
    token_is_gone(&gitea, &made).await;
    assert_eq!(server.admin().get(&path(&made)).await.data(200)["status"], "checked_in");
}
