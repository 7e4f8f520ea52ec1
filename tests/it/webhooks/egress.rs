//! Where webhooks may go: addresses in every disguise, names, redirects, proxies.

use http::Method;
use serde_json::json;

use super::{attempts, deliveries, hooked, settled, statuses};
use crate::{
    jobs::{and, app_on, chat, ended, refusal, settings, show, submit},
    support::{Answer, Ground, Server, Sink, TestApp, Upstream, eventually},
};

/// Asks for a job with this URL and expects a refusal by the guard.
async fn is_not_allowed(app: &TestApp, url: &str) {
    let reply = app.admin().post("/jobs", hooked("hi", url)).await;
    let message = refusal(&reply, 400);
    let why = message.strip_prefix("state_webhook_url is not allowed: ");
    assert!(why.is_some_and(|why| !why.trim().is_empty()), "{url}: {message}");
}

/// An app on which nothing is allowed beyond the default.
async fn guarded(upstream: &Upstream) -> TestApp {
    TestApp::with(&[("RDEV_OLLAMA_URL", &upstream.url), ("RDEV_WEBHOOK_BACKOFF", "50ms")]).await
}

#[tokio::test(flavor = "multi_thread")]
async fn loopback_is_refused_in_every_disguise() {
    let (upstream, sink) = (Upstream::start().await, Sink::start().await);
    let app = guarded(&upstream).await;
    let port = sink.listener.url.rsplit_once(':').unwrap().1;
    for host in [
        "127.0.0.1",
        "127.0.0.2",
        "127.1",
        "127.0.1",
        "2130706433",
        "0x7f.1",
        "0x7f000001",
        "0X7F.0.0.1",
        "0177.0.0.1",
        "017700000001",
        "127.0.0.1.",
        "%31%32%37.0.0.1",
        "①②⑦.⓪.⓪.①",
        "１２７．０．０．１",
        "127。0。0。1",
        "0",
        "0.0.0.0",
        "0.1.2.3",
        "[::1]",
        "[0:0:0:0:0:0:0:1]",
        "[::]",
        "[::ffff:127.0.0.1]",
        "[::ffff:7f00:1]",
        "[0:0:0:0:0:ffff:127.0.0.1]",
        "[::127.0.0.1]",
        "[64:ff9b::127.0.0.1]",
        "[64:ff9b::7f00:1]",
        "[64:ff9b:1::7f00:1]",
        "[2002:7f00:1::]",
        "localhost",
        "LOCALHOST",
        "loc%61lhost",
        "ｌｏｃａｌｈｏｓｔ",
    ] {
        is_not_allowed(&app, &format!("http://{host}:{port}/hook")).await;
        is_not_allowed(&app, &format!("https://{host}:{port}/hook")).await;
    }
    assert_eq!(sink.listener.connections(), 0);
    assert_eq!(app.admin().get("/jobs").await.json(), json!({"jobs": []}));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_name_that_leads_home_on_some_machines_is_never_connected_to() {
    let (upstream, sink) = (Upstream::start().await, Sink::start().await);
    let app = guarded(&upstream).await;
    let port = sink.listener.url.rsplit_once(':').unwrap().1;
    for host in ["localhost.", "x.localhost", "ip6-localhost", "localhost.localdomain"] {
        let reply = app.admin().post("/jobs", hooked("hi", &format!("http://{host}:{port}/hook"))).await;
        // Where it does not resolve, it is accepted.
        if reply.status == 202 {
            let id = reply.json()["job_id"].as_str().unwrap().to_owned();
            eventually("all attempts", async || {
                (deliveries(&app.admin(), &id).await[0]["status"] == "failed").then_some(())
            })
            .await;
        } else {
            assert!(refusal(&reply, 400).starts_with("state_webhook_url is not allowed: "), "{}", reply.text);
        }
    }
    assert_eq!(sink.listener.connections(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn addresses_that_are_not_the_open_internets_are_refused() {
    let upstream = Upstream::start().await;
    let app = guarded(&upstream).await;
    for host in [
        "10.0.0.1",
        "172.16.0.1",
        "172.31.255.255",
        "192.168.1.1",
        "169.254.169.254",
        "0xa9fea9fe",
        "100.64.0.1",
        "100.127.255.255",
        "192.0.0.1",
        "192.0.2.1",
        "198.18.0.1",
        "198.19.255.255",
        "198.51.100.1",
        "203.0.113.1",
        "224.0.0.1",
        "239.255.255.255",
        "240.0.0.1",
        "255.255.255.255",
        "[fc00::1]",
        "[fd12:3456::1]",
        "[fe80::1]",
        "[ff02::1]",
        "[2001:db8::1]",
        "[2001::1]",
        "[2002:a00:1::1]",
        "[64:ff9b::a9fe:a9fe]",
        "[64:ff9b:1::a00:1]",
        "[::ffff:10.0.0.1]",
        "[::10.0.0.1]",
    ] {
        is_not_allowed(&app, &format!("http://{host}/hook")).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_servers_own_addresses_are_refused() {
    let upstream = Upstream::start().await;
    let app = guarded(&upstream).await;
    let addresses = nix::ifaddrs::getifaddrs().unwrap().filter_map(|interface| interface.address);
    let mut seen = 0;
    for address in addresses {
        if let Some(v4) = address.as_sockaddr_in() {
            is_not_allowed(&app, &format!("http://{}/hook", v4.ip())).await;
            seen += 1;
        } else if let Some(v6) = address.as_sockaddr_in6() {
            is_not_allowed(&app, &format!("http://[{}]/hook", v6.ip())).await;
            seen += 1;
        }
    }
    assert!(seen > 0, "a machine without an address");
    let name = nix::unistd::gethostname().unwrap().into_string().unwrap();
    if tokio::net::lookup_host((name.as_str(), 80)).await.is_ok() {
        is_not_allowed(&app, &format!("http://{name}/hook")).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_url_that_is_none_of_the_web_is_refused() {
    let upstream = Upstream::start().await;
    let app = app_on(&upstream, &[]).await;
    let long = format!("http://127.0.0.1/{}", "x".repeat(2_048 - 16));
    for url in [
        "hook",
        "/hook",
        "//127.0.0.1/hook",
        "127.0.0.1/hook",
        "ftp://127.0.0.1/hook",
        "file:///etc/passwd",
        "gopher://127.0.0.1/x",
        "javascript:alert(1)",
        "unix:///run/x",
        "http://",
        "http://user@127.0.0.1/hook",
        "http://user:password@127.0.0.1/hook",
        "http://:password@127.0.0.1/hook",
        "http://127.0.0.1:99999/hook",
        "http://127.0.0.256/hook",
        "http://[::1/hook",
        "http://a b/hook",
        long.as_str(),
    ] {
        is_not_allowed(&app, url).await;
    }
    for wrong in [json!(5), json!(["http://127.0.0.1/"]), json!({})] {
        refusal(&app.admin().post("/jobs", and(chat("hi"), json!({"state_webhook_url": wrong}))).await, 400);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_url_of_2048_bytes_is_used_as_it_is() {
    let (upstream, sink) = (Upstream::start().await, Sink::start().await);
    let app = app_on(&upstream, &[]).await;
    let base = format!("{}/hook?x=", sink.listener.url);
    let url = format!("{base}{}", "y".repeat(2_048 - base.len()));
    submit(&app.admin(), hooked("hi", &url)).await;
    let path = url.strip_prefix(&sink.listener.url).unwrap();
    assert!(sink.received(3).await.iter().all(|request| request.path == path));
    is_not_allowed(&app, &format!("{url}y")).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_allowed_address_may_be_written_as_browsers_read_it() {
    let (upstream, sink) = (Upstream::start().await, Sink::start().await);
    let app = app_on(&upstream, &[]).await;
    let port = sink.listener.url.rsplit_once(':').unwrap().1;
    for (n, host) in ["127.1", "0x7f.1", "2130706433", "[::ffff:127.0.0.1]"].into_iter().enumerate() {
        submit(&app.admin(), hooked("hi", &format!("http://{host}:{port}/{n}"))).await;
        sink.received(3 * (n + 1)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_allowed_is_the_address_and_not_its_neighbour() {
    let (upstream, guarded) = (Upstream::start().await, Sink::on("127.0.0.2:0").await);
    let app = app_on(&upstream, &[("RDEV_EGRESS_ALLOW", "127.0.0.1/32")]).await;
    is_not_allowed(&app, &guarded.hook()).await;
    let sink = Sink::start().await;
    sink.then(Answer::redirect(302, &guarded.hook())).then(Answer::redirect(307, &guarded.hook()));
    let id = submit(&app.admin(), hooked("hi", &sink.hook())).await;
    let first = settled(&app.admin(), &id).await.remove(0);
    assert_eq!((&first["status"], attempts(&first).len()), (&json!("delivered"), 3));
    assert_eq!(guarded.listener.connections(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_name_that_does_not_resolve_is_accepted_and_tried() {
    let upstream = Upstream::start().await;
    let app = app_on(&upstream, &[]).await;
    let id = submit(&app.admin(), hooked("hi", "http://no-such-host.invalid/hook")).await;
    assert_eq!(ended(&app.admin(), &id).await["state"], "completed");
    let tries = eventually("two attempts", async || {
        let tries = attempts(&deliveries(&app.admin(), &id).await[0]);
        (tries.len() >= 2).then_some(tries)
    });
    let tries = tries.await;
    assert!(tries.iter().all(|one| one["error"].is_string() && one.get("status_code").is_none()), "{tries:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_address_that_is_refused_by_the_time_of_the_delivery_is_not_tried_again() {
    let (upstream, sink) = (Upstream::start().await, Sink::start().await);
    sink.then(Answer::status(503).header("retry-after", "2"));
    let app = app_on(&upstream, &[]).await;
    let id = submit(&app.admin(), hooked("hi", &sink.hook())).await;
    ended(&app.admin(), &id).await;
    sink.received(1).await;
    let seen = sink.listener.connections();
    let app = app.restart(&[("RDEV_OLLAMA_URL", &upstream.url), ("RDEV_WEBHOOK_BACKOFF", "50ms")]).await;
    let all = settled(&app.admin(), &id).await;
    assert_eq!((statuses(&all), sink.listener.connections()), (vec!["failed"; 3], seen));
    let last = attempts(&all[0]).pop().unwrap();
    assert!(last["error"].is_string() && attempts(&all[0]).len() <= 2, "{}", all[0]);
    assert_eq!(show(&app.admin(), &id).await["state"], "completed");
}

#[tokio::test(flavor = "multi_thread")]
async fn no_proxy_of_the_environment_stands_between() {
    let (upstream, sink, proxy) = (Upstream::start().await, Sink::on("127.0.0.2:0").await, Sink::start().await);
    let url = proxy.listener.url.clone();
    let variables = ["http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"].map(|name| (name, url.as_str()));
    // The model upstream may have its own rule.
    let own = [&settings(&upstream)[..], &variables, &[("no_proxy", "127.0.0.1"), ("NO_PROXY", "127.0.0.1")]].concat();
    let server = Server::start(&Ground::new().await, &own).await;
    submit(&server.admin(), hooked("hi", &sink.hook())).await;
    sink.received(3).await;
    assert_eq!(proxy.listener.connections(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_receiver_learns_nothing_of_the_caller() {
    let (upstream, sink) = (Upstream::start().await, Sink::start().await);
    let app = app_on(&upstream, &[]).await;
    let body = hooked("hi", &sink.hook()).to_string();
    let headers = [("cookie", "session=secret"), ("x-forwarded-for", "192.0.2.7")];
    assert_eq!(app.admin().send(Method::POST, "/jobs", Some(body), &headers).await.status, 202);
    for request in sink.received(3).await {
        let all = format!("{:?} {}", request.headers, request.text());
        for secret in [&app.admin_key[..14], "secret", "192.0.2.7"] {
            assert!(!all.contains(secret), "{secret} in {all}");
        }
    }
}
