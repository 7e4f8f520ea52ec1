//! The attempts of one saga that are under way in this process, each with its own time limit.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex},
    time::Duration,
};

use chrono::TimeDelta;
use futures::{
    FutureExt as _,
    future::{AbortHandle, Abortable, BoxFuture, Shared},
    stream::FuturesUnordered,
};
use serde_json::Value;

use super::{
    Row, Sagas,
    action::{Action, Attempt, Registry},
};
use crate::{
    domain::saga::{Begin, Outcome},
    queue::Claimed,
};

/// An attempt that is over.
pub struct Landed {
    pub step: usize,
    pub attempt: i32,
    pub undo: bool,
    /// None of one that was given up.
    pub outcome: Option<Outcome>,
    /// What it wrote down.
    pub note: Option<Value>,
}

#[derive(Default)]
pub struct Flight {
    pub landed: FuturesUnordered<BoxFuture<'static, Landed>>,
    /// By step, and whether it is a compensation's.
    leashes: HashMap<(usize, bool), Leash>,
    /// Of steps whose attempts were given up: no other begins before that is over.
    cleaning: HashMap<usize, CleanUp>,
}

struct Leash {
    attempt: i32,
    action: String,
    abort: AbortHandle,
    clean: Option<CleanUp>,
}

/// Ends what an attempt that is given up left going on outside.
type CleanUp = Shared<BoxFuture<'static, ()>>;

impl Flight {
    pub fn begin(&mut self, attempt: Attempt, timeout: Option<TimeDelta>, actions: &Registry) {
        let (step, undo, number) = (attempt.begin.step, attempt.begin.undo, attempt.begin.attempt);
        let attempt = Arc::new(attempt);
        let name = attempt.begin.action.clone();
        let Some(action) = actions.get(&name).cloned() else {
            let outcome = Outcome::never(format!("this server does not know the action {name}"));
            return self.landed.push(async move { landed(&attempt, Some(outcome)) }.boxed());
        };
        let (abort, registration) = AbortHandle::new_pair();
        let clean: CleanUp = {
            let (action, attempt) = (action.clone(), attempt.clone());
            async move { drop(action.cut(&attempt, "it was given up".into()).await) }.boxed().shared()
        };
        self.leashes.insert((step, undo), Leash { attempt: number, action: name, abort, clean: Some(clean) });
        let timeout = timeout.and_then(|timeout| timeout.to_std().ok());
        let before = self.cleaning.remove(&step);
        let made = make(action, attempt.clone(), timeout);
        self.landed.push(
            async move {
                if let Some(before) = before {
                    before.await;
                }
                let outcome = Abortable::new(made, registration).await.ok();
                landed(&attempt, outcome)
            }
            .boxed(),
        );
    }

    /// Gives an attempt up: whatever it would have said is of no interest any more.
    pub fn cut(&mut self, step: usize, undo: bool) {
        if let Some(mut leash) = self.leashes.remove(&(step, undo)) {
            leash.abort.abort();
            if let Some(clean) = leash.clean.take() {
                self.cleaning.insert(step, clean.clone());
                let over = clean.map(move |()| Landed { step, attempt: 0, undo, outcome: None, note: None });
                self.landed.push(over.boxed());
            }
        }
    }

    /// Gives up all but those of which that holds: the step, the attempt, whether it compensates.
    pub fn keep_only(&mut self, goes_on: impl Fn(usize, i32, bool) -> bool) {
        let gone = |((step, undo), leash): (&(usize, bool), &Leash)| {
            (!goes_on(*step, leash.attempt, *undo)).then_some((*step, *undo))
        };
        let gone: Vec<_> = self.leashes.iter().filter_map(gone).collect();
        for (step, undo) in gone {
            self.cut(step, undo);
        }
    }

    /// An attempt is over.
    pub fn forget(&mut self, landed: &Landed) {
        let key = (landed.step, landed.undo);
        if self.leashes.get(&key).is_some_and(|leash| leash.attempt == landed.attempt) {
            self.leashes.remove(&key);
        }
    }

    /// Drops those attempts that are not worth waiting for: another process goes on with them.
    pub fn leave_those_that_take_long(&mut self, actions: &Registry) {
        for leash in self.leashes.values() {
            if actions.get(&leash.action).is_none_or(|action| !action.ends_soon()) {
                leash.abort.abort();
            }
        }
    }
}

fn landed(attempt: &Attempt, outcome: Option<Outcome>) -> Landed {
    let note = if attempt.is_undo() { None } else { attempt.note() };
    Landed { step: attempt.begin.step, attempt: attempt.begin.attempt, undo: attempt.is_undo(), outcome, note }
}

/// One attempt, which ends in time.
async fn make(action: Arc<dyn Action>, attempt: Arc<Attempt>, timeout: Option<Duration>) -> Outcome {
    let made = async {
        if attempt.is_undo()
            && let Err(error) = attempt.recall().await
        {
            return super::outcome(&error);
        }
        // A compensation by another action is that action's run.
        if attempt.begin.itself { action.undo(&attempt).await } else { action.run(&attempt).await }
    };
    match timeout {
        None => made.await,
        Some(limit) => match tokio::time::timeout(limit, made).await {
            Ok(outcome) => outcome,
            Err(_) => {
                action.cut(&attempt, format!("timed out after {}", crate::domain::durations::format_short(limit))).await
            }
        },
    }
}

impl Sagas {
    pub(super) fn attempt(&self, row: &Row, begin: Begin, task: &Claimed) -> Attempt {
        let parts = &self.inner.parts;
        Attempt {
            saga: row.id,
            project_id: row.project_id.clone(),
            depth: row.depth,
            created_by: row.created_by,
            noted: Arc::new(Mutex::new(begin.note.clone())),
            begin,
            task: task.clone(),
            sagas: self.clone(),
            keys: parts.keys.clone(),
            projects: parts.projects.clone(),
        }
    }
}
