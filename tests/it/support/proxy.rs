//! A wire between the app and PostgreSQL that can go silent without closing: what a
//! network partition looks like to both ends.

use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering},
};

use sqlx::postgres::PgConnectOptions;
use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _},
    net::{TcpListener, TcpStream, UnixStream},
    task::JoinSet,
};

use super::TestDb;

trait Wire: AsyncRead + AsyncWrite + Unpin + Send {}
impl<T: AsyncRead + AsyncWrite + Unpin + Send> Wire for T {}

/// Listens on loopback for as long as it lives.
pub struct Proxy {
    port: u16,
    state: Arc<State>,
    _tasks: JoinSet<()>,
}

#[derive(Default)]
struct State {
    silent_generation: AtomicU64,
    generation: AtomicU64,
}

impl Proxy {
    pub async fn before(database: &PgConnectOptions) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("loopback");
        let port = listener.local_addr().expect("it listens").port();
        let state = Arc::new(State::default());
        let (accepting, target) = (state.clone(), database.clone());
        let mut tasks = JoinSet::new();
        tasks.spawn(async move {
            let mut wires = JoinSet::new();
            while let Ok((client, _)) = listener.accept().await {
                let generation = accepting.generation.load(Ordering::Acquire);
                wires.spawn(carry(client, target.clone(), accepting.clone(), generation));
            }
        });
        Self { port, state, _tasks: tasks }
    }

    /// How to reach the database through it.
    pub fn options(&self, database: &PgConnectOptions) -> PgConnectOptions {
        let mut options = database.clone().host("127.0.0.1").port(self.port);
        // a socket, where there is one, would win over the host
        if database.get_socket().is_some() {
            options = PgConnectOptions::new_without_pgpass()
                .host("127.0.0.1")
                .port(self.port)
                .username(database.get_username())
                .database(database.get_database().unwrap_or("postgres"));
        }
        options.ssl_mode(sqlx::postgres::PgSslMode::Disable)
    }

    /// The same as a URL.
    pub fn url(&self, database: &TestDb) -> String {
        let user = database.options().get_username().to_owned();
        format!("postgres://{user}@127.0.0.1:{}/{}?sslmode=disable", self.port, database.name)
    }

    /// The connections that are open now hear nothing more, and are not told.
    pub fn freeze(&self) {
        let now = self.state.generation.fetch_add(1, Ordering::AcqRel);
        self.state.silent_generation.store(now + 1, Ordering::Release);
    }
}

async fn carry(client: TcpStream, target: PgConnectOptions, state: Arc<State>, generation: u64) {
    let server: Box<dyn Wire> = match target.get_socket() {
        Some(dir) => {
            let path = dir.join(format!(".s.PGSQL.{}", target.get_port()));
            Box::new(UnixStream::connect(path).await.expect("the cluster listens"))
        }
        None => {
            Box::new(TcpStream::connect((target.get_host(), target.get_port())).await.expect("the cluster listens"))
        }
    };
    let (from_client, to_client) = client.into_split();
    let (from_server, to_server) = tokio::io::split(server);
    tokio::join!(
        pump(from_client, to_server, state.clone(), generation),
        pump(from_server, to_client, state.clone(), generation)
    );
}

async fn pump(mut from: impl AsyncRead + Unpin, mut to: impl AsyncWrite + Unpin, state: Arc<State>, generation: u64) {
    let mut buffer = vec![0; 16 << 10];
    while let Ok(count) = from.read(&mut buffer).await {
        if generation < state.silent_generation.load(Ordering::Acquire) {
            // Swallowed: neither passed on nor refused.
            std::future::pending::<()>().await;
        }
        if count == 0 || to.write_all(&buffer[..count]).await.is_err() {
            break;
        }
    }
    let _closed = to.shutdown().await;
}
