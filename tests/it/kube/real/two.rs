//! Two servers on one database and one cluster, each a process of its own.

use serde_json::json;

use super::{
    super::super::support::{Event, Server},
    Place, WITH_GIT, is_whole, talker,
};

const LINES: usize = 400;

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs RDEV_TEST_KUBECONFIG"]
async fn a_command_streams_from_the_other_server_and_goes_on_when_its_own_is_killed() {
    killed_in_the_middle(true).await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs RDEV_TEST_KUBECONFIG"]
async fn a_command_goes_on_when_another_server_is_killed() {
    killed_in_the_middle(false).await;
}

/// Whether the one that is killed is the one that the command was started on.
async fn killed_in_the_middle(starter: bool) {
    let place = Place::open().await;
    let (one, two) = (place.server().await, place.server().await);
    place.pod("p", WITH_GIT).await;
    for server in [&one, &two] {
        super::super::is(&server.admin(), "p", "running").await;
    }
    let command = super::super::start(&one.admin(), &talker(LINES, "0.01")).await;
    let (victim, survivor): (Server, Server) = if starter { (one, two) } else { (two, one) };
    let admin = survivor.admin();
    let mut events = admin.listen(command["events_url"].as_str().unwrap()).await;
    let mut seen: Vec<Event> = Vec::new();
    let mut victim = Some(victim);
    while let Some(event) = events.try_next().await {
        if event.id.is_none() {
            continue;
        }
        seen.push(event);
        if seen.len() == 100 {
            // Live: it was not over when this was shown.
            let path = format!("/projects/p/commands/{}", command["command_id"].as_str().unwrap());
            assert_eq!(admin.get(&path).await.data(200)["status"], "running");
            victim.take().expect("the first time").kill().await;
        }
    }
    is_whole(&seen, &command, LINES);
    let ended = super::super::end_of(&admin, &command).await;
    assert_eq!((&ended["exit_code"], &ended["termination"]), (&json!(7), &json!("exit")));
    // And it takes what comes next.
    let next = super::super::start(&admin, "cat runs").await;
    super::super::end_of(&admin, &next).await;
    assert_eq!(admin.get(next["output_url"].as_str().unwrap()).await.text, "run\n");
    assert_eq!(survivor.terminate().await, Some(0));
}
