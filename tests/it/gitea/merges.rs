//! What passed goes in although the branch is protected: the very commit that was joined here,
//! by a pull request, and only from where the branches were seen.

use serde_json::{Value, json};

use super::{GitClone, Gitea, TestApp, app_on, checkout, clone_of, path};
use crate::support::{Fault, eventually};

struct Work {
    checkout: Value,
    clone: GitClone,
    sha: String,
}

async fn app_with(gitea: &Gitea, script: &str) -> TestApp {
    let app = app_on(gitea).await;
    app.project_with(json!({"id": "p", "review_command": ["sh", "-c", script]})).await;
    app
}

async fn work(app: &TestApp, branch: &str, file: &str, text: &str) -> Work {
    let checkout = checkout(&app.admin(), branch).await;
    let clone = clone_of(&app.ground, &checkout).await;
    let sha = clone.commit(file, text).await;
    clone.git(&["push", "--quiet", "origin", branch]).await.ok();
    Work { checkout, clone, sha }
}

/// The review of a checkin when it is over.
async fn checked_in(app: &TestApp, work: &Work) -> Value {
    let path = format!("{}/checkin", path(&work.checkout));
    let done = app.admin().post(&path, json!({"auto_merge": true})).await.data(200);
    over(app, done["review_task_id"].as_str().expect("a review")).await
}

async fn over(app: &TestApp, id: &str) -> Value {
    let review = format!("/projects/p/reviews/{id}");
    let look = async || Some(app.admin().get(&review).await.data(200)).filter(|r| r.get("completed_at").is_some());
    eventually("the review's end", look).await
}

/// Somebody with more rights than rdev commits to the default branch.
async fn move_main(app: &TestApp, gitea: &Gitea, file: &str, text: &str) -> String {
    let clone = GitClone::of(&gitea.clone_url("p"), app.ground.path()).await;
    let sha = clone.commit(file, text).await;
    clone.git(&["push", "--quiet", "origin", "HEAD:refs/heads/side"]).await.ok();
    gitea.git("p", &["update-ref", "refs/heads/main", &sha]).await;
    gitea.git("p", &["update-ref", "-d", "refs/heads/side"]).await;
    sha
}

async fn branches(gitea: &Gitea) -> String {
    gitea.git("p", &["for-each-ref", "--format=%(refname:lstrip=2)", "refs/heads/"]).await.replace('\n', " ")
}

#[tokio::test(flavor = "multi_thread")]
async fn what_passed_goes_forward_into_a_protected_branch() {
    let gitea = Gitea::start().await;
    let app = app_with(&gitea, "test \"$(cat a.txt)\" = a").await;
    let work = work(&app, "feature", "a.txt", "a\n").await;
    let review = checked_in(&app, &work).await;
    assert_eq!((&review["status"], &review["merge"]), (&json!("passed"), &json!("merged")), "{review}");
    assert_eq!(review["merge_sha"], work.sha);
    assert_eq!(gitea.head("p", "main").await, Some(work.sha));
    assert_eq!(gitea.pulls("p"), [("merged".to_owned(), "Merge feature into main".to_owned())]);
    assert_eq!(branches(&gitea).await, "feature main");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_merge_commit_joins_what_went_apart() {
    let gitea = Gitea::start().await;
    let app = app_with(&gitea, "exit 0").await;
    let work = work(&app, "feature", "a.txt", "a").await;
    let main = move_main(&app, &gitea, "b.txt", "b").await;
    let review = checked_in(&app, &work).await;
    assert_eq!(review["merge"], "merged", "{review}");
    let merged = gitea.head("p", "main").await.unwrap();
    assert_eq!(review["merge_sha"], merged);
    let line = gitea.git("p", &["rev-list", "--parents", "--max-count=1", "main"]).await;
    assert_eq!(line, format!("{merged} {main} {}", work.sha));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_conflict_and_a_branch_that_moved_leave_everything_as_it_is() {
    let gitea = Gitea::start().await;
    let app = app_with(&gitea, "while ! test -e ../../main/go; do sleep 0.02; done").await;
    let first = work(&app, "conflict", "same.txt", "mine\n").await;
    let second = work(&app, "moved", "other.txt", "mine\n").await;
    let main = move_main(&app, &gitea, "same.txt", "theirs\n").await;
    let mut reviews = Vec::new();
    for work in [&first, &second] {
        let path = format!("{}/checkin", path(&work.checkout));
        reviews.push(app.admin().post(&path, json!({"auto_merge": true})).await.data(200)["review_task_id"].clone());
    }
    let again = checkout_again(&app, "moved").await;
    let clone = clone_of(&app.ground, &again).await;
    clone.commit("more.txt", "more").await;
    clone.git(&["push", "--quiet", "origin", "moved"]).await.ok();
    app.script("p", "touch go").await;
    let merges = [over(&app, reviews[0].as_str().unwrap()).await, over(&app, reviews[1].as_str().unwrap()).await];
    assert_eq!([&merges[0]["merge"], &merges[1]["merge"]], [&json!("conflict"), &json!("blocked")], "{merges:?}");
    assert_eq!(gitea.head("p", "main").await, Some(main));
    assert!(gitea.pulls("p").is_empty());
    assert!(first.clone.path.exists());
}

async fn checkout_again(app: &TestApp, branch: &str) -> Value {
    app.admin().post(super::CHECKOUT, json!({"branch": branch})).await.data(201)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_merge_whose_answer_was_lost_is_recognised() {
    let gitea = Gitea::start().await;
    let app = app_with(&gitea, "exit 0").await;
    let work = work(&app, "feature", "a.txt", "a").await;
    move_main(&app, &gitea, "b.txt", "b").await;
    gitea.looks_at_once();
    gitea.plan("POST", "/merge", Fault::Mute, 1);
    let review = checked_in(&app, &work).await;
    assert_eq!(review["merge"], "merged", "{review}");
    assert_eq!(gitea.head("p", "main").await.as_deref(), review["merge_sha"].as_str());
    let merges = gitea.git("p", &["rev-list", "--count", "--merges", "main"]).await;
    assert_eq!(merges, "1", "merged once");
}

#[tokio::test(flavor = "multi_thread")]
async fn where_the_branch_is_not_protected_there_is_no_pull_request() {
    let gitea = Gitea::start().await;
    let app = app_with(&gitea, "exit 0").await;
    gitea.unprotect("p");
    let work = work(&app, "feature", "a.txt", "a").await;
    let review = checked_in(&app, &work).await;
    assert_eq!((&review["merge"], gitea.head("p", "main").await), (&json!("merged"), Some(work.sha)));
    assert!(gitea.pulls("p").is_empty());
}
