//! Projects: made whole or not at all, changed, listed, deleted.

use serde_json::{Value, json};

use super::support::{Ground, TestApp, eventually, git};

fn ids(list: &Value) -> Vec<&str> {
    list["projects"].as_array().unwrap().iter().map(|project| project["id"].as_str().unwrap()).collect()
}

/// A repository on disk with two commits, a second branch and a tag, under the import root.
async fn source(ground: &Ground) -> String {
    let root = ground.path().join("sources/upstream");
    std::fs::create_dir_all(&root).unwrap();
    for args in [
        &["init", "--quiet", "--initial-branch", "trunk"][..],
        &["config", "user.name", "Up"],
        &["config", "user.email", "up@example.com"],
        &["commit", "--quiet", "--allow-empty", "-m", "first"],
        &["branch", "stable"],
        &["tag", "v1"],
        &["commit", "--quiet", "--allow-empty", "-m", "second"],
    ] {
        git::git(&root, args).await.ok();
    }
    format!("file://{}", root.display())
}

fn import_root(ground: &Ground) -> String {
    ground.path().join("sources").display().to_string()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_new_project_runs_at_once_with_the_defaults() {
    let app = TestApp::start().await;
    let project = app.project("p").await;
    assert_eq!(project["id"], "p");
    assert_eq!(project["status"], "running");
    assert_eq!(project["default_branch"], "main");
    assert_eq!(project["allow_scripts"], true);
    assert_eq!(project["protected_branches"], json!(["main"]));
    assert_eq!(project["labels"], json!({}));
    assert_eq!(project["source"], "api");
    assert_eq!(project["clone_url"], format!("{}/git/p.git", app.url));
    for absent in ["preview_port", "review_command", "agent_command"] {
        assert!(project.get(absent).is_none(), "{absent} has no value");
    }
    assert_eq!(app.admin().get("/projects/p").await.data(200), project);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_new_projects_repository_holds_a_readme_on_the_default_branch() {
    let app = TestApp::start().await;
    app.project_with(json!({"id": "p", "default_branch": "trunk"})).await;
    let clone = app.git_clone(&app.admin_clone_url("p")).await;
    assert_eq!(clone.git(&["branch", "--show-current"]).await.ok(), "trunk");
    assert_eq!(clone.git(&["ls-files"]).await.ok(), "README.md");
}

#[tokio::test(flavor = "multi_thread")]
async fn everything_that_was_asked_for_is_kept() {
    let app = TestApp::start().await;
    let asked = json!({
        "id": "p", "name": "Pantheon", "description": "gods", "labels": {"team": "x"}, "allow_scripts": false,
        "protected_branches": ["main", "release/*"], "preview_port": 3000,
        "review_command": ["make", "review"], "agent_command": ["agent", "{prompt}"],
    });
    let project = app.project_with(asked.clone()).await;
    for (field, value) in asked.as_object().unwrap() {
        assert_eq!(&project[field], value, "{field}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_taken_id_is_refused() {
    let app = TestApp::start().await;
    app.project("p").await;
    app.admin().post("/projects", json!({"id": "p"})).await.refusal(409, "PROJECT_EXISTS");
}

#[tokio::test(flavor = "multi_thread")]
async fn of_two_creations_at_once_exactly_one_is_answered_with_201() {
    let app = TestApp::start().await;
    let admin = app.admin();
    let (one, two) =
        tokio::join!(admin.post("/projects", json!({"id": "p"})), admin.post("/projects", json!({"id": "p"})));
    let mut statuses = [one.status, two.status];
    statuses.sort_unstable();
    assert_eq!(statuses, [201, 409]);
    app.admin().get("/projects/p").await.data(200);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_id_out_of_form_is_refused_in_the_path_and_in_the_body() {
    let app = TestApp::start().await;
    let long = "a".repeat(64);
    for bad in ["A", "-a", "a-", "a_b", "a.b", long.as_str(), "ä"] {
        app.admin().post("/projects", json!({"id": bad})).await.refused(400, "BAD_REQUEST", "invalid project id");
        app.admin().get(&format!("/projects/{bad}")).await.refused(400, "BAD_REQUEST", "invalid project id");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_longest_id_is_63_characters() {
    let app = TestApp::start().await;
    let id = "a".repeat(63);
    app.project(&id).await;
    app.admin().get(&format!("/projects/{id}")).await.data(200);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_project_cannot_be_made_of_is_refused_and_leaves_nothing() {
    let app = TestApp::start().await;
    for extra in [
        json!({"default_branch": "-x"}),
        json!({"default_branch": "a..b"}),
        json!({"default_branch": "HEAD"}),
        json!({"preview_port": 0}),
        json!({"preview_port": 65536}),
        json!({"preview_port": "80"}),
        json!({"review_command": []}),
        json!({"agent_command": "claude"}),
        json!({"labels": ["x"]}),
        json!({"description": "a\u{0}b"}),
        json!({"import_url": "ssh://example.com/x.git"}),
        json!({"import_url": "http://example.com/x.git"}),
        json!({"import_url": "ext::sh -c id"}),
        json!({"import_url": "--upload-pack=id"}),
        json!({"import_url": "/etc"}),
    ] {
        let mut body = json!({"id": "p"});
        body.as_object_mut().unwrap().extend(extra.as_object().unwrap().clone());
        app.admin().post("/projects", body).await.refusal(400, "BAD_REQUEST");
    }
    app.admin().get("/projects/p").await.refusal(404, "NOT_FOUND");
    app.project("p").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn making_and_changing_one_is_for_admins() {
    let app = TestApp::start().await;
    app.project("p").await;
    let other = app.someone(&["projects:read", "projects:execute", "sessions:execute"]).await;
    other.post("/projects", json!({"id": "q"})).await.refusal(403, "FORBIDDEN");
    other.patch("/projects/p", json!({"name": "x"})).await.refusal(403, "FORBIDDEN");
    other.delete("/projects/p").await.refusal(403, "FORBIDDEN");
    other.post("/projects/p/undeploy", json!({})).await.refusal(403, "FORBIDDEN");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_change_changes_what_it_names_alone() {
    let app = TestApp::start().await;
    let before = app.project_with(json!({"id": "p", "name": "Old", "description": "stays"})).await;
    let changed = app.admin().patch("/projects/p", json!({"name": "New", "default_branch": "other"})).await.data(200);
    assert_eq!(changed["name"], "New");
    assert_eq!(changed["description"], "stays");
    assert_eq!(changed["default_branch"], before["default_branch"]);
    assert_eq!(changed["created_at"], before["created_at"]);
    assert_eq!(app.admin().get("/projects/p").await.data(200), changed);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_default_branch_stays_protected() {
    let app = TestApp::start().await;
    app.project("p").await;
    let changed = app.admin().patch("/projects/p", json!({"protected_branches": ["release/*"]})).await.data(200);
    let protected = changed["protected_branches"].as_array().unwrap();
    assert!(protected.contains(&json!("main")) && protected.contains(&json!("release/*")), "{protected:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_empty_change_is_one_of_nothing() {
    let app = TestApp::start().await;
    app.project("p").await;
    app.admin().send(http::Method::PATCH, "/projects/p", None, &[]).await.data(200);
}

#[tokio::test(flavor = "multi_thread")]
async fn projects_are_listed_newest_first_page_by_page() {
    let app = TestApp::start().await;
    for id in ["a", "b", "c"] {
        app.project(id).await;
    }
    let first = app.admin().get("/projects?limit=2").await;
    assert_eq!(ids(&first.data(200)), ["c", "b"]);
    let cursor = first.cursor().expect("more follows");
    let second = app.admin().get(&format!("/projects?limit=2&cursor={cursor}")).await;
    assert_eq!(ids(&second.data(200)), ["a"]);
    assert_eq!(second.cursor(), None);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_limit_or_cursor_that_is_none_is_refused() {
    let app = TestApp::start().await;
    app.project("p").await;
    for list in ["/projects", "/keys", "/projects/p/commands", "/projects/p/sessions"] {
        for query in ["limit=0", "limit=201", "limit=-1", "limit=x", "cursor=%21%21", "cursor=AAAA", "cursor=x"] {
            app.admin().get(&format!("{list}?{query}")).await.refusal(400, "BAD_REQUEST");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_deleted_project_is_gone_with_all_that_was_its() {
    let app = TestApp::start().await;
    app.project("p").await;
    let session = app.session("p", "feature").await;
    let checkout = app.admin().post("/projects/p/checkout", json!({"new_branch": "other"})).await.data(201);
    let running = json!({"script": "sleep 60"});
    app.admin().post("/projects/p/shell", running).await.data(201);
    let deleted = app.admin().delete("/projects/p").await.data(200);
    assert_eq!(deleted, json!({"status": "deleted", "id": "p", "undeployed": []}));
    app.admin().get("/projects/p").await.refused(404, "NOT_FOUND", "project not found");
    let url = checkout["clone_url"].as_str().unwrap();
    git::git(app.ground.path(), &["ls-remote", url]).await.failed();
    for table in ["project", "checkout", "session", "command", "stream", "chunk", "task"] {
        assert_eq!(app.db().count(&format!("select count(*) from {table}")).await, 0, "{table}");
    }
    let workspace = session["workspace"].as_str().unwrap();
    assert!(!std::path::Path::new(workspace).exists());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_deleted_projects_id_may_be_taken_again() {
    let app = TestApp::start().await;
    app.project("p").await;
    app.script("p", "echo old > left-behind").await;
    app.admin().delete("/projects/p").await.data(200);
    app.project("p").await;
    assert_eq!(app.output(&app.script("p", "ls").await).await, "README.md\n");
}

#[tokio::test(flavor = "multi_thread")]
async fn deleting_what_is_not_there_is_not_found() {
    let app = TestApp::start().await;
    app.admin().delete("/projects/p").await.refused(404, "NOT_FOUND", "project not found");
}

#[tokio::test(flavor = "multi_thread")]
async fn undeploying_without_a_cluster_removes_nothing() {
    let app = TestApp::start().await;
    app.project("p").await;
    let done = app.admin().post("/projects/p/undeploy", json!({})).await.data(200);
    assert_eq!(done, json!({"status": "undeployed", "id": "p", "deleted": []}));
    app.admin().get("/projects/p").await.data(200);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_import_brings_every_branch_and_tag_and_the_sources_head() {
    let ground = Ground::new().await;
    let url = source(&ground).await;
    let root = import_root(&ground);
    let app = TestApp::on(ground, &[("RDEV_IMPORT_ROOT", &root)]).await;
    let project = app.project_with(json!({"id": "p", "import_url": url})).await;
    assert_eq!(project["default_branch"], "trunk");
    let clone = app.git_clone(&app.admin_clone_url("p")).await;
    assert_eq!(clone.git(&["log", "--format=%s", "trunk"]).await.ok(), "second\nfirst");
    assert_eq!(clone.git(&["log", "--format=%s", "origin/stable"]).await.ok(), "first");
    assert_eq!(clone.git(&["tag"]).await.ok(), "v1");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_default_branch_that_the_source_lacks_is_refused() {
    let ground = Ground::new().await;
    let url = source(&ground).await;
    let root = import_root(&ground);
    let app = TestApp::on(ground, &[("RDEV_IMPORT_ROOT", &root)]).await;
    let body = json!({"id": "p", "import_url": url, "default_branch": "nope"});
    app.admin().post("/projects", body).await.refusal(400, "BAD_REQUEST");
    let body = json!({"id": "p", "import_url": url, "default_branch": "stable"});
    assert_eq!(app.project_with(body).await["default_branch"], "stable");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_outside_the_import_root_is_refused() {
    let ground = Ground::new().await;
    source(&ground).await;
    let inside = ground.path().join("sources");
    let outside = ground.path().join("outside");
    std::fs::rename(inside.join("upstream"), &outside).unwrap();
    std::os::unix::fs::symlink(&outside, inside.join("link")).unwrap();
    let root = import_root(&ground);
    let app = TestApp::on(ground, &[("RDEV_IMPORT_ROOT", &root)]).await;
    for path in [
        outside.display().to_string(),
        inside.join("link").display().to_string(),
        inside.join("../outside").display().to_string(),
    ] {
        let body = json!({"id": "p", "import_url": format!("file://{path}")});
        app.admin().post("/projects", body).await.refusal(400, "BAD_REQUEST");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn without_an_import_root_no_file_is_imported() {
    let app = TestApp::start().await;
    let url = source(&app.ground).await;
    app.admin().post("/projects", json!({"id": "p", "import_url": url})).await.refusal(400, "BAD_REQUEST");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_import_that_git_cannot_clone_fails_and_leaves_nothing() {
    let ground = Ground::new().await;
    std::fs::create_dir_all(ground.path().join("sources/empty")).unwrap();
    let root = import_root(&ground);
    let app = TestApp::on(ground, &[("RDEV_IMPORT_ROOT", &root)]).await;
    let body = json!({"id": "p", "import_url": format!("file://{root}/empty")});
    app.admin().post("/projects", body).await.refusal(502, "IMPORT_FAILED");
    app.admin().get("/projects/p").await.refusal(404, "NOT_FOUND");
    assert_eq!(app.db().count("select count(*) from task").await, 0);
    app.project("p").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_happens_to_a_project_is_its_activity() {
    let app = TestApp::start().await;
    app.project("p").await;
    let mut events = app.listen("/projects/p/events?after=0").await;
    let created = events.activity("project.created").await;
    assert_eq!(created.id.as_deref(), Some("p:1"));
    assert_eq!(created.data["id"], "p");
    app.script("p", "true").await;
    let started = events.activity("command.started").await;
    let ended = events.activity("command.ended").await;
    assert_eq!(started.data["id"], ended.data["id"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_workspace_outlives_a_restart_on_another_port() {
    let app = TestApp::start().await;
    app.project("p").await;
    app.script("p", "echo kept > note").await;
    let app = app.restart(&[]).await;
    let project = app.admin().get("/projects/p").await.data(200);
    assert_eq!(project["clone_url"], format!("{}/git/p.git", app.url));
    let pulled = app.script("p", "git pull --quiet && cat note").await;
    assert_eq!(pulled["exit_code"], 0, "{}", app.output(&pulled).await);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_workspace_pulls_what_was_pushed() {
    let app = TestApp::start().await;
    app.project("p").await;
    let clone = app.git_clone(&app.admin_clone_url("p")).await;
    clone.commit("new.txt", "news\n").await;
    clone.git(&["push", "--quiet", "origin", "main"]).await.ok();
    let shown = app.script("p", "git pull --quiet && cat new.txt").await;
    assert_eq!(app.output(&shown).await, "news\n");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_workspaces_credential_does_not_push() {
    let app = TestApp::start().await;
    app.project("p").await;
    let tried = app.script("p", "git commit --allow-empty -q -m x && git push origin HEAD:main").await;
    assert_ne!(tried["exit_code"], 0);
    assert_eq!(app.output(&app.script("p", "git ls-remote origin main | wc -l").await).await.trim(), "1");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_project_made_elsewhere_is_seen_here() {
    let app = TestApp::start().await;
    let other = app.sibling(&[]).await;
    app.project("p").await;
    eventually("the other process knows it", async || {
        (other.admin().get("/projects/p").await.status == 200).then_some(())
    })
    .await;
    assert_eq!(other.script("p", "true").await["exit_code"], 0);
}
