//! A wire between a server and the cluster's API that breaks where it is told to, or goes silent
//! without closing.

use std::sync::{Arc, Mutex};

use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{
        TcpListener, TcpStream,
        tcp::{OwnedReadHalf, OwnedWriteHalf},
    },
    sync::watch,
    task::JoinSet,
};

/// Listens on loopback for as long as it lives.
pub struct Wire {
    pub port: u16,
    state: Arc<State>,
    _tasks: JoinSet<()>,
}

struct State {
    /// How many connections are still to break, and after how many bytes.
    breaks: Mutex<(usize, usize)>,
    /// Connections that were opened before are cut.
    cuts: watch::Sender<u64>,
    silent: watch::Sender<bool>,
}

impl Wire {
    pub async fn to(target: String) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("loopback");
        let port = listener.local_addr().expect("it listens").port();
        let state =
            Arc::new(State { breaks: Mutex::default(), cuts: watch::channel(0).0, silent: watch::channel(false).0 });
        let mut tasks = JoinSet::new();
        let accepting = state.clone();
        tasks.spawn(async move {
            let mut wires = JoinSet::new();
            while let Ok((client, _)) = listener.accept().await {
                let room = accepting.room();
                wires.spawn(carry(client, target.clone(), accepting.clone(), room));
            }
        });
        Self { port, state, _tasks: tasks }
    }

    /// Cuts every connection, and so many later ones once so many bytes went over each.
    pub fn cut(&self, later: usize, after: usize) {
        *self.state.breaks.lock().expect("nobody panics with it") = (later, after);
        self.state.cuts.send_modify(|cuts| *cuts += 1);
    }

    /// Whether all those are broken.
    pub fn all_cut(&self) -> bool {
        self.state.breaks.lock().expect("nobody panics with it").0 == 0
    }

    /// Nothing goes over it any more, neither way, until it is told otherwise.
    pub fn silence(&self, silent: bool) {
        self.state.silent.send_replace(silent);
    }
}

impl State {
    /// How many bytes a new connection may carry.
    fn room(&self) -> usize {
        let mut breaks = self.breaks.lock().expect("nobody panics with it");
        match *breaks {
            (0, _) => usize::MAX,
            (left, after) => {
                *breaks = (left - 1, after);
                after
            }
        }
    }
}

async fn carry(client: TcpStream, target: String, state: Arc<State>, room: usize) {
    if room == 0 {
        return;
    }
    let mut cuts = state.cuts.subscribe();
    let server = TcpStream::connect(target).await.expect("the cluster listens");
    let (from_client, to_client) = client.into_split();
    let (from_server, to_server) = server.into_split();
    let room = Mutex::new(room);
    tokio::select! {
        _ = cuts.changed() => {}
        // One that was closed on one side goes on on the other, one that broke does not.
        _ = async { tokio::try_join!(pump(from_client, to_server, &state, &room), pump(from_server, to_client, &state, &room)) } => {}
    }
}

/// An error where the wire broke.
async fn pump(
    mut from: OwnedReadHalf,
    mut to: OwnedWriteHalf,
    state: &State,
    room: &Mutex<usize>,
) -> std::io::Result<()> {
    let mut silent = state.silent.subscribe();
    let mut buffer = vec![0; 16 << 10];
    loop {
        let count = from.read(&mut buffer).await?;
        if count == 0 {
            return to.shutdown().await;
        }
        drop(silent.wait_for(|silent| !silent).await);
        let allowed = {
            let mut left = room.lock().expect("nobody panics with it");
            let allowed = count.min(*left);
            *left -= allowed;
            allowed
        };
        to.write_all(&buffer[..allowed]).await?;
        if allowed < count {
            return Err(std::io::ErrorKind::BrokenPipe.into());
        }
    }
}
