//! A browser: what a person sees who follows a link.

use std::{path::Path, process::Command};

use serde_json::{Value, json};

use super::{
    super::{
        clients::{folder, led},
        support::{PATIENCE, TestApp},
    },
    program::Preview,
};

/// A page that shows a text of another file, and takes a new one in place.
const SOURCES: &str = r#"
echo node_modules > .gitignore
echo '<!doctype html><title>app</title><p id=app></p><script type=module src=/main.js></script>' > index.html
cat > main.js <<'END'
import { text } from './text.js';
const show = (text) => { document.querySelector('#app').textContent = text; };
show(text);
import.meta.hot.accept('./text.js', (renewed) => show(renewed.text));
END
echo "export const text = 'first';" > text.js
"#;
const START: &str = "exec node node_modules/vite/bin/vite.js --port $PORT --strictPort";
const CHANGE: &str = r#"echo "export const text = 'second';" > text.js"#;

/// What `npm install vite` would bring, as if the session's user had called it.
fn install(worktree: &Path) {
    let modules = worktree.join("node_modules");
    let done = |command: &mut Command| assert!(command.status().is_ok_and(|exit| exit.success()), "{command:?}");
    done(Command::new("cp").arg("-R").arg(folder().join("node_modules")).arg(&modules));
    done(Command::new("chown").arg("-R").arg("--reference").arg(worktree).arg(&modules));
}

async fn visit(preview: &Preview) -> Value {
    let link = preview.link(&preview.app.admin(), json!({})).await;
    let input = json!({
        "link": format!("http://{}{link}", preview.host),
        "exec": format!("{}{}/exec", preview.app.url, preview.session_path()),
        "key": preview.app.admin_key,
        "start": START,
        "change": CHANGE,
        "after": "second",
    });
    let home = tempfile::tempdir().expect("a temporary directory");
    let home = home.path().to_str().expect("a path of letters");
    // Three programs start one after the other, and two of them are large: more than for anything else.
    let own = [("HOME", home)];
    let input = input.to_string();
    let visit = led(Path::new("node"), "hot_reload.mjs", &[], &own, &input);
    let (done, seen) = tokio::time::timeout(3 * PATIENCE, visit).await.expect("the browser is done");
    assert!(done, "{seen}");
    seen
}

#[tokio::test(flavor = "multi_thread")]
async fn a_page_of_a_dev_server_is_renewed_in_place() {
    let app = TestApp::start().await;
    app.project("p").await;
    let session = app.session("p", "feature").await;
    app.exec("p", &session, SOURCES).await;
    install(Path::new(session["workspace"].as_str().expect("a folder here")));
    let preview = Preview::silent(app, session);
    let seen = visit(&preview).await;
    assert_eq!(seen["waiting"], "Nothing answers here yet", "the page that looks again by itself");
    assert_eq!(seen["url"], format!("http://{}/", preview.host), "the link is gone from the address");
    assert_eq!((&seen["before"], &seen["after"]), (&json!("first"), &json!("second")));
    assert_eq!(seen["kept"], true, "the page was not loaded again: {seen}");
    assert_eq!(seen["cookies"], json!([{"name": "rdev_preview", "httpOnly": true}]));
    assert_eq!(seen["cookie"], "", "no page reads rdev's cookie");
    let sockets = seen["sockets"].as_array().expect("a list");
    let through_rdev = format!("ws://{}/", preview.host);
    assert!(sockets.iter().all(|url| url.as_str().unwrap().starts_with(&through_rdev)), "{seen}");
    assert_eq!(sockets.len(), 1, "{seen}");
}
