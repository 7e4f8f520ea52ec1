//! Who may look at the preview of a session, and for how long. A session that was read a
//! moment ago is known for [`FRESH`], so that a page with many parts costs few look-ups; its
//! end in this process is known at once, one in another within that time.

mod known;
mod links;
mod watch;

use std::{net::IpAddr, sync::Arc, time::Duration};

use chrono::{DateTime, TimeDelta, Utc};
use tokio::{sync::Semaphore, time::Instant};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use self::{
    known::{Known, Place, Register, Visit},
    links::{Link, Use},
};
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
    runtime::Place as Runtime,
    store,
};

pub use crate::runtime::Wire;

/// How long a session that was read is taken to be as it was.
const FRESH: Duration = Duration::from_millis(200);
/// Activity is noted this often at most.
const TOUCH: TimeDelta = TimeDelta::seconds(5);
/// For the note of an activity, which nobody needs to wait for.
const COURTESY: Duration = Duration::from_secs(1);
/// To be let in: for what the database is asked, and then for a place.
const PATIENCE: Duration = Duration::from_secs(5);
/// Under way at once in a session, where the process has room for twice as many.
const PLACES: usize = 256;
/// Cookies of a request that are looked up. More of them than one were given out to nobody.
const COOKIES: usize = 16;

/// Any one of these may read a session.
const READ: &[Scope] = &[Scope::SessionsRead, Scope::ProjectsRead];
/// What a link was made with.
const MAKE: &[Scope] = &[Scope::SessionsExecute, Scope::ProjectsExecute, Scope::SessionsRead, Scope::ProjectsRead];

/// What the service is made of.
pub struct Parts {
    pub db: Db,
    pub clock: Clock,
    pub keys: Keys,
    pub runtime: Runtime,
    /// The same in all processes on a database.
    pub secret: [u8; 32],
    /// This process, and its own ports, which are never a preview's.
    pub process: Uuid,
    pub own_ports: Vec<u16>,
    /// How many may be under way at once, upgraded connections among them.
    pub places: usize,
}

#[derive(Clone)]
pub struct Previews {
    inner: Arc<Inner>,
}

struct Inner {
    parts: Parts,
    known: Register,
    places: Arc<Semaphore>,
}

/// Somebody who may look at a session's preview now. Whatever is open for them ends when
/// [`over`](Self::over) does; until it has, they have a place among those who are there.
#[derive(Clone)]
pub struct Guest {
    known: Arc<Known>,
    visit: Arc<Visit>,
    key: Uuid,
    _place: Arc<Place>,
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
        self.visit.is_active();
    }
}

/// What a browser shows after it came by a link.
pub struct Cookie {
    pub text: String,
    pub life: TimeDelta,
}

impl Previews {
    pub fn new(parts: Parts) -> Self {
        let places = Arc::new(Semaphore::new(parts.places));
        Self { inner: Arc::new(Inner { parts, known: Register::default(), places }) }
    }

    /// Lets in who has a key that may read the session.
    ///
    /// # Errors
    /// Unauthenticated, forbidden; not found, also where the key is bound elsewhere; gone; those of [`enter`](Self::enter).
    pub async fn by_key(&self, session: Uuid, credential: &str, from: Option<IpAddr>) -> Result<Guest> {
        let found = in_time(async {
            let key = self.inner.parts.keys.authenticate(credential, from).await?;
            if !key.may(READ) {
                let names: Vec<&str> = READ.iter().map(|scope| scope.name()).collect();
                let refused = Error::forbidden("this key lacks a scope that the preview needs");
                return Err(refused.detail("required_any", names));
            }
            Ok((self.find(session, &key).await?, key.id))
        });
        let (known, key) = found.await?;
        self.enter(known, key, None).await
    }

    /// What opens the session to a browser from now on, in place of a link.
    ///
    /// # Errors
    /// Unauthenticated: forged, expired, another session's, or its key is gone; those of [`find`](Self::find).
    pub async fn by_link(&self, session: Uuid, text: &str) -> Result<Cookie> {
        let link = self.opened(Use::Link, session, text).ok_or_else(Error::unauthenticated)?;
        self.find_by(&link).await?;
        let text = self.signed(Use::Cookie, &link);
        Ok(Cookie { text, life: link.until - self.inner.parts.clock.now() })
    }

    /// Lets in who shows the cookie of a link among these.
    ///
    /// # Errors
    /// As [`by_link`](Self::by_link), and those of [`enter`](Self::enter).
    pub async fn by_cookie(&self, session: Uuid, shown: impl Iterator<Item = &str>) -> Result<Guest> {
        let mut refused = Error::unauthenticated();
        for link in shown.filter_map(|text| self.opened(Use::Cookie, session, text)).take(COOKIES) {
            match self.find_by(&link).await {
                Ok(known) => return self.enter(known, link.key, Some(link.until)).await,
                Err(error) if error.kind() == Kind::Unauthenticated => {}
                Err(error) => refused = error,
            }
        }
        Err(refused)
    }

    /// A link to the session's preview, and when it ends.
    pub fn issue(&self, key: &Key, session: Uuid, life: TimeDelta) -> (String, DateTime<Utc>) {
        let until = self.inner.parts.clock.now() + life;
        (self.signed(Use::Link, &Link { key: key.id, session, until }), until)
    }

    /// Connects to what listens in the session; `None` where nothing does.
    ///
    /// # Errors
    /// Those of the runtime.
    pub async fn connect(&self, guest: &Guest) -> Result<Option<Box<dyn Wire>>> {
        let wire = self.inner.parts.runtime.connect(&guest.known.project, guest.known.port).await?;
        if wire.is_some() {
            self.seen(guest).await;
        }
        Ok(wire)
    }

    /// The program is there for the guest: that is activity. Where nothing listens it is none, so
    /// that a page which looks again by itself keeps no session alive.
    pub async fn seen(&self, guest: &Guest) {
        let Parts { clock, db, .. } = &self.inner.parts;
        let (known, now) = (&guest.known, clock.now());
        let Some(before) = known.touches(now, TOUCH) else { return };
        let noted = async { Ok(store::sessions::touch(&mut db.conn().await?, known.session, now).await?) };
        let noted: Result<()> = tokio::time::timeout(COURTESY, noted).await.unwrap_or_else(|_| Err(Error::timeout()));
        if let Err(error) = noted {
            tracing::debug!(%error, session.id = %known.session, "a visit is noted later");
            known.not_touched(now, before);
        }
    }

    /// The session has ended: so does all that is open.
    pub fn close(&self, session: Uuid) {
        self.inner.known.close(session);
    }

    /// What a guest is told whose request came to nothing: that the right to look is gone, or the
    /// session with its programs, where that is why.
    pub async fn why(&self, guest: &Guest, error: Error) -> Error {
        if guest.session_over().is_cancelled() {
            return gone();
        }
        if guest.over().is_cancelled() {
            return Error::unauthenticated();
        }
        if error.kind() != Kind::BadGateway {
            return error;
        }
        let status = async {
            let mut conn = self.inner.parts.db.conn().await?;
            let found = store::sessions::find_any(&mut conn, guest.session()).await?;
            Ok(found.map(|found| found.status))
        };
        match in_time(status).await {
            Ok(Some(SessionStatus::Active)) | Err(_) => error,
            Ok(Some(SessionStatus::Ending)) => not_ready("the session is ending"),
            Ok(_) => {
                self.close(guest.session());
                gone()
            }
        }
    }

    /// # Errors
    /// `PREVIEW_BUSY` where no place came free in time.
    async fn enter(&self, known: Arc<Known>, key: Uuid, until: Option<DateTime<Utc>>) -> Result<Guest> {
        let place = Arc::new(known.place(&self.inner.places, PATIENCE).await?);
        let visit = known.visit((key, until.map_or(i64::MAX, |until| until.timestamp_micros())));
        Ok(Guest { known, visit, key, _place: place })
    }

    /// The session of a link, whose holder has its key's right.
    async fn find_by(&self, link: &Link) -> Result<Arc<Known>> {
        in_time(async {
            let key = self.inner.parts.keys.live(link.key).await?.filter(|key| key.may(MAKE));
            let key = key.ok_or_else(Error::unauthenticated)?;
            self.find(link.session, &key).await
        })
        .await
    }

    /// The session, which this key may see.
    ///
    /// # Errors
    /// Not found, gone, not ready.
    async fn find(&self, session: Uuid, key: &Key) -> Result<Arc<Known>> {
        let Some(known) = self.inner.known.get(session) else {
            let asked = Instant::now();
            let found = self.read(session, key).await?;
            let places = PLACES.min(self.inner.parts.places.div_ceil(2));
            return Ok(self.inner.known.add(Known::of(&found, asked, FRESH, places)?));
        };
        if !key.sees(&known.project) {
            return Err(Error::not_found("session not found"));
        }
        if !known.is_fresh() {
            self.read_again(&known, key).await?;
        }
        Ok(known)
    }

    /// One of those who want to know asks; the others take what it heard, however long they
    /// waited, and be it that there was nothing to be heard.
    async fn read_again(&self, known: &Known, key: &Key) -> Result<()> {
        let came = Instant::now();
        let mut read = known.read.lock().await;
        if read.at + FRESH > came && !known.over.is_cancelled() {
            return Ok(());
        }
        if read.failed.is_some_and(|at| at >= came) {
            return Err(Error::unavailable("the database", "a session could not be read"));
        }
        let asked = Instant::now();
        let heard = self.read(known.session, key).await;
        read.failed = heard.as_ref().is_err_and(is_outage).then(Instant::now);
        match heard {
            Ok(_) => {
                read.at = asked;
                known.fresh_until(asked + FRESH);
                Ok(())
            }
            Err(error) => {
                if matches!(error.kind(), Kind::Gone | Kind::NotFound) {
                    self.close(known.session);
                }
                Err(error)
            }
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
            _ => return Err(gone()),
        }
        let ours = runtime.shares_ports()
            && (own_ports.iter().any(|port| i32::from(*port) == found.preview_port)
                || store::processes::one_listens_on(&mut conn, found.preview_port).await?);
        if ours { Err(not_ready("this port is rdev's own now")) } else { Ok(found) }
    }

    fn signed(&self, what: Use, link: &Link) -> String {
        links::sign(&self.inner.parts.secret, what, link, &self.inner.parts.keys.generation(link.key))
    }

    /// A link or cookie of this session that was given out here and has not ended.
    fn opened(&self, what: Use, session: Uuid, text: &str) -> Option<Link> {
        let Parts { secret, clock, keys, .. } = &self.inner.parts;
        let link = links::open(secret, what, text, |key| keys.generation(key))?;
        (link.session == session && clock.now() < link.until).then_some(link)
    }
}

/// Nothing answers there now, and something may shortly.
pub fn not_ready(why: &'static str) -> Error {
    Error::new(Kind::Unavailable, "PREVIEW_NOT_READY", "nothing listens on the session's preview_port yet")
        .reason(why)
        .retry_after(Duration::from_secs(2))
}

fn gone() -> Error {
    Error::new(Kind::Gone, "PREVIEW_GONE", "the session of this preview has ended")
}

/// Whether the answer is the same for everybody who asks, and says nothing of the session.
fn is_outage(error: &Error) -> bool {
    matches!(error.kind(), Kind::Unavailable | Kind::Internal) && error.stable_code() != "PREVIEW_NOT_READY"
}

/// A request to a preview has no deadline; to be let in has one.
async fn in_time<T>(work: impl Future<Output = Result<T>>) -> Result<T> {
    let late = |_| Err(Error::unavailable("the database", "who asks for a preview could not be let in in time"));
    tokio::time::timeout(PATIENCE, work).await.unwrap_or_else(late)
}
