//! What becomes of the branch: merged where that can be done, and never forced.

use serde_json::json;

use super::{
    Away, PASSES, WAITS, admins_clone, app_with, begun, checkin, go, head, move_main, nothing_is_left, over, path,
    repository, reviewed, show, work, work_on, workspace,
};
use crate::support::{TestApp, eventually, git};

fn merging() -> serde_json::Value {
    json!({"auto_merge": true})
}

/// Ids of a commit's parents.
async fn parents(app: &TestApp, sha: &str) -> Vec<String> {
    let clone = admins_clone(app).await;
    let line = clone.git(&["rev-list", "--parents", "--max-count=1", sha]).await.ok();
    line.split_whitespace().skip(1).map(str::to_owned).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn what_passed_is_merged_by_going_forward_where_that_is_possible() {
    let app = app_with(PASSES).await;
    let before = workspace(&app.admin()).await;
    let before = git::git(&before, &["-c", "safe.directory=*", "rev-parse", "HEAD"]).await.ok();
    let (work, review) = reviewed(&app, "feature", merging()).await;
    assert_eq!(
        (&review["status"], &review["merge"], &review["auto_merge"]),
        (&json!("passed"), &json!("merged"), &json!(true))
    );
    assert_eq!(review["merge_sha"], work.sha);
    assert_eq!(head(&app.admin(), "main").await, Some(work.sha));
    let workspace = workspace(&app.admin()).await;
    let after = git::git(&workspace, &["-c", "safe.directory=*", "rev-parse", "HEAD"]).await.ok();
    assert_eq!(before, after, "the workspace is updated by whoever pulls there");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_merge_commit_joins_what_went_apart() {
    let app = app_with(PASSES).await;
    let work = work(&app, "feature").await;
    let main = move_main(&app, "other.txt", "other").await;
    let id = checkin(&app.admin(), &work, merging()).await;
    let review = over(&app.admin(), &id).await;
    let merged = review["merge_sha"].as_str().unwrap();
    assert_eq!(head(&app.admin(), "main").await.as_deref(), Some(merged));
    assert_eq!(parents(&app, merged).await, [main, work.sha]);
    let clone = admins_clone(&app).await;
    for file in ["feature.txt", "other.txt", "README.md"] {
        assert!(clone.path.join(file).exists(), "{file}");
    }
    let message = clone.git(&["log", "--max-count=1", "--format=%B"]).await.ok();
    assert_eq!(message, format!("Merge branch 'feature'\n\nReview: {id}"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_conflict_leaves_both_branches_as_they_are_until_it_is_resolved() {
    let app = app_with(PASSES).await;
    let work = work_on(&app.admin(), &app.ground, "feature", "same.txt", "mine\n").await;
    let main = move_main(&app, "same.txt", "theirs\n").await;
    let id = checkin(&app.admin(), &work, merging()).await;
    let review = over(&app.admin(), &id).await;
    assert_eq!(
        (&review["status"], &review["merge"], review.get("merge_sha")),
        (&json!("passed"), &json!("conflict"), None)
    );
    assert_eq!(head(&app.admin(), "main").await, Some(main));
    assert_eq!(head(&app.admin(), "feature").await, Some(work.sha.clone()));
    move_main(&app, "same.txt", "mine\n").await;
    let again = app.admin().post(&format!("{}/retry", path(&id)), json!({})).await.data(200);
    assert_eq!(
        (&again["status"], &again["merge"], again.get("completed_at")),
        (&json!("passed"), &json!("none"), None)
    );
    let review = over(&app.admin(), &id).await;
    assert_eq!(
        (&review["merge"], review["merge_sha"].as_str()),
        (&json!("merged"), head(&app.admin(), "main").await.as_deref())
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_branch_that_moved_is_not_merged_until_it_is_back() {
    let app = app_with(WAITS).await;
    let work = work(&app, "feature").await;
    let main = head(&app.admin(), "main").await;
    let id = checkin(&app.admin(), &work, merging()).await;
    begun(&app.admin(), &id).await;
    let clone = admins_clone(&app).await;
    clone.git(&["checkout", "--quiet", "feature"]).await.ok();
    clone.commit("more.txt", "unseen").await;
    clone.git(&["push", "--quiet", "origin", "feature"]).await.ok();
    go(&app.admin()).await;
    let review = over(&app.admin(), &id).await;
    assert_eq!((&review["status"], &review["merge"]), (&json!("passed"), &json!("blocked")));
    assert_eq!(head(&app.admin(), "main").await, main);
    clone.git(&["push", "--quiet", "origin", "--delete", "feature"]).await.ok();
    let retry = format!("{}/retry", path(&id));
    app.admin().post(&retry, json!({})).await.data(200);
    assert_eq!(over(&app.admin(), &id).await["merge"], "blocked");
    clone.git(&["push", "--quiet", "origin", &format!("{}:refs/heads/feature", work.sha)]).await.ok();
    app.admin().post(&retry, json!({})).await.data(200);
    assert_eq!(over(&app.admin(), &id).await["merge"], "merged");
    assert_eq!(head(&app.admin(), "main").await, Some(work.sha));
}

#[tokio::test(flavor = "multi_thread")]
async fn the_default_branch_may_move_while_the_review_runs() {
    let app = app_with(WAITS).await;
    let work = work(&app, "feature").await;
    let id = checkin(&app.admin(), &work, merging()).await;
    begun(&app.admin(), &id).await;
    let main = move_main(&app, "meanwhile.txt", "m").await;
    go(&app.admin()).await;
    let review = over(&app.admin(), &id).await;
    assert_eq!(review["merge"], "merged");
    assert_eq!(parents(&app, review["merge_sha"].as_str().unwrap()).await, [main, work.sha]);
}

#[tokio::test(flavor = "multi_thread")]
async fn many_merges_at_once_lose_nothing() {
    let app = app_with(WAITS).await;
    let mut works = Vec::new();
    for n in 0..4 {
        works.push(work(&app, &format!("b{n}")).await);
    }
    let mut ids = Vec::new();
    for work in &works {
        ids.push(checkin(&app.admin(), work, merging()).await);
    }
    for id in &ids {
        begun(&app.admin(), id).await;
    }
    go(&app.admin()).await;
    for id in &ids {
        assert_eq!(over(&app.admin(), id).await["merge"], "merged");
    }
    let clone = admins_clone(&app).await;
    for (n, work) in works.iter().enumerate() {
        clone.git(&["merge-base", "--is-ancestor", &work.sha, "HEAD"]).await.ok();
        assert!(clone.path.join(format!("b{n}.txt")).exists());
    }
    nothing_is_left(&app.admin()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_somebody_merged_already_counts_as_merged() {
    let app = app_with(WAITS).await;
    let work = work(&app, "feature").await;
    let id = checkin(&app.admin(), &work, merging()).await;
    begun(&app.admin(), &id).await;
    let clone = admins_clone(&app).await;
    clone.git(&["push", "--quiet", "origin", &format!("{}:main", work.sha), ":feature"]).await.ok();
    go(&app.admin()).await;
    let review = over(&app.admin(), &id).await;
    assert_eq!((&review["merge"], &review["merge_sha"]), (&json!("merged"), &json!(work.sha)));
    assert_eq!(show(&app.admin(), &id).await["status"], "passed");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_has_no_commit_in_common_is_a_conflict() {
    let app = app_with(PASSES).await;
    let work = work(&app, "feature").await;
    work.clone.git(&["checkout", "--quiet", "--orphan", "fresh"]).await.ok();
    work.clone.commit("alone.txt", "alone").await;
    work.clone.git(&["push", "--quiet", "--force", "origin", "HEAD:feature"]).await.ok();
    let main = head(&app.admin(), "main").await;
    let id = checkin(&app.admin(), &work, merging()).await;
    assert_eq!(over(&app.admin(), &id).await["merge"], "conflict");
    assert_eq!(head(&app.admin(), "main").await, main);
}

/// A review's task clears up after the end that is shown.
async fn settled(app: &TestApp, id: &str) {
    let own = format!("select count(*) from task where subject = '{id}'");
    eventually("its task is over", async || (app.db().count(&own).await == 0).then_some(())).await;
}

/// As if the process had died in the middle of the merge: only what it wrote before is there.
async fn died_while_merging(app: &TestApp, id: &str, candidate: &str) {
    settled(app, id).await;
    let undecided = format!(
        "update review set merge = 'none', merge_sha = null, completed_at = null, merge_candidate = '{candidate}' where id = '{id}'"
    );
    app.db().run(&undecided).await;
    app.db().run(&format!("insert into task (kind, subject) values ('review.run', '{id}')")).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_merge_whose_maker_died_right_after_is_recognised() {
    let app = app_with(PASSES).await;
    let work = work(&app, "feature").await;
    move_main(&app, "other.txt", "other").await;
    let id = checkin(&app.admin(), &work, merging()).await;
    let review = over(&app.admin(), &id).await;
    let merged = review["merge_sha"].as_str().unwrap();
    let main = move_main(&app, "later.txt", "later").await;
    died_while_merging(&app, &id, merged).await;
    let again = over(&app.admin(), &id).await;
    assert_eq!((&again["merge"], &again["merge_sha"]), (&json!("merged"), &json!(merged)));
    assert_eq!(head(&app.admin(), "main").await, Some(main), "there is no second merge");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_merge_whose_maker_died_right_before_is_made_anew() {
    let app = app_with(PASSES).await;
    let (work, review) = reviewed(&app, "feature", json!({})).await;
    let id = review["id"].as_str().unwrap();
    app.db().run(&format!("update review set auto_merge = true where id = '{id}'")).await;
    let main = move_main(&app, "other.txt", "other").await;
    died_while_merging(&app, id, &work.sha).await;
    let review = over(&app.admin(), id).await;
    assert_eq!(review["merge"], "merged");
    assert_eq!(parents(&app, review["merge_sha"].as_str().unwrap()).await, [main, work.sha]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_merge_that_its_last_maker_has_made_is_told_although_nobody_is_left() {
    let app = app_with(PASSES).await;
    let work = work(&app, "feature").await;
    move_main(&app, "other.txt", "other").await;
    let id = checkin(&app.admin(), &work, merging()).await;
    let merged = over(&app.admin(), &id).await["merge_sha"].as_str().unwrap().to_owned();
    settled(&app, &id).await;
    let mut events = app.listen("/projects/p/events").await;
    let undecided = format!(
        "update review set merge = 'none', merge_sha = null, completed_at = null, merge_candidate = '{merged}' where id = '{id}'"
    );
    app.db().run(&undecided).await;
    app.db().run(&format!("insert into task (kind, subject, deaths) values ('review.run', '{id}', 10)")).await;
    let again = over(&app.admin(), &id).await;
    assert_eq!((&again["merge"], &again["merge_sha"]), (&json!("merged"), &json!(merged)));
    assert_eq!(events.activity("review.merged").await.data["merge_sha"], merged.as_str());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_commit_that_git_has_thrown_away_meanwhile_is_blocked() {
    let app = app_with(WAITS).await;
    let work = work(&app, "feature").await;
    let id = checkin(&app.admin(), &work, merging()).await;
    begun(&app.admin(), &id).await;
    let clone = admins_clone(&app).await;
    clone.git(&["push", "--quiet", "origin", "--delete", "feature"]).await.ok();
    let safe = ["-c", "safe.directory=*"];
    git::git(&repository(&app), &[&safe[..], &["prune", "--expire=now"]].concat()).await.ok();
    git::git(&repository(&app), &[&safe[..], &["cat-file", "-e", &work.sha]].concat()).await.failed();
    go(&app.admin()).await;
    let review = over(&app.admin(), &id).await;
    assert_eq!((&review["status"], &review["merge"]), (&json!("passed"), &json!("blocked")));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_merge_that_git_cannot_carry_out_is_tried_again_and_in_the_end_left_to_people() {
    let app = app_with(WAITS).await;
    let work = work(&app, "feature").await;
    let main = head(&app.admin(), "main").await.unwrap();
    let id = checkin(&app.admin(), &work, merging()).await;
    begun(&app.admin(), &id).await;
    let away = Away::object(&repository(&app), &main);
    go(&app.admin()).await;
    eventually("a failure", async || {
        (app.db().count("select count(*) from review where merge_failures > 0").await == 1).then_some(())
    })
    .await;
    let review = show(&app.admin(), &id).await;
    assert_eq!((&review["merge"], review.get("completed_at")), (&json!("none"), None));
    app.db().run("update review set merge_failures = 9").await;
    let review = over(&app.admin(), &id).await;
    assert_eq!((&review["status"], &review["merge"]), (&json!("passed"), &json!("blocked")));
    assert!(review["summary"].as_str().unwrap().ends_with("git failed 10 times in a row; the server's log says how."));
    away.back();
    let again = app.admin().post(&format!("{}/retry", path(&id)), json!({})).await.data(200);
    assert_eq!(again["summary"], "begun\ngone on");
    assert_eq!(over(&app.admin(), &id).await["merge_sha"], work.sha);
}
