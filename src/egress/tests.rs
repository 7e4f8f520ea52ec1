//! Against real listeners on the loopback, which is allowed where it is meant to be reached.
//! Where something must not be called, the listener is asked whether anybody came.

mod servers;

use std::{
    io::{self, Read as _, Write as _},
    net::{IpAddr, SocketAddr},
    process::Command,
    sync::{Mutex, Once, atomic::AtomicUsize, atomic::Ordering, mpsc},
    thread,
};

use self::servers::{Server, Silent, certificate, read_request};
use super::*;

const OK: &str = "HTTP/1.1 200 OK\r\nx-a: b\r\ncontent-length: 2\r\n\r\nok";
const SHORT: Duration = Duration::from_millis(400);
const LONG: Duration = Duration::from_secs(15);

fn provider() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| drop(rustls::crypto::ring::default_provider().install_default()));
}

/// Nothing but the public internet.
fn strict() -> Egress {
    provider();
    Egress::new(Vec::new()).unwrap()
}

/// The loopback as well.
fn local() -> Egress {
    provider();
    Egress::new(loopback()).unwrap()
}

fn loopback() -> Vec<IpNet> {
    vec!["127.0.0.0/8".parse().unwrap(), "::1/128".parse().unwrap()]
}

/// With a look-up of its own, and the loopback allowed or not.
fn resolving(
    allow: Vec<IpNet>,
    lookup: impl Fn(&str) -> io::Result<Vec<SocketAddr>> + Send + Sync + 'static,
) -> Egress {
    provider();
    Egress::build(Guard::new(allow, interfaces).unwrap(), Arc::new(lookup), None).unwrap()
}

fn post(url: &str) -> Call {
    let target = Target::parse(url).unwrap();
    let (headers, body) = (HeaderMap::new(), Bytes::from("{}"));
    Call { method: Method::POST, target, headers, body, timeout: LONG, answer_max: ANSWER_MAX }
}

fn short(url: &str) -> Call {
    Call { timeout: SHORT, ..post(url) }
}

fn addresses(texts: &[&str]) -> Vec<SocketAddr> {
    texts.iter().map(|text| SocketAddr::new(text.parse().unwrap(), 0)).collect()
}

fn unreachable(why: &str) -> Failure {
    Failure::Unreachable(why.to_owned())
}

fn broken(why: &str) -> Failure {
    Failure::Broken(why.to_owned())
}

fn refused(why: &str) -> Failure {
    Failure::Refused(Refused::new(why))
}

#[tokio::test]
async fn a_call_says_what_the_caller_said_and_no_more() {
    let (tell, requests) = mpsc::channel();
    let server = Server::start(move |mut stream| {
        while let Some(request) = read_request(&mut stream) {
            tell.send(request).unwrap();
            stream.write_all(OK.as_bytes()).unwrap();
        }
    });
    let mut call = post(&format!("{}a%20b?c=d#e", server.url()));
    call.headers.insert("x-mine", "1".parse().unwrap());
    for name in CLIENTS_OWN {
        call.headers.insert(name, "chunked".parse().unwrap());
    }
    let answer = local().call(call).await.unwrap();
    assert_eq!((answer.status, &answer.body[..], answer.complete), (200, &b"ok"[..], true));
    assert_eq!(answer.headers["x-a"], "b");
    let request = requests.recv().unwrap();
    let (head, body) = request.split_once("\r\n\r\n").unwrap();
    let mut lines: Vec<_> = head.lines().collect();
    lines[1..].sort_unstable();
    let host = format!("host: {}", server.address);
    let agent = format!("user-agent: rdev/{}", env!("CARGO_PKG_VERSION"));
    assert_eq!(
        lines,
        ["POST /a%20b?c=d HTTP/1.1", "accept: */*", "content-length: 2", host.as_str(), agent.as_str(), "x-mine: 1"]
    );
    assert_eq!(body, "{}");

    local().call(Call { body: Bytes::new(), ..post(&server.url()) }).await.unwrap();
    assert!(requests.recv().unwrap().contains("\r\ncontent-length: 0\r\n"), "a POST of nothing says so");
    local().call(Call { method: Method::GET, body: Bytes::new(), ..post(&server.url()) }).await.unwrap();
    assert!(!requests.recv().unwrap().contains("content-length"), "a GET has no body");
}

#[tokio::test]
async fn a_connection_is_used_again() {
    let server = Server::answering(OK);
    let egress = local();
    for _ in 0..20 {
        assert!(egress.clone().call(post(&server.url())).await.unwrap().complete);
    }
    assert_eq!(server.connections(), 1);
}

#[tokio::test]
async fn a_body_is_read_up_to_the_limit() {
    let exact = "a".repeat(ANSWER_MAX);
    let sized = format!("HTTP/1.1 200 OK\r\ncontent-length: {ANSWER_MAX}\r\n\r\n{exact}");
    let chunked =
        format!("HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n{ANSWER_MAX:x}\r\n{exact}\r\n0\r\n\r\n");
    for text in [sized, chunked] {
        let server = Server::answering(text.leak());
        let egress = local();
        for _ in 0..2 {
            let answer = egress.call(post(&server.url())).await.unwrap();
            assert_eq!(answer.body.len(), ANSWER_MAX);
        }
        assert!(server.connections() <= 2);
    }
    let longer = format!("HTTP/1.1 500 No\r\ncontent-length: {}\r\n\r\n{exact}b", ANSWER_MAX + 1);
    let server = Server::answering(longer.leak());
    let answer = local().call(post(&server.url())).await.unwrap();
    assert_eq!((answer.status, answer.body.len(), answer.complete), (500, ANSWER_MAX, false));
}

#[tokio::test]
async fn an_endless_body_is_not_waited_for() {
    let (ended, mut end) = tokio::sync::mpsc::unbounded_channel();
    let server = Server::once_asked(move |mut stream| {
        stream.write_all(b"HTTP/1.1 200 OK\r\n\r\n")?;
        while stream.write_all(&[b'a'; 1000]).is_ok() {}
        ended.send(()).map_err(io::Error::other)
    });
    let answer = local().call(post(&server.url())).await.unwrap();
    assert_eq!((answer.status, answer.body.len(), answer.complete), (200, ANSWER_MAX, false));
    time::timeout(LONG, end.recv()).await.expect("the connection is dropped");
}

#[tokio::test]
async fn a_dripping_body_counts_as_far_as_it_came_in_time() {
    let server = Server::once_asked(|mut stream| {
        stream.write_all(b"HTTP/1.1 410 Gone\r\ncontent-length: 10000\r\n\r\n")?;
        loop {
            stream.write_all(b"a")?;
            thread::sleep(Duration::from_millis(5));
        }
    });
    let answer = local().call(short(&server.url())).await.unwrap();
    assert_eq!((answer.status, answer.complete), (410, false));
    assert!((1..1000).contains(&answer.body.len()), "{}", answer.body.len());
}

#[tokio::test]
async fn a_body_that_breaks_off_leaves_the_status() {
    let server = Server::once_asked(|mut stream| stream.write_all(b"HTTP/1.1 204 No\r\n\r\n").map(drop));
    assert!(local().call(post(&server.url())).await.unwrap().complete);
    let server = Server::once_asked(|mut stream| stream.write_all(b"HTTP/1.1 201 Yes\r\ncontent-length: 9\r\n\r\nabc"));
    let answer = local().call(post(&server.url())).await.unwrap();
    assert_eq!((answer.status, &answer.body[..], answer.complete), (201, &b"abc"[..], false));
}

#[tokio::test]
async fn silence_is_a_timeout() {
    let server = Server::once_asked(|mut stream| stream.read(&mut [0]).map(drop));
    let failure = local().call(short(&server.url())).await.unwrap_err();
    assert_eq!(failure, Failure::Timeout(SHORT));
    assert_eq!(failure.to_string(), "no answer within 400ms");
    assert_eq!(Failure::Timeout(LONG).to_string(), "no answer within 15s");
}

#[tokio::test]
async fn a_head_that_drips_is_a_timeout() {
    let server = Server::once_asked(|mut stream| {
        stream.write_all(b"HTTP/1.1 200 OK\r\nx-a: ")?;
        loop {
            stream.write_all(b"a")?;
            thread::sleep(Duration::from_millis(5));
        }
    });
    assert_eq!(local().call(short(&server.url())).await.unwrap_err(), Failure::Timeout(SHORT));
}

#[tokio::test]
async fn a_broken_conversation_says_how() {
    let closed = Server::once_asked(|stream| stream.shutdown(std::net::Shutdown::Both));
    let failure = local().call(post(&closed.url())).await.unwrap_err();
    assert_eq!(failure, broken("the connection was closed before an answer came"));

    // What is closed with something unread is reset.
    let reset = Server::start(|mut stream| {
        stream.peek(&mut [0]).unwrap();
        stream.write_all(b"HTTP/1.1 200 OK\r\nx-a").unwrap();
    });
    assert_eq!(local().call(post(&reset.url())).await.unwrap_err(), broken("connection reset"));

    let other = Server::once_asked(|mut stream| stream.write_all(b"220 ready\r\n\r\n"));
    assert_eq!(local().call(post(&other.url())).await.unwrap_err(), broken("the answer is not HTTP"));
}

#[tokio::test]
async fn what_does_not_listen_is_unreachable() {
    let port = Silent::listen().port();
    let failure = local().call(post(&format!("http://127.0.0.1:{port}"))).await.unwrap_err();
    assert_eq!(failure, unreachable("connection refused"));
}

#[tokio::test]
async fn a_connection_that_the_server_closed_loses_no_call() {
    let asked = Arc::new(AtomicUsize::new(0));
    let count = asked.clone();
    let server = Server::once_asked(move |mut stream| {
        count.fetch_add(1, Ordering::SeqCst);
        stream.write_all(OK.as_bytes())
    });
    let egress = local();
    for calls in 1..=200 {
        let before = asked.load(Ordering::SeqCst);
        match egress.call(post(&server.url())).await {
            Ok(answer) => assert_eq!((answer.status, asked.load(Ordering::SeqCst)), (200, before + 1), "call {calls}"),
            Err(failure) => assert!(matches!(failure, Failure::Broken(_)), "call {calls}: {failure}"),
        }
    }
    assert!(asked.load(Ordering::SeqCst) > 100);
}

#[tokio::test]
async fn redirects_are_answers() {
    let elsewhere = Silent::listen();
    for to in [format!("http://127.0.0.1:{}/", elsewhere.port()), "http://169.254.169.254/latest".to_owned()] {
        for status in [301, 302, 303, 307, 308] {
            let text = format!("HTTP/1.1 {status} Moved\r\nlocation: {to}\r\ncontent-length: 0\r\n\r\n");
            let server = Server::answering(text.leak());
            let answer = local().call(post(&server.url())).await.unwrap();
            assert_eq!((answer.status, answer.headers["location"].to_str().unwrap()), (status, to.as_str()));
            assert_eq!(server.connections(), 1);
        }
    }
    assert!(elsewhere.nobody_came());
}

#[tokio::test]
async fn nobody_is_called_by_an_address_in_disguise() {
    let listener = Silent::listen();
    let egress = strict();
    for host in ["127.0.0.1", "127.1", "0x7f000001", "2130706433", "0177.1", "127.0.0.1.", "[::ffff:7f00:1]"] {
        let url = format!("http://{host}:{}/", listener.port());
        let failure = egress.call(post(&url)).await.unwrap_err();
        assert_eq!(failure, refused("127.0.0.1 is a loopback address"), "{host}");
        assert_eq!(egress.check(&url).await.unwrap_err().to_string(), "127.0.0.1 is a loopback address", "{host}");
    }
    for host in ["[::1]", "0", "0.0.0.0", "[::]", "[64:ff9b::7f00:1]", "[::127.0.0.1]"] {
        let url = format!("http://{host}:{}/", listener.port());
        assert!(matches!(egress.call(post(&url)).await, Err(Failure::Refused(_))), "{host}");
        assert!(egress.check(&url).await.is_err(), "{host}");
    }
    for host in ["localhost", "LOCALHOST", "localhost.", "a.LocalHost"] {
        for scheme in ["http", "https"] {
            let url = format!("{scheme}://{host}:{}/", listener.port());
            let why = "the name resolves to a loopback address";
            assert_eq!(egress.call(post(&url)).await.unwrap_err(), refused(why), "{host}");
            assert_eq!(egress.check(&url).await.unwrap_err().to_string(), why, "{host}");
        }
    }
    assert!(listener.nobody_came());
}

#[tokio::test]
async fn allowed_nets_are_called() {
    let server = Server::answering(OK);
    let egress = local();
    for host in ["127.0.0.1", "127.1", "2130706433", "[::ffff:127.0.0.1]", "localhost"] {
        let url = format!("http://{host}:{}/", server.address.port());
        assert_eq!(egress.check(&url).await.unwrap().url(), Target::parse(&url).unwrap().url());
        assert_eq!(egress.call(post(&url)).await.unwrap().status, 200, "{host}");
    }
    let failure = egress.call(post("http://10.0.0.1/")).await.unwrap_err();
    assert_eq!(failure, refused("10.0.0.1 is a private address"));
}

#[tokio::test]
async fn a_name_that_changes_its_mind_is_refused_where_it_matters() {
    let listener = Silent::listen();
    let asked = AtomicUsize::new(0);
    let egress = resolving(Vec::new(), move |name| {
        assert_eq!(name, "rebinding.test");
        let public = asked.fetch_add(1, Ordering::SeqCst) == 0;
        Ok(addresses(if public { &["93.184.216.34"] } else { &["127.0.0.1"] }))
    });
    let url = format!("http://rebinding.test:{}/", listener.port());
    let target = egress.check(&url).await.unwrap();
    let failure = egress.call(Call { target, ..post(&url) }).await.unwrap_err();
    assert_eq!(failure, refused("the name resolves to a loopback address"));
    assert!(listener.nobody_came());
}

#[tokio::test]
async fn one_refused_address_refuses_the_name() {
    let egress = resolving(Vec::new(), |_| Ok(addresses(&["93.184.216.34", "2606:4700::1", "fd00::1"])));
    let why = "the name resolves to a unique-local address";
    assert_eq!(egress.check("http://a.test/").await.unwrap_err().to_string(), why);
    assert_eq!(egress.call(post("http://a.test/")).await.unwrap_err(), refused(why));
}

#[tokio::test]
async fn the_addresses_that_were_judged_are_those_called() {
    let server = Server::answering(OK);
    // Nobody listens at the first: the client goes on with the second, and asks no one else.
    let egress = resolving(loopback(), |_| Ok(addresses(&["127.0.0.9", "127.0.0.1"])));
    let url = format!("http://no-such-name.test:{}/", server.address.port());
    assert_eq!(egress.call(post(&url)).await.unwrap().status, 200);
    assert_eq!(server.connections(), 1);
}

#[tokio::test]
async fn the_servers_own_addresses_are_not_called() {
    provider();
    let own = || Ok(vec![IpAddr::from([93, 184, 216, 34])]);
    let lookup = |_: &str| Ok(addresses(&["93.184.216.34"]));
    let egress = Egress::build(Guard::new(Vec::new(), own).unwrap(), Arc::new(lookup), None).unwrap();
    let why = "93.184.216.34 is an address of this server";
    assert_eq!(egress.check("http://93.184.216.34/").await.unwrap_err().to_string(), why);
    let why = "the name resolves to an address of this server";
    assert_eq!(egress.call(post("https://a.test/")).await.unwrap_err(), refused(why));
}

#[tokio::test]
async fn a_name_that_does_not_resolve_passes_the_door_and_is_unreachable() {
    for nothing in [|_: &str| Ok(Vec::new()), |_: &str| Err(io::Error::other("no such host"))] {
        let egress = resolving(Vec::new(), nothing);
        egress.check("https://a.test/").await.unwrap();
        let failure = egress.call(post("https://a.test/")).await.unwrap_err();
        assert_eq!(failure, unreachable("the name does not resolve"));
    }
}

#[tokio::test]
async fn a_slow_look_up_holds_nobody() {
    let (release, held) = mpsc::channel::<()>();
    let held = Mutex::new(held);
    let egress = resolving(Vec::new(), move |_| {
        let _ = held.lock().unwrap().recv();
        Ok(addresses(&["127.0.0.1"]))
    });
    let target = Target::parse("http://slow.test/").unwrap();
    egress.judge_name(&target, SHORT).await.unwrap();
    assert_eq!(egress.call(short("http://slow.test/")).await.unwrap_err(), Failure::Timeout(SHORT));
    drop(release);
    assert!(egress.judge_name(&target, LONG).await.is_err());
}

#[tokio::test]
async fn a_tunnel_is_no_call() {
    let listener = Silent::listen();
    let url = format!("http://127.0.0.1:{}/", listener.port());
    let failure = local().call(Call { method: Method::CONNECT, ..post(&url) }).await.unwrap_err();
    assert_eq!(failure, refused("CONNECT is no method for a call"));
    assert!(listener.nobody_came());
}

#[tokio::test]
async fn https_is_checked_by_the_certificates_there_are() {
    provider();
    let server = Server::answering_tls(OK);
    let guard = || Guard::new(loopback(), interfaces).unwrap();
    let here = |_: &str| Ok(addresses(&["127.0.0.1"]));
    let egress = |roots| Egress::build(guard(), Arc::new(here), Some(roots)).unwrap();
    let url = |host| format!("https://{host}:{}/", server.address.port());

    let trusting = egress(vec![Certificate::from_der(&certificate()).unwrap()]);
    for host in ["receiver.test", "receiver.test.", "127.0.0.1"] {
        assert_eq!(trusting.call(post(&url(host))).await.unwrap().status, 200, "{host}");
    }
    let failure = trusting.call(post(&url("other.test"))).await.unwrap_err();
    assert_eq!(failure, unreachable("TLS: the certificate is for another name"));

    let failure = egress(Vec::new()).call(post(&url("receiver.test"))).await.unwrap_err();
    let why = "the server's certificate cannot be checked, there are no CA certificates on this machine";
    assert_eq!(failure, unreachable(&format!("TLS: {why}")));
    let plain = Server::answering(OK);
    assert_eq!(egress(Vec::new()).call(post(&plain.url())).await.unwrap().status, 200, "http is called all the same");

    let system = local();
    let failure = system.call(post(&url("127.0.0.1"))).await.unwrap_err();
    let why = if system.trusts { "the certificate's issuer is not trusted" } else { why };
    assert_eq!(failure, unreachable(&format!("TLS: {why}")));
}

#[tokio::test]
async fn https_to_a_server_without_it_says_so() {
    let server = Server::start(|mut stream| drop(stream.write_all(b"HTTP/1.1 400 No\r\n\r\n")));
    let failure = local().call(post(&format!("https://{}/", server.address))).await.unwrap_err();
    assert_eq!(failure, unreachable("TLS: the server does not speak it"));
}

#[tokio::test]
async fn proxy_variables_are_not_used() {
    let server = Server::answering(OK);
    assert_eq!(local().call(post(&server.url())).await.unwrap().status, 200);
    assert_eq!(server.connections(), 1);
    let nowhere = "http://127.0.0.1:1";
    let names = ["http_proxy", "HTTP_PROXY", "https_proxy", "HTTPS_PROXY", "all_proxy", "ALL_PROXY"];
    again_with("proxy_variables_are_not_used", &names.map(|name| (name, nowhere)));
}

#[tokio::test]
async fn without_ca_certificates_http_is_called_and_https_says_so() {
    let egress = local();
    let server = Server::answering(OK);
    assert_eq!(egress.call(post(&server.url())).await.unwrap().status, 200);
    if again_with(
        "without_ca_certificates_http_is_called_and_https_says_so",
        &[("SSL_CERT_FILE", "/dev/null"), ("SSL_CERT_DIR", "/dev/null")],
    ) {
        assert!(!egress.trusts);
        let server = Server::answering_tls(OK);
        let failure = egress.call(post(&format!("https://{}/", server.address))).await.unwrap_err();
        assert!(failure.to_string().ends_with("there are no CA certificates on this machine"), "{failure}");
    }
}

/// Variables cannot be set in this process: runs the test in another that has them. True in that one.
fn again_with(test: &str, variables: &[(&str, &str)]) -> bool {
    if variables.iter().all(|(name, value)| std::env::var_os(name).is_some_and(|is| is == *value)) {
        return true;
    }
    let (_, module) = module_path!().split_once("::").unwrap();
    let mut again = Command::new(std::env::current_exe().unwrap());
    again.args(["--exact", &format!("{module}::{test}")]).envs(variables.iter().copied());
    let output = again.env_remove("no_proxy").env_remove("NO_PROXY").output().unwrap();
    assert!(output.status.success() && String::from_utf8_lossy(&output.stdout).contains("1 passed"), "{output:?}");
    false
}
