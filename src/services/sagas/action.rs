//! What a step can do. An action is one file and one registration: what its config may hold,
//! what it is to the engine, how an attempt is made, undone and cut off.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, PoisonError},
};

use futures::{FutureExt as _, future::BoxFuture};
use serde_json::{Map, Value};
use uuid::Uuid;

use super::{
    super::{
        keys::Keys,
        projects::Projects,
        receipts::{Answer, Keep},
    },
    Sagas,
};
use crate::{
    database::Conn,
    domain::{
        key::Key,
        project::Project,
        saga::{
            Begin, Nature, Outcome, Retry,
            check::{Catalog, Rules},
            fields::Fields,
        },
        scopes::Scope,
        task::Claimed,
    },
    error::{Error, Kind, Result},
    queue::stale,
    store,
};

/// See the module. What [`Rules`] asks is asked when a saga is made, the rest while it runs.
pub trait Action: Rules + Send + Sync + 'static {
    fn name(&self) -> &'static str;

    fn nature(&self) -> Nature;

    /// What the maker of the saga must be allowed, any of these; anything where there are none.
    fn scopes(&self) -> &'static [Scope] {
        &[]
    }

    /// One attempt. It may be dropped at any point where it waits; what it has made by then it has noted.
    fn run<'a>(&'a self, attempt: &'a Attempt) -> BoxFuture<'a, Outcome>;

    /// One attempt to undo what its step did, or may have done. Idempotent.
    fn undo<'a>(&'a self, _: &'a Attempt) -> BoxFuture<'a, Outcome> {
        async { Outcome::Done(Value::Null) }.boxed()
    }

    /// The attempt was dropped because its time is up: ends what goes on outside, and says what is known.
    fn cut<'a>(&'a self, _: &'a Attempt, why: String) -> BoxFuture<'a, Outcome> {
        async { Outcome::CutOff(why) }.boxed()
    }

    /// At an orderly stop it is worth a few seconds to wait for the end of an attempt.
    fn ends_soon(&self) -> bool {
        false
    }
}

/// All actions, by name.
#[derive(Clone, Default)]
pub struct Registry {
    by_name: BTreeMap<&'static str, Arc<dyn Action>>,
}

impl Registry {
    pub fn new(actions: Vec<Arc<dyn Action>>) -> Self {
        Self { by_name: actions.into_iter().map(|action| (action.name(), action)).collect() }
    }

    pub fn get(&self, name: &str) -> Option<&Arc<dyn Action>> {
        self.by_name.get(name)
    }
}

impl Catalog for Registry {
    fn find(&self, action: &str) -> Option<&dyn Rules> {
        self.by_name.get(action).map(|action| -> &dyn Rules { &**action })
    }

    fn names(&self) -> Vec<&str> {
        self.by_name.keys().copied().collect()
    }
}

/// One attempt of a step, or of its compensation, as its action sees it.
pub struct Attempt {
    pub saga: Uuid,
    pub project_id: Option<String>,
    /// How many sagas are above this one.
    pub depth: i16,
    pub created_by: Uuid,
    pub begin: Begin,
    pub(super) task: Claimed,
    pub(super) noted: Arc<Mutex<Option<Value>>>,
    pub(super) sagas: Sagas,
    pub(super) keys: Keys,
    pub(super) projects: Projects,
}

impl Attempt {
    /// From 1.
    pub fn number(&self) -> i32 {
        self.begin.attempt
    }

    /// Stable over the attempts of a step, another one for those of its compensation.
    pub fn key(&self) -> &str {
        &self.begin.key
    }

    /// It undoes a step.
    pub fn is_undo(&self) -> bool {
        self.begin.undo
    }

    /// The output of the step that is undone.
    pub fn output(&self) -> Option<&Value> {
        self.begin.output.as_ref()
    }

    /// The sagas, for an action that starts one.
    pub fn sagas(&self) -> &Sagas {
        &self.sagas
    }

    /// Reads the config.
    ///
    /// # Errors
    /// A failure that names everything that is wrong.
    pub fn read<T>(&self, read: impl FnOnce(&mut Fields<'_>) -> T) -> Result<T, Outcome> {
        let none = Map::new();
        let members = self.begin.config.as_object().unwrap_or(&none);
        let mut problems = Vec::new();
        let config = read(&mut Fields::new(members, "config", &mut problems));
        if problems.is_empty() {
            return Ok(config);
        }
        let said: Vec<String> = problems.iter().map(|one| format!("{}: {}", one.path, one.message)).collect();
        Err(Outcome::never(said.join("; ")))
    }

    /// What this attempt, or one before that nobody knows the end of, wrote down about what it had made.
    pub fn note(&self) -> Option<Value> {
        self.noted.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Reads what the step's attempts wrote down: one that was given up did so unseen.
    pub(super) async fn recall(&self) -> Result<()> {
        let step = i32::try_from(self.begin.step).unwrap_or(i32::MAX);
        let note = self.sagas.note_of(self.saga, step).await?;
        *self.noted.lock().unwrap_or_else(PoisonError::into_inner) = note;
        Ok(())
    }

    /// Handed to a service that makes something: what `show` says of it, an object, is noted in the
    /// transaction that makes it, with the number of this `attempt` (and `undo`), or nothing is made. So it
    /// is made once, whatever dies.
    pub fn answer<T>(&self, show: impl Fn(&T) -> Value + Send + Sync + 'static) -> Answer<T> {
        let (saga, begin) = (self.saga, &self.begin);
        let note = Note {
            saga,
            step: i32::try_from(begin.step).unwrap_or(i32::MAX),
            attempt: begin.attempt,
            undo: begin.undo,
            task: self.task.clone(),
            noted: self.noted.clone(),
        };
        Answer::kept_by(Arc::new(note), show)
    }

    /// With whose rights it acts: those that the key had which made the saga, also when it is gone.
    ///
    /// # Errors
    /// Those of the database.
    pub async fn caller(&self) -> Result<Key> {
        self.keys.maker(self.created_by).await
    }

    /// A project of the config, where the saga's maker may use it.
    ///
    /// # Errors
    /// A failure that says "project not found".
    pub async fn project(&self, id: &str) -> Result<(Key, Project), Outcome> {
        let caller = self.caller().await.map_err(|error| outcome(&error))?;
        let found = if caller.sees(id) { self.projects.find(id).await.map_err(|error| outcome(&error))? } else { None };
        let project = found.ok_or_else(|| Outcome::never(format!("project not found: {id}")))?;
        Ok((caller, project))
    }
}

/// What an error of a service means for a step: whether another attempt may go better.
pub fn outcome(error: &Error) -> Outcome {
    let said = match error.details().get("reason").and_then(Value::as_str) {
        Some(reason) => format!("{} ({reason})", error.message()),
        None => error.message().to_owned(),
    };
    match error.kind() {
        Kind::Limited | Kind::BadGateway | Kind::Unavailable | Kind::Timeout | Kind::Internal => {
            if let Some(cause) = error.hidden_cause() {
                tracing::warn!(cause, "a step of a saga failed");
            }
            Outcome::Failed { error: said, retry: Retry::After(error.wait()), partly: false }
        }
        _ => Outcome::never(said),
    }
}

/// Writes down what an attempt made, in the transaction that makes it.
struct Note {
    saga: Uuid,
    step: i32,
    attempt: i32,
    undo: bool,
    task: Claimed,
    noted: Arc<Mutex<Option<Value>>>,
}

impl Keep for Note {
    fn keep<'a>(&'a self, tx: &'a mut Conn, mut shown: Value) -> BoxFuture<'a, Result<()>> {
        async move {
            shown["attempt"] = self.attempt.into();
            if self.undo {
                shown["undo"] = true.into();
            }
            // Whoever takes the saga over waits for this, and then sees the note.
            let ours = store::tasks::hold(tx, self.task.id, self.task.fence).await?
                && store::sagas::note(tx, self.saga, self.step, (self.attempt, self.undo), &shown).await?;
            if !ours {
                return Err(stale());
            }
            *self.noted.lock().unwrap_or_else(PoisonError::into_inner) = Some(shown);
            Ok(())
        }
        .boxed()
    }
}
