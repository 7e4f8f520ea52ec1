//! Work that was not pushed is found when its session ends, whatever became of the worktree.

use std::path::Path;

use chrono::TimeDelta;
use serde_json::{Value, json};

use super::{SESSIONS, app_with_project, file_at, head_of, open, opens, path, shown};
use crate::support::{TestApp, eventually};

/// Ends it as an admin. What was rescued.
async fn end(app: &TestApp, session: &Value) -> Value {
    let done = app.admin().delete(&path(session)).await.data(200);
    assert!(!Path::new(session["workspace"].as_str().unwrap()).exists(), "the worktree is left: {done}");
    done["rescue"].clone()
}

#[track_caller]
fn sha(rescue: &Value) -> String {
    rescue["sha"].as_str().unwrap_or_else(|| panic!("nothing was rescued: {rescue}")).to_owned()
}

/// What a script leaves behind, when the session has ended.
async fn rescued_after(app: &TestApp, branch: &str, script: &str) -> Value {
    let session = app.session("p", branch).await;
    let ran = app.exec("p", &session, script).await;
    assert_eq!(ran["exit_code"], 0, "{script}: {}", app.output(&ran).await);
    end(app, &session).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worktree_that_git_does_not_understand_any_more_is_rescued() {
    let app = app_with_project().await;
    for (n, damage) in [
        "rm .git",
        "rm .git && git init --quiet",
        "echo garbage > \"$(git rev-parse --git-path index)\"",
        "touch \"$(git rev-parse --git-path index.lock)\"",
        "rm -rf \"$(git rev-parse --git-dir)\"",
    ]
    .into_iter()
    .enumerate()
    {
        let script = format!("echo loose > loose.txt; echo more >> README.md; {damage}");
        let sha = sha(&rescued_after(&app, &format!("b{n}"), &script).await);
        assert_eq!(file_at(&app, &sha, "loose.txt").await.as_deref(), Some("loose\n"), "{damage}");
        assert!(file_at(&app, &sha, "README.md").await.unwrap().ends_with("more\n"), "{damage}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_configuration_that_keeps_git_from_adding_keeps_nothing_from_being_rescued() {
    let app = app_with_project().await;
    for (n, config) in [
        "git config --unset user.name; git config --unset user.email",
        "git config filter.bad.clean false; git config filter.bad.required true; echo '*.big filter=bad' > .gitattributes",
        "git config core.autocrlf input; git config core.safecrlf true; printf 'a\\r\\nb\\r\\n' > crlf.txt",
        "git config core.hooksPath \"$PWD/h\"; mkdir h; printf '#!/bin/sh\\nexit 1\\n' > h/pre-push; chmod +x h/pre-push",
    ]
    .into_iter()
    .enumerate()
    {
        let script = format!("echo loose > loose.txt; echo big > x.big; {config}");
        let sha = sha(&rescued_after(&app, &format!("b{n}"), &script).await);
        for (file, text) in [("loose.txt", "loose\n"), ("x.big", "big\n")] {
            assert_eq!(file_at(&app, &sha, file).await.as_deref(), Some(text), "{config}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn commits_are_rescued_also_where_the_worktree_is_gone() {
    let app = app_with_project().await;
    for (n, leave) in [
        "cd /; rm -rf \"$here\"",
        "cd ../../main; rm -rf \"$here\"; git worktree prune",
        "cd ..; rm -rf \"$here\"; ln -s /nowhere \"$here\"",
    ]
    .into_iter()
    .enumerate()
    {
        let script = format!("here=$PWD; echo work > work.txt; git add .; git commit --quiet -m work; {leave}");
        let sha = sha(&rescued_after(&app, &format!("b{n}"), &script).await);
        assert_eq!(file_at(&app, &sha, "work.txt").await.as_deref(), Some("work\n"), "{leave}");
    }
    let nothing = rescued_after(&app, "nothing", "here=$PWD; cd /; rm -rf \"$here\"").await;
    assert_eq!(nothing, Value::Null, "files that are deleted with their folder are no work");
}

#[tokio::test(flavor = "multi_thread")]
async fn commits_beside_the_branch_are_rescued() {
    let app = app_with_project().await;
    let commit = "echo work > work.txt; git add .; git commit --quiet -m work; git rev-parse HEAD > ../../main/sha";
    for (n, script) in [
        format!("git checkout --quiet -b side; {commit}; git checkout --quiet b0"),
        format!("git checkout --quiet --detach; {commit}"),
        format!("{commit}; git checkout --quiet --detach origin/main"),
    ]
    .into_iter()
    .enumerate()
    {
        let rescue = rescued_after(&app, &format!("b{n}"), &script).await;
        let made = app.script("p", "cat sha").await;
        assert_eq!(sha(&rescue), app.output(&made).await.trim(), "the very commit: {script}");
    }
    let stash = "echo more >> README.md; git stash --quiet; git rev-parse refs/stash > ../../main/sha; echo x > x";
    let rescue = rescued_after(&app, "stashed", stash).await;
    let made = app.output(&app.script("p", "cat sha").await).await;
    let holds = format!("git fetch -q origin {0} && git merge-base --is-ancestor {1} {0}", sha(&rescue), made.trim());
    assert_eq!(app.script("p", &holds).await["exit_code"], 0, "what was stashed is a parent");
    assert_eq!(rescued_after(&app, "later", "true").await, Value::Null, "it is no work of the next session");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_repository_inside_is_rescued_with_its_files() {
    let app = app_with_project().await;
    let git = "git -c user.name=a -c user.email=a@localhost";
    let script = format!(
        "git init -q born; cd born; echo 1 > in.txt; git add .; {git} commit -qm 1; echo 2 > loose.txt; cd ..; \
         git init -q unborn; echo 3 > unborn/in.txt; echo 4 > beside.txt"
    );
    let sha = sha(&rescued_after(&app, "feature", &script).await);
    for (file, text) in
        [("born/in.txt", "1\n"), ("born/loose.txt", "2\n"), ("unborn/in.txt", "3\n"), ("beside.txt", "4\n")]
    {
        assert_eq!(file_at(&app, &sha, file).await.as_deref(), Some(text), "{file}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_may_not_be_read_or_written_is_rescued_and_removed() {
    let app = app_with_project().await;
    let script = "mkdir -p cache/deep dark; echo 1 > cache/deep/f; echo 2 > secret; echo 3 > dark/f; \
                  chmod -R a-w cache; chmod 000 secret dark";
    let sha = sha(&rescued_after(&app, "feature", script).await);
    for (file, text) in [("cache/deep/f", "1\n"), ("secret", "2\n"), ("dark/f", "3\n")] {
        assert_eq!(file_at(&app, &sha, file).await.as_deref(), Some(text), "{file}");
    }
    app.session("p", "another").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn files_are_rescued_also_where_the_clone_is_gone() {
    let app = app_with_project().await;
    let sha = sha(&rescued_after(&app, "feature", "echo loose > loose.txt; rm -rf ../../main/.git").await);
    assert_eq!(file_at(&app, &sha, "loose.txt").await.as_deref(), Some("loose\n"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_branch_that_is_gone_on_the_git_host_is_no_place_for_work() {
    let app = app_with_project().await;
    let session = app.session("p", "feature").await;
    app.exec("p", &session, "git commit --quiet --allow-empty -m work && git push --quiet").await;
    let pushed = head_of(&app, "feature").await;
    let url = app.admin_clone_url("p");
    let clone = app.git_clone(&url).await;
    clone.git(&["push", "--quiet", "origin", ":refs/heads/feature"]).await.ok();
    assert_eq!(sha(&end(&app, &session).await), pushed);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_git_host_that_is_away_for_a_moment_is_asked_again() {
    let app = app_with_project().await;
    let session = app.session("p", "feature").await;
    app.exec("p", &session, "echo loose > loose.txt").await;
    let (here, away) = (app.ground.data_dir().join("git/p.git"), app.ground.data_dir().join("git/away"));
    std::fs::rename(&here, &away).unwrap();
    let project = app.admin().get("/projects/p").await.data(200);
    let kept = format!("{}/.git/refs/rdev-rescue", project["workspace"].as_str().unwrap());
    let back = async {
        eventually("a commit that waits to be pushed", async || {
            std::fs::read_dir(&kept).is_ok_and(|mut dir| dir.next().is_some()).then_some(())
        })
        .await;
        std::fs::rename(&away, &here).unwrap();
    };
    let (rescue, ()) = tokio::join!(end(&app, &session), back);
    assert_eq!(file_at(&app, &sha(&rescue), "loose.txt").await.as_deref(), Some("loose\n"));
    assert!(std::fs::read_dir(&kept).map_or(true, |mut dir| dir.next().is_none()), "it is there no longer");
}

#[tokio::test(flavor = "multi_thread")]
async fn whichever_way_a_session_ends_its_work_can_be_taken_up_again() {
    let app = app_with_project().await;
    for way in ["terminated", "checkin", "revoked", "idle", "expired"] {
        let body = json!({"new_branch": way, "expires_in": "2h", "idle_timeout": "1h"});
        let session = open(&app, body).await;
        app.exec("p", &session, &format!("echo {way} > work.txt")).await;
        let checkout = format!("/projects/p/checkout/{}", session["checkout_id"].as_str().unwrap());
        match way {
            "terminated" => app.admin().delete(&path(&session)).await.data(200),
            "checkin" => app.admin().post(&format!("{}/checkin", path(&session)), json!({})).await.data(200),
            "revoked" => app.admin().delete(&checkout).await.data(200),
            "idle" => {
                app.advance(TimeDelta::minutes(61));
                Value::Null
            }
            _ => {
                let body = json!({"expires_in": "2h"});
                app.admin().post(&format!("{}/extend", path(&session)), body).await.data(200);
                app.advance(TimeDelta::hours(2));
                Value::Null
            }
        };
        let ended = eventually("its end", async || {
            let seen = shown(&app, &session).await;
            seen["ended_at"].is_string().then_some(seen)
        });
        let ended = ended.await;
        assert!(!opens(&app, session["auth_clone_url"].as_str().unwrap()).await, "the token lives: {ended}");
        let rescued = ended["rescue"]["branch"].as_str().unwrap_or_else(|| panic!("{way}: {ended}"));
        let again = open(&app, json!({"new_branch": format!("{way}-again"), "from_ref": rescued})).await;
        let found = app.exec("p", &again, "cat work.txt").await;
        assert_eq!(app.output(&found).await, format!("{way}\n"));
        let done = app.admin().post(&format!("{}/checkin", path(&again)), json!({})).await.data(200);
        assert!(done.get("rescue").is_none(), "it is on the branch: {done}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_review_is_of_what_was_pushed_and_the_rest_is_rescued() {
    let app = TestApp::start().await;
    app.project_with(json!({"id": "p", "review_command": ["test", "!", "-e", "loose.txt"]})).await;
    let session = app.session("p", "feature").await;
    let script =
        "echo x > x; git add .; git commit --quiet -m x; git push --quiet; git rev-parse HEAD; echo y > loose.txt";
    let pushed = app.output(&app.exec("p", &session, script).await).await.trim().to_owned();
    let done = app.admin().post(&format!("{}/checkin", path(&session)), json!({})).await.data(200);
    assert_eq!(file_at(&app, &sha(&done["rescue"]), "loose.txt").await.as_deref(), Some("y\n"));
    let review = format!("/projects/p/reviews/{}", done["review_task_id"].as_str().unwrap());
    let judged = eventually("the verdict", async || {
        let seen = app.admin().get(&review).await.data(200);
        seen["completed_at"].is_string().then_some(seen)
    });
    let judged = judged.await;
    assert_eq!((&judged["status"], &judged["head_sha"]), (&json!("passed"), &json!(pushed)));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_checkin_that_may_not_rescue_stays_where_nothing_can_be_known() {
    let app = app_with_project().await;
    let session = app.session("p", "feature").await;
    app.exec("p", &session, "echo loose > loose.txt; rm .git").await;
    let checkin = format!("{}/checkin", path(&session));
    app.admin().post(&checkin, json!({"on_dirty": "fail"})).await.refusal(409, "UNPUSHED_CHANGES");
    assert_eq!(shown(&app, &session).await["status"], "active");
    let clean = app.admin().get(&format!("{SESSIONS}?status=active")).await.data(200);
    assert_eq!(clean["sessions"].as_array().unwrap().len(), 1);
    app.admin().post(&checkin, json!({"on_dirty": "discard"})).await.data(200);
}
