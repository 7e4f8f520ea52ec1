//! The worktree that is prepared before anybody asks: taken whole by one session, or not at all, and never seen in
//! what a session holds.

use std::{
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
    time::Duration,
};

use serde_json::{Value, json};

use super::{SESSIONS, file_at, open, path};
use crate::support::{Api, Ground, Server, TestApp, eventually, git};

/// Enough for a spare to be worth it.
const FILES: usize = 400;
/// Thousands of files on a busy disk.
const A_WHILE: Duration = Duration::from_mins(2);
const TASKS: &str = "select (select count(*) from task where kind = 'project.spare')
                          + (select count(*) from task_later where kind = 'project.spare')";

/// A repository of so many files that can be imported.
async fn source(ground: &Ground, files: usize) -> String {
    let root = ground.path().join("sources/large");
    for n in 0..files {
        let folder = root.join(format!("src/part-{}", n / 50));
        std::fs::create_dir_all(&folder).unwrap();
        std::fs::write(folder.join(format!("file-{n}.txt")), format!("{n}\n")).unwrap();
    }
    std::fs::write(root.join(".gitignore"), "*.o\n").unwrap();
    for words in [
        &["init", "--quiet", "--initial-branch", "main"][..],
        &["add", "--all"],
        &["-c", "user.name=Up", "-c", "user.email=up@example.com", "commit", "--quiet", "-m", "all"],
    ] {
        git::git(&root, words).await.ok();
    }
    format!("file://{}", root.display())
}

fn import_root(ground: &Ground) -> String {
    ground.path().join("sources").display().to_string()
}

async fn app_with_files(files: usize) -> TestApp {
    let ground = Ground::new().await;
    let (url, root) = (source(&ground, files).await, import_root(&ground));
    let app = TestApp::on(ground, &[("RDEV_IMPORT_ROOT", &root)]).await;
    app.project_with(json!({"id": "p", "import_url": url})).await;
    app
}

fn main_of(ground: &Ground) -> PathBuf {
    ground.data_dir().join("workspaces/p/main")
}

fn sessions_of(ground: &Ground) -> PathBuf {
    ground.data_dir().join("workspaces/p/sessions")
}

/// What is in the folder of worktrees.
fn worktrees(ground: &Ground) -> Vec<String> {
    let entries = std::fs::read_dir(sessions_of(ground)).into_iter().flatten().flatten();
    entries.map(|entry| entry.file_name().into_string().unwrap()).collect()
}

/// Where the spare is, once it is whole and nobody is at it any more.
async fn spare(ground: &Ground) -> PathBuf {
    let until = tokio::time::Instant::now() + A_WHILE;
    loop {
        let marker = std::fs::read_to_string(main_of(ground).join(".git/rdev-spare"));
        if let (Ok(marker), 0) = (marker, ground.db.count(TASKS).await) {
            return sessions_of(ground).join(marker.lines().next().unwrap());
        }
        assert!(tokio::time::Instant::now() < until, "there is no spare after {A_WHILE:?}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

fn inode(path: impl AsRef<Path>) -> u64 {
    path.as_ref().metadata().unwrap().ino()
}

fn workspace(session: &Value) -> &str {
    session["workspace"].as_str().unwrap()
}

async fn said(app: &TestApp, session: &Value, script: &str) -> String {
    let ran = app.exec("p", session, script).await;
    let said = app.output(&ran).await;
    assert_eq!(ran["exit_code"], 0, "{script}: {said}");
    said
}

/// All that there is of a worktree: its files, what git says of them, how it is set up.
const EVERYTHING: &str = "find . -path ./.git -prune -o -exec stat -c '%A %n' {} + | sort | sha256sum; \
                          cat src/part-*/* | sha256sum; git status --porcelain --ignored; git log --format=%s; \
                          git config --worktree --list; cat .git; ls $(git rev-parse --git-dir) | grep -v ORIG_HEAD";

async fn end(app: &TestApp, session: &Value) -> Value {
    app.admin().delete(&path(session)).await.data(200)
}

/// A session that holds what the commit does, and nothing else.
async fn is_right(api: &Api, session: &Value) {
    let body = json!({"script": "git status --porcelain --ignored; git ls-files | wc -l; cat src/part-0/file-7.txt; git symbolic-ref HEAD", "wait": "30s"});
    let ran = api.post(&format!("{}/exec", path(session)), body).await.data(201);
    let text = api.get(ran["output_url"].as_str().unwrap()).await.text;
    let (_files, rest) = text.split_once('\n').unwrap();
    assert_eq!(rest, format!("7\nrefs/heads/{}\n", session["branch"].as_str().unwrap()), "{text}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_session_takes_the_spare_and_is_like_one_that_does_not() {
    let app = app_with_files(FILES).await;
    let prepared = inode(spare(&app.ground).await);
    let taken = open(&app, json!({"new_branch": "one"})).await;
    assert_eq!(inode(workspace(&taken)), prepared, "it was not the spare");
    let seen = said(&app, &taken, EVERYTHING).await;
    let push = "echo x > f && git add f && git commit -qm x && git push -q && git rev-parse --abbrev-ref '@{upstream}'";
    assert_eq!(said(&app, &taken, push).await, "origin/one\n");
    let next = spare(&app.ground).await;
    assert!(end(&app, &taken).await.get("rescue").is_none(), "there was nothing to rescue");
    assert!(next.exists(), "an end is none of the spare's business");
    std::fs::remove_file(main_of(&app.ground).join(".git/rdev-spare")).unwrap();
    let plain = open(&app, json!({"new_branch": "two"})).await;
    assert_ne!(inode(workspace(&plain)), inode(&next), "without its marker it is not taken");
    let plainly = said(&app, &plain, EVERYTHING).await;
    let [one, two] = [&taken, &plain].map(|session| session["id"].as_str().unwrap());
    assert_eq!(seen, plainly.replace(two, one).replace("two", "one"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_spare_that_is_behind_is_brought_to_where_the_session_begins() {
    let app = app_with_files(FILES).await;
    let prepared = inode(spare(&app.ground).await);
    let clone = app.git_clone(&app.admin_clone_url("p")).await;
    let before = clone.git(&["rev-parse", "HEAD"]).await.ok();
    std::fs::remove_file(clone.path.join("src/part-0/file-1.txt")).unwrap();
    std::fs::create_dir(clone.path.join("new")).unwrap();
    std::fs::write(clone.path.join("src/part-0/file-0.txt"), "changed\n").unwrap();
    let sha = clone.commit("new/file.txt", "new\n").await;
    clone.git(&["push", "--quiet", "origin", "HEAD:main"]).await.ok();
    let look = "git rev-parse HEAD; cat src/part-0/file-0.txt; ls src/part-0 | wc -l; ls; git status -s --ignored";
    let session = open(&app, json!({"new_branch": "now"})).await;
    assert_eq!(inode(workspace(&session)), prepared);
    assert_eq!(said(&app, &session, look).await, format!("{sha}\nchanged\n49\nnew\nsrc\n"));
    let prepared = inode(spare(&app.ground).await);
    end(&app, &session).await;
    let session = open(&app, json!({"new_branch": "then", "from_ref": before})).await;
    assert_eq!(inode(workspace(&session)), prepared);
    assert_eq!(said(&app, &session, look).await, format!("{before}\n0\n50\nsrc\n"));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_somebody_left_in_the_spare_comes_into_no_session() {
    let app = app_with_files(FILES).await;
    let place = spare(&app.ground).await;
    let mess = format!(
        "cd {} && echo x > loose && echo x > loose.o && echo x > src/part-0/file-7.txt && rm src/part-1/file-60.txt && \
         chmod 755 src/part-2/file-100.txt && git init -q inner && echo x > inner/x && echo '*' > src/.gitignore && \
         rm -r src/part-3 && ln -s part-4 src/part-3",
        place.display()
    );
    let prepared = inode(&place);
    assert_eq!(app.script("p", &mess).await["exit_code"], 0);
    let session = open(&app, json!({"new_branch": "one"})).await;
    assert_eq!(inode(workspace(&session)), prepared);
    is_right(&app.admin(), &session).await;
    let look = "git status --porcelain --ignored; git diff HEAD --stat; ls; find src -type f -perm 644 | wc -l";
    assert_eq!(said(&app, &session, look).await, format!("src\n{FILES}\n"));
    let rescued = said(&app, &session, "echo work > work.txt").await;
    assert_eq!(rescued, "");
    let sha = end(&app, &session).await["rescue"]["sha"].as_str().unwrap().to_owned();
    assert_eq!(file_at(&app, &sha, "work.txt").await.as_deref(), Some("work\n"));
    assert_eq!(file_at(&app, &sha, "loose").await, None);
}

#[tokio::test(flavor = "multi_thread")]
async fn where_attributes_or_settings_changed_files_are_written_anew() {
    let app = app_with_files(FILES).await;
    let prepared = inode(spare(&app.ground).await);
    let clone = app.git_clone(&app.admin_clone_url("p")).await;
    clone.commit(".gitattributes", "*.txt eol=crlf\n").await;
    clone.git(&["push", "--quiet", "origin", "HEAD:refs/heads/other"]).await.ok();
    let session = open(&app, json!({"branch": "other"})).await;
    assert_ne!(inode(workspace(&session)), prepared);
    assert_eq!(said(&app, &session, "od -c < src/part-0/file-7.txt | head -n 1").await.trim(), r"0000000   7  \r  \n");
    end(&app, &session).await;
    spare(&app.ground).await;
    assert_eq!(app.script("p", "git config core.autocrlf true").await["exit_code"], 0);
    let session = open(&app, json!({"new_branch": "one"})).await;
    assert_eq!(said(&app, &session, "od -c < src/part-0/file-7.txt | head -n 1").await.trim(), r"0000000   7  \r  \n");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_spare_that_is_gone_or_half_made_is_in_nobodys_way() {
    let app = app_with_files(FILES).await;
    for (n, harm) in [
        "rm -rf ../sessions/spare-*",
        "rm -rf .git/worktrees/spare-*",
        "rm ../sessions/spare-*/.git",
        "rm .git/worktrees/spare-*/index",
        "echo .. > .git/rdev-spare",
        "rm .git/rdev-spare; rm -rf ../sessions/spare-*/src; cd .git/worktrees/spare-* && touch index.lock",
        "git worktree remove --force --force ../sessions/spare-*",
    ]
    .into_iter()
    .enumerate()
    {
        spare(&app.ground).await;
        assert_eq!(app.script("p", harm).await["exit_code"], 0, "{harm}");
        let session = open(&app, json!({"new_branch": format!("b{n}")})).await;
        is_right(&app.admin(), &session).await;
        assert!(end(&app, &session).await.get("rescue").is_none(), "after {harm}");
    }
    let whole = spare(&app.ground).await;
    assert_eq!(worktrees(&app.ground), [whole.file_name().unwrap().to_str().unwrap()], "what was half made is gone");
}

#[tokio::test(flavor = "multi_thread")]
async fn of_sessions_asked_for_at_once_one_has_the_spare() {
    let app = app_with_files(FILES).await;
    let body = json!({"id": "q", "import_url": format!("file://{}/sources/large", app.ground.path().display())});
    app.project_with(body).await;
    for round in 0..3 {
        spare(&app.ground).await;
        let admin = app.admin();
        let body = |n| json!({"new_branch": format!("b{round}-{n}")});
        let ours = futures::future::join_all((0..4).map(|n| admin.post(SESSIONS, body(n))));
        let theirs = admin.post("/projects/q/sessions", body(9));
        let (ours, theirs) = tokio::join!(ours, theirs);
        let made: Vec<_> = ours.iter().filter(|reply| reply.status == 201).collect();
        assert_eq!(made.len(), 1);
        let session = made[0].data(201).clone();
        is_right(&admin, &session).await;
        end(&app, &session).await;
        let theirs = theirs.data(201)["id"].as_str().unwrap().to_owned();
        admin.delete(&format!("/projects/q/sessions/{theirs}")).await.data(200);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_session_does_not_wait_for_the_spare_that_is_being_made() {
    let app = app_with_files(2_000).await;
    for n in 0..4 {
        let session = open(&app, json!({"new_branch": format!("b{n}")})).await;
        is_right(&app.admin(), &session).await;
        assert!(end(&app, &session).await.get("rescue").is_none());
    }
    let prepared = inode(spare(&app.ground).await);
    let session = open(&app, json!({"new_branch": "last"})).await;
    assert_eq!(inode(workspace(&session)), prepared, "it is made all the same");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_project_goes_with_its_spare_also_while_that_is_being_made() {
    let app = app_with_files(2_000).await;
    let url = format!("file://{}/sources/large", app.ground.path().display());
    for delay in [0, 100, 300, 700] {
        tokio::time::sleep(Duration::from_millis(delay)).await;
        app.admin().delete("/projects/p").await.data(200);
        assert!(!sessions_of(&app.ground).exists());
        assert_eq!(app.db().count(TASKS).await, 0);
        app.project_with(json!({"id": "p", "import_url": url})).await;
    }
    spare(&app.ground).await;
    app.admin().delete("/projects/p").await.data(200);
    assert!(!sessions_of(&app.ground).parent().unwrap().exists());
}

/// The git that writes the spare's files, while it does.
fn writer(ground: &Ground) -> Option<nix::unistd::Pid> {
    let pids = std::fs::read_dir("/proc").unwrap().flatten();
    let mut pids = pids.filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok());
    let pid = pids.find(|pid| {
        let at = std::fs::read_link(format!("/proc/{pid}/cwd")).unwrap_or_default();
        let words = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        at.starts_with(sessions_of(ground)) && words.starts_with(b"git\0")
    });
    pid.map(nix::unistd::Pid::from_raw)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_spare_whose_git_was_killed_is_made_again() {
    let app = app_with_files(2_000).await;
    let killed = eventually("git at work", async || writer(&app.ground)).await;
    let _gone = nix::sys::signal::kill(killed, nix::sys::signal::Signal::SIGKILL);
    let place = spare(&app.ground).await;
    let files = git::git(&place, &["-c", "safe.directory=*", "ls-files"]).await.ok();
    let there = files.lines().filter(|file| place.join(file).exists()).count();
    assert_eq!(there, 2_001, "a marker says that it is whole");
    let session = open(&app, json!({"new_branch": "one"})).await;
    is_right(&app.admin(), &session).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_spare_whose_server_was_killed_is_whole_or_made_again() {
    let ground = Ground::new().await;
    let (url, root) = (source(&ground, 2_000).await, import_root(&ground));
    let start = async || Server::start(&ground, &[("RDEV_IMPORT_ROOT", &root)]).await;
    let mut server: Server = start().await;
    server.admin().post("/projects", json!({"id": "p", "import_url": url})).await.data(201);
    for (n, delay) in [50, 300, 900, 1_500].into_iter().enumerate() {
        tokio::time::sleep(Duration::from_millis(delay)).await;
        server.kill().await;
        server = start().await;
        let session = server.admin().post(SESSIONS, json!({"new_branch": format!("b{n}")})).await.data(201);
        is_right(&server.admin(), &session).await;
        let ended = server.admin().delete(&path(&session)).await.data(200);
        assert!(ended.get("rescue").is_none(), "{ended}");
    }
    let prepared = inode(spare(&ground).await);
    let session = server.admin().post(SESSIONS, json!({"new_branch": "last"})).await.data(201);
    assert_eq!(inode(workspace(&session)), prepared);
    is_right(&server.admin(), &session).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_small_repository_gets_none() {
    let app = TestApp::start().await;
    app.project("p").await;
    let session = app.session("p", "one").await;
    assert_eq!(app.db().count(TASKS).await, 0);
    assert_eq!(worktrees(&app.ground), [session["id"].as_str().unwrap()]);
}
