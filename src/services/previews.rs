//! Who may look at the preview of a session, and for how long. A session that was read a
//! moment ago is known for [`FRESH`], so that a page with many parts costs few look-ups; its
//! end in this process is known at once, one in another within that time. What stays open is
//! looked at once a second: it ends with its session, with its key, and when its link would.

mod links;

use std::{
    collections::HashMap,
    net::IpAddr,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use chrono::{DateTime, TimeDelta, Utc};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use super::keys::Keys;
use crate::{
    database::Db,
    domain::{
        clock::Clock,
        key::Key,
        scopes::Scope,
        session::{Session, SessionStatus},
    },
    error::{Error, Kind, Result},
    runtime::Place,
    store,
};

pub use self::links::Link;
pub use crate::runtime::Wire;

/// How long a session that was read is taken to be as it was.
const FRESH: Duration = Duration::from_millis(200);
/// Activity is noted this often at most.
const TOUCH: TimeDelta = TimeDelta::seconds(5);
/// How often what stays open is looked at.
const LOOK: Duration = Duration::from_secs(1);
/// A session that nobody asked for is forgotten after so long.
const FORGET: Duration = Duration::from_mins(1);

/// Any one of these may read a session.
const READ: &[Scope] = &[Scope::SessionsRead, Scope::ProjectsRead];
/// What a link was made with.
const MAKE: &[Scope] = &[Scope::SessionsExecute, Scope::ProjectsExecute, Scope::SessionsRead, Scope::ProjectsRead];

/// What the service is made of.
pub struct Parts {
    pub db: Db,
    pub clock: Clock,
    pub keys: Keys,
    pub runtime: Place,
    /// The same in all processes on a database.
    pub secret: [u8; 32],
    /// Ports of this server's own, which are never a preview's.
    pub own_ports: Vec<u16>,
}

#[derive(Clone)]
pub struct Previews {
    inner: Arc<Inner>,
}

struct Inner {
    parts: Parts,
    known: Mutex<HashMap<Uuid, Arc<Known>>>,
}

/// A session that has a preview now.
struct Known {
    session: Uuid,
    project: String,
    port: u16,
    /// Everything that is open ends.
    over: CancellationToken,
    /// When it was asked for last, behind the turn to ask again.
    read: tokio::sync::Mutex<Instant>,
    state: Mutex<State>,
}

struct State {
    fresh_until: Instant,
    used: Instant,
    touched: DateTime<Utc>,
    visits: HashMap<(Uuid, i64), Arc<Visit>>,
}

/// By which key, until when: one of these for all that is open by the same right.
struct Visit {
    over: CancellationToken,
    active: AtomicBool,
}

/// Somebody who may look at a session's preview now. Whatever is open for them ends when
/// [`over`](Self::over) does.
#[derive(Clone)]
pub struct Guest {
    known: Arc<Known>,
    visit: Arc<Visit>,
    key: Uuid,
}

impl Guest {
    pub fn session(&self) -> Uuid {
        self.known.session
    }

    pub fn port(&self) -> u16 {
        self.known.port
    }

    pub fn key(&self) -> Uuid {
        self.key
    }

    /// The right to look is gone.
    pub fn over(&self) -> &CancellationToken {
        &self.visit.over
    }

    /// The session's preview is gone.
    pub fn session_over(&self) -> &CancellationToken {
        &self.known.over
    }

    /// Something came from the guest on a connection that stays open.
    pub fn is_active(&self) {
        self.visit.active.store(true, Ordering::Relaxed);
    }
}

impl Previews {
    pub fn new(parts: Parts) -> Self {
        Self { inner: Arc::new(Inner { parts, known: Mutex::default() }) }
    }

    /// Lets in who has a key that may read the session.
    ///
    /// # Errors
    /// Unauthenticated, forbidden; not found, also where the key is bound elsewhere; those of [`enter`](Self::enter).
    pub async fn by_key(&self, session: Uuid, credential: &str, from: Option<IpAddr>) -> Result<Guest> {
        let key = self.inner.parts.keys.authenticate(credential, from).await?;
        if !key.may(READ) {
            let names: Vec<&str> = READ.iter().map(|scope| scope.name()).collect();
            return Err(Error::forbidden("this key lacks a scope that the preview needs").detail("required_any", names));
        }
        self.enter(session, &key, None).await
    }

    /// Lets in who has a link. Answers also when the link ends.
    ///
    /// # Errors
    /// Unauthenticated: forged, expired, another session's, or its key is gone; those of [`enter`](Self::enter).
    pub async fn by_link(&self, session: Uuid, text: &str) -> Result<(Guest, Link)> {
        let Parts { secret, clock, keys, .. } = &self.inner.parts;
        let link = links::open(secret, text)
            .filter(|link| link.session == session && clock.now() < link.until)
            .ok_or_else(Error::unauthenticated)?;
        let key = keys.live(link.key).await?.filter(|key| key.may(MAKE)).ok_or_else(Error::unauthenticated)?;
        Ok((self.enter(session, &key, Some(link.until)).await?, link))
    }

    /// A link to the session's preview, and when it ends.
    pub fn issue(&self, key: &Key, session: Uuid, life: TimeDelta) -> (String, DateTime<Utc>) {
        let until = self.inner.parts.clock.now() + life;
        let link = Link { key: key.id, session, until };
        (links::sign(&self.inner.parts.secret, &link), until)
    }

    /// The part of a link's life that is left.
    pub fn left(&self, link: &Link) -> TimeDelta {
        link.until - self.inner.parts.clock.now()
    }

    /// Connects to what listens in the session; `None` where nothing does.
    ///
    /// # Errors
    /// Those of the runtime.
    pub async fn connect(&self, guest: &Guest) -> Result<Option<Box<dyn Wire>>> {
        self.inner.parts.runtime.connect(&guest.known.project, guest.known.port).await
    }

    /// The session has ended: so does all that is open.
    pub fn close(&self, session: Uuid) {
        let gone = lock(&self.inner.known).remove(&session);
        if let Some(known) = gone {
            known.over.cancel();
        }
    }

    async fn enter(&self, session: Uuid, key: &Key, until: Option<DateTime<Utc>>) -> Result<Guest> {
        let known = self.find(session, key).await?;
        let now = self.inner.parts.clock.now();
        let (visit, quiet_since) = {
            let mut state = lock(&known.state);
            state.used = Instant::now();
            let quiet_since = (now - state.touched >= TOUCH).then(|| std::mem::replace(&mut state.touched, now));
            let right = (key.id, until.map_or(i64::MAX, |until| until.timestamp()));
            let visit = state.visits.entry(right).or_insert_with(|| Arc::new(Visit::of(&known.over))).clone();
            (visit, quiet_since)
        };
        if quiet_since.is_some() {
            store::sessions::touch(&mut self.inner.parts.db.conn().await?, session, now).await?;
        }
        Ok(Guest { known, visit, key: key.id })
    }

    /// The session, which this key may see.
    async fn find(&self, session: Uuid, key: &Key) -> Result<Arc<Known>> {
        let known = lock(&self.inner.known).get(&session).cloned();
        let missing = || Error::not_found("session not found");
        if let Some(known) = known {
            if !key.sees(&known.project) {
                return Err(missing());
            }
            if lock(&known.state).fresh_until > Instant::now() {
                return Ok(known);
            }
            self.read_again(&known, key).await?;
            return Ok(known);
        }
        let asked = Instant::now();
        let found = self.read(session, key).await?;
        let fresh = Arc::new(Known::of(&found, asked)?);
        Ok(lock(&self.inner.known).entry(session).or_insert(fresh).clone())
    }

    /// One of those who want to know asks; the others take what it heard, however long they waited.
    async fn read_again(&self, known: &Known, key: &Key) -> Result<()> {
        let came = Instant::now();
        let mut read = known.read.lock().await;
        if *read + FRESH > came && !known.over.is_cancelled() {
            return Ok(());
        }
        let asked = Instant::now();
        self.read(known.session, key).await.inspect_err(|error| self.closed_if_gone(known.session, error))?;
        *read = asked;
        lock(&known.state).fresh_until = asked + FRESH;
        Ok(())
    }

    fn closed_if_gone(&self, session: Uuid, error: &Error) {
        if matches!(error.kind(), Kind::Gone | Kind::NotFound) {
            self.close(session);
        }
    }

    async fn read(&self, session: Uuid, key: &Key) -> Result<Session> {
        let Parts { db, own_ports, runtime, .. } = &self.inner.parts;
        let mut conn = db.conn().await?;
        let found = store::sessions::find_any(&mut conn, session).await?;
        let found = found.filter(|found| key.sees(&found.project_id));
        let found = found.ok_or_else(|| Error::not_found("session not found"))?;
        match found.status {
            // One that ends may yet stay: its programs are ended, its preview goes when it has ended.
            SessionStatus::Active | SessionStatus::Ending => {}
            SessionStatus::Provisioning => return Err(not_ready("the session is not active yet")),
            _ => return Err(Error::new(Kind::Gone, "PREVIEW_GONE", "the session of this preview has ended")),
        }
        let ours = runtime.shares_ports()
            && (own_ports.iter().any(|port| i32::from(*port) == found.preview_port)
                || store::processes::one_listens_on(&mut conn, found.preview_port).await?);
        if ours { Err(not_ready("this port is rdev's own now")) } else { Ok(found) }
    }

    /// Looks after what is open, until the stop.
    pub async fn keep(&self, stop: CancellationToken) {
        while tokio::time::timeout(LOOK, stop.cancelled()).await.is_err() {
            if let Err(error) = self.look().await {
                tracing::warn!(%error, "open previews were not looked at; they are shortly");
            }
        }
    }

    async fn look(&self) -> Result<()> {
        let known: Vec<Arc<Known>> = lock(&self.inner.known).values().cloned().collect();
        let mut open = Vec::new();
        for known in known {
            if self.look_at_visits(&known).await? {
                open.push(known.session);
            } else if lock(&known.state).used.elapsed() > FORGET {
                lock(&self.inner.known).remove(&known.session);
            }
        }
        if open.is_empty() {
            return Ok(());
        }
        let alive = store::sessions::alive_of(&mut self.inner.parts.db.conn().await?, &open).await?;
        open.iter().filter(|session| !alive.contains(session)).for_each(|session| self.close(*session));
        Ok(())
    }

    /// Ends what nobody has a right to any more. False when nothing is open.
    async fn look_at_visits(&self, known: &Known) -> Result<bool> {
        let Parts { keys, clock, db, .. } = &self.inner.parts;
        let now = clock.now();
        let visits: Vec<_> = {
            let mut state = lock(&known.state);
            state.visits.retain(|_, visit| Arc::strong_count(visit) > 1);
            state.visits.iter().map(|(right, visit)| (*right, visit.clone())).collect()
        };
        let mut active = false;
        for ((key, until), visit) in &visits {
            active |= visit.active.swap(false, Ordering::Relaxed);
            if *until <= now.timestamp() || keys.live(*key).await?.is_none() {
                lock(&known.state).visits.remove(&(*key, *until));
                visit.over.cancel();
            }
        }
        if active && now - lock(&known.state).touched >= TOUCH {
            store::sessions::touch(&mut db.conn().await?, known.session, now).await?;
            lock(&known.state).touched = now;
        }
        Ok(!visits.is_empty())
    }
}

impl Known {
    fn of(session: &Session, asked: Instant) -> Result<Self> {
        Ok(Self {
            session: session.id,
            project: session.project_id.clone(),
            port: u16::try_from(session.preview_port).map_err(Error::internal)?,
            over: CancellationToken::new(),
            read: tokio::sync::Mutex::new(asked),
            state: Mutex::new(State {
                fresh_until: asked + FRESH,
                used: asked,
                touched: session.last_activity_at,
                visits: HashMap::new(),
            }),
        })
    }
}

impl Visit {
    fn of(session: &CancellationToken) -> Self {
        Self { over: session.child_token(), active: AtomicBool::new(false) }
    }
}

/// Nothing answers there now, and something may shortly.
pub fn not_ready(why: &'static str) -> Error {
    Error::new(Kind::Unavailable, "PREVIEW_NOT_READY", "nothing listens on the session's preview_port yet")
        .reason(why)
        .retry_after(Duration::from_secs(2))
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
