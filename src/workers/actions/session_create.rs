//! `session.create`: a session that is there while the saga needs it; it is active when the step is done.

use std::time::Duration;

use futures::{FutureExt as _, future::BoxFuture};
use serde_json::{Value, json};

use super::{
    ATTEMPTS,
    checkout_create::{asked as asked_checkout, in_the_making, put_off},
    ended, failed, insistently, made, noted, project, session_end,
    works::Works,
};
use crate::{
    domain::{
        key::Key,
        project::Project,
        saga::{Nature, Outcome, check::Rules, fields::Fields},
        scopes::Scope,
        session::{EndReason, OnDirty, Session, SessionStatus},
    },
    error::{Kind, Result},
    services::{
        checkouts::Checkouts,
        sagas::{Action, Attempt},
        sessions::{Asked, NewSession, OpenedSession, Sessions},
    },
};

pub struct SessionCreate {
    pub sessions: Sessions,
    pub checkouts: Checkouts,
    pub min_expires_in: Duration,
    pub works: Works,
}

impl SessionCreate {
    fn asked(fields: &mut Fields<'_>) -> (String, Option<Asked>) {
        let project = fields.project();
        let (preview_port, idle_timeout) = (fields.whole("preview_port", 1..=65_535), fields.text("idle_timeout"));
        let asked = asked_checkout(fields).map(|checkout| Asked { checkout, preview_port, idle_timeout });
        (project, asked)
    }

    fn read(&self, fields: &mut Fields<'_>) -> (String, Option<NewSession>) {
        let (project, asked) = Self::asked(fields);
        let new = asked.map(|asked| asked.parse(self.min_expires_in)).transpose();
        (project, new.map_err(|error| fields.problem("", error.message())).ok().flatten())
    }

    async fn run(&self, attempt: &Attempt) -> Result<Value, Outcome> {
        let (project, new) = attempt.read(|fields| self.read(fields))?;
        let new = new.ok_or_else(|| Outcome::never("config must hold exactly one of branch, new_branch"))?;
        let (caller, project) = attempt.project(&project).await?;
        if let Some(session) = self.before(attempt, &project).await? {
            return Ok(session_end::output(&session));
        }
        match self.create(attempt, &caller, &project, new.clone()).await {
            // What is in the way may be what an attempt before left half-made.
            Err(error) if error.kind() == Kind::Conflict && attempt.number() > 1 => {
                if in_the_making(&self.checkouts, &project).await.map_err(failed)? {
                    return Err(put_off(attempt));
                }
                self.create(attempt, &caller, &project, new).await.map_err(failed)
            }
            made => made.map_err(failed),
        }
    }

    /// The session that this attempt had made before its process died, or an earlier one that is still there.
    async fn before(&self, attempt: &Attempt, project: &Project) -> Result<Option<Session>, Outcome> {
        let Some(noted) = noted(attempt) else { return Ok(None) };
        let Some(id) = noted.note["session_id"].as_str().and_then(|id| id.parse().ok()) else { return Ok(None) };
        match insistently(|| self.sessions.get(&project.id, id)).await {
            Ok(session) => Ok(Some(session).filter(|one| noted.resumed || one.status == SessionStatus::Active)),
            Err(error) if error.kind() == Kind::NotFound => Ok(None),
            Err(error) => Err(failed(error)),
        }
    }

    async fn create(&self, attempt: &Attempt, caller: &Key, project: &Project, new: NewSession) -> Result<Value> {
        let answer = attempt.answer(|OpenedSession { session, .. }: &OpenedSession| {
            let (project, preview) = (&session.project_id, &session.preview_url);
            json!({"session_id": session.id, "project_id": project, "preview_url": preview})
        });
        let (sessions, caller, project) = (self.sessions.clone(), caller.clone(), project.clone());
        let create = async move { sessions.create(&caller, &project, new, answer).await };
        Ok(session_end::output(&self.works.through(attempt, create).await?.session))
    }

    async fn end(&self, attempt: &Attempt) -> Result<Value, Outcome> {
        let Some(id) = made(attempt, "session_id").and_then(|id| id.parse().ok()) else { return Ok(Value::Null) };
        let project = attempt.read(project)?;
        let how = session_end::How::As(EndReason::Terminated, OnDirty::Rescue);
        match session_end::end(&self.sessions, &self.works, attempt, &project, id, how).await {
            Err(error) if error.kind() != Kind::NotFound => Err(failed(error)),
            _ => Ok(Value::Null),
        }
    }
}

impl Rules for SessionCreate {
    fn may_compensate(&self) -> bool {
        true
    }

    fn undoes_itself(&self) -> bool {
        true
    }

    fn has_effect(&self) -> bool {
        true
    }

    fn unavailable(&self) -> Option<&str> {
        None
    }

    fn check(&self, fields: &mut Fields<'_>) {
        self.read(fields);
    }
}

impl Action for SessionCreate {
    fn name(&self) -> &'static str {
        "session.create"
    }

    fn nature(&self) -> Nature {
        Nature { undoes_itself: true, ..ATTEMPTS }
    }

    fn scopes(&self) -> &'static [Scope] {
        &[Scope::SessionsExecute, Scope::ProjectsExecute]
    }

    fn run<'a>(&'a self, attempt: &'a Attempt) -> BoxFuture<'a, Outcome> {
        async { ended(Box::pin(self.run(attempt)).await) }.boxed()
    }

    fn undo<'a>(&'a self, attempt: &'a Attempt) -> BoxFuture<'a, Outcome> {
        async { ended(self.end(attempt).await) }.boxed()
    }

    /// What was made in time counts; anything else is taken back by who makes it.
    fn cut<'a>(&'a self, attempt: &'a Attempt, why: String) -> BoxFuture<'a, Outcome> {
        async {
            self.works.settled(attempt).await;
            let made = noted(attempt).filter(|noted| noted.resumed).map(|noted| noted.note);
            match made {
                Some(note) => {
                    Outcome::Done(json!({"session_id": note["session_id"], "preview_url": note["preview_url"]}))
                }
                None => Outcome::CutOff(why),
            }
        }
        .boxed()
    }

    fn ends_soon(&self) -> bool {
        true
    }
}
