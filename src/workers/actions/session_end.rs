//! `session.end`: checks a session in, as POST `…/checkin` does. One that has ended already is done.

use futures::{FutureExt as _, future::BoxFuture};
use serde_json::{Value, json};
use uuid::Uuid;

use super::{ATTEMPTS, LOOK, checkout_checkin::reviewed, ended, failed, insistently, works::Works};
use crate::{
    domain::{
        ids,
        review::Wish,
        saga::{Nature, Outcome, check::Rules, fields::Fields},
        scopes::Scope,
        session::{EndReason, OnDirty, Session, SessionStatus},
    },
    error::{Kind, Result},
    services::{
        receipts::Answer,
        sagas::{Action, Attempt},
        sessions::Sessions,
    },
};

pub struct SessionEnd {
    pub sessions: Sessions,
    pub works: Works,
}

struct Config {
    project: String,
    /// None where it is no id: there is no such session.
    session: Option<Uuid>,
    on_dirty: OnDirty,
    wish: Wish,
}

impl Config {
    fn read(fields: &mut Fields<'_>) -> Self {
        let project = fields.project();
        let session = ids::uuid_from_path(&fields.required_text("session_id"));
        let wish = reviewed(fields);
        let on_dirty = match fields.one_of("on_dirty", &["rescue", "discard", "fail"]).as_deref() {
            Some("discard") => OnDirty::Discard,
            Some("fail") => OnDirty::Fail,
            _ => OnDirty::Rescue,
        };
        Self { project, session, on_dirty, wish }
    }
}

/// How a session is to end.
#[derive(Debug, Clone, Copy)]
pub enum How {
    CheckedIn(OnDirty, Wish),
    As(EndReason, OnDirty),
}

/// Ends a session and answers when it has ended, whoever began that.
///
/// # Errors
/// Those of the service, but that it is not active.
pub async fn end(
    sessions: &Sessions,
    works: &Works,
    attempt: &Attempt,
    project: &str,
    id: Uuid,
    how: How,
) -> Result<Session> {
    loop {
        let session = insistently(|| sessions.get(project, id)).await?;
        match session.status {
            SessionStatus::Active => {}
            // Somebody else is at it.
            SessionStatus::Provisioning | SessionStatus::Ending => {
                tokio::time::sleep(LOOK).await;
                continue;
            }
            _ => return Ok(session),
        }
        let caller = attempt.caller().await?;
        let (sessions, project) = (sessions.clone(), project.to_owned());
        let end = async move {
            match how {
                How::CheckedIn(on_dirty, wish) => {
                    sessions.checkin(&caller, &project, id, (on_dirty, wish), Answer::none()).await
                }
                How::As(reason, on_dirty) => {
                    sessions.end(Some(&caller), &project, id, reason, on_dirty, Answer::none()).await
                }
            }
        };
        match works.through(attempt, end).await {
            // Somebody else was quicker.
            Err(error) if error.kind() == Kind::Invalid => {}
            over => return over,
        }
    }
}

pub fn output(session: &Session) -> Value {
    json!({"session_id": session.id, "preview_url": session.preview_url})
}

impl SessionEnd {
    async fn run(&self, attempt: &Attempt) -> Result<Value, Outcome> {
        let config = attempt.read(Config::read)?;
        let (_, project) = attempt.project(&config.project).await?;
        let id = config.session.ok_or_else(|| Outcome::never("session not found"))?;
        let how = How::CheckedIn(config.on_dirty, config.wish);
        let session = end(&self.sessions, &self.works, attempt, &project.id, id, how).await.map_err(failed)?;
        Ok(output(&session))
    }
}

impl Rules for SessionEnd {
    fn may_compensate(&self) -> bool {
        true
    }

    fn undoes_itself(&self) -> bool {
        false
    }

    fn has_effect(&self) -> bool {
        true
    }

    fn unavailable(&self) -> Option<&str> {
        None
    }

    fn check(&self, fields: &mut Fields<'_>) {
        Config::read(fields);
    }
}

impl Action for SessionEnd {
    fn name(&self) -> &'static str {
        "session.end"
    }

    fn nature(&self) -> Nature {
        ATTEMPTS
    }

    fn scopes(&self) -> &'static [Scope] {
        &[Scope::SessionsExecute, Scope::ProjectsExecute]
    }

    fn run<'a>(&'a self, attempt: &'a Attempt) -> BoxFuture<'a, Outcome> {
        async { ended(self.run(attempt).await) }.boxed()
    }

    fn ends_soon(&self) -> bool {
        true
    }
}
