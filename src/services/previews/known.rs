//! The sessions that were asked for a moment ago, and what is open to each. One that somebody
//! has in hand is never forgotten: what is opened by it is found here when its right ends.

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use chrono::{DateTime, Utc};
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore},
    time::Instant,
};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use crate::{
    domain::session::Session,
    error::{Error, Kind, Result},
};

/// A session that has a preview now.
pub struct Known {
    pub session: Uuid,
    pub project: String,
    pub port: u16,
    /// Everything that is open ends.
    pub over: CancellationToken,
    /// Behind the turn to ask again.
    pub read: tokio::sync::Mutex<Read>,
    places: Arc<Semaphore>,
    state: Mutex<State>,
}

/// When the session was asked for last.
pub struct Read {
    pub at: Instant,
    /// When it was not to be had, if that was the last of it.
    pub failed: Option<Instant>,
}

struct State {
    fresh_until: Instant,
    used: Instant,
    touched: DateTime<Utc>,
    /// Activity that could not be noted.
    owed: bool,
    visits: HashMap<Right, Arc<Visit>>,
}

/// By which key, until when in microseconds.
pub type Right = (Uuid, i64);

/// One of these for all that is open by the same right.
pub struct Visit {
    pub over: CancellationToken,
    active: AtomicBool,
}

/// Among those under way, of the session and of all.
pub struct Place(#[expect(dead_code, reason = "held until what is under way ends")] [OwnedSemaphorePermit; 2]);

impl Known {
    /// `places`: how many may be under way at once.
    pub fn of(session: &Session, asked: Instant, fresh: Duration, places: usize) -> Result<Self> {
        let port = u16::try_from(session.preview_port).map_err(Error::internal)?;
        let state = State {
            fresh_until: asked + fresh,
            used: asked,
            touched: session.last_activity_at,
            owed: false,
            visits: HashMap::new(),
        };
        Ok(Self {
            session: session.id,
            project: session.project_id.clone(),
            port,
            over: CancellationToken::new(),
            read: tokio::sync::Mutex::new(Read { at: asked, failed: None }),
            places: Arc::new(Semaphore::new(places)),
            state: Mutex::new(state),
        })
    }

    pub fn is_fresh(&self) -> bool {
        lock(&self.state).fresh_until > Instant::now()
    }

    pub fn fresh_until(&self, until: Instant) {
        lock(&self.state).fresh_until = until;
    }

    /// What is open by this right.
    pub fn visit(&self, right: Right) -> Arc<Visit> {
        let mut state = lock(&self.state);
        state.used = Instant::now();
        let fresh = || Arc::new(Visit { over: self.over.child_token(), active: AtomicBool::new(false) });
        state.visits.entry(right).or_insert_with(fresh).clone()
    }

    /// Waits for a place here and among all.
    ///
    /// # Errors
    /// `PREVIEW_BUSY` where none came free in time.
    pub async fn place(&self, all: &Arc<Semaphore>, patience: Duration) -> Result<Place> {
        let both = async {
            let here = self.places.clone().acquire_owned().await.map_err(Error::internal)?;
            Ok(Place([here, all.clone().acquire_owned().await.map_err(Error::internal)?]))
        };
        tokio::time::timeout(patience, both).await.unwrap_or_else(|_| Err(busy()))
    }

    /// Ends what is open for longer than it may be. Answers by which rights something still is,
    /// and whether there is activity to be noted.
    pub fn end_by_time(&self, now: DateTime<Utc>) -> (Vec<Right>, bool) {
        let mut state = lock(&self.state);
        let mut active = std::mem::take(&mut state.owed);
        state.visits.retain(|(_, until), visit| {
            active |= visit.active.swap(false, Ordering::Relaxed);
            let is_over = *until <= now.timestamp_micros();
            if is_over {
                visit.over.cancel();
            }
            !is_over && Arc::strong_count(visit) > 1
        });
        (state.visits.keys().copied().collect(), active)
    }

    /// Ends what is open by this right.
    pub fn end(&self, right: Right) {
        if let Some(visit) = lock(&self.state).visits.remove(&right) {
            visit.over.cancel();
        }
    }

    /// Turns to note activity at this time, where the last one is `after` ago: answers that one.
    pub fn touches(&self, now: DateTime<Utc>, after: chrono::TimeDelta) -> Option<DateTime<Utc>> {
        let mut state = lock(&self.state);
        (now - state.touched >= after).then(|| std::mem::replace(&mut state.touched, now))
    }

    /// The note failed, and is made later.
    pub fn not_touched(&self, at: DateTime<Utc>, before: DateTime<Utc>) {
        let mut state = lock(&self.state);
        state.owed = true;
        if state.touched == at {
            state.touched = before;
        }
    }
}

impl Visit {
    pub fn is_active(&self) {
        self.active.store(true, Ordering::Relaxed);
    }
}

/// By the session's id.
#[derive(Default)]
pub struct Register(Mutex<HashMap<Uuid, Arc<Known>>>);

impl Register {
    pub fn get(&self, session: Uuid) -> Option<Arc<Known>> {
        lock(&self.0).get(&session).cloned()
    }

    /// Another may have come first: that one counts.
    pub fn add(&self, known: Known) -> Arc<Known> {
        lock(&self.0).entry(known.session).or_insert(Arc::new(known)).clone()
    }

    pub fn all(&self) -> Vec<Arc<Known>> {
        lock(&self.0).values().cloned().collect()
    }

    /// The session has ended: so does all that is open.
    pub fn close(&self, session: Uuid) {
        let gone = lock(&self.0).remove(&session);
        if let Some(known) = gone {
            known.over.cancel();
        }
    }

    /// Forgets those that nobody asked for in so long and nobody has in hand.
    pub fn forget(&self, after: Duration) {
        let is_used = |known: &Known| lock(&known.state).used.elapsed() <= after;
        lock(&self.0).retain(|_, known| Arc::strong_count(known) > 1 || is_used(known));
    }
}

fn busy() -> Error {
    Error::new(Kind::Unavailable, "PREVIEW_BUSY", "too many requests to previews are under way; try again shortly")
        .retry_after(Duration::from_secs(1))
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    const LONG: Duration = Duration::from_hours(1);

    fn known(places: usize) -> Known {
        let at = Instant::now();
        Known {
            session: Uuid::nil(),
            project: "p".into(),
            port: 3000,
            over: CancellationToken::new(),
            read: tokio::sync::Mutex::new(Read { at, failed: None }),
            places: Arc::new(Semaphore::new(places)),
            state: Mutex::new(State {
                fresh_until: at,
                used: at,
                touched: DateTime::UNIX_EPOCH,
                owed: false,
                visits: HashMap::new(),
            }),
        }
    }

    fn at(micros: i64) -> DateTime<Utc> {
        DateTime::from_timestamp_micros(micros).unwrap()
    }

    #[test]
    fn what_somebody_has_in_hand_is_not_forgotten() {
        let register = Register::default();
        let in_hand = register.add(known(1));
        register.forget(LONG);
        register.forget(Duration::ZERO);
        let opened = in_hand.visit((Uuid::nil(), i64::MAX));
        register.close(Uuid::nil());
        assert!(opened.over.is_cancelled(), "what was opened after a long quiet ends with the session");
        drop(register.add(known(1)));
        register.forget(LONG);
        assert!(register.get(Uuid::nil()).is_some());
        register.forget(Duration::ZERO);
        assert!(register.get(Uuid::nil()).is_none());
    }

    #[test]
    fn what_is_open_ends_at_its_very_end() {
        let known = known(1);
        let visit = known.visit((Uuid::nil(), 1_500_000));
        let other = known.visit((Uuid::nil(), i64::MAX));
        assert_eq!(known.end_by_time(at(1_499_999)).0.len(), 2);
        assert!(!visit.over.is_cancelled());
        assert_eq!(known.end_by_time(at(1_500_000)).0, [(Uuid::nil(), i64::MAX)]);
        assert!(visit.over.is_cancelled() && !other.over.is_cancelled());
        drop(other);
        assert!(known.end_by_time(at(1_500_000)).0.is_empty());
    }

    #[test]
    fn an_activity_that_was_not_noted_is_noted_later() {
        let known = known(1);
        let after = chrono::TimeDelta::seconds(5);
        let before = known.touches(at(9_000_000), after).expect("the last one is long ago");
        assert_eq!(known.touches(at(9_000_001), after), None);
        assert!(!known.end_by_time(at(9_000_001)).1);
        known.not_touched(at(9_000_000), before);
        assert!(known.end_by_time(at(9_000_001)).1);
        assert!(known.touches(at(9_000_001), after).is_some());
        known.visit((Uuid::nil(), i64::MAX)).is_active();
        assert!(known.end_by_time(at(9_000_002)).1, "also of what has ended since");
    }

    #[tokio::test]
    async fn who_finds_no_place_is_told_so_and_places_come_free() {
        let (few, all) = (known(1), Arc::new(Semaphore::new(2)));
        let taken = few.place(&all, LONG).await.unwrap();
        let refused = few.place(&all, Duration::from_millis(1)).await.err().expect("no place here");
        assert_eq!((refused.stable_code(), refused.kind()), ("PREVIEW_BUSY", Kind::Unavailable));
        let many = known(9);
        let _second = many.place(&all, LONG).await.unwrap();
        assert!(many.place(&all, Duration::from_millis(1)).await.is_err(), "no place among all");
        drop(taken);
        let again = tokio::join!(few.place(&all, LONG), many.place(&all, Duration::from_millis(1)));
        assert!(again.0.is_ok() && again.1.is_err());
    }
}
