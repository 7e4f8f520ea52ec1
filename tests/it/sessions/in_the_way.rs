//! What is left in a project's clone neither keeps a session from being made nor comes from one.

use std::{os::unix::fs::MetadataExt as _, path::Path};

use serde_json::{Value, json};

use super::{app_with_project, file_at, head_of, path};
use crate::support::TestApp;

/// What a script in the workspace says.
async fn said(app: &TestApp, script: &str) -> String {
    let ran = app.script("p", script).await;
    assert_eq!(ran["exit_code"], 0, "{script}: {}", app.output(&ran).await);
    app.output(&ran).await
}

async fn end(app: &TestApp, session: &Value) {
    app.admin().delete(&path(session)).await.data(200);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_branch_below_one_that_was_deleted_gets_its_session() {
    let app = app_with_project().await;
    let session = app.session("p", "feature").await;
    end(&app, &session).await;
    let clone = app.git_clone(&app.admin_clone_url("p")).await;
    clone.git(&["push", "--quiet", "origin", ":refs/heads/feature"]).await.ok();
    let session = app.session("p", "feature/x").await;
    end(&app, &session).await;
    clone.git(&["push", "--quiet", "origin", ":refs/heads/feature/x"]).await.ok();
    app.session("p", "feature").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn branches_of_the_clone_that_are_in_the_way_are_set_aside() {
    let app = app_with_project().await;
    said(&app, "git checkout --quiet -b local; echo x > x; git add x; git commit --quiet -m x; git branch deep/er")
        .await;
    let sha = said(&app, "git rev-parse HEAD").await;
    for branch in ["local/x", "deep", "local"] {
        let session = app.session("p", branch).await;
        let pushed = app.exec("p", &session, "git commit --quiet --allow-empty -m y && git push --quiet").await;
        assert_eq!(pushed["exit_code"], 0, "{}", app.output(&pushed).await);
        end(&app, &session).await;
        let clone = app.git_clone(&app.admin_clone_url("p")).await;
        clone.git(&["push", "--quiet", "origin", &format!(":refs/heads/{branch}")]).await.ok();
    }
    let kept = said(&app, "git for-each-ref --format='%(objectname)' refs/rdev-kept | sort -u").await;
    assert_eq!(kept, sha, "nothing of theirs is lost");
}

#[tokio::test(flavor = "multi_thread")]
async fn locks_that_a_killed_git_has_left_keep_no_session_from_being_made() {
    let app = app_with_project().await;
    said(&app, "git checkout --quiet -b mine; touch .git/index.lock .git/config.lock .git/HEAD.lock-not").await;
    let session = app.session("p", "mine").await;
    end(&app, &session).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_killed_git_left_locked_is_in_nobodys_way() {
    let app = app_with_project().await;
    let project = app.admin().get("/projects/p").await.data(200);
    let git = Path::new(project["workspace"].as_str().unwrap()).join(".git");
    let leave_locked = |names: &[&str]| {
        for name in names {
            let lock = git.join(format!("{name}.lock"));
            let folder = lock.parent().unwrap();
            if !folder.exists() {
                std::fs::create_dir(folder).unwrap();
                std::os::unix::fs::chown(folder, Some(git.metadata().unwrap().uid()), None).unwrap();
            }
            std::fs::write(lock, "").unwrap();
        }
    };
    leave_locked(&["config", "refs/heads/feature", "refs/remotes/origin/feature"]);
    let session = app.session("p", "feature").await;
    let worktree = Path::new(session["workspace"].as_str().unwrap()).to_owned();
    std::fs::write(worktree.join("new.txt"), "not pushed").unwrap();
    let rescue = format!("refs/rdev-rescue/{}", session["id"].as_str().unwrap());
    leave_locked(&["packed-refs", "refs/remotes/origin/feature", &rescue]);
    let ended = app.admin().delete(&path(&session)).await.data(200);
    let sha = ended["rescue"]["sha"].as_str().unwrap_or_else(|| panic!("{ended}")).to_owned();
    assert_eq!(file_at(&app, &sha, "new.txt").await.as_deref(), Some("not pushed"));
}

#[tokio::test(flavor = "multi_thread")]
async fn the_branch_follows_that_of_the_git_host() {
    let app = app_with_project().await;
    let session = app.session("p", "feature").await;
    let clone = app.git_clone(&app.admin_clone_url("p")).await;
    clone.git(&["checkout", "--quiet", "feature"]).await.ok();
    let theirs = clone.commit("theirs.txt", "theirs").await;
    clone.git(&["push", "--quiet", "origin", "feature"]).await.ok();
    let script = "git pull --quiet && git rev-parse HEAD && git rev-parse --abbrev-ref '@{upstream}'";
    let pulled = app.exec("p", &session, script).await;
    assert_eq!(app.output(&pulled).await, format!("{theirs}\norigin/feature\n"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_session_begins_where_the_git_host_is_also_where_the_clone_is_behind() {
    let app = app_with_project().await;
    let clone = app.git_clone(&app.admin_clone_url("p")).await;
    let sha = clone.commit("new.txt", "new").await;
    clone.git(&["push", "--quiet", "origin", "HEAD:main", "HEAD:refs/heads/there"]).await.ok();
    for body in
        [json!({"branch": "there"}), json!({"new_branch": "made"}), json!({"new_branch": "by-id", "from_ref": sha})]
    {
        let session = super::open(&app, body).await;
        let head = app.exec("p", &session, "git rev-parse HEAD; cat new.txt").await;
        assert_eq!(app.output(&head).await, format!("{sha}\nnew"));
        end(&app, &session).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_of_a_session_is_left_in_the_clone() {
    let app = app_with_project().await;
    let look = "git for-each-ref --format='%(refname)' refs/heads refs/rdev-rescue; git config --list --local; \
                ls -A .git/worktrees ../sessions \"$HOME/.rdev/sessions\" 2>/dev/null; true";
    let session = app.session("p", "first").await;
    end(&app, &session).await;
    let before = said(&app, look).await;
    let session = app.session("p", "feature").await;
    app.exec("p", &session, "echo loose > loose.txt; git commit --quiet --allow-empty -m x; git push --quiet").await;
    end(&app, &session).await;
    assert_eq!(said(&app, look).await, before);
    assert_ne!(head_of(&app, "feature").await, "");
}
