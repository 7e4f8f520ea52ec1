//! Execs and port-forwards over WebSockets, in the channels of v4 and v5.

use std::{
    path::{Path, PathBuf},
    process::Stdio,
};

use axum::{body::Body, extract::Request, response::Response};
use futures::{SinkExt as _, StreamExt as _};
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    process::{Child, Command},
    sync::{mpsc, watch},
};
use tokio_tungstenite::{
    WebSocketStream,
    tungstenite::{Message, handshake::derive_accept_key, protocol::Role},
};

use super::Container;

type Socket = WebSocketStream<TokioIo<hyper::upgrade::Upgraded>>;

/// Marks the processes of a container.
const MARK: &str = "FAKE_CONTAINER";

/// Answers an upgrade and goes on with its socket.
fn upgraded<F>(mut request: Request, work: impl FnOnce(Socket, bool) -> F + Send + 'static) -> Response
where
    F: Future<Output = ()> + Send + 'static,
{
    let key = request.headers()["sec-websocket-key"].as_bytes().to_vec();
    let offered = request.headers()["sec-websocket-protocol"].to_str().expect("letters").to_owned();
    // Half of the stories speak the older protocol.
    let v5 = offered.contains("v5.channel.k8s.io") && rand::random();
    let on = hyper::upgrade::on(&mut request);
    tokio::spawn(async move {
        let Ok(upgraded) = on.await else { return };
        work(WebSocketStream::from_raw_socket(TokioIo::new(upgraded), Role::Server, None).await, v5).await;
    });
    Response::builder()
        .status(101)
        .header("connection", "Upgrade")
        .header("upgrade", "websocket")
        .header("sec-websocket-accept", derive_accept_key(&key))
        .header("sec-websocket-protocol", if v5 { "v5.channel.k8s.io" } else { "v4.channel.k8s.io" })
        .body(Body::empty())
        .expect("a response")
}

pub fn exec(
    request: Request,
    container: Container,
    argv: Vec<String>,
    unanswered: bool,
    mut cuts: watch::Receiver<u64>,
) -> Response {
    cuts.borrow_and_update();
    upgraded(request, move |socket, _| async move {
        let Some(program) = find(&container, &argv[0]) else {
            let message = format!("exec failed: exec: \"{}\": executable file not found in $PATH", argv[0]);
            let status = json!({"status": "Failure", "reason": "InternalError", "message": message, "code": 500});
            return end(socket, &status).await;
        };
        let child = spawn(&container, &program, &argv[1..]);
        tokio::select! {
            () = converse(socket, child, unanswered) => {}
            _ = cuts.changed() => {}
        }
    })
}

/// Between the socket and a process, until the process has ended and all it said is sent.
async fn converse(socket: Socket, mut child: Child, unanswered: bool) {
    let (mut sink, mut source) = socket.split();
    let (say, mut said) = mpsc::channel::<Vec<u8>>(16);
    let mut stdin = child.stdin.take();
    let (mut stdout, mut stderr) = (child.stdout.take().expect("piped"), child.stderr.take().expect("piped"));
    let hear = async {
        while let Some(Ok(message)) = source.next().await {
            let Message::Binary(bytes) = message else { continue };
            match (bytes.first(), &mut stdin) {
                (Some(0), Some(to)) => {
                    let _gone = to.write_all(&bytes[1..]).await;
                }
                (Some(255), _) => stdin = None,
                _ => {}
            }
        }
        std::future::pending::<()>().await;
    };
    let errors = say.clone();
    let work = async move {
        let out = async {
            let mut part = vec![0; 32 << 10];
            while let Ok(length @ 1..) = stdout.read(&mut part).await {
                let _gone = say.send([&[1][..], &part[..length]].concat()).await;
            }
        };
        let err = async {
            let mut part = vec![0; 32 << 10];
            while let Ok(length @ 1..) = stderr.read(&mut part).await {
                let _gone = errors.send([&[2][..], &part[..length]].concat()).await;
            }
        };
        tokio::join!(out, err);
        child.wait().await.expect("our own child")
    };
    let talk = async {
        let mut work = std::pin::pin!(work);
        loop {
            tokio::select! {
                biased;
                Some(bytes) = said.recv() => {
                    if sink.send(Message::binary(bytes)).await.is_err() {
                        return;
                    }
                }
                status = &mut work => {
                    while let Ok(bytes) = said.try_recv() {
                        let _gone = sink.send(Message::binary(bytes)).await;
                    }
                    if !unanswered {
                        let _gone = sink.send(Message::binary([&[3][..], told(status.code()).to_string().as_bytes()].concat())).await;
                        let _gone = sink.close().await;
                    }
                    return;
                }
            }
        }
    };
    tokio::select! {
        () = talk => {}
        () = hear => {}
    }
}

fn told(code: Option<i32>) -> Value {
    match code {
        Some(0) => json!({"metadata": {}, "status": "Success"}),
        code => json!({"metadata": {}, "status": "Failure", "reason": "NonZeroExitCode",
                       "message": "command terminated with non-zero exit code",
                       "details": {"causes": [{"reason": "ExitCode", "message": code.unwrap_or(137).to_string()}]}}),
    }
}

async fn end(mut socket: Socket, status: &Value) {
    let _gone = socket.send(Message::binary([&[3][..], status.to_string().as_bytes()].concat())).await;
    let _gone = socket.close(None).await;
}

fn find(container: &Container, program: &str) -> Option<PathBuf> {
    container.path.split(':').map(|folder| PathBuf::from(folder).join(program)).find(|path| path.exists())
}

fn spawn(container: &Container, program: &Path, words: &[String]) -> Child {
    Command::new("bwrap")
        .args(["--dev-bind", "/", "/", "--bind"])
        .arg(container.dir.join("tmp"))
        .args(["/tmp", "--chdir", "/", "--setenv", "PATH", &container.path, "--"])
        .arg(program)
        .args(words)
        .env_clear()
        .env("PATH", "/usr/local/bin:/usr/bin:/bin")
        .env(MARK, &container.id)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("bubblewrap is there")
}

/// Ends whatever runs in a container.
pub fn kill(container: &str) {
    let mark = format!("{MARK}={container}");
    for entry in std::fs::read_dir("/proc").into_iter().flatten().flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse::<i32>().ok()) else { continue };
        let environment = std::fs::read(entry.path().join("environ")).unwrap_or_default();
        if environment.split(|byte| *byte == 0).any(|variable| variable == mark.as_bytes()) {
            let _gone = nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), nix::sys::signal::Signal::SIGKILL);
        }
    }
}

pub fn forward(request: Request, port: u16) -> Response {
    upgraded(request, move |socket, _| async move {
        let (mut sink, mut source) = socket.split();
        for channel in [0, 1] {
            let _gone = sink.send(Message::binary([&[channel][..], &port.to_le_bytes()].concat())).await;
        }
        let stream = match tokio::net::TcpStream::connect(("127.0.0.1", port)).await {
            Ok(stream) => stream,
            Err(error) => {
                let said = format!("an error occurred forwarding {port}: {error}");
                let _gone = sink.send(Message::binary([&[1][..], said.as_bytes()].concat())).await;
                return;
            }
        };
        let (mut from, mut to) = stream.into_split();
        let out = async {
            let mut piece = vec![0; 32 << 10];
            while let Ok(length @ 1..) = from.read(&mut piece).await {
                if sink.send(Message::binary([&[0][..], &piece[..length]].concat())).await.is_err() {
                    return;
                }
            }
        };
        let back = async {
            while let Some(Ok(message)) = source.next().await {
                if let Message::Binary(bytes) = message
                    && bytes.first() == Some(&0)
                    && to.write_all(&bytes[1..]).await.is_err()
                {
                    return;
                }
            }
        };
        tokio::select! {
            () = out => {}
            () = back => {}
        }
    })
}
