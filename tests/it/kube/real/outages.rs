//! The way to the cluster breaks and comes back. What runs, runs on.

use std::time::Instant;

use chrono::TimeDelta;
use serde_json::json;

use super::{
    super::super::support::{Event, PATIENCE, TestApp, eventually},
    Place, WITH_GIT, Wire, is_whole, talker,
};

const LINES: usize = 200;

/// A server that reaches the cluster over a wire, and a pod `p`.
async fn over_a_wire() -> (Place, Wire, TestApp) {
    let place = Place::open().await;
    let wire = Wire::to(place.address()).await;
    let kubeconfig = place.kubeconfig("wired", |config| {
        let cluster = config.clusters[0].cluster.as_mut().expect("a cluster");
        cluster.server = Some(format!("https://127.0.0.1:{}", wire.port));
    });
    let app = place.app_by(&kubeconfig).await;
    place.pod("p", WITH_GIT).await;
    super::super::is(&app.admin(), "p", "running").await;
    // The place is ready, so that what is cut is the command's own.
    assert_eq!(app.script("p", "true").await["exit_code"], 0);
    (place, wire, app)
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs RDEV_TEST_KUBECONFIG"]
async fn a_command_is_whole_wherever_its_wires_are_cut() {
    let (_place, wire, app) = over_a_wire().await;
    let admin = app.admin();
    // Before the first word, in the handshakes, in the script, in the output.
    let cuts = [0, 300, 2_000, 3_000, 4_000, 6_000, 10_000, 20_000];
    for after in cuts {
        wire.cut(4, after);
        let command = super::super::start(&admin, &talker(LINES, "0.002")).await;
        let mut events = app.listen(command["events_url"].as_str().unwrap()).await;
        let mut seen: Vec<Event> = Vec::new();
        while let Some(event) = events.try_next().await {
            if event.id.is_some() {
                seen.push(event);
            }
        }
        is_whole(&seen, &command, LINES);
    }
    assert!(wire.all_cut(), "all of them were cut");
    let runs = app.script("p", "cat runs").await;
    assert_eq!(app.output(&runs).await, "run\n".repeat(cuts.len()));
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs RDEV_TEST_KUBECONFIG"]
async fn an_api_that_is_silent_holds_up_nobody_and_nothing_is_lost() {
    let (_place, wire, app) = over_a_wire().await;
    let admin = app.admin();
    let command = super::super::start(&admin, &talker(600, "0.01")).await;
    let mut events = app.listen(command["events_url"].as_str().unwrap()).await;
    let mut seen: Vec<Event> = Vec::new();
    while let Some(event) = events.try_next().await {
        if event.id.is_none() {
            continue;
        }
        seen.push(event);
        if seen.len() == 100 {
            wire.silence(true);
            for path in ["/health/ready", "/health", "/projects", "/projects/p", "/projects/p/commands", "/keys"] {
                let asked = Instant::now();
                assert_eq!(admin.get(path).await.status, 200, "{path}");
                assert!(asked.elapsed() < PATIENCE / 10, "{path} took {:?}", asked.elapsed());
            }
            let refused = admin.post("/projects/p/sessions", json!({"new_branch": "b"})).await;
            refused.refusal(503, "UPSTREAM_UNAVAILABLE");
            assert!(!refused.header("retry-after").is_empty());
            wire.silence(false);
            // The circuit may have opened.
            app.advance(TimeDelta::seconds(31));
        }
    }
    is_whole(&seen, &command, 600);
    // Nobody has to mend anything by hand.
    eventually("commands as before", async || {
        let body = json!({"script": "cat runs", "wait": "30s"});
        let reply = admin.post("/projects/p/shell", body).await;
        (reply.status == 201 && reply.data(201)["exit_code"] == 0).then_some(())
    })
    .await;
}
