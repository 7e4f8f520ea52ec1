//! A wire to the database that breaks now and then at the worst moment: when the database has
//! done what it was asked, and before it could say so.

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

use crate::support::TestDb;

trait Ends: AsyncRead + AsyncWrite + Unpin + Send {}
impl<T: AsyncRead + AsyncWrite + Unpin + Send> Ends for T {}

/// Listens on loopback for as long as it lives.
pub struct Wire {
    port: u16,
    every: Arc<AtomicU64>,
    cuts: Arc<AtomicU64>,
    _tasks: JoinSet<()>,
}

impl Wire {
    /// One that does not break yet.
    pub async fn before(database: &TestDb) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("loopback");
        let port = listener.local_addr().expect("it listens").port();
        let (every, cuts, target) = (Arc::<AtomicU64>::default(), Arc::<AtomicU64>::default(), database.options());
        let (asked, done) = (every.clone(), cuts.clone());
        let mut tasks = JoinSet::new();
        tasks.spawn(async move {
            let (mut wires, questions) = (JoinSet::new(), Arc::<AtomicU64>::default());
            while let Ok((client, _)) = listener.accept().await {
                wires.spawn(carry(client, target.clone(), asked.clone(), done.clone(), questions.clone()));
            }
        });
        Self { port, every, cuts, _tasks: tasks }
    }

    pub fn url(&self, database: &TestDb) -> String {
        let user = database.options().get_username().to_owned();
        format!("postgres://{user}@127.0.0.1:{}/{}?sslmode=disable", self.port, database.name)
    }

    /// From now on one answer in so many is lost with its connection; none when that is 0.
    pub fn lose_one_in(&self, every: u64) {
        self.every.store(every, Ordering::Release);
    }

    pub fn lost(&self) -> u64 {
        self.cuts.load(Ordering::Acquire)
    }
}

async fn carry(
    client: TcpStream,
    target: PgConnectOptions,
    every: Arc<AtomicU64>,
    cuts: Arc<AtomicU64>,
    questions: Arc<AtomicU64>,
) {
    let server: Box<dyn Ends> = match target.get_socket() {
        Some(dir) => {
            let path = dir.join(format!(".s.PGSQL.{}", target.get_port()));
            Box::new(UnixStream::connect(path).await.expect("the cluster listens"))
        }
        None => {
            Box::new(TcpStream::connect((target.get_host(), target.get_port())).await.expect("the cluster listens"))
        }
    };
    let (mut asks, mut hears) = client.into_split();
    let (mut answers, mut told) = tokio::io::split(server);
    let (mut question, mut answer) = (vec![0; 16 << 10], vec![0; 16 << 10]);
    let mut is_last = false;
    loop {
        tokio::select! {
            asked = asks.read(&mut question) => {
                let Ok(count @ 1..) = asked else { return };
                let number = questions.fetch_add(1, Ordering::AcqRel);
                let every = every.load(Ordering::Acquire);
                is_last |= every > 0 && number % every == every - 1;
                if told.write_all(&question[..count]).await.is_err() {
                    return;
                }
            }
            answered = answers.read(&mut answer) => {
                let Ok(count @ 1..) = answered else { return };
                if is_last {
                    cuts.fetch_add(1, Ordering::AcqRel);
                    return;
                }
                if hears.write_all(&answer[..count]).await.is_err() {
                    return;
                }
            }
        }
    }
}
