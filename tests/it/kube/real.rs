//! The same on a cluster that is one, for what a cluster of our own making would not show: its
//! own words, its own exec, pods that die as pods do, and several servers on it. It is named by
//! `RDEV_TEST_KUBECONFIG`; without it these are shown as skipped.

mod cluster;
mod outages;
mod rights;
mod two;
mod wire;

use serde_json::{Value, json};

use self::{
    cluster::{BUSYBOX, Place, WITH_GIT},
    wire::Wire,
};
use super::super::support::{Event, Ground, sse::text_of};

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs RDEV_TEST_KUBECONFIG"]
async fn commands_sessions_and_ends_on_a_real_cluster() {
    let place = Place::open().await;
    let app = place.app().await;
    for (image, git) in [(WITH_GIT, true), (BUSYBOX, false)] {
        let project = if git { "with-git" } else { "without-git" };
        place.pod(project, image).await;
        super::is(&app.admin(), project, "running").await;
        let ran = app.script(project, "echo out; echo err >&2; exit 137").await;
        assert_eq!((&ran["exit_code"], &ran["termination"]), (&json!(137), &json!("exit")));
        assert_eq!(app.output(&ran).await.len(), "out\nerr\n".len());
        let killed = app.script(project, "kill -KILL $$").await;
        assert_eq!((&killed["termination"], &killed["signal"]), (&json!("signal"), &json!("KILL")));
        if git {
            let session = app.session(project, "work").await;
            let pushed =
                app.exec(project, &session, "echo x > x && git add x && git commit -qm x && git push -q").await;
            assert_eq!(pushed["exit_code"], 0, "{}", app.output(&pushed).await);
        } else {
            let path = format!("/projects/{project}/git");
            app.admin().post(&path, json!({"args": ["log"]})).await.refusal(400, "GIT_MISSING");
        }
        place.delete_pod(project).await;
        super::is(&app.admin(), project, "not_found").await;
    }
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs RDEV_TEST_KUBECONFIG"]
async fn a_command_is_lost_with_its_pod() {
    let place = Place::open().await;
    let app = place.app().await;
    place.pod("p", BUSYBOX).await;
    super::is(&app.admin(), "p", "running").await;
    let command = super::start(&app.admin(), "echo begun; sleep 600").await;
    let mut events = app.listen(command["events_url"].as_str().unwrap()).await;
    assert_eq!(events.next().await.line(), "begun");
    place.delete_pod("p").await;
    let last = events.next_named("error").await;
    assert_eq!((&last.data["code"], &last.data["termination"]), (&json!("STREAM_LOST"), &json!("pod_lost")));
    let ended = super::end_of(&app.admin(), &command).await;
    assert_eq!((&ended["status"], &ended["exit_code"]), (&json!("lost"), &json!(null)));
}

/// Says `line N` and `err N` so often, and ends with 7. Tells in `runs` that it was run.
fn talker(lines: usize, pause: &str) -> String {
    format!(
        "echo run >> runs; i=0; while test $i -lt {lines}; do echo line $i; echo err $i >&2; i=$((i+1)); sleep {pause}; done; exit 7"
    )
}

/// No gap, no repeat, the right end.
#[track_caller]
fn is_whole(seen: &[Event], command: &Value, lines: usize) {
    let last = seen.last().expect("a stream has an end");
    assert_eq!(last.id, Some(format!("{}:final", command["command_id"].as_str().expect("an id"))), "{last:?}");
    assert_eq!((last.name.as_str(), &last.data["exit_code"]), ("complete", &json!(7)), "{last:?}");
    let numbers: Vec<_> = seen.iter().filter_map(Event::number).collect();
    assert_eq!(numbers, (1..seen.len() as u64).collect::<Vec<_>>());
    for (stream, word) in [("stdout", "line"), ("stderr", "err")] {
        let expected: String = (0..lines).map(|i| format!("{word} {i}\n")).collect();
        assert_eq!(text_of(seen, stream), expected, "{stream}");
    }
}
