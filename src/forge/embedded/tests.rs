//! The host without HTTP: real repositories, the real git.

use std::{os::unix::fs::symlink, process::Command};

use futures::future::join_all;

use super::*;

struct Fixture {
    host: EmbeddedHost,
    dir: tempfile::TempDir,
}

async fn fixture() -> Fixture {
    let dir = tempfile::tempdir().unwrap();
    let host = EmbeddedHost::open(dir.path().join("git"), "/bin/false".into()).await.unwrap();
    Fixture { host, dir }
}

async fn with_project() -> (Fixture, String) {
    let fixture = fixture().await;
    fixture.host.create("p", "main", "# p\n").await.unwrap();
    let sha = fixture.host.branch("p", "main").await.unwrap().unwrap();
    (fixture, sha)
}

/// A repository with `main`, `dev` (HEAD), a pull-request ref and an annotated tag.
fn source(at: &Path) {
    let script = "git init -q -b dev --bare . && t=$(git mktree </dev/null) && \
        c=$(git commit-tree -m one $t) && for r in heads/main heads/dev pull/1/head; do \
        git update-ref refs/$r $c; done && git tag -a -m v1 v1 $c";
    fs::create_dir_all(at).unwrap();
    let mut sh = Command::new("sh");
    for role in ["AUTHOR", "COMMITTER"] {
        sh.env(format!("GIT_{role}_NAME"), "t").env(format!("GIT_{role}_EMAIL"), "t@t");
    }
    assert!(sh.args(["-ec", script]).current_dir(at).status().unwrap().success());
}

fn from<'a>(url: &'a str, root: &'a Path) -> Import<'a> {
    let deadline = Duration::from_secs(20);
    Import { url, default_branch: None, import_root: Some(root), deadline }
}

fn nothing_left(fixture: &Fixture) -> bool {
    fs::read_dir(fixture.dir.path().join("git/tmp")).unwrap().next().is_none()
}

#[tokio::test]
async fn a_repository_appears_with_one_commit_and_goes_away() {
    let (fixture, sha) = with_project().await;
    let host = &fixture.host;
    assert_eq!(host.branches("p").await.unwrap(), [Branch { name: "main".into(), sha: sha.clone() }]);
    let readme = host.run("p").unwrap().args(["show", &format!("{sha}:README.md")]);
    assert_eq!(readme.ok().await.unwrap(), b"# p\n");
    assert!(matches!(host.create("p", "main", "x").await, Err(GitError::Exists)));
    host.remove("p").await.unwrap();
    host.remove("p").await.unwrap();
    assert!(!host.exists("p").await);
    assert!(matches!(host.branches("p").await, Err(GitError::NotFound(_))));
    assert!(nothing_left(&fixture));
}

#[tokio::test]
async fn a_name_that_is_no_project_id_reaches_no_folder() {
    let (fixture, _) = with_project().await;
    for name in ["", ".", "..", "../p", "p/../p", "P", "p.git", "-p", "p\0"] {
        assert!(!fixture.host.exists(name).await, "{name:?}");
        assert!(fixture.host.remove(name).await.is_err(), "{name:?}");
    }
}

#[tokio::test]
async fn a_ref_to_start_from_is_a_branch_a_tag_or_a_full_id_and_no_expression() {
    let (fixture, sha) = with_project().await;
    let host = &fixture.host;
    host.run("p").unwrap().args(["tag", "-a", "-m", "v", "v1", &sha]).ok().await.unwrap();
    let tag = host.run("p").unwrap().args(["rev-parse", "refs/tags/v1"]).text().await.unwrap();
    let tree = host.run("p").unwrap().args(["rev-parse", "main^{tree}"]).text().await.unwrap();
    host.run("p").unwrap().args(["tag", "tree", &tree]).ok().await.unwrap();
    host.create_branch("p", "refs/heads/odd", &sha).await.unwrap();
    for name in ["main", "v1", &sha] {
        assert_eq!(host.resolve("p", name).await.unwrap().as_deref(), Some(&*sha), "{name}");
    }
    let absent = "1".repeat(40);
    for name in [
        "HEAD",
        "main^0",
        "main~0",
        "heads/main",
        "refs/heads/main",
        &sha[..12],
        &tag,
        &tree,
        "tree",
        "odd",
        "",
        "-x",
        "@",
        &absent,
        "main:README.md",
        "main@{0}",
    ] {
        assert_eq!(host.resolve("p", name).await.unwrap(), None, "{name}");
    }
}

#[tokio::test]
async fn a_branch_in_the_way_is_named() {
    let (fixture, sha) = with_project().await;
    let host = &fixture.host;
    host.create_branch("p", "feature/x", &sha).await.unwrap();
    for (name, taken) in [("feature/x", "feature/x"), ("feature", "feature/x"), ("feature/x/y/z", "feature/x")] {
        let error = host.create_branch("p", name, &sha).await.unwrap_err();
        assert!(matches!(error, BranchError::Exists(ref by) if by == taken), "{name}: {error}");
    }
    let error = host.create_branch("p", "new", &"1".repeat(40)).await.unwrap_err();
    assert!(matches!(error, BranchError::Git(_)));
}

#[tokio::test]
async fn of_many_that_make_conflicting_branches_at_once_one_wins() {
    let (fixture, sha) = with_project().await;
    for round in 0..5 {
        let names = (0..6).map(|n| format!("r{round}{}", ["", "/x"][n % 2]));
        let made = names.map(|name| {
            let (host, sha) = (fixture.host.clone(), sha.clone());
            async move { host.create_branch("p", &name, &sha).await }
        });
        let results = join_all(made).await;
        assert_eq!(results.iter().filter(|result| result.is_ok()).count(), 1, "{results:?}");
        let exists = |result: &&Result<(), BranchError>| matches!(result, Err(BranchError::Exists(_)));
        assert_eq!(results.iter().filter(exists).count(), 5, "{results:?}");
    }
}

#[tokio::test]
async fn a_branch_is_removed_or_moved_only_from_where_it_was_seen() {
    let (fixture, sha) = with_project().await;
    let host = &fixture.host;
    let run = host.run("p").unwrap();
    let tree = format!("{sha}^{{tree}}");
    let next = run.args(["commit-tree", "-p", &sha, "-m", "two", &tree]).text().await.unwrap();
    host.create_branch("p", "b", &sha).await.unwrap();
    assert!(!host.is_ahead("p", "b", "main").await.unwrap());
    assert!(host.move_branch_if("p", "b", &sha, &next).await.unwrap());
    assert!(!host.move_branch_if("p", "b", &sha, &next).await.unwrap());
    assert!(host.is_ahead("p", "b", "main").await.unwrap());
    assert_eq!(host.ahead_behind("p", "b", "main").await.unwrap(), (1, 0));
    assert!(!host.delete_branch_if("p", "b", &sha).await.unwrap());
    assert!(host.delete_branch_if("p", "b", &next).await.unwrap());
    assert!(!host.delete_branch_if("p", "b", &next).await.unwrap());
}

#[tokio::test]
async fn an_import_takes_branches_and_tags_and_nothing_else() {
    let fixture = fixture().await;
    let root = fixture.dir.path().join("in put");
    source(&root.join("s%.git"));
    let url = format!("file://{}/s%25.git", root.display().to_string().replace(' ', "%20"));
    let branch = fixture.host.import("p", from(&url, &root), "x").await.unwrap();
    assert_eq!(branch, "dev");
    let refs = fixture.host.run("p").unwrap().args(["for-each-ref", "--format=%(refname)"]);
    assert_eq!(refs.text().await.unwrap(), "refs/heads/dev\nrefs/heads/main\nrefs/tags/v1");
    let config = fs::read_to_string(fixture.dir.path().join("git/p.git/config")).unwrap();
    assert!(!config.contains("remote") && !config.contains("file:"), "{config}");
    let head = fixture.host.run("p").unwrap().args(["symbolic-ref", "HEAD"]).text().await;
    assert_eq!(head.unwrap(), "refs/heads/dev");
}

#[tokio::test]
async fn an_import_that_fails_leaves_nothing() {
    let fixture = fixture().await;
    let root = fixture.dir.path().join("in");
    source(&root.join("s.git"));
    let outside = fixture.dir.path().join("out.git");
    source(&outside);
    symlink(&outside, root.join("link.git")).unwrap();
    let url = |name: &str| format!("file://{}/{name}", root.display());
    for name in ["link.git", "../out.git", "%2e%2e/out.git", "absent.git"] {
        let result = fixture.host.import("p", from(&url(name), &root), "x").await;
        assert!(matches!(result, Err(ImportError::UnsupportedUrl(_))), "{name}: {result:?}");
    }
    let url = url("s.git");
    let wanted = Import { default_branch: Some("nope"), ..from(&url, &root) };
    let result = fixture.host.import("p", wanted, "x").await;
    assert!(matches!(result, Err(ImportError::NoSuchBranch(name)) if name == "nope"));
    fs::create_dir(root.join("empty")).unwrap();
    let not_git = format!("file://{}/empty", root.display());
    let result = fixture.host.import("p", from(&not_git, &root), "x").await;
    assert!(matches!(result, Err(ImportError::Failed(_))), "{result:?}");
    let refused = from("https://me:s3cret@127.0.0.1:1/x.git", &root);
    let text = fixture.host.import("p", refused, "x").await.unwrap_err().to_string();
    assert!(text.contains("127.0.0.1") && !text.contains("s3cret"), "{text}");
    assert!(!fixture.host.exists("p").await && nothing_left(&fixture));
}

#[tokio::test]
async fn a_source_without_commits_gives_a_first_one() {
    let fixture = fixture().await;
    let root = fixture.dir.path().join("in");
    fs::create_dir_all(&root).unwrap();
    let init = Command::new("git").args(["init", "-q", "--bare", "e.git"]).current_dir(&root).status();
    assert!(init.unwrap().success());
    let url = format!("file://{}/e.git", root.display());
    assert_eq!(fixture.host.import("p", from(&url, &root), "# e\n").await.unwrap(), "main");
    assert_eq!(fixture.host.branches("p").await.unwrap().len(), 1);
}

#[tokio::test]
async fn the_end_of_pushes_waits_for_one_that_another_server_allowed() {
    let (fixture, _) = with_project().await;
    let other = EmbeddedHost::open(fixture.dir.path().join("git"), "/bin/false".into()).await.unwrap();
    let owner = Uuid::new_v4();
    let context = PushContext { checkout_id: Some(owner), ..PushContext::default() };
    let (id, running) = other.0.in_flight.begin("p", Some(context));
    other.0.in_flight.enter(&running).await.unwrap();
    let mut end = std::pin::pin!(fixture.host.end_pushes(owner));
    let waited = tokio::time::timeout(Duration::from_millis(200), &mut end).await;
    assert!(waited.is_err(), "it returned while the push was at work");
    other.0.in_flight.finished(id);
    end.await.unwrap();
}

#[tokio::test]
async fn what_an_ended_push_left_is_tidied_unless_one_is_under_way() {
    let (fixture, _) = with_project().await;
    let left = fixture.dir.path().join("git/p.git/objects/tmp_objdir-incoming-x");
    fs::create_dir(&left).unwrap();
    let push = fixture.host.0.in_flight.share("p").await.unwrap();
    fixture.host.maintain("p").await.unwrap();
    assert!(left.exists());
    drop(push);
    fixture.host.maintain("p").await.unwrap();
    assert!(!left.exists());
}
